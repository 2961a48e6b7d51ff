//! How servers come to be: providers create, resize and stop instances.
//!
//! A provider never touches sessions. It is asked in this order: [`Provider::start`] once,
//! [`Provider::prepare`] while traffic flows (everything that can fail fails there), and
//! [`Provider::cut_over`] while the sessions concerned are held. Servers are asked questions through
//! [`ServerQuery`] only, so nothing in here knows the wire protocol.

mod gtid;
pub mod local;
mod lsn;
pub mod static_endpoints;
mod static_mysql;

pub use local::{LocalConfig, LocalProvider, StandbyKeys, Switch};
pub use static_endpoints::{StaticEndpoint, StaticProvider};

use crate::backend::mysql::started::started_at_sql;
use crate::backend::{Capacity, Endpoint, Engine, started_us};
use futures_util::future::BoxFuture;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Rows of a simple query, each value as the server's text, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// Asks a server, as the service account. One call is one login, one statement, one logout.
pub trait ServerQuery: Send + Sync {
    /// What the servers are.
    fn engine(&self) -> Engine {
        Engine::Postgres
    }

    /// Runs the one statement `sql` at `endpoint` and returns its rows. An implementation puts a
    /// limit on how long a login may take; a statement such as CHECKPOINT may run for minutes.
    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>>;

    /// Logs in for several statements.
    fn session<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>>;

    /// [`Self::query`] in another database than the service account's own.
    fn query_in<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        database: &'a str,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>>;
}

/// A log-in of the service account. Ends when dropped.
pub trait ServerSession: Send + Sync {
    /// Runs the one statement `sql` and returns its rows.
    fn query<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<Rows, QueryError>>;

    /// The same for a statement that may run for hours: an implementation with a limit of its own takes the caller's.
    fn query_within<'a>(
        &'a mut self,
        sql: &'a str,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.query(sql)
    }
}

/// Why a server gave no answer to [`ServerQuery::query`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Nothing listens there, or the connection broke.
    #[error("no connection: {0}")]
    Refused(String),
    /// The server is starting, stopping or recovering (SQLSTATE 57P03).
    #[error("the server is starting up or shutting down")]
    Starting,
    /// The server has no connection slot left (SQLSTATE 53300).
    #[error("the server has no connection slot left, not even a reserved one")]
    Full,
    /// The service account's login was refused (SQLSTATE class 28), in the server's words.
    #[error("the service account's login was refused: {0}")]
    Auth(String),
    /// Anything else, in the server's words.
    #[error("{0}")]
    Other(String),
}

/// What tells one running server from another, and one start of it from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// Number of the data directory, made by initdb and shared by its physical copies.
    pub system_identifier: String,
    /// When the server process started: microseconds since 1970, as text.
    pub started_at: String,
    /// For example 150004 for version 15.4.
    pub server_version_num: u32,
    /// Whether it is a standby, or still replays its log.
    pub in_recovery: bool,
}

/// One running server, at one capacity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// What it has, which after an adoption or a failed start can differ from what was asked for.
    pub capacity: Capacity,
    /// Where to log in.
    pub endpoint: Endpoint,
    /// Who answered there when it was last asked.
    pub identity: ServerIdentity,
}

/// What a change of capacity asks of the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchKind {
    /// The same server is behind both capacities: only sessions move, each at its own safe point.
    Rolling,
    /// One writer: all sessions are held while the server is stopped and started.
    Barrier,
}

/// How a cut-over ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutOver {
    /// The instance of the new capacity serves.
    Completed(Instance),
    /// The old capacity serves (maybe restarted: compare the identity) because the new one failed.
    KeptOld {
        /// The instance to go back to.
        instance: Instance,
        /// What failed, and what to do about it.
        reason: String,
    },
    /// No server answers now. Calling `cut_over` or `start` again goes on from where this one ended.
    Lost {
        /// What failed, and what to do about it.
        reason: String,
    },
}

/// One line of what a capacity really is on this host, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fact {
    /// Short name, such as `shared_buffers` or `cpu_quota`.
    pub name: String,
    /// Its value with its unit.
    pub value: String,
    /// Where it comes from, or why it is not what one would expect. May be empty.
    pub note: String,
}

impl Fact {
    fn new(name: &str, value: impl Into<String>, note: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
            note: note.into(),
        }
    }
}

/// Why a provider could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A static cluster has no address for this capacity.
    #[error(
        "no endpoint has capacity {wanted}; `endpoints` has {known}: choose one of these or add an endpoint"
    )]
    NoEndpoint {
        /// What was asked for.
        wanted: Capacity,
        /// All capacities that have an endpoint.
        known: String,
    },
    /// `endpoints` of a static cluster makes no sense.
    #[error("`endpoints`: {0}")]
    Endpoints(String),
    /// A server did not answer the service account.
    #[error("server {address}: {source}; see that it runs and lets the service account in")]
    Unreachable {
        /// Its address.
        address: String,
        /// What went wrong.
        source: QueryError,
    },
    /// A server is a standby.
    #[error("server {0} is a standby (in recovery): promote it or name the primary's address")]
    InRecovery(String),
    /// Two capacities of a static cluster have different servers behind them, and nothing proves that the
    /// second has everything that the first had.
    #[error(
        "{from} and {to} are different servers ({why}): no switch, because a committed write could be lost. Stop {from}, \
         promote {to}, start {from} again as its standby, and ask again"
    )]
    DifferentServers {
        /// Where sessions are.
        from: Box<str>,
        /// Where they should go.
        to: Box<str>,
        /// How it was noticed.
        why: String,
    },
    /// Capacity 0 was asked for.
    #[error("capacity 0 (paused) is not in this release: ask for 1 or more")]
    Paused,
    /// Another proxy uses the data directory.
    #[error(
        "data_dir {path} is in use by another slackwater{holder}: stop that one or choose another data_dir"
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// Process number of the other, as ` (process 123)`, or empty.
        holder: String,
    },
    /// The data directory can't be used.
    #[error("data_dir {path}: {problem}")]
    DataDir {
        /// The data directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// PostgreSQL's programs can't be found or don't fit.
    #[error("{0}")]
    Binaries(String),
    /// A file or directory could not be used.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried, as "can't write".
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which one.
        program: &'static str,
        /// What it said.
        output: String,
    },
    /// The server would not start, or not in the wanted way, after a change of capacity.
    #[error("capacity {to} is refused, the server goes on as it is: {why}")]
    Refused {
        /// What was asked for.
        to: Capacity,
        /// What is wrong and what to do.
        why: String,
    },
    /// The server did not come up, or can't be taken over.
    #[error("the local server: {0}")]
    Server(String),
}

impl ProviderError {
    /// Makes a function for `map_err` that says which server could not be asked.
    fn unreachable(at: &Endpoint) -> impl Fn(QueryError) -> Self + Copy {
        move |source| Self::Unreachable {
            address: at.address.to_string(),
            source,
        }
    }

    /// Makes a function for `map_err` that says what was tried on which file.
    fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// What creates, resizes and stops the instances of one cluster.
pub enum Provider {
    /// Servers that somebody else runs.
    Static(StaticProvider),
    /// Servers on this host, run by Slackwater.
    Local(Box<LocalProvider>),
}

impl Provider {
    /// The instance to serve when the proxy starts: a running one is adopted, whatever its capacity; else
    /// one is started with `wanted`. Can be called again after [`CutOver::Lost`].
    pub async fn start(&self, wanted: Capacity) -> Result<Instance, ProviderError> {
        match self {
            Self::Static(provider) => provider.start(wanted).await,
            Self::Local(provider) => provider.start(wanted).await,
        }
    }

    /// Finds out, while traffic flows, whether `to` can work, and makes the cut-over short. Changes nothing
    /// that clients could notice; can be repeated, and should be when much time passed before the cut-over.
    pub async fn prepare(
        &self,
        from: &Instance,
        to: Capacity,
    ) -> Result<SwitchKind, ProviderError> {
        match self {
            Self::Static(provider) => provider.prepare(from, to).await,
            Self::Local(provider) => provider.prepare(from, to).await,
        }
    }

    /// Goes from one capacity to the other. Idempotent: called again with the same arguments, also after
    /// the future was dropped half-way, it goes on from where things stand.
    pub async fn cut_over(&self, from: &Instance, to: Capacity) -> CutOver {
        match self {
            Self::Static(provider) => provider.cut_over(from, to).await,
            Self::Local(provider) => provider.cut_over(from, to).await,
        }
    }

    /// The server that takes over in the cut-over and lets log in before it, and when it was started; asked after
    /// [`Self::prepare`].
    pub fn successor(&self) -> Option<(Endpoint, String)> {
        match self {
            Self::Static(_) => None,
            Self::Local(provider) => provider.successor(),
        }
    }

    /// What of a capacity is real here.
    pub fn facts(&self) -> Vec<Fact> {
        match self {
            Self::Static(provider) => provider.facts(),
            Self::Local(provider) => provider.facts(),
        }
    }
}

/// Answer of [`identify`].
struct Identified {
    identity: ServerIdentity,
    /// `cluster_name`, where a local server keeps the capacity it was started with.
    cluster_name: String,
}

const IDENTITY_SQL: &str = concat!(
    "SELECT \
    (SELECT c.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() c), \
    ",
    started_us!(),
    "::pg_catalog.text, \
    pg_catalog.current_setting('server_version_num'), \
    pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
    pg_catalog.current_setting('cluster_name')"
);

/// Asks a server who it is. That it answers proves that it is ready for queries.
async fn identify(query: &dyn ServerQuery, endpoint: &Endpoint) -> Result<Identified, QueryError> {
    let unreadable =
        || QueryError::Other("its answer about its own identity could not be read".to_owned());
    if query.engine() == Engine::Postgres {
        let rows = query.query(endpoint, IDENTITY_SQL).await?;
        return parse_identity(&rows).ok_or_else(unreadable);
    }
    let sql = started_at_sql(query.engine().into());
    let started = query.query(endpoint, sql).await?;
    let facts = query.query(endpoint, MYSQL_FACTS_SQL).await?;
    parse_mysql_identity(started, &facts).ok_or_else(unreadable)
}

/// Version, and whether the server is somebody's replica or takes no writes.
const MYSQL_FACTS_SQL: &str = "SELECT VERSION(), @@GLOBAL.read_only";

/// What tells one start of a server from another tells one server from another as well: a server's directory can be
/// copied with all that is in it.
fn parse_mysql_identity(started: Rows, facts: &Rows) -> Option<Identified> {
    let started_at = started.into_iter().next()?.into_iter().next()??;
    let [row] = facts.as_slice() else { return None };
    let [Some(version), Some(read_only)] = row.as_slice() else {
        return None;
    };
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut number = || numbers.next().and_then(Result::ok).unwrap_or(0_u32);
    let (major, minor, patch) = (number(), number(), number());
    Some(Identified {
        identity: ServerIdentity {
            system_identifier: started_at.clone(),
            started_at,
            server_version_num: major * 10_000 + minor * 100 + patch,
            in_recovery: read_only != "0",
        },
        cluster_name: String::new(),
    })
}

fn parse_identity(rows: &Rows) -> Option<Identified> {
    let [row] = rows.as_slice() else { return None };
    let [
        Some(system),
        Some(started),
        Some(version),
        Some(recovery),
        Some(name),
    ] = row.as_slice()
    else {
        return None;
    };
    Some(Identified {
        identity: ServerIdentity {
            system_identifier: system.clone(),
            started_at: started.clone(),
            server_version_num: version.parse().ok()?,
            in_recovery: match recovery.as_str() {
                "true" | "t" => true,
                "false" | "f" => false,
                _ => return None,
            },
        },
        cluster_name: name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [&str; 5]) -> Rows {
        vec![values.iter().map(|v| Some((*v).to_owned())).collect()]
    }

    #[test]
    fn identity_is_read_or_refused_whole() {
        let good = row(["7301", "2026-01-02 03:04:05.000006", "150004", "false", "x"]);
        let read = parse_identity(&good).expect("well-formed");
        assert_eq!(read.identity.server_version_num, 150_004);
        assert!(!read.identity.in_recovery);
        assert!(parse_identity(&row(["7301", "x", "fifteen", "false", ""])).is_none());
        assert!(parse_identity(&row(["7301", "x", "150004", "maybe", ""])).is_none());
        let mut null = good.clone();
        null[0][1] = None;
        assert!(parse_identity(&null).is_none());
        assert!(parse_identity(&Vec::new()).is_none());
    }
}
