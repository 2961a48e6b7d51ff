//! Wires the parts of a running proxy together; the only place that does.

use crate::config::Config;
use std::path::PathBuf;

/// What `slackwater dev` was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevOptions {
    /// Where servers and state are kept; a place of its own when `None`.
    pub data: Option<PathBuf>,
    /// Port for PostgreSQL clients; the first free one from 5432 when `None`.
    pub postgres_port: Option<u16>,
    /// Port of the admin API; 7432 or the next free one when `None`.
    pub admin_port: Option<u16>,
}

/// Why the proxy could not run, or had to end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AppError(pub String);

/// Runs the proxy until it is told to end. `path` is where a reload reads the configuration from.
pub async fn serve(_config: Config, path: PathBuf) -> Result<(), AppError> {
    Err(AppError(format!(
        "{}: nothing is wired yet",
        path.display()
    )))
}

/// Sets up local servers and a proxy in front of them, prints how to connect, and runs until told to end.
pub async fn dev(_options: DevOptions) -> Result<(), AppError> {
    Err(AppError("nothing is wired yet".to_owned()))
}
