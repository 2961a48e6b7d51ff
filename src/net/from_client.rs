//! The relay's way from the client to the server.

use super::leg::READ_MAX;
use super::protocol::{Frame, Kind, Protocol, Sent};
use super::relay::{Mode, Relay, Stop};
use crate::wire::frame::Header;
use bytes::BytesMut;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// What a chunk of frames came to.
enum Cut {
    /// All of it passes.
    Clean,
    /// The frame behind what passes is stopped.
    Stopped,
    /// The relay stops.
    Stop(Stop),
}

impl<P: Protocol> Relay<P> {
    pub(super) fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) -> Poll<Result<(), Stop>> {
        if let Some(server) = self.server.as_mut()
            && ready!(server.poll_flush_out(cx)).is_err()
        {
            // Its last words may still be there to be read.
            self.server_write_broken = true;
            server.out = BytesMut::new();
        }
        if self.leaving {
            return Poll::Pending;
        }
        if self.discard.is_some() {
            ready!(self.fill_client(cx, buffer))?;
            return Poll::Ready(self.drop_discarded());
        }
        if self.stopped && !self.unread && !self.may_resume() {
            if self.client.carry.len() >= READ_MAX {
                return Poll::Pending;
            }
            ready!(self.fill_client(cx, buffer))?;
            return Poll::Ready(Ok(()));
        }
        let n = if self.stopped || self.unread {
            if self.stopped && self.client_gone() {
                // It will send its held request again.
                return Poll::Ready(Err(Stop::ClientGone));
            }
            let kept = self.client.carry.len();
            match buffer.get_mut(..kept) {
                Some(space) => space.copy_from_slice(&self.client.carry),
                None => return Poll::Ready(Err(Stop::ClientGone)),
            }
            kept
        } else {
            match ready!(self.client.poll_fill(cx, buffer)) {
                Ok(n) if n > 0 => n,
                _ => return Poll::Ready(Err(Stop::ClientGone)),
            }
        };
        self.stopped = false;
        self.waits_for_quiet = false;
        self.unread = false;
        let chunk = buffer.get_mut(..n).unwrap_or_default();
        Poll::Ready(self.client_chunk(cx, chunk, now))
    }

    fn may_resume(&self) -> bool {
        self.server.is_some()
            && (!self.waits_for_quiet || self.front.is_quiet())
            && (self.mode == Mode::Flow
                || (self.front.may_send_in_lock_step() && !self.front.seems_at_rest()))
    }

    fn client_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
        now: Instant,
    ) -> Result<(), Stop> {
        let (pos, cut) = self.cut_client(cx, chunk, now);
        self.counts.from_client += pos as u64;
        self.client.keep(chunk.get(pos..).unwrap_or_default());
        match cut {
            Cut::Clean => Ok(()),
            Cut::Stopped => {
                self.stopped = true;
                if self.server.is_none() {
                    Err(Stop::NeedServer)
                } else {
                    Ok(())
                }
            }
            Cut::Stop(stop) => Err(stop),
        }
    }

    pub(super) fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        if let Some(server) = self.server.as_mut()
            && !self.server_write_broken
            && server.write_through(cx, bytes).is_err()
        {
            self.server_write_broken = true;
            server.out = BytesMut::new();
        }
    }

    /// Cuts a client's chunk into frames and sends what passes; how much that is, and what stops the rest.
    fn cut_client(&mut self, cx: &mut Context<'_>, chunk: &mut [u8], now: Instant) -> (usize, Cut) {
        let mut sent = 0;
        let mut pos = self.client.remaining.min(chunk.len());
        self.client.remaining -= pos;
        let mut cut = Cut::Clean;
        while self.client.remaining == 0 {
            let (before, rest) = chunk.split_at_mut(pos);
            let header = match P::Header::cut(rest) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(error) => {
                    cut = Cut::Stop(Stop::ClientGarbage(error));
                    break;
                }
            };
            let seen = rest.get(P::Header::LEN..).unwrap_or_default();
            let head_end = P::Header::LEN + self.front.client_head(header, seen);
            let Some(head) = rest.get(P::Header::LEN..head_end) else {
                break;
            };
            let take = header.whole_len().min(rest.len());
            match self.front.kind(header, head) {
                Kind::Terminate if self.server.is_none() || !self.front.is_running() => {
                    cut = Cut::Stop(Stop::ClientGone);
                    break;
                }
                Kind::Terminate => {
                    self.leaving = true;
                    pos += take;
                    break;
                }
                // With no server there is nobody to ignore it.
                Kind::Nothing if self.server.is_none() => {
                    pos += take;
                    sent = pos;
                    self.client.remaining = header.whole_len() - take;
                    continue;
                }
                Kind::Request
                    if self.server.is_none()
                        || (self.mode == Mode::LockStep
                            && (self.front.seems_at_rest()
                                || !self.front.may_send_in_lock_step())
                            && !self.may_look_back(head, now)) =>
                {
                    cut = Cut::Stopped;
                    break;
                }
                Kind::Nothing | Kind::Request => {
                    self.looked_back = self.may_look_back(head, now);
                }
            }
            let frame = Frame {
                header,
                bytes: rest,
                head_end,
            };
            match self.front.on_client(frame, now, &mut self.instead) {
                Sent::Forward => {}
                Sent::Instead(of) => {
                    let instead = std::mem::take(&mut self.instead);
                    let before = before.get(sent..).unwrap_or_default();
                    self.send(cx, before);
                    self.send(cx, &instead);
                    sent = pos + of;
                }
                Sent::Keep => {
                    self.waits_for_quiet = !self.front.is_quiet();
                    cut = if self.waits_for_quiet {
                        Cut::Stopped
                    } else {
                        Cut::Stop(Stop::Kept)
                    };
                    break;
                }
            }
            pos += take;
            self.client.remaining = header.whole_len() - take;
        }
        self.send(cx, chunk.get(sent..pos).unwrap_or_default());
        (pos, cut)
    }

    /// Reads more of a stopped client behind what is carried.
    pub(super) fn fill_client(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<(), Stop>> {
        match ready!(self.client.poll_fill(cx, buffer)) {
            Ok(n) if n > 0 => {
                self.client.keep(buffer.get(..n).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Err(Stop::ClientGone)),
        }
    }
}
