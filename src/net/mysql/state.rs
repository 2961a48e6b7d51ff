//! Asking MySQL and MariaDB for a session's state, and logging in for it: the IO around
//! `session::mysql::{probe, restore}`.

use super::super::state::{OpenError, Opened, ProbeFailure, Probed, Profile, Ready};
use super::engine::{Asked, Former, Greeting};
use super::front::Mysql;
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::{Link, Peer};
use crate::backend::mysql::connect::{ConnectError, Connected, Login, connect};
use crate::backend::mysql::exec::{self, ExecError};
use crate::backend::mysql::frames::Packets;
use crate::backend::mysql::started::started_at_sql;
use crate::session::Portable;
use crate::session::mysql::arrival::{ArrivalError, Arrived, put_arrival};
use crate::session::mysql::grammar::{Family, Grammar};
use crate::session::mysql::machine::Held;
use crate::session::mysql::probe::{
    MAX_REPLY, Probe, ProbeReader, ProbeSpec, ProbeStep, put_check, put_probe,
};
use crate::session::mysql::restore::{Mismatch, RestoreStep, Restored, put_restore, verify};
use crate::session::mysql::side::{Side, read_side, side_query};
use crate::session::mysql::snapshot::{Baseline, Snapshot};
use crate::transport::stream::Stream;
use crate::wire::mysql::capabilities::Capabilities;
use crate::wire::mysql::handshake;
use crate::wire::mysql::reply::Status;
use bytes::BytesMut;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// ER_SERVER_SHUTDOWN.
const SHUTDOWN: u16 = 1053;

type Replies<'a> = Packets<&'a mut Stream>;

/// What decides how replies are built, by what was agreed on with the server. `client`: what the client was granted.
pub(in crate::net) fn grammar(connected: &Connected, client: Capabilities) -> Grammar {
    let agreed = connected.capabilities;
    Grammar {
        family: connected.version.family,
        deprecate_eof: agreed.contains(Capabilities::DEPRECATE_EOF),
        client_tracks: client.contains(Capabilities::SESSION_TRACK),
        multi_statements: agreed.contains(Capabilities::MULTI_STATEMENTS),
        cache_metadata: agreed.contains(Capabilities::MARIADB_CACHE_METADATA),
        extended_metadata: agreed.contains(Capabilities::MARIADB_EXTENDED_METADATA),
    }
}

fn version(version: &handshake::Version) -> u32 {
    let (major, minor, patch) = version.number;
    u32::from(major) * 10_000 + u32::from(minor) * 100 + u32::from(patch)
}

/// Logs in as the session's user, proves that it is the server that serves, and switches tracking on.
pub(super) async fn log_in(
    profile: &Profile<Mysql>,
    lease: Lease,
    deadline: Instant,
) -> Result<Ready<Mysql>, OpenError> {
    let who = &profile.login.who;
    let login = Login {
        endpoint: &lease.serving().endpoint,
        socket: &profile.cluster.socket,
        request: &who.0,
        credential: Some(&who.1),
        client: profile.client,
        deadline,
    };
    let mut connected = connect(&login).await?;
    profile.cluster.learn_offer(&connected.offer);
    let proven = &lease.serving().started_at;
    let grammar = grammar(&connected, who.0.capabilities);
    let version = version(&connected.version);
    let work = begin(&mut connected.stream, profile, grammar, version, proven);
    let Begun {
        status,
        baseline,
        kind,
        checked,
    } = tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    let peer = Peer::Mysql {
        connection_id: connected.connection_id,
        who: Arc::clone(who),
    };
    Ok(Ready {
        link: Link::new(connected.stream, peer, profile.client, lease),
        greeting: Greeting {
            status,
            grammar,
            version,
            baseline,
            kind,
            looked: checked.is_some(),
            ids: std::collections::BTreeMap::new(),
            text_prepares: 0,
            checked,
            is_ahead: false,
        },
        notices: BytesMut::new(),
    })
}

/// What was found of a fresh login.
struct Begun {
    status: Status,
    baseline: Arc<Baseline>,
    kind: [u8; 32],
    checked: Option<Box<Probe>>,
}

/// Proves that it is the server that serves, switches tracking on, and finds out what a login of this kind holds, unless
/// that is known.
async fn begin(
    stream: &mut Stream,
    profile: &Profile<Mysql>,
    grammar: Grammar,
    version: u32,
    proven: &str,
) -> Result<Begun, OpenError> {
    let mut replies = Packets::replies(&mut *stream, MAX_REPLY);
    let arrived = arrive(&mut replies, profile, grammar, proven).await?;
    let status = arrived.status;
    let key = profile.kind(&arrived.started_at);
    let known = |baseline| Begun {
        status,
        baseline,
        kind: key,
        checked: None,
    };
    if let Some(baseline) = profile.cluster.baseline(&key) {
        return Ok(known(baseline));
    }
    // After a restart all sessions come at once: one of each kind asks.
    let turn = profile.cluster.baseline_turn(&key);
    let _turn = turn.lock().await;
    if let Some(baseline) = profile.cluster.baseline(&key) {
        return Ok(known(baseline));
    }
    let probe = check_login(&mut replies, grammar, version, None).await?;
    profile
        .cluster
        .note_baseline(key, Arc::clone(&probe.baseline));
    Ok(Begun {
        status,
        baseline: Arc::clone(&probe.baseline),
        kind: key,
        checked: Some(Box::new(probe)),
    })
}

/// Which start of the server answers: it has to be the one that was proven to serve. Tracking is on afterwards.
async fn arrive(
    replies: &mut Replies<'_>,
    profile: &Profile<Mysql>,
    grammar: Grammar,
    proven: &str,
) -> Result<Arrived, OpenError> {
    let mut out = BytesMut::new();
    let sql = started_at_sql(profile.cluster.engine.into());
    let mut reader = put_arrival(&mut out, grammar, sql);
    replies.write(&out).await?;
    let arrived = loop {
        if let Some(told) = reader.on_packet(&replies.next().await?) {
            break told.map_err(not_arrived)?;
        }
    };
    if !proven.is_empty() && *proven != *arrived.started_at {
        return Err(OpenError::OtherServer);
    }
    Ok(arrived)
}

/// What a connection holds that has just logged in.
async fn check_login(
    replies: &mut Replies<'_>,
    grammar: Grammar,
    version: u32,
    baseline: Option<&Arc<Baseline>>,
) -> Result<Probe, OpenError> {
    let held = Held::fresh(grammar);
    let spec = ProbeSpec {
        grammar,
        version,
        baseline,
        held: &held,
        side: None,
        known: None,
        in_full: false,
    };
    check(replies, &spec).await.map_err(state)
}

/// Looks at what a login ahead holds, while nobody waits. A promotion changes nothing of that but variables that no
/// session has for itself.
pub(super) async fn check_ahead(
    ready: &mut Ready<Mysql>,
    deadline: Instant,
) -> Result<(), OpenError> {
    let Ready { link, greeting, .. } = ready;
    greeting.is_ahead = true;
    if greeting.checked.is_some() {
        return Ok(());
    }
    let stream = link.stream().ok_or(OpenError::Timeout)?;
    let mut replies = Packets::replies(stream, MAX_REPLY);
    let (grammar, version) = (greeting.grammar, greeting.version);
    let work = check_login(&mut replies, grammar, version, Some(&greeting.baseline));
    let probe = tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    greeting.checked = Some(Box::new(probe));
    Ok(())
}

/// Asks the server what the session holds. Dropping it half-way breaks the connection.
pub(super) async fn probe(
    stream: &mut Stream,
    profile: &Profile<Mysql>,
    asked: Asked,
    deadline: Instant,
) -> Result<Probed<Mysql>, ProbeFailure> {
    let side = look_from_aside(profile, asked.grammar, asked.connection).await;
    let spec = ProbeSpec {
        grammar: asked.grammar,
        version: asked.version,
        baseline: Some(&asked.baseline),
        held: &asked.held,
        side: side.as_ref(),
        known: asked.known.as_ref(),
        in_full: asked.in_full,
    };
    let mut replies = Packets::replies(stream, MAX_REPLY);
    let work = async {
        let mut out = BytesMut::new();
        let mut reader = put_probe(&mut out, &spec);
        replies.write(&out).await.map_err(ProbeFailure::Broken)?;
        let probe = read_probe(&mut replies, &mut reader).await?;
        profile.cluster.note_missing(&probe.missing);
        if replies.is_ahead() {
            let error = io::Error::other("the server spoke before it was asked");
            return Err(ProbeFailure::Broken(error));
        }
        Ok(Probed {
            probe,
            for_client: BytesMut::new(),
        })
    };
    let timeout = |_| ProbeFailure::Broken(io::ErrorKind::TimedOut.into());
    let done = tokio::time::timeout_at(deadline, work).await;
    done.map_err(timeout)?
}

/// MySQL: what an ordinary user can't see of its own session. `None`: nobody can, so that hints of it stay.
async fn look_from_aside(
    profile: &Profile<Mysql>,
    grammar: Grammar,
    connection: u32,
) -> Option<Side> {
    if grammar.family == Family::MariaDb {
        return None;
    }
    let cluster = &profile.cluster;
    let connection = u64::from(connection);
    let sql = side_query(&[connection]);
    match cluster.service.query_mysql(&cluster.gate, &sql).await {
        Ok(outcome) => read_side(&outcome.rows).remove(&connection),
        Err(error) => {
            tracing::debug!(%error, "the service account can't see what sessions hold");
            None
        }
    }
}

async fn check(replies: &mut Replies<'_>, spec: &ProbeSpec<'_>) -> Result<Probe, ProbeFailure> {
    let mut out = BytesMut::new();
    let mut reader = put_check(&mut out, spec);
    replies.write(&out).await.map_err(ProbeFailure::Broken)?;
    read_probe(replies, &mut reader).await
}

async fn read_probe(
    replies: &mut Replies<'_>,
    reader: &mut ProbeReader,
) -> Result<Probe, ProbeFailure> {
    loop {
        let payload = replies.next_unless_long().await;
        let step = match payload.map_err(ProbeFailure::Broken)? {
            Some(payload) => reader.on_packet(&payload),
            None => reader.on_long_packet(),
        };
        match step {
            Ok(ProbeStep::More) => {}
            Ok(ProbeStep::Send(bytes)) => {
                replies.write(&bytes).await.map_err(ProbeFailure::Broken)?;
            }
            Ok(ProbeStep::Done(probe)) => return Ok(*probe),
            Err(error) if error.usable => {
                return Err(ProbeFailure::Refused {
                    reason: error.to_string(),
                    late: false,
                    for_client: BytesMut::new(),
                });
            }
            Err(error) => return Err(ProbeFailure::Broken(io::Error::other(error.to_string()))),
        }
    }
}

/// Restores a session onto a connection that is ready, and verifies it.
pub(super) async fn carry(
    ready: Ready<Mysql>,
    profile: &Profile<Mysql>,
    snapshot: &Snapshot,
    former: &Former,
    deadline: Instant,
) -> Result<Opened<Mysql>, OpenError> {
    let began = Instant::now();
    let Ready {
        mut link,
        mut greeting,
        ..
    } = ready;
    let proven = link
        .serving()
        .map(|s| Arc::clone(&s.started_at))
        .unwrap_or_default();
    let stream = link.stream().ok_or(OpenError::Timeout)?;
    let checked = greeting.checked.take();
    // The same start of the server gives other values to new sessions than it gave to this one.
    let changed =
        former.kind == greeting.kind && !Arc::ptr_eq(&former.baseline, &greeting.baseline);
    let kept = changed.then(|| snapshot.keeping(&former.baseline, &greeting.baseline));
    let snapshot = kept.as_ref().unwrap_or(snapshot);
    let work = async {
        if greeting.is_ahead {
            let mut replies = Packets::replies(&mut *stream, MAX_REPLY);
            let arrived = arrive(&mut replies, profile, greeting.grammar, &proven).await?;
            greeting.status = arrived.status;
        }
        put_on(stream, profile, &greeting, snapshot, checked).await
    };
    let restored = tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    if let Some(restored) = restored {
        greeting.status = restored.status;
        greeting.ids = restored.ids;
        greeting.text_prepares = restored.text_prepares;
    }
    tracing::debug!(took = ?began.elapsed(), "a session's state is on a new server connection");
    Ok(Opened {
        link,
        greeting,
        for_client: BytesMut::new(),
    })
}

async fn put_on(
    stream: &mut Stream,
    profile: &Profile<Mysql>,
    greeting: &Greeting,
    snapshot: &Snapshot,
    checked: Option<Box<Probe>>,
) -> Result<Option<Restored>, OpenError> {
    let mut replies = Packets::replies(stream, MAX_REPLY);
    let (held, side) = expected(snapshot, greeting.grammar);
    let spec = ProbeSpec {
        grammar: greeting.grammar,
        version: greeting.version,
        baseline: Some(&greeting.baseline),
        held: &held,
        side: Some(&side),
        known: None,
        in_full: !snapshot.state().variables.is_empty(),
    };
    let fresh = &greeting.baseline;
    let differs = |mismatch: Mismatch| {
        let reason = mismatch.to_string();
        if greeting.looked {
            return OpenError::State(reason);
        }
        // Another login was looked at, which may be long ago.
        profile.cluster.forget_baseline(&greeting.kind);
        OpenError::Changed(reason)
    };
    if snapshot.is_plain() {
        // Nobody has used the connection since the login looked at it.
        let probe = match checked {
            Some(probe) => *probe,
            None => check(&mut replies, &spec).await.map_err(state)?,
        };
        let nothing = Restored::default();
        verify(snapshot, fresh, &probe, &nothing).map_err(differs)?;
        return Ok(None);
    }
    let mut out = BytesMut::new();
    let mut reader = put_restore(&mut out, snapshot, fresh, greeting.grammar);
    let mut probe_reader = put_probe(&mut out, &spec);
    replies.write(&out).await?;
    let restored = loop {
        let payload = replies.next().await?;
        match reader.on_packet(&payload) {
            Ok(RestoreStep::More) => {}
            Ok(RestoreStep::Done(restored)) => break restored,
            Err(error) => return Err(OpenError::State(error.to_string())),
        }
    };
    for refused in &restored.refused {
        tracing::info!(%refused, "a prepared statement can't be made again: running it says so");
    }
    let probe = read_probe(&mut replies, &mut probe_reader)
        .await
        .map_err(state)?;
    verify(snapshot, fresh, &probe, &restored).map_err(differs)?;
    Ok(Some(*restored))
}

/// What a connection is expected to show on which this state was restored.
fn expected(snapshot: &Snapshot, grammar: Grammar) -> (Held, Side) {
    let held = Held {
        texts: snapshot.state().texts.to_vec(),
        // How often a restore prepares or creates is nobody's business.
        text_prepares: u64::MAX,
        creates: u64::MAX,
        ..Held::fresh(grammar)
    };
    let side = Side {
        user_variables: snapshot.user_variable_names().map(Into::into).collect(),
        ..Side::default()
    };
    (held, side)
}

/// The server process still takes log-ins: it was not shut down.
pub(super) async fn takes_logins(profile: &Profile<Mysql>, serving: &Serving) -> bool {
    let who = &profile.login.who;
    let login = Login {
        endpoint: &serving.endpoint,
        socket: &profile.cluster.socket,
        request: &who.0,
        credential: Some(&who.1),
        client: profile.client,
        deadline: Instant::now() + Duration::from_secs(2),
    };
    let sql = started_at_sql(profile.cluster.engine.into());
    match exec::connect_and_query(&login, sql).await {
        Ok(outcome) => outcome.scalar().as_deref() == Some(&*serving.started_at),
        // Full, or closed to this user: it runs.
        Err(ExecError::Connect(ConnectError::Server { error, .. })) => error.code != SHUTDOWN,
        Err(_) => false,
    }
}

fn not_arrived(error: ArrivalError) -> OpenError {
    match error.code {
        // Shutting down; killed.
        1053 | 1927 | 3169 => OpenError::Io(io::Error::other(error)),
        _ => OpenError::State(error.to_string()),
    }
}

fn state(failure: ProbeFailure) -> OpenError {
    match failure {
        ProbeFailure::Refused { reason, .. } => OpenError::State(reason),
        ProbeFailure::Broken(error) => OpenError::Io(error),
    }
}
