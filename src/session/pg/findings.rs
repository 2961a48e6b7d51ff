//! The answer to a probe: its rows as the server puts them, and the blockers among them in words.

use super::snapshot::Prepared;

/// Objects of one kind that a probe names; of more, only their number is told.
const NAMED_FINDINGS: usize = 20;

/// State that can't be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// What exactly, in words for people.
    pub detail: String,
    /// The statement that made it, where the server knows it (masked).
    pub statement: Option<String>,
    /// Its age, where the server knows it.
    pub age_ms: Option<u64>,
}

/// Kinds of state that a probe finds and a restore can't make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A temporary object of any kind.
    TempTable,
    /// A cursor WITH HOLD.
    HoldCursor,
    /// LISTEN on a channel.
    Listen,
    /// A temporary replication slot.
    ReplicationSlot,
    /// A named dblink connection.
    Dblink,
}

impl FindingKind {
    /// The blocker's kind, as the admin API names it.
    pub const fn blocker(self) -> &'static str {
        match self {
            Self::AdvisoryLock => "advisory_lock",
            Self::TempTable => "temp_table",
            Self::HoldCursor => "hold_cursor",
            Self::Listen => "listen",
            Self::ReplicationSlot => "replication_slot",
            Self::Dblink => "not_restorable",
        }
    }
}

/// The array that the main statement answers, in its order.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Found {
    pub(super) pid: i32,
    pub(super) current_user: Box<str>,
    pub(super) session_user: Box<str>,
    pub(super) role: Box<str>,
    pub(super) started_us: i64,
    pub(super) in_recovery: bool,
    pub(super) settings: Option<Vec<SettingRow>>,
    pub(super) roles: Option<Vec<RoleRow>>,
    pub(super) custom: Option<Vec<(String, Option<String>)>>,
    pub(super) prepared: Option<Vec<PreparedRow>>,
    pub(super) locks: Option<Vec<LockRow>>,
    pub(super) temporary: Option<Vec<Option<String>>>,
    pub(super) cursors: Option<Vec<(String, Option<String>, i64)>>,
    pub(super) channels: Option<Vec<String>>,
    pub(super) slots: Option<Vec<String>>,
    pub(super) dblink: Option<String>,
    pub(super) modules: Option<Vec<String>>,
}

/// Name, value, source, value after RESET.
#[derive(Debug, serde::Deserialize)]
pub(super) struct SettingRow(
    pub(super) String,
    pub(super) Option<String>,
    pub(super) String,
    pub(super) Option<String>,
);

/// Database, role, `name=value` lines.
#[derive(Debug, Hash, serde::Deserialize)]
pub(super) struct RoleRow(
    pub(super) Oid,
    pub(super) Oid,
    pub(super) Option<Vec<String>>,
);

/// Name, text, types of the parameters, made by SQL.
#[derive(Debug, serde::Deserialize)]
pub(super) struct PreparedRow(Box<str>, Box<str>, Option<Vec<Oid>>, bool);

/// Class, object, sub-object, mode.
#[derive(Debug, serde::Deserialize)]
pub(super) struct LockRow(Oid, Oid, i32, String);

/// JSON has OIDs as strings.
#[derive(Debug, Clone, Copy, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Oid(u32);

impl TryFrom<String> for Oid {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl PreparedRow {
    pub(super) fn into_prepared(self) -> Prepared {
        Prepared {
            name: self.0,
            text: self.1,
            types: self.2.into_iter().flatten().map(|oid| oid.0).collect(),
            from_sql: self.3,
        }
    }
}

impl Found {
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let locks = self.locks.iter().flatten().map(LockRow::describe);
        name_some(&mut out, FindingKind::AdvisoryLock, locks);
        let temporary = self.temporary.iter().flatten();
        let temporary = temporary.map(|t| t.clone().unwrap_or_else(|| "temporary object".into()));
        name_some(&mut out, FindingKind::TempTable, temporary);
        for (name, statement, age) in self.cursors.iter().flatten().take(NAMED_FINDINGS) {
            out.push(Finding {
                kind: FindingKind::HoldCursor,
                detail: format!("cursor \"{name}\" WITH HOLD"),
                statement: statement
                    .as_ref()
                    .map(|s| super::hints::mask(s.as_bytes(), 200)),
                age_ms: u64::try_from(*age).ok(),
            });
        }
        let channels = self.channels.iter().flatten();
        name_some(
            &mut out,
            FindingKind::Listen,
            channels.map(|c| format!("LISTEN \"{c}\"")),
        );
        let slots = self.slots.iter().flatten();
        let slots = slots.map(|s| format!("temporary replication slot \"{s}\""));
        name_some(&mut out, FindingKind::ReplicationSlot, slots);
        // <row><dblink_get_connections><element>a</element>...; nothing inside when there is none.
        let links = self
            .dblink
            .iter()
            .flat_map(|xml| xml.split("<element>").skip(1));
        let links = links.filter_map(|part| part.split_once("</element>"));
        let links = links.map(|(name, _)| format!("dblink connection \"{name}\""));
        name_some(&mut out, FindingKind::Dblink, links);
        out
    }
}

impl LockRow {
    fn describe(&self) -> String {
        let Self(Oid(class), Oid(object), kind, mode) = self;
        let shared = if mode == "ShareLock" { "_shared" } else { "" };
        if *kind == 1 {
            let key = (u64::from(*class) << 32 | u64::from(*object)).cast_signed();
            format!("pg_advisory_lock{shared}({key})")
        } else {
            let (a, b) = (class.cast_signed(), object.cast_signed());
            format!("pg_advisory_lock{shared}({a}, {b})")
        }
    }
}

fn name_some(out: &mut Vec<Finding>, kind: FindingKind, details: impl Iterator<Item = String>) {
    let mut details = details.peekable();
    let finding = |detail| Finding {
        kind,
        detail,
        statement: None,
        age_ms: None,
    };
    out.extend(details.by_ref().take(NAMED_FINDINGS).map(finding));
    if details.peek().is_some() {
        out.push(finding(format!("and {} more", details.count())));
    }
}
