//! A session's server connection together with its right to exist.

use super::connect;
use super::gate::{Lease, Serving};
use super::mysql::connect::{self as mysql, Kill, Request};
use crate::auth::mysql::Credential;
use crate::transport::SocketConfig;
use crate::transport::proxy_header::Route;
use crate::transport::stream::Stream;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a cancel may take.
pub const CANCEL_MAX: Duration = Duration::from_secs(10);

/// How the server knows a connection, and how what runs on it is ended.
#[derive(Clone)]
pub enum Peer {
    /// PostgreSQL.
    Pg {
        /// The server process.
        process: i32,
        /// Its cancel key.
        secret: Bytes,
    },
    /// MySQL or MariaDB.
    Mysql {
        /// The number of the connection.
        connection_id: u32,
        /// Who may end what runs on it.
        who: Arc<(Request, Credential)>,
    },
}

/// A server connection under its lease. However it is let go, the server is told, and the lease goes
/// back only when the server has closed.
pub struct Link {
    stream: Option<Stream>,
    lease: Option<Lease>,
    peer: Peer,
    client: Option<Route>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link to server process {}", self.number())
    }
}

impl Link {
    /// Binds a connection that was made for this client to its lease.
    pub fn new(stream: Stream, peer: Peer, client: Option<Route>, lease: Lease) -> Self {
        Self {
            stream: Some(stream),
            lease: Some(lease),
            peer,
            client,
        }
    }

    /// The number that the server has for it.
    pub fn number(&self) -> i64 {
        match &self.peer {
            Peer::Pg { process, .. } => i64::from(*process),
            Peer::Mysql { connection_id, .. } => i64::from(*connection_id),
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

    /// The server that was logged in to ahead serves now: the connection is a session's, under a lease of it.
    #[must_use]
    pub fn under(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
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
        let (peer, client) = (self.peer.clone(), self.client);
        async move {
            if let Some(serving) = serving {
                cancel(&serving, &socket, &peer, client).await;
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
            close(stream, &self.peer).await;
        }
    }
}

async fn cancel(serving: &Serving, socket: &SocketConfig, peer: &Peer, client: Option<Route>) {
    let deadline = Instant::now() + CANCEL_MAX;
    let endpoint = &serving.endpoint;
    let failed = match peer {
        Peer::Pg { secret, .. } if secret.is_empty() => {
            Some("the server told no cancel key".to_owned())
        }
        Peer::Pg { process, secret } => {
            let key = (*process, &secret[..]);
            let done = connect::cancel(endpoint, socket, client, key, deadline).await;
            done.err().map(|error| error.to_string())
        }
        Peer::Mysql { connection_id, who } => {
            let (request, credential) = &**who;
            let login = mysql::Login {
                endpoint,
                socket,
                request,
                credential: Some(credential),
                // The same account, which may be one of that address only.
                client,
                deadline,
            };
            let done = mysql::kill(&login, *connection_id, Kill::Query).await;
            done.err().map(|error| error.to_string())
        }
    };
    if let Some(error) = failed {
        tracing::warn!(%error, "what runs could not be cancelled");
    }
}

async fn close(stream: Stream, peer: &Peer) {
    match peer {
        Peer::Pg { .. } => connect::close(stream).await,
        Peer::Mysql { .. } => mysql::close(stream).await,
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let (Some(stream), lease) = (self.stream.take(), self.lease.take()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let peer = self.peer.clone();
            runtime.spawn(async move {
                close(stream, &peer).await;
                drop(lease);
            });
        }
    }
}
