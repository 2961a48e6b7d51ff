//! Blockers that a probe found, and detections that a server lacks.

use super::hints::Hint;
use crate::session::blocker::BlockerKind;

/// Objects of one kind that a probe names; of more, only their number is told.
const NAMED_FINDINGS: usize = 20;

/// State that can't be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: BlockerKind,
    /// What exactly, in words for people.
    pub detail: String,
}

impl Finding {
    /// Words that a statement has which may have made it.
    pub const fn words(&self) -> &'static [&'static str] {
        match self.kind {
            BlockerKind::UserLock => &["lock"],
            BlockerKind::TableLock => &["lock table"],
            BlockerKind::GlobalLock => &["flush", "backup", "instance"],
            BlockerKind::Handler => &["handler"],
            BlockerKind::TempTable => &["temporary"],
            BlockerKind::Xa => &["xa "],
            BlockerKind::UnnamedState => &["prepare", "@"],
            _ => &[],
        }
    }
}

pub(super) fn name_some(
    out: &mut Vec<Finding>,
    kind: BlockerKind,
    details: impl IntoIterator<Item = String>,
) {
    let mut details = details.into_iter().peekable();
    let finding = |detail| Finding { kind, detail };
    out.extend(details.by_ref().take(NAMED_FINDINGS).map(finding));
    if details.peek().is_some() {
        out.push(finding(format!("and {} more", details.count())));
    }
}

/// A way to see state that a server may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Detection {
    /// MariaDB: the plugin `metadata_lock_info`.
    LockInfo,
    /// MariaDB: temporary tables in `information_schema.tables` (from 11.2 on).
    TemporaryTables,
    /// MariaDB: `information_schema.user_variables`.
    UserVariables,
    /// MySQL: the service connection, which reads `performance_schema`.
    Service,
}

impl Detection {
    /// What people are told to be missing.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LockInfo => "plugin metadata_lock_info (INSTALL SONAME 'metadata_lock_info')",
            Self::TemporaryTables => "a list of temporary tables (MariaDB 11.2 and later have it)",
            Self::UserVariables => "information_schema.user_variables",
            Self::Service => "a service connection that reads performance_schema and has PROCESS",
        }
    }
}

/// What a probe that has all of a server's detections but these proves to be told in full.
pub(super) fn proven(missing: &[Detection]) -> Hint {
    let mut proven = Hint(
        Hint::USER_LOCK.0
            | Hint::GLOBAL_LOCK.0
            | Hint::HANDLER.0
            | Hint::USER_VARIABLE.0
            | Hint::TEMP_TABLE.0
            | Hint::UNREAD.0,
    );
    for detection in missing {
        let lost = match detection {
            Detection::LockInfo => Hint::USER_LOCK.0 | Hint::GLOBAL_LOCK.0 | Hint::HANDLER.0,
            // Counters tell that there never was one.
            Detection::TemporaryTables => 0,
            Detection::UserVariables => Hint::USER_VARIABLE.0,
            Detection::Service => {
                Hint::USER_LOCK.0
                    | Hint::GLOBAL_LOCK.0
                    | Hint::HANDLER.0
                    | Hint::USER_VARIABLE.0
                    | Hint::TEMP_TABLE.0
            }
        };
        if lost != 0 {
            proven.0 &= !(lost | Hint::UNREAD.0);
        }
    }
    proven
}
