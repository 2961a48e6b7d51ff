//! The client side: listeners, logins, and one relay task per session.

pub mod admission;
mod ahead;
pub mod authentication;
mod door;
mod end;
mod engine;
mod from_client;
#[cfg(test)]
#[path = "tests/front.rs"]
mod front;
pub mod handshake;
pub mod janitor;
mod leg;
pub mod login;
mod lost;
pub mod mysql;
pub mod pg;
pub mod protocol;
mod proven;
mod refuse;
pub mod relay;
#[cfg(test)]
mod script;
mod session;
pub mod shared;
mod state;
pub mod workers;
