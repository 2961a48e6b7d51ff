//! What the API answers: the field names are the outer contract.

use crate::backend::Capacity;
use crate::observe::{EventOutcome, SessionState};
use crate::scale::event::OnTimeout;
use serde::{Deserialize, Serialize};

/// What a cluster is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// Serving.
    Running,
    /// No server connections are granted.
    Holding,
    /// A scale event runs, and clients are served.
    Scaling,
    /// About to be paused.
    Pausing,
    /// Its server is stopped until the next request.
    Paused,
    /// Its server is being started.
    Resuming,
    /// Its server can't be reached or started.
    Failed,
}

impl ClusterState {
    /// The word in answers and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Holding => "holding",
            Self::Scaling => "scaling",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Failed => "failed",
        }
    }
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// `postgres`.
    pub engine: String,
    /// What it is doing.
    pub state: ClusterState,
    /// In ACU; zero while paused.
    pub capacity: Capacity,
    /// Smallest capacity, in ACU.
    pub min: Capacity,
    /// Largest capacity, in ACU.
    pub max: Capacity,
    /// Every capacity that can be asked for, ascending.
    pub ladder: Vec<Capacity>,
    /// Number of the instance that serves.
    pub generation: u64,
    /// Connected clients, those that are logging in included.
    pub clients: u64,
    /// Sessions by what they do.
    pub sessions: SessionCounts,
    /// Open server connections, of any use.
    pub server_connections: u64,
    /// The scale event that runs.
    pub event: Option<EventView>,
    /// When it will be paused if nothing comes; null: it will not.
    pub seconds_until_pause: Option<u64>,
    /// Capacity used since the ledger began, in ACU times seconds.
    pub acu_seconds: f64,
    /// What there is to know about its servers, such as whether a limit could be applied.
    pub facts: Vec<FactView>,
}

/// Sessions by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// A statement or a transaction is under way.
    pub active: u64,
    /// Attached, and nothing is owed.
    pub at_rest: u64,
    /// Waiting for the end of a hold.
    pub held: u64,
    /// At rest without a server connection.
    pub parked: u64,
}

/// One fact about a cluster's servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactView {
    /// Such as `shared_buffers` or `cpu_limit`.
    pub name: String,
    /// Such as `256MB` or `none`.
    pub value: String,
    /// Why, or what follows from it; may be empty.
    pub note: String,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its number, never given twice by one process.
    pub id: u64,
    /// Role that logged in.
    pub user: String,
    /// Database.
    pub database: String,
    /// `application_name`; may be empty.
    pub application: String,
    /// Address and port, or `unix`.
    pub client_address: String,
    /// What it does.
    pub state: SessionState,
    /// Whether it has a server connection.
    pub attached: bool,
    /// Whether it can be moved; null: not probed since it last ran something.
    pub movable: Option<bool>,
    /// Why it can't be moved.
    pub blockers: Vec<BlockerView>,
    /// Since the last probe; null: never probed.
    pub probed_seconds_ago: Option<u64>,
    /// Since the client connected.
    pub age_seconds: u64,
}

/// Why a session can't be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockerView {
    /// Such as `transaction` or `advisory_lock`.
    pub kind: String,
    /// Such as the name of the lock or table; may be empty.
    pub detail: String,
    /// The statement that made it, shortened and masked; null: not known.
    pub statement: Option<String>,
    /// How long it has been there, as far as is known.
    pub age_seconds: u64,
}

/// One session that a scale event waits for, with one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// Number of the session.
    pub session: u64,
    /// The blocker.
    #[serde(flatten)]
    pub blocker: BlockerView,
}

/// Whether an event has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// Under way.
    Running,
    /// Ended, with an outcome.
    Done,
}

/// One scale event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Its number in the cluster; it only grows. Zero: nothing had to be done, and there is no event.
    pub id: u64,
    /// Capacity before, in ACU.
    pub from: Capacity,
    /// Wanted capacity, in ACU.
    pub to: Capacity,
    /// Whether it has ended.
    pub state: EventState,
    /// How it ended; null while it runs.
    pub outcome: Option<EventOutcome>,
    /// Why it ended like that; null where there is nothing to say.
    pub reason: Option<String>,
    /// What it is doing, such as `prepare` or `settle`; null when it has ended.
    pub step: Option<String>,
    /// Attempts to hold the cluster, the present one included.
    pub attempt: u32,
    /// From the first hold to the last release of the attempt that completed, in milliseconds; of the present attempt while it runs.
    pub held_ms: u64,
    /// Over all attempts, in milliseconds.
    pub held_total_ms: u64,
    /// Sessions that went to the new server.
    pub sessions_moved: u64,
    /// Sessions that were in the way at the end, or are now.
    pub sessions_blocked: u64,
    /// Who is in the way now, and why; at most 100.
    pub waiting_for: Vec<WaitingView>,
    /// What happens at the timeout.
    pub on_timeout: OnTimeout,
    /// How long it may look for a scaling point.
    pub timeout_seconds: u64,
    /// Since it began.
    pub age_seconds: u64,
    /// From its begin to its end, or to now, in milliseconds.
    pub duration_ms: u64,
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Keys that changed and are in effect.
    pub changed: Vec<String>,
    /// Keys that changed and need a new start of the proxy.
    pub needs_restart: Vec<String>,
    /// Whether certificates were read again.
    pub certificates: bool,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
}
