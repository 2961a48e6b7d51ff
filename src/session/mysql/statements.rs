//! Prepared statements of a session: their numbers towards the client and on the present server connection.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a statement's text that are kept, so that it can be prepared again.
pub const MAX_KEPT: usize = 64 * 1024;

/// Parameters whose types are kept.
pub const MAX_PARAMS: u16 = 2048;

/// What a statement was prepared under: it means the same only there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setting {
    /// The current database; `None`: it is not known.
    pub database: Option<Arc<[u8]>>,
    /// Counts changes of sql_mode and character sets.
    pub era: u32,
}

/// A statement of the binary protocol.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its text, unless that is too long.
    pub text: Option<Arc<[u8]>>,
    /// What it was prepared under.
    pub setting: Setting,
    /// How many parameters it has.
    pub params: u16,
    /// The types that its parameters were last given, two bytes each.
    pub types: Option<Box<[u8]>>,
    /// They were given, but not kept.
    pub types_unknown: bool,
    /// Its number on the present server connection; `None`: it could not be prepared there.
    pub real: Option<u32>,
    /// The present server connection was told the types.
    pub bound: bool,
    /// Tables that it creates.
    pub creates: u32,
    /// A cursor is open.
    pub cursor: bool,
    /// Parts of parameters were sent.
    pub long_data: bool,
}

/// A statement that is being prepared.
#[derive(Debug)]
pub(super) struct Preparing {
    pub(super) text: Option<Arc<[u8]>>,
    pub(super) creates: u32,
    /// What the client already sent for the statement whose number it does not know.
    pub(super) types: Option<Box<[u8]>>,
}

/// All of one session.
#[derive(Debug, Default)]
pub struct Statements {
    all: BTreeMap<u32, Statement>,
    told: u32,
    /// The statement that was prepared last, if that worked.
    pub(super) last: Option<u32>,
    /// What is open: cursors and parts of parameters.
    cursors: u32,
    long_data: u32,
}

impl Statements {
    /// A new statement's number towards the client.
    pub(super) fn add(&mut self, statement: Statement) -> u32 {
        // Numbers are not told twice, as long as there are any.
        self.told = match self.told.wrapping_add(1) {
            0 | u32::MAX => 1,
            next => next,
        };
        while self.all.contains_key(&self.told) {
            self.told = self.told.wrapping_add(1).max(1);
        }
        self.all.insert(self.told, statement);
        self.last = Some(self.told);
        self.told
    }

    /// One of them.
    pub fn get(&self, told: u32) -> Option<&Statement> {
        self.all.get(&told)
    }

    pub(super) fn get_mut(&mut self, told: u32) -> Option<&mut Statement> {
        self.all.get_mut(&told)
    }

    /// All of them by their numbers towards the client.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Statement)> {
        self.all.iter().map(|(told, statement)| (*told, statement))
    }

    pub(super) fn set_cursor(&mut self, told: u32, open: bool) {
        if let Some(statement) = self.all.get_mut(&told)
            && std::mem::replace(&mut statement.cursor, open) != open
        {
            self.cursors = if open {
                self.cursors + 1
            } else {
                self.cursors - 1
            };
        }
    }

    pub(super) fn set_long_data(&mut self, told: u32, pending: bool) {
        if let Some(statement) = self.all.get_mut(&told)
            && std::mem::replace(&mut statement.long_data, pending) != pending
        {
            self.long_data = if pending {
                self.long_data + 1
            } else {
                self.long_data - 1
            };
        }
    }

    /// A cursor is open.
    pub fn has_cursor(&self) -> bool {
        self.cursors > 0
    }

    /// Parts of parameters wait for their statement.
    pub fn has_long_data(&self) -> bool {
        self.long_data > 0
    }

    pub(super) fn close(&mut self, told: u32) {
        self.set_cursor(told, false);
        self.set_long_data(told, false);
        self.all.remove(&told);
        if self.last == Some(told) {
            self.last = None;
        }
    }

    /// The server dropped all of them. Numbers go on.
    pub(super) fn clear(&mut self) {
        *self = Self {
            told: self.told,
            ..Self::default()
        };
    }

    /// The session is on another server connection, with these numbers there.
    pub(super) fn moved(&mut self, ids: &BTreeMap<u32, u32>) {
        for (told, statement) in &mut self.all {
            statement.real = ids.get(told).copied();
            statement.bound = false;
            statement.cursor = false;
            statement.long_data = false;
        }
        (self.cursors, self.long_data) = (0, 0);
    }
}

/// A statement that was prepared in text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextStatement {
    /// Its name, in lower case.
    pub name: Box<[u8]>,
    /// The whole PREPARE, where it can be sent again.
    pub statement: Option<Arc<[u8]>>,
    /// What it was prepared under.
    pub setting: Setting,
}

/// All of one session, by name.
#[derive(Debug, Default)]
pub struct TextStatements {
    all: BTreeMap<Box<[u8]>, TextStatement>,
    /// PREPAREs that were sent on the present server connection: the server counts them as well, and those
    /// of stored programs with them.
    pub(super) sent: u64,
}

impl TextStatements {
    pub(super) fn put(&mut self, statement: TextStatement) {
        self.all.insert(statement.name.clone(), statement);
    }

    pub(super) fn drop(&mut self, name: &[u8]) {
        self.all.remove(name);
    }

    /// Whether it is there, and as what, nobody can tell.
    pub(super) fn doubt(&mut self, name: &[u8]) {
        if let Some(statement) = self.all.get_mut(name) {
            statement.statement = None;
        }
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.all.contains_key(name)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &TextStatement> {
        self.all.values()
    }
}
