//! What a session holds, as values: enough to make a new server connection continue it.

use crate::session::Portable;
use aws_lc_rs::digest;
use std::sync::Arc;

/// The portable state of one session. A clone shares the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(pub(crate) Arc<State>);

/// The values of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Who logged in (`user` of the start-up packet).
    pub login_user: Box<str>,
    /// `session_user`: another than `login_user` after SET SESSION AUTHORIZATION.
    pub session_user: Box<str>,
    /// `current_user`.
    pub current_user: Box<str>,
    /// The setting `role`: `none` or a role's name.
    pub role: Box<str>,
    /// Settings that are not simply the server's own defaults, by name.
    pub settings: Box<[Setting]>,
    /// Custom settings that exist, by name.
    pub custom: Box<[Custom]>,
    /// Named prepared statements, by name.
    pub prepared: Box<[Prepared]>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name, as `pg_settings` spells it.
    pub name: Box<str>,
    /// Value in the setting's base unit.
    pub value: Box<str>,
    /// Where the value came from.
    pub source: Source,
}

/// Where a setting's value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `SET` or `set_config` in the session.
    Session,
    /// The start-up packet.
    Client,
    /// `ALTER ROLE` or `ALTER DATABASE ... SET`.
    Role,
    /// From elsewhere, or it can't be told; kept because a role or database has a value for this name.
    Other,
}

/// A custom setting (`app.tenant`). `RESET` and `SET LOCAL` leave an empty value behind, which is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custom {
    /// Name in lower case.
    pub name: Box<str>,
    /// Value.
    pub value: Box<str>,
}

/// A named prepared statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Name.
    pub name: Box<str>,
    /// Text of the Parse; with `from_sql` the whole query string that had the PREPARE in it.
    pub text: Box<str>,
    /// Type OIDs of the parameters, as the server resolved them.
    pub types: Box<[u32]>,
    /// Made by SQL PREPARE, not by a Parse message.
    pub from_sql: bool,
}

impl Snapshot {
    pub(crate) fn new(mut state: State) -> Self {
        state.settings.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        state.custom.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        state.prepared.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Self(Arc::new(state))
    }

    /// The values.
    pub fn state(&self) -> &State {
        &self.0
    }

    /// Plain, and nothing in it that could end a single query on a fresh login, or make it wait: that one query
    /// can tell that the login holds the same. (A role or database may have got such a setting since: then
    /// the query says so or fails.)
    pub fn is_checkable(&self) -> bool {
        let harmless = |name: &str| {
            !matches!(
                name,
                "statement_timeout" | "lock_timeout" | "transaction_timeout" | "jit_above_cost"
            ) && !name.starts_with("default_transaction_")
        };
        self.is_plain() && self.state().settings.iter().all(|s| harmless(&s.name))
    }

    /// Names that the next probe of this session has to ask for, wherever it runs: its custom settings,
    /// and settings of extensions that a new connection may not have loaded.
    pub fn names_to_ask(&self) -> impl Iterator<Item = &str> {
        let state = self.state();
        let of_extensions = state
            .settings
            .iter()
            .map(|s| &*s.name)
            .filter(|n| n.contains('.'));
        state.custom.iter().map(|c| &*c.name).chain(of_extensions)
    }

    /// The same with one more prepared statement.
    #[must_use]
    pub fn with_statement(&self, prepared: Prepared) -> Self {
        let mut state = self.state().clone();
        let mut all = state.prepared.into_vec();
        all.push(prepared);
        state.prepared = all.into();
        Self::new(state)
    }

    /// The same without this prepared statement.
    #[must_use]
    pub fn without_statement(&self, name: &[u8]) -> Self {
        let mut state = self.state().clone();
        let mut all = state.prepared.into_vec();
        all.retain(|p| p.name.as_bytes() != name);
        state.prepared = all.into();
        Self::new(state)
    }
}

impl Portable for Snapshot {
    fn is_plain(&self) -> bool {
        let state = self.state();
        &*state.role == "none"
            && state.session_user == state.login_user
            && state.prepared.is_empty()
            && state.custom.is_empty()
            && !state.settings.iter().any(|s| s.source == Source::Session)
    }

    fn fingerprint(&self) -> [u8; 32] {
        let state = self.state();
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut text = |text: &str| {
            hash.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(text.as_bytes());
        };
        for part in [
            &state.login_user,
            &state.session_user,
            &state.current_user,
            &state.role,
        ] {
            text(part);
        }
        for setting in &state.settings {
            text(&setting.name);
            text(&setting.value);
            text(match setting.source {
                Source::Session => "s",
                Source::Client => "c",
                Source::Role => "r",
                Source::Other => "o",
            });
        }
        text("custom");
        for custom in &state.custom {
            text(&custom.name);
            text(&custom.value);
        }
        text("prepared");
        for prepared in &state.prepared {
            text(&prepared.name);
            text(&prepared.text);
            text(if prepared.from_sql { "sql" } else { "protocol" });
            for oid in &prepared.types {
                text(&oid.to_string());
            }
            text("");
        }
        let mut out = [0; 32];
        out.copy_from_slice(hash.finish().as_ref());
        out
    }

    fn outline(&self) -> Self {
        let mut state = self.state().clone();
        let own = |s: &Setting| s.source == Source::Session;
        let settings = state.settings.iter().filter(|s| own(s));
        state.settings = settings
            .map(|s| Setting {
                value: Box::default(),
                ..s.clone()
            })
            .collect();
        for custom in &mut state.custom {
            custom.value = Box::default();
        }
        state.prepared = Box::default();
        Self::new(state)
    }

    fn not_restorable(&self) -> Option<String> {
        let alone = |text: &[u8]| {
            super::hints::first_keyword(text).eq_ignore_ascii_case(b"prepare")
                && super::hints::is_one_statement(text)
        };
        self.state().prepared.iter().find_map(|p| {
            (p.from_sql && !alone(p.text.as_bytes()))
                .then(|| {
                    format!(
                        "prepared statement \"{}\" was made inside another query, which can't be run again",
                        p.name
                    )
                })
        })
    }
}
