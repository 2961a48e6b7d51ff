//! One scale event, from request to completed, rolled back, forced or failed.

use crate::backend::Capacity;
use crate::observe::EventOutcome;
use crate::session::blocker::Blocker;
use std::time::Duration;
use tokio::time::Instant;

/// What happens when no scaling point is found in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// Everything stays as it was.
    Rollback,
    /// The sessions in the way get an error, and the event goes on.
    Force,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The new capacity.
    pub to: Capacity,
    /// How long it may look for a scaling point, from the end of Prepare.
    pub timeout: Duration,
    /// What happens at the timeout.
    pub on_timeout: OnTimeout,
    /// Go through with it at the present capacity, too.
    pub restart: bool,
}

/// What an event is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The provider makes sure that the change can work.
    Prepare,
    /// Sessions at rest are asked what they hold.
    Probe,
    /// Somebody is in the way; nobody is held.
    Wait,
    /// Everybody is held until all are detached.
    Settle,
    /// Sessions move one by one.
    Roll,
    /// The server is changed.
    CutOver,
}

impl Step {
    /// The name in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Probe => "probe",
            Self::Wait => "wait",
            Self::Settle => "settle",
            Self::Roll => "roll",
            Self::CutOver => "cut_over",
        }
    }
}

/// A session in the way, and why.
#[derive(Debug, Clone)]
pub struct InTheWay {
    /// Number of the session.
    pub session: u64,
    /// Why.
    pub blocker: Blocker,
}

/// The record of one event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Number, growing.
    pub id: u64,
    /// Capacity before.
    pub from: Capacity,
    /// What is wanted.
    pub request: Request,
    /// When it began.
    pub began: Instant,
    /// When it began to look for a scaling point: what Prepare takes is the server's time, not that of who is in the way.
    pub searches_since: Instant,
    /// When it ended.
    pub ended: Option<Instant>,
    /// How.
    pub outcome: Option<EventOutcome>,
    /// Why so.
    pub reason: Option<String>,
    /// What it is doing.
    pub step: Step,
    /// Holds begun.
    pub attempt: u32,
    /// Length of the last hold.
    pub held: Duration,
    /// Length of all holds.
    pub held_total: Duration,
    /// When the present hold began.
    pub holding_since: Option<Instant>,
    /// Sessions that were detached or moved.
    pub moved: u64,
    /// Sessions in the way, now or at the end.
    pub waiting_for: Vec<InTheWay>,
}

impl Event {
    /// An event that begins now.
    pub fn new(id: u64, from: Capacity, request: Request) -> Self {
        let now = Instant::now();
        Self {
            id,
            from,
            request,
            began: now,
            searches_since: now,
            ended: None,
            outcome: None,
            reason: None,
            step: Step::Prepare,
            attempt: 0,
            held: Duration::ZERO,
            held_total: Duration::ZERO,
            holding_since: None,
            moved: 0,
            waiting_for: Vec::new(),
        }
    }

    /// When it stops looking for a scaling point.
    pub fn deadline(&self) -> Instant {
        self.searches_since + self.request.timeout
    }

    /// Sessions in the way, each counted once.
    pub fn blocked(&self) -> u64 {
        let mut ids: Vec<_> = self.waiting_for.iter().map(|w| w.session).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len() as u64
    }
}
