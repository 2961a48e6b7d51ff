//! Bytes to messages and back. No IO, no clock, no logging.

pub mod mysql;
pub mod pg;
