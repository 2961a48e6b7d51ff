//! A log-in ahead to the server that is to take over. A hot standby's connections survive its promotion: they
//! leave recovery by themselves. Until that server serves nothing is done on them but what any log-in does.

use super::engine::Engine;
use super::state::{self, OpenError, Profile, Ready};
use crate::backend::gate::{Lease, Serving};
use crate::backend::registry::Handle;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A connection to the server that is to take over; it may still be being made.
pub(super) struct Ahead<E: Engine> {
    server: Serving,
    made: oneshot::Receiver<Ready<E>>,
}

impl<E: Engine> Ahead<E> {
    /// Logs in beside the session's work.
    pub(super) fn begin(
        profile: Arc<Profile<E>>,
        handle: Arc<Handle>,
        lease: Lease,
        deadline: Instant,
    ) -> Self {
        let server = lease.serving().clone();
        let (tell, made) = oneshot::channel();
        handle.set_moving(true);
        tokio::spawn(async move {
            match log_in(profile, lease, deadline).await {
                // Nobody waits for it any more: it is let go.
                Ok(ready) => drop(tell.send(ready)),
                Err(error) => tracing::debug!(%error, "no log-in ahead"),
            }
            handle.set_moving(false);
        });
        Self { server, made }
    }

    /// It is, or will be, connected to the server that serves now.
    pub(super) fn is_to(&self, serving: &Serving) -> bool {
        self.server.is_same_server(serving)
    }

    /// The connection, if it was made.
    pub(super) fn take(mut self) -> Option<Ready<E>> {
        self.made.try_recv().ok()
    }
}

async fn log_in<E: Engine>(
    profile: Arc<Profile<E>>,
    lease: Lease,
    deadline: Instant,
) -> Result<Ready<E>, OpenError> {
    let mut ready = state::make_ready(Arc::clone(&profile), lease, deadline).await?;
    E::may_be_ahead(&mut ready, &profile, deadline).await?;
    Ok(ready)
}
