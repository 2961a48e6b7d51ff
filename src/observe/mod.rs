//! Metrics, logs, and the kinds of errors.
//!
//! Observability only: nothing decides by what is kept here.

pub mod error_kind;
pub mod log;
mod login_metrics;
pub mod metrics;

pub use error_kind::{ErrorKind, Side};
pub use login_metrics::LoginMetrics;
pub use metrics::{
    ClusterMetrics, EventOutcome, GaugeGuard, Metrics, MoveOutcome, SessionGauge, SessionState,
};
