//! Moves bytes between a client and its server, frame by frame but not message by message.
//!
//! One task owns both sockets. A wake-up reads once, tells the session machine what passes, and writes
//! once, straight from the read buffer; only what a slow reader leaves behind is kept. A side is read
//! only while the other side's leftover is empty, so a client that stops reading stops only itself, and
//! a pipelining client can't deadlock. Idle relays own no buffers: the read buffer is the thread's.
//!
//! The relay decides nothing about servers: it stops and says why ([`Stop`]), and the session's task
//! goes on from there.

pub use super::leg::Leg;
use super::leg::READ_MAX;
use super::protocol::{Discard, Frame, Protocol};
use crate::backend::registry::{Handle, State};
use crate::transport::stream::Stream;
use crate::wire::frame::{FrameError, Header};
use bytes::BytesMut;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// Room for what was kept from the last read, before the next one.
const SCRATCH: usize = 2 * READ_MAX + 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// How client frames may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As they come.
    Flow,
    /// One request at a time; none from a safe point on.
    LockStep,
}

/// Why the relay stopped.
#[derive(Debug)]
pub enum Stop {
    /// The client left: Terminate, FIN, RST or an error on its socket.
    ClientGone,
    /// The client's bytes are no protocol.
    ClientGarbage(FrameError),
    /// The client sent a message of a type that there is not.
    ClientUnknown(u8),
    /// The server closed, without a FATAL or after it.
    ServerGone,
    /// The server's bytes are no protocol.
    ServerGarbage(FrameError),
    /// The server said FATAL; its frame was not sent on yet.
    ServerFatal(Box<Fatal>),
    /// A client's frame waits and there is no server.
    NeedServer,
    /// At rest in lock-step: the moment to detach.
    SafePoint,
    /// A client's frame is for the session's task: it is carried, whole.
    Kept,
    /// Somebody asked something of the session.
    Asked,
    /// A request became complete while someone wants to know.
    Rested,
}

/// A server's last words.
#[derive(Debug)]
pub struct Fatal {
    /// The engine's code.
    pub code: String,
    /// Its text.
    pub message: String,
    /// The whole frame as it came.
    pub frame: BytesMut,
}

/// Both legs of one session and the protocol between them.
#[derive(Debug)]
pub struct Relay<P> {
    pub(super) client: Leg,
    pub(super) server: Option<Leg>,
    /// What passed, and what is owed for it.
    pub front: P,
    /// How client frames may pass.
    pub mode: Mode,
    /// How long a session rests before it is at a safe point, if its client may still ask for what the last reply left.
    pub linger: Duration,
    /// [`Stop::Rested`] is wanted at the next safe point.
    pub want_rest: bool,
    /// [`Stop::Rested`] is wanted between two messages of the server, whatever it sends.
    pub want_gap: bool,
    /// What has arrived is looked at once before anybody's question is.
    pub look_first: bool,
    /// The carried client bytes hold a frame that was stopped.
    pub(super) stopped: bool,
    /// That frame is for the session's task, once nothing is owed.
    pub(super) waits_for_quiet: bool,
    /// The carried client bytes may hold a whole frame that nobody has looked at.
    pub(super) unread: bool,
    pub(super) discard: Option<Discard>,
    pub(super) server_write_broken: bool,
    /// The client has said good-bye behind requests that the server still works on: they run to their end,
    /// as they would without Slackwater, and what it says is told to the client while that is there.
    pub(super) leaving: bool,
    /// The carried server bytes were stopped between two messages.
    server_unread: bool,
    /// What is sent in place of a frame's beginning.
    pub(super) instead: BytesMut,
    /// As last told to others.
    told_at_rest: bool,
    /// Since when it rests behind what left something.
    rests_since: Option<Instant>,
    /// What is under way in lock-step asks for what was left before it.
    pub(super) looked_back: bool,
    lingering: Option<Pin<Box<Sleep>>>,
    pub(super) counts: Counts,
}

/// What passed since it was last asked for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Bytes from the client.
    pub from_client: u64,
    /// Bytes from the server.
    pub from_server: u64,
    /// Requests that were completed.
    pub requests: u64,
    /// Those behind which no transaction is open.
    pub transactions: u64,
}

impl<P: Protocol> Relay<P> {
    /// A session whose client has logged in and that has no server yet.
    pub fn new(client: Leg, front: P) -> Self {
        let unread = !client.carry.is_empty();
        Self {
            client,
            server: None,
            front,
            mode: Mode::Flow,
            linger: Duration::ZERO,
            want_rest: false,
            want_gap: false,
            look_first: false,
            stopped: false,
            waits_for_quiet: false,
            unread,
            discard: None,
            server_write_broken: false,
            leaving: false,
            server_unread: false,
            instead: BytesMut::new(),
            told_at_rest: false,
            rests_since: None,
            looked_back: false,
            lingering: None,
            counts: Counts::default(),
        }
    }

    /// Goes on until something has to be decided.
    pub fn poll(&mut self, cx: &mut Context<'_>, handle: &Handle, now: Instant) -> Poll<Stop> {
        handle.register(cx.waker());
        BUFFER.with_borrow_mut(|buffer| self.pump(cx, buffer, handle, now))
    }

    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        handle: &Handle,
        now: Instant,
    ) -> Poll<Stop> {
        let (mut server_waits, mut client_waits) = (false, false);
        let mut look_first = std::mem::take(&mut self.look_first);
        loop {
            if handle.is_asked() && !look_first {
                return Poll::Ready(Stop::Asked);
            }
            if !server_waits {
                match self.poll_server(cx, buffer) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(stop)) => return Poll::Ready(stop),
                    Poll::Pending => server_waits = true,
                }
            }
            if !client_waits {
                match self.poll_client(cx, buffer, now) {
                    Poll::Ready(Ok(())) => handle.touch(now),
                    Poll::Ready(Err(stop)) => return Poll::Ready(stop),
                    Poll::Pending => client_waits = true,
                }
            }
            self.tell_rest(handle, now);
            let wants_rest =
                self.want_rest || (self.mode == Mode::LockStep && !self.poll_linger(cx, now));
            if (wants_rest || self.front.asks_at_once()) && self.asked_server(cx) {
                server_waits = false;
                continue;
            }
            if wants_rest && self.at_safe_point() {
                self.want_rest = false;
                return Poll::Ready(match self.mode {
                    Mode::LockStep => Stop::SafePoint,
                    Mode::Flow => Stop::Rested,
                });
            }
            if std::mem::take(&mut look_first) {
                continue;
            }
            if server_waits && client_waits {
                return Poll::Pending;
            }
            if !self.is_plain_flow() {
                // What one side did may be what the other waits for.
                (server_waits, client_waits) = (false, false);
            }
        }
    }

    /// Each side waits for its own sockets only: for bytes, or to be rid of some.
    fn is_plain_flow(&self) -> bool {
        self.mode == Mode::Flow && !self.stopped && !self.unread && self.discard.is_none()
    }

    /// Watches the client of a held session: more of its request is kept, up to a limit; its end is seen.
    pub fn poll_held(&mut self, cx: &mut Context<'_>, handle: &Handle) -> Poll<Stop> {
        handle.register(cx.waker());
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                if handle.is_asked() {
                    return Poll::Ready(Stop::Asked);
                }
                if let Poll::Ready(Err(_)) = self.client.poll_flush_out(cx) {
                    return Poll::Ready(Stop::ClientGone);
                }
                if self.client.carry.len() >= READ_MAX {
                    return Poll::Pending;
                }
                if ready!(self.fill_client(cx, buffer)).is_err() {
                    return Poll::Ready(Stop::ClientGone);
                }
                if self.discard.is_some()
                    && let Err(stop) = self.drop_discarded()
                {
                    return Poll::Ready(stop);
                }
            }
        })
    }

    /// Reads more of a client whose frame is for the session's task.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        BUFFER.with_borrow_mut(|buffer| {
            if self.client.carry.len() >= READ_MAX {
                return Poll::Ready(Err(Stop::ClientGone));
            }
            self.fill_client(cx, buffer)
        })
    }

    /// Both directions are complete and nothing can be open: the session may be detached.
    pub fn at_safe_point(&self) -> bool {
        self.front.at_rest() && self.is_between_frames()
    }

    /// Until when the client's next request is waited for: one that asks for what the last reply left goes to the server
    /// that has it, any other has no use for it.
    fn lingers_until(&self) -> Option<Instant> {
        let waits = !self.linger.is_zero()
            && !self.stopped
            && self.front.has_left_something()
            && self.front.seems_at_rest()
            && self.is_between_frames();
        self.rests_since
            .filter(|_| waits)
            .map(|at| at + self.linger)
    }

    /// The session is left where it is for a moment, though it rests.
    pub fn lingers(&self, now: Instant) -> bool {
        self.lingers_until().is_some_and(|until| now < until)
    }

    /// The same; wakes the task when that moment is over.
    fn poll_linger(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(until) = self.lingers_until().filter(|until| now < *until) else {
            self.lingering = None;
            return false;
        };
        let until = tokio::time::Instant::from_std(until);
        let timer = self
            .lingering
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx).is_pending()
    }

    /// In lock-step: the request may go to the server all the same.
    pub(super) fn may_look_back(&self, head: &[u8], now: Instant) -> bool {
        self.mode == Mode::LockStep
            && self.server.is_some()
            && self.front.seems_at_rest()
            && self.rests_since.is_some_and(|at| now < at + self.linger)
            && self.front.looks_back(head)
    }

    fn is_between_frames(&self) -> bool {
        !self.leaving
            && self.client.is_clean()
            && self
                .server
                .as_ref()
                .is_some_and(|s| s.is_clean() && s.carry.is_empty())
    }

    /// Sends the server a question of its own, where nothing else tells whether this is a safe point.
    fn asked_server(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_between_frames() || !self.front.put_question(&mut self.instead) {
            return false;
        }
        let question = std::mem::take(&mut self.instead);
        self.send(cx, &question);
        true
    }

    /// The client sent something that no server has seen.
    pub fn holds_request(&self) -> bool {
        !self.client.carry.is_empty() && self.discard.is_none()
    }

    /// The client has read the beginning of a message whose rest has not come: nothing else can be told.
    pub fn is_mid_frame(&self) -> bool {
        self.server.as_ref().is_some_and(|s| s.remaining > 0)
    }

    /// A server is attached.
    pub fn is_attached(&self) -> bool {
        self.server.is_some()
    }

    /// The client's end was seen: nothing of it may be sent any more.
    pub fn client_gone(&self) -> bool {
        self.client.eof || self.client.stream.peer_gone()
    }

    /// Binds a server connection; what the client sent meanwhile goes to it.
    pub fn attach(&mut self, server: Leg) {
        self.server = Some(server);
        self.server_write_broken = false;
        self.unread = !self.client.carry.is_empty();
    }

    /// Takes the server connection off. A request that was stopped before it then asks for another one.
    pub fn detach(&mut self) -> Option<Leg> {
        self.unread = !self.client.carry.is_empty();
        self.server.take()
    }

    /// The server connection, for a probe at a safe point.
    pub fn server_stream(&mut self) -> Option<&mut Stream> {
        self.server.as_mut().map(Leg::stream)
    }

    /// The client's socket and what was read ahead of it.
    pub fn into_client(self) -> Leg {
        self.client
    }

    /// Appends messages of Slackwater's own for the client.
    pub fn tell(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(&mut self.client.out);
    }

    /// Waits until the client has taken what it was told.
    pub fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.client.poll_flush_out(cx)
    }

    /// What passed since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The protocol, and what the client is still to read.
    pub fn front_and_out(&mut self) -> (&mut P, &mut BytesMut) {
        (&mut self.front, &mut self.client.out)
    }

    /// A refused request's rest is still awaited.
    pub fn is_discarding(&self) -> bool {
        self.discard.is_some()
    }

    fn tell_rest(&mut self, handle: &Handle, now: Instant) {
        let at_rest = self.server.is_some() && self.front.seems_at_rest();
        if at_rest != self.told_at_rest {
            self.told_at_rest = at_rest;
            if at_rest && !std::mem::take(&mut self.looked_back) {
                self.rests_since = Some(now);
            }
            handle.set_state(
                if at_rest {
                    State::AtRest
                } else {
                    State::Active
                },
                now,
            );
        }
    }

    /// The state was told to others by somebody else.
    pub fn forget_told_state(&mut self) {
        self.told_at_rest = false;
    }

    fn poll_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<(), Stop>> {
        // A detached session's client may have something to read as well: that its request was canceled.
        if ready!(self.client.poll_flush_out(cx)).is_err() {
            if !self.leaving {
                return Poll::Ready(Err(Stop::ClientGone));
            }
            self.client.out = BytesMut::new();
        }
        let Some(server) = self.server.as_mut() else {
            return Poll::Pending;
        };
        if std::mem::take(&mut self.server_unread) {
            let mut kept = std::mem::take(&mut server.carry);
            return Poll::Ready(self.server_chunk(cx, &mut kept));
        }
        match ready!(server.poll_fill(cx, buffer)) {
            Ok(n) if n > 0 => {
                self.counts.from_server += (n - server.carry.len()) as u64;
                let chunk = buffer.get_mut(..n).unwrap_or_default();
                Poll::Ready(self.server_chunk(cx, chunk))
            }
            _ => Poll::Ready(Err(Stop::ServerGone)),
        }
    }

    fn server_chunk(&mut self, cx: &mut Context<'_>, chunk: &mut [u8]) -> Result<(), Stop> {
        let Some(server) = self.server.as_mut() else {
            return Ok(());
        };
        let mut sent = 0;
        let mut pos = server.remaining.min(chunk.len());
        let mut remaining = server.remaining - pos;
        let mut stop = None;
        while remaining == 0 {
            if self.want_gap {
                self.want_gap = false;
                stop = Some(Stop::Rested);
                break;
            }
            let (before, rest) = chunk.split_at_mut(pos);
            let header = match P::Header::cut(rest) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(error) => {
                    stop = Some(Stop::ServerGarbage(error));
                    break;
                }
            };
            let seen = rest.get(P::Header::LEN..).unwrap_or_default();
            let head_end = P::Header::LEN + self.front.server_head(header, seen);
            if rest.len() < head_end {
                break;
            }
            let take = header.whole_len().min(rest.len());
            let frame = Frame {
                header,
                bytes: rest,
                head_end,
            };
            let came = self.front.on_server(frame, &mut self.instead);
            if let Some(transaction_over) = came.ready {
                self.counts.requests += 1;
                self.counts.transactions += u64::from(transaction_over);
            }
            if came.instead_of > 0 {
                let before = before.get(sent..).unwrap_or_default();
                self.client.deliver(cx, before, self.leaving)?;
                self.client.deliver(cx, &self.instead, self.leaving)?;
                self.instead.clear();
                // The rest of the frame follows as it came.
                sent = pos + came.instead_of;
            }
            if let Some(fatal) = came.fatal {
                let before = before.get(sent..).unwrap_or_default();
                self.client.deliver(cx, before, self.leaving)?;
                pos += header.whole_len();
                sent = pos;
                stop = Some(Stop::ServerFatal(fatal));
                break;
            }
            pos += take;
            remaining = header.whole_len() - take;
            if came.more_results && remaining == 0 && self.client.stream.is_compressed() {
                let result = chunk.get(sent..pos).unwrap_or_default();
                self.client.deliver(cx, result, self.leaving)?;
                self.client.stream.end_of_result();
                sent = pos;
            }
        }
        server.remaining = remaining;
        server.keep(chunk.get(pos..).unwrap_or_default());
        self.server_unread = matches!(stop, Some(Stop::Rested)) && !server.carry.is_empty();
        let passing = chunk.get(sent..pos).unwrap_or_default();
        self.client.deliver(cx, passing, self.leaving)?;
        stop.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
#[path = "tests/relay.rs"]
mod tests;
