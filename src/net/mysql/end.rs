//! What a client of MySQL or MariaDB reads when its session ends.

use super::super::end::End;
use super::super::state::OpenError;
use super::front::{INTERRUPTED, Mysql};
use crate::wire::mysql::auth::ErrorPacket;
use crate::wire::mysql::packet::put;
use bytes::{BufMut, Bytes, BytesMut};

/// ER_UNKNOWN_ERROR: where the engine has no number of its own.
const UNKNOWN: u16 = 1105;

/// ER_SERVER_SHUTDOWN.
const SHUTDOWN: u16 = 1053;

/// ER_CONNECTION_KILLED of MariaDB.
const KILLED: u16 = 1927;

/// ER_NET_PACKETS_OUT_OF_ORDER.
const OUT_OF_ORDER: u16 = 1156;

/// Writes what the client reads, as the packet of this number.
pub(super) fn put_end(end: &End, seq: u8, out: &mut BytesMut) {
    match end {
        // It closes without a word, as servers do.
        End::ServerClosed | End::IdleTimeout => {}
        End::ServerSaid(fatal) => {
            let payload = fatal.frame.get(4..).unwrap_or_default();
            put(out, seq, |out| out.put_slice(payload));
        }
        End::NotRestored(error) => match server_words(error) {
            Some(words) => put(out, seq, |out| out.put_slice(words)),
            None => put_error(&message(end), seq, out),
        },
        _ => put_error(&message(end), seq, out),
    }
}

fn put_error(error: &ErrorPacket, seq: u8, out: &mut BytesMut) {
    put(out, seq, |out| error.put(out));
}

/// The payload of the server's own ERR packet.
pub(in crate::net) fn server_words(error: &OpenError) -> Option<&Bytes> {
    match error {
        OpenError::Mysql(error) => error.server_words(),
        _ => None,
    }
}

fn message(end: &End) -> ErrorPacket {
    let general = |text: &str| ErrorPacket::new(UNKNOWN, *b"HY000", text);
    let shutdown = |text: &str| ErrorPacket::new(SHUTDOWN, *b"08S01", text);
    match end {
        End::ClientGone | End::ClientGarbage(_) | End::ClientUnknown(_) => {
            ErrorPacket::new(OUT_OF_ORDER, *b"08S01", "Got packets out of order")
        }
        End::ServerGarbage(_) => general("the server sent bytes that are not the MySQL protocol"),
        End::OutcomeUnknown => general(
            "the server was lost before it answered: whether the last statement took effect is unknown; check the outcome before you send it again",
        ),
        End::StreamLost => {
            shutdown("the server was lost: the replication stream ends; connect again")
        }
        End::TransactionLost => shutdown(
            "the server was lost: the transaction was rolled back; connect again and repeat it",
        ),
        End::StateLost | End::ServerLost(_) => shutdown(
            "the server was lost, and the session's state could not be proven; connect again, nothing that was acknowledged is lost",
        ),
        End::NotRestored(error) => general(&format!(
            "the session could not be restored on the new server connection: {}",
            error.for_client()
        )),
        // Aurora Serverless' own words.
        End::Forced => {
            general("The last transaction was aborted due to Seamless Scaling. Please retry.")
        }
        End::GaveWay => shutdown("the replication stream ends for a scale event; connect again"),
        End::Expired => shutdown(
            "the connection reached max_connection_age of the proxy; connect again, the server is well",
        ),
        End::Killed => ErrorPacket::new(KILLED, *b"70100", "Connection was killed"),
        End::Drained => shutdown("Server shutdown in progress"),
        End::ServerSaid(_) | End::ServerClosed | End::IdleTimeout => {
            let (code, state, text) = INTERRUPTED;
            ErrorPacket::new(code, state, text)
        }
        End::Internal(_) => general("internal error of the proxy"),
    }
}

impl Mysql {
    /// The number of the packet that an error would be now.
    pub(super) fn error_number(&self, holds_request: bool) -> u8 {
        use super::super::protocol::Protocol;
        if self.is_in_flight() {
            self.next()
        } else {
            u8::from(holds_request)
        }
    }
}
