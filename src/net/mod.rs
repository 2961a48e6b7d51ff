//! The client side: listeners, logins, and one relay task per session.

pub mod authentication;
mod end;
pub mod handshake;
pub mod janitor;
pub mod login;
pub mod relay;
#[cfg(test)]
mod script;
mod session;
pub mod shared;
mod state;
pub mod workers;
