//! The client's side of MySQL and MariaDB: greeting, TLS, proof of who it is.

pub mod authentication;
pub mod errors;
pub mod handshake;
pub mod login;
