//! Packets of the MySQL protocol, as MySQL and MariaDB speak it.

pub mod auth;
pub mod capabilities;
pub mod command;
pub mod handshake;
pub mod packet;
pub mod reply;
