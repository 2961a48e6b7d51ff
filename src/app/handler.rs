//! What the admin API asks of the running proxy, and what it is shown.

use super::control::App;
use super::start::Running;
use crate::api::view::{
    BlockerView, ClusterState, ClusterView, EventState, EventView, FactView, ReloadReport,
    SessionCounts, SessionView, WaitingView,
};
use crate::api::{Control, ControlError, ErrorCode, ScaleRequest};
use crate::backend::registry::{Handle, State};
use crate::observe::{EventOutcome, SessionState};
use crate::scale::coordinator::Refused;
use crate::scale::event::{Event, InTheWay, Request};
use crate::scale::run::reports;
use crate::session::blocker::{Blocker, BlockerKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Sessions in the way that an answer lists.
const WAITING_MAX: usize = 100;

/// A hold by hand that gives no period lasts this long.
const HOLD_DEFAULT: Duration = Duration::from_mins(5);

impl App {
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
        for detection in cluster.missing_detections() {
            facts.push(FactView {
                name: "missing_detection".to_owned(),
                value: detection.as_str().to_owned(),
                note: "what only it would show is taken from the texts of statements, and stays in the way"
                    .to_owned(),
            });
        }
        ClusterView {
            name: running.config.name.clone(),
            engine: running.config.engine.name().to_owned(),
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
                // Some may have been given back since those of sessions were counted.
                .set(signed(cluster.gate.leases().saturating_sub(sessions)));
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

/// What the admin API talks to.
pub(super) struct Handler(pub(super) Arc<App>);

impl Handler {
    /// Has sessions tell their blockers, from a thread that may wait.
    fn refresh(running: &Running) {
        let cluster = Arc::clone(&running.coordinator.cluster);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (done, wait) = std::sync::mpsc::channel();
            runtime.spawn(async move {
                reports(&cluster).await;
                let _gone = done.send(());
            });
            let _late = wait.recv_timeout(Duration::from_secs(1));
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
        Self::refresh(running);
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
            on_timeout,
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
            Self::refresh(running);
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
        Refused::Closed => ErrorCode::Draining,
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
        on_timeout: event.request.on_timeout,
        timeout_seconds: event.request.timeout.as_secs(),
        age_seconds: now.saturating_duration_since(event.began).as_secs(),
        duration_ms: millis(end.saturating_duration_since(event.began)),
    }
}
