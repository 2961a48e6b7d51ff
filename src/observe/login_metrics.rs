//! Metrics of logins: how many are in progress, and how many were not let begin or go on.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles of the metrics of logins.
#[derive(Debug, Clone)]
pub struct LoginMetrics {
    /// Connections that have proven nothing yet and may go on.
    pub in_progress: Gauge,
    /// Connections that wait for their turn.
    pub waiting: Gauge,
    /// Refused: their address had failed too often.
    pub refused_failures: Counter,
    /// Refused: there was no place.
    pub refused_full: Counter,
    /// Ended: they were slow, and others needed the place.
    pub refused_slow: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

impl LoginMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let logins: Family<ByState, Gauge> = Family::default();
        let refused: Family<ByReason, Counter> = Family::default();
        registry.register(
            "slackwater_logins",
            "Connections that have not logged in yet",
            logins.clone(),
        );
        registry.register(
            "slackwater_logins_refused",
            "Connections that were not let begin or end their login",
            refused.clone(),
        );
        let state = |state| logins.get_or_create_owned(&ByState { state });
        let reason = |reason| refused.get_or_create_owned(&ByReason { reason });
        Self {
            in_progress: state("in_progress"),
            waiting: state("waiting"),
            refused_failures: reason("address_failures"),
            refused_full: reason("full"),
            refused_slow: reason("slow"),
        }
    }
}
