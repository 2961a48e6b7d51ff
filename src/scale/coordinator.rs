//! Runs the scale events of one cluster, one at a time, and keeps its instance known to the gate.
//!
//! Up to the fence every failure leaves everything as it was: the hold is a guard whose drop releases to
//! the old generation. After it, only an instance that has answered a query is served from.

use super::event::{Event, InTheWay, OnTimeout, Request, Step};
use super::plan::{self, Next, Search, Settle, Settled};
use crate::backend::Capacity;
use crate::backend::cluster::Cluster;
use crate::backend::gate::Hold;
use crate::backend::registry::{Ask, Handle, State};
use crate::observe::{ClusterMetrics, EventOutcome};
use crate::provider::{CutOver, Fact, Instance, Provider, ProviderError, SwitchKind};
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Events that are remembered.
const EVENTS_MAX: usize = 1000;

/// How often a waiting event looks again.
const LOOK: Duration = Duration::from_millis(100);

/// How long an event waits for the answers of sessions that it asked.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// How long a forced session may take to end.
const FORCE_MAX: Duration = Duration::from_secs(15);

/// Moves that run at the same time.
const MOVES: usize = 4;

/// How long a session may take to come to a safe point with the second end of its move ready, before
/// another session gets its turn.
const OFFER_MAX: Duration = Duration::from_secs(1);

/// Wait between attempts to find a server that was lost.
const RECOVER: Duration = Duration::from_millis(500);

/// Databases whose functions are read again before an event.
const SCANNED_MAX: usize = 20;

/// Hash of everything that `ALTER ROLE` and `ALTER DATABASE ... SET` have set.
const ROLE_SETTINGS: &str = "SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(s::text, '' ORDER BY s::text), '')) FROM pg_catalog.pg_db_role_setting s";

/// What an event goes by.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long clients may be held in one attempt.
    pub max_hold: Duration,
}

/// Why an event was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// One runs.
    #[error("scale event {0} is running")]
    Running(u64),
    /// The cluster is held by hand.
    #[error("the cluster is held by hand: release it first")]
    HeldByHand,
    /// No server.
    #[error("the cluster has no running server")]
    NoServer,
}

/// The coordinator of one cluster.
pub struct Coordinator {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    provider: Provider,
    rules: Rules,
    metrics: ClusterMetrics,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    instance: Option<Instance>,
    events: VecDeque<Event>,
    running: Option<u64>,
    held_by_hand: Option<(u64, Hold)>,
    holds: u64,
    last_id: u64,
    failed: Option<String>,
    /// What [`Coordinator::start`] was asked for.
    first: Option<Capacity>,
}

impl Coordinator {
    /// A coordinator whose cluster has no instance yet.
    pub fn new(
        cluster: Arc<Cluster>,
        provider: Provider,
        rules: Rules,
        metrics: ClusterMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            provider,
            rules,
            metrics,
            inner: Mutex::default(),
        })
    }

    /// Finds or starts the instance of `wanted`, and serves from it. A server that others run and that is
    /// away, or lets nobody in, is waited for: [`Self::watch`] asks again.
    pub async fn start(&self, wanted: Capacity) -> Result<(), ProviderError> {
        self.inner.lock().first = Some(wanted);
        match self.provider.start(wanted).await {
            Ok(instance) => self.serve(instance),
            Err(error @ (ProviderError::Unreachable { .. } | ProviderError::InRecovery(_))) => {
                tracing::error!(cluster = %self.cluster.name, %error, "no server yet: clients wait");
                self.cluster.gate.serve_none();
                self.inner.lock().failed = Some(error.to_string());
                self.cluster.report_trouble();
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The present capacity.
    pub fn capacity(&self) -> Option<Capacity> {
        self.inner.lock().instance.as_ref().map(|i| i.capacity)
    }

    /// Why there is no server, if there is none.
    pub fn failed(&self) -> Option<String> {
        self.inner.lock().failed.clone()
    }

    /// What of the capacity is real.
    pub fn facts(&self) -> Vec<Fact> {
        self.provider.facts()
    }

    /// The events, newest first.
    pub fn events(&self) -> Vec<Event> {
        self.inner.lock().events.iter().rev().cloned().collect()
    }

    /// One event.
    pub fn event(&self, id: u64) -> Option<Event> {
        self.inner
            .lock()
            .events
            .iter()
            .find(|e| e.id == id)
            .cloned()
    }

    /// The event that runs.
    pub fn running(&self) -> Option<Event> {
        let inner = self.inner.lock();
        let id = inner.running?;
        inner.events.iter().find(|e| e.id == id).cloned()
    }

    /// Holds by hand for `period`.
    pub fn hold(self: &Arc<Self>, period: Duration) -> Result<(), Refused> {
        let mut inner = self.inner.lock();
        if let Some(id) = inner.running {
            return Err(Refused::Running(id));
        }
        inner.held_by_hand = None;
        let hold = self.cluster.gate.hold().ok_or(Refused::HeldByHand)?;
        inner.holds += 1;
        let number = inner.holds;
        inner.held_by_hand = Some((number, hold));
        drop(inner);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(period).await;
            let mut inner = this.inner.lock();
            if inner
                .held_by_hand
                .as_ref()
                .is_some_and(|(n, _)| *n == number)
            {
                inner.held_by_hand = None;
            }
        });
        Ok(())
    }

    /// Ends a hold by hand; false when there was none.
    pub fn release(&self) -> bool {
        self.inner.lock().held_by_hand.take().is_some()
    }

    /// Begins an event. `None`: the capacity is the wanted one already.
    pub fn scale(self: &Arc<Self>, request: Request) -> Result<Option<Event>, Refused> {
        let mut inner = self.inner.lock();
        if let Some(id) = inner.running {
            return Err(Refused::Running(id));
        }
        if inner.held_by_hand.is_some() {
            return Err(Refused::HeldByHand);
        }
        let from = inner.instance.clone().ok_or(Refused::NoServer)?;
        if from.capacity == request.to && !request.restart {
            return Ok(None);
        }
        inner.last_id += 1;
        let event = Event::new(inner.last_id, from.capacity, request);
        inner.running = Some(event.id);
        if inner.events.len() >= EVENTS_MAX {
            inner.events.pop_front();
        }
        inner.events.push_back(event.clone());
        drop(inner);
        let run = Run {
            coordinator: Arc::clone(self),
            event: event.clone(),
            from,
            ended_some: false,
        };
        tokio::spawn(run.run());
        Ok(Some(event))
    }

    /// Watches for servers that are not what they were: sessions report trouble, the provider is asked.
    pub async fn watch(self: Arc<Self>) {
        loop {
            self.cluster.trouble().await;
            while self.inner.lock().running.is_some() {
                tokio::time::sleep(LOOK).await;
            }
            let first = self.inner.lock().first;
            let Some(wanted) = self.capacity().or(first) else {
                continue;
            };
            match self.provider.start(wanted).await {
                Ok(instance) => {
                    let known = self.inner.lock().instance.clone();
                    let same = known.is_some_and(|known| {
                        known.identity == instance.identity && known.endpoint == instance.endpoint
                    });
                    if !same || self.cluster.gate.view().serving.is_none() {
                        tracing::warn!(cluster = %self.cluster.name, "the server was restarted; its generation is served now");
                        self.serve(instance);
                    }
                }
                Err(error) => {
                    tracing::warn!(cluster = %self.cluster.name, %error, "no server");
                    self.inner.lock().failed = Some(error.to_string());
                    if self.inner.lock().running.is_none() {
                        // Requests wait in line instead of knocking.
                        self.cluster.gate.serve_none();
                    }
                    tokio::time::sleep(RECOVER).await;
                    self.cluster.report_trouble();
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn serve(&self, instance: Instance) {
        self.metrics.capacity.set(i64::from(instance.capacity.0));
        self.cluster
            .gate
            .serve(instance.endpoint.clone(), &instance.identity.started_at);
        let mut inner = self.inner.lock();
        inner.instance = Some(instance);
        inner.failed = None;
    }

    fn keep(&self, event: &Event) {
        let mut inner = self.inner.lock();
        if let Some(kept) = inner.events.iter_mut().rev().find(|e| e.id == event.id) {
            kept.clone_from(event);
        }
    }
}

/// One event under way.
struct Run {
    coordinator: Arc<Coordinator>,
    event: Event,
    from: Instance,
    /// Sessions were ended by force.
    ended_some: bool,
}

/// How an event ended.
struct Ended {
    outcome: EventOutcome,
    reason: Option<String>,
}

impl Ended {
    fn new(outcome: EventOutcome, reason: impl Into<Option<String>>) -> Self {
        Self {
            outcome,
            reason: reason.into(),
        }
    }
}

impl Run {
    async fn run(mut self) {
        let cluster = Arc::clone(&self.coordinator.cluster);
        let (id, from, to) = (self.event.id, self.event.from, self.event.request.to);
        tracing::info!(cluster = %cluster.name, event = id, %from, %to, "scale event begins");
        let ended = Box::pin(self.go()).await;
        self.event.ended = Some(Instant::now());
        self.event.outcome = Some(ended.outcome);
        self.event.reason = ended.reason;
        let outcome = ended.outcome.as_str();
        let held_ms = self.event.held.as_millis();
        tracing::info!(cluster = %cluster.name, event = id, %from, %to, outcome, held_ms, reason = self.event.reason, "scale event ended");
        self.coordinator.metrics.scale_event(ended.outcome);
        self.coordinator.keep(&self.event);
        self.coordinator.inner.lock().running = None;
    }

    fn cluster(&self) -> &Arc<Cluster> {
        &self.coordinator.cluster
    }

    fn step(&mut self, step: Step) {
        self.event.step = step;
        self.coordinator.keep(&self.event);
    }

    async fn go(&mut self) -> Ended {
        self.step(Step::Prepare);
        let to = self.event.request.to;
        let kind = match self.coordinator.provider.prepare(&self.from, to).await {
            Ok(kind) => kind,
            Err(error) => return Ended::new(EventOutcome::Failed, error.to_string()),
        };
        self.cluster().begin_event(kind == SwitchKind::Barrier);
        self.learn().await;
        match kind {
            SwitchKind::Rolling => Box::pin(self.roll()).await,
            SwitchKind::Barrier => Box::pin(self.barrier()).await,
        }
    }

    /// What others changed in the databases since sessions were probed.
    async fn learn(&mut self) {
        let cluster = Arc::clone(self.cluster());
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
            .collect();
        for database in databases.into_iter().take(SCANNED_MAX) {
            if let Err(error) = cluster.scan_names(&database).await {
                tracing::warn!(%database, %error, "names of custom settings could not be looked for");
            }
        }
    }

    // ---- barrier ----------------------------------------------------------------------------

    async fn barrier(&mut self) -> Ended {
        let mut not_before = Instant::now();
        loop {
            self.step(Step::Probe);
            self.probe_all().await;
            let facts = self.look(not_before).await;
            match plan::search(&facts) {
                Next::Wait => {
                    self.step(Step::Wait);
                    let left = self
                        .event
                        .deadline()
                        .saturating_duration_since(Instant::now());
                    let pause = if facts.blocker_known {
                        LOOK
                    } else {
                        facts.pause
                    };
                    tokio::time::sleep(pause.min(left)).await;
                }
                Next::RollBack => {
                    return Ended::new(
                        EventOutcome::RolledBack,
                        "no scaling point was found in time".to_owned(),
                    );
                }
                next @ (Next::Hold | Next::Force) => {
                    let force = next == Next::Force;
                    if let Some(ended) = self.attempt(force).await {
                        return ended;
                    }
                    not_before = Instant::now() + plan::pause_after(self.event.held);
                }
            }
        }
    }

    /// What is known of the sessions in the way.
    async fn look(&mut self, not_before: Instant) -> Search {
        let max_hold = self.coordinator.rules.max_hold;
        self.event.waiting_for = self.in_the_way().await;
        let now = Instant::now().into_std();
        let lasting = |w: &InTheWay| {
            !w.blocker.kind.is_passing()
                || now.saturating_duration_since(w.blocker.since) >= max_hold
        };
        let blocker_known = self.event.waiting_for.iter().any(lasting);
        Search {
            searched: self.event.began.elapsed(),
            timeout: self.event.request.timeout,
            force: self.event.request.on_timeout == OnTimeout::Force,
            blocker_known,
            pause: not_before.saturating_duration_since(Instant::now()),
        }
    }

    /// Has sessions probed, those at rest at once and the others between two requests; their snapshots
    /// are rehearsed beside that.
    async fn probe_all(&self) {
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

    async fn in_the_way(&self) -> Vec<InTheWay> {
        let cluster = self.cluster();
        reports(cluster).await;
        let mut found = Vec::new();
        for handle in cluster.registry.all() {
            handle.with_report(|report| {
                if report.generation.is_some() {
                    found.extend(report.blockers.iter().map(|blocker| InTheWay {
                        session: handle.identity.id,
                        blocker: blocker.clone(),
                    }));
                }
            });
        }
        found
    }

    /// One hold. `None`: released on the old generation, to try again.
    async fn attempt(&mut self, force: bool) -> Option<Ended> {
        let cluster = Arc::clone(self.cluster());
        cluster.take_blocked();
        let attached = cluster.gate.session_leases() as u64;
        let Some(hold) = cluster.gate.hold() else {
            return Some(Ended::new(
                EventOutcome::Failed,
                "the cluster is held by hand".to_owned(),
            ));
        };
        self.event.attempt += 1;
        self.event.holding_since = Some(hold.since());
        self.step(Step::Settle);
        let settled = self.settle(&hold, force).await;
        let ended = match settled {
            Ok(()) => Some(self.cut_over(attached).await),
            Err(GaveUp::Blocked) => None,
            Err(GaveUp::Stuck) => Some(Ended::new(
                EventOutcome::Failed,
                "forced sessions did not end in time; nothing was changed".to_owned(),
            )),
        };
        let held = hold.since().elapsed();
        drop(hold);
        self.event.held = held;
        self.event.held_total += held;
        self.event.holding_since = None;
        self.coordinator
            .metrics
            .hold_seconds
            .observe(held.as_secs_f64());
        ended
    }

    async fn settle(&mut self, hold: &Hold, force: bool) -> Result<(), GaveUp> {
        let cluster = Arc::clone(self.cluster());
        let max_hold = self.coordinator.rules.max_hold;
        let mut blocked = false;
        loop {
            let progress = cluster.gate.progress();
            blocked |= cluster.take_blocked() > 0;
            let held = hold.since().elapsed();
            let left = cluster.gate.session_leases();
            match plan::settle(&Settle {
                held,
                max_hold,
                left,
                blocked,
                force,
            }) {
                Settled::CutOver => return Ok(()),
                Settled::GiveUp => {
                    self.event.waiting_for = self.in_the_way().await;
                    return Err(GaveUp::Blocked);
                }
                Settled::EndTheRest => return self.end_the_rest().await,
                Settled::Wait => {
                    drop(tokio::time::timeout(max_hold.saturating_sub(held), progress).await);
                }
            }
        }
    }

    /// Ends the sessions that are still attached, and only those.
    async fn end_the_rest(&mut self) -> Result<(), GaveUp> {
        let cluster = Arc::clone(self.cluster());
        self.event.waiting_for = self.in_the_way().await;
        let until = Instant::now() + FORCE_MAX;
        while cluster.gate.session_leases() > 0 {
            for handle in cluster.registry.all() {
                if handle.with_report(|r| r.generation.is_some()) {
                    self.ended_some = true;
                    handle.ask(Ask::Force);
                }
            }
            if Instant::now() >= until {
                return Err(GaveUp::Stuck);
            }
            drop(tokio::time::timeout(LOOK, cluster.gate.progress()).await);
        }
        Ok(())
    }

    async fn cut_over(&mut self, attached: u64) -> Ended {
        self.step(Step::CutOver);
        let cluster = Arc::clone(self.cluster());
        let to = self.event.request.to;
        cluster.service.rest().await;
        // The fence: from here on only an instance that answered is served from.
        cluster.gate.serve_none();
        self.event.moved = attached;
        match self.coordinator.provider.cut_over(&self.from, to).await {
            CutOver::Completed(instance) => {
                self.coordinator.serve(instance);
                let forced = self.ended_some;
                if !forced {
                    self.event.waiting_for.clear();
                }
                let outcome = if forced {
                    EventOutcome::Forced
                } else {
                    EventOutcome::Completed
                };
                Ended::new(outcome, None)
            }
            CutOver::KeptOld { instance, reason } => {
                self.coordinator.serve(instance);
                Ended::new(EventOutcome::Failed, reason)
            }
            CutOver::Lost { reason } => {
                self.coordinator.inner.lock().failed = Some(reason.clone());
                cluster.report_trouble();
                Ended::new(EventOutcome::Failed, reason)
            }
        }
    }

    // ---- rolling ----------------------------------------------------------------------------

    /// Both capacities are the same server: sessions move one by one, each at its own safe point, and
    /// keep their old server connection until the new one is verified.
    async fn roll(&mut self) -> Ended {
        let cluster = Arc::clone(self.cluster());
        let CutOver::Completed(instance) = self
            .coordinator
            .provider
            .cut_over(&self.from, self.event.request.to)
            .await
        else {
            return Ended::new(
                EventOutcome::Failed,
                "the endpoint does not answer".to_owned(),
            );
        };
        self.step(Step::Roll);
        self.coordinator.serve(instance);
        let generation = cluster.gate.view().serving.map_or(0, |s| s.generation);
        cluster.gate.roll(Some(generation));
        let ended = self.roll_all(generation).await;
        cluster.gate.roll(None);
        for handle in cluster.registry.all() {
            drop(handle.take_offer());
        }
        if ended.outcome == EventOutcome::RolledBack {
            // The same server: who has moved stays, new ones come by the old address again.
            self.coordinator.serve(self.from.clone());
        }
        ended
    }

    async fn roll_all(&mut self, generation: u64) -> Ended {
        let cluster = Arc::clone(self.cluster());
        let max_hold = self.coordinator.rules.max_hold;
        let mut forced = None;
        let mut before = self.left_behind(generation).len();
        let mut offers: Vec<(Arc<Handle>, Instant)> = Vec::new();
        let mut next_report = Instant::now();
        let mut turn = 0_usize;
        loop {
            let left = self.left_behind(generation);
            self.event.moved += before.saturating_sub(left.len()) as u64;
            before = left.len();
            if left.is_empty() {
                if self.ended_some {
                    return Ended::new(EventOutcome::Forced, None);
                }
                self.event.waiting_for.clear();
                return Ended::new(EventOutcome::Completed, None);
            }
            let now = Instant::now();
            if now >= next_report {
                next_report = now + LOOK;
                self.event.waiting_for = self.in_the_way().await;
                let old: BTreeSet<_> = left.iter().map(|h| h.identity.id).collect();
                self.event.waiting_for.retain(|w| old.contains(&w.session));
                self.step(Step::Roll);
            }
            if now >= self.event.deadline() {
                let since = *forced.get_or_insert(now);
                if self.event.request.on_timeout == OnTimeout::Rollback {
                    return Ended::new(
                        EventOutcome::RolledBack,
                        "not every session came to a safe point in time".to_owned(),
                    );
                }
                if now >= since + max_hold {
                    self.ended_some = true;
                    left.iter().for_each(|handle| handle.ask(Ask::Force));
                }
                if now >= since + max_hold + FORCE_MAX {
                    let reason = "forced sessions did not end in time".to_owned();
                    return Ended::new(EventOutcome::Failed, reason);
                }
            }
            offers.retain(|(handle, at)| {
                if now.saturating_duration_since(*at) > OFFER_MAX {
                    handle.ask(Ask::StayHere);
                }
                handle.has_offer() || handle.is_moving()
            });
            turn = self.make_offers(&left, &mut offers, turn);
            drop(tokio::time::timeout(Duration::from_millis(20), cluster.gate.progress()).await);
        }
    }

    /// Offers free server connections to sessions that are left behind, in turn.
    fn make_offers(
        &self,
        left: &[Arc<Handle>],
        offers: &mut Vec<(Arc<Handle>, Instant)>,
        mut turn: usize,
    ) -> usize {
        let cluster = self.cluster();
        for _ in 0..left.len() {
            if offers.len() >= MOVES {
                break;
            }
            let Some(handle) = left.get(turn % left.len()) else {
                break;
            };
            turn = turn.wrapping_add(1);
            let in_the_way = |w: &InTheWay| {
                w.session == handle.identity.id
                    && (!w.blocker.kind.is_passing() || w.blocker.since.elapsed() > OFFER_MAX)
            };
            if handle.has_offer()
                || handle.is_moving()
                || self.event.waiting_for.iter().any(in_the_way)
            {
                continue;
            }
            let Some(lease) = cluster.gate.try_spare() else {
                break;
            };
            handle.offer(lease);
            offers.push((Arc::clone(handle), Instant::now()));
        }
        turn
    }

    fn left_behind(&self, generation: u64) -> Vec<Arc<Handle>> {
        let mut left = self.cluster().registry.all();
        left.retain(|h| h.with_report(|r| r.generation.is_some_and(|g| g < generation)));
        left.sort_by_key(|h| h.identity.id);
        left
    }
}

enum GaveUp {
    Blocked,
    Stuck,
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
