//! The client side of MySQL and MariaDB: greeting, authentication, and the session's ways with servers.

pub mod authentication;
mod blame;
mod change_user;
mod end;
mod engine;
pub mod errors;
mod front;
pub mod handshake;
pub mod login;
pub mod serve;
mod state;
#[cfg(test)]
mod tests;

pub use front::{Connections, Mysql};
