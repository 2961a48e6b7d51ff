//! A log-in ahead: what it holds is looked at while nobody waits, and once its server serves it is asked only whether
//! that is still so.

use super::super::state::{OpenError, ProbeFailure, Profile, Ready};
use super::carry::take_parameters;
use super::front::Pg;
use super::state::{check, read_ahead, spec};
use crate::backend::frames::Frames;
use crate::session::pg::arrival::{ARRIVAL_SQL, Arrival};
use crate::session::pg::probe::{Probe, asked_names};
use crate::session::pg::snapshot::Snapshot;
use crate::wire::pg::backend::data_row;
use crate::wire::pg::frame::{put, put_cstr};
use bytes::{BufMut, BytesMut};
use std::collections::BTreeSet;
use std::io;
use tokio::time::Instant;

/// What was found of a log-in ahead.
#[derive(Debug)]
pub(super) struct Checked {
    digest: Box<str>,
    /// Names of custom settings that were asked for.
    asked: BTreeSet<Box<str>>,
    probe: Probe,
}

/// Looks at a log-in ahead. Where the server refuses that, it is looked at when the session comes.
pub(super) async fn look(
    ready: &mut Ready<Pg>,
    profile: &Profile<Pg>,
    deadline: Instant,
) -> Result<(), OpenError> {
    let Ready { link, greeting, .. } = ready;
    let stream = link.stream().ok_or(OpenError::Timeout)?;
    let mut frames = Frames::new(stream);
    let work = async {
        let mut for_client = BytesMut::new();
        // Before the check: what changes behind this shows when it is asked again.
        let arrival = arrive(&mut frames, &mut for_client).await?;
        let names = profile.cluster.names(&profile.database);
        let (asked, _) = asked_names(&spec(profile, &names, None));
        let probe = match check(&mut frames, profile, None).await {
            Ok(probed) => {
                for_client.unsplit(probed.for_client);
                Some(probed.probe)
            }
            Err(ProbeFailure::Refused {
                for_client: more, ..
            }) => {
                for_client.unsplit(more);
                None
            }
            Err(ProbeFailure::Broken(error)) => return Err(error),
        };
        read_ahead(&mut frames, &mut for_client).await?;
        let checked = arrival.zip(probe).map(|(arrival, probe)| Checked {
            digest: arrival.digest,
            asked,
            probe,
        });
        Ok((checked, for_client))
    };
    let (checked, for_client) = tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| OpenError::Timeout)??;
    take_parameters(&for_client, &mut greeting.params);
    greeting.checked = checked.map(Box::new);
    Ok(())
}

/// What was found, if it holds now and tells all that this snapshot needs.
pub(super) async fn still(
    frames: &mut Frames<'_>,
    checked: Checked,
    profile: &Profile<Pg>,
    snapshot: &Snapshot,
    for_client: &mut BytesMut,
) -> io::Result<Option<Probe>> {
    let names = profile.cluster.names(&profile.database);
    let (needed, _) = asked_names(&spec(profile, &names, Some(snapshot)));
    if !needed.is_subset(&checked.asked) {
        return Ok(None);
    }
    let arrival = arrive(frames, for_client).await?;
    Ok(arrival
        .filter(|arrival| arrival.digest == checked.digest)
        .map(|arrival| Probe {
            server: arrival.server,
            ..checked.probe
        }))
}

/// `None`: the server does not tell.
async fn arrive(frames: &mut Frames<'_>, for_client: &mut BytesMut) -> io::Result<Option<Arrival>> {
    let mut out = BytesMut::new();
    put(&mut out, b'Q', |out| put_cstr(out, ARRIVAL_SQL.as_bytes()));
    frames.send(&out).await?;
    let mut arrival = None;
    loop {
        let message = frames.next().await?;
        match message.tag {
            b'D' => {
                let row = data_row(&message.body).unwrap_or_default();
                arrival = Arrival::parse(&row);
            }
            b'E' => arrival = None,
            b'Z' => return Ok(arrival),
            b'A' | b'S' => put(for_client, message.tag, |out| out.put_slice(&message.body)),
            _ => {}
        }
    }
}
