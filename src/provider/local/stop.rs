//! Stopping a local server by hand: servers outlive the proxy, so somebody must be able to end them.

use super::super::ProviderError;
use super::data_dir::DataDir;
use super::postmaster::Postmaster;
use std::time::Duration;

impl DataDir {
    /// PostgreSQL's fast shutdown of the server that runs here, never escalated, and a wait for its end. The
    /// answer is the number of its process; `None` when none runs. Whoever holds the directory is its only
    /// proxy, so no session is served from the server.
    pub async fn stop_server(&self, patience: Duration) -> Result<Option<u32>, ProviderError> {
        let Some((postmaster, _)) = Postmaster::find(&self.pgdata())? else {
            return Ok(None);
        };
        postmaster.stop_fast()?;
        if postmaster.gone_within(patience).await {
            return Ok(Some(postmaster.pid()));
        }
        Err(ProviderError::Server(format!(
            "process {} was told to stop and still runs after {} s: see {}",
            postmaster.pid(),
            patience.as_secs(),
            self.log().display()
        )))
    }
}
