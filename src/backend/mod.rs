//! Where sessions get server connections: the gate, the pool, log-ins, statements of Slackwater's own.

pub mod cluster;
pub mod connect;
mod engine;
pub mod exec;
pub mod frames;
pub mod gate;
pub mod line;
pub mod link;
mod lookups;
pub mod mysql;
pub mod registry;
pub mod service;
pub mod verifiers;

pub use engine::Engine;

pub(crate) use crate::session::pg::started_us;
use crate::transport::{Address, ServerTls};
use std::fmt;

/// Size of an instance in ACU (capacity units). Zero: paused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Capacity(pub u32);

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How to reach one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the server listens.
    pub address: Address,
    /// TLS towards it.
    pub tls: ServerTls,
    /// PEM file with the CA that signed the server's certificate; the system's own CAs when left out.
    pub tls_ca: Option<std::path::PathBuf>,
}
