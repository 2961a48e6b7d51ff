//! The client side: listeners, logins, and one relay task per session.

pub mod authentication;
pub mod handshake;
#[cfg(test)]
mod script;
