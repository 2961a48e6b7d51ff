//! The first questions on a fresh server connection, in one write: which start of the server it belongs to, and tracking
//! switched on.

use super::batch::{Batch, Event, Expect};
use super::grammar::Grammar;
use super::tracker::TRACKING_SQL;
use crate::wire::mysql::command::put_query;
use crate::wire::mysql::reply::Status;
use bytes::BytesMut;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// What tells one start of the server from the next.
    pub started_at: String,
    /// Status flags of the last answer.
    pub status: Status,
}

/// Why there is no connection to go on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the first questions on a server connection: {message}")]
pub struct ArrivalError {
    /// The server's number, if it refused; 0 otherwise.
    pub code: u16,
    /// What it said.
    pub message: String,
}

/// Reads the reply to [`put_arrival`].
#[derive(Debug)]
pub struct ArrivalReader {
    batch: Batch,
    started_at: Option<String>,
    status: Option<Status>,
    error: Option<ArrivalError>,
}

/// Appends the questions and returns what reads their reply. `started_at_sql` has one row of one column.
pub fn put_arrival(out: &mut BytesMut, grammar: Grammar, started_at_sql: &str) -> ArrivalReader {
    put_query(out, started_at_sql);
    put_query(out, TRACKING_SQL);
    ArrivalReader {
        batch: Batch::new(grammar, vec![Expect::Query, Expect::Query]),
        started_at: None,
        status: None,
        error: None,
    }
}

impl ArrivalReader {
    /// Takes the payload of one packet from the server; something at the end.
    pub fn on_packet(&mut self, payload: &[u8]) -> Option<Result<Arrived, ArrivalError>> {
        let unreadable = || ArrivalError {
            code: 0,
            message: "an answer that can't be read".to_owned(),
        };
        let Some((at, event)) = self.batch.on_packet(payload) else {
            return Some(Err(unreadable()));
        };
        match (at, event) {
            (0, Event::Row(row)) => {
                let text = row.first().copied().flatten();
                self.started_at = text.map(|t| String::from_utf8_lossy(t).into_owned());
            }
            (1, Event::Done(ok, _)) => self.status = Some(ok.status),
            (_, Event::Failed(error)) => {
                let message = String::from_utf8_lossy(error.message).into_owned();
                let code = error.code;
                self.error.get_or_insert(ArrivalError { code, message });
                // One that shuts down or was killed says no more.
                if matches!(code, 1053 | 1927 | 3169) {
                    return self.error.take().map(Err);
                }
            }
            _ => {}
        }
        if !self.batch.is_over() {
            return None;
        }
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        Some(match (self.started_at.take(), self.status) {
            (Some(started_at), Some(status)) => Ok(Arrived { started_at, status }),
            _ => Err(unreadable()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::grammar;
    use super::*;
    use crate::session::mysql::grammar::Family;

    const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
    const COLUMN: &[u8] = &[
        3, b'd', b'e', b'f', 0, 0, 0, 1, b'x', 0, 12, 45, 0, 0, 1, 0, 0, 253, 0, 0, 0, 0, 0,
    ];

    fn told(packets: &[&[u8]]) -> Option<Result<Arrived, ArrivalError>> {
        let mut out = BytesMut::new();
        let mut reader = put_arrival(&mut out, grammar(Family::MariaDb, true), "SELECT 'x'");
        let (last, before) = packets.split_last().unwrap();
        for packet in before {
            assert_eq!(reader.on_packet(packet), None);
        }
        reader.on_packet(last)
    }

    #[test]
    fn both_answers_are_read() {
        let end: &[u8] = &[0xfe, 0, 0, 2, 0, 0, 0];
        let arrived = told(&[&[1], COLUMN, b"\x031-2", end, OK]).unwrap().unwrap();
        assert_eq!(arrived.started_at, "1-2");
        assert_eq!(arrived.status, Status::AUTOCOMMIT);
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let refused: &[u8] = b"\xff\x6a\x04#42000no";
        let down: &[u8] = b"\xff\x1d\x04#08S01Server shutdown in progress";
        let code = |packets: &[&[u8]]| told(packets).unwrap().unwrap_err().code;
        assert_eq!(code(&[refused, OK]), 1130);
        assert_eq!(code(&[down]), 1053);
        assert_eq!(code(&[OK, OK]), 0, "no row");
        assert_eq!(code(&[&[]]), 0);
    }
}
