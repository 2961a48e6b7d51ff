//! Server connections to MySQL and MariaDB: log-ins, statements of Slackwater's own.
