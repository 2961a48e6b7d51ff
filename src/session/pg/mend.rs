//! What a fresh login can't simply be given back: settings that a role or database got since the session
//! logged in, and prepared statements that can't be made again, or would have other rows.

use super::probe::Probe;
use super::snapshot::{Custom, Setting, Snapshot, Source};
use std::collections::BTreeSet;

/// The server's own words, and code, for a statement whose rows have changed.
pub const CHANGED_ROWS: (&str, &str) = ("0A000", "cached plan must not change result type");

/// What the server would give a session without a role's or database's word: `$1` are names of settings.
/// Run by the service account, whose own start-up packet and role hide some of it: then the files, or what
/// is compiled in, tell.
pub const SERVER_VALUES: &str = "SELECT s.name, CASE WHEN s.source OPERATOR(pg_catalog.=) ANY ('{default,environment variable,configuration file,command line,override}'::pg_catalog.text[]) THEN s.setting ELSE COALESCE((SELECT f.setting FROM pg_catalog.pg_show_all_file_settings() f WHERE f.name OPERATOR(pg_catalog.=) s.name AND f.applied ORDER BY f.seqno DESC LIMIT 1), s.boot_val) END FROM pg_catalog.pg_settings s WHERE s.name OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[])";

/// Settings of `$1` that who is logged in may not set. (What a role or database sets was set by somebody who may.)
pub const fn out_of_reach(server_version_num: u32) -> &'static str {
    if server_version_num >= 150_000 {
        "SELECT s.name FROM pg_catalog.pg_show_all_settings() s WHERE s.name OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]) AND s.context OPERATOR(pg_catalog.<>) 'user' AND NOT pg_catalog.has_parameter_privilege(s.name, 'SET')"
    } else {
        "SELECT s.name FROM pg_catalog.pg_show_all_settings() s WHERE s.name OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]) AND s.context OPERATOR(pg_catalog.<>) 'user' AND pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.<>) 'on'"
    }
}

/// Settings of `wanted` that the session itself did not set: its role, its database, or what is kept against them.
pub fn given(session: &Snapshot, wanted: &Snapshot) -> Vec<Box<str>> {
    let own = |name: &str| {
        let settings = &session.state().settings;
        settings
            .iter()
            .any(|s| &*s.name == name && matches!(s.source, Source::Session | Source::Client))
    };
    let settings = wanted.state().settings.iter();
    settings
        .map(|s| &s.name)
        .filter(|name| !own(name))
        .cloned()
        .collect()
}

/// Names of settings that a fresh login got from its role or database while the session has none of it.
pub fn late(session: &Snapshot, fresh: &Probe) -> Vec<Box<str>> {
    let (old, new) = (session.state(), fresh.snapshot.state());
    let known = |name: &str| {
        old.settings
            .iter()
            .any(|s| s.name.eq_ignore_ascii_case(name))
            || old.custom.iter().any(|c| c.name.eq_ignore_ascii_case(name))
    };
    let settings = new.settings.iter();
    let settings = settings.filter(|s| matches!(s.source, Source::Role | Source::Other));
    // These show nowhere but in what the role or database says.
    let custom = fresh.role_setting_names.iter().filter(|n| n.contains('.'));
    settings
        .map(|s| &s.name)
        .chain(custom)
        .filter(|name| !known(name))
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The list of names as PostgreSQL writes an array.
pub fn name_list(names: &[Box<str>]) -> String {
    let quoted: Vec<_> = names
        .iter()
        .map(|n| format!("\"{}\"", n.replace(['"', '\\'], "")))
        .collect();
    format!("{{{}}}", quoted.join(","))
}

impl Snapshot {
    /// The same, with the server's values of these settings kept against the role's. One that the server
    /// does not know is a custom one that the session does not have: nothing is nearer to that than empty.
    #[must_use]
    pub fn keeping(&self, names: &[Box<str>], values: &[(String, String)]) -> Self {
        let mut state = self.state().clone();
        let (mut settings, mut custom) = (state.settings.into_vec(), state.custom.into_vec());
        for name in names {
            match values.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
                Some((name, value)) => settings.push(Setting {
                    name: name.as_str().into(),
                    value: value.as_str().into(),
                    source: Source::Session,
                }),
                None => custom.push(Custom {
                    name: name.to_ascii_lowercase().into(),
                    value: Box::default(),
                }),
            }
        }
        state.settings = settings.into();
        state.custom = custom.into();
        Self::new(state)
    }

    /// The same, with these settings as the login has them.
    #[must_use]
    pub fn without_settings(&self, names: &[Box<str>]) -> Self {
        let mut state = self.state().clone();
        let mut settings = state.settings.into_vec();
        settings.retain(|s| !names.contains(&s.name));
        state.settings = settings.into();
        Self::new(state)
    }

    /// This statement is the client's own, not one of [`Self::refusing`].
    pub fn is_original(&self, statement: &str) -> bool {
        let mut prepared = self.state().prepared.iter();
        prepared.any(|p| &*p.name == statement && !p.text.starts_with(REFUSAL))
    }

    /// The same, with a statement in place of this one that answers with an error until the client prepares
    /// it again. It is a statement like any other: it can be closed, and is carried on.
    #[must_use]
    pub fn refusing(&self, statement: &str, (code, message): (&str, &str)) -> Self {
        let mut state = self.state().clone();
        for prepared in &mut state.prepared {
            if &*prepared.name == statement {
                prepared.text = refusal(code, message).into();
                prepared.from_sql = false;
            }
        }
        Self::new(state)
    }
}

const REFUSAL: &str = "DO $refused$ BEGIN RAISE EXCEPTION USING ERRCODE = ";

fn refusal(code: &str, message: &str) -> String {
    let message = message
        .replace('\\', "\\\\")
        .replace('\'', "''")
        .replace('$', "\\044");
    let known = code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    let code = if known { code } else { "XX000" };
    format!("{REFUSAL}'{code}', MESSAGE = E'{message}'; END $refused$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_refusal_stay_inside_their_quotes() {
        let text = refusal("42P01", "relation \"a'b$refused$\\\" does not exist");
        assert_eq!(
            text,
            "DO $refused$ BEGIN RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = E'relation \"a''b\\044refused\\044\\\\\" does not exist'; END $refused$"
        );
        assert!(refusal("'; DROP", "x").contains("'XX000'"));
    }

    #[test]
    fn names_make_an_array() {
        assert_eq!(name_list(&["a".into(), "b\"c".into()]), "{\"a\",\"bc\"}");
    }
}
