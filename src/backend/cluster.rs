//! What the sessions of one cluster share.

use super::engine::Engine;
use super::exec::{ExecError, Rows};
use super::gate::Gate;
use super::line::Line;
use super::mysql::offer::Offer;
use super::registry::Registry;
use super::service::Service;
use crate::session::mysql::findings::Detection;
use crate::session::mysql::snapshot::Baseline;
use crate::session::pg::CATALOG_NAMES_SQL;
use crate::transport::SocketConfig;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long a failed rehearsal is believed.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// How long a rehearsal is believed where the service account may not read what would tell of a change.
const UNREAD_KEPT: Duration = Duration::from_secs(5);

/// Most rehearsals that are remembered.
const REHEARSALS_MAX: usize = 10_000;

/// What tells of a change in what decides whether a session could log in again and take its roles.
const fn access(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => POSTGRES_ACCESS,
        Engine::Mysql => {
            "CHECKSUM TABLE mysql.user, mysql.db, mysql.role_edges, mysql.default_roles"
        }
        Engine::Mariadb => "CHECKSUM TABLE mysql.global_priv, mysql.db, mysql.roles_mapping",
    }
}

const POSTGRES_ACCESS: &str = "SELECT pg_catalog.md5(pg_catalog.string_agg(x.t, '' ORDER BY x.t)) FROM (\
SELECT a::text || (a.rolvaliduntil < pg_catalog.now())::text AS t FROM pg_catalog.pg_authid a WHERE a.rolvaliduntil IS NOT NULL \
UNION ALL SELECT a::text FROM pg_catalog.pg_authid a \
UNION ALL SELECT m::text FROM pg_catalog.pg_auth_members m \
UNION ALL SELECT s::text FROM pg_catalog.pg_db_role_setting s \
UNION ALL SELECT pg_catalog.concat(d.oid, d.datname, d.datallowconn, d.datconnlimit, d.datacl::text) FROM pg_catalog.pg_database d \
UNION ALL SELECT pg_catalog.pg_conf_load_time()::text) x";

/// Most kinds of logins whose state is remembered.
const BASELINES_MAX: usize = 1000;

/// Most custom setting names that are remembered of one database.
const NAMES_MAX: usize = 1000;

/// One cluster as its sessions see it.
#[derive(Debug)]
pub struct Cluster {
    /// Its name.
    pub name: Arc<str>,
    /// What its servers are.
    pub engine: Engine,
    /// Who serves, and holds.
    pub gate: Arc<Gate>,
    /// Its sessions.
    pub registry: Arc<Registry>,
    /// Where sessions wait for each other after a barrier.
    pub line: Line,
    /// The service account.
    pub service: Service,
    /// Keepalive towards its servers.
    pub socket: SocketConfig,
    /// How long held requests wait for a server that is away.
    pub max_outage: Duration,
    /// Names of custom settings that the operator gave.
    pub custom_settings: Vec<String>,
    /// Replication connections are ended for an event, not waited for.
    pub ends_replication: bool,
    /// How long a session rests before it is moved, if its client may still ask for what its last statement left.
    pub diagnostics_wait: Duration,
    /// Sessions that found a blocker in the present hold.
    blocked: AtomicUsize,
    names: Mutex<HashMap<String, BTreeSet<String>>>,
    rehearsals: Mutex<Rehearsals>,
    /// Whether a server that ended sessions still takes log-ins, as last asked.
    pub alive: tokio::sync::Mutex<Option<Alive>>,
    access: tokio::sync::Mutex<Access>,
    /// When what decides about log-ins was last seen to have changed.
    access_changed: Mutex<Instant>,
    processes: Mutex<Processes>,
    role_settings: Mutex<(String, Instant)>,
    variables: Mutex<Option<u64>>,
    offer: Mutex<Option<Offer>>,
    baselines: Mutex<HashMap<[u8; 32], Arc<Baseline>>>,
    baseline_turns: Mutex<HashMap<[u8; 32], Arc<tokio::sync::Mutex<()>>>>,
    missing: Mutex<BTreeSet<Detection>>,
    trouble: tokio::sync::Notify,
}

/// What was found of a server that ended a session.
#[derive(Debug)]
pub struct Alive {
    /// When it was asked.
    pub asked: Instant,
    /// Which start of it was meant.
    pub started_at: Arc<str>,
    /// That one still takes log-ins.
    pub serves: bool,
}

/// What decides about log-ins, as last read.
#[derive(Debug, Default)]
struct Access {
    digest: Option<String>,
    /// When that reading began.
    read: Option<Instant>,
}

/// What was tried on the old server before a barrier, by fingerprint of identity and state.
#[derive(Debug, Default)]
struct Rehearsals {
    wanted: bool,
    turns: HashMap<[u8; 32], Arc<tokio::sync::Mutex<()>>>,
    known: HashMap<[u8; 32], (Result<(), String>, Instant)>,
}

/// Process numbers that clients were told.
#[derive(Debug, Default)]
struct Processes {
    told: HashSet<i32>,
    /// Real to told, where they differ.
    moved: HashMap<i32, i32>,
    next_made_up: i32,
}

/// First process number that Slackwater makes up; above every real one (`PID_MAX_LIMIT` is 2^22).
const FIRST_MADE_UP: i32 = 1 << 24;

impl Cluster {
    /// A cluster without an instance yet.
    pub fn new(
        name: &str,
        gate: Arc<Gate>,
        registry: Arc<Registry>,
        service: Service,
        settings: Settings,
    ) -> Self {
        Self {
            name: Arc::from(name),
            engine: settings.engine,
            gate,
            registry,
            line: Line::default(),
            service,
            socket: settings.socket,
            max_outage: settings.max_outage,
            custom_settings: settings.custom_settings,
            ends_replication: settings.ends_replication,
            diagnostics_wait: settings.diagnostics_wait,
            blocked: AtomicUsize::new(0),
            names: Mutex::default(),
            rehearsals: Mutex::default(),
            alive: tokio::sync::Mutex::default(),
            access: tokio::sync::Mutex::default(),
            access_changed: Mutex::new(Instant::now()),
            processes: Mutex::new(Processes {
                next_made_up: FIRST_MADE_UP,
                ..Processes::default()
            }),
            role_settings: Mutex::new((String::new(), Instant::now())),
            variables: Mutex::default(),
            offer: Mutex::default(),
            baselines: Mutex::default(),
            baseline_turns: Mutex::default(),
            missing: Mutex::default(),
            trouble: tokio::sync::Notify::new(),
        }
    }

    /// Remembers names of custom settings seen in this database; false: there are too many.
    pub fn learn_names(&self, database: &str, names: impl IntoIterator<Item = String>) -> bool {
        let mut all = self.names.lock();
        let known = all.entry(database.to_owned()).or_default();
        let mut all_known = true;
        for name in names {
            if known.len() < NAMES_MAX {
                known.insert(name);
            } else {
                all_known &= known.contains(&name);
            }
        }
        all_known
    }

    /// Names of custom settings to ask for in this database.
    pub fn names(&self, database: &str) -> Vec<String> {
        let known = self.names.lock();
        let seen = known.get(database).into_iter().flatten().cloned();
        let mut names: Vec<_> = seen.chain(self.custom_settings.iter().cloned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Looks for names of custom settings in what the database's functions, policies and views say.
    pub async fn scan_names(&self, database: &str) -> Result<(), ExecError> {
        let rows: Rows = self
            .service
            .query_in(&self.gate, database, CATALOG_NAMES_SQL)
            .await?;
        self.learn_names(database, rows.into_iter().flatten().flatten());
        Ok(())
    }

    /// The first to ask about a database is told true, and looks for its names.
    pub fn is_first_in(&self, database: &str) -> bool {
        let mut all = self.names.lock();
        let first = !all.contains_key(database);
        if first {
            all.insert(database.to_owned(), BTreeSet::new());
        }
        first
    }

    /// Forgets rehearsals and counts of an earlier event; `rehearse`: snapshots are tried out ahead.
    pub fn begin_event(&self, rehearse: bool) {
        *self.rehearsals.lock() = Rehearsals {
            wanted: rehearse,
            ..Rehearsals::default()
        };
        self.blocked.store(0, Ordering::Relaxed);
    }

    /// Snapshots are tried out ahead of a hold.
    pub fn rehearsals_wanted(&self) -> bool {
        self.rehearsals.lock().wanted
    }

    /// MariaDB: how many session variables there are, while an event sees to it that this is so.
    pub fn note_variables(&self, count: Option<u64>) {
        *self.variables.lock() = count;
    }

    /// A digest of so many session variables tells of all of them.
    pub fn has_variables(&self, listed: u64) -> bool {
        *self.variables.lock() == Some(listed)
    }

    /// Role and database settings as a digest; a change makes older probes stale.
    pub fn note_role_settings(&self, digest: String) {
        let mut known = self.role_settings.lock();
        if known.0 != digest {
            *known = (digest, Instant::now());
        }
    }

    /// When role or database settings were last seen to have changed.
    pub fn role_settings_changed(&self) -> Instant {
        self.role_settings.lock().1
    }

    /// Taken by who tries this state out, so that it is tried once.
    pub fn rehearsal_turn(&self, fingerprint: [u8; 32]) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.rehearsals.lock().turns.entry(fingerprint).or_default())
    }

    /// What the rehearsal of this state came to, if there was one since the last event began and since
    /// roles were last seen to have changed. A failure is forgotten after a second: what was in the way may
    /// have been put right.
    pub fn rehearsed(&self, fingerprint: [u8; 32]) -> Option<Result<(), String>> {
        let changed = self.access_changed();
        let rehearsals = self.rehearsals.lock();
        let (outcome, began) = rehearsals.known.get(&fingerprint)?;
        let holds = match outcome {
            Ok(()) => *began >= changed,
            Err(_) => began.elapsed() < FAILURE_KEPT,
        };
        holds.then(|| outcome.clone())
    }

    /// Notes what a rehearsal came to that began then.
    pub fn note_rehearsal(
        &self,
        fingerprint: [u8; 32],
        outcome: Result<(), String>,
        began: Instant,
    ) {
        let mut rehearsals = self.rehearsals.lock();
        if rehearsals.known.len() >= REHEARSALS_MAX {
            rehearsals.known.clear();
            rehearsals.turns.clear();
        }
        rehearsals.known.insert(fingerprint, (outcome, began));
    }

    /// When what decides about log-ins (roles, passwords, memberships, rights to connect) was last seen to
    /// have changed.
    pub fn access_changed(&self) -> Instant {
        *self.access_changed.lock()
    }

    /// Sees whether that has changed; once for all who asked before it was read.
    pub async fn read_access(&self) {
        let asked = Instant::now();
        let mut known = self.access.lock().await;
        if known.read.is_some_and(|read| read >= asked) {
            return;
        }
        let began = Instant::now();
        let sql = access(self.engine);
        let rows = self.service.query(&self.gate, sql, &[]).await;
        let whole = |rows: Rows| {
            let values: Option<Vec<String>> = rows.into_iter().flatten().collect();
            values.filter(|v| !v.is_empty()).map(|v| v.join(" "))
        };
        let digest = rows.map(whole);
        known.read = Some(began);
        match digest {
            Ok(digest) if digest.is_some() => {
                if known.digest != digest {
                    // It may have changed at any moment before this one.
                    let first = known.digest.is_none();
                    known.digest = digest;
                    *self.access_changed.lock() = if first { began } else { Instant::now() };
                }
            }
            // Who may not read it can't tell either.
            _ => {
                known.digest = None;
                let mut changed = self.access_changed.lock();
                *changed = (*changed).max(began.checked_sub(UNREAD_KEPT).unwrap_or(began));
            }
        }
    }

    /// A session could not reach the server that serves: somebody should look.
    pub fn report_trouble(&self) {
        self.trouble.notify_one();
    }

    /// Wakes when trouble was reported.
    pub async fn trouble(&self) {
        self.trouble.notified().await;
    }

    /// A session found in the present hold that it can't be detached.
    pub fn note_blocked(&self) {
        self.blocked.fetch_add(1, Ordering::AcqRel);
        self.gate.poke();
    }

    /// Takes the number of sessions that found that.
    pub fn take_blocked(&self) -> usize {
        self.blocked.swap(0, Ordering::AcqRel)
    }

    /// MySQL and MariaDB: what clients are greeted with; none before a server was seen.
    pub fn offer(&self) -> Option<Offer> {
        let known = self.offer.lock().clone();
        known.or_else(|| self.service.offer())
    }

    /// What a server offers was seen. Clients are offered what all servers have that were seen so far.
    pub fn learn_offer(&self, seen: &Offer) {
        let mut offer = self.offer.lock();
        *offer = Some(match &*offer {
            Some(known) => seen.and(known),
            None => seen.clone(),
        });
    }

    /// What a fresh login of this kind holds.
    pub fn baseline(&self, kind: &[u8; 32]) -> Option<Arc<Baseline>> {
        self.baselines.lock().get(kind).cloned()
    }

    /// Who holds it looks at a fresh login of this kind; the others wait for what it finds.
    pub fn baseline_turn(&self, kind: &[u8; 32]) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.baseline_turns.lock();
        if turns.len() >= BASELINES_MAX {
            turns.clear();
        }
        Arc::clone(turns.entry(*kind).or_default())
    }

    /// Ways to see state that the server lacked when a session was last asked.
    pub fn missing_detections(&self) -> Vec<Detection> {
        self.missing.lock().iter().copied().collect()
    }

    /// A probe found that the server lacks these.
    pub fn note_missing(&self, missing: &[Detection]) {
        let mut known = self.missing.lock();
        if known.len() != missing.len() || !missing.iter().all(|m| known.contains(m)) {
            *known = missing.iter().copied().collect();
        }
    }

    /// A fresh login of this kind was looked at.
    pub fn note_baseline(&self, kind: [u8; 32], baseline: Arc<Baseline>) {
        let mut known = self.baselines.lock();
        if known.len() >= BASELINES_MAX {
            known.clear();
        }
        known.insert(kind, baseline);
    }

    /// A login of this kind holds something else by now: SET GLOBAL changes what new sessions get. The next one is
    /// looked at.
    pub fn forget_baseline(&self, kind: &[u8; 32]) {
        self.baselines.lock().remove(kind);
    }

    /// The number to tell a client whose first server process is `real`: that one, unless a living
    /// client was told it already.
    pub fn tell_process(&self, real: i32) -> i32 {
        let mut processes = self.processes.lock();
        if real > 0 && processes.told.insert(real) {
            return real;
        }
        loop {
            let made_up = processes.next_made_up;
            processes.next_made_up = made_up.checked_add(1).unwrap_or(FIRST_MADE_UP);
            if processes.told.insert(made_up) {
                if real > 0 {
                    processes.moved.insert(real, made_up);
                }
                return made_up;
            }
        }
    }

    /// A session that was told `told` now has the server process `real`, and had `before`.
    pub fn moved_process(&self, told: i32, before: i32, real: i32) {
        let mut processes = self.processes.lock();
        if processes.moved.get(&before) == Some(&told) {
            processes.moved.remove(&before);
        }
        if real > 0 && real != told {
            processes.moved.insert(real, told);
        }
    }

    /// The session that was told `told` is over; `real` was its last server process.
    pub fn forget_process(&self, told: i32, real: i32) {
        let mut processes = self.processes.lock();
        processes.told.remove(&told);
        if processes.moved.get(&real) == Some(&told) {
            processes.moved.remove(&real);
        }
    }

    /// The number that the session of this server process was told.
    pub fn told_process(&self, real: i32) -> i32 {
        self.processes
            .lock()
            .moved
            .get(&real)
            .copied()
            .unwrap_or(real)
    }
}

/// What a cluster is configured with, as far as its sessions care.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What its servers are.
    pub engine: Engine,
    /// Keepalive towards servers.
    pub socket: SocketConfig,
    /// How long held requests wait for a server that is away.
    pub max_outage: Duration,
    /// Names of custom settings that only functions set.
    pub custom_settings: Vec<String>,
    /// Replication connections are ended for an event, not waited for.
    pub ends_replication: bool,
    /// How long a session rests before it is moved, if its client may still ask for what its last statement left.
    pub diagnostics_wait: Duration,
}
