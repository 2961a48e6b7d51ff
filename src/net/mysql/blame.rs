//! What stands in a session's way, as people are shown it: each blocker with the statement that is taken to have
//! caused it.

use crate::session::blocker::{Blocker, BlockerKind};
use crate::session::mysql::findings::Finding;
use crate::session::mysql::machine::Machine;
use crate::session::mysql::mask::mask;
use crate::session::recent::Statement;
use std::time::Instant as StdInstant;
use tokio::time::Instant;

/// Characters of a statement that people are shown.
const STATEMENT_CHARS: usize = 120;

/// What a probe found and what only the wire knows, as blockers with the statements that they are blamed on.
pub(super) fn blockers(findings: &[Finding], machine: &Machine) -> Vec<Blocker> {
    let mut blockers: Vec<Blocker> = findings
        .iter()
        .map(|f| blame(machine, f.kind, f.detail.clone(), f.words()))
        .collect();
    for (kind, detail) in machine.sticky_blockers() {
        if !blockers.iter().any(|b| b.kind == kind) {
            blockers.push(blame(machine, kind, detail.to_owned(), &[]));
        }
    }
    blockers
}

/// A blocker that began when the suspect statement was sent.
pub(super) fn blame(
    machine: &Machine,
    kind: BlockerKind,
    detail: String,
    words: &[&str],
) -> Blocker {
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
        BlockerKind::Replication => "a replication stream",
        BlockerKind::Copy => "LOAD DATA LOCAL is running",
        BlockerKind::Transaction => "a transaction is open",
        BlockerKind::Xa => "an XA transaction is open",
        BlockerKind::TableLock => "LOCK TABLES is in effect",
        BlockerKind::Cursor => "a cursor of a prepared statement is open",
        BlockerKind::LongData => "a prepared statement was sent data that it has not been run with",
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
    mask(&statement.text, STATEMENT_CHARS)
}
