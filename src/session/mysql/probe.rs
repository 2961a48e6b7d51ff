//! The probe: asks a server, on a session's own connection, what that session holds.
//!
//! Statements in text form, written in one go and answered one by one; an error of one of them leaves the rest as
//! they are. The first switches tracking on once more: its OK packet tells the flags, and anew what is tracked
//! ([`Probe::answer`] is for [`super::machine::Machine::answered`]). What needs names that the first answers tell,
//! user variables' values above all, is asked in a later round. Send it only when nothing is owed.
//!
//! MariaDB's list of session variables costs the server several times what all other questions do. It tells a digest
//! of them instead, and the list only when that is neither the one of a fresh login nor the one of the session's last
//! probe on the same server connection.

use super::answers::Answers;
use super::batch::{Batch, Event, Expect};
use super::findings::{Detection, Finding, proven};
use super::grammar::{Family, Grammar};
use super::hints::Hint;
use super::machine::Held;
use super::probe_sql as sql;
use super::side::{Side, unhex_text};
use super::snapshot::{Baseline, Digest, Snapshot, State, Variables, prepared};
use super::tracker::{TRACKING_SQL, Tracked};
use crate::wire::mysql::command::put_query;
use crate::wire::mysql::reply::OkPacket;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Largest packet of a reply to a probe or a restore that is taken, in bytes. A session whose state is larger
/// is not movable.
pub const MAX_REPLY: usize = 16 << 20;

/// User variables that are asked for by one statement.
pub(super) const VALUES_AT_ONCE: usize = 100;

/// A server that takes smaller packets than this many bytes is not asked for a digest: the question might not fit.
const DIGEST_FROM: u64 = 64 << 10;

/// No such table in information_schema.
const UNKNOWN_TABLE: [u16; 2] = [1109, 1146];

/// The first MariaDB that lists temporary tables.
pub(super) const LISTS_TEMPORARY: u32 = 110_200;

/// What a probe must know beforehand.
#[derive(Debug, Clone, Copy)]
pub struct ProbeSpec<'a> {
    /// How replies are built.
    pub grammar: Grammar,
    /// The server's version, such as 101119 or 90704.
    pub version: u32,
    /// What a fresh login holds; `None`: this is one, and tells it.
    pub baseline: Option<&'a Arc<Baseline>>,
    /// What the machine knows.
    pub held: &'a Held,
    /// MySQL: what the service connection saw; `None`: there is none.
    pub side: Option<&'a Side>,
    /// What the last probe on the same server connection found.
    pub known: Option<&'a Known>,
    /// Variables are expected to be neither those of a fresh login nor the known ones, or there may be more: they are
    /// asked for at once.
    pub in_full: bool,
}

/// What a probe found of session variables, and by what the server tells that they are still the same. It holds for
/// one server connection.
#[derive(Debug, Clone)]
pub struct Known {
    told: Box<str>,
    snapshot: Snapshot,
}

/// What a probe found.
#[derive(Debug, Clone)]
pub struct Probe {
    /// What can be carried to another connection.
    pub snapshot: Snapshot,
    /// What can't.
    pub findings: Vec<Finding>,
    /// The OK packet that answered the first statement.
    pub answer: Box<[u8]>,
    /// Which connection answered, by its real number.
    pub connection_id: u64,
    /// Everything that a fresh login of this kind holds, if this is one.
    pub baseline: Arc<Baseline>,
    /// Session variables, all that are carried.
    pub variables: Arc<Variables>,
    /// For the next probe on this server connection.
    pub known: Option<Known>,
    /// What this server can't show.
    pub missing: Vec<Detection>,
    /// Hints that the probe has an answer to: for [`super::machine::Machine::proven`].
    pub proven: Hint,
    /// sql_mode has ANSI_QUOTES.
    pub ansi_quotes: bool,
    /// Transactions are tracked, as Slackwater wants them to be.
    pub is_tracked: bool,
}

/// MariaDB: asks how many session variables there are. Another number than a baseline's: a digest may not tell of all.
pub fn count_sql() -> String {
    sql::count()
}

/// Why nothing is known about a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what the session holds is unknown: {message}{}", if *code == 0 { String::new() } else { format!(" (error {code})") })]
pub struct ProbeError {
    /// The server's error; 0 when the fault is not an error of the server's.
    pub code: u16,
    /// The server's own words, or what was wrong with its answer.
    pub message: Box<str>,
    /// The client can go on on this connection.
    pub usable: bool,
}

/// What to do after a packet of the reply.
#[derive(Debug)]
pub enum ProbeStep {
    /// Read on.
    More,
    /// Send these bytes to the server, then read on.
    Send(BytesMut),
    /// The end.
    Done(Box<Probe>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Status,
    Facts,
    /// What the guards of the other questions hide.
    Apart,
    Digest,
    Variables,
    UserVariables,
    Locks,
    Counters,
    Clock,
    /// Nothing: a setting is changed for the next question.
    Setting,
    /// Values of user variables, from this one on.
    Values(usize),
    Temporary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    First,
    /// Session variables one by one, or their digest.
    Variables,
    /// What the answers made a question of.
    Last,
}

/// Reads the reply to [`put_probe`] or [`put_check`]. After an error or [`ProbeStep::Done`] it takes nothing more.
#[derive(Debug)]
pub struct ProbeReader {
    pub(super) grammar: Grammar,
    pub(super) version: u32,
    baseline: Option<Arc<Baseline>>,
    pub(super) held: Held,
    pub(super) side: Option<Side>,
    pub(super) checks: bool,
    known: Option<Known>,
    asks: Vec<Ask>,
    batch: Batch,
    round: Round,
    names: BTreeSet<Box<str>>,
    kinds: Vec<(u8, u16)>,
    rows: usize,
    answers: Answers,
    error: Option<ProbeError>,
    /// The session's own limits cut the counters short.
    recount: bool,
    over: bool,
}

/// Appends the probe and returns what reads its reply.
pub fn put_probe(out: &mut BytesMut, spec: &ProbeSpec<'_>) -> ProbeReader {
    let mut asks = vec![Ask::Status, Ask::Facts, variables(spec), Ask::Apart];
    if spec.grammar.family == Family::MariaDb {
        asks.extend([Ask::UserVariables, Ask::Locks]);
    }
    asks.extend([Ask::Counters, Ask::Clock]);
    put(out, spec, asks, false)
}

/// Appends a probe of a fresh login for a session that holds nothing else ([`crate::session::Portable::is_plain`]):
/// it asks for none of what only a session that has worked can hold.
pub fn put_check(out: &mut BytesMut, spec: &ProbeSpec<'_>) -> ProbeReader {
    let asks = vec![Ask::Status, Ask::Facts, variables(spec), Ask::Apart];
    put(out, spec, asks, true)
}

fn variables(spec: &ProbeSpec<'_>) -> Ask {
    let digest = spec.baseline.and_then(|b| b.digest.as_ref());
    if digest.is_some() && !spec.in_full {
        Ask::Digest
    } else {
        Ask::Variables
    }
}

fn put(out: &mut BytesMut, spec: &ProbeSpec<'_>, asks: Vec<Ask>, checks: bool) -> ProbeReader {
    let family = spec.grammar.family;
    for ask in &asks {
        match ask {
            // Said again, it has the server tell all anew that it tracks.
            Ask::Status => put_query(out, TRACKING_SQL),
            Ask::Facts => put_query(out, &sql::facts(family)),
            Ask::Apart => put_query(out, &sql::apart(family)),
            Ask::Digest => {
                let digest = spec.baseline.and_then(|b| b.digest.as_ref());
                put_query(out, digest.map_or("", |d| &d.sql));
            }
            Ask::Variables => put_query(out, &sql::variables(family)),
            Ask::UserVariables => put_query(out, &sql::user_variables()),
            Ask::Locks => put_query(out, &sql::locks()),
            Ask::Counters => put_query(out, &sql::counters(family)),
            Ask::Clock => put_query(out, &sql::clock(family)),
            Ask::Values(_) | Ask::Temporary | Ask::Setting => {}
        }
    }
    ProbeReader {
        grammar: spec.grammar,
        version: spec.version,
        baseline: spec.baseline.cloned(),
        held: spec.held.clone(),
        side: spec.side.cloned(),
        checks,
        known: spec.known.cloned(),
        batch: Batch::new(spec.grammar, vec![Expect::Query; asks.len()]),
        asks,
        round: Round::First,
        names: BTreeSet::new(),
        kinds: Vec::new(),
        rows: 0,
        answers: Answers::default(),
        error: None,
        recount: false,
        over: false,
    }
}

impl ProbeReader {
    /// A packet that is longer than [`MAX_REPLY`], and was not kept: a value as large as that is not carried, and the
    /// session stays where it is.
    pub fn on_long_packet(&mut self) -> Result<ProbeStep, ProbeError> {
        if self.over || !self.batch.is_in_rows() {
            return Err(self.out_of_step("more than was asked for"));
        }
        self.rows += 1;
        self.fail(0, "a value is larger than what can be carried");
        Ok(ProbeStep::More)
    }

    /// Takes the payload of one packet from the server. An error ends the probe: the session's state is unknown.
    pub fn on_packet(&mut self, payload: &[u8]) -> Result<ProbeStep, ProbeError> {
        if self.over || payload.len() > MAX_REPLY {
            return Err(self.out_of_step("more than was asked for"));
        }
        let Some((at, event)) = self.batch.on_packet(payload) else {
            return Err(self.out_of_step("a packet that can't be read"));
        };
        let Some(ask) = self.asks.get(at).copied() else {
            return Err(self.out_of_step("more than was asked for"));
        };
        match event {
            Event::Column(column) => self.kinds.push((column.kind, column.flags)),
            Event::Row(row) => {
                self.rows += 1;
                let family = self.grammar.family;
                let read = self
                    .answers
                    .take(ask, family, &row, &mut self.names, &self.kinds);
                if read.is_none() {
                    self.fail(0, "a row that can't be read");
                }
            }
            Event::Done(ok, payload) => {
                if ask == Ask::Status {
                    self.on_status(&ok, payload);
                } else if ask != Ask::Setting {
                    self.fail(0, "no rows");
                }
            }
            Event::End => self.on_end(ask),
            Event::Failed(error) => {
                self.kinds.clear();
                self.on_error(ask, error.code, error.message);
            }
            Event::More | Event::Prepared(_) => {}
        }
        if self.batch.is_over() {
            return self.on_over();
        }
        Ok(ProbeStep::More)
    }

    fn out_of_step(&mut self, message: &str) -> ProbeError {
        self.over = true;
        ProbeError {
            code: 0,
            message: format!("answer of the server to Slackwater's probe: {message}").into(),
            usable: false,
        }
    }

    fn fail(&mut self, code: u16, message: &str) {
        self.error.get_or_insert_with(|| ProbeError {
            code,
            message: message.into(),
            usable: true,
        });
    }

    fn on_status(&mut self, ok: &OkPacket<'_>, payload: &[u8]) {
        self.answers.status = ok.status;
        self.answers.ok = payload.into();
        let mut tracked = Tracked {
            characteristics: self.held.characteristics.clone(),
            ..Tracked::default()
        };
        tracked.take(ok.session, true);
        if !ok.status.in_transaction() {
            tracked.forget_transaction();
        }
        self.held.characteristics = tracked.characteristics;
    }

    fn on_error(&mut self, ask: Ask, code: u16, message: &[u8]) {
        let missing = match ask {
            Ask::Locks => Detection::LockInfo,
            Ask::UserVariables => Detection::UserVariables,
            Ask::Counters if self.round == Round::First && self.grammar.family == Family::MySql => {
                self.recount = true;
                return;
            }
            // It can't be told: the list is asked for.
            Ask::Digest => return,
            // The session's own time limit: once more.
            Ask::Apart if self.round == Round::First => return,
            Ask::Setting => {
                // The limits may not be what they were.
                self.fail(code, &String::from_utf8_lossy(message));
                if let Some(error) = &mut self.error {
                    error.usable = false;
                }
                return;
            }
            _ => return self.fail(code, &String::from_utf8_lossy(message)),
        };
        if UNKNOWN_TABLE.contains(&code) {
            self.answers.missing.push(missing);
        } else {
            self.fail(code, &String::from_utf8_lossy(message));
        }
    }

    fn on_end(&mut self, ask: Ask) {
        self.kinds.clear();
        let rows = std::mem::take(&mut self.rows);
        if ask == Ask::Counters {
            let family = self.grammar.family;
            let whole = sql::counted(family).all(|name| self.answers.counters.contains_key(name));
            if !whole && family == Family::MySql && self.round == Round::First {
                self.recount = true;
            } else if !whole {
                self.fail(0, "counters are missing");
            }
            return;
        }
        if rows == 0
            && matches!(
                ask,
                Ask::Facts | Ask::Apart | Ask::Variables | Ask::Clock | Ask::Values(_)
            )
        {
            self.fail(0, "no rows");
        }
    }

    fn on_over(&mut self) -> Result<ProbeStep, ProbeError> {
        let mut out = BytesMut::new();
        if self.error.is_none() && self.round == Round::First {
            self.round = Round::Variables;
            self.put_variables(&mut out);
        }
        if self.error.is_none() && self.round == Round::Variables && out.is_empty() {
            self.answers.put_apart();
            if !self.checks {
                self.round = Round::Last;
                self.put_last(&mut out);
            }
        }
        if !out.is_empty() {
            self.batch = Batch::new(self.grammar, vec![Expect::Query; self.asks.len()]);
            return Ok(ProbeStep::Send(out));
        }
        self.over = true;
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        match self.build() {
            Some(probe) => Ok(ProbeStep::Done(Box::new(probe))),
            None => Err(ProbeError {
                usable: true,
                ..self.out_of_step("facts that can't be read")
            }),
        }
    }

    /// The list of variables, if the digest says that it is another; the digest of a fresh login.
    fn put_variables(&mut self, out: &mut BytesMut) {
        let mut asks = Vec::new();
        if self.asks.contains(&Ask::Digest) {
            let told = self.answers.digest.as_deref();
            let same = told.and_then(|told| {
                let known = self.known.as_ref().filter(|k| *k.told == *told);
                let baseline = self.baseline.as_ref()?;
                let fresh = baseline.digest.as_ref().filter(|d| *d.told == *told);
                match (fresh, known) {
                    (Some(_), _) => Some(Arc::clone(&baseline.variables)),
                    (None, Some(known)) => {
                        let mut all = (*baseline.variables).clone();
                        all.extend(known.snapshot.state().variables.iter().cloned());
                        Some(Arc::new(all))
                    }
                    (None, None) => None,
                }
            });
            if let Some(same) = same {
                self.answers.variables = same;
            } else {
                put_query(out, &sql::variables(self.grammar.family));
                asks.push(Ask::Variables);
            }
        } else if self.baseline.is_none() && self.grammar.family == Family::MariaDb {
            let fits = self.answers.max_packet >= Some(DIGEST_FROM);
            let sql = fits.then(|| sql::digest(self.answers.digested()));
            if let Some(sql) = sql.flatten() {
                put_query(out, &sql);
                self.answers.digest_sql = Some(sql.into());
                asks.push(Ask::Digest);
            }
        }
        if !self.answers.has_apart() {
            put_query(out, &sql::apart(self.grammar.family));
            asks.push(Ask::Apart);
        }
        if !asks.is_empty() {
            self.asks = asks;
        }
    }

    /// What the answers made a question of.
    fn put_last(&mut self, out: &mut BytesMut) {
        let family = self.grammar.family;
        let mut asks = Vec::new();
        if let Some(side) = &self.side {
            self.names.extend(side.user_variables.iter().cloned());
        }
        let utf8 = self.variable_is("character_set_client", |v| v.starts_with("utf8"));
        if !utf8 && self.names.iter().any(|n| !n.is_ascii()) {
            // They can't be written in the session's character set.
            let text =
                "a user variable has a name that can't be asked for in the session's character set";
            self.fail(0, text);
            return;
        }
        let names: Vec<&str> = self.names.iter().map(|n| &**n).collect();
        for (index, some) in names.chunks(VALUES_AT_ONCE).enumerate() {
            put_query(out, &sql::values(family, some));
            asks.push(Ask::Values(index * VALUES_AT_ONCE));
        }
        if family == Family::MariaDb
            && self.version >= LISTS_TEMPORARY
            && self.answers.made_temporary()
        {
            put_query(out, &sql::temporary());
            asks.push(Ask::Temporary);
        }
        if self.recount {
            let own = |name: &str| self.answers.variable(name).unwrap_or_default().to_owned();
            let (limit, big) = (own("sql_select_limit"), own("sql_big_selects"));
            put_query(out, sql::UNLIMITED);
            put_query(out, &sql::counters(family));
            put_query(out, &sql::limited(&limit, &big));
            asks.extend([Ask::Setting, Ask::Counters, Ask::Setting]);
        }
        self.asks = asks;
    }

    fn variable_is(&self, name: &str, is: impl Fn(&str) -> bool) -> bool {
        let value = self.answers.variables.get(name);
        value.and_then(|v| v.text.as_deref()).is_some_and(is)
    }

    fn build(&mut self) -> Option<Probe> {
        let mut answers = std::mem::take(&mut self.answers);
        let fact = |at: usize| answers.facts.get(at).cloned().flatten();
        let hexed = |at: usize| match fact(at) {
            None => Some(None),
            Some(digits) => unhex_text(&digits).map(|t| Some(Box::<str>::from(t))),
        };
        let database = hexed(2)?;
        let role = hexed(3)?.filter(|role| &**role != "NONE");
        let account = hexed(4)??;
        let timestamp = fact(0).filter(|t| !self.checks && answers.clock.as_ref() == Some(t));
        let connection_id = fact(1)?.parse().ok()?;
        let last_insert_id = fact(5)?.parse().ok()?;
        let insert_id = fact(6)?.parse().ok().filter(|id: &u64| *id > 0);
        if self.grammar.family == Family::MySql && self.side.is_none() && !self.checks {
            answers.missing.push(Detection::Service);
        }
        if self.grammar.family == Family::MariaDb && self.version < LISTS_TEMPORARY {
            answers.missing.push(Detection::TemporaryTables);
        }
        let innodb = |v: &str| v.eq_ignore_ascii_case("innodb");
        let of_innodb = answers
            .variable("default_tmp_storage_engine")
            .is_some_and(innodb);
        let is_tracked = answers.is_tracked();
        let ansi = answers
            .variable("sql_mode")
            .is_some_and(|v| v.contains("ANSI_QUOTES"));
        let variables = Arc::clone(&answers.variables);
        let digest = answers.digest.take();
        let baseline = self.baseline.take().unwrap_or_else(|| {
            let sql = answers.digest_sql.take();
            Arc::new(Baseline {
                variables: Arc::clone(&variables),
                digest: sql.zip(digest.clone()).map(|(sql, told)| Digest {
                    sql,
                    told,
                    listed: answers.listed,
                }),
                role: role.clone(),
                database: database.clone(),
            })
        });
        let differ = variables
            .iter()
            .filter(|(name, value)| baseline.variables.get(*name) != Some(value));
        let state = State {
            account,
            database,
            role,
            login: (baseline.database.clone(), baseline.role.clone()),
            variables: differ.map(|(n, v)| (n.clone(), v.clone())).collect(),
            user_variables: std::mem::take(&mut answers.values).into(),
            last_insert_id,
            insert_id,
            timestamp,
            characteristics: self.held.characteristics.as_ref().into(),
            multi_statements: (self.held.multi_statements, self.grammar.multi_statements),
            prepared: prepared(&self.held),
            texts: self.held.texts.clone().into(),
            kept: BTreeSet::new(),
        };
        let findings = self.findings(&answers);
        let mut proven = proven(&answers.missing);
        if self.checks {
            proven = Hint::default();
        } else if self.grammar.family == Family::MySql && !of_innodb {
            proven.0 &= !Hint::TEMP_TABLE.0;
        }
        let snapshot = Snapshot::new(state);
        Some(Probe {
            known: digest.map(|told| Known {
                told,
                snapshot: snapshot.clone(),
            }),
            snapshot,
            findings,
            connection_id,
            baseline,
            variables,
            proven,
            ansi_quotes: ansi,
            is_tracked,
            answer: answers.ok,
            missing: answers.missing,
        })
    }
}
