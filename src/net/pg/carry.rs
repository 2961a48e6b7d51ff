//! Puts a session's state onto a server connection that was just logged in.

use super::super::state::{OpenError, ProbeFailure};
use super::ahead;
use super::engine::{Greeting, Seen};
use super::front::Pg;
use super::state::{check, open_error, read_probe, spec};

type Probed = super::super::state::Probed<Pg>;
type Profile = super::super::state::Profile<Pg>;

use crate::backend::frames::Frames;
use crate::session::pg::absent::PARAMETERS_MAX;
use crate::session::pg::made::Made;
use crate::session::pg::mend::{self, CHANGED_ROWS};
use crate::session::pg::probe::{Probe, put_probe, put_statement};
use crate::session::pg::restore::{RestoreStep, put_restore, verify};
use crate::session::pg::snapshot::{Prepared, Snapshot};
use crate::wire::pg::backend::data_row;
use crate::wire::pg::frame::{HEADER_LEN, Header, Reader, put};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// After so many statements that are refused those behind them are not tried: each costs a whole restore.
const REFUSED_MAX: usize = 3;

/// `text[]` (`pg_type.dat`).
const TEXT_ARRAY: u32 = 1009;

/// Puts a session's state onto a fresh connection, and verifies it. What has changed on the server since is
/// kept from the session: it keeps its settings, and statements that would answer otherwise are refused.
pub(super) async fn restore(
    frames: &mut Frames<'_>,
    profile: &Profile,
    snapshot: &Snapshot,
    seen: Seen,
    greeting: &mut Greeting,
) -> Result<Probed, OpenError> {
    let params = &mut greeting.params;
    if let Some(checked) = greeting.checked.take()
        && snapshot.is_checkable()
    {
        let mut for_client = BytesMut::new();
        let still = ahead::still(frames, *checked, profile, snapshot, &mut for_client).await?;
        if let Some(probe) = still
            && is_the_same(snapshot, &probe)
        {
            restore_unnamed(frames, seen.unnamed).await?;
            return Ok(Probed { probe, for_client });
        }
        take_parameters(&for_client, params);
    }
    if snapshot.is_checkable() {
        match check(frames, profile, Some(snapshot)).await {
            Ok(probed) if is_the_same(snapshot, &probed.probe) => {
                restore_unnamed(frames, seen.unnamed).await?;
                return Ok(probed);
            }
            // A role's or database's setting was changed: the session keeps its value.
            Ok(Probed { for_client, .. }) | Err(ProbeFailure::Refused { for_client, .. }) => {
                take_parameters(&for_client, params);
            }
            Err(ProbeFailure::Broken(error)) => return Err(OpenError::Io(error)),
        }
    }
    put_all(frames, profile, snapshot, seen, greeting).await
}

/// Puts all of it onto the connection, again without what turned out not to be possible.
async fn put_all(
    frames: &mut Frames<'_>,
    profile: &Profile,
    snapshot: &Snapshot,
    seen: Seen,
    greeting: &mut Greeting,
) -> Result<Probed, OpenError> {
    let params = &mut greeting.params;
    let mut wanted = snapshot.clone();
    let mut made = BTreeSet::new();
    let mut left = BTreeSet::new();
    let (mut absent, mut lacks) = (Vec::new(), BTreeSet::new());
    loop {
        let probed = match put_on(
            frames,
            profile,
            &wanted,
            (&made, &lacks),
            &seen.made,
            params,
        )
        .await?
        {
            PutOn::Done(probed, shapes) => {
                let changed = seen.told.changed(&wanted, &shapes);
                for name in &changed {
                    wanted = wanted.refusing(name, CHANGED_ROWS);
                }
                changed.is_empty().then_some(probed)
            }
            PutOn::Forbidden(why) => {
                let given = mend::given(snapshot, &wanted);
                // In a failed transaction nothing can be asked.
                start_over(frames, params).await?;
                let forbidden = out_of_reach(frames, &given, profile.login.version()).await?;
                if forbidden.is_empty() {
                    return Err(OpenError::State(why));
                }
                wanted = wanted.without_settings(&forbidden);
                left.extend(forbidden);
                None
            }
            PutOn::Refused(name, code, message) => {
                let behind = lacks.len() >= REFUSED_MAX;
                let waiting = lacking(&wanted, &name, &seen.made, behind);
                if waiting.is_empty() {
                    wanted = wanted.refusing(&name, (&code, &message));
                } else {
                    tracing::debug!(%name, %message, "a prepared statement waits until it is used");
                    lacks.extend(waiting.iter().map(|p| p.name.clone()));
                    absent.extend(waiting);
                }
                None
            }
        };
        let Some(probed) = probed else {
            start_over(frames, params).await?;
            made.clear();
            continue;
        };
        verify(&wanted, &probed.probe, &lacks)
            .map_err(|error| OpenError::State(error.to_string()))?;
        let mut late = mend::late(&wanted, &probed.probe);
        late.retain(|name| !left.contains(name));
        if late.is_empty() {
            greeting.absent = absent;
            restore_unnamed(frames, seen.unnamed).await?;
            return Ok(probed);
        }
        wanted = wanted.keeping(&late, &server_values(profile, &late).await?);
        let prepared = wanted.state().prepared.iter();
        made = prepared.map(|p| p.name.clone()).collect();
    }
}

/// A fresh login holds what the session does, and nothing that the session has not.
fn is_the_same(snapshot: &Snapshot, fresh: &Probe) -> bool {
    *fresh.snapshot.state() == *snapshot.state() && mend::late(snapshot, fresh).is_empty()
}

/// How putting a session's state onto a connection ended.
enum PutOn {
    /// It is there, with the shapes of its statements' rows.
    Done(Probed, BTreeMap<Box<str>, u64>),
    /// This statement can't be made: code and message.
    Refused(Box<str>, String, String),
    /// Some of its settings are for superusers only.
    Forbidden(String),
}

/// A statement of the protocol that was refused can be made when the client names it; so can those behind it.
/// (Not one that means something else by then.)
fn lacking(snapshot: &Snapshot, name: &str, made: &Made, and_behind: bool) -> Vec<Prepared> {
    let refused = |p: &&Prepared| &*p.name == name || and_behind && &*p.name > name;
    let may_wait = |p: &&Prepared| {
        !p.from_sql
            && p.types.len() <= PARAMETERS_MAX
            && snapshot.is_original(&p.name)
            && made.under(&p.name).is_none()
    };
    let prepared = &snapshot.state().prepared;
    if !prepared.iter().any(|p| &*p.name == name && may_wait(&p)) {
        return Vec::new();
    }
    prepared
        .iter()
        .filter(refused)
        .filter(may_wait)
        .cloned()
        .collect()
}

/// `made`: statements that the connection has already; `lacks`: statements that it will not have.
async fn put_on(
    frames: &mut Frames<'_>,
    profile: &Profile,
    snapshot: &Snapshot,
    (made, lacks): (&BTreeSet<Box<str>>, &BTreeSet<Box<str>>),
    under: &Made,
    params: &mut Vec<(Bytes, Bytes)>,
) -> Result<PutOn, OpenError> {
    let mut out = BytesMut::new();
    let mut reader = put_restore(
        &mut out,
        snapshot,
        &(made | lacks),
        under,
        profile.login.version(),
    );
    let names = profile.cluster.names(&profile.database);
    let mut probe_reader = put_probe(&mut out, &spec(profile, &names, Some(snapshot)));
    frames.send(&out).await?;
    let shapes = loop {
        let message = frames.next().await?;
        match reader.on_frame(message.tag, &message.body) {
            Ok(RestoreStep::More) => {}
            Ok(RestoreStep::ParameterStatus) => note_parameter(params, &message.body),
            Ok(RestoreStep::Done(restored)) => break restored.shapes,
            Err(error) => match error.statement.clone() {
                _ if error.is_late() => return Err(OpenError::Timeout),
                Some(name)
                    if error.is_locked() && lacking(snapshot, &name, under, false).is_empty() =>
                {
                    return Err(OpenError::Timeout);
                }
                // Unless it was refused its refusal as well.
                Some(name) if snapshot.is_original(&name) => {
                    skip_both(frames, params).await?;
                    return Ok(PutOn::Refused(name, error.sqlstate, error.message));
                }
                None if error.is_forbidden() => {
                    skip_both(frames, params).await?;
                    return Ok(PutOn::Forbidden(error.to_string()));
                }
                _ => return Err(OpenError::State(error.to_string())),
            },
        }
    };
    let probed = read_probe(frames, &mut probe_reader)
        .await
        .map_err(open_error)?;
    Ok(PutOn::Done(probed, shapes))
}

/// The restore's end, then the probe's.
async fn skip_both(frames: &mut Frames<'_>, params: &mut Vec<(Bytes, Bytes)>) -> io::Result<()> {
    for _ in 0..2 {
        loop {
            let message = frames.next().await?;
            match message.tag {
                b'S' => note_parameter(params, &message.body),
                b'Z' => break,
                _ => {}
            }
        }
    }
    Ok(())
}

/// Which of these settings the login may not set.
async fn out_of_reach(
    frames: &mut Frames<'_>,
    names: &[Box<str>],
    server_version_num: u32,
) -> io::Result<Vec<Box<str>>> {
    let mut out = BytesMut::new();
    let list = mend::name_list(names);
    let sql = mend::out_of_reach(server_version_num);
    put_statement(&mut out, "", sql, &[TEXT_ARRAY], &[list.as_bytes()], 0);
    put(&mut out, b'S', |_| {});
    frames.send(&out).await?;
    let mut found = Vec::new();
    loop {
        let message = frames.next().await?;
        match message.tag {
            b'D' => {
                let row = data_row(&message.body).unwrap_or_default();
                let name = row.into_iter().next().flatten();
                found.extend(name.map(|name| String::from_utf8_lossy(name).into()));
            }
            b'Z' => return Ok(found),
            _ => {}
        }
    }
}

/// Makes a fresh connection of one that a restore was tried on. Whatever it left open is rolled back.
async fn start_over(frames: &mut Frames<'_>, params: &mut Vec<(Bytes, Bytes)>) -> io::Result<()> {
    let mut out = BytesMut::new();
    for sql in [&b"ROLLBACK\0"[..], b"DISCARD ALL\0"] {
        put(&mut out, b'Q', |out| out.put_slice(sql));
    }
    frames.send(&out).await?;
    let mut fine = true;
    for _ in 0..2 {
        loop {
            let message = frames.next().await?;
            if message.tag == b'S' {
                note_parameter(params, &message.body);
            }
            fine &= message.tag != b'E';
            if message.tag == b'Z' {
                break;
            }
        }
    }
    if fine {
        Ok(())
    } else {
        Err(io::Error::other("a connection could not be made fresh"))
    }
}

/// What the server gives sessions that no role or database has a word for.
async fn server_values(
    profile: &Profile,
    names: &[Box<str>],
) -> Result<Vec<(String, String)>, OpenError> {
    let cluster = &profile.cluster;
    let list = mend::name_list(names);
    let rows = cluster
        .service
        .query(&cluster.gate, mend::SERVER_VALUES, &[&list])
        .await;
    let rows = rows.map_err(|error| match error {
        error if error.may_pass() => OpenError::Timeout,
        error => OpenError::State(format!(
            "settings that a role was given can't be told from the session's: {error}"
        )),
    })?;
    let pair = |row: Vec<Option<String>>| {
        let mut row = row.into_iter().flatten();
        Some((row.next()?, row.next()?))
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}

/// Sends the unnamed statement's Parse again. That it fails now is what its next Bind would say as well.
async fn restore_unnamed(frames: &mut Frames<'_>, unnamed: Option<Vec<u8>>) -> io::Result<()> {
    let Some(body) = unnamed else { return Ok(()) };
    let mut out = BytesMut::new();
    put(&mut out, b'P', |out| out.put_slice(&body));
    put(&mut out, b'S', |_| {});
    frames.send(&out).await?;
    while frames.next().await?.tag != b'Z' {}
    Ok(())
}

/// Takes what is ParameterStatus of these frames, and returns the others.
pub(super) fn take_parameters(frames: &[u8], params: &mut Vec<(Bytes, Bytes)>) -> BytesMut {
    let mut others = BytesMut::new();
    let mut rest = frames;
    while let Ok(Some(header)) = Header::parse(rest) {
        let (frame, behind) = rest.split_at(header.frame_len().min(rest.len()));
        match frame.get(HEADER_LEN..) {
            Some(body) if header.tag == b'S' => {
                note_parameter(params, &Bytes::copy_from_slice(body));
            }
            _ => others.put_slice(frame),
        }
        rest = behind;
    }
    others
}

fn note_parameter(params: &mut Vec<(Bytes, Bytes)>, body: &Bytes) {
    let mut reader = Reader::new(body);
    let (Ok(name), Ok(value)) = (reader.cstr(), reader.cstr()) else {
        return;
    };
    let value = body.slice_ref(value);
    match params.iter_mut().find(|(n, _)| **n == *name) {
        Some(known) => known.1 = value,
        None => params.push((body.slice_ref(name), value)),
    }
}
