//! A client whose transaction was lost with its server while the session was not: its frames are answered
//! here until it has ended that transaction. (What is answered is decided in `session::pg::aborted`.)

use super::relay::{Relay, Stop};
use crate::session::pg::aborted::{Aborted, Next};
use crate::session::pg::machine::Machine;
use crate::wire::pg::frame::{HEADER_LEN, Header};

impl Relay {
    /// Answers what the client has sent. True: the transaction is over, and what is left is for a server.
    pub(super) fn answer_lost(&mut self, aborted: &mut Aborted) -> Result<bool, Stop> {
        let over = self.answer_frames(aborted)?;
        self.stopped = false;
        self.unread = !self.client.carry.is_empty();
        Ok(over)
    }

    fn answer_frames(&mut self, aborted: &mut Aborted) -> Result<bool, Stop> {
        loop {
            let carry = &mut self.client.carry;
            let dropped = self.client.remaining.min(carry.len());
            bytes::Buf::advance(carry, dropped);
            self.client.remaining -= dropped;
            if self.client.remaining > 0 {
                return Ok(false);
            }
            let header = match Header::parse(carry) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(false),
                Err(error) => return Err(Stop::ClientGarbage(error)),
            };
            if header.tag == b'X' {
                return Err(Stop::ClientGone);
            }
            let Some(head) = carry.get(HEADER_LEN..HEADER_LEN + Machine::client_head(header))
            else {
                return Ok(false);
            };
            let next = aborted.on_frame(header, head, &mut self.client.out);
            if next == Next::Forward {
                return Ok(true);
            }
            if next == Next::Unknown {
                return Err(Stop::ClientUnknown(header.tag));
            }
            let take = header.frame_len().min(carry.len());
            bytes::Buf::advance(carry, take);
            self.client.remaining = header.frame_len() - take;
            if next == Next::Over {
                return Ok(true);
            }
        }
    }
}
