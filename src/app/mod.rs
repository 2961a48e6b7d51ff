//! Wires the parts of a running proxy together; the only place that does.

mod control;
mod dev;
mod handler;
mod query;
mod start;

use crate::config::Config;
use control::App;
use std::path::PathBuf;

pub use dev::dev;

/// What `slackwater dev` was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevOptions {
    /// Where servers and state are kept; a place of its own when `None`.
    pub data: Option<PathBuf>,
    /// Port for PostgreSQL clients; 5432 when `None`.
    pub postgres_port: Option<u16>,
    /// Port for MySQL clients; 3306 when `None`.
    pub mysql_port: Option<u16>,
    /// Port of the admin API; 7432 when `None`.
    pub admin_port: Option<u16>,
    /// End the server that an earlier one left running, instead of starting anything.
    pub stop: bool,
}

/// Why the proxy could not run, or had to end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AppError(pub String);

/// Runs the proxy until it is told to end. `path` is where a reload reads the configuration from.
pub async fn serve(config: Config, path: PathBuf) -> Result<(), AppError> {
    let app = Box::pin(App::start(config, Some(path))).await?;
    app.run("").await
}

/// Prints a line for people; nobody may be reading.
fn print(text: &str) {
    use std::io::Write as _;
    if !text.is_empty() {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
