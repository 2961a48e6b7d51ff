//! The restore: writes a snapshot onto a fresh server connection, and checks what came of it.
//!
//! One write, answered one by one. First the texts of the restore itself get a known meaning (utf8mb4, an empty
//! sql_mode); then role, database, user variables; then the session's own variables, those that decide
//! the meaning of texts at their end; under these the prepared statements, each in the database that it was
//! prepared in; at last what would have disturbed the rest, and what is for the next transaction only. Send a probe
//! right behind it: [`verify`] compares what that finds.

use super::batch::{Batch, Event, Expect};
use super::grammar::Grammar;
use super::order::{MEANING, follows_database, is_carried, is_last};
use super::probe::{MAX_REPLY, Probe};
use super::probe_sql::quoted;
use super::side::hex;
use super::snapshot::{Baseline, Snapshot, UserValue, Value};
use super::tracker::Tracked;
use crate::wire::mysql::command::{self, put_query, put_text};
use crate::wire::mysql::packet::put;
use crate::wire::mysql::reply::Status;
use bytes::{BufMut, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Errors of a variable that sessions have not: nothing of it is state.
const NO_SESSION_VARIABLE: [u16; 2] = [1229, 1238];

/// There are as many prepared statements as the server allows.
const TOO_MANY_STATEMENTS: u16 = 1461;

/// What could not be restored, and the server's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} can't be restored: {message}{}", if *code == 0 { String::new() } else { format!(" (error {code})") })]
pub struct RestoreError {
    /// What it was: a variable, a role, a prepared statement.
    pub what: String,
    /// The server's error; 0 when the fault is not an error of the server's.
    pub code: u16,
    /// The server's own words, or what was wrong with its answer.
    pub message: String,
}

/// What to do after a packet of the reply.
#[derive(Debug, PartialEq, Eq)]
pub enum RestoreStep {
    /// Read on.
    More,
    /// The restore is done; the reply to the probe comes next.
    Done(Box<Restored>),
}

/// What a restore found on its way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Numbers of statements on the server, by those that the client knows: for
    /// [`super::machine::Machine::moved`].
    pub ids: BTreeMap<u32, u32>,
    /// Statements that the server refused, and why: what they need is gone. Running them says so.
    pub refused: Vec<String>,
    /// PREPAREs in text form that were sent.
    pub text_prepares: u64,
    /// Names that no session has a value of its own for.
    pub global: BTreeSet<Box<str>>,
    /// What the server told of the next transaction.
    pub characteristics: Box<[u8]>,
    /// The flags of the last answer.
    pub status: Status,
}

#[derive(Debug, Clone)]
enum What {
    Frame,
    Role,
    Database,
    UserVariable(usize),
    LastInsertId,
    Variable(Box<str>),
    Statement(usize),
    TextStatement(usize),
    NextTransaction,
}

/// Appends the restore of `snapshot` for a connection that has just logged in as the session did; `fresh`: what such
/// a login holds on this server. Returns what reads its reply.
pub fn put_restore(
    out: &mut BytesMut,
    snapshot: &Snapshot,
    fresh: &Baseline,
    grammar: Grammar,
) -> RestoreReader {
    let state = snapshot.state();
    let mut writer = Writer {
        out,
        steps: Vec::new(),
        text_prepares: 0,
    };
    writer.query(What::Frame, "SET NAMES utf8mb4");
    writer.query(What::Frame, "SET SESSION sql_mode=''");
    if state.role != fresh.role {
        let role = state.role.as_deref().unwrap_or("NONE");
        let role = match (grammar.family, role) {
            // MySQL writes roles with their quotes.
            (super::grammar::Family::MySql, _) | (_, "NONE") => role.to_owned(),
            _ => quoted(role),
        };
        writer.query(What::Role, &format!("SET ROLE {role}"));
    }
    writer.values(snapshot, fresh);
    writer.variables(snapshot, fresh);
    writer.statements(snapshot);
    writer.last(snapshot, fresh);
    let text_prepares = writer.text_prepares;
    let steps = writer.steps;
    let expects = steps.iter().map(|(_, expect)| *expect).collect();
    RestoreReader {
        snapshot: snapshot.clone(),
        batch: Batch::new(grammar, expects),
        steps,
        restored: Restored {
            text_prepares,
            ..Restored::default()
        },
        tracked: Tracked::default(),
        over: false,
    }
}

struct Writer<'a> {
    out: &'a mut BytesMut,
    steps: Vec<(What, Expect)>,
    text_prepares: u64,
}

impl Writer<'_> {
    /// User variables, the current database, last_insert_id.
    fn values(&mut self, snapshot: &Snapshot, fresh: &Baseline) {
        let state = snapshot.state();
        self.user_variables(snapshot, |_| true);
        if state.database != fresh.database {
            self.database(state.database.as_deref().unwrap_or_default().as_bytes());
        }
        let id = state.last_insert_id;
        if id != 0 {
            let sql = format!("SET SESSION last_insert_id={id}");
            self.query(What::LastInsertId, &sql);
        }
    }

    fn user_variables(&mut self, snapshot: &Snapshot, wanted: impl Fn(&str) -> bool) {
        let all = snapshot.state().user_variables.iter().enumerate();
        for (index, (name, value)) in all.filter(|(_, (name, _))| wanted(name)) {
            let sql = format!("SET @{}={}", quoted(name), literal(value));
            self.query(What::UserVariable(index), &sql);
        }
    }

    /// The session's variables, but for those that come last.
    fn variables(&mut self, snapshot: &Snapshot, fresh: &Baseline) {
        let state = snapshot.state();
        for (name, value) in own_variables(snapshot, fresh) {
            if !is_last(name) {
                self.variable(name, value);
            }
        }
        let own = |name| own_variables(snapshot, fresh).any(|(own, _)| own == name);
        if own("max_join_size") && !own("sql_big_selects") {
            // The one that was just set has switched it.
            if let Some(value) = fresh.variables.get("sql_big_selects") {
                self.variable("sql_big_selects", value);
            }
        }
        for name in MEANING {
            let own = state.variables.iter().find(|(n, _)| &**n == name);
            if let Some(value) = own.map(|(_, v)| v).or(fresh.variables.get(name)) {
                self.variable(name, value);
            }
        }
    }

    /// Prepared statements, each in its database.
    fn statements(&mut self, snapshot: &Snapshot) {
        let state = snapshot.state();
        let current = state.database.as_deref().unwrap_or_default().as_bytes();
        let mut database = current;
        for (index, text) in state.texts.iter().enumerate() {
            if let (Some(statement), Some(needed)) = (&text.statement, &text.setting.database) {
                self.needs(&mut database, needed);
                put_text(self.out, command::QUERY, statement);
                self.steps.push((What::TextStatement(index), Expect::Query));
                self.text_prepares += 1;
            }
        }
        for (index, prepared) in state.prepared.iter().enumerate() {
            self.needs(&mut database, &prepared.database);
            put_text(self.out, command::STMT_PREPARE, &prepared.text);
            self.steps.push((What::Statement(index), Expect::Prepare));
        }
        self.needs(&mut database, current);
        // MariaDB gives a variable the type of a placeholder as soon as `SET @x=?` is prepared.
        let texts = state.texts.iter().filter_map(|t| t.statement.as_deref());
        let texts = texts.chain(state.prepared.iter().map(|p| &*p.text));
        let texts: Vec<_> = texts.map(<[u8]>::to_ascii_lowercase).collect();
        self.user_variables(snapshot, |name| {
            let name = name.to_ascii_lowercase();
            let named = |text: &Vec<u8>| memchr::memmem::find(text, name.as_bytes()).is_some();
            texts.iter().any(named)
        });
    }

    fn needs<'a>(&mut self, database: &mut &'a [u8], needed: &'a [u8]) {
        if *database != needed && !needed.is_empty() {
            self.database(needed);
            *database = needed;
        }
    }

    /// What would have disturbed the rest.
    fn last(&mut self, snapshot: &Snapshot, fresh: &Baseline) {
        let state = snapshot.state();
        for (name, value) in own_variables(snapshot, fresh) {
            if is_last(name) {
                self.variable(name, value);
            }
        }
        if let Some(time) = &state.timestamp {
            let sql = format!("SET SESSION timestamp={time}");
            self.query(What::Variable("timestamp".into()), &sql);
        }
        if let Some(id) = state.insert_id {
            let sql = format!("SET SESSION insert_id={id}");
            self.query(What::Variable("insert_id".into()), &sql);
        }
        let (now, login) = state.multi_statements;
        if now != login {
            put(self.out, 0, |out| {
                out.put_u8(command::SET_OPTION);
                out.put_u16_le(u16::from(!now));
            });
            self.steps.push((What::Frame, Expect::Query));
        }
        let characteristics = String::from_utf8_lossy(&state.characteristics);
        for statement in characteristics.split(';').map(str::trim) {
            if !statement.is_empty() {
                self.query(What::NextTransaction, statement);
            }
        }
    }

    fn query(&mut self, what: What, sql: &str) {
        put_query(self.out, sql);
        self.steps.push((what, Expect::Query));
    }

    fn variable(&mut self, name: &str, value: &Value) {
        let value = match &value.text {
            None => "NULL".to_owned(),
            Some(text) if value.number => text.to_string(),
            Some(text) => format!("_utf8mb4 x'{}'", hex(text.as_bytes())),
        };
        let sql = format!("SET SESSION {name}={value}");
        self.query(What::Variable(name.into()), &sql);
    }

    fn database(&mut self, name: &[u8]) {
        put_text(self.out, command::INIT_DB, name);
        self.steps.push((What::Database, Expect::Query));
    }
}

/// Variables that the session has changed and a fresh login lacks, in any order.
fn own_variables<'a>(
    snapshot: &'a Snapshot,
    fresh: &'a Baseline,
) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let all = snapshot.state().variables.iter();
    all.filter(|(name, value)| {
        fresh.variables.get(name) != Some(value)
            && !MEANING.contains(&&**name)
            && !follows_database(name)
    })
    .map(|(name, value)| (&**name, value))
}

/// Writes a value so that it is read with the same type.
fn literal(value: &UserValue) -> String {
    match value {
        UserValue::Null => "NULL".to_owned(),
        UserValue::Int(n) => format!("CAST('{n}' AS SIGNED)"),
        UserValue::Unsigned(n) => format!("CAST('{n}' AS UNSIGNED)"),
        UserValue::Decimal(text) => {
            let part = text.split_once('.').map_or(0, |(_, part)| part.len());
            let digits = text.bytes().filter(u8::is_ascii_digit).count();
            format!("CAST('{text}' AS DECIMAL({},{part}))", digits.max(1))
        }
        UserValue::Double(text) if text.contains(['e', 'E']) => text.to_string(),
        UserValue::Double(text) => format!("{text}e0"),
        UserValue::Text(bytes, charset, _) if &**charset == "binary" => {
            format!("_binary x'{}'", hex(bytes))
        }
        UserValue::Text(bytes, charset, collation) => {
            format!("_{charset} x'{}' COLLATE {collation}", hex(bytes))
        }
    }
}

/// Reads the reply to [`put_restore`]. After an error the connection is of no use: close it.
#[derive(Debug)]
pub struct RestoreReader {
    snapshot: Snapshot,
    batch: Batch,
    steps: Vec<(What, Expect)>,
    restored: Restored,
    tracked: Tracked,
    over: bool,
}

impl RestoreReader {
    /// Takes the payload of one packet from the server.
    pub fn on_packet(&mut self, payload: &[u8]) -> Result<RestoreStep, RestoreError> {
        if self.over || payload.len() > MAX_REPLY {
            return Err(self.out_of_step());
        }
        let Some((at, event)) = self.batch.on_packet(payload) else {
            return Err(self.out_of_step());
        };
        let Some((what, _)) = self.steps.get(at).cloned() else {
            return Err(self.out_of_step());
        };
        match event {
            Event::Done(ok, _) => {
                self.restored.status = ok.status;
                self.tracked.take(ok.session, true);
            }
            Event::Prepared(answer) => {
                if let What::Statement(index) = what
                    && let Some(prepared) = self.snapshot.state().prepared.get(index)
                {
                    if prepared.params == answer.params {
                        self.restored.ids.insert(prepared.told, answer.id);
                    } else {
                        return Err(self.fail(
                            &what,
                            0,
                            "it has another number of parameters here",
                        ));
                    }
                }
            }
            Event::Failed(error) => {
                let words = String::from_utf8_lossy(error.message).into_owned();
                match &what {
                    What::Variable(name)
                        if NO_SESSION_VARIABLE.contains(&error.code)
                            || self.snapshot.state().kept.contains(name) =>
                    {
                        self.restored.global.insert(name.clone());
                    }
                    What::Statement(_) | What::TextStatement(_)
                        if error.code != TOO_MANY_STATEMENTS =>
                    {
                        let name = self.name(&what);
                        self.restored.refused.push(format!("{name}: {words}"));
                    }
                    _ => return Err(self.fail(&what, error.code, &words)),
                }
            }
            Event::End | Event::More | Event::Column(_) | Event::Row(_) => {}
        }
        if !self.batch.is_over() {
            return Ok(RestoreStep::More);
        }
        self.over = true;
        self.restored.characteristics = self.tracked.characteristics.as_ref().into();
        let restored = std::mem::take(&mut self.restored);
        Ok(RestoreStep::Done(Box::new(restored)))
    }

    fn fail(&mut self, what: &What, code: u16, message: &str) -> RestoreError {
        self.over = true;
        RestoreError {
            what: self.name(what),
            code,
            message: message.to_owned(),
        }
    }

    fn name(&self, what: &What) -> String {
        let state = self.snapshot.state();
        match what {
            What::Frame => "the session's state".into(),
            What::Role => format!("role {}", state.role.as_deref().unwrap_or("NONE")),
            What::Database => "a current database".into(),
            What::UserVariable(index) => {
                let name = state.user_variables.get(*index).map(|(name, _)| &**name);
                format!("user variable @{}", name.unwrap_or_default())
            }
            What::LastInsertId => "last_insert_id".into(),
            What::Variable(name) => format!("variable {name}"),
            What::Statement(index) => {
                let told = state.prepared.get(*index).map_or(0, |p| p.told);
                format!("prepared statement {told}")
            }
            What::TextStatement(index) => {
                let name = state.texts.get(*index).map(|t| Arc::from(&*t.name));
                let name: Arc<[u8]> = name.unwrap_or_default();
                format!("prepared statement {}", String::from_utf8_lossy(&name))
            }
            What::NextTransaction => "what was set for the next transaction".into(),
        }
    }

    fn out_of_step(&mut self) -> RestoreError {
        self.fail(
            &What::Frame,
            0,
            "the server answered with an unexpected packet",
        )
    }
}

/// A restored connection that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("after the restore, {what} is {found} instead of {wanted}")]
pub struct Mismatch {
    /// What differs.
    pub what: Box<str>,
    /// What the session has.
    pub wanted: Box<str>,
    /// What the new connection has.
    pub found: Box<str>,
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, wanted: &T, found: &T) -> Result<(), Mismatch> {
    if wanted == found {
        return Ok(());
    }
    Err(Mismatch {
        what: what.into(),
        wanted: format!("{wanted:?}").into(),
        found: format!("{found:?}").into(),
    })
}

/// Compares a session with the connection that is to continue it. `fresh` as given to [`put_restore`];
/// `restored` is empty when nothing had to be restored. What a fresh login of this server holds otherwise than one
/// of the old server did is the new server's: only what the session itself has changed is compared with it.
pub fn verify(
    snapshot: &Snapshot,
    fresh: &Baseline,
    probe: &Probe,
    restored: &Restored,
) -> Result<(), Mismatch> {
    let (old, new) = (snapshot.state(), probe.snapshot.state());
    same("the account", &old.account, &new.account)?;
    same("the current database", &old.database, &new.database)?;
    same("the role", &old.role, &new.role)?;
    if let Some(finding) = probe.findings.first() {
        return same("a fresh connection", &"free of state", &&*finding.detail);
    }
    if !probe.is_tracked {
        return same("tracking of transactions", &"on", &"off");
    }
    for (name, found) in &*probe.variables {
        let own = old.variables.iter().find(|(n, _)| n == name);
        if restored.global.contains(name) || !is_carried(name) {
            continue;
        }
        let wanted = match own {
            Some((_, value)) => value,
            // With another current database they are others.
            None if follows_database(name) => continue,
            None => match fresh.variables.get(name) {
                Some(value) => value,
                None => continue,
            },
        };
        same(&format!("variable {name}"), &wanted.text, &found.text)?;
    }
    for (name, value) in &old.variables {
        if !probe.variables.contains_key(name) && !restored.global.contains(name) {
            same(&format!("variable {name}"), &Some(value), &None)?;
        }
    }
    same(
        "the user variables",
        &old.user_variables,
        &new.user_variables,
    )?;
    same("last_insert_id", &old.last_insert_id, &new.last_insert_id)?;
    same("insert_id", &old.insert_id, &new.insert_id)?;
    same("timestamp", &old.timestamp, &new.timestamp)?;
    let next = String::from_utf8_lossy(&old.characteristics).into_owned();
    let told = String::from_utf8_lossy(&restored.characteristics).into_owned();
    same("what was set for the next transaction", &next, &told)
}
