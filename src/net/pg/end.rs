//! What a client of PostgreSQL reads when its session ends.

use super::super::end::End;
use super::super::state::OpenError;
use crate::backend::connect::ConnectError;
use crate::wire::pg::backend::{ErrorMessage, put_error};
use crate::wire::pg::frame::put;
use bytes::{BufMut, Bytes, BytesMut};

/// Writes what the client reads.
pub(super) fn put_end(end: &End, out: &mut BytesMut) {
    match end {
        End::ServerSaid(fatal) => out.extend_from_slice(&fatal.frame),
        End::NotRestored(error) => match server_words(error) {
            Some(words) => put(out, b'E', |out| out.put_slice(words)),
            None => put_error(out, &message(end)),
        },
        _ => put_error(out, &message(end)),
    }
}

/// The server's own ErrorResponse.
pub(in crate::net) fn server_words(error: &OpenError) -> Option<&Bytes> {
    match error {
        OpenError::Pg(ConnectError::Server { body, .. }) => Some(body),
        _ => None,
    }
}

/// SQLSTATE for the client.
fn code(error: &OpenError) -> &str {
    match error {
        OpenError::Pg(ConnectError::Server { fields, .. }) => &fields.code,
        OpenError::State(_) => "57P02",
        _ => "08006",
    }
}

/// What the client reads.
fn message(end: &End) -> ErrorMessage<'_> {
    match end {
        End::ClientGone => ErrorMessage::fatal("08006", "the client left"),
        End::ClientGarbage(_) => ErrorMessage::fatal("08P01", "invalid message length"),
        End::ClientUnknown(_) => ErrorMessage::fatal("08P01", "invalid frontend message type"),
        End::ServerGarbage(_) => ErrorMessage::fatal(
            "08P01",
            "the server sent bytes that are not the PostgreSQL protocol",
        ),
        End::ServerSaid(_) => ErrorMessage::fatal("57P01", "the server ended the connection"),
        End::OutcomeUnknown => ErrorMessage::fatal(
            "08007",
            "the server was lost before it answered: whether the last statement took effect is unknown",
        )
        .hint("Check the outcome before you send it again."),
        End::StreamLost => ErrorMessage::fatal(
            "57P02",
            "the server was lost: the replication stream ends",
        )
        .hint("Connect again; replication goes on from what was last confirmed."),
        End::TransactionLost => ErrorMessage::fatal(
            "57P02",
            "the server was lost: the transaction was rolled back",
        )
        .hint("Connect again and repeat the transaction."),
        End::StateLost | End::ServerLost(_) => ErrorMessage::fatal(
            "57P02",
            "the server was lost, and the session's state could not be proven",
        )
        .hint("Connect again; nothing that was acknowledged is lost."),
        End::Killed | End::ServerClosed => {
            ErrorMessage::fatal("57P01", "terminating connection due to administrator command")
        }
        End::NotRestored(error) => ErrorMessage::fatal(
            code(error),
            "the session could not be restored on the new server connection",
        )
        .detail(error.for_client()),
        End::Forced => ErrorMessage::fatal(
            "57P01",
            "terminating connection due to serverless scale event timeout",
        ),
        End::GaveWay => ErrorMessage::fatal(
            "57P01",
            "terminating replication connection due to a scale event",
        )
        .hint("Connect again; replication goes on from what was last confirmed."),
        End::Expired => ErrorMessage::fatal(
            "57P01",
            "terminating connection because it reached max_connection_age",
        )
        .hint("Connect again: the limit is the proxy's, the server is well."),
        End::IdleTimeout => {
            ErrorMessage::fatal("57P05", "terminating connection due to idle-session timeout")
        }
        End::Drained => {
            ErrorMessage::fatal("57P01", "terminating connection due to administrator command")
        }
        End::Internal(_) => ErrorMessage::fatal("XX000", "internal error of the proxy"),
    }
}
