//! A request that is answered with an error before any server has seen it: a cancel while it was held, or
//! a server that stayed away. It is dropped up to its end; what the client sent behind it stays held.

use super::relay::{Relay, Stop};
use crate::session::pg::machine::Machine;
use crate::wire::pg::backend::{ErrorMessage, put_error, put_ready};
use crate::wire::pg::frame::Header;

/// A request that was cancelled before it was sent: its rest is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discard {
    /// Up to the end of the first frame, if that is a Query; up to Sync otherwise.
    First,
    /// Up to and with the next Sync.
    ToSync,
    /// What is left of its last frame.
    Last,
}

impl Relay {
    /// Refuses the first held request with `error`: it is dropped up to its end, the rest stays held.
    pub fn refuse_held(&mut self, error: &ErrorMessage<'_>) -> Result<(), Stop> {
        put_error(&mut self.client.out, error);
        self.discard = Some(Discard::First);
        self.drop_discarded()
    }

    /// Drops what belongs to the refused request; at its end the client is told that it may go on.
    pub(super) fn drop_discarded(&mut self) -> Result<(), Stop> {
        while let Some(discard) = self.discard {
            let dropped = self.client.remaining.min(self.client.carry.len());
            bytes::Buf::advance(&mut self.client.carry, dropped);
            self.client.remaining -= dropped;
            if self.client.remaining > 0 {
                return Ok(());
            }
            if discard == Discard::Last {
                self.discard = None;
                self.stopped = false;
                put_ready(&mut self.client.out, b'I');
                break;
            }
            let header = match Header::parse(&self.client.carry) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Stop::ClientGarbage(error)),
            };
            match (discard, header.tag) {
                (_, b'X') => return Err(Stop::ClientGone),
                (Discard::First, b'Q' | b'F') | (_, b'S') => self.discard = Some(Discard::Last),
                (Discard::First, _) if Machine::means_nothing(header) => {}
                (Discard::First, _) => self.discard = Some(Discard::ToSync),
                (Discard::ToSync | Discard::Last, _) => {}
            }
            let take = header.frame_len().min(self.client.carry.len());
            bytes::Buf::advance(&mut self.client.carry, take);
            self.client.remaining = header.frame_len() - take;
        }
        self.unread = !self.client.carry.is_empty();
        Ok(())
    }
}
