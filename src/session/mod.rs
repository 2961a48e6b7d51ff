//! The brain of one client connection: no IO, no clock, no logging.

pub mod blocker;
pub mod mysql;
pub mod pg;
