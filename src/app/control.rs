//! The running proxy: its listeners, its signals, and what the admin API asks of it.

use super::AppError;
use super::start::{self, Running, fail};
use crate::api::view::{
    BlockerView, ClusterState, ClusterView, EventState, EventView, FactView, ReloadReport,
    SessionCounts, SessionView, WaitingView,
};
use crate::api::{Control, ControlError, ErrorCode, ScaleRequest};
use crate::backend::registry::{Ask, Handle, State};
use crate::backend::verifiers::Verifiers;
use crate::config::{AuthSource, Config, OnTimeout};
use crate::net::handshake::HandshakeConfig;
use crate::net::janitor::{self, Rests};
use crate::net::login::{self, Entrance};
use crate::net::shared::{Limits, Shared};
use crate::net::workers::Workers;
use crate::observe::{EventOutcome, Metrics, SessionState};
use crate::scale::coordinator::{Refused, reports};
use crate::scale::event::{Event, InTheWay, Request};
use crate::session::blocker::{Blocker, BlockerKind};
use crate::transport::tls::Certificates;
use crate::transport::{Address, SocketConfig, socket};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How long a drain waits for sessions to come to rest, before it ends them.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long ended sessions have to write their last message.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Sessions in the way that an answer lists.
const WAITING_MAX: usize = 100;

/// A hold by hand that gives no period lasts this long.
const HOLD_DEFAULT: Duration = Duration::from_secs(300);

/// The running proxy.
pub(super) struct App {
    pub(super) clusters: Vec<Running>,
    pub(super) certificates: Arc<Certificates>,
    config: Mutex<Config>,
    path: Option<PathBuf>,
    entrance: Arc<Entrance>,
    handshake: Arc<HandshakeConfig>,
    metrics: Metrics,
    mock_secret: [u8; 32],
    stop: CancellationToken,
    usage: Mutex<Instant>,
    /// Lines to print once everything is up.
    greeting: Vec<String>,
    workers: Workers,
    _lock: nix::fcntl::Flock<std::fs::File>,
}

impl App {
    /// Starts everything but the listeners.
    pub(super) async fn start(
        config: Config,
        path: Option<PathBuf>,
        greeting: Vec<String>,
    ) -> Result<Arc<Self>, AppError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let lock = start::state_dir(&config.state_dir)?;
        let workers = Workers::start().map_err(|e| fail(format!("threads: {e}")))?;
        let mock_secret = start::mock_secret(&config.state_dir)?;
        let certificates = Arc::new(start::certificates(&config)?);
        let metrics = Metrics::new();
        let limits = Limits {
            max_clients: usize::try_from(config.limits.max_clients).unwrap_or(usize::MAX),
            login_timeout: config.limits.login_timeout,
            max_connection_age: config.limits.max_connection_age,
            max_connection_age_grace: config.limits.max_connection_age_grace,
        };
        let socket = socket_config(&config);
        let shared = Arc::new(Shared::new(metrics.clone(), limits));
        let (mut clusters, mut entries) = (Vec::new(), Vec::new());
        for keys in &config.clusters {
            let (running, entry) =
                start::cluster(keys.clone(), socket, &mock_secret, &metrics).await?;
            clusters.push(running);
            entries.push(entry);
        }
        let tls = config
            .listen
            .postgres
            .as_ref()
            .map_or(crate::transport::ListenTls::Off, |l| l.tls);
        Ok(Arc::new(Self {
            clusters,
            handshake: Arc::new(HandshakeConfig {
                tls,
                certificates: Arc::clone(&certificates),
                mock_secret,
            }),
            certificates,
            entrance: Arc::new(Entrance { shared, entries }),
            config: Mutex::new(config),
            path,
            metrics,
            mock_secret,
            stop: CancellationToken::new(),
            usage: Mutex::new(Instant::now()),
            greeting,
            workers,
            _lock: lock,
        }))
    }

    /// Listens, serves, and returns when everything has ended.
    pub(super) async fn run(self: Arc<Self>) -> Result<(), AppError> {
        let config = self.config.lock().clone();
        let socket = socket_config(&config);
        for running in &self.clusters {
            let rests = Rests {
                snapshot_after: running.config.sessions.snapshot_after,
                park_after: running.config.sessions.park_after,
            };
            let cluster = Arc::clone(&running.coordinator.cluster);
            tokio::spawn(janitor::run(cluster, rests, self.entrance.shared.limits));
            tokio::spawn(Arc::clone(&running.coordinator).watch());
        }
        for address in config.listen.postgres.iter().flat_map(|l| &l.addresses) {
            let listener = socket::bind(address)
                .await
                .map_err(|e| fail(format!("can't listen on {address}: {e}")))?;
            tracing::info!(%address, "listening for PostgreSQL clients");
            tokio::spawn(Arc::clone(&self).accept(listener, socket));
        }
        let admin = self.listen_admin(&config).await?;
        self.greet();
        self.signals().await?;
        self.end().await;
        admin.abort();
        Ok(())
    }

    async fn listen_admin(
        self: &Arc<Self>,
        config: &Config,
    ) -> Result<tokio::task::JoinHandle<()>, AppError> {
        let Address::Tcp { host, port } = &config.admin.address else {
            return Err(fail("admin.address must be a TCP address in this release"));
        };
        let address = &config.admin.address;
        let listener = tokio::net::TcpListener::bind((host.as_str(), *port))
            .await
            .map_err(|e| fail(format!("the admin API can't listen on {address}: {e}")))?;
        tracing::info!(%address, "admin API");
        let token = config
            .admin
            .token
            .as_ref()
            .map(|t| Zeroizing::new(t.reveal().to_owned()));
        let control: Arc<dyn Control> = Arc::new(Handler(Arc::clone(self)));
        let stop = self.stop.clone();
        Ok(tokio::spawn(async move {
            if let Err(error) = crate::api::serve(listener, control, token, stop).await {
                tracing::error!(%error, "the admin API ended");
            }
        }))
    }

    #[expect(
        clippy::print_stdout,
        reason = "the lines to paste are what `dev` is for"
    )]
    fn greet(&self) {
        for line in &self.greeting {
            println!("{line}");
        }
    }

    async fn accept(self: Arc<Self>, listener: socket::Listener, config: SocketConfig) {
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = self.stop.cancelled() => return,
            };
            match stream {
                Ok(stream) => {
                    let entrance = Arc::clone(&self.entrance);
                    let handshake = Arc::clone(&self.handshake);
                    if std::env::var("SW_W").as_deref()==Ok("0") { let stream = stream.settle(&config).unwrap(); tokio::spawn(login::serve(stream, entrance, handshake)); continue; }
                    self.workers.spawn(move || async move {
                        match stream.settle(&config) {
                            Ok(stream) => login::serve(stream, entrance, handshake).await,
                            Err(error) => tracing::warn!(%error, "a client's socket can't be used"),
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors: nobody is served faster by asking again at once.
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// SIGHUP reloads, SIGTERM drains, SIGINT ends at once; so does a drain that was asked for.
    async fn signals(self: &Arc<Self>) -> Result<(), AppError> {
        let listen = |kind| signal(kind).map_err(|e| fail(format!("signals: {e}")));
        let mut reload = listen(SignalKind::hangup())?;
        let mut drain = listen(SignalKind::terminate())?;
        let mut end = listen(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = reload.recv() => match self.reload() {
                    Ok(report) => tracing::info!(?report, "reloaded"),
                    Err(error) => tracing::error!(%error, "reload refused; nothing was changed"),
                },
                _ = drain.recv() => self.drain(),
                _ = end.recv() => return Ok(()),
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    fn drain(self: &Arc<Self>) {
        if self.entrance.shared.draining.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!("draining");
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let until = Instant::now() + DRAIN_MAX;
            while Instant::now() < until && this.entrance.shared.clients() > 0 {
                this.ask_all(Ask::Drain);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            this.stop.cancel();
        });
    }

    fn ask_all(&self, what: Ask) {
        for running in &self.clusters {
            running.coordinator.cluster.registry.ask_all(what);
        }
    }

    async fn end(&self) {
        self.entrance.shared.draining.store(true, Ordering::Release);
        self.stop.cancel();
        self.ask_all(Ask::Stop);
        let until = Instant::now() + STOP_MAX;
        let sessions = || {
            self.clusters
                .iter()
                .any(|c| !c.coordinator.cluster.registry.is_empty())
        };
        while Instant::now() < until && sessions() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let leases = || {
            self.clusters
                .iter()
                .any(|c| c.coordinator.cluster.gate.session_leases() > 0)
        };
        while Instant::now() < until && leases() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tracing::info!("ended; local servers go on");
    }

    fn reload(&self) -> Result<ReloadReport, ControlError> {
        let refuse = |text: String| ControlError::new(ErrorCode::InvalidConfig, text);
        let mut report = ReloadReport::default();
        if let Some(path) = &self.path {
            let new = Config::load(path).map_err(|e| refuse(e.to_string()))?;
            let mut old = self.config.lock();
            report.warnings.clone_from(&new.warnings);
            for (keys, entry) in new.clusters.iter().zip(&self.entrance.entries) {
                if keys.name == *entry.cluster.name
                    && let (AuthSource::Users { users, .. }, Verifiers::File(known)) =
                        (&keys.auth.source, &entry.verifiers)
                {
                    let read = start::users(users, &self.mock_secret)
                        .map_err(|e| refuse(e.to_string()))?;
                    known.store(Arc::new(read));
                    report
                        .changed
                        .push(format!("clusters.{}.auth.users_file", keys.name));
                }
            }
            report.needs_restart = differences(&old, &new);
            *old = Config {
                clusters: old.clusters.clone(),
                ..old.clone()
            };
        }
        self.certificates
            .reload()
            .map_err(|e| refuse(format!("TLS: {e}")))?;
        report.certificates = true;
        Ok(report)
    }

    fn running(&self, name: &str) -> Result<&Running, ControlError> {
        self.clusters
            .iter()
            .find(|c| c.config.name == name)
            .ok_or_else(|| ControlError::unknown_cluster(name))
    }

    fn view(&self, running: &Running) -> ClusterView {
        let coordinator = &running.coordinator;
        let cluster = &coordinator.cluster;
        let handles = cluster.registry.all();
        let mut sessions = SessionCounts::default();
        for handle in &handles {
            *match handle.state() {
                State::Active => &mut sessions.active,
                State::AtRest => &mut sessions.at_rest,
                State::Held => &mut sessions.held,
                State::Parked => &mut sessions.parked,
            } += 1;
        }
        let gate = cluster.gate.view();
        let event = coordinator.running().map(|e| event_view(&e));
        let state = if gate.serving.is_none() && coordinator.failed().is_some() {
            ClusterState::Failed
        } else if gate.held_since.is_some() {
            ClusterState::Holding
        } else if event.is_some() {
            ClusterState::Scaling
        } else {
            ClusterState::Running
        };
        let fact = |f: crate::provider::Fact| FactView {
            name: f.name,
            value: f.value,
            note: f.note,
        };
        let mut facts: Vec<_> = coordinator.facts().into_iter().map(fact).collect();
        if let Some(reason) = coordinator.failed() {
            facts.push(FactView {
                name: "failure".to_owned(),
                value: reason,
                note: String::new(),
            });
        }
        ClusterView {
            name: running.config.name.clone(),
            engine: "postgres".to_owned(),
            state,
            capacity: coordinator
                .capacity()
                .unwrap_or(crate::backend::Capacity(0)),
            min: running.config.capacity.min,
            max: running.config.capacity.max,
            ladder: running.config.capacity.ladder.clone(),
            generation: gate.serving.map_or(0, |s| s.generation),
            clients: handles.len() as u64,
            sessions,
            server_connections: cluster.gate.leases() as u64,
            event,
            seconds_until_pause: None,
            acu_seconds: self.metrics.cluster(&running.config.name).acu_seconds.get(),
            facts,
        }
    }

    /// Adds the time since it was last called to each cluster's ledger, and sets the gauges.
    fn account(&self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(std::mem::replace(&mut *self.usage.lock(), now));
        for running in &self.clusters {
            let metrics = self.metrics.cluster(&running.config.name);
            let cluster = &running.coordinator.cluster;
            let capacity = running.coordinator.capacity().map_or(0, |c| c.0);
            metrics
                .acu_seconds
                .inc_by(passed.as_secs_f64() * f64::from(capacity));
            let handles = cluster.registry.all();
            metrics.clients.set(signed(handles.len()));
            let count = |state| handles.iter().filter(|h| h.state() == state).count();
            for (state, label) in [
                (State::Active, SessionState::Active),
                (State::AtRest, SessionState::AtRest),
                (State::Held, SessionState::Held),
                (State::Parked, SessionState::Parked),
            ] {
                metrics.sessions(label).set(signed(count(state)));
            }
            let sessions = cluster.gate.session_leases();
            let busy = count(State::Active).min(sessions);
            metrics.server_connections_busy.set(signed(busy));
            metrics
                .server_connections_attached
                .set(signed(sessions - busy));
            metrics
                .server_connections_idle
                .set(signed(cluster.gate.leases() - sessions));
            for kind in BlockerKind::ALL {
                let has =
                    |h: &&Arc<Handle>| h.with_report(|r| r.blockers.iter().any(|b| b.kind == kind));
                metrics
                    .blockers(kind.as_str())
                    .set(signed(handles.iter().filter(has).count()));
            }
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn socket_config(config: &Config) -> SocketConfig {
    SocketConfig {
        keepalive: config.limits.keepalive,
        tcp_user_timeout: config.limits.tcp_user_timeout,
    }
}

/// Keys that differ and that a reload does not apply.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    let mut note = |differs: bool, key: &str| {
        if differs {
            keys.push(key.to_owned());
        }
    };
    note(old.state_dir != new.state_dir, "state_dir");
    note(old.listen != new.listen, "listen");
    note(old.tls != new.tls, "tls");
    note(old.admin != new.admin, "admin");
    note(old.limits != new.limits, "limits");
    let names = |c: &Config| {
        c.clusters
            .iter()
            .map(|c| c.name.clone())
            .collect::<Vec<_>>()
    };
    note(names(old) != names(new), "clusters");
    for (old, new) in old.clusters.iter().zip(&new.clusters) {
        if old.name == new.name {
            let same_but_users = crate::config::ClusterConfig {
                auth: crate::config::AuthConfig {
                    source: old.auth.source.clone(),
                    ..new.auth.clone()
                },
                ..new.clone()
            };
            note(*old != same_but_users, &format!("clusters.{}", old.name));
        }
    }
    keys
}

/// What the admin API talks to.
struct Handler(Arc<App>);

impl Handler {
    /// Has sessions tell their blockers, from a thread that may wait.
    fn refresh(&self, running: &Running) {
        let cluster = Arc::clone(&running.coordinator.cluster);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (done, wait) = std::sync::mpsc::channel();
            runtime.spawn(async move {
                reports(&cluster).await;
                drop(done.send(()));
            });
            drop(wait.recv_timeout(Duration::from_secs(1)));
        }
    }
}

impl Control for Handler {
    fn clusters(&self) -> Vec<ClusterView> {
        self.0.account();
        self.0
            .clusters
            .iter()
            .map(|running| self.0.view(running))
            .collect()
    }

    fn cluster(&self, name: &str) -> Result<ClusterView, ControlError> {
        self.0.account();
        Ok(self.0.view(self.0.running(name)?))
    }

    fn sessions(&self, cluster: &str) -> Result<Vec<SessionView>, ControlError> {
        let running = self.0.running(cluster)?;
        self.refresh(running);
        let now = Instant::now().into_std();
        let mut handles = running.coordinator.cluster.registry.all();
        handles.sort_by_key(|h| h.identity.id);
        Ok(handles
            .iter()
            .map(|handle| session_view(handle, now))
            .collect())
    }

    fn events(&self, cluster: &str) -> Result<Vec<EventView>, ControlError> {
        let events = self.0.running(cluster)?.coordinator.events();
        Ok(events.iter().map(event_view).collect())
    }

    fn event(&self, cluster: &str, id: u64) -> Result<EventView, ControlError> {
        let event = self.0.running(cluster)?.coordinator.event(id);
        event
            .map(|e| event_view(&e))
            .ok_or_else(|| ControlError::unknown_event(cluster, id))
    }

    fn scale(&self, cluster: &str, request: ScaleRequest) -> Result<EventView, ControlError> {
        let running = self.0.running(cluster)?;
        let scaling = &running.config.scaling;
        let on_timeout = request.on_timeout.unwrap_or(scaling.on_timeout);
        self.0.account();
        let wanted = Request {
            to: request.capacity,
            timeout: request.timeout.unwrap_or(scaling.scaling_point_timeout),
            force: on_timeout == OnTimeout::Force,
            restart: request.restart,
        };
        match running.coordinator.scale(wanted) {
            Ok(Some(event)) => Ok(event_view(&event)),
            Ok(None) => {
                let mut nothing = Event::new(0, request.capacity, wanted);
                nothing.outcome = Some(EventOutcome::None);
                nothing.ended = Some(nothing.began);
                nothing.reason = Some(format!("the capacity is {} already", request.capacity));
                Ok(event_view(&nothing))
            }
            Err(refused) => Err(refusal(&refused)),
        }
    }

    fn hold(&self, cluster: &str, period: Option<Duration>) -> Result<ClusterView, ControlError> {
        let running = self.0.running(cluster)?;
        running
            .coordinator
            .hold(period.unwrap_or(HOLD_DEFAULT))
            .map_err(|refused| refusal(&refused))?;
        Ok(self.0.view(running))
    }

    fn release(&self, cluster: &str) -> Result<ClusterView, ControlError> {
        let running = self.0.running(cluster)?;
        if !running.coordinator.release() {
            return Err(ControlError::new(
                ErrorCode::Conflict,
                "the cluster is not held by hand",
            ));
        }
        Ok(self.0.view(running))
    }

    fn pause(&self, cluster: &str) -> Result<ClusterView, ControlError> {
        self.0.running(cluster)?;
        Err(ControlError::new(
            ErrorCode::NotSupported,
            "pause is not in this release",
        ))
    }

    fn resume(&self, cluster: &str) -> Result<ClusterView, ControlError> {
        self.0.running(cluster)?;
        Err(ControlError::new(
            ErrorCode::NotSupported,
            "resume is not in this release",
        ))
    }

    fn reload(&self) -> Result<ReloadReport, ControlError> {
        self.0.reload()
    }

    fn drain(&self) -> Result<(), ControlError> {
        self.0.drain();
        Ok(())
    }

    fn metrics_text(&self) -> String {
        for running in &self.0.clusters {
            self.refresh(running);
        }
        self.0.account();
        self.0.metrics.render()
    }

    fn ready(&self) -> Result<(), String> {
        if self.0.entrance.shared.draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        for running in &self.0.clusters {
            if running.coordinator.cluster.gate.view().serving.is_none() {
                return Err(format!("cluster {} has no server", running.config.name));
            }
        }
        Ok(())
    }
}

fn refusal(refused: &Refused) -> ControlError {
    let code = match refused {
        Refused::Running(_) => ErrorCode::EventRunning,
        Refused::HeldByHand => ErrorCode::Conflict,
        Refused::NoServer => ErrorCode::Unavailable,
    };
    ControlError::new(code, refused.to_string())
}

fn session_view(handle: &Arc<Handle>, now: std::time::Instant) -> SessionView {
    let seconds = |since: std::time::Instant| now.saturating_duration_since(since).as_secs();
    let report = handle.report();
    SessionView {
        id: handle.identity.id,
        user: handle.identity.user.clone(),
        database: handle.identity.database.clone(),
        application: report.application,
        client_address: handle.identity.client_address.clone(),
        state: match handle.state() {
            State::Active => SessionState::Active,
            State::AtRest => SessionState::AtRest,
            State::Held => SessionState::Held,
            State::Parked => SessionState::Parked,
        },
        attached: report.generation.is_some(),
        movable: report.movable,
        blockers: report
            .blockers
            .iter()
            .map(|b| blocker_view(b, now))
            .collect(),
        probed_seconds_ago: report.probed_at.map(seconds),
        age_seconds: seconds(handle.identity.connected_at),
    }
}

fn blocker_view(blocker: &Blocker, now: std::time::Instant) -> BlockerView {
    BlockerView {
        kind: blocker.kind.as_str().to_owned(),
        detail: blocker.detail.clone(),
        statement: (!blocker.statement.is_empty()).then(|| blocker.statement.clone()),
        age_seconds: now.saturating_duration_since(blocker.since).as_secs(),
    }
}

fn event_view(event: &Event) -> EventView {
    let now = Instant::now();
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let end = event.ended.unwrap_or(now);
    let present = event
        .holding_since
        .map(|since| now.saturating_duration_since(since));
    let waiting = |w: &InTheWay| WaitingView {
        session: w.session,
        blocker: blocker_view(&w.blocker, now.into_std()),
    };
    EventView {
        id: event.id,
        from: event.from,
        to: event.request.to,
        state: if event.ended.is_some() {
            EventState::Done
        } else {
            EventState::Running
        },
        outcome: event.outcome,
        reason: event.reason.clone(),
        step: event
            .ended
            .is_none()
            .then(|| event.step.as_str().to_owned()),
        attempt: event.attempt,
        held_ms: millis(present.unwrap_or(event.held)),
        held_total_ms: millis(event.held_total + present.unwrap_or_default()),
        sessions_moved: event.moved,
        sessions_blocked: event.blocked(),
        waiting_for: event
            .waiting_for
            .iter()
            .take(WAITING_MAX)
            .map(waiting)
            .collect(),
        on_timeout: if event.request.force {
            OnTimeout::Force
        } else {
            OnTimeout::Rollback
        },
        timeout_seconds: event.request.timeout.as_secs(),
        age_seconds: now.saturating_duration_since(event.began).as_secs(),
        duration_ms: millis(end.saturating_duration_since(event.began)),
    }
}
