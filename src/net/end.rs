//! Why a session ends, who is at fault, and what its client reads.

use super::relay::{Fatal, Stop};
use super::state::OpenError;
use crate::backend::registry::Identity;
use crate::observe::error_kind::ErrorKind;
use crate::wire::pg::backend::{ErrorMessage, put_error};
use crate::wire::pg::frame::{FrameError, put};
use bytes::{BufMut, BytesMut};
use std::io;

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client left.
    ClientGone,
    /// The client's bytes are no protocol.
    ClientGarbage(FrameError),
    /// The client sent a message of a type that there is not.
    ClientUnknown(u8),
    /// The server's bytes are no protocol.
    ServerGarbage(FrameError),
    /// The server ended it in its own words.
    ServerSaid(Box<Fatal>),
    /// The server was lost with a request in flight.
    OutcomeUnknown,
    /// The server was lost with a stream of replication.
    StreamLost,
    /// The server was lost inside a transaction, between two requests.
    TransactionLost,
    /// The server was lost at rest, and what the session held was not known.
    StateLost,
    /// The server was lost while Slackwater asked it.
    ServerLost(io::Error),
    /// No server for longer than held requests wait.
    Outage(String),
    /// The session's state could not be put onto a new server connection.
    NotRestored(OpenError),
    /// A forced scale event.
    Forced,
    /// A scale event that ends replication connections.
    GaveWay,
    /// `max_connection_age`.
    Expired,
    /// `idle_session_timeout`.
    IdleTimeout,
    /// Slackwater drains or stops.
    Drained,
    /// A fault of Slackwater's own.
    Internal(&'static str),
}

impl End {
    /// What the relay said about the client.
    pub(super) fn from_client(stop: &Stop) -> Self {
        match stop {
            Stop::ClientGarbage(error) => Self::ClientGarbage(*error),
            Stop::ClientUnknown(tag) => Self::ClientUnknown(*tag),
            _ => Self::ClientGone,
        }
    }

    /// The server is away.
    pub(super) fn outage(last: Option<&OpenError>) -> Self {
        Self::Outage(last.map_or_else(
            || "no server serves this cluster now".to_owned(),
            ToString::to_string,
        ))
    }

    /// The client can't be told.
    pub(super) fn client_is_gone(&self) -> bool {
        matches!(self, Self::ClientGone)
    }

    /// There is nothing left to cancel.
    pub(super) fn server_is_gone(&self) -> bool {
        matches!(
            self,
            Self::ServerSaid(_)
                | Self::OutcomeUnknown
                | Self::StreamLost
                | Self::TransactionLost
                | Self::StateLost
                | Self::ServerLost(_)
        )
    }

    /// Whose fault.
    pub(super) fn side(&self) -> ErrorKind {
        match self {
            Self::ClientGone | Self::ClientGarbage(_) | Self::ClientUnknown(_) => ErrorKind::Client,
            Self::ServerGarbage(_)
            | Self::ServerSaid(_)
            | Self::OutcomeUnknown
            | Self::StreamLost
            | Self::TransactionLost
            | Self::StateLost
            | Self::ServerLost(_)
            | Self::Outage(_)
            | Self::NotRestored(_) => ErrorKind::Server,
            Self::Forced | Self::GaveWay | Self::Drained | Self::Internal(_) => ErrorKind::Proxy,
            Self::Expired | Self::IdleTimeout => ErrorKind::Limit,
        }
    }

    /// The kind, as a metric's label; none where the end is an ordinary one.
    pub(super) fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::ClientGone => return None,
            Self::ClientGarbage(_) | Self::ClientUnknown(_) => "protocol_violation",
            Self::ServerGarbage(_) => "server_protocol_violation",
            Self::ServerSaid(_) => "server_fatal",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::StreamLost => "stream_lost",
            Self::TransactionLost => "transaction_lost",
            Self::StateLost => "state_lost",
            Self::ServerLost(_) => "server_lost",
            Self::Outage(_) => "outage",
            Self::NotRestored(_) => "not_restored",
            Self::Forced => "forced",
            Self::GaveWay => "gave_way",
            Self::Expired => "max_connection_age",
            Self::IdleTimeout => "idle_session_timeout",
            Self::Drained => "drained",
            Self::Internal(_) => "internal",
        })
    }

    /// What the client reads.
    pub(super) fn message(&self) -> ErrorMessage<'_> {
        match self {
            Self::ClientGone => ErrorMessage::fatal("08006", "the client left"),
            Self::ClientGarbage(_) => ErrorMessage::fatal("08P01", "invalid message length"),
            Self::ClientUnknown(_) => ErrorMessage::fatal("08P01", "invalid frontend message type"),
            Self::ServerGarbage(_) => ErrorMessage::fatal(
                "08P01",
                "the server sent bytes that are not the PostgreSQL protocol",
            ),
            Self::ServerSaid(_) => ErrorMessage::fatal("57P01", "the server ended the connection"),
            Self::OutcomeUnknown => ErrorMessage::fatal(
                "08007",
                "the server was lost before it answered: whether the last statement took effect is unknown",
            )
            .hint("Check the outcome before you send it again."),
            Self::StreamLost => ErrorMessage::fatal(
                "57P02",
                "the server was lost: the replication stream ends",
            )
            .hint("Connect again; replication goes on from what was last confirmed."),
            Self::TransactionLost => ErrorMessage::fatal(
                "57P02",
                "the server was lost: the transaction was rolled back",
            )
            .hint("Connect again and repeat the transaction."),
            Self::StateLost | Self::ServerLost(_) => ErrorMessage::fatal(
                "57P02",
                "the server was lost, and the session's state could not be proven",
            )
            .hint("Connect again; nothing that was acknowledged is lost."),
            Self::Outage(reason) => {
                ErrorMessage::error("57P03", "the database system is not available").detail(reason)
            }
            Self::NotRestored(error) => ErrorMessage::fatal(
                error.code(),
                "the session could not be restored on the new server connection",
            )
            .detail(error.for_client()),
            Self::Forced => ErrorMessage::fatal(
                "57P01",
                "terminating connection due to serverless scale event timeout",
            ),
            Self::GaveWay => ErrorMessage::fatal(
                "57P01",
                "terminating replication connection due to a scale event",
            )
            .hint("Connect again; replication goes on from what was last confirmed."),
            Self::Expired => ErrorMessage::fatal(
                "57P01",
                "terminating connection because it reached max_connection_age",
            )
            .hint("Connect again: the limit is the proxy's, the server is well."),
            Self::IdleTimeout => {
                ErrorMessage::fatal("57P05", "terminating connection due to idle-session timeout")
            }
            Self::Drained => {
                ErrorMessage::fatal("57P01", "terminating connection due to administrator command")
            }
            Self::Internal(_) => ErrorMessage::fatal("XX000", "internal error of the proxy"),
        }
    }

    /// Writes what the client reads.
    pub(super) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::ServerSaid(fatal) => out.extend_from_slice(&fatal.frame),
            Self::NotRestored(error) => match error.server_words() {
                Some(words) => put(out, b'E', |out| out.put_slice(words)),
                None => put_error(out, &self.message()),
            },
            _ => put_error(out, &self.message()),
        }
    }

    /// One line in the log.
    pub(super) fn log(&self, identity: &Identity) {
        let session = identity.id;
        match self {
            Self::ClientGone => tracing::debug!(session, "the client left"),
            Self::Expired | Self::IdleTimeout | Self::Drained | Self::GaveWay => {
                tracing::info!(session, reason = self.kind(), "session ended");
            }
            Self::ServerSaid(fatal) => {
                let (code, message) = (&fatal.fields.code, &fatal.fields.message);
                tracing::info!(session, %code, %message, "the server ended the session");
            }
            Self::ClientGarbage(error) | Self::ServerGarbage(error) => {
                tracing::warn!(session, reason = self.kind(), %error, "session ended");
            }
            Self::ClientUnknown(tag) => {
                tracing::warn!(session, reason = self.kind(), tag, "session ended");
            }
            Self::NotRestored(error) => {
                tracing::error!(session, %error, "a session could not be restored");
            }
            Self::ServerLost(error) => tracing::warn!(session, %error, "the server was lost"),
            Self::Internal(what) => tracing::error!(session, what, "session ended"),
            _ => tracing::warn!(session, reason = self.kind(), "session ended"),
        }
    }
}
