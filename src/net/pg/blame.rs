//! What stands in a session's way, as people are shown it: each blocker with the statement that is taken
//! to have caused it.

use crate::session::Portable;
use crate::session::blocker::{Blocker, BlockerKind};
use crate::session::pg::findings::{Finding, FindingKind};
use crate::session::pg::machine::Machine;
use crate::session::pg::mask::mask;
use crate::session::pg::probe::Probe;
use crate::session::pg::recent::Statement;
use std::time::Instant as StdInstant;
use tokio::time::Instant;

/// Characters of a statement that people are shown.
const STATEMENT_CHARS: usize = 120;

/// What a probe found, as blockers with the statements that they are blamed on.
pub(super) fn blockers(probe: &Probe, machine: &Machine) -> Vec<Blocker> {
    let mut blockers: Vec<Blocker> = probe.findings.iter().map(|f| found(f, machine)).collect();
    if let Some((kind, detail)) = machine.watched.blocker() {
        let words: &[&str] = &["backup", "origin", "load"];
        blockers.push(blame(machine, kind, detail.to_owned(), words));
    }
    if machine.watched.is_unreadable() {
        let detail =
            "a custom setting was set whose name could not be read: name it in custom_settings";
        blockers.push(blame(
            machine,
            BlockerKind::Unknown,
            detail.to_owned(),
            &["set_config"],
        ));
    }
    if machine.unnamed.is_too_large() {
        blockers.push(too_large(machine));
    }
    let unsure = machine.made.not_restorable(&probe.snapshot);
    if let Some(reason) = probe
        .snapshot
        .not_restorable()
        .or(unsure.map(str::to_owned))
    {
        blockers.push(blame(
            machine,
            BlockerKind::NotRestorable,
            reason,
            &["prepare"],
        ));
    }
    blockers
}

fn found(finding: &Finding, machine: &Machine) -> Blocker {
    let (kind, words): (_, &[&str]) = match finding.kind {
        FindingKind::AdvisoryLock => (BlockerKind::AdvisoryLock, &["advisory"]),
        FindingKind::TempTable => (BlockerKind::TempTable, &["temp"]),
        FindingKind::HoldCursor => (BlockerKind::HoldCursor, &["hold", "declare"]),
        FindingKind::Listen => (BlockerKind::Listen, &["listen"]),
        FindingKind::ReplicationSlot => (BlockerKind::ReplicationSlot, &["slot"]),
        FindingKind::Dblink => (BlockerKind::NotRestorable, &["dblink"]),
    };
    let mut blocker = blame(machine, kind, finding.detail.clone(), words);
    if let Some(statement) = &finding.statement {
        blocker.statement.clone_from(statement);
    }
    blocker
}

/// No probe shows it, and it can't be sent again: it was not kept.
fn too_large(machine: &Machine) -> Blocker {
    let detail = "the unnamed prepared statement is larger than 64 KiB";
    blame(
        machine,
        BlockerKind::UnnamedStatement,
        detail.to_owned(),
        &[],
    )
}

/// A probe that failed.
pub(super) fn unknown(machine: &Machine, reason: String) -> Blocker {
    blame(machine, BlockerKind::Unknown, reason, &[])
}

/// A state that could not be put onto a fresh connection.
pub(super) fn not_restorable(machine: &Machine, reason: String, since: StdInstant) -> Blocker {
    let mut blocker = blame(machine, BlockerKind::NotRestorable, reason, &[]);
    blocker.since = since;
    blocker
}

/// A replication connection.
pub(super) fn replication(machine: &Machine, detail: String, since: StdInstant) -> Blocker {
    let mut blocker = blame(
        machine,
        BlockerKind::Replication,
        detail,
        &["start_replication"],
    );
    blocker.since = since;
    blocker
}

/// What a replication connection holds besides its stream.
pub(super) fn lasting(machine: &Machine, kind: BlockerKind, detail: &str) -> Blocker {
    let words = &["base_backup", "create_replication_slot"];
    blame(machine, kind, detail.to_owned(), words)
}

fn blame(machine: &Machine, kind: BlockerKind, detail: String, words: &[&str]) -> Blocker {
    let suspect = machine.recent.suspect(words);
    Blocker {
        kind,
        detail,
        statement: suspect.map(shown).unwrap_or_default(),
        since: suspect.map_or_else(|| Instant::now().into_std(), |s| s.at),
    }
}

/// What the wire alone knows.
pub(super) fn wire_blocker(machine: &Machine, now: StdInstant) -> Option<Blocker> {
    let kind = machine.wire_blocker()?;
    let detail = match kind {
        BlockerKind::Ambiguous => machine.why_ambiguous().unwrap_or_default(),
        BlockerKind::Transaction => "a transaction is open",
        BlockerKind::Copy => "COPY is running",
        BlockerKind::UnnamedStatement => return Some(too_large(machine)),
        _ => "a statement is running",
    };
    Some(Blocker {
        kind,
        detail: detail.to_owned(),
        statement: machine.recent.last().map(shown).unwrap_or_default(),
        since: machine.busy_since().unwrap_or(now),
    })
}

fn shown(statement: &Statement) -> String {
    if statement.is_name {
        format!("EXECUTE {}", String::from_utf8_lossy(&statement.text))
    } else {
        mask(&statement.text, STATEMENT_CHARS)
    }
}
