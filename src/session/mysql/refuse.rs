//! A request that is answered with an error before any server has seen it: what belongs to it is dropped up to the
//! end of the first command that has a reply.

use super::machine::Machine;
use crate::wire::mysql::command;
use crate::wire::mysql::packet::Header;

/// What a packet of a refused request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Drop it, and go on with the next one.
    Drop,
    /// Drop it, then tell the error with this sequence number: the request is over.
    Answer {
        /// The error's number.
        seq: u8,
    },
    /// The client leaves.
    Quit,
}

/// Follows a refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusal {
    /// A packet was dropped that goes on; whether it has a reply.
    more: Option<bool>,
}

impl Refusal {
    /// Bytes of the payload that [`Self::on_frame`] wants to see.
    pub fn head(self, header: Header) -> usize {
        if self.more.is_some() {
            0
        } else {
            header.len.min(5)
        }
    }

    /// The next packet of the client; `head` is the beginning of its payload. Statements that it closes are closed.
    pub fn on_frame(&mut self, header: Header, head: &[u8], machine: &mut Machine) -> Refused {
        let answered = match (self.more, head.first()) {
            (Some(answered), _) => answered,
            (None, Some(&command::QUIT)) => return Refused::Quit,
            (None, Some(&command::STMT_CLOSE)) => {
                machine.close_detached(head);
                false
            }
            (None, first) => first != Some(&command::STMT_SEND_LONG_DATA),
        };
        self.more = header.is_continued().then_some(answered);
        if answered && self.more.is_none() {
            return Refused::Answer {
                seq: header.seq.wrapping_add(1),
            };
        }
        Refused::Drop
    }
}

impl Machine {
    /// A STMT_CLOSE of a session without a server connection: nothing has to be sent.
    pub fn close_detached(&mut self, head: &[u8]) {
        if let Ok(id) = command::statement_id(head) {
            let last = (id == command::LAST_STATEMENT).then_some(self.statements.last);
            self.statements.close(last.flatten().unwrap_or(id));
        }
    }
}
