//! The restore: writes a snapshot onto a fresh server connection, and checks what came of it.
//!
//! One write, one reply: a transaction of its own in which the time-outs are off and the client's encoding
//! is UTF-8, settings first (as the user who logged in), then session authorization and role, then the
//! prepared statements (they are parsed under the final search_path), last the settings that would have
//! disturbed the rest. Send a probe right behind it: [`verify`] compares what that finds.

use super::made::Made;
use super::probe::{MAX_REPLY, Probe, put_parse, put_statement};
use super::probe_sql::BEGIN;
use super::snapshot::{Prepared, Setting, Snapshot, Source};
use crate::wire::pg::backend::ErrorFields;
use crate::wire::pg::frame::{Reader, put};
use bytes::{BufMut, BytesMut};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

const NO_TIMEOUT: &str = "SET LOCAL statement_timeout = 0";
const NO_JIT: &str = "SET LOCAL jit = off";
const LOCALS: &str = "SELECT pg_catalog.count(pg_catalog.set_config(v.n, v.v, true)) FROM pg_catalog.json_to_recordset($1) AS v(n pg_catalog.text, v pg_catalog.text)";
/// In the order of the list; the count keeps the values off the wire, whatever encoding is set meanwhile.
const SET: &str = "SELECT pg_catalog.count(pg_catalog.set_config(v.n, v.v, false)) FROM pg_catalog.json_to_recordset($1) AS v(n pg_catalog.text, v pg_catalog.text)";
/// Sets only what this login did not get by itself, so that sources stay what they were. `held`: our own
/// SET LOCAL hides the value, what RESET would give does not lie.
const SET_IF_OTHER: &str = "SELECT pg_catalog.count(pg_catalog.set_config(s.name, v.v, false)) FROM pg_catalog.pg_show_all_settings() s, pg_catalog.json_to_recordset($1) AS v(n pg_catalog.text, v pg_catalog.text, held pg_catalog.bool) WHERE s.name OPERATOR(pg_catalog.=) v.n AND COALESCE(s.reset_val, '') OPERATOR(pg_catalog.<>) v.v AND (v.held OR s.setting OPERATOR(pg_catalog.<>) v.v)";

/// The view has no role.
const SET_IF_OTHER_ROLE: &str = "SELECT pg_catalog.count(pg_catalog.set_config(v.n, v.v, false)) FROM pg_catalog.json_to_recordset($1) AS v(n pg_catalog.text, v pg_catalog.text) WHERE pg_catalog.current_setting(v.n) OPERATOR(pg_catalog.<>) v.v";

/// How long a statement that is made again waits for the lock of a table.
const LOCK_MAX: &str = "500ms";

/// Settings that this restore itself holds at another value until its end.
fn is_held(name: &str) -> bool {
    matches!(
        name,
        "statement_timeout" | "lock_timeout" | "transaction_timeout" | "jit" | "client_encoding"
    )
}

/// Settings to restore last.
fn is_last(name: &str) -> bool {
    is_held(name) || name.starts_with("default_transaction_") || name == "jit_above_cost"
}

/// What could not be restored, and the server's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} can't be restored: {message}{}", if sqlstate.is_empty() { String::new() } else { format!(" (SQLSTATE {sqlstate})") })]
pub struct RestoreError {
    /// What it was: a setting, a role, a prepared statement.
    pub what: String,
    /// SQLSTATE of the server's error; empty when the fault is not an error of the server's.
    pub sqlstate: String,
    /// The server's own words, or what was wrong with its answer.
    pub message: String,
    /// The prepared statement's name, if one was at fault: a restore on another connection can leave it out.
    pub statement: Option<Box<str>>,
    /// Settings were at fault.
    pub settings: bool,
}

impl RestoreError {
    /// The login may not set what its role or database sets.
    pub fn is_forbidden(&self) -> bool {
        self.settings && self.sqlstate == "42501"
    }

    /// Another session holds what is needed.
    pub fn is_locked(&self) -> bool {
        self.sqlstate == "55P03"
    }

    /// One of the session's own time limits has ended it: another try may be in time.
    pub fn is_late(&self) -> bool {
        self.sqlstate == "57014"
    }
}

/// What to do after a frame of the reply.
#[derive(Debug, PartialEq, Eq)]
pub enum RestoreStep {
    /// Read on.
    More,
    /// A ParameterStatus: keep the last value of each name, and tell the client what is new to it once the
    /// session is verified. (A notification can't come: nothing is listened to.)
    ParameterStatus,
    /// The restore is done; the reply to the probe comes next.
    Done(Restored),
}

/// What a restore found on its way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// For each prepared statement, by name, the shape of its rows ([`row_shape`]).
    pub shapes: BTreeMap<Box<str>, u64>,
}

/// The shape of a statement's rows as told to a client: a hash of names, types, sizes and modifiers of the
/// columns, from the body of a RowDescription (`T`); other tags (NoData, `n`) count as no columns. Table
/// and column numbers and formats are left out, since they are no types.
pub fn row_shape(tag: u8, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut reader = Reader::new(if tag == b'T' { body } else { &[0, 0] });
    let columns = reader.i16().unwrap_or(0);
    columns.hash(&mut hasher);
    for _ in 0..columns {
        let Ok(name) = reader.cstr() else { break };
        name.hash(&mut hasher);
        // Table (4), column (2), type (4), size (2), modifier (4), format (2).
        let Ok(rest) = reader.bytes(18) else { break };
        rest.get(6..16).hash(&mut hasher);
    }
    hasher.finish()
}

#[derive(Debug, Clone, Copy)]
enum What {
    Frame,
    Settings,
    Authorization,
    Role,
    Statement(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Run,
    Bound,
    Rows,
    Parse,
    Describe,
    Columns,
}

/// Appends the restore of `snapshot` for a connection that was opened with the same start-up packet, and
/// returns what reads its reply. `left_out`: prepared statements that the server refused before. `made`: what the
/// others were made under.
/// The connection's own unnamed statement is used and left empty.
pub fn put_restore(
    out: &mut BytesMut,
    snapshot: &Snapshot,
    left_out: &BTreeSet<Box<str>>,
    made: &Made,
    server_version_num: u32,
) -> RestoreReader {
    let state = snapshot.state();
    let mut writer = Writer {
        out,
        steps: Vec::new(),
    };
    writer.run(What::Frame, BEGIN, None);
    writer.run(What::Frame, NO_TIMEOUT, None);
    writer.run(What::Frame, NO_JIT, None);
    let mut locals = vec![
        json!({"n": "client_encoding", "v": "UTF8"}),
        json!({"n": "lock_timeout", "v": "0"}),
    ];
    if server_version_num >= 170_000 {
        locals.push(json!({"n": "transaction_timeout", "v": "0"}));
    }
    writer.run(What::Frame, LOCALS, Some(&locals));
    // The role that a login brings by itself is not the session's.
    let none = [json!({"n": "role", "v": "none"})];
    writer.run(What::Role, SET_IF_OTHER_ROLE, Some(&none));
    writer.settings(&state.settings, false);
    let custom: Vec<_> = state
        .custom
        .iter()
        .map(|c| json!({"n": &*c.name, "v": &*c.value}))
        .collect();
    writer.set(SET, &custom);
    // Session authorization resets the role, so the role comes second.
    if state.session_user != state.login_user {
        let who = [json!({"n": "session_authorization", "v": &*state.session_user})];
        writer.run(What::Authorization, SET, Some(&who));
    }
    if &*state.role != "none" {
        writer.run(
            What::Role,
            SET,
            Some(&[json!({"n": "role", "v": &*state.role})]),
        );
    }
    if !state.prepared.is_empty() {
        // Somebody may hold a table for hours, or this very session: by a transaction that it prepared.
        let limit = [json!({"n": "lock_timeout", "v": LOCK_MAX})];
        writer.run(What::Frame, LOCALS, Some(&limit));
    }
    let mut as_now = true;
    for (index, prepared) in state.prepared.iter().enumerate() {
        if left_out.contains(&prepared.name) {
            continue;
        }
        let under = made.under(&prepared.name);
        match under {
            Some(then) => writer.locals(then),
            None if !as_now => writer.locals(made.present()),
            None => {}
        }
        as_now = made.under(&prepared.name).is_none();
        writer.prepare(index, prepared);
    }
    writer.settings(&state.settings, true);
    writer.run(What::Frame, "COMMIT", None);
    // The last statement's text, which a client could run by a Bind without Parse, goes.
    put(writer.out, b'C', |out| out.put_slice(b"S\0"));
    put(writer.out, b'S', |_| {});
    let steps = writer.steps;
    RestoreReader {
        snapshot: snapshot.clone(),
        expect: steps.first().map_or(Expect::Run, |(_, expect)| *expect),
        steps,
        at: 0,
        restored: Restored::default(),
        over: false,
    }
}

struct Writer<'a> {
    out: &'a mut BytesMut,
    steps: Vec<(What, Expect)>,
}

impl Writer<'_> {
    fn run(&mut self, what: What, sql: &str, json: Option<&[serde_json::Value]>) {
        if let Some(json) = json {
            let json = serde_json::Value::from(json.to_vec()).to_string();
            put_statement(self.out, "", sql, &[114], &[json.as_bytes()], 0);
        } else {
            put_statement(self.out, "", sql, &[], &[], 0);
        }
        self.steps.push((what, Expect::Run));
    }

    fn locals<'v>(&mut self, values: impl Iterator<Item = (&'static str, &'v str)>) {
        let values: Vec<_> = values
            .map(|(name, value)| json!({"n": name, "v": value}))
            .collect();
        self.run(What::Frame, LOCALS, Some(&values));
    }

    fn set(&mut self, sql: &str, values: &[serde_json::Value]) {
        if !values.is_empty() {
            self.run(What::Settings, sql, Some(values));
        }
    }

    fn settings(&mut self, settings: &[Setting], last: bool) {
        let group = || settings.iter().filter(|s| is_last(&s.name) == last);
        // Values of source client came with the start-up packet.
        let if_other: Vec<_> = group()
            .filter(|s| matches!(s.source, Source::Role | Source::Other))
            .map(|s| json!({"n": &*s.name, "v": &*s.value, "held": is_held(&s.name)}))
            .collect();
        self.set(SET_IF_OTHER, &if_other);
        let own: Vec<_> = group()
            .filter(|s| s.source == Source::Session)
            .map(|s| json!({"n": &*s.name, "v": &*s.value}))
            .collect();
        self.set(SET, &own);
    }

    fn prepare(&mut self, index: usize, prepared: &Prepared) {
        let what = What::Statement(index);
        if prepared.from_sql {
            // Parse takes one statement only, so a query string with more in it is refused, not run again.
            self.run(what, &prepared.text, None);
        } else {
            put_parse(self.out, &prepared.name, &prepared.text, &prepared.types);
            self.steps.push((what, Expect::Parse));
        }
        put(self.out, b'D', |out| {
            out.put_u8(b'S');
            out.put_slice(prepared.name.as_bytes());
            out.put_u8(0);
        });
        self.steps.push((what, Expect::Describe));
    }
}

/// Reads the reply to [`put_restore`]. After an error the connection is of no use: close it.
#[derive(Debug)]
pub struct RestoreReader {
    snapshot: Snapshot,
    steps: Vec<(What, Expect)>,
    at: usize,
    expect: Expect,
    restored: Restored,
    over: bool,
}

impl RestoreReader {
    /// Takes one whole frame from the server.
    pub fn on_frame(&mut self, tag: u8, body: &[u8]) -> Result<RestoreStep, Box<RestoreError>> {
        if self.over || body.len() > MAX_REPLY {
            return Err(Box::new(self.out_of_step(tag)));
        }
        let in_steps = self.at < self.steps.len();
        match (tag, self.expect) {
            (b'S', _) => return Ok(RestoreStep::ParameterStatus),
            (b'N', _) => {}
            (b'E', _) => {
                let fields = ErrorFields::parse(body);
                let what = self
                    .steps
                    .get(self.at)
                    .map_or(What::Frame, |(what, _)| *what);
                let settings = matches!(what, What::Settings);
                let (what, statement) = self.name(what);
                self.over = true;
                return Err(Box::new(RestoreError {
                    settings,
                    what,
                    sqlstate: fields.code,
                    message: fields.message,
                    statement,
                }));
            }
            (b'Z', _) if !in_steps && body == b"I" => {
                self.over = true;
                return Ok(RestoreStep::Done(std::mem::take(&mut self.restored)));
            }
            (b'3', _) if !in_steps => {}
            (b'1', Expect::Run) if in_steps => self.expect = Expect::Bound,
            (b'2', Expect::Bound) => self.expect = Expect::Rows,
            (b'D', Expect::Rows) => {}
            (b'C', Expect::Rows) | (b'1', Expect::Parse) => self.advance(),
            (b't', Expect::Describe) => self.expect = Expect::Columns,
            (b'T' | b'n', Expect::Columns) => {
                if let Some((What::Statement(index), _)) = self.steps.get(self.at)
                    && let Some(prepared) = self.snapshot.state().prepared.get(*index)
                {
                    self.restored
                        .shapes
                        .insert(prepared.name.clone(), row_shape(tag, body));
                }
                self.advance();
            }
            _ => return Err(Box::new(self.out_of_step(tag))),
        }
        Ok(RestoreStep::More)
    }

    fn advance(&mut self) {
        self.at += 1;
        // Behind the last step nothing but the end matches.
        self.expect = self
            .steps
            .get(self.at)
            .map_or(Expect::Run, |(_, expect)| *expect);
    }

    fn name(&self, what: What) -> (String, Option<Box<str>>) {
        let state = self.snapshot.state();
        match what {
            What::Frame => ("the session's state".into(), None),
            What::Settings => ("a setting".into(), None),
            What::Authorization => (
                format!("session authorization \"{}\"", state.session_user),
                None,
            ),
            What::Role => (format!("role \"{}\"", state.role), None),
            What::Statement(index) => {
                let name = state.prepared.get(index).map(|p| p.name.clone());
                let told = name.as_deref().unwrap_or_default();
                (format!("prepared statement \"{told}\""), name)
            }
        }
    }

    fn out_of_step(&mut self, tag: u8) -> RestoreError {
        self.over = true;
        RestoreError {
            what: "the session's state".into(),
            sqlstate: String::new(),
            message: format!(
                "the server answered with an unexpected message {:?}",
                char::from(tag)
            ),
            statement: None,
            settings: false,
        }
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

fn same(what: &str, wanted: &str, found: &str) -> Result<(), Mismatch> {
    if wanted == found {
        return Ok(());
    }
    Err(Mismatch {
        what: what.into(),
        wanted: format!("{wanted:?}").into(),
        found: format!("{found:?}").into(),
    })
}

/// Compares a session with the connection that is to continue it. `probe` must have been put with
/// `snapshot` as its `previous`; `left_out` as given to [`put_restore`].
///
/// Values must be equal; sources too, except that what came from a role or database may now have been set,
/// because `ALTER ROLE` changed it. Settings that a role or database got since the snapshot are let pass.
pub fn verify(
    snapshot: &Snapshot,
    probe: &Probe,
    left_out: &BTreeSet<Box<str>>,
) -> Result<(), Mismatch> {
    let (old, new) = (snapshot.state(), probe.snapshot.state());
    same("the user who logged in", &old.login_user, &new.login_user)?;
    same("session_user", &old.session_user, &new.session_user)?;
    same("current_user", &old.current_user, &new.current_user)?;
    same("role", &old.role, &new.role)?;
    if let Some(finding) = probe.findings.first() {
        return same("a fresh connection", "free of state", &finding.detail);
    }
    let custom = |name: &str| {
        new.custom
            .iter()
            .find(|c| c.name.eq_ignore_ascii_case(name))
    };
    for setting in &old.settings {
        let what = format!("setting {}", setting.name);
        let found = new.settings.iter().find(|s| s.name == setting.name);
        match (found, custom(&setting.name)) {
            (Some(found), _) => {
                same(&what, &setting.value, &found.value)?;
                let own = |s| matches!(s, Source::Session | Source::Client);
                if own(setting.source) && found.source != setting.source {
                    let word = |s| format!("{s:?}").to_lowercase();
                    same(
                        &format!("{what}'s source"),
                        &word(setting.source),
                        &word(found.source),
                    )?;
                }
            }
            // A setting of an extension that is not loaded here yet.
            (None, Some(found)) => same(&what, &setting.value, &found.value)?,
            // Neither role nor database names it any more, and the server's own value came up.
            (None, None) if setting.source == Source::Other => {}
            (None, None) => return same(&what, &setting.value, "not set"),
        }
    }
    let by_role = |name: &str| {
        probe
            .role_setting_names
            .iter()
            .any(|n| n.eq_ignore_ascii_case(name))
    };
    for found in &new.settings {
        let known = old.settings.iter().any(|s| s.name == found.name)
            || old
                .custom
                .iter()
                .any(|c| c.name.eq_ignore_ascii_case(&found.name));
        if !known && matches!(found.source, Source::Session | Source::Client) {
            return same(&format!("setting {}", found.name), "not set", &found.value);
        }
    }
    for wanted in &old.custom {
        let what = format!("setting {}", wanted.name);
        let real = new
            .settings
            .iter()
            .find(|s| s.name.eq_ignore_ascii_case(&wanted.name));
        let found = custom(&wanted.name)
            .map(|c| &*c.value)
            .or(real.map(|s| &*s.value));
        same(&what, &wanted.value, found.unwrap_or("not set"))?;
    }
    for found in &new.custom {
        let known = old.custom.iter().any(|c| c.name == found.name)
            || old
                .settings
                .iter()
                .any(|s| s.name.eq_ignore_ascii_case(&found.name))
            || by_role(&found.name);
        if !known {
            return same(&format!("setting {}", found.name), "not set", &found.value);
        }
    }
    verify_prepared(&old.prepared, &new.prepared, left_out)
}

fn verify_prepared(
    old: &[Prepared],
    new: &[Prepared],
    left_out: &BTreeSet<Box<str>>,
) -> Result<(), Mismatch> {
    let wanted = || old.iter().filter(|p| !left_out.contains(&p.name));
    for wanted in wanted() {
        let what = format!("prepared statement \"{}\"", wanted.name);
        let Some(found) = new.iter().find(|p| p.name == wanted.name) else {
            return same(&what, "there", "not there");
        };
        same(&what, &wanted.text, &found.text)?;
        let kind = |p: &Prepared| if p.from_sql { "SQL" } else { "protocol" };
        same(&what, kind(wanted), kind(found))?;
        let types = |p: &Prepared| format!("{:?}", p.types);
        same(
            &format!("{what}'s parameters"),
            &types(wanted),
            &types(found),
        )?;
    }
    match new.iter().find(|p| !wanted().any(|w| w.name == p.name)) {
        None => Ok(()),
        Some(extra) => same(
            &format!("prepared statement \"{}\"", extra.name),
            "not there",
            "there",
        ),
    }
}
