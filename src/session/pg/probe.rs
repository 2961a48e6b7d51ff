//! The probe: asks a server, on a session's own connection, what that session holds.
//!
//! One write, one reply, any user. Named statements of the extended protocol, because a simple Query or an
//! unnamed Parse would destroy the client's unnamed statement; a transaction of its own, because the
//! session's defaults may make a plain SELECT wait or fail; everything qualified, operators too, because
//! search_path is the client's. Send it only at rest with transaction status `I`.

use super::findings::{Finding, Found, PreparedRow, RoleRow, SettingRow};
use super::probe_sql;
use super::snapshot::{Custom, Setting, Snapshot, Source, State};
use crate::wire::pg::backend::{ErrorFields, data_row};
use crate::wire::pg::frame::put;
use bytes::{BufMut, BytesMut};
use std::collections::BTreeSet;
use std::ops::Range;

/// Largest body of a reply to a probe or a restore that is taken, in bytes. A session whose state is larger
/// is not movable.
pub const MAX_REPLY: usize = 16 << 20;

/// What a probe must know beforehand.
#[derive(Debug, Clone, Copy)]
pub struct ProbeSpec<'a> {
    /// Names of custom settings that any session of this database may have, in lower case.
    pub custom_names: &'a [String],
    /// The session's last snapshot, if there is one: its names are asked for too.
    pub previous: Option<&'a Snapshot>,
    /// Who logged in: `user` of the start-up packet.
    pub login_user: &'a str,
    /// `server_version_num` of the server, such as 150020.
    pub server_version_num: u32,
}

/// What a probe found.
#[derive(Debug, Clone)]
pub struct Probe {
    /// What can be carried to another connection.
    pub snapshot: Snapshot,
    /// What can't.
    pub findings: Vec<Finding>,
    /// Who answered.
    pub server: ServerFacts,
    /// The session's idle_session_timeout in milliseconds, 0: none.
    pub idle_session_timeout_ms: u64,
    /// Hash of the `pg_db_role_setting` rows for this login; zero when there are none.
    pub role_settings: u64,
    /// Names that those rows set.
    pub role_setting_names: BTreeSet<Box<str>>,
    /// Loaded libraries (from PostgreSQL 18 on; empty before).
    pub modules: Vec<String>,
}

/// What is known of the server that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerFacts {
    /// Process number of the server connection.
    pub pid: i32,
    /// When the server was started, in microseconds since 1970.
    pub started_us: i64,
    /// The server is a standby or recovers from a crash.
    pub in_recovery: bool,
}

/// Why nothing is known about a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what the session holds is unknown: {message}{}", if sqlstate.is_empty() { String::new() } else { format!(" (SQLSTATE {sqlstate})") })]
pub struct ProbeError {
    /// SQLSTATE of the server's error; empty when the fault is not an error of the server's.
    pub sqlstate: Box<str>,
    /// The server's own words, or what was wrong with its answer.
    pub message: Box<str>,
    /// The connection is at status `I`, nothing of the probe is left on it, and the client can go on.
    pub usable: bool,
    /// A name of a custom setting that the server's words mention: not to be asked for by this user again.
    pub custom_name: Option<Box<str>>,
}

/// What to do after a frame of the reply.
#[derive(Debug)]
pub enum ProbeStep {
    /// Read on.
    More,
    /// Forward this frame to the client (a notification or a parameter's new value), then read on.
    ForClient,
    /// Send these bytes to the server (they clean up after an error), then read on.
    Send(BytesMut),
    /// The end.
    Done(Box<Probe>),
}

/// Statement names of the probe. A client that uses one of them itself makes its probe fail.
const NAMES: [&str; 6] = ["_px0", "_px1", "_px2", "_px3", "_px4", "_px5"];
const ROLLBACK_NAME: &str = "_px6";
const JIT: usize = 1;
const GUARD: usize = 3;
const MAIN: usize = 4;

/// Appends the probe and returns what reads its reply.
pub fn put_probe(out: &mut BytesMut, spec: &ProbeSpec<'_>) -> ProbeReader {
    let (asked, list) = asked_names(spec);
    for (index, sql) in probe_sql::statements(spec.server_version_num)
        .into_iter()
        .enumerate()
    {
        let name = NAMES[index];
        if index == MAIN {
            let params: [&[u8]; 2] = [list.as_bytes(), spec.login_user.as_bytes()];
            put_statement(out, name, sql, &[1009, 25], &params, 1);
        } else {
            put_statement(out, name, sql, &[], &[], 0);
        }
        put_close(out, name);
    }
    put(out, b'S', |_| {});
    ProbeReader::new(spec, asked, 0..NAMES.len())
}

/// Appends a probe of a fresh login that [`Snapshot::is_checkable`] against: it sees what the snapshot
/// would differ by, and none of what only a session that has worked can hold.
pub fn put_check(out: &mut BytesMut, spec: &ProbeSpec<'_>) -> ProbeReader {
    let (asked, list) = asked_names(spec);
    let (name, sql) = (NAMES[MAIN], probe_sql::CHECK_SQL);
    put_statement(out, name, sql, &[1009], &[list.as_bytes()], 1);
    put_close(out, name);
    put(out, b'S', |_| {});
    ProbeReader::new(spec, asked, MAIN..MAIN + 1)
}

/// Names of custom settings to ask for, and the same as a text array.
pub fn asked_names(spec: &ProbeSpec<'_>) -> (BTreeSet<Box<str>>, String) {
    let names: BTreeSet<Box<str>> = spec
        .custom_names
        .iter()
        .map(String::as_str)
        .chain(spec.previous.into_iter().flat_map(Snapshot::names_to_ask))
        .filter(|n| n.is_ascii())
        .map(Into::into)
        .collect();
    let mut list = String::from("{");
    for name in &names {
        if list.len() > 1 {
            list.push(',');
        }
        list.push('"');
        list.extend(name.chars().filter(|c| !matches!(c, '"' | '\\' | '\0')));
        list.push('"');
    }
    list.push('}');
    (names, list)
}

/// Parse, Bind and Execute of one statement with parameters in text form.
pub(crate) fn put_statement(
    out: &mut BytesMut,
    name: &str,
    sql: &str,
    types: &[u32],
    params: &[&[u8]],
    result_format: i16,
) {
    put_parse(out, name, sql, types);
    put(out, b'B', |out| {
        out.put_u8(0);
        out.put_slice(name.as_bytes());
        out.put_u8(0);
        out.put_i16(0);
        out.put_i16(i16::try_from(params.len()).unwrap_or(i16::MAX));
        for param in params {
            out.put_i32(i32::try_from(param.len()).unwrap_or(i32::MAX));
            out.put_slice(param);
        }
        out.put_i16(1);
        out.put_i16(result_format);
    });
    put(out, b'E', |out| {
        out.put_u8(0);
        out.put_i32(0);
    });
}

/// A Parse message.
pub(super) fn put_parse(out: &mut BytesMut, name: &str, sql: &str, types: &[u32]) {
    put(out, b'P', |out| {
        out.put_slice(name.as_bytes());
        out.put_u8(0);
        out.put_slice(sql.as_bytes());
        out.put_u8(0);
        let count = u16::try_from(types.len()).unwrap_or(u16::MAX);
        out.put_u16(count);
        for oid in types.iter().take(usize::from(count)) {
            out.put_u32(*oid);
        }
    });
}

pub(super) fn put_close(out: &mut BytesMut, name: &str) {
    put(out, b'C', |out| {
        out.put_u8(b'S');
        out.put_slice(name.as_bytes());
        out.put_u8(0);
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Parse,
    Bind,
    Rows,
    Close,
    Ready,
    /// An error came: everything up to ReadyForQuery is skipped by the server.
    Failed,
    /// The reply to the cleaning up.
    Cleaned,
    Over,
}

/// Reads the reply to [`put_probe`] or [`put_check`]. After an error or [`ProbeStep::Done`] it takes nothing more.
#[derive(Debug)]
pub struct ProbeReader {
    login_user: Box<str>,
    asked: BTreeSet<Box<str>>,
    statement: usize,
    /// The statement behind the last one.
    end: usize,
    next: Next,
    /// The statement that failed had been parsed, so that its name is left behind.
    parsed: bool,
    jit: Option<String>,
    guard: Vec<Option<String>>,
    main: Option<Result<Found, String>>,
    error: Option<ProbeError>,
}

impl ProbeReader {
    fn new(spec: &ProbeSpec<'_>, asked: BTreeSet<Box<str>>, statements: Range<usize>) -> Self {
        Self {
            login_user: spec.login_user.into(),
            asked,
            statement: statements.start,
            end: statements.end,
            next: Next::Parse,
            parsed: false,
            jit: None,
            guard: Vec::new(),
            main: None,
            error: None,
        }
    }

    /// Takes one whole frame from the server. An error ends the probe: the session's state is unknown.
    /// A frame longer than [`MAX_REPLY`] need not be kept: hand it over with an empty body.
    pub fn on_frame(&mut self, tag: u8, body: &[u8]) -> Result<ProbeStep, ProbeError> {
        match (tag, self.next) {
            (_, Next::Over) => return Err(out_of_step("a frame after the end")),
            (b'A' | b'S', _) => return Ok(ProbeStep::ForClient),
            (b'N', _) => return Ok(ProbeStep::More),
            (b'E', _) => return self.on_error(body),
            (b'1', Next::Parse) => self.next = Next::Bind,
            (b'2', Next::Bind) => self.next = Next::Rows,
            (b'D', Next::Rows) => self.on_row(body),
            (b'C', Next::Rows) => self.next = Next::Close,
            (b'3', Next::Close) => {
                self.statement += 1;
                self.next = if self.statement == self.end {
                    Next::Ready
                } else {
                    Next::Parse
                };
            }
            (b'Z', Next::Ready) if body == b"I" => {
                self.next = Next::Over;
                return self.finish().map(|p| ProbeStep::Done(Box::new(p)));
            }
            (b'Z', Next::Failed) => {
                self.next = Next::Cleaned;
                let left = self
                    .parsed
                    .then(|| NAMES.get(self.statement).copied())
                    .flatten();
                return Ok(ProbeStep::Send(clean_up(body != b"I", left)));
            }
            (b'1' | b'2' | b'C' | b'3', Next::Cleaned) => {}
            (b'Z', Next::Cleaned) => {
                self.next = Next::Over;
                let mut error = self.error.take().unwrap_or_else(|| out_of_step("no error"));
                error.usable = body == b"I";
                return Err(error);
            }
            _ => {
                self.next = Next::Over;
                return Err(out_of_step(&format!(
                    "unexpected message {:?}",
                    char::from(tag)
                )));
            }
        }
        Ok(ProbeStep::More)
    }

    fn on_error(&mut self, body: &[u8]) -> Result<ProbeStep, ProbeError> {
        let fields = ErrorFields::parse(body);
        let custom_name = self
            .asked
            .iter()
            .find(|n| {
                fields
                    .message
                    .to_ascii_lowercase()
                    .contains(&format!("\"{n}\""))
            })
            .cloned();
        let error = ProbeError {
            sqlstate: fields.code.as_str().into(),
            message: fields.message.as_str().into(),
            usable: false,
            custom_name,
        };
        if fields.is_fatal() || matches!(self.next, Next::Failed | Next::Cleaned) {
            self.next = Next::Over;
            return Err(error);
        }
        self.parsed = self.next != Next::Parse;
        self.error = Some(error);
        self.next = Next::Failed;
        Ok(ProbeStep::More)
    }

    fn on_row(&mut self, body: &[u8]) {
        let text = |v: Option<&[u8]>| v.map(|v| String::from_utf8_lossy(v).into_owned());
        let columns = if body.len() > MAX_REPLY {
            Vec::new()
        } else {
            data_row(body).unwrap_or_default()
        };
        let first = columns.first().copied().flatten();
        match self.statement {
            JIT => self.jit = text(first),
            GUARD => self.guard = columns.iter().copied().map(text).collect(),
            MAIN => {
                self.main = Some(match first {
                    Some(json) => serde_json::from_slice(json).map_err(|e| e.to_string()),
                    None => Err("the session's state is larger than 16 MiB".to_owned()),
                });
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> Result<Probe, ProbeError> {
        let unusable = |message: &str| ProbeError {
            usable: true,
            ..out_of_step(message)
        };
        let found = match self.main.take() {
            Some(Ok(found)) => found,
            Some(Err(e)) => return Err(unusable(&e)),
            None => return Err(unusable("no row")),
        };
        Ok(self.build(found))
    }

    /// Makes a probe of what the server said and of what the probe itself had to change.
    fn build(&self, found: Found) -> Probe {
        let findings = found.findings();
        let mut role_setting_names = BTreeSet::new();
        for RoleRow(_, _, lines) in found.roles.iter().flatten() {
            for line in lines.iter().flatten() {
                let name = line.split_once('=').map_or(line.as_str(), |(name, _)| name);
                role_setting_names.insert(Box::from(name));
            }
        }
        let mut idle_session_timeout_ms = 0;
        let mut known = BTreeSet::new();
        let mut settings = Vec::new();
        for SettingRow(name, value, source, reset) in found.settings.into_iter().flatten() {
            if name.contains('.') {
                known.insert(name.to_ascii_lowercase());
            }
            if name == "idle_session_timeout" {
                idle_session_timeout_ms = value.as_deref().unwrap_or("0").parse().unwrap_or(0);
            }
            let named = role_setting_names.contains(name.as_str());
            let (value, source) = match self.neutralised(&name) {
                // What hides behind our own SET LOCAL: the source shows only when the value differs.
                Some(own) if Some(&own) != reset.as_ref() => (own, Some(Source::Session)),
                Some(own) => (own, named.then_some(Source::Other)),
                None => (value.unwrap_or_default(), source_of(&source, named)),
            };
            if let Some(source) = source.filter(|_| is_carried(&name)) {
                settings.push(Setting {
                    name: name.into(),
                    value: value.into(),
                    source,
                });
            }
        }
        let mut custom = std::collections::BTreeMap::new();
        for (name, value) in found.custom.into_iter().flatten() {
            let name = name.to_ascii_lowercase();
            if let Some(value) = value.filter(|_| !known.contains(&name)) {
                custom.insert(name, value);
            }
        }
        let state = State {
            login_user: self.login_user.clone(),
            session_user: found.session_user,
            current_user: found.current_user,
            role: found.role,
            settings: settings.into(),
            custom: custom
                .into_iter()
                .map(|(name, value)| Custom {
                    name: name.into(),
                    value: value.into(),
                })
                .collect(),
            prepared: found
                .prepared
                .into_iter()
                .flatten()
                .map(PreparedRow::into_prepared)
                .collect(),
        };
        let role_settings = found.roles.as_ref().map_or(0, |rows| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            rows.hash(&mut hasher);
            hasher.finish()
        });
        Probe {
            snapshot: Snapshot::new(state),
            findings,
            server: ServerFacts {
                pid: found.pid,
                started_us: found.started_us,
                in_recovery: found.in_recovery,
            },
            idle_session_timeout_ms,
            role_settings,
            role_setting_names,
            modules: found.modules.unwrap_or_default(),
        }
    }

    /// The session's own value of a setting that the probe changed for itself.
    fn neutralised(&self, name: &str) -> Option<String> {
        let at = match name {
            "jit_above_cost" => return self.jit.clone(),
            "statement_timeout" => 0,
            "transaction_timeout" => 2,
            _ => return None,
        };
        self.guard.get(at).cloned().flatten()
    }
}

fn out_of_step(message: &str) -> ProbeError {
    ProbeError {
        sqlstate: Box::default(),
        message: format!("answer of the server to Slackwater's probe: {message}").into(),
        usable: false,
        custom_name: None,
    }
}

/// Ends the probe's transaction when an error left it open, and closes the statement that failed.
fn clean_up(in_transaction: bool, left: Option<&str>) -> BytesMut {
    let mut out = BytesMut::new();
    if in_transaction {
        put_statement(&mut out, ROLLBACK_NAME, "ROLLBACK", &[], &[], 0);
        put_close(&mut out, ROLLBACK_NAME);
    }
    if let Some(name) = left {
        put_close(&mut out, name);
    }
    put(&mut out, b'S', |_| {});
    out
}

/// Some settings are part of a transaction, or stand for something that is carried by other means.
fn is_carried(name: &str) -> bool {
    !matches!(
        name,
        "role"
            | "session_authorization"
            | "is_superuser"
            | "seed"
            | "transaction_isolation"
            | "transaction_read_only"
            | "transaction_deferrable"
    )
}

fn source_of(source: &str, named_by_role: bool) -> Option<Source> {
    match source {
        "session" => Some(Source::Session),
        "client" => Some(Source::Client),
        "user" | "database" | "database user" | "global" => Some(Source::Role),
        _ => named_by_role.then_some(Source::Other),
    }
}
