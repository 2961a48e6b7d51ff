//! What a server has answered to a probe so far.

use super::findings::Detection;
use super::grammar::Family;
use super::order::is_carried;
use super::probe::{Ask, VALUES_AT_ONCE};
use super::probe_sql::{TRACKING, is_apart};
use super::side::{unhex, unhex_text};
use super::snapshot::{UserValue, Value, Variables};
use super::values::{user_value, variable};
use crate::wire::mysql::reply::Status;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) ok: Box<[u8]>,
    pub(super) status: Status,
    pub(super) facts: Vec<Option<Box<str>>>,
    /// Those that are carried.
    pub(super) variables: Arc<Variables>,
    /// What the guards of other questions hide, and what is not carried.
    apart: Vec<(Box<str>, Value)>,
    /// How many there were, with those that are not.
    pub(super) listed: u64,
    /// Largest packet that the server takes.
    pub(super) max_packet: Option<u64>,
    pub(super) digest: Option<Box<str>>,
    /// The question for it, if it was made now.
    pub(super) digest_sql: Option<Box<str>>,
    pub(super) locks: Vec<(String, String, String)>,
    pub(super) counters: BTreeMap<String, u64>,
    pub(super) clock: Option<Box<str>>,
    pub(super) temporary: Vec<String>,
    pub(super) values: Vec<(Box<str>, UserValue)>,
    pub(super) missing: Vec<Detection>,
}

impl Answers {
    /// Takes one row. `names`: user variables, as they are told and as their values are asked for; `kinds`: the
    /// columns' types and flags. `None`: it can't be read.
    pub(super) fn take(
        &mut self,
        ask: Ask,
        family: Family,
        row: &[Option<&[u8]>],
        names: &mut BTreeSet<Box<str>>,
        kinds: &[(u8, u16)],
    ) -> Option<()> {
        let text = |at: usize| match row.get(at) {
            Some(Some(value)) => std::str::from_utf8(value).ok(),
            _ => None,
        };
        match ask {
            Ask::Status | Ask::Setting => return None,
            Ask::Facts => {
                if row.len() != 7 {
                    return None;
                }
                self.facts = (0..7).map(|at| text(at).map(Into::into)).collect();
            }
            Ask::Apart => {
                let names = super::probe_sql::asked_apart(family);
                if row.len() != names.len() {
                    return None;
                }
                for (at, name) in names.iter().enumerate() {
                    let value = Value {
                        text: Some(text(at)?.into()),
                        number: *name != TRACKING,
                    };
                    self.apart.push(((*name).into(), value));
                }
            }
            // NULL: it is longer than the largest packet.
            Ask::Digest => self.digest = text(0).map(Into::into),
            Ask::Variables => {
                let name = text(0)?.to_ascii_lowercase();
                let value = match row.get(1)? {
                    None => None,
                    Some(_) => Some(unhex_text(text(1)?)?),
                };
                self.listed += 1;
                if name == "max_allowed_packet" {
                    self.max_packet = value.as_deref().and_then(|v| v.parse().ok());
                }
                if is_carried(&name) {
                    let value = variable(family, &name, value, text(2)?);
                    Arc::make_mut(&mut self.variables).insert(name.into(), value);
                }
            }
            Ask::UserVariables => {
                names.insert(unhex_text(text(0)?)?.into());
            }
            Ask::Locks => {
                let name = |at: usize| match row.get(at)? {
                    None => Some(String::new()),
                    Some(_) => unhex(text(at)?).map(|b| String::from_utf8_lossy(&b).into_owned()),
                };
                let (schema, table) = (name(2)?, name(3)?);
                let dot = if schema.is_empty() || table.is_empty() {
                    ""
                } else {
                    "."
                };
                let lock = (
                    text(1)?.to_owned(),
                    format!("{schema}{dot}{table}"),
                    text(0)?.to_owned(),
                );
                self.locks.push(lock);
            }
            Ask::Counters => {
                let value = text(1)?.parse().ok()?;
                self.counters.insert(text(0)?.to_ascii_lowercase(), value);
            }
            Ask::Clock => self.clock = text(0).map(Into::into),
            Ask::Temporary => {
                let table = format!("{}.{}", unhex_text(text(0)?)?, unhex_text(text(1)?)?);
                self.temporary.push(table);
            }
            Ask::Values(first) => {
                let names: Vec<_> = names.iter().skip(first).take(VALUES_AT_ONCE).collect();
                if row.len() != 4 * names.len() || kinds.len() != row.len() {
                    return None;
                }
                for (index, name) in names.into_iter().enumerate() {
                    let kind = *kinds.get(4 * index)?;
                    let value = user_value(kind, row.get(4 * index..4 * index + 4)?)?;
                    self.values.push((name.clone(), value));
                }
            }
        }
        Some(())
    }

    pub(super) fn has_apart(&self) -> bool {
        !self.apart.is_empty()
    }

    /// All variables were told: what was asked apart is as the session has it.
    pub(super) fn put_apart(&mut self) {
        for (name, value) in &self.apart {
            if is_carried(name) && self.variables.get(name) != Some(value) {
                Arc::make_mut(&mut self.variables).insert(name.clone(), value.clone());
            }
        }
    }

    /// Names that a digest is of.
    pub(super) fn digested(&self) -> impl Iterator<Item = &str> {
        let names = self.variables.keys().map(|name| &**name);
        names.filter(|name| !is_apart(name))
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.text.as_deref()
    }

    /// Transactions are tracked, as Slackwater wants them to be.
    pub(super) fn is_tracked(&self) -> bool {
        let tracking = self.apart.iter().find(|(name, _)| &**name == TRACKING);
        let tracking = tracking.and_then(|(_, value)| value.text.as_deref());
        tracking.is_some_and(|v| v.eq_ignore_ascii_case("CHARACTERISTICS"))
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or_default()
    }

    /// MariaDB: a temporary table or sequence may have been made at some time.
    pub(super) fn made_temporary(&self) -> bool {
        let count = |name: &str| self.counters.get(name).is_none_or(|n| *n > 0);
        count("com_create_temporary_table") || count("com_create_sequence")
    }
}
