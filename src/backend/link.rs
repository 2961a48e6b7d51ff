//! A session's server connection together with its right to exist.

use super::connect::{Connected, cancel, close};
use super::gate::{Lease, Serving};
use crate::transport::SocketConfig;
use crate::transport::stream::Stream;
use bytes::Bytes;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// How long a cancel may take.
pub const CANCEL_MAX: Duration = Duration::from_secs(10);

/// A server connection under its lease. However it is let go, the server is told, and the lease goes
/// back only when the server has closed.
pub struct Link {
    stream: Option<Stream>,
    lease: Option<Lease>,
    /// The server process.
    pub process: i32,
    /// Its cancel key.
    pub secret: Bytes,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link to server process {}", self.process)
    }
}

impl Link {
    /// Binds a connection to its lease.
    pub fn new(connected: Connected, lease: Lease) -> Self {
        Self {
            stream: Some(connected.stream),
            lease: Some(lease),
            process: connected.process,
            secret: connected.secret,
        }
    }

    /// The socket, while it is not lent to a relay.
    pub fn stream(&mut self) -> Option<&mut Stream> {
        self.stream.as_mut()
    }

    /// Lends the socket to a relay.
    pub fn lend(&mut self) -> Option<Stream> {
        self.stream.take()
    }

    /// Takes the socket back.
    pub fn give_back(&mut self, stream: Stream) {
        self.stream = Some(stream);
    }

    /// The instance at the other end.
    pub fn serving(&self) -> Option<&Serving> {
        self.lease.as_ref().map(Lease::serving)
    }

    /// A move's second end becomes the session's only one.
    #[must_use]
    pub fn for_session(mut self) -> Self {
        self.lease = self.lease.take().map(Lease::for_session);
        self
    }

    /// Cancels what runs on it.
    pub fn cancel(&self, socket: SocketConfig) -> impl Future<Output = ()> + Send + 'static {
        let serving = self.serving().cloned();
        let (process, secret) = (self.process, self.secret.clone());
        async move {
            let Some(serving) = serving else { return };
            if secret.is_empty() {
                tracing::warn!("the server told no cancel key, so what runs can't be cancelled");
                return;
            }
            let deadline = Instant::now() + CANCEL_MAX;
            let done = cancel(&serving.endpoint, &socket, process, &secret, deadline).await;
            if let Err(error) = done {
                tracing::warn!(%error, "a cancel request could not be delivered");
            }
        }
    }

    /// Cancels what runs on it, then lets it go.
    pub fn abort(self, socket: SocketConfig) {
        let cancelled = self.cancel(socket);
        tokio::spawn(async move {
            cancelled.await;
            drop(self);
        });
    }

    /// Lets it go at a safe point: nothing is in flight, so an event need not wait for the server to close it.
    pub fn leave(mut self, stream: Stream) {
        self.stream = Some(stream);
        if let Some(lease) = &mut self.lease {
            lease.close_soon();
        }
    }

    /// Lets it go and waits until the server has closed it.
    pub async fn end(mut self) {
        if let Some(stream) = self.stream.take() {
            close(stream).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let (Some(stream), lease) = (self.stream.take(), self.lease.take()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                close(stream).await;
                drop(lease);
            });
        }
    }
}
