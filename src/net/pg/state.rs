//! Asking PostgreSQL for a session's state, and logging in for it: the IO around `session::pg::{probe, restore}`.

use super::super::state::{OpenError, Opened, ProbeFailure, Probed, Profile, Ready};
use super::carry::{restore, take_parameters};
use super::engine::{Greeting, Seen};
use super::front::Pg;
use crate::backend::connect::{self, ConnectError, Connected, connect};
use crate::backend::exec::{ExecError, connect_and_query};
use crate::backend::frames::Frames;
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::{Link, Peer};
use crate::session::pg::STARTED_AT_SQL;
use crate::session::pg::probe::{ProbeSpec, ProbeStep, put_check, put_probe};
use crate::session::pg::snapshot::Snapshot;
use crate::transport::stream::Stream;
use crate::wire::pg::frame::{put, put_cstr};
use bytes::{BufMut, BytesMut};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Asks the server what the session holds. Dropping it half-way breaks the connection.
pub(super) async fn probe(
    stream: &mut Stream,
    profile: &Profile<Pg>,
    previous: Option<&Snapshot>,
    deadline: Instant,
) -> Result<Probed<Pg>, ProbeFailure> {
    let mut frames = Frames::new(stream);
    let work = async {
        let mut done = run_probe(&mut frames, profile, previous, BytesMut::new()).await;
        let for_client = match &mut done {
            Ok(probed) => &mut probed.for_client,
            Err(ProbeFailure::Refused { for_client, .. }) => for_client,
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
pub(super) async fn read_ahead(
    frames: &mut Frames<'_>,
    for_client: &mut BytesMut,
) -> io::Result<()> {
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
    profile: &Profile<Pg>,
    previous: Option<&Snapshot>,
    mut out: BytesMut,
) -> Result<Probed<Pg>, ProbeFailure> {
    let names = profile.cluster.names(&profile.database);
    let mut reader = put_probe(&mut out, &spec(profile, &names, previous));
    frames.send(&out).await.map_err(ProbeFailure::Broken)?;
    read_probe(frames, &mut reader).await
}

/// What a fresh login holds of what a snapshot could have; see [`Snapshot::is_checkable`].
pub(super) async fn check(
    frames: &mut Frames<'_>,
    profile: &Profile<Pg>,
    snapshot: Option<&Snapshot>,
) -> Result<Probed<Pg>, ProbeFailure> {
    let names = profile.cluster.names(&profile.database);
    let mut out = BytesMut::new();
    let mut reader = put_check(&mut out, &spec(profile, &names, snapshot));
    frames.send(&out).await.map_err(ProbeFailure::Broken)?;
    read_probe(frames, &mut reader).await
}

pub(super) fn spec<'a>(
    profile: &'a Profile<Pg>,
    names: &'a [String],
    previous: Option<&'a Snapshot>,
) -> ProbeSpec<'a> {
    ProbeSpec {
        custom_names: names,
        previous,
        login_user: &profile.user,
        server_version_num: profile.login.version(),
    }
}

pub(super) async fn read_probe(
    frames: &mut Frames<'_>,
    reader: &mut crate::session::pg::probe::ProbeReader,
) -> Result<Probed<Pg>, ProbeFailure> {
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
                return Err(ProbeFailure::Refused {
                    reason: error.to_string(),
                    late: &*error.sqlstate == "57014",
                    for_client,
                });
            }
            Err(error) => {
                return Err(ProbeFailure::Broken(io::Error::other(error.to_string())));
            }
        }
    }
}

/// So often is a check made on a connection that no session has yet: each time takes half of the last one's time.
const WARMING_CHECKS: usize = 2;

/// The first probe of a server process reads catalogs that the second finds in its caches. The check as well, which is
/// what the session will wait for.
pub(super) async fn warm(
    ready: &mut Ready<Pg>,
    profile: &Profile<Pg>,
    deadline: Instant,
) -> Result<(), OpenError> {
    let stream = ready.link.stream().ok_or(OpenError::Timeout)?;
    let params = &mut ready.greeting.params;
    let mut frames = Frames::new(stream);
    let work = async {
        let probed = run_probe(&mut frames, profile, None, BytesMut::new()).await;
        let mut for_client = probed.map_err(open_error)?.for_client;
        for _ in 0..WARMING_CHECKS {
            match check(&mut frames, profile, None).await {
                Ok(probed) => for_client.unsplit(probed.for_client),
                // It runs without the guards of a probe: a time limit of the role's, say.
                Err(ProbeFailure::Refused {
                    for_client: more, ..
                }) => {
                    for_client.unsplit(more);
                    break;
                }
                Err(failure) => return Err(open_error(failure)),
            }
        }
        read_ahead(&mut frames, &mut for_client).await?;
        take_parameters(&for_client, params);
        Ok::<_, OpenError>(())
    };
    tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)?
}

/// The first version whose databases may have functions that run at each log-in. What they do on a standby need
/// not be what they would do on a primary.
const LOGIN_TRIGGERS: u32 = 170_000;

const HAS_LOGIN_TRIGGER: &str = "SELECT 1 FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) \
    pg_catalog.current_database() AND d.dathasloginevt";

/// Log-ins run no function.
pub(super) async fn may_be_ahead(
    ready: &mut Ready<Pg>,
    profile: &Profile<Pg>,
    deadline: Instant,
) -> Result<(), OpenError> {
    if profile.login.version() < LOGIN_TRIGGERS {
        return Ok(());
    }
    let frames = &mut Frames::new(ready.link.stream().ok_or(OpenError::Timeout)?);
    tokio::time::timeout_at(deadline, no_login_trigger(frames))
        .await
        .map_err(|_| OpenError::Timeout)?
}

async fn no_login_trigger(frames: &mut Frames<'_>) -> Result<(), OpenError> {
    let mut out = BytesMut::new();
    put(&mut out, b'Q', |out| {
        put_cstr(out, HAS_LOGIN_TRIGGER.as_bytes());
    });
    frames.send(&out).await?;
    let mut found = false;
    loop {
        match frames.next().await?.tag {
            b'D' | b'E' => found = true,
            b'Z' if !found => return Ok(()),
            b'Z' => return Err(OpenError::State("log-ins run a function".to_owned())),
            _ => {}
        }
    }
}

pub(super) async fn log_in(
    profile: &Profile<Pg>,
    lease: Lease,
    deadline: Instant,
) -> Result<Ready<Pg>, OpenError> {
    let login = connect::Login {
        endpoint: &lease.serving().endpoint,
        socket: &profile.cluster.socket,
        params: &profile.login.params,
        credential: Some(&profile.login.credential),
        client: profile.client,
        deadline,
    };
    let connected = connect(&login).await?;
    note_version(profile, &connected);
    let greeting = Greeting {
        params: connected.params.clone(),
        checked: None,
        absent: Vec::new(),
    };
    let notices = connected.notices.clone();
    let peer = Peer::Pg {
        process: connected.process,
        secret: connected.secret,
    };
    Ok(Ready {
        notices,
        link: Link::new(connected.stream, peer, profile.client, lease),
        greeting,
    })
}

/// Restores a session onto a connection that is ready, and verifies it.
pub(super) async fn carry(
    ready: Ready<Pg>,
    profile: &Profile<Pg>,
    snapshot: &Snapshot,
    seen: Seen,
    deadline: Instant,
) -> Result<Opened<Pg>, OpenError> {
    // What a login says was said at the session's own.
    let Ready {
        mut link,
        mut greeting,
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
        let mut probed = restore(&mut frames, profile, snapshot, seen, &mut greeting).await?;
        read_ahead(&mut frames, &mut probed.for_client).await?;
        // What is told while nobody's client listens is told with the rest.
        probed.for_client = take_parameters(&probed.for_client, &mut greeting.params);
        Ok::<_, OpenError>(probed)
    };
    let probed = tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    let server = &probed.probe.server;
    if server.in_recovery
        || (!started_at.is_empty() && server.started_us.to_string() != *started_at)
    {
        return Err(OpenError::OtherServer);
    }
    tracing::debug!(took = ?began.elapsed(), "a session's state is on a new server connection");
    Ok(Opened {
        link,
        greeting,
        for_client: probed.for_client,
    })
}

pub(super) fn open_error(failure: ProbeFailure) -> OpenError {
    match failure {
        ProbeFailure::Refused { late: true, .. } => OpenError::Timeout,
        ProbeFailure::Refused { reason, .. } => OpenError::State(reason),
        ProbeFailure::Broken(error) => OpenError::Io(error),
    }
}

fn note_version(profile: &Profile<Pg>, connected: &Connected) {
    let version = connected
        .params
        .iter()
        .find(|(name, _)| &**name == b"server_version");
    if let Some(number) = version.and_then(|(_, text)| version_num(text)) {
        profile
            .login
            .server_version_num
            .store(number, Ordering::Relaxed);
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

/// The server process still takes log-ins: it was not shut down.
pub(super) async fn takes_logins(profile: &Profile<Pg>, serving: &Serving) -> bool {
    let login = connect::Login {
        endpoint: &serving.endpoint,
        socket: &profile.cluster.socket,
        params: &profile.login.params,
        credential: Some(&profile.login.credential),
        client: profile.client,
        deadline: Instant::now() + Duration::from_secs(2),
    };
    match connect_and_query(&login, STARTED_AT_SQL).await {
        Ok(rows) => {
            rows.into_iter().flatten().flatten().next().as_deref() == Some(&*serving.started_at)
        }
        // Full, or closed to this user: it runs.
        Err(ExecError::Connect(ConnectError::Server { fields, .. })) => fields.code != "57P03",
        Err(ExecError::Connect(error)) => !error.may_pass(),
        Err(_) => false,
    }
}
