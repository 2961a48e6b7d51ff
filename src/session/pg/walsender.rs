//! A replication connection: what would be lost with it that its client does not get back by connecting
//! again. A stream is none of that: its client asks for it again from where it was.
//!
//! Commands are read as the server's own grammar does it (`repl_gram.y`): key words of any case, names in
//! double quotes. (PostgreSQL: streaming replication protocol,
//! <https://www.postgresql.org/docs/current/protocol-replication.html>.)

use super::lexical::{is, is_word, skip_space, word_at};
use crate::session::blocker::BlockerKind;

/// What one replication connection's commands left behind.
#[derive(Debug, Default)]
pub struct Walsender {
    temporary_slot: bool,
    last: Last,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Other,
    /// Lasts as long as the command runs.
    BaseBackup,
    /// The snapshot of a new slot is there for others until the next command.
    Exported,
}

impl Walsender {
    /// A Query passed.
    pub(super) fn on_command(&mut self, text: &[u8]) {
        let mut words = Words { text, at: 0 };
        self.last = Last::Other;
        match words.next() {
            Some(word) if is(word, b"base_backup") => self.last = Last::BaseBackup,
            Some(word) if is(word, b"create_replication_slot") => self.slot(words),
            // SQL, on a connection to a database: an argument makes it temporary.
            Some(word) if is(word, b"select") => {
                let makes = words.any(makes_slot);
                self.temporary_slot |= makes && words.any(|w| is(w, b"true") || is(w, b"t"));
            }
            _ => {}
        }
    }

    fn slot(&mut self, words: Words<'_>) {
        let (mut logical, mut kept) = (false, false);
        let mut before: &[u8] = b"";
        // The first is the name, whatever it reads like.
        for word in words.skip(1) {
            self.temporary_slot |= is(word, b"temporary");
            logical |= is(word, b"logical");
            kept |= is(word, b"noexport_snapshot") || is(word, b"use_snapshot");
            kept |= is(before, b"snapshot") && (is(word, b"use") || is(word, b"nothing"));
            before = word;
        }
        if logical && !kept {
            self.last = Last::Exported;
        }
    }

    /// What its client would miss for good; `running`: a command is.
    pub fn blocker(&self, running: bool) -> Option<(BlockerKind, &'static str)> {
        if running && self.last == Last::BaseBackup {
            Some((BlockerKind::Backup, "a base backup is being sent"))
        } else if self.temporary_slot {
            Some((
                BlockerKind::ReplicationSlot,
                "a temporary replication slot was made on this connection",
            ))
        } else if self.last == Last::Exported {
            Some((
                BlockerKind::Transaction,
                "the snapshot of a new replication slot is exported",
            ))
        } else {
            None
        }
    }
}

/// Functions that make a slot which can be temporary.
fn makes_slot(word: &[u8]) -> bool {
    const FUNCTIONS: [&[u8]; 4] = [
        b"pg_create_logical_replication_slot",
        b"pg_create_physical_replication_slot",
        b"pg_copy_logical_replication_slot",
        b"pg_copy_physical_replication_slot",
    ];
    FUNCTIONS.iter().any(|function| is(word, function))
}

/// Words, and what stands in quotes, of a command.
struct Words<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            self.at = skip_space(self.text, self.at);
            let byte = *self.text.get(self.at)?;
            if is_word(byte) {
                let word = word_at(self.text, self.at);
                self.at += word.len();
                return Some(word);
            }
            self.at += 1;
            if matches!(byte, b'"' | b'\'') {
                let rest = self.text.get(self.at..).unwrap_or_default();
                let length = rest.iter().position(|b| *b == byte).unwrap_or(rest.len());
                self.at += length + 1;
                return Some(rest.get(..length).unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(commands: &[&str]) -> (Option<BlockerKind>, Option<BlockerKind>) {
        let mut walsender = Walsender::default();
        for command in commands {
            walsender.on_command(command.as_bytes());
        }
        let kind = |running| walsender.blocker(running).map(|(kind, _)| kind);
        (kind(true), kind(false))
    }

    #[test]
    fn what_is_lost_with_the_connection_is_known() {
        use BlockerKind::{Backup, ReplicationSlot, Transaction};
        let same = |kind| (Some(kind), Some(kind));
        for (commands, expected) in [
            (&["IDENTIFY_SYSTEM"][..], (None, None)),
            (
                &["START_REPLICATION SLOT s PHYSICAL 0/1 TIMELINE 1"],
                (None, None),
            ),
            (&["BASE_BACKUP ( LABEL 'temporary' )"], (Some(Backup), None)),
            (
                &["base_backup LABEL 'x'", "SHOW wal_segment_size"],
                (None, None),
            ),
            (
                &["CREATE_REPLICATION_SLOT s PHYSICAL RESERVE_WAL"],
                (None, None),
            ),
            (
                &["create_replication_slot \"s\" temporary physical ( reserve_wal )"],
                same(ReplicationSlot),
            ),
            (
                &["SELECT pg_create_logical_replication_slot('s', 'pgoutput', true)"],
                same(ReplicationSlot),
            ),
            (
                &["SELECT * FROM pg_catalog.pg_create_physical_replication_slot('s', false)"],
                (None, None),
            ),
            (
                &[
                    "CREATE_REPLICATION_SLOT s TEMPORARY PHYSICAL",
                    "IDENTIFY_SYSTEM",
                ],
                same(ReplicationSlot),
            ),
            (
                &["CREATE_REPLICATION_SLOT temporary PHYSICAL"],
                (None, None),
            ),
            (
                &["CREATE_REPLICATION_SLOT \"temporary logical\" PHYSICAL"],
                (None, None),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL test_decoding"],
                same(Transaction),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL pgoutput EXPORT_SNAPSHOT"],
                same(Transaction),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'export')"],
                same(Transaction),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'use')"],
                (None, None),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'nothing')"],
                (None, None),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL pgoutput NOEXPORT_SNAPSHOT"],
                (None, None),
            ),
            (
                &["CREATE_REPLICATION_SLOT s LOGICAL pgoutput", "SELECT 1"],
                (None, None),
            ),
        ] {
            assert_eq!(after(commands), expected, "{commands:?}");
        }
    }
}
