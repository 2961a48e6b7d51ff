//! Log-ins to MySQL and MariaDB servers, and statements of Slackwater's own there.

pub mod connect;
pub mod exec;
pub mod frames;
pub mod offer;
pub mod started;
pub mod verifiers;
