//! What of a session is the same for every engine beside its sockets: who it is, its new server connections, and
//! rehearsals of them.

use super::end::End;
use super::engine::Engine;
use super::relay::Leg;
use super::shared::Shared;
use crate::backend::cluster::{Alive, Cluster};
use crate::backend::connect::ConnectError;
use crate::backend::gate::Lease;
use crate::backend::link::Link;
use crate::backend::mysql::connect as mysql;
use crate::observe::ClusterMetrics;
use crate::session::Portable;
use crate::transport::proxy_header::Route;
use aws_lc_rs::digest;
use bytes::BytesMut;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// How long a client may take to read its last message.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// How long a rehearsal may take, waiting for a spare connection included.
const REHEARSAL_MAX: Duration = Duration::from_secs(10);

/// What of a session never changes, and what it needs to log in again.
#[derive(Debug)]
pub(super) struct Profile<E: Engine> {
    /// Its cluster.
    pub(super) cluster: Arc<Cluster>,
    /// The process.
    pub(super) shared: Arc<Shared>,
    /// The engine's own.
    pub(super) login: E::Login,
    /// The cluster's counters.
    pub(super) metrics: ClusterMetrics,
    /// User name.
    pub(super) user: String,
    /// Database name.
    pub(super) database: String,
    /// Its client, as servers may be told of it.
    pub(super) client: Option<Route>,
}

impl<E: Engine> Profile<E> {
    /// Role or database settings were changed since this probe.
    pub(super) fn is_stale(&self, probed_at: Option<Instant>) -> bool {
        probed_at.is_none_or(|at| at < self.cluster.role_settings_changed())
    }
}

impl<E: Engine> Profile<E> {
    /// Which kind of login this is on that start of a server.
    pub(super) fn kind(&self, started_at: &str) -> [u8; 32] {
        let mut hash = identity(self);
        hash.update(started_at.as_bytes());
        finished(hash)
    }
}

/// A probe's result.
pub(super) struct Probed<E: Engine> {
    /// What was found.
    pub(super) probe: E::Probe,
    /// Frames that came in between and are the client's.
    pub(super) for_client: BytesMut,
}

/// Why there is no result.
pub(super) enum ProbeFailure {
    /// The server refused; the connection is as it was.
    Refused {
        /// Why.
        reason: String,
        /// One of the session's own time limits ended it: another try may be in time.
        late: bool,
        /// What came in between and is the client's.
        for_client: BytesMut,
    },
    /// The connection can't be used any more.
    Broken(io::Error),
}

/// A new server connection that carries the session.
pub(super) struct Opened<E: Engine> {
    /// The connection under its lease.
    pub(super) link: Link,
    /// What the server said.
    pub(super) greeting: E::Greeting,
    /// Frames for the client.
    pub(super) for_client: BytesMut,
}

/// Why a session has no new server connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The login to PostgreSQL failed.
    #[error(transparent)]
    Pg(#[from] ConnectError),
    /// The login to MySQL or MariaDB failed.
    #[error(transparent)]
    Mysql(#[from] mysql::ConnectError),
    /// The state could not be put onto it, or what came of it differs.
    #[error("{0}")]
    State(String),
    /// The connection broke.
    #[error("the server connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server that answered is not the one that was proven.
    #[error("another server answered than the one that serves this generation")]
    OtherServer,
    /// New sessions get other settings than they did.
    #[error("the server has other settings for new sessions by now: {0}")]
    Changed(String),
    /// No answer in time.
    #[error("the server did not answer in time")]
    Timeout,
}

impl OpenError {
    /// The limit of an account or a database is reached: a session that had a place there can get it back.
    pub(super) fn is_place_taken(&self) -> bool {
        match self {
            Self::Pg(ConnectError::Server { fields, .. }) => fields.code == "53300",
            // ER_TOO_MANY_USER_CONNECTIONS, ER_USER_LIMIT_REACHED.
            Self::Mysql(mysql::ConnectError::Server { error, .. }) => {
                matches!(error.code, 1203 | 1226)
            }
            _ => false,
        }
    }

    /// Waiting may help.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Pg(error) => error.may_pass(),
            Self::Mysql(error) => error.may_pass(),
            Self::Io(_) | Self::OtherServer | Self::Changed(_) | Self::Timeout => true,
            Self::State(_) => false,
        }
    }

    /// What the session's own client may read.
    pub(super) fn for_client(&self) -> &str {
        match self {
            Self::State(reason) => reason,
            _ => "",
        }
    }
}

/// A server connection that is logged in and carries no session yet.
pub(super) struct Ready<E: Engine> {
    /// The connection under its lease.
    pub(super) link: Link,
    /// What the server said.
    pub(super) greeting: E::Greeting,
    /// Messages of the login that are the client's.
    pub(super) notices: BytesMut,
}

impl<E: Engine> Ready<E> {
    /// One that was made ahead, now that its server serves.
    fn under(self, lease: Lease) -> Self {
        Self {
            link: self.link.under(lease),
            ..self
        }
    }
}

/// Logs in ahead of a move, while the session still works on its old server connection.
pub(super) async fn make_ready<E: Engine>(
    profile: Arc<Profile<E>>,
    lease: Lease,
    deadline: Instant,
) -> Result<Ready<E>, OpenError> {
    let mut ready = E::log_in(&profile, lease, deadline).await?;
    E::warm(&mut ready, &profile, deadline).await?;
    Ok(ready)
}

/// Logs in, unless that was done ahead, and, with a snapshot, restores and verifies the session. Nothing of it
/// reaches the client before it is verified.
pub(super) async fn open<E: Engine>(
    profile: &Profile<E>,
    lease: Lease,
    ahead: Option<Ready<E>>,
    snapshot: Option<&E::Snapshot>,
    seen: E::Seen,
    deadline: Instant,
) -> Result<Opened<E>, OpenError> {
    let ready = match ahead {
        Some(ready) => ready.under(lease),
        None => E::log_in(profile, lease, deadline).await?,
    };
    match snapshot {
        Some(snapshot) => E::carry(ready, profile, snapshot, seen, deadline).await,
        None => Ok(Opened {
            link: ready.link,
            greeting: ready.greeting,
            for_client: ready.notices,
        }),
    }
}

/// Tries a snapshot on the old server, once per identity and state in an event.
pub(super) async fn rehearse<E: Engine>(
    profile: Arc<Profile<E>>,
    snapshot: Arc<E::Snapshot>,
    seen: E::Seen,
) -> Result<(), String> {
    let key = fingerprint(&profile, &snapshot);
    let outcome = try_out(profile, snapshot, seen, key).await;
    outcome.unwrap_or_else(|| Err("no server connection was free for a rehearsal".to_owned()))
}

/// The same for all snapshots with one outline, as long as nothing about log-ins changes: on a server that took
/// such values it takes others. `None`: there was no server connection to try it on.
pub(super) async fn rehearse_outline<E: Engine>(
    profile: Arc<Profile<E>>,
    snapshot: Arc<E::Snapshot>,
    seen: E::Seen,
) -> Option<Result<(), String>> {
    let key = fingerprint(&profile, &snapshot.outline());
    try_out(profile, snapshot, seen, key).await
}

async fn try_out<E: Engine>(
    profile: Arc<Profile<E>>,
    snapshot: Arc<E::Snapshot>,
    seen: E::Seen,
    fingerprint: [u8; 32],
) -> Option<Result<(), String>> {
    if let Some(reason) = snapshot.not_restorable() {
        return Some(Err(reason));
    }
    let turn = profile.cluster.rehearsal_turn(fingerprint);
    let _turn = turn.lock().await;
    if let Some(known) = profile.cluster.rehearsed(fingerprint) {
        return Some(known);
    }
    let deadline = Instant::now() + REHEARSAL_MAX;
    let lease = loop {
        if let Some(lease) = profile.cluster.gate.try_spare() {
            break lease;
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let began = Instant::now();
    let outcome = match open(&profile, lease, None, Some(&snapshot), seen, deadline).await {
        Ok(opened) => {
            opened.link.end().await;
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    };
    profile
        .cluster
        .note_rehearsal(fingerprint, outcome.clone(), began);
    Some(outcome)
}

/// What the rehearsal of this state came to, if there was one lately.
pub(super) fn rehearsed<E: Engine>(
    profile: &Profile<E>,
    snapshot: &E::Snapshot,
) -> Option<Result<(), String>> {
    profile.cluster.rehearsed(fingerprint(profile, snapshot))
}

/// Identity (user, database, what the client logged in with) and state.
fn fingerprint<E: Engine>(profile: &Profile<E>, snapshot: &E::Snapshot) -> [u8; 32] {
    let mut hash = identity(profile);
    hash.update(&snapshot.fingerprint());
    finished(hash)
}

fn identity<E: Engine>(profile: &Profile<E>) -> digest::Context {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut put = |text: &[u8]| {
        hash.update(&text.len().to_be_bytes());
        hash.update(text);
    };
    E::identity(&profile.login, &mut put);
    // Which account a server means, and whether it lets it in, depends on the address that it is told.
    if let (Some(_), Some(client)) = (profile.cluster.socket.proxy_protocol, profile.client) {
        put(client.source.ip().to_string().as_bytes());
    }
    hash
}

fn finished(hash: digest::Context) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// The server process that a session was attached to still takes log-ins: it was not shut down.
/// Asked once for all sessions that hear of its end at `heard`, or before the question is put.
pub(super) async fn still_serves<E: Engine>(
    profile: &Profile<E>,
    link: Option<&Link>,
    heard: Instant,
) -> bool {
    let Some(serving) = link.and_then(Link::serving) else {
        return false;
    };
    let mut known = profile.cluster.alive.lock().await;
    if let Some(alive) = &*known
        && alive.asked >= heard
        && alive.started_at == serving.started_at
    {
        return alive.serves;
    }
    let asked = Instant::now();
    let serves = E::takes_logins(profile, serving).await;
    *known = Some(Alive {
        asked,
        started_at: Arc::clone(&serving.started_at),
        serves,
    });
    serves
}

/// Writes what the client is still to read, and closes.
pub(super) async fn say_goodbye(client: Leg) {
    let (mut stream, out) = client.into_goodbye();
    let work = async {
        stream.write_all(&out).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    if tokio::time::timeout(GOODBYE_MAX, work).await.is_err() {
        tracing::debug!("a client did not read its last message");
    }
}

/// How long a session that has ended waits to be asked for something, so that it can say why.
const ASKED_MAX: Duration = Duration::from_mins(1);

/// Says why a session has ended as the answer to the client's next request, and closes.
pub(super) async fn say_when_asked<E: Engine>(client: Leg, front: &E, end: &End) {
    let (mut stream, out) = client.into_goodbye();
    let work = async {
        stream.write_all(&out).await?;
        stream.flush().await?;
        let mut request = [0; 64];
        if stream.read(&mut request).await? > 0 {
            let mut out = BytesMut::new();
            front.put_end(end, true, &mut out);
            stream.write_all(&out).await?;
            stream.flush().await?;
        }
        stream.shutdown().await
    };
    if tokio::time::timeout(ASKED_MAX, work).await.is_err() {
        tracing::debug!("a client of a session that has ended asked for nothing more");
    }
}
