//! The client side of MySQL and MariaDB: greeting, authentication.
