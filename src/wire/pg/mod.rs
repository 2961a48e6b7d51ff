//! The PostgreSQL frontend/backend protocol, version 3
//! (<https://www.postgresql.org/docs/current/protocol.html>).

pub mod backend;
pub mod frame;
pub mod options;
pub mod parameters;
pub mod startup;
