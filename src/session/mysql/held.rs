//! What of a session only the wire has shown: what it holds, and what of that is in the way.

use super::grammar::Grammar;
use super::hints::Hint;
use super::machine::Machine;
use super::statements::{Setting, TextStatement};
use crate::session::blocker::BlockerKind;
use bytes::Bytes;
use std::sync::Arc;

/// What of a session only the wire has shown.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Statements of the binary protocol: the client's number, the text, what it was prepared under, parameters.
    pub statements: Vec<(u32, Arc<[u8]>, Setting, u16)>,
    /// The one that was prepared last.
    pub last: Option<u32>,
    /// Statements in text form.
    pub texts: Vec<TextStatement>,
    /// Statements that make the next transaction what it is to be.
    pub characteristics: Bytes,
    /// The client may send several statements in one text.
    pub multi_statements: bool,
    /// PREPAREs in the client's own texts on this server connection.
    pub text_prepares: u64,
    /// Tables that the client's own texts created on this server connection.
    pub creates: u64,
    /// LOCK TABLES is in effect.
    pub tables_locked: bool,
    /// What of this can't be made again.
    pub unkept: Option<(BlockerKind, String)>,
}

impl Held {
    /// What a login holds that has sent nothing.
    pub fn fresh(grammar: Grammar) -> Self {
        Self {
            multi_statements: grammar.multi_statements,
            ..Self::default()
        }
    }
}

impl Machine {
    /// What the wire alone knows to stand in the way, the most telling first.
    pub fn wire_blocker(&self) -> Option<BlockerKind> {
        if self.ambiguous.is_some() {
            Some(BlockerKind::Ambiguous)
        } else if self.is_streaming() {
            Some(BlockerKind::Replication)
        } else if self.file {
            Some(BlockerKind::Copy)
        } else if self.known && self.status.in_transaction() {
            let xa = self.tracked.characteristics.starts_with(b"XA ");
            Some(if xa {
                BlockerKind::Xa
            } else {
                BlockerKind::Transaction
            })
        } else if !self.is_quiet() {
            Some(BlockerKind::Statement)
        } else if self.tracked.tables_locked {
            Some(BlockerKind::TableLock)
        } else if self.statements.has_cursor() {
            Some(BlockerKind::Cursor)
        } else if self.statements.has_long_data() {
            Some(BlockerKind::LongData)
        } else if self.is_unsure() {
            Some(BlockerKind::Statement)
        } else {
            None
        }
    }

    /// What texts may have taken, and neither a probe nor anybody else could show to be gone.
    pub fn sticky_blockers(&self) -> impl Iterator<Item = (BlockerKind, &'static str)> {
        const ALL: [(Hint, BlockerKind, &str); 7] = [
            (
                Hint::USER_LOCK,
                BlockerKind::UserLock,
                "GET_LOCK was called, and nothing on this server shows whether the lock is held",
            ),
            (
                Hint::TEMP_TABLE,
                BlockerKind::TempTable,
                "a temporary table was created, and nothing on this server shows whether it is there",
            ),
            (
                Hint::TEMP_ENGINE,
                BlockerKind::TempTable,
                "a temporary table was created with an engine whose tables nothing shows",
            ),
            (
                Hint::GLOBAL_LOCK,
                BlockerKind::GlobalLock,
                "a global lock was taken, and nothing on this server shows whether it is held",
            ),
            (
                Hint::HANDLER,
                BlockerKind::Handler,
                "HANDLER was used, and nothing on this server shows whether it is open",
            ),
            (
                Hint::USER_VARIABLE,
                BlockerKind::UnnamedState,
                "user variables were used, and nothing on this server shows which there are",
            ),
            (
                Hint::UNREAD,
                BlockerKind::Unknown,
                "a statement was too long to be read, and nothing on this server shows what it took",
            ),
        ];
        let sticky = self.sticky;
        ALL.into_iter()
            .filter(move |(hint, ..)| sticky.has(*hint))
            .map(|(_, kind, why)| (kind, why))
    }

    /// State of the wire that can't be made again, if there is some.
    pub fn unkept(&self) -> Option<(BlockerKind, String)> {
        let changed = |setting: &Setting| {
            if setting.database.is_none() {
                Some("in a database that is not known")
            } else if setting.era != self.tracked.era {
                Some("under another sql_mode or character set")
            } else {
                None
            }
        };
        for (told, statement) in self.statements.iter() {
            let why = if statement.text.is_none() {
                "is longer than 64 KiB"
            } else if statement.types_unknown {
                "has more parameters than are remembered"
            } else if let Some(why) = changed(&statement.setting) {
                return Some((
                    BlockerKind::NotRestorable,
                    format!("prepared statement {told} was prepared {why}"),
                ));
            } else {
                continue;
            };
            return Some((
                BlockerKind::UnnamedState,
                format!("prepared statement {told} {why}"),
            ));
        }
        for statement in self.texts.iter() {
            let name = String::from_utf8_lossy(&statement.name);
            if statement.statement.is_none() {
                let text = format!("the text of prepared statement {name} is not known");
                return Some((BlockerKind::UnnamedState, text));
            }
            if let Some(why) = changed(&statement.setting) {
                let text = format!("prepared statement {name} was prepared {why}");
                return Some((BlockerKind::NotRestorable, text));
            }
        }
        if self.unknown_prepare {
            let text = "a statement was prepared by a text that could not be read";
            return Some((BlockerKind::UnnamedState, text.to_owned()));
        }
        let text = "what was set for the next transaction is too long to be kept";
        self.tracked
            .too_long
            .then(|| (BlockerKind::UnnamedState, text.to_owned()))
    }

    /// What only the wire has shown, for a snapshot.
    pub fn held(&self) -> Held {
        let statements = self.statements.iter().filter_map(|(told, s)| {
            Some((
                told,
                Arc::clone(s.text.as_ref()?),
                s.setting.clone(),
                s.params,
            ))
        });
        Held {
            statements: statements.collect(),
            last: self.statements.last,
            texts: self.texts.iter().cloned().collect(),
            characteristics: self.tracked.characteristics.clone(),
            multi_statements: self.multi_statements,
            text_prepares: self.texts.sent,
            creates: self.creates,
            tables_locked: self.tracked.tables_locked,
            unkept: self.unkept(),
        }
    }
}
