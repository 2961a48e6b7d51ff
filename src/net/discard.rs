//! A request that is refused before any of it was sent: all of it has to go, however it is cut.

use super::leg::Leg;
use super::relay::Stop;
use crate::session::pg::machine::Machine;
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

impl Discard {
    /// Drops what is there of the request; what is still to be dropped, or `None` behind its end.
    pub(super) fn drop_from(mut self, client: &mut Leg) -> Result<Option<Self>, Stop> {
        loop {
            let dropped = client.remaining.min(client.carry.len());
            bytes::Buf::advance(&mut client.carry, dropped);
            client.remaining -= dropped;
            if client.remaining > 0 {
                return Ok(Some(self));
            }
            if self == Self::Last {
                return Ok(None);
            }
            let header = match Header::parse(&client.carry) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(Some(self)),
                Err(error) => return Err(Stop::ClientGarbage(error)),
            };
            self = match (self, header.tag) {
                (_, b'X') => return Err(Stop::ClientGone),
                (Self::First, b'Q' | b'F') | (_, b'S') => Self::Last,
                (Self::First, _) if Machine::means_nothing(header) => Self::First,
                _ => Self::ToSync,
            };
            let take = header.frame_len().min(client.carry.len());
            bytes::Buf::advance(&mut client.carry, take);
            client.remaining = header.frame_len() - take;
        }
    }
}
