//! Stopping a local server by hand: servers outlive the proxy, so somebody must be able to end them.

use super::super::ProviderError;
use super::data_dir::DataDir;
use super::engine;
use std::time::Duration;

impl DataDir {
    /// A clean shutdown of the servers that run here, never escalated, and a wait for their end. The
    /// answer is the number of the first one's process; `None` when none runs. Whoever holds the directory is its only
    /// proxy, so no session is served from the server.
    pub async fn stop_server(&self, patience: Duration) -> Result<Option<u32>, ProviderError> {
        let primary = self.primary();
        let mut stopped = None;
        // The standby second: until then it takes the last of the log.
        for home in [primary, primary.other()] {
            let Some(process) = engine::find(self, home)? else {
                continue;
            };
            engine::stop(self, process)?;
            if !process.gone_within(patience).await {
                return Err(ProviderError::Server(format!(
                    "process {} was told to stop and still runs after {} s: see {}",
                    process.pid(),
                    patience.as_secs(),
                    self.log_of(home).display()
                )));
            }
            stopped = stopped.or(Some(process.pid()));
        }
        Ok(stopped)
    }
}
