//! The client's side of MySQL and MariaDB: greeting, TLS, proof of who it is, and its session's protocol.

pub mod authentication;
pub mod errors;
mod front;
pub mod handshake;
pub mod login;

pub use front::{Connections, Mysql};
