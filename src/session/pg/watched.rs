//! What statement texts gave away and no probe shows: names of custom settings, and state that dies with
//! its session (a running base backup, a replication origin, a loaded library).

use super::hints::{self, Hints, Watch};
use crate::session::blocker::BlockerKind;
use std::collections::HashMap;

/// Most names, and most statements with names in parameters, that one session is remembered for.
const MAX: usize = 200;

/// `set_config` (`pg_proc.dat`).
const SET_CONFIG: u32 = 2078;

/// What one session's statements gave away.
#[derive(Debug, Default)]
pub struct Watched {
    names: Vec<String>,
    handed: usize,
    /// Prepared statements that take setting names from parameters.
    from_params: HashMap<Box<[u8]>, Vec<u16>>,
    unreadable: bool,
    backup: bool,
    origin: bool,
    load: bool,
}

impl Watched {
    /// A text passed: of a Query (`statement` is none) or of the Parse of a statement.
    pub fn on_text(&mut self, statement: Option<&[u8]>, text: &[u8]) -> Hints {
        let mut hints = hints::scan(text);
        if let Some(statement) = statement
            && !(self.from_params.is_empty() && hints.names_from_params.is_empty())
        {
            self.note_params(statement, std::mem::take(&mut hints.names_from_params));
        } else if !hints.names_from_params.is_empty() {
            self.unreadable = true;
        }
        self.unreadable |= hints.unreadable_set_config;
        self.note_names(std::mem::take(&mut hints.custom_names));
        // A statement with a name may be run at any time, or never.
        let runs = statement.is_none_or(<[u8]>::is_empty);
        for watch in hints.watches.iter() {
            match watch {
                Watch::BackupStart => self.backup = true,
                Watch::BackupStop => self.backup &= !runs,
                Watch::OriginSetup => self.origin = true,
                Watch::OriginReset => self.origin &= !runs,
                Watch::Load => self.load = true,
            }
        }
        // SQL EXECUTE binds what nobody reads.
        if hints.executes && !self.from_params.is_empty() {
            let executed = hints::executed(text);
            let may_be_one = |name: Box<str>| self.from_params.contains_key(name.as_bytes());
            self.unreadable |= executed.is_none_or(may_be_one);
        }
        hints
    }

    /// A FunctionCall passed; `body` begins with the function's number.
    pub fn on_function(&mut self, body: &[u8]) {
        self.unreadable |= body.starts_with(&SET_CONFIG.to_be_bytes());
    }

    /// A Bind of `statement` passed; `body` may be cut.
    pub fn on_bind(&mut self, statement: &[u8], body: &[u8]) {
        if self.from_params.is_empty() {
            return;
        }
        let Some(params) = self.from_params.get(statement) else {
            return;
        };
        match hints::custom_names_from_bind(body, params) {
            Ok(bound) => {
                self.unreadable |= bound.unreadable;
                self.note_names(bound.names);
            }
            Err(_) => self.unreadable = true,
        }
    }

    /// Names that were not handed out yet.
    pub fn new_names(&mut self) -> impl Iterator<Item = String> + '_ {
        let from = std::mem::replace(&mut self.handed, self.names.len());
        self.names.iter().skip(from).cloned()
    }

    /// A custom setting's name was handed out, and nobody can remember it.
    pub fn overflowed(&mut self) {
        self.unreadable = true;
    }

    /// A custom setting was set whose name could not be read.
    pub fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Something is remembered that DISCARD ALL undoes.
    pub(super) fn has_settings(&self) -> bool {
        self.unreadable || !self.from_params.is_empty()
    }

    /// DISCARD ALL was done, and nothing was sent behind it: settings are as at the log-in, prepared statements gone.
    pub(super) fn discarded(&mut self) {
        self.unreadable = false;
        self.from_params.clear();
    }

    /// What stands in the way and no probe shows.
    pub fn blocker(&self) -> Option<(BlockerKind, &'static str)> {
        if self.backup {
            Some((
                BlockerKind::Backup,
                "a base backup was started in this session",
            ))
        } else if self.origin {
            Some((
                BlockerKind::Replication,
                "a replication origin is set up in this session",
            ))
        } else if self.load {
            Some((
                BlockerKind::NotRestorable,
                "LOAD was used: its library can't be carried",
            ))
        } else {
            None
        }
    }

    fn note_params(&mut self, statement: &[u8], params: Vec<u16>) {
        if params.is_empty() {
            self.from_params.remove(statement);
        } else if self.from_params.len() < MAX || self.from_params.contains_key(statement) {
            self.from_params.insert(statement.into(), params);
        } else {
            self.unreadable = true;
        }
    }

    fn note_names(&mut self, names: Vec<String>) {
        for name in names {
            if self.names.contains(&name) {
                continue;
            }
            if self.names.len() >= MAX {
                self.unreadable = true;
                return;
            }
            self.names.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_ends_when_its_end_is_run_and_not_when_it_is_prepared() {
        let mut watched = Watched::default();
        watched.on_text(Some(b"start"), b"select pg_backup_start('x')");
        watched.on_text(Some(b"stop"), b"select pg_backup_stop()");
        assert!(watched.blocker().is_some());
        watched.on_text(None, b"select pg_backup_stop()");
        assert!(watched.blocker().is_none());
    }

    #[test]
    fn names_that_nobody_reads_are_told() {
        let reads = |what: &dyn Fn(&mut Watched)| {
            let mut watched = Watched::default();
            watched.on_text(Some(b"s"), b"select set_config($1, $2, false)");
            assert!(!watched.is_unreadable());
            what(&mut watched);
            !watched.is_unreadable()
        };
        assert!(!reads(&|w| drop(
            w.on_text(None, b"execute s('app.x', '1')")
        )));
        assert!(reads(&|w| drop(w.on_text(None, b"execute other(1)"))));
        assert!(!reads(&|w| drop(w.on_text(None, b"explain execute other"))));
        assert!(!reads(&|w| w.on_function(&[0, 0, 8, 30])));
        assert!(!reads(&Watched::overflowed));
        assert!(reads(&|w| w.on_function(&[0, 0, 8, 31])));
        assert!(reads(&|w| drop(w.on_text(None, b"select 1"))));
        let mut watched = Watched::default();
        watched.on_text(None, b"execute s('app.x', '1')");
        assert!(!watched.is_unreadable(), "no such statement");
    }
}
