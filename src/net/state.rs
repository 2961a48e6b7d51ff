//! Asking servers for a session's state, and putting it onto new server connections: the IO around
//! `session::pg::{probe, restore}`.

use super::carry::restore;
use super::relay::{Leg, ProcessNames};
use super::shared::Shared;
use crate::auth::Credential;
use crate::backend::cluster::{Alive, Cluster};
use crate::backend::connect::{ConnectError, Connected, Login, connect};
use crate::backend::exec::{ExecError, connect_and_query};
use crate::backend::frames::Frames;
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::Link;
use crate::backend::registry::Handle;
use crate::observe::ClusterMetrics;
use crate::session::pg::probe::{Probe, ProbeSpec, ProbeStep, put_check, put_probe};
use crate::session::pg::snapshot::Snapshot;
use crate::session::pg::told::Told;
use crate::transport::stream::Stream;
use crate::wire::pg::frame::put;
use crate::wire::pg::startup::{Replication, StartupParams};
use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// How long a client may take to read its last message.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// How long a rehearsal may take, waiting for a spare connection included.
const REHEARSAL_MAX: Duration = Duration::from_secs(10);

/// What of a session never changes, and what it needs to log in again.
#[derive(Debug)]
pub(super) struct Profile {
    /// Its cluster.
    pub(super) cluster: Arc<Cluster>,
    /// The process.
    pub(super) shared: Arc<Shared>,
    /// The client's start-up packet, as servers get it.
    pub(super) params: StartupParams,
    /// What of replication the client asked for.
    pub(super) replication: Replication,
    /// Recovered at the client's login.
    pub(super) credential: Credential,
    /// The cluster's counters.
    pub(super) metrics: ClusterMetrics,
    /// User name.
    pub(super) user: String,
    /// Database name.
    pub(super) database: String,
    /// As the first server told it.
    pub(super) server_version_num: AtomicU32,
}

impl Profile {
    /// Role or database settings were changed since this probe.
    pub(super) fn is_stale(&self, probed_at: Option<Instant>) -> bool {
        probed_at.is_none_or(|at| at < self.cluster.role_settings_changed())
    }

    /// Tells the janitor.
    pub(super) fn note_idle_timeout(handle: &Handle, millis: u64) {
        let timeout = (millis > 0).then(|| Duration::from_millis(millis));
        handle.with_report(|report| report.idle_session_timeout = timeout);
    }

    pub(super) fn version(&self) -> u32 {
        self.server_version_num.load(Ordering::Relaxed)
    }

    fn login<'a>(&'a self, lease: &'a Lease, deadline: Instant) -> Login<'a> {
        Login {
            endpoint: &lease.serving().endpoint,
            socket: &self.cluster.socket,
            params: &self.params,
            credential: Some(&self.credential),
            deadline,
        }
    }
}

impl ProcessNames for Cluster {
    fn told(&self, real: i32) -> i32 {
        self.told_process(real)
    }
}

/// A probe's result.
pub(super) struct Probed {
    /// What was found.
    pub(super) probe: Probe,
    /// Frames that came in between and are the client's.
    pub(super) for_client: BytesMut,
}

/// Why there is no result.
pub(super) enum ProbeFailure {
    /// The server refused; the connection is as it was. With what came in between and is the client's.
    Refused(String, BytesMut),
    /// The connection can't be used any more.
    Broken(io::Error),
}

/// What of a session only the wire has shown, and a new server connection needs as well.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The unnamed statement's Parse.
    pub(super) unnamed: Option<Vec<u8>>,
    /// Rows that named statements were said to have.
    pub(super) told: Told,
}

/// A new server connection that carries the session.
pub(super) struct Opened {
    /// The connection under its lease.
    pub(super) link: Link,
    /// ParameterStatus, last value of each.
    pub(super) params: Vec<(Bytes, Bytes)>,
    /// Frames for the client.
    pub(super) for_client: BytesMut,
}

/// Why a session has no new server connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The login failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The state could not be put onto it, or what came of it differs.
    #[error("{0}")]
    State(String),
    /// The connection broke.
    #[error("the server connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server that answered is not the one that was proven.
    #[error("another server answered than the one that serves this generation")]
    OtherServer,
    /// No answer in time.
    #[error("the server did not answer in time")]
    Timeout,
}

impl OpenError {
    /// Waiting may help.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect(error) => error.may_pass(),
            Self::Io(_) | Self::OtherServer | Self::Timeout => true,
            Self::State(_) => false,
        }
    }

    /// SQLSTATE for the client.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Connect(ConnectError::Server { fields, .. }) => &fields.code,
            Self::State(_) => "57P02",
            _ => "08006",
        }
    }

    /// The server's own ErrorResponse.
    pub(super) fn server_words(&self) -> Option<&Bytes> {
        match self {
            Self::Connect(ConnectError::Server { body, .. }) => Some(body),
            _ => None,
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

/// Asks the server what the session holds. Dropping it half-way breaks the connection.
pub(super) async fn probe(
    stream: &mut Stream,
    profile: &Profile,
    previous: Option<&Snapshot>,
    deadline: Instant,
) -> Result<Probed, ProbeFailure> {
    let mut frames = Frames::new(stream);
    let work = async {
        let mut done = run_probe(&mut frames, profile, previous, BytesMut::new()).await;
        let for_client = match &mut done {
            Ok(probed) => &mut probed.for_client,
            Err(ProbeFailure::Refused(_, for_client)) => for_client,
            Err(ProbeFailure::Broken(_)) => return done,
        };
        let ahead = read_ahead(&mut frames, for_client).await;
        ahead.map_err(ProbeFailure::Broken)?;
        done
    };
    let timeout = |_| ProbeFailure::Broken(io::ErrorKind::TimedOut.into());
    let done = tokio::time::timeout_at(deadline, work).await;
    done.map_err(timeout)?
}

/// What was read with an answer and comes behind it: the server may say such things at any time.
async fn read_ahead(frames: &mut Frames<'_>, for_client: &mut BytesMut) -> io::Result<()> {
    while frames.is_ahead() {
        let message = frames.next().await?;
        if !message.is_asynchronous() {
            let text = "the server spoke before it was asked";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        put(for_client, message.tag, |out| out.put_slice(&message.body));
    }
    Ok(())
}

pub(super) async fn run_probe(
    frames: &mut Frames<'_>,
    profile: &Profile,
    previous: Option<&Snapshot>,
    mut out: BytesMut,
) -> Result<Probed, ProbeFailure> {
    let names = profile.cluster.names(&profile.database);
    let mut reader = put_probe(&mut out, &spec(profile, &names, previous));
    frames.send(&out).await.map_err(ProbeFailure::Broken)?;
    read_probe(frames, &mut reader).await
}

/// What a fresh login holds of what a snapshot could have; see [`Snapshot::is_checkable`].
pub(super) async fn check(
    frames: &mut Frames<'_>,
    profile: &Profile,
    snapshot: &Snapshot,
) -> Result<Probed, ProbeFailure> {
    let names = profile.cluster.names(&profile.database);
    let mut out = BytesMut::new();
    let mut reader = put_check(&mut out, &spec(profile, &names, Some(snapshot)));
    frames.send(&out).await.map_err(ProbeFailure::Broken)?;
    read_probe(frames, &mut reader).await
}

pub(super) fn spec<'a>(
    profile: &'a Profile,
    names: &'a [String],
    previous: Option<&'a Snapshot>,
) -> ProbeSpec<'a> {
    ProbeSpec {
        custom_names: names,
        previous,
        login_user: &profile.user,
        server_version_num: profile.version(),
    }
}

pub(super) async fn read_probe(
    frames: &mut Frames<'_>,
    reader: &mut crate::session::pg::probe::ProbeReader,
) -> Result<Probed, ProbeFailure> {
    let mut for_client = BytesMut::new();
    loop {
        let message = frames.next().await.map_err(ProbeFailure::Broken)?;
        match reader.on_frame(message.tag, &message.body) {
            Ok(ProbeStep::More) => {}
            Ok(ProbeStep::ForClient) => {
                put(&mut for_client, message.tag, |out| {
                    out.put_slice(&message.body);
                });
            }
            Ok(ProbeStep::Send(bytes)) => {
                frames.send(&bytes).await.map_err(ProbeFailure::Broken)?;
            }
            Ok(ProbeStep::Done(probe)) => {
                return Ok(Probed {
                    probe: *probe,
                    for_client,
                });
            }
            Err(error) if error.usable => {
                return Err(ProbeFailure::Refused(error.to_string(), for_client));
            }
            Err(error) => {
                return Err(ProbeFailure::Broken(io::Error::other(error.to_string())));
            }
        }
    }
}

/// A server connection that is logged in, its caches warm, and carries no session yet.
pub(super) struct Ready {
    link: Link,
    params: Vec<(Bytes, Bytes)>,
    notices: BytesMut,
}

/// Logs in ahead of a move, while the session still works on its old server connection.
pub(super) async fn make_ready(
    profile: Arc<Profile>,
    lease: Lease,
    deadline: Instant,
) -> Result<Ready, OpenError> {
    let mut ready = log_in(&profile, lease, deadline).await?;
    let stream = ready.link.stream().ok_or(OpenError::Timeout)?;
    let mut frames = Frames::new(stream);
    // The first probe of a server process reads catalogs that the second finds in its caches.
    let work = async {
        let probed = run_probe(&mut frames, &profile, None, BytesMut::new()).await;
        probed.map_err(open_error)?;
        read_ahead(&mut frames, &mut BytesMut::new()).await?;
        Ok::<_, OpenError>(())
    };
    tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    Ok(ready)
}

/// Logs in and, with a snapshot, restores and verifies the session. Nothing of it reaches the client
/// before it is verified.
pub(super) async fn open(
    profile: &Profile,
    lease: Lease,
    snapshot: Option<&Snapshot>,
    seen: Seen,
    deadline: Instant,
) -> Result<Opened, OpenError> {
    let ready = log_in(profile, lease, deadline).await?;
    match snapshot {
        Some(snapshot) => carry(ready, profile, snapshot, seen, deadline).await,
        None => Ok(Opened {
            link: ready.link,
            params: ready.params,
            for_client: ready.notices,
        }),
    }
}

async fn log_in(profile: &Profile, lease: Lease, deadline: Instant) -> Result<Ready, OpenError> {
    let connected = connect(&profile.login(&lease, deadline)).await?;
    note_version(profile, &connected);
    let params = connected.params.clone();
    let notices = connected.notices.clone();
    Ok(Ready {
        notices,
        link: Link::new(connected, lease),
        params,
    })
}

/// Restores a session onto a connection that is ready, and verifies it.
pub(super) async fn carry(
    ready: Ready,
    profile: &Profile,
    snapshot: &Snapshot,
    seen: Seen,
    deadline: Instant,
) -> Result<Opened, OpenError> {
    // What a login says was said at the session's own.
    let Ready {
        mut link,
        mut params,
        notices: _,
    } = ready;
    let began = Instant::now();
    let started_at = link
        .serving()
        .map(|s| Arc::clone(&s.started_at))
        .unwrap_or_default();
    let stream = link.stream().ok_or(OpenError::Timeout)?;
    let mut frames = Frames::new(stream);
    let work = async {
        let mut probed = restore(&mut frames, profile, snapshot, seen, &mut params).await?;
        read_ahead(&mut frames, &mut probed.for_client).await?;
        Ok::<_, OpenError>(probed)
    };
    let probed = tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    if !started_at.is_empty() && probed.probe.server.started_us.to_string() != *started_at {
        return Err(OpenError::OtherServer);
    }
    tracing::debug!(took = ?began.elapsed(), "a session's state is on a new server connection");
    Ok(Opened {
        link,
        params,
        for_client: probed.for_client,
    })
}

pub(super) fn open_error(failure: ProbeFailure) -> OpenError {
    match failure {
        ProbeFailure::Refused(reason, _) => OpenError::State(reason),
        ProbeFailure::Broken(error) => OpenError::Io(error),
    }
}

fn note_version(profile: &Profile, connected: &Connected) {
    let version = connected
        .params
        .iter()
        .find(|(name, _)| &**name == b"server_version");
    if let Some(number) = version.and_then(|(_, text)| version_num(text)) {
        profile.server_version_num.store(number, Ordering::Relaxed);
    }
}

/// `15.18 (Debian ...)` as 150018; `17rc1` as 170000.
fn version_num(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let number = |text: &str| -> Option<u32> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        text.get(..end)?.parse().ok()
    };
    let major = number(text)?;
    let minor = text
        .split_once('.')
        .and_then(|(_, minor)| number(minor))
        .unwrap_or(0);
    major.checked_mul(10_000)?.checked_add(minor)
}

/// Tries a snapshot on the old server, once per identity and state in an event.
pub(super) async fn rehearse(
    profile: Arc<Profile>,
    snapshot: Arc<Snapshot>,
    seen: Seen,
) -> Result<(), String> {
    let key = fingerprint(&profile, &snapshot);
    let outcome = try_out(profile, snapshot, seen, key).await;
    outcome.unwrap_or_else(|| Err("no server connection was free for a rehearsal".to_owned()))
}

/// The same for all snapshots with one outline, as long as nothing about log-ins changes: on a server that took
/// such values it takes others. `None`: there was no server connection to try it on.
pub(super) async fn rehearse_outline(
    profile: Arc<Profile>,
    snapshot: Arc<Snapshot>,
    seen: Seen,
) -> Option<Result<(), String>> {
    let key = fingerprint(&profile, &snapshot.outline());
    try_out(profile, snapshot, seen, key).await
}

async fn try_out(
    profile: Arc<Profile>,
    snapshot: Arc<Snapshot>,
    seen: Seen,
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
    let outcome = match open(&profile, lease, Some(&snapshot), seen, deadline).await {
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
pub(super) fn rehearsed(profile: &Profile, snapshot: &Snapshot) -> Option<Result<(), String>> {
    profile.cluster.rehearsed(fingerprint(profile, snapshot))
}

/// Identity (user, database, start-up packet) and state.
fn fingerprint(profile: &Profile, snapshot: &Snapshot) -> [u8; 32] {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for (name, value) in &profile.params.0 {
        for text in [name, value] {
            hash.update(&text.len().to_be_bytes());
            hash.update(text);
        }
    }
    hash.update(&snapshot.fingerprint());
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// The server process that a session was attached to still takes log-ins: it was not shut down.
/// Asked once for all sessions that hear of its end at `heard`, or before the question is put.
pub(super) async fn still_serves(profile: &Profile, link: Option<&Link>, heard: Instant) -> bool {
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
    let serves = takes_logins(profile, serving).await;
    *known = Some(Alive {
        asked,
        started_at: Arc::clone(&serving.started_at),
        serves,
    });
    serves
}

async fn takes_logins(profile: &Profile, serving: &Serving) -> bool {
    let login = Login {
        endpoint: &serving.endpoint,
        socket: &profile.cluster.socket,
        params: &profile.params,
        credential: Some(&profile.credential),
        deadline: Instant::now() + Duration::from_secs(2),
    };
    match connect_and_query(&login, STARTED_AT).await {
        Ok(rows) => {
            rows.into_iter().flatten().flatten().next().as_deref() == Some(&*serving.started_at)
        }
        // Full, or closed to this user: it runs.
        Err(ExecError::Connect(ConnectError::Server { fields, .. })) => fields.code != "57P03",
        Err(ExecError::Connect(error)) => !error.may_pass(),
        Err(_) => false,
    }
}

/// When the server process started, in microseconds since 1970.
const STARTED_AT: &str = "SELECT (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000::pg_catalog.numeric)::pg_catalog.int8::pg_catalog.text";

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
