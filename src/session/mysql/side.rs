//! MySQL: what an ordinary user can't see of its own session, the service account sees of all of them.

use super::findings::{Finding, name_some};
use crate::session::blocker::BlockerKind;
use std::collections::{BTreeMap, BTreeSet};

/// Longest text of a prepared statement that performance_schema keeps whole.
const TEXT_MAX: usize = 1000;

/// What the service connection saw of one server connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Side {
    /// What can't be carried.
    pub findings: Vec<Finding>,
    /// Names of user variables.
    pub user_variables: BTreeSet<Box<str>>,
    /// Statements in text form: the text, where it is told whole.
    pub texts: BTreeMap<Box<str>, Option<Box<[u8]>>>,
}

/// The question about these server connections (real numbers): five columns of text.
pub fn side_query(connections: &[u64]) -> String {
    let mut list = String::new();
    for connection in connections {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&connection.to_string());
    }
    if list.is_empty() {
        list.push('0');
    }
    let mine = |table: &str, key: &str| {
        format!(
            "FROM performance_schema.threads t JOIN performance_schema.{table} x ON x.{key}=t.thread_id WHERE t.processlist_id IN ({list})"
        )
    };
    // The connection's number in hexadecimal digits is part of the name.
    let temporary = format!(
        "SELECT t.processlist_id,'temporary',HEX(i.name),NULL,NULL FROM performance_schema.threads t JOIN information_schema.innodb_temp_table_info i ON SUBSTRING_INDEX(SUBSTRING_INDEX(i.name,'_',2),'_',-1)=LOWER(HEX(t.processlist_id)) WHERE t.processlist_id IN ({list})"
    );
    format!(
        "SELECT t.processlist_id,'lock',x.object_type,HEX(CONCAT_WS('.',x.object_schema,x.object_name)),x.lock_type {} AND x.lock_status='GRANTED' AND x.lock_duration='EXPLICIT' \
         UNION ALL SELECT t.processlist_id,'variable',HEX(x.variable_name),NULL,NULL {} \
         UNION ALL SELECT t.processlist_id,'prepared',HEX(x.statement_name),HEX(x.sql_text),NULL {} AND x.statement_name IS NOT NULL \
         UNION ALL {temporary} \
         UNION ALL SELECT t.processlist_id,'seen',@@performance_schema,NULL,NULL FROM performance_schema.threads t WHERE t.processlist_id IN ({list})",
        mine("metadata_locks", "owner_thread_id"),
        mine("user_variables_by_thread", "thread_id"),
        mine("prepared_statements_instances", "owner_thread_id"),
    )
}

/// Reads the answer, by server connection. One that is not in it was not seen: performance_schema is off, or
/// the connection is gone.
pub fn read_side<V: AsRef<[u8]>>(rows: &[Vec<Option<V>>]) -> BTreeMap<u64, Side> {
    let mut seen = BTreeMap::<u64, (bool, Side)>::new();
    let mut details = BTreeMap::<(u64, BlockerKind), Vec<String>>::new();
    for row in rows {
        let text = |at: usize| {
            let value = row.get(at)?.as_ref()?;
            std::str::from_utf8(value.as_ref()).ok()
        };
        let Some(id) = text(0).and_then(|t| t.parse::<u64>().ok()) else {
            continue;
        };
        let (known, side) = seen.entry(id).or_default();
        let first = text(2).unwrap_or_default();
        match text(1) {
            Some("seen") => *known = true,
            Some("variable") => {
                side.user_variables
                    .extend(unhex_text(first).map(Into::into));
            }
            Some("prepared") => {
                let sql = text(3).and_then(unhex).filter(|sql| sql.len() < TEXT_MAX);
                if let Some(name) = unhex_text(first) {
                    side.texts
                        .insert(name.to_lowercase().into(), sql.map(Into::into));
                }
            }
            Some("lock") => {
                let name = text(3).and_then(unhex_text).unwrap_or_default();
                let (kind, detail) = lock(first, &name, text(4).unwrap_or_default());
                details.entry((id, kind)).or_default().push(detail);
            }
            Some("temporary") => {
                let name = unhex_text(first).unwrap_or_default();
                let detail = format!("temporary table (InnoDB's {name})");
                details
                    .entry((id, BlockerKind::TempTable))
                    .or_default()
                    .push(detail);
            }
            _ => {}
        }
    }
    for ((id, kind), details) in details {
        if let Some((_, side)) = seen.get_mut(&id) {
            name_some(&mut side.findings, kind, details);
        }
    }
    seen.into_iter()
        .filter_map(|(id, (known, side))| known.then_some((id, side)))
        .collect()
}

fn lock(object: &str, name: &str, mode: &str) -> (BlockerKind, String) {
    match object {
        "USER LEVEL LOCK" => (BlockerKind::UserLock, format!("GET_LOCK('{name}')")),
        "LOCKING SERVICE" => (
            BlockerKind::UserLock,
            format!("lock {name} of the locking service"),
        ),
        "TABLE" => (BlockerKind::Handler, format!("HANDLER on {name}")),
        _ => (
            BlockerKind::GlobalLock,
            format!("{} lock ({mode})", object.to_lowercase()),
        ),
    }
}

/// Reads hexadecimal digits.
pub(super) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.last()?)?))
        .collect()
}

pub(super) fn unhex_text(digits: &str) -> Option<String> {
    String::from_utf8(unhex(digits)?).ok()
}

/// Writes hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(out, "{byte:02X}");
    }
    out
}
