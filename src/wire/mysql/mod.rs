//! Packets of the MySQL protocol, as MySQL and MariaDB speak it.

pub mod auth;
pub mod capabilities;
pub mod fields;
pub mod handshake;
