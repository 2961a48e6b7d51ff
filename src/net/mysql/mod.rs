//! The client side of MySQL and MariaDB: greeting, authentication.

mod front;

pub use front::{Connections, Mysql};
