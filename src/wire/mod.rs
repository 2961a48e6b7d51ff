//! Bytes to messages and back. No IO, no clock, no logging.

pub mod frame;
pub mod mysql;
pub mod pg;
