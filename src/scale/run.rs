//! One event under way: what both kinds of switch share.

use super::coordinator::Coordinator;
use super::event::{Event, InTheWay, Step};
use crate::backend::Engine;
use crate::backend::cluster::Cluster;
use crate::backend::mysql::started::started_at_sql;
use crate::backend::registry::{Ask, Handle, State};
use crate::observe::EventOutcome;
use crate::provider::{Instance, SwitchKind};
use crate::session::mysql::probe::count_sql;
use crate::session::pg::STARTED_AT_SQL;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a waiting event looks again.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// How long an event waits for the answers of sessions that it asked.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// What Prepare found out is asked again after so long: tables and settings change, and a checkpoint that is
/// long ago makes the stop long.
const PREPARED_MAX: Duration = Duration::from_secs(10);

/// A client that has asked for nothing for so long is not in the middle of its work.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a forced session may take to end.
pub(super) const FORCE_MAX: Duration = Duration::from_secs(15);

/// Databases whose functions are read again before an event.
const SCANNED_MAX: usize = 20;

/// Hash of everything that `ALTER ROLE` and `ALTER DATABASE ... SET` have set.
const ROLE_SETTINGS: &str = "SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(s::text, '' ORDER BY s::text), '')) FROM pg_catalog.pg_db_role_setting s";

/// One event under way.
pub(super) struct Run {
    pub(super) coordinator: Arc<Coordinator>,
    pub(super) event: Event,
    pub(super) from: Instance,
    /// Sessions were ended by force.
    pub(super) ended_some: bool,
    /// When the provider was last asked to prepare.
    pub(super) prepared_at: Instant,
    /// Replication connections that were ended as the cluster is told to.
    pub(super) gave_way: u64,
}

/// A panic ends the event, too. The hold is let go by its own guard.
impl Drop for Run {
    fn drop(&mut self) {
        if self.event.ended.is_some() || !std::thread::panicking() {
            return;
        }
        let reason = "a mistake in slackwater: see its log".to_owned();
        tracing::error!(cluster = %self.cluster().name, event = self.event.id, "the scale event panicked");
        self.cluster().gate.expect(None);
        self.cluster().gate.roll(None);
        self.end(Ended::new(EventOutcome::Failed, reason));
        // Who knows which server there is?
        self.cluster().report_trouble();
    }
}

/// How an event ended.
pub(super) struct Ended {
    pub(super) outcome: EventOutcome,
    pub(super) reason: Option<String>,
}

impl Ended {
    pub(super) fn new(outcome: EventOutcome, reason: impl Into<Option<String>>) -> Self {
        Self {
            outcome,
            reason: reason.into(),
        }
    }

    pub(super) fn by_the_proxy() -> Self {
        Self::new(
            EventOutcome::RolledBack,
            "slackwater is draining".to_owned(),
        )
    }
}

impl Run {
    pub(super) async fn run(mut self) {
        let cluster = Arc::clone(&self.coordinator.cluster);
        let (id, from, to) = (self.event.id, self.event.from, self.event.request.to);
        tracing::info!(cluster = %cluster.name, event = id, %from, %to, "scale event begins");
        let ended = Box::pin(self.go()).await;
        let outcome = ended.outcome.as_str();
        self.end(ended);
        let held_ms = self.event.held.as_millis();
        tracing::info!(cluster = %cluster.name, event = id, %from, %to, outcome, held_ms, reason = self.event.reason, "scale event ended");
        for InTheWay { session, blocker } in &self.event.waiting_for {
            let (kind, age) = (blocker.kind.as_str(), blocker.since.elapsed());
            tracing::info!(cluster = %cluster.name, event = id, session, kind, detail = %blocker.detail, statement = %blocker.statement, ?age, "in the way of the scale event");
        }
    }

    /// The next one may begin.
    fn end(&mut self, ended: Ended) {
        self.cluster().note_variables(None);
        self.event.ended = Some(Instant::now());
        self.event.outcome = Some(ended.outcome);
        self.event.reason = ended.reason;
        self.coordinator.metrics.scale_event(ended.outcome);
        self.coordinator.keep(&self.event);
        self.coordinator.inner.lock().running = None;
    }

    /// The proxy ends: so does the event, with everything as it was.
    pub(super) fn closed(&self) -> Option<Ended> {
        self.coordinator.is_closed().then(Ended::by_the_proxy)
    }

    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.coordinator.cluster
    }

    pub(super) fn step(&mut self, step: Step) {
        self.event.step = step;
        self.coordinator.keep(&self.event);
    }

    async fn go(&mut self) -> Ended {
        self.step(Step::Prepare);
        let found = self.coordinator.recovered().await;
        let kind = match self.prepare(found).await {
            Ok(kind) => kind,
            Err(ended) => return ended,
        };
        self.prepared_at = Instant::now();
        self.event.searches_since = self.prepared_at;
        if let Some(ended) = self.closed() {
            return ended;
        }
        self.cluster().begin_event(kind == SwitchKind::Barrier);
        self.learn().await;
        match kind {
            SwitchKind::Rolling => Box::pin(self.roll()).await,
            SwitchKind::Barrier => Box::pin(self.barrier()).await,
        }
    }

    /// Prepares from the server that was found; once more if the search for it finds another one.
    async fn prepare(&mut self, mut found: Option<Instance>) -> Result<SwitchKind, Ended> {
        let to = self.event.request.to;
        let mut looked = false;
        loop {
            if let Some(from) = found {
                self.event.from = from.capacity;
                self.from = from;
            }
            if self.from.capacity == to && !self.event.request.restart {
                // It was started again with that.
                return Err(Ended::new(EventOutcome::Completed, None));
            }
            let error = match self.coordinator.provider.prepare(&self.from, to).await {
                Ok(kind) => return Ok(kind),
                Err(error) => error,
            };
            // (A server that runs, and is only not fit for this, is not looked for: its sessions work.)
            found = if !looked && self.is_lost_unnoticed().await {
                self.coordinator.found_again().await
            } else {
                None
            };
            looked = true;
            if found.is_none() {
                return Err(Ended::new(EventOutcome::Failed, error.to_string()));
            }
        }
    }

    /// Prepares again if that is long ago. The error ends the event; nothing was changed. (That of a server that is gone
    /// does not: the cut-over starts the next one.)
    pub(super) async fn prepare_again(&mut self) -> Result<(), Ended> {
        if self.prepared_at.elapsed() < PREPARED_MAX {
            return Ok(());
        }
        let to = self.event.request.to;
        match self.coordinator.provider.prepare(&self.from, to).await {
            Ok(_) => {
                self.prepared_at = Instant::now();
                Ok(())
            }
            Err(error) => {
                if self.is_lost_unnoticed().await {
                    return Ok(());
                }
                Err(Ended::new(EventOutcome::Failed, error.to_string()))
            }
        }
    }

    /// MariaDB: a plugin may have brought session variables. Probes that knew nothing of them are made again.
    pub(super) async fn count_variables(&self) {
        let cluster = self.cluster();
        if cluster.engine != Engine::Mariadb {
            return;
        }
        let rows = cluster
            .service
            .query(&cluster.gate, &count_sql(), &[])
            .await;
        let count = rows.map(|rows| rows.into_iter().flatten().flatten().next());
        match count {
            Ok(Some(count)) => {
                cluster.note_variables(count.parse().ok());
                cluster.note_role_settings(count);
            }
            Ok(None) => cluster.note_variables(None),
            Err(error) => {
                tracing::debug!(%error, "session variables could not be counted");
                cluster.note_variables(None);
            }
        }
    }

    /// What others changed in the databases since sessions were probed.
    async fn learn(&mut self) {
        let cluster = Arc::clone(self.cluster());
        if cluster.engine.speaks_mysql() {
            // Nothing there gives new sessions other settings by user or database.
            self.count_variables().await;
            return;
        }
        match cluster
            .service
            .query(&cluster.gate, ROLE_SETTINGS, &[])
            .await
        {
            Ok(rows) => {
                if let Some(digest) = rows.into_iter().flatten().flatten().next() {
                    cluster.note_role_settings(digest);
                }
            }
            Err(error) => tracing::warn!(%error, "role settings could not be read"),
        }
        let databases: BTreeSet<_> = cluster
            .registry
            .all()
            .iter()
            .map(|h| h.identity.database.clone())
            // Physical replication is in none.
            .filter(|database| !database.is_empty())
            .collect();
        for database in databases.into_iter().take(SCANNED_MAX) {
            if let Err(error) = cluster.scan_names(&database).await {
                tracing::warn!(%database, %error, "names of custom settings could not be looked for");
            }
        }
    }

    /// Of the sessions in the way, those that will not pass by themselves within a hold, if there are any.
    pub(super) fn keep_lasting(&mut self, max_hold: Duration) -> bool {
        let now = Instant::now().into_std();
        let lasting = |w: &InTheWay| {
            !w.blocker.kind.is_passing()
                || now.saturating_duration_since(w.blocker.since) >= max_hold
        };
        let known = self.event.waiting_for.iter().any(lasting);
        if known {
            self.event.waiting_for.retain(lasting);
        }
        known
    }

    /// Has sessions probed, those at rest at once and the others between two requests; their snapshots
    /// are rehearsed beside that.
    pub(super) async fn probe_all(&self) {
        let cluster = self.cluster();
        let asked_at = Instant::now().into_std();
        cluster.registry.ask_all(Ask::Probe);
        let until = Instant::now() + ANSWER_MAX;
        let unanswered = |h: &Arc<Handle>| {
            h.with_report(|r| {
                r.generation.is_some()
                    && r.movable.is_none()
                    && r.probed_at.is_none_or(|at| at < asked_at)
            })
        };
        while Instant::now() < until && cluster.registry.all().iter().any(unanswered) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Once more those that rest and have worked since, so that nobody has to be asked in the hold who is not at work
    /// then. Who is in the middle of its work would only be kept from it.
    pub(super) async fn probe_resting(&self) {
        let now = Instant::now().into_std();
        let resting = self.cluster().registry.resting(now).into_iter();
        let paused: Vec<_> = resting
            .filter(|(rest, handle)| *rest >= PAUSE && handle.state() == State::AtRest)
            .map(|(_, handle)| handle)
            .collect();
        for handle in &paused {
            handle.ask(Ask::Probe);
        }
        if !paused.is_empty() {
            // Who answers this has been probed.
            reports(self.cluster()).await;
        }
    }

    /// Nobody else is left: replication connections are asked to give way.
    pub(super) fn ask_to_give_way(&mut self, those: &[Arc<Handle>]) {
        self.gave_way = self.gave_way.max(those.len() as u64);
        for handle in those {
            handle.ask(Ask::GiveWay);
        }
    }

    /// The server that the event began with is gone, whether anybody has missed it or not.
    async fn is_lost_unnoticed(&self) -> bool {
        self.coordinator.inner.lock().trouble = true;
        self.server_is_lost().await
    }

    /// Sessions reported trouble, and the server that the event began with is gone.
    pub(super) async fn server_is_lost(&self) -> bool {
        if !std::mem::take(&mut self.coordinator.inner.lock().trouble) {
            return false;
        }
        let cluster = self.cluster();
        let Some(serving) = cluster.gate.view().serving else {
            return false;
        };
        let sql = match cluster.engine {
            Engine::Postgres => STARTED_AT_SQL,
            engine => started_at_sql(engine.into()),
        };
        match cluster.service.query(&cluster.gate, sql, &[]).await {
            Ok(rows) => {
                let started = rows.into_iter().flatten().flatten().next();
                started.is_some_and(|started| *started != *serving.started_at)
            }
            // Otherwise it answers, or nobody knows.
            Err(error) => error.is_away(),
        }
    }

    pub(super) async fn in_the_way(&self) -> Vec<InTheWay> {
        let cluster = self.cluster();
        reports(cluster).await;
        let mut found = Vec::new();
        for handle in cluster.registry.all() {
            handle.with_report(|report| {
                if report.generation.is_some() && !report.gives_way {
                    found.extend(report.blockers.iter().map(|blocker| InTheWay {
                        session: handle.identity.id,
                        blocker: blocker.clone(),
                    }));
                }
            });
        }
        found
    }
}

/// Has every session tell its blockers, and waits for that a moment.
pub async fn reports(cluster: &Cluster) {
    let number = cluster.registry.ask_reports();
    let until = Instant::now() + ANSWER_MAX;
    let silent =
        |h: &Arc<Handle>| h.state() != State::Parked && h.with_report(|r| r.answers < number);
    while Instant::now() < until && cluster.registry.all().iter().any(silent) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
