//! Why a session ends, who is at fault, and what its client reads.

use super::relay::{Fatal, Stop};
use super::state::OpenError;
use crate::backend::registry::Identity;
use crate::observe::error_kind::ErrorKind;
use crate::wire::frame::FrameError;
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
    /// The server closed this session, and no other.
    ServerClosed,
    /// Another client has killed it.
    Killed,
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
                | Self::ServerClosed
        )
    }

    /// Whose fault.
    pub(super) fn side(&self) -> ErrorKind {
        match self {
            Self::ClientGone | Self::ClientGarbage(_) | Self::ClientUnknown(_) | Self::Killed => {
                ErrorKind::Client
            }
            Self::ServerGarbage(_)
            | Self::ServerSaid(_)
            | Self::OutcomeUnknown
            | Self::StreamLost
            | Self::TransactionLost
            | Self::StateLost
            | Self::ServerLost(_)
            | Self::ServerClosed
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
            Self::ServerClosed => "server_closed",
            Self::Killed => "killed",
            Self::NotRestored(_) => "not_restored",
            Self::Forced => "forced",
            Self::GaveWay => "gave_way",
            Self::Expired => "max_connection_age",
            Self::IdleTimeout => "idle_session_timeout",
            Self::Drained => "drained",
            Self::Internal(_) => "internal",
        })
    }

    /// One line in the log.
    pub(super) fn log(&self, identity: &Identity) {
        let session = identity.id;
        match self {
            Self::ClientGone => tracing::debug!(session, "the client left"),
            Self::Expired
            | Self::IdleTimeout
            | Self::Drained
            | Self::GaveWay
            | Self::Killed
            | Self::ServerClosed => {
                tracing::info!(session, reason = self.kind(), "session ended");
            }
            Self::ServerSaid(fatal) => {
                let (code, message) = (&fatal.code, &fatal.message);
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
