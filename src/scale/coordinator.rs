//! Runs the scale events of one cluster, one at a time, and keeps its instance known to the gate.
//!
//! Up to the fence every failure leaves everything as it was: the hold is a guard whose drop releases to
//! the old generation. After it, only an instance that has answered a query is served from.

use super::event::{Event, Request, Step};
use super::run::{LOOK, Run};
use crate::backend::Capacity;
use crate::backend::cluster::Cluster;
use crate::backend::gate::Hold;
use crate::observe::ClusterMetrics;
use crate::provider::{Fact, Instance, Provider, ProviderError};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Events that are remembered.
const EVENTS_MAX: usize = 1000;

/// Wait between attempts to find a server that was lost.
const RECOVER: Duration = Duration::from_millis(500);

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
    /// The proxy ends.
    #[error("slackwater is draining: no scale event begins")]
    Closed,
}

/// The coordinator of one cluster.
pub struct Coordinator {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    pub(super) provider: Provider,
    pub(super) rules: Rules,
    pub(super) metrics: ClusterMetrics,
    pub(super) inner: Mutex<Inner>,
    /// Held while a lost server is looked for, so that no event begins with what is about to be replaced, and nothing
    /// that was found before an event is served after it.
    recovering: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    instance: Option<Instance>,
    events: VecDeque<Event>,
    pub(super) running: Option<u64>,
    held_by_hand: Option<(u64, Hold)>,
    holds: u64,
    last_id: u64,
    pub(super) failed: Option<String>,
    /// Sessions have reported trouble with the server since the event that runs last looked.
    pub(super) trouble: bool,
    /// What [`Coordinator::start`] was asked for.
    first: Option<Capacity>,
    /// The proxy ends: no server is changed any more.
    closed: bool,
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
            recovering: tokio::sync::Mutex::default(),
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

    /// What runs the cluster's servers.
    pub fn provider(&self) -> &Provider {
        &self.provider
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
            let is_ours = |(held, _): &mut (u64, Hold)| *held == number;
            if inner.held_by_hand.take_if(is_ours).is_some() {
                // Nobody looked for the server meanwhile.
                this.cluster.report_trouble();
            }
        });
        Ok(())
    }

    /// Ends a hold by hand; false when there was none.
    pub fn release(&self) -> bool {
        let was_held = self.inner.lock().held_by_hand.take().is_some();
        if was_held {
            // Nobody looked for the server meanwhile.
            self.cluster.report_trouble();
        }
        was_held
    }

    /// Begins an event. `None`: the capacity is the wanted one already.
    pub fn scale(self: &Arc<Self>, request: Request) -> Result<Option<Event>, Refused> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Refused::Closed);
        }
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
        inner.trouble = false;
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
            prepared_at: tokio::time::Instant::now(),
            gave_way: 0,
        };
        tokio::spawn(run.run());
        Ok(Some(event))
    }

    /// No event begins any more, and one that looks for a scaling point gives up. One that cuts over goes on.
    pub fn close(&self) {
        self.inner.lock().closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }

    /// Whether the server is being changed: whoever ends now leaves none behind.
    pub fn is_cutting_over(&self) -> bool {
        self.running().is_some_and(|e| e.step == Step::CutOver)
    }

    /// Watches for servers that are not what they were: sessions report trouble, the provider is asked.
    pub async fn watch(self: Arc<Self>) {
        loop {
            self.cluster.trouble().await;
            let mut reported = true;
            while self.tell_event(reported) {
                let again = tokio::time::timeout(LOOK, self.cluster.trouble()).await;
                reported = again.is_ok();
            }
            if !self.recover().await {
                tokio::time::sleep(RECOVER).await;
                self.cluster.report_trouble();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks the provider who serves now; false: nobody does. An event that has just begun comes first, and is told.
    async fn recover(&self) -> bool {
        let _recovering = self.recovering.lock().await;
        if self.tell_event(true) {
            self.cluster.report_trouble();
            return true;
        }
        if self.inner.lock().held_by_hand.is_some() {
            // Who holds may have stopped it, for work of his own.
            return true;
        }
        self.find().await.is_ok()
    }

    /// Asks the provider who serves now, for an event that could not begin with the server that it was told of: without
    /// traffic nobody else misses one. `None`: it is that one, or there is none.
    pub(super) async fn found_again(&self) -> Option<Instance> {
        let _recovering = self.recovering.lock().await;
        let found = self.find().await;
        if found.is_err() {
            // The search goes on when the event is over.
            self.cluster.report_trouble();
        }
        found.ok().flatten()
    }

    /// Asks the provider who serves now, and serves from it if it is another one, which is returned. While
    /// [`Self::recovering`] is held.
    async fn find(&self) -> Result<Option<Instance>, ProviderError> {
        let first = self.inner.lock().first;
        let Some(wanted) = self.capacity().or(first) else {
            return Ok(None);
        };
        match self.provider.start(wanted).await {
            Ok(instance) => {
                let known = self.inner.lock().instance.clone();
                let same = known.is_some_and(|known| {
                    known.identity == instance.identity && known.endpoint == instance.endpoint
                });
                if same && self.cluster.gate.view().serving.is_some() {
                    return Ok(None);
                }
                tracing::warn!(cluster = %self.cluster.name, "the server was restarted; its generation is served now");
                self.serve(instance.clone());
                Ok(Some(instance))
            }
            Err(error) => {
                tracing::warn!(cluster = %self.cluster.name, %error, "no server");
                self.inner.lock().failed = Some(error.to_string());
                if self.inner.lock().running.is_none() {
                    // Requests wait in line instead of knocking.
                    self.cluster.gate.serve_none();
                }
                Err(error)
            }
        }
    }

    /// Waits until nobody looks for a lost server, and tells what was found.
    pub(super) async fn recovered(&self) -> Option<Instance> {
        let _recovering = self.recovering.lock().await;
        self.inner.lock().instance.clone()
    }

    /// Whether an event runs; it is told of trouble.
    fn tell_event(&self, trouble: bool) -> bool {
        let mut inner = self.inner.lock();
        inner.trouble |= trouble;
        inner.running.is_some()
    }

    pub(super) fn serve(&self, instance: Instance) {
        self.metrics.capacity.set(i64::from(instance.capacity.0));
        self.cluster
            .gate
            .serve(instance.endpoint.clone(), &instance.identity.started_at);
        let mut inner = self.inner.lock();
        inner.instance = Some(instance);
        inner.failed = None;
    }

    pub(super) fn keep(&self, event: &Event) {
        self.inner.lock().keep(event);
    }

    /// The same, unless the proxy ends; whether it was done. In one step, so that who closes and then looks sees it.
    pub(super) fn keep_unless_closed(&self, event: &Event) -> bool {
        let mut inner = self.inner.lock();
        if !inner.closed {
            inner.keep(event);
        }
        !inner.closed
    }
}

impl Inner {
    fn keep(&mut self, event: &Event) {
        if let Some(kept) = self.events.iter_mut().rev().find(|e| e.id == event.id) {
            kept.clone_from(event);
        }
    }
}
