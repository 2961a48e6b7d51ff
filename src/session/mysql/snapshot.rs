//! What a session holds, as values: enough to make a new server connection continue it.

use super::machine::Held;
use super::statements::TextStatement;
use crate::session::Portable;
use aws_lc_rs::digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Session variables by name.
pub type Variables = BTreeMap<Box<str>, Value>;

/// What a fresh login of one kind holds: same server process, user, database, capabilities and character set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {
    /// Session variables.
    pub variables: Arc<Variables>,
    /// How to ask at less cost whether they are still these.
    pub digest: Option<Digest>,
    /// The current role.
    pub role: Option<Box<str>>,
    /// The current database.
    pub database: Option<Box<str>>,
}

/// One value that stands for all session variables that are carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// The question.
    pub sql: Box<str>,
    /// A fresh login's answer.
    pub told: Box<str>,
    /// How many variables the server listed; see [`super::probe::count_sql`].
    pub listed: u64,
}

/// A session variable's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Value {
    /// As text; `None`: NULL.
    pub text: Option<Box<str>>,
    /// Written without quotes.
    pub number: bool,
}

/// A user variable's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UserValue {
    /// NULL.
    Null,
    /// BIGINT.
    Int(i64),
    /// BIGINT UNSIGNED.
    Unsigned(u64),
    /// DECIMAL, as the server writes it.
    Decimal(Box<str>),
    /// DOUBLE, as the server writes it.
    Double(Box<str>),
    /// A string: bytes, character set, collation.
    Text(Box<[u8]>, Box<str>, Box<str>),
}

/// The portable state of one session. A clone shares the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(pub(super) Arc<State>);

/// The values of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `CURRENT_USER()`: the account that the server took for the login.
    pub account: Box<str>,
    /// The current database.
    pub database: Option<Box<str>>,
    /// `CURRENT_ROLE()`, as it is written in SET ROLE.
    pub role: Option<Box<str>>,
    /// What the current database and the role of a fresh login are.
    pub login: (Option<Box<str>>, Option<Box<str>>),
    /// Session variables that differ from those of a fresh login, by name.
    pub variables: Box<[(Box<str>, Value)]>,
    /// User variables, by name.
    pub user_variables: Box<[(Box<str>, UserValue)]>,
    /// `LAST_INSERT_ID()`.
    pub last_insert_id: u64,
    /// The next number that an AUTO_INCREMENT column takes, when it was set.
    pub insert_id: Option<u64>,
    /// The time, when it was set.
    pub timestamp: Option<Box<str>>,
    /// Statements that make the next transaction what it is to be.
    pub characteristics: Box<[u8]>,
    /// The client may send several statements in one text: now, and after its login.
    pub multi_statements: (bool, bool),
    /// Statements of the binary protocol, the one that was prepared last at the end.
    pub prepared: Box<[Prepared]>,
    /// Statements in text form, by name.
    pub texts: Box<[TextStatement]>,
    /// Those of the variables that the session has not changed: what its server gave to new sessions has. One that
    /// can't be set is let go.
    pub kept: BTreeSet<Box<str>>,
}

/// A prepared statement of the binary protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Its number towards the client.
    pub told: u32,
    /// Its text.
    pub text: Arc<[u8]>,
    /// The database that it was prepared in.
    pub database: Arc<[u8]>,
    /// How many parameters it has.
    pub params: u16,
}

impl Snapshot {
    pub(super) fn new(state: State) -> Self {
        Self(Arc::new(state))
    }

    /// The same on a server that by now gives other values to new sessions than it gave to this one.
    #[must_use]
    pub fn keeping(&self, former: &Baseline, fresh: &Baseline) -> Self {
        let mut state = self.state().clone();
        let mut variables: BTreeMap<_, _> = state.variables.into_vec().into_iter().collect();
        for (name, value) in &*former.variables {
            let other = fresh.variables.get(name).is_some_and(|now| now != value);
            if other && !variables.contains_key(name) {
                variables.insert(name.clone(), value.clone());
                state.kept.insert(name.clone());
            }
        }
        state.variables = variables.into_iter().collect();
        Self::new(state)
    }

    /// The values.
    pub fn state(&self) -> &State {
        &self.0
    }

    /// Names of user variables, for [`super::probe::ProbeSpec`] of a server that can't list them.
    pub fn user_variable_names(&self) -> impl Iterator<Item = &str> {
        self.0.user_variables.iter().map(|(name, _)| &**name)
    }

    fn hash(&self, values: bool) -> [u8; 32] {
        let state = self.state();
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut put = |bytes: &[u8]| {
            let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            hash.update(&len.to_be_bytes());
            hash.update(bytes);
        };
        put(state.account.as_bytes());
        for text in [&state.database, &state.role, &state.login.0, &state.login.1] {
            put(&[u8::from(text.is_some())]);
            put(text.as_deref().unwrap_or_default().as_bytes());
        }
        put(b"variables");
        for (name, value) in &state.variables {
            put(name.as_bytes());
            if values {
                put(format!("{:?}", value.text).as_bytes());
            }
        }
        if values {
            put(b"user variables");
            for (name, value) in &state.user_variables {
                put(name.as_bytes());
                put(format!("{value:?}").as_bytes());
            }
            put(format!(
                "{:?}",
                (state.last_insert_id, state.insert_id, &state.timestamp)
            )
            .as_bytes());
            put(&state.characteristics);
            put(b"prepared");
            for prepared in &state.prepared {
                put(&prepared.told.to_be_bytes());
                put(&prepared.text);
                put(&prepared.database);
            }
            put(b"texts");
            for text in &state.texts {
                put(&text.name);
                put(text.statement.as_deref().unwrap_or_default());
                put(text.setting.database.as_deref().unwrap_or_default());
            }
        }
        put(format!("{:?}", state.multi_statements).as_bytes());
        let mut out = [0; 32];
        out.copy_from_slice(hash.finish().as_ref());
        out
    }
}

impl Portable for Snapshot {
    fn fingerprint(&self) -> [u8; 32] {
        self.hash(true)
    }

    fn outline(&self) -> Self {
        let mut state = self.state().clone();
        for (_, value) in &mut state.variables {
            value.text = None;
        }
        state.user_variables = Box::default();
        state.last_insert_id = 0;
        state.insert_id = None;
        state.timestamp = None;
        state.characteristics = Box::default();
        state.prepared = Box::default();
        state.texts = Box::default();
        Self::new(state)
    }

    fn is_plain(&self) -> bool {
        let state = self.state();
        state.variables.is_empty()
            && state.user_variables.is_empty()
            && state.login == (state.database.clone(), state.role.clone())
            && state.last_insert_id == 0
            && state.insert_id.is_none()
            && state.timestamp.is_none()
            && state.characteristics.is_empty()
            && state.multi_statements.0 == state.multi_statements.1
            && state.prepared.is_empty()
            && state.texts.is_empty()
    }

    fn not_restorable(&self) -> Option<String> {
        let lacks = |database: Option<&[u8]>| database.is_none();
        let text = self
            .state()
            .texts
            .iter()
            .find(|t| t.statement.is_none() || lacks(t.setting.database.as_deref()))?;
        let name = String::from_utf8_lossy(&text.name);
        Some(format!(
            "the text of prepared statement {name} is not known"
        ))
    }
}

/// The statements that the wire has shown, in the order in which they are made again.
pub(super) fn prepared(held: &Held) -> Box<[Prepared]> {
    let mut all: Vec<_> = held
        .statements
        .iter()
        .filter_map(|(told, text, setting, params)| {
            Some(Prepared {
                told: *told,
                text: Arc::clone(text),
                database: Arc::clone(setting.database.as_ref()?),
                params: *params,
            })
        })
        .collect();
    all.sort_by_key(|p| Some(p.told) == held.last);
    all.into()
}
