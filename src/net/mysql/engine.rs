//! MySQL and MariaDB as a session sees them.

use super::super::end::End;
use super::super::engine::{Engine, Meaning};
use super::super::relay::Fatal;
use super::super::session::Session;
use super::super::state::{OpenError, Opened, ProbeFailure, Probed, Profile, Ready};
use super::front::{Connections, Mysql};
use super::{blame, end, state};
use crate::auth::mysql::Credential;
use crate::backend::cluster::Cluster;
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::Link;
use crate::backend::mysql::connect::Request;
use crate::backend::registry::{Ask, Handle};
use crate::session::blocker::{Blocker, BlockerKind};
use crate::session::mysql::kill::{Kill, Target};
use crate::session::mysql::machine::Held;
use crate::session::mysql::probe::Probe;
use crate::session::mysql::snapshot::Snapshot;
use crate::transport::stream::Stream;
use crate::wire::mysql::reply::Status;
use bytes::BytesMut;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant as StdInstant};
use tokio::time::Instant;

/// What of a login never changes, until the client asks for another user.
#[derive(Debug)]
pub(in crate::net) struct Login {
    /// What servers are asked for, and what proves the right to it.
    pub(in crate::net) who: Arc<(Request, Credential)>,
}

/// What a new server connection is.
pub(in crate::net) struct Greeting {
    /// Status flags of the login, or of what came of the restore.
    pub(super) status: Status,
    /// Numbers of prepared statements there by those that the client knows.
    pub(super) ids: BTreeMap<u32, u32>,
    /// PREPAREs in text form that were sent to it.
    pub(super) text_prepares: u64,
}

impl Greeting {
    /// A fresh login, as its client is told of it.
    pub(in crate::net) fn status(&self) -> u16 {
        self.status.0
    }
}

/// What the wire knows and a probe has to.
pub(in crate::net) struct Asked {
    pub(super) held: Held,
    /// The number of the server connection.
    pub(super) connection: u32,
}

impl Connections for Cluster {
    fn kill(&self, kill: Kill, user: &str) -> Target {
        let Some(handle) = self.registry.get(kill.target) else {
            return Target::Unknown;
        };
        let real = handle.connection.load(Ordering::Acquire);
        if real != 0 {
            return Target::Real(u64::from(real));
        }
        // Only a server knows who may end another's statements.
        if handle.identity.user != user {
            return Target::Foreign;
        }
        if kill.query_only {
            drop(handle.ask_cancel());
        } else {
            handle.ask(Ask::Kill);
        }
        Target::Done
    }
}
