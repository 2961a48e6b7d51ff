//! A client whose transaction was lost with its server while the session was not: its frames are answered
//! here until it has ended that transaction. (What is answered, the engine's protocol decides.)

use super::protocol::{Alone, Kind, Protocol};
use super::relay::{Relay, Stop};
use crate::wire::frame::Header;

impl<P: Protocol> Relay<P> {
    /// Answers what the client has sent. True: what is left is for a server.
    pub(super) fn answer_alone(&mut self) -> Result<bool, Stop> {
        let over = self.answer_frames()?;
        self.stopped = false;
        self.unread = !self.client.carry.is_empty();
        Ok(over)
    }

    fn answer_frames(&mut self) -> Result<bool, Stop> {
        loop {
            let carry = &mut self.client.carry;
            let dropped = self.client.remaining.min(carry.len());
            bytes::Buf::advance(carry, dropped);
            self.client.remaining -= dropped;
            if self.client.remaining > 0 {
                return Ok(false);
            }
            let header = match P::Header::cut(carry) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(false),
                Err(error) => return Err(Stop::ClientGarbage(error)),
            };
            let seen = carry.get(P::Header::LEN..).unwrap_or_default();
            let head_end = P::Header::LEN + self.front.client_head(header, seen);
            let Some(head) = carry.get(P::Header::LEN..head_end) else {
                return Ok(false);
            };
            if self.front.kind(header, head) == Kind::Terminate {
                return Err(Stop::ClientGone);
            }
            let next = self.front.answer(header, head, &mut self.client.out);
            match next {
                Alone::Forward => return Ok(true),
                Alone::Unknown(tag) => return Err(Stop::ClientUnknown(tag)),
                Alone::Answered | Alone::Over => {}
            }
            let take = header.whole_len().min(carry.len());
            bytes::Buf::advance(carry, take);
            self.client.remaining = header.whole_len() - take;
            if next == Alone::Over {
                return Ok(true);
            }
        }
    }
}
