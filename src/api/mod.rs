//! The admin API over HTTP (docs/admin-api.md).
//!
//! Handlers are thin: they read the request, ask [`Control`], and write its answer. What a running proxy
//! can be asked is that trait; `app` implements it.

mod guard;
mod listener;
mod request;
mod routes;
pub mod view;

pub use view::{
    BlockerView, ClusterState, ClusterView, EventState, EventView, FactView, ReloadReport,
    SessionCounts, SessionView, WaitingView,
};

use crate::backend::Capacity;
use crate::scale::event::OnTimeout;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How long open requests may go on after the shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What a running proxy can be asked and told. No method blocks: they read shared state or start something.
pub trait Control: Send + Sync + 'static {
    /// All clusters, by name.
    fn clusters(&self) -> Vec<ClusterView>;
    /// One cluster.
    fn cluster(&self, name: &str) -> Result<ClusterView, ControlError>;
    /// The sessions of a cluster, oldest first.
    fn sessions(&self, cluster: &str) -> Result<Vec<SessionView>, ControlError>;
    /// The scale events of a cluster that are still known, newest first.
    fn events(&self, cluster: &str) -> Result<Vec<EventView>, ControlError>;
    /// One scale event.
    fn event(&self, cluster: &str, id: u64) -> Result<EventView, ControlError>;
    /// Starts a scale event and returns at once. The capacity was checked against the cluster's ladder.
    fn scale(&self, cluster: &str, request: ScaleRequest) -> Result<EventView, ControlError>;
    /// Stops granting server connections, for this long at most; `None`: as long as the cluster allows.
    fn hold(&self, cluster: &str, period: Option<Duration>) -> Result<ClusterView, ControlError>;
    /// Ends a hold.
    fn release(&self, cluster: &str) -> Result<ClusterView, ControlError>;
    /// Stops the cluster's server until the next request.
    fn pause(&self, cluster: &str) -> Result<ClusterView, ControlError>;
    /// Starts a paused cluster's server.
    fn resume(&self, cluster: &str) -> Result<ClusterView, ControlError>;
    /// Reads the configuration and the certificates again.
    fn reload(&self) -> Result<ReloadReport, ControlError>;
    /// Takes no new clients, and ends when the last one has left.
    fn drain(&self) -> Result<(), ControlError>;
    /// All metrics, in the format of [`crate::observe::metrics::CONTENT_TYPE`].
    fn metrics_text(&self) -> String;
    /// Whether new clients are served; the error says why not.
    fn ready(&self) -> Result<(), String>;
}

/// A wanted change of capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleRequest {
    /// To this size.
    pub capacity: Capacity,
    /// How long to look for a scaling point; `None`: as configured.
    pub timeout: Option<Duration>,
    /// What happens when none is found; `None`: as configured.
    pub on_timeout: Option<OnTimeout>,
    /// Go through the whole event even if the capacity stays the same.
    pub restart: bool,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What kind of refusal.
    pub code: ErrorCode,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl ControlError {
    /// A refusal.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// There is no cluster of this name.
    pub fn unknown_cluster(name: &str) -> Self {
        Self::new(
            ErrorCode::UnknownCluster,
            format!("there is no cluster named {name:?}"),
        )
    }

    /// The cluster has no event of this number, or not any more.
    pub fn unknown_event(cluster: &str, id: u64) -> Self {
        Self::new(
            ErrorCode::UnknownEvent,
            format!("cluster {cluster} has no event {id}"),
        )
    }
}

/// The kinds of refusals, each with its HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The request can't be understood.
    InvalidRequest,
    /// The capacity is not one that the cluster can have.
    InvalidCapacity,
    /// The configuration that should be loaded is wrong.
    InvalidConfig,
    /// This release doesn't do that.
    NotSupported,
    /// The body is longer than 16 KiB, or was cut off.
    BodyTooLarge,
    /// No cluster of this name.
    UnknownCluster,
    /// No event of this number.
    UnknownEvent,
    /// Another scale event runs.
    EventRunning,
    /// The cluster's state doesn't allow it.
    Conflict,
    /// The proxy is draining.
    Draining,
    /// Not possible just now.
    Unavailable,
}

impl ErrorCode {
    /// The `code` in the answer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidCapacity => "invalid_capacity",
            Self::InvalidConfig => "invalid_config",
            Self::NotSupported => "not_supported",
            Self::BodyTooLarge => "body_too_large",
            Self::UnknownCluster => "unknown_cluster",
            Self::UnknownEvent => "unknown_event",
            Self::EventRunning => "event_running",
            Self::Conflict => "conflict",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest
            | Self::InvalidCapacity
            | Self::InvalidConfig
            | Self::NotSupported => 400,
            Self::UnknownCluster | Self::UnknownEvent => 404,
            Self::EventRunning | Self::Conflict => 409,
            Self::BodyTooLarge => 413,
            Self::Draining | Self::Unavailable => 503,
        }
    }
}

/// Answers requests until `shutdown`, then lets open requests end for a few seconds.
///
/// With a `token`, requests other than `/healthz` and `/readyz` must carry it; without one, the
/// listener must be on a loopback address, and requests must name a loopback host.
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    token: Option<Zeroizing<String>>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = routes::router(control, guard::Guard::new(token));
    let server = axum::serve(listener::Limited::new(listener), router)
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        result = server => result,
        () = async {
            shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN_GRACE).await;
        } => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
