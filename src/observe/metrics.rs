//! All metrics: registered once, handed out as handles. Nothing on the data path looks a label up.
//!
//! Counters get their `_total` from the exposition, so names stand here without it.

use super::{ErrorKind, LoginMetrics, Side};
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A counter of seconds.
pub type SecondsCounter = Counter<f64, AtomicU64>;

/// Upper bounds of holds and waits, in seconds.
const SHORT_SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Upper bounds of resumes, in seconds.
const RESUME_SECONDS: [f64; 12] = [
    0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0,
];

/// What a session is doing, as `slackwater_sessions{state}` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Something is owed in one direction, or a transaction is open.
    Active,
    /// Attached, and nothing is owed.
    AtRest,
    /// Waits for the end of a hold.
    Held,
    /// At rest without a server connection.
    Parked,
}

impl SessionState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Active, Self::AtRest, Self::Held, Self::Parked];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::AtRest => "at_rest",
            Self::Held => "held",
            Self::Parked => "parked",
        }
    }
}

/// How a scale event ended, as `slackwater_scale_events_total{outcome}` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventOutcome {
    /// It reached the new capacity and disturbed nobody.
    Completed,
    /// Everything is as it was.
    RolledBack,
    /// It reached the new capacity, and the sessions in the way got an error.
    Forced,
    /// It went wrong; the reason is in the event.
    Failed,
    /// There was nothing to do. Not counted.
    None,
}

impl EventOutcome {
    /// Those that are counted.
    pub const COUNTED: [Self; 4] = [
        Self::Completed,
        Self::RolledBack,
        Self::Forced,
        Self::Failed,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::RolledBack => "rolled_back",
            Self::Forced => "forced",
            Self::Failed => "failed",
            Self::None => "none",
        }
    }
}

/// How the move of one session ended, as `slackwater_session_moves_total{outcome}` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MoveOutcome {
    /// Attached to the next server, its state verified.
    Moved,
    /// Its state could not be restored; it was ended.
    Failed,
    /// It was in the way of a forced event; it was ended.
    Terminated,
}

impl MoveOutcome {
    /// All outcomes.
    pub const ALL: [Self; 3] = [Self::Moved, Self::Failed, Self::Terminated];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Failed => "failed",
            Self::Terminated => "terminated",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCluster {
    cluster: Text,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    cluster: Text,
    state: Text,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    cluster: Text,
    outcome: Text,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    cluster: Text,
    kind: Text,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySide {
    side: Text,
    kind: Text,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: Text,
}

/// A label's value, shared and not copied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Text(Arc<str>);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&&*self.0, encoder)
    }
}

type HistogramFamily = Family<ByCluster, Histogram, fn() -> Histogram>;

fn short_histogram() -> Histogram {
    Histogram::new(SHORT_SECONDS)
}

fn resume_histogram() -> Histogram {
    Histogram::new(RESUME_SECONDS)
}

#[derive(Clone)]
struct Families {
    clients: Family<ByCluster, Gauge>,
    sessions: Family<ByState, Gauge>,
    server_connections: Family<ByState, Gauge>,
    capacity: Family<ByCluster, Gauge>,
    acu_seconds: Family<ByCluster, SecondsCounter>,
    scale_events: Family<ByOutcome, Counter>,
    hold_seconds: HistogramFamily,
    resume_seconds: HistogramFamily,
    wait_seconds: HistogramFamily,
    session_moves: Family<ByOutcome, Counter>,
    blockers: Family<ByKind, Gauge>,
    errors: Family<BySide, Counter>,
    bytes: Family<ByDirection, Counter>,
}

/// Every metric of the process. Cheap to clone; hand it, or the handles in it, to the parts.
#[derive(Clone)]
pub struct Metrics {
    /// Transactions that clients finished.
    pub transactions: Counter,
    /// Queries (simple, or Execute) that clients sent.
    pub queries: Counter,
    /// Bytes from clients to servers. Add what a wake-up moved, not each frame.
    pub bytes_to_server: Counter,
    /// Bytes from servers to clients. Add what a wake-up moved, not each frame.
    pub bytes_to_client: Counter,
    /// Logins of clients.
    pub logins: LoginMetrics,
    errors: Arc<[[Counter; ErrorKind::ALL.len()]; Side::ALL.len()]>,
    families: Families,
    registry: Arc<Registry>,
    clusters: Arc<Mutex<BTreeMap<String, ClusterMetrics>>>,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        let transactions = Counter::default();
        registry.register(
            "slackwater_transactions",
            "Transactions that clients finished",
            transactions.clone(),
        );
        let queries = Counter::default();
        registry.register(
            "slackwater_queries",
            "Queries that clients sent",
            queries.clone(),
        );
        let errors = Side::ALL.map(|side| {
            ErrorKind::ALL.map(|kind| {
                families.errors.get_or_create_owned(&BySide {
                    side: side.as_str().into(),
                    kind: kind.as_str().into(),
                })
            })
        });
        let direction = |direction: &str| {
            families.bytes.get_or_create_owned(&ByDirection {
                direction: direction.into(),
            })
        };
        Self {
            transactions,
            queries,
            bytes_to_server: direction("to_server"),
            bytes_to_client: direction("to_client"),
            logins: LoginMetrics::register(&mut registry),
            errors: Arc::new(errors),
            families,
            registry: Arc::new(registry),
            clusters: Arc::default(),
        }
    }

    /// The handles of one cluster; the same ones each time. Call it once per part, not per request.
    pub fn cluster(&self, name: &str) -> ClusterMetrics {
        self.clusters
            .lock()
            .entry(name.to_owned())
            .or_insert_with(|| ClusterMetrics::new(&self.families, name))
            .clone()
    }

    /// Counts one error.
    pub fn error(&self, side: Side, kind: ErrorKind) {
        let counter = self
            .errors
            .get(side as usize)
            .and_then(|kinds| kinds.get(kind as usize));
        if let Some(counter) = counter {
            counter.inc();
        }
    }

    /// All metrics in the OpenMetrics text format (`Content-Type` [`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        let mut out = String::new();
        match text::encode(&mut out, &self.registry) {
            Ok(()) => out,
            // Writing to a String fails only if an encoder is wrong; a broken page must not look whole.
            Err(_) => String::new(),
        }
    }
}

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Families {
    fn register(registry: &mut Registry) -> Self {
        let families = Self {
            clients: Family::default(),
            sessions: Family::default(),
            server_connections: Family::default(),
            capacity: Family::default(),
            acu_seconds: Family::default(),
            scale_events: Family::default(),
            hold_seconds: Family::new_with_constructor(short_histogram),
            resume_seconds: Family::new_with_constructor(resume_histogram),
            wait_seconds: Family::new_with_constructor(short_histogram),
            session_moves: Family::default(),
            blockers: Family::default(),
            errors: Family::default(),
            bytes: Family::default(),
        };
        let f = families.clone();
        let mut add = Registered(registry);
        add.metric("clients", "Connected clients", f.clients);
        add.metric("sessions", "Sessions by what they do", f.sessions);
        add.metric(
            "server_connections",
            "Server connections by use",
            f.server_connections,
        );
        add.metric("capacity_acu", "Capacity in ACU; 0 is paused", f.capacity);
        add.metric(
            "acu_seconds",
            "Capacity used, in ACU times seconds",
            f.acu_seconds,
        );
        add.metric("scale_events", "Scale events by outcome", f.scale_events);
        add.metric(
            "hold_seconds",
            "How long an attempt held clients",
            f.hold_seconds,
        );
        add.metric(
            "resume_seconds",
            "From the first request to a paused cluster to its server's first answer",
            f.resume_seconds,
        );
        add.metric(
            "wait_seconds",
            "How long a request waited for a server connection",
            f.wait_seconds,
        );
        add.metric(
            "session_moves",
            "Sessions moved to another server by outcome",
            f.session_moves,
        );
        add.metric(
            "blockers",
            "Sessions that can't be moved now by reason",
            f.blockers,
        );
        add.metric(
            "errors",
            "Errors by where they were met and who is at fault",
            f.errors,
        );
        add.metric("bytes", "Bytes relayed", f.bytes);
        families
    }
}

struct Registered<'a>(&'a mut Registry);

impl Registered<'_> {
    fn metric(&mut self, name: &str, help: &str, metric: impl prometheus_client::registry::Metric) {
        self.0.register(format!("slackwater_{name}"), help, metric);
    }
}

/// The metrics of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterMetrics {
    /// Connected clients.
    pub clients: Gauge,
    /// Server connections that a session holds.
    pub server_connections_attached: Gauge,
    /// Server connections that wait for a session.
    pub server_connections_idle: Gauge,
    /// Server connections that are being opened, probed, restored or closed.
    pub server_connections_busy: Gauge,
    /// Capacity in ACU; zero while paused.
    pub capacity: Gauge,
    /// Capacity used, in ACU times seconds.
    pub acu_seconds: SecondsCounter,
    /// Length of holds, in seconds, one observation per attempt.
    pub hold_seconds: Histogram,
    /// Length of resumes, in seconds.
    pub resume_seconds: Histogram,
    /// How long requests waited for a server connection, in seconds.
    pub wait_seconds: Histogram,
    sessions: [Gauge; SessionState::ALL.len()],
    scale_events: [Counter; EventOutcome::COUNTED.len()],
    session_moves: [Counter; MoveOutcome::ALL.len()],
    blockers: Family<ByKind, Gauge>,
    cluster: Text,
}

impl ClusterMetrics {
    fn new(families: &Families, name: &str) -> Self {
        let cluster = Text::from(name);
        let by_cluster = ByCluster {
            cluster: cluster.clone(),
        };
        let by_state = |state: &str| ByState {
            cluster: cluster.clone(),
            state: state.into(),
        };
        let by_outcome = |outcome: &str| ByOutcome {
            cluster: cluster.clone(),
            outcome: outcome.into(),
        };
        let server = |state| {
            families
                .server_connections
                .get_or_create_owned(&by_state(state))
        };
        Self {
            clients: families.clients.get_or_create_owned(&by_cluster),
            server_connections_attached: server("attached"),
            server_connections_idle: server("idle"),
            server_connections_busy: server("busy"),
            capacity: families.capacity.get_or_create_owned(&by_cluster),
            acu_seconds: families.acu_seconds.get_or_create_owned(&by_cluster),
            hold_seconds: families.hold_seconds.get_or_create_owned(&by_cluster),
            resume_seconds: families.resume_seconds.get_or_create_owned(&by_cluster),
            wait_seconds: families.wait_seconds.get_or_create_owned(&by_cluster),
            sessions: SessionState::ALL
                .map(|s| families.sessions.get_or_create_owned(&by_state(s.as_str()))),
            scale_events: EventOutcome::COUNTED.map(|o| {
                families
                    .scale_events
                    .get_or_create_owned(&by_outcome(o.as_str()))
            }),
            session_moves: MoveOutcome::ALL.map(|o| {
                families
                    .session_moves
                    .get_or_create_owned(&by_outcome(o.as_str()))
            }),
            blockers: families.blockers.clone(),
            cluster,
        }
    }

    /// The gauge of the sessions in one state, for a part that counts them itself.
    pub fn sessions(&self, state: SessionState) -> &Gauge {
        let [active, at_rest, held, parked] = &self.sessions;
        match state {
            SessionState::Active => active,
            SessionState::AtRest => at_rest,
            SessionState::Held => held,
            SessionState::Parked => parked,
        }
    }

    /// Counts one session, from now until the guard is dropped, under the state that the guard is set to.
    pub fn session(&self, state: SessionState) -> SessionGauge {
        self.sessions(state).inc();
        SessionGauge {
            gauges: self.sessions.clone(),
            state,
        }
    }

    /// Counts a scale event that ended. An event that had nothing to do is not counted.
    pub fn scale_event(&self, outcome: EventOutcome) {
        let [completed, rolled_back, forced, failed] = &self.scale_events;
        match outcome {
            EventOutcome::Completed => completed.inc(),
            EventOutcome::RolledBack => rolled_back.inc(),
            EventOutcome::Forced => forced.inc(),
            EventOutcome::Failed => failed.inc(),
            EventOutcome::None => 0,
        };
    }

    /// Counts the move of one session.
    pub fn session_move(&self, outcome: MoveOutcome) {
        let [moved, failed, terminated] = &self.session_moves;
        match outcome {
            MoveOutcome::Moved => moved.inc(),
            MoveOutcome::Failed => failed.inc(),
            MoveOutcome::Terminated => terminated.inc(),
        };
    }

    /// The gauge of the sessions with a blocker of this kind. Resolve it once.
    pub fn blockers(&self, kind: &str) -> Gauge {
        self.blockers.get_or_create_owned(&ByKind {
            cluster: self.cluster.clone(),
            kind: kind.into(),
        })
    }
}

/// Counts one thing in a gauge until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Adds one to `gauge`.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts one session under its state until it is dropped.
#[derive(Debug)]
pub struct SessionGauge {
    gauges: [Gauge; SessionState::ALL.len()],
    state: SessionState,
}

impl SessionGauge {
    /// Counts the session under `state` from now on.
    pub fn set(&mut self, state: SessionState) {
        if state != self.state {
            self.of(self.state).dec();
            self.of(state).inc();
            self.state = state;
        }
    }

    fn of(&self, state: SessionState) -> &Gauge {
        let [active, at_rest, held, parked] = &self.gauges;
        match state {
            SessionState::Active => active,
            SessionState::AtRest => at_rest,
            SessionState::Held => held,
            SessionState::Parked => parked,
        }
    }
}

impl Drop for SessionGauge {
    fn drop(&mut self) {
        self.of(self.state).dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_the_documented_ones() {
        let metrics = Metrics::new();
        let shop = metrics.cluster("shop");
        let client = GaugeGuard::new(&shop.clients);
        let mut session = shop.session(SessionState::Active);
        session.set(SessionState::AtRest);
        shop.server_connections_attached.set(3);
        shop.capacity.set(4);
        shop.acu_seconds.inc_by(1.5);
        shop.scale_event(EventOutcome::RolledBack);
        shop.scale_event(EventOutcome::None);
        shop.hold_seconds.observe(0.02);
        shop.resume_seconds.observe(1.0);
        shop.wait_seconds.observe(0.002);
        shop.session_move(MoveOutcome::Moved);
        shop.blockers("transaction").set(2);
        metrics.transactions.inc();
        metrics.queries.inc_by(2);
        metrics.error(Side::Client, ErrorKind::Limit);
        metrics.error(Side::Control, ErrorKind::Provider);
        metrics.bytes_to_client.inc_by(7);
        let page = metrics.render();
        for line in [
            "slackwater_clients{cluster=\"shop\"} 1",
            "slackwater_sessions{cluster=\"shop\",state=\"active\"} 0",
            "slackwater_sessions{cluster=\"shop\",state=\"at_rest\"} 1",
            "slackwater_server_connections{cluster=\"shop\",state=\"attached\"} 3",
            "slackwater_capacity_acu{cluster=\"shop\"} 4",
            "slackwater_acu_seconds_total{cluster=\"shop\"} 1.5",
            "slackwater_scale_events_total{cluster=\"shop\",outcome=\"rolled_back\"} 1",
            "slackwater_scale_events_total{cluster=\"shop\",outcome=\"completed\"} 0",
            "slackwater_hold_seconds_count{cluster=\"shop\"} 1",
            "slackwater_resume_seconds_sum{cluster=\"shop\"} 1.0",
            "slackwater_wait_seconds_bucket{le=\"0.0025\",cluster=\"shop\"} 1",
            "slackwater_session_moves_total{cluster=\"shop\",outcome=\"moved\"} 1",
            "slackwater_blockers{cluster=\"shop\",kind=\"transaction\"} 2",
            "slackwater_transactions_total 1",
            "slackwater_queries_total 2",
            "slackwater_errors_total{side=\"client\",kind=\"limit\"} 1",
            "slackwater_errors_total{side=\"control\",kind=\"provider\"} 1",
            "slackwater_errors_total{side=\"server\",kind=\"server\"} 0",
            "slackwater_bytes_total{direction=\"to_client\"} 7",
            "slackwater_bytes_total{direction=\"to_server\"} 0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));

        drop((client, session));
        let page = metrics.render();
        assert!(
            page.contains("slackwater_clients{cluster=\"shop\"} 0"),
            "{page}"
        );
        assert!(page.contains("state=\"at_rest\"} 0"), "{page}");
    }

    #[test]
    fn a_cluster_has_one_set_of_handles() {
        let metrics = Metrics::new();
        metrics.cluster("shop").clients.inc();
        metrics.clone().cluster("shop").clients.inc();
        assert_eq!(metrics.cluster("shop").clients.get(), 2);
        assert_eq!(metrics.cluster("other").clients.get(), 0);
    }
}
