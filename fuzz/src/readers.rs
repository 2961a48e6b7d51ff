//! The readers of a probe's and a restore's answer, fed with any frames; and a probe that is answered well
//! but for its content, which then is restored and verified.

use bytes::BytesMut;
use slackwater::session::Portable as _;
use slackwater::session::pg::made::Made;
use slackwater::session::pg::probe::{Probe, ProbeReader, ProbeSpec, ProbeStep, put_probe};
use slackwater::session::pg::restore::{put_restore, row_shape, verify};
use slackwater::session::pg::snapshot::Snapshot;
use slackwater::wire::pg::frame::Header;
use std::collections::BTreeSet;

fn reader(previous: Option<&Snapshot>, version: u32) -> ProbeReader {
    let names = ["app.tenant".to_owned()];
    let spec = ProbeSpec {
        custom_names: &names,
        previous,
        login_user: "app",
        server_version_num: version,
    };
    let mut out = BytesMut::new();
    let reader = put_probe(&mut out, &spec);
    assert_framed(&out);
    reader
}

/// What goes to a server is whole frames.
fn assert_framed(mut bytes: &[u8]) {
    while let Some(header) = Header::parse(bytes).expect("a frame") {
        bytes = bytes.get(header.frame_len()..).expect("a whole frame");
    }
    assert!(bytes.is_empty());
}

/// `[tag, length, body...]`; a tag of 0 stands for the one that a well-behaved server would send next.
fn frames(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let [tag, length, behind @ ..] = rest else {
            return None;
        };
        let (body, next) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = next;
        Some((*tag, body))
    })
}

/// Any frames as the answer.
pub fn any(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    if kind % 2 == 0 {
        let mut probe = reader(None, 170_000);
        for (tag, body) in frames(data) {
            match probe.on_frame(tag, body) {
                Ok(ProbeStep::More | ProbeStep::ForClient) => {}
                Ok(ProbeStep::Send(bytes)) => assert_framed(&bytes),
                Ok(ProbeStep::Done(_)) => {
                    assert!(probe.on_frame(b'Z', b"I").is_err(), "over is over");
                    break;
                }
                Err(_) => break,
            }
        }
    } else {
        let (json, data) = data.split_at(data.len().min(usize::from(*kind)));
        let Some(probe) = answered(json, 170_000) else {
            return;
        };
        restore(&probe, data);
    }
}

/// The content of a probe's answer, as a server would frame it.
pub fn content(data: &[u8]) {
    for version in [140_000, 180_000] {
        let Some(probe) = answered(data, version) else {
            continue;
        };
        let old = probe.snapshot.clone();
        assert_eq!(old.fingerprint(), probe.snapshot.fingerprint());
        let _ = (old.is_plain(), old.not_restorable());
        reader(Some(&old), version);
        let fits = verify(&old, &probe, &BTreeSet::new());
        assert!(
            fits.is_ok() || !probe.findings.is_empty() || has_doubles(&old),
            "a state differs from itself: {fits:?}"
        );
        restore(&probe, b"");
    }
}

/// Lists with one name twice, which no server gives.
fn has_doubles(snapshot: &Snapshot) -> bool {
    let state = snapshot.state();
    let settings = state.settings.iter().map(|s| s.name.to_ascii_lowercase());
    let custom = state.custom.iter().map(|c| c.name.to_ascii_lowercase());
    let mut seen = BTreeSet::new();
    let mut statements = BTreeSet::new();
    !settings.chain(custom).all(|name| seen.insert(name))
        || !state.prepared.iter().all(|p| statements.insert(&p.name))
}

fn answered(json: &[u8], version: u32) -> Option<Box<Probe>> {
    let mut reader = reader(None, version);
    let row = |columns: &[&[u8]]| {
        let mut out = u16::try_from(columns.len()).ok()?.to_be_bytes().to_vec();
        for column in columns {
            out.extend(u32::try_from(column.len()).ok()?.to_be_bytes());
            out.extend_from_slice(column);
        }
        Some(out)
    };
    // BEGIN, the jit, its off, the guard, the main statement, COMMIT.
    let rows = [
        None,
        Some(row(&[b"100000"])?),
        Some(row(&[b"x"])?),
        Some(row(&[b"0", b"0", b"0"])?),
        Some(row(&[json])?),
        None,
    ];
    for row in &rows {
        reader.on_frame(b'1', b"").ok()?;
        reader.on_frame(b'2', b"").ok()?;
        if let Some(row) = row {
            reader.on_frame(b'D', row).ok()?;
        }
        reader.on_frame(b'C', b"").ok()?;
        reader.on_frame(b'3', b"").ok()?;
    }
    match reader.on_frame(b'Z', b"I") {
        Ok(ProbeStep::Done(probe)) => Some(probe),
        _ => None,
    }
}

fn restore(probe: &Probe, data: &[u8]) {
    let mut out = BytesMut::new();
    let mut reader = put_restore(&mut out, &probe.snapshot, &BTreeSet::new(), &Made::default(), 170_000);
    assert_framed(&out);
    for (tag, body) in frames(data) {
        row_shape(tag, body);
        if reader.on_frame(tag, body).is_err() {
            break;
        }
    }
}
