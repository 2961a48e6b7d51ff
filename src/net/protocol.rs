//! What the relay needs of an engine's protocol: pure, so that the relay itself knows no message.

use super::relay::Fatal;
use crate::wire::frame::Header;
use bytes::BytesMut;
use std::fmt;
use std::time::Instant;

/// One frame whose beginning is there.
#[derive(Debug)]
pub struct Frame<'a, H> {
    /// Its header.
    pub header: H,
    /// What is there of it, header included.
    pub bytes: &'a mut [u8],
    /// Where the bytes end that were asked for.
    pub head_end: usize,
}

impl<H: Header> Frame<'_, H> {
    /// The beginning of the body that was asked for.
    pub fn head(&self) -> &[u8] {
        self.bytes.get(H::LEN..self.head_end).unwrap_or_default()
    }
}

/// What a client's frame is, before anything is decided about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The client says good-bye.
    Terminate,
    /// The server ignores it here.
    Nothing,
    /// Part of a request.
    Request,
}

/// What a client's frame means for the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Send it on.
    Forward,
    /// Send what was written in place of its first so many bytes, then its rest.
    Instead(usize),
    /// It is for the session's task, not for the server.
    Keep,
}

/// What a server's frame means for the relay.
#[derive(Debug, Default)]
pub struct Came {
    /// A request is complete; true: and no transaction is open.
    pub ready: Option<bool>,
    /// Send what was written in place of its first so many bytes.
    pub instead_of: usize,
    /// A result ends with this frame, and another one follows.
    pub more_results: bool,
    /// The server's last words: not sent on.
    pub fatal: Option<Box<Fatal>>,
}

/// How far a refused request was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Its first frame comes.
    First,
    /// Its first frame is gone; more belong to it.
    More,
    /// What is left of its last frame.
    Last,
}

/// Why a held request is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// The client has canceled it.
    Canceled,
    /// No server for longer than held requests wait, for this reason.
    Outage(&'a str),
}

/// What follows from a frame that is answered without a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    /// It was answered, or needs no answer.
    Answered,
    /// It was answered, and what follows is for a server.
    Over,
    /// This frame is for a server already.
    Forward,
    /// No such message exists; its type.
    Unknown(u8),
}

/// The protocol of one session: what passed, and what is owed for it.
pub trait Protocol: fmt::Debug + Send + Unpin + 'static {
    /// How its frames begin.
    type Header: Header + Send;

    /// Bytes of a frame's body by which a refused request's frames are told apart.
    const DISCARD_HEAD: usize;

    /// Bytes of the body that [`Self::on_client`] wants to see at once; asked again when more of it is there.
    fn client_head(&self, header: Self::Header, seen: &[u8]) -> usize;

    /// Bytes of the body that [`Self::on_server`] wants to see at once; asked again when more of it is there.
    fn server_head(&self, header: Self::Header, seen: &[u8]) -> usize;

    /// What a client's frame is.
    fn kind(&self, header: Self::Header, head: &[u8]) -> Kind;

    /// A frame is about to be sent to the server; `instead` takes what is sent in place of its beginning.
    fn on_client(
        &mut self,
        frame: Frame<'_, Self::Header>,
        now: Instant,
        instead: &mut BytesMut,
    ) -> Sent;

    /// A frame came from the server; `instead` takes what the client is sent in place of its beginning.
    fn on_server(&mut self, frame: Frame<'_, Self::Header>, instead: &mut BytesMut) -> Came;

    /// Nothing is owed in either direction, nothing can be open.
    fn at_rest(&self) -> bool;

    /// As at rest as can be told without asking the server.
    fn seems_at_rest(&self) -> bool {
        self.at_rest()
    }

    /// [`Self::put_question`] is not to wait until somebody wants the session to rest.
    fn asks_at_once(&self) -> bool {
        false
    }

    /// Only the server can tell whether this is rest: writes a question whose answer is not for the client.
    fn put_question(&mut self, _out: &mut BytesMut) -> bool {
        false
    }

    /// The last reply left something that the client may still ask for, and that only this server connection has.
    fn has_left_something(&self) -> bool {
        false
    }

    /// This request asks for it.
    fn looks_back(&self, _head: &[u8]) -> bool {
        false
    }

    /// No reply is owed; a transaction may be open.
    fn is_quiet(&self) -> bool;

    /// In lock-step: the next frame belongs to a request that has begun, or none is under way.
    fn may_send_in_lock_step(&self) -> bool;

    /// A request that the server could still act upon is in flight.
    fn is_in_flight(&self) -> bool;

    /// The server works on what was sent, and would do so to the end if the client said good-bye now.
    fn is_running(&self) -> bool;

    /// A stream of replication.
    fn is_streaming(&self) -> bool;

    /// A held request is refused: what the client reads before it is dropped.
    fn put_refusal(&mut self, refusal: Refusal<'_>, out: &mut BytesMut);

    /// What the client reads when it is dropped, its last frame excepted.
    fn put_refused(&mut self, out: &mut BytesMut);

    /// A frame of a refused request, of which [`Self::DISCARD_HEAD`] bytes are there. `None`: a good-bye.
    fn discard(&mut self, so_far: Discard, header: Self::Header, head: &[u8]) -> Option<Discard>;

    /// Requests are answered here, without a server.
    fn is_alone(&self) -> bool;

    /// Answers a frame of the client.
    fn answer(&mut self, header: Self::Header, head: &[u8], out: &mut BytesMut) -> Alone;
}
