//! proxy.toml: its keys, their checks, and the validated configuration.
//!
//! What is here is plain data: whoever holds a [`Config`] may rely on every rule that docs/configuration.md
//! states. Each key parses in every release; a value whose feature isn't there yet is refused by name.

mod cluster;
mod document;
mod error;
mod provider;
mod top;
mod users;
mod value;

pub use crate::scale::event::OnTimeout;
pub use error::{ConfigError, Problem};
pub use value::{is_loopback, parse_address, parse_bytes, parse_duration, show_duration};

use crate::backend::Capacity;
pub use crate::backend::Engine;
pub use crate::net::authentication::ClientCertificate;
pub use crate::transport::tls::CertificateFiles;

use crate::transport::proxy_header::{Network, Version};
use crate::transport::{Address, ListenTls, ServerTls};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Largest proxy.toml or users file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A checked configuration; every path in it is absolute or relative to the working directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the CA, the lock and the secret behind salts of unknown users are kept.
    pub state_dir: PathBuf,
    /// Where clients connect.
    pub listen: Listen,
    /// What the listeners show as their certificate.
    pub tls: Tls,
    /// The admin API.
    pub admin: Admin,
    /// Limits of the whole proxy.
    pub limits: Limits,
    /// At least one, in the order of their names.
    pub clusters: Vec<ClusterConfig>,
    /// What works but is probably not meant; one sentence each, starting with the key.
    pub warnings: Vec<String>,
}

/// The listeners: those that some cluster has clients for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `[listen.postgres]`.
    pub postgres: Option<ListenConfig>,
    /// `[listen.mysql]`, for MySQL and MariaDB.
    pub mysql: Option<ListenConfig>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// At least one; no two are equal.
    pub addresses: Vec<Address>,
    /// Whether clients may or must use TLS.
    pub tls: ListenTls,
    /// Load balancers, which say in front of everything else whom they connect.
    pub proxy_protocol: Vec<Network>,
}

/// TLS of the listeners.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// What clients are shown; the first one also where no name fits. Empty: a CA and a certificate are made
    /// in `state_dir`.
    pub certificates: Vec<CertificateFiles>,
    /// PEM file with the CAs of client certificates; `None`: clients are not asked for one.
    pub client_ca: Option<PathBuf>,
}

/// The admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; always TCP.
    pub address: Address,
    /// What requests must carry as Bearer token; always there when the address isn't loopback.
    pub token: Option<Secret>,
}

/// Limits of the whole proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Clients at a time that have proven who they are.
    pub max_clients: u32,
    /// Connections at a time that may go on to prove who they are; more wait for their turn.
    pub max_logins: u32,
    /// Of them, from one address.
    pub max_logins_per_address: u32,
    /// Failed logins of an address within `login_failure_window`, after which it is refused; 0: no limit.
    pub max_login_failures_per_address: u32,
    /// See `max_login_failures_per_address`.
    pub login_failure_window: Duration,
    /// Threads that serve clients; 0: half as many as there are processors, at least one.
    pub threads: usize,
    /// From the accepted connection to the first ReadyForQuery.
    pub login_timeout: Duration,
    /// After this a client is disconnected at its next rest; `None`: never.
    pub max_connection_age: Option<Duration>,
    /// How much longer a client that doesn't rest may stay.
    pub max_connection_age_grace: Duration,
    /// TCP keepalive on both legs; zero: off.
    pub keepalive: Duration,
    /// How long sent data may stay unacknowledged, on both legs; zero: the system's own limit.
    pub tcp_user_timeout: Duration,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterConfig {
    /// Its name in commands, metrics and `options=-c slackwater.cluster=NAME`.
    pub name: String,
    /// What its servers are.
    pub engine: Engine,
    /// Serves clients that name no cluster.
    pub default: bool,
    /// Host names (lower case) by which clients name it in TLS.
    pub hostnames: Vec<String>,
    /// Who may log in.
    pub auth: AuthConfig,
    /// Sizes that it may have.
    pub capacity: CapacityConfig,
    /// How a change of capacity goes.
    pub scaling: ScalingConfig,
    /// How sessions share server connections.
    pub sessions: SessionsConfig,
    /// What runs its servers.
    pub provider: ProviderConfig,
}

/// How clients of a cluster prove who they are, and what that is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// The exchange that clients are asked for. PostgreSQL: elsewhere each account has its own.
    pub method: AuthMethod,
    /// What client certificates must be, besides.
    pub client_certificate: ClientCertificate,
    /// Where verifiers come from.
    pub source: AuthSource,
    /// The account that Slackwater uses for itself; always there when `source` is `Server`.
    pub service: Option<ServiceAccount>,
}

/// The exchange that clients are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// SCRAM; md5 for users whose stored verifier is md5.
    ScramSha256,
    /// md5; SCRAM for users whose stored verifier is SCRAM.
    Md5,
    /// The password itself, over TLS only.
    Password,
    /// A certificate with the user's name, and no password.
    Cert,
}

/// Where verifiers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthSource {
    /// From the server, through the service account.
    Server {
        /// A query with the user name as `$1` and a row of name and verifier; `pg_authid` when `None`.
        query: Option<String>,
    },
    /// From a file.
    Users {
        /// The file.
        path: PathBuf,
        /// Its entries: user name, and a SCRAM verifier, an md5 hash or a password; sorted by name.
        users: Vec<(String, Secret)>,
    },
}

/// The account that Slackwater uses for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Role name.
    pub user: String,
    /// Database that it connects to; empty (none) for MySQL and MariaDB.
    pub database: String,
    /// Its password; `None` where the server asks for none.
    pub password: Option<Secret>,
}

/// Sizes that a cluster may have. `min` and `max` are on the ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityConfig {
    /// Smallest.
    pub min: Capacity,
    /// Largest.
    pub max: Capacity,
    /// Every size from `min` to `max` that the provider can give, ascending; never empty.
    pub ladder: Vec<Capacity>,
}

/// How a change of capacity goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalingConfig {
    /// How long an event may look for a scaling point.
    pub scaling_point_timeout: Duration,
    /// What happens when it finds none.
    pub on_timeout: OnTimeout,
    /// How long clients may be held in one attempt while sessions settle.
    pub max_hold: Duration,
    /// Requests held longer than this get 57P03.
    pub max_outage: Duration,
}

/// How sessions share server connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionsConfig {
    /// A session that rests this long gives its server connection up; `None`: never.
    pub park_after: Option<Duration>,
    /// A session that rests this long is probed once, so that it can be healed.
    pub snapshot_after: Duration,
    /// MySQL and MariaDB: how long a session is left where it is while its client may still ask for the
    /// `ROW_COUNT()`, `FOUND_ROWS()` or warnings of its last statement.
    pub diagnostics_wait: Duration,
    /// Settings such as `app.tenant` that only functions set, so that no statement names them.
    pub custom_settings: Vec<String>,
    /// Replication connections are ended at an event's safe moment; otherwise the event waits for them.
    pub ends_replication: bool,
    /// Server connections of the cluster at a time; requests above it wait.
    pub max_server_connections: u32,
}

/// What runs a cluster's servers.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderConfig {
    /// Servers that others run.
    Static(StaticProvider),
    /// A server on this machine.
    Local(LocalProvider),
}

/// Servers that others run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticProvider {
    /// One server per capacity, ascending; two may name the same server.
    pub endpoints: Vec<(Capacity, Address)>,
    /// TLS towards them.
    pub tls: ServerTls,
    /// PEM file with the CA that signed their certificates; the system's own CAs when `None`.
    pub ca: Option<PathBuf>,
    /// The PROXY header that connections to them begin with.
    pub proxy_protocol: Option<Version>,
}

/// A server on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalProvider {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Directory of the server's programs; looked for when `None`.
    pub binaries: Option<PathBuf>,
    /// Memory for each ACU, in bytes.
    pub memory_per_acu: u64,
    /// How a change of capacity is done.
    pub switch: crate::provider::Switch,
    /// Times and sizes of `switch = "standby"`.
    pub standby: crate::provider::StandbyKeys,
    /// Processors for each ACU.
    pub cpu_per_acu: f64,
}

/// A password, verifier or token: wiped from memory when dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

impl Config {
    /// Reads and checks a file. Relative paths in it start from its own directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path).map_err(|message| ConfigError::whole_file(path, message))?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file that is named `path`; files that it names are read.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let doc = document::Document::new(text, base);
        let config = doc.root().and_then(top::read);
        let (problems, warnings) = doc.finish();
        match config {
            Some(config) if problems.is_empty() => Ok(Self { warnings, ..config }),
            _ => Err(ConfigError {
                file: path.to_owned(),
                problems,
            }),
        }
    }

    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&ClusterConfig> {
        self.clusters.iter().find(|c| c.name == name)
    }
}

/// Reads a file of at most [`MAX_FILE`] bytes; the text may hold secrets.
fn read_text(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(|e| format!("can't be read: {e}"))?;
    let read = file
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|e| format!("can't be read: {e}"))?;
    if read as u64 > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
