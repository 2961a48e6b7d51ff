//! KILL: the number in it is one that Slackwater greeted a client with, and no server knows it.

use super::hints::scan;
use super::machine::{ClientFrame, Kind, Machine};
use crate::wire::mysql::command;
use crate::wire::mysql::packet::Header;
use bytes::{BufMut, BytesMut};
use std::time::Instant;

/// A KILL that a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// The number that its target was greeted with.
    pub target: u64,
    /// Only the running statement is to end.
    pub query_only: bool,
}

/// What is known of a KILL's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It has this number on the server.
    Real(u64),
    /// It was taken care of: the client is told so, in its turn.
    Done,
    /// There is none.
    Unknown,
    /// It is not this user's.
    Foreign,
}

impl Machine {
    /// Sends a KILL on as it concerns its target. `head` as it was told to [`Machine::on_client`].
    pub fn kill(
        &mut self,
        header: Header,
        head: &[u8],
        target: Target,
        now: Instant,
    ) -> ClientFrame {
        self.note_busy(now);
        self.replacement.clear();
        let (&first, text) = head.split_first().unwrap_or((&command::UNKNOWN, &[]));
        let modes = self.grammar.modes(self.status, self.ansi_quotes);
        let told = if first == command::PROCESS_KILL {
            u64::from(command::statement_id(head).unwrap_or_default())
        } else {
            scan(text, modes).kill.map(|k| k.target).unwrap_or_default()
        };
        let mut statement = BytesMut::new();
        match target {
            Target::Real(real) if first == command::PROCESS_KILL => {
                let number = u32::try_from(real).unwrap_or_default();
                self.owe(Kind::Simple, 0);
                return ClientFrame::Patch {
                    at: 5,
                    len: 4,
                    bytes: number.to_le_bytes(),
                };
            }
            Target::Real(real) => {
                if let Some(kill) = scan(text, modes).kill {
                    statement.put_slice(text.get(..kill.number.start).unwrap_or_default());
                    statement.put_slice(real.to_string().as_bytes());
                    statement.put_slice(text.get(kill.number.end..).unwrap_or_default());
                }
            }
            Target::Done => statement.put_slice(b"DO 0"),
            Target::Unknown => {
                put_signal(&mut statement, 1094, &format!("Unknown thread id: {told}"));
            }
            Target::Foreign => {
                put_signal(
                    &mut statement,
                    1095,
                    &format!("You are not owner of thread {told}"),
                );
            }
        }
        self.recent.note(now, text, false);
        self.owe(Kind::Query, 0);
        command::put_text(&mut self.replacement, command::QUERY, &statement);
        ClientFrame::Replace {
            instead_of: header.frame_len(),
        }
    }
}

/// The server itself says it, so that it comes in its turn.
fn put_signal(out: &mut BytesMut, code: u16, text: &str) {
    out.put_slice(
        format!("SIGNAL SQLSTATE 'HY000' SET MESSAGE_TEXT='{text}', MYSQL_ERRNO={code}").as_bytes(),
    );
}
