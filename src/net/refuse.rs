//! A request that is answered with an error before any server has seen it: a cancel while it was held, or
//! a server that stayed away. It is dropped up to its end; what the client sent behind it stays held.

use super::protocol::{Discard, Protocol, Refusal};
use super::relay::{Relay, Stop};
use crate::wire::frame::Header;

impl<P: Protocol> Relay<P> {
    /// Refuses the first held request: it is dropped up to its end, the rest stays held.
    pub fn refuse_held(&mut self, refusal: Refusal<'_>) -> Result<(), Stop> {
        self.front.put_refusal(refusal, &mut self.client.out);
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
                self.front.put_refused(&mut self.client.out);
                break;
            }
            let header = match P::Header::cut(&self.client.carry) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Stop::ClientGarbage(error)),
            };
            let head_end = header.whole_len().min(P::Header::LEN + P::DISCARD_HEAD);
            let Some(head) = self.client.carry.get(P::Header::LEN..head_end) else {
                return Ok(());
            };
            match self.front.discard(discard, header, head) {
                Some(next) => self.discard = Some(next),
                None => return Err(Stop::ClientGone),
            }
            let take = header.whole_len().min(self.client.carry.len());
            bytes::Buf::advance(&mut self.client.carry, take);
            self.client.remaining = header.whole_len() - take;
        }
        self.unread = !self.client.carry.is_empty();
        Ok(())
    }
}
