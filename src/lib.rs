//! Slackwater: a wire-protocol proxy that moves live sessions between ordinary database servers.
//!
//! ARCHITECTURE.md is the map. In short: `net` owns a client's socket and its server's socket in one
//! task; `session` is the pure brain that it asks; `backend` grants server connections; `scale` changes
//! the gate in `backend` and `provider` changes the servers; `app` is the only place that wires parts.

pub mod api;
pub mod app;
pub mod auth;
pub mod backend;
pub mod cli;
pub mod config;
pub mod net;
pub mod observe;
pub mod provider;
pub mod scale;
pub mod session;
pub mod transport;
pub mod wire;
