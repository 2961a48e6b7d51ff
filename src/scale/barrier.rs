//! The barrier: one writer, so all sessions are held together while the server is changed.

use super::event::{OnTimeout, Step};
use super::plan::{self, Next, Search, Settle, Settled};
use super::run::{Ended, FORCE_MAX, LOOK, Run};
use crate::backend::gate::Hold;
use crate::backend::registry::Ask;
use crate::observe::EventOutcome;
use crate::provider::CutOver;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Run {
    pub(super) async fn barrier(&mut self) -> Ended {
        let ended = self.search_and_hold().await;
        // Who logged in ahead and did not need it leaves.
        self.cluster().gate.expect(None);
        ended
    }

    async fn search_and_hold(&mut self) -> Ended {
        let mut not_before = Instant::now();
        let mut lost = false;
        loop {
            self.step(Step::Probe);
            self.probe_all().await;
            let facts = self.look(not_before).await;
            if let Some(ended) = self.closed() {
                return ended;
            }
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
                    if self.wait(pause.min(left)).await {
                        // Nobody is served, so nobody is spared by waiting.
                        not_before = Instant::now();
                        lost = true;
                    }
                }
                Next::RollBack => {
                    return Ended::new(
                        EventOutcome::RolledBack,
                        "no scaling point was found in time".to_owned(),
                    );
                }
                next @ (Next::Hold | Next::Force) => {
                    let force = next == Next::Force;
                    // One that is gone is not asked: the cut-over starts the next one.
                    if !lost && let Err(ended) = self.prepare_again().await {
                        return ended;
                    }
                    self.count_variables().await;
                    self.log_in_ahead().await;
                    self.probe_resting().await;
                    if !force && self.look(not_before).await.blocker_known {
                        continue;
                    }
                    if let Some(ended) = self.attempt(force).await {
                        return ended;
                    }
                    not_before = Instant::now() + plan::pause_after(self.event.held);
                    lost = false;
                }
            }
        }
    }

    /// Waits for so long; true: the server was lost meanwhile.
    async fn wait(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(LOOK)).await;
            if self.server_is_lost().await {
                return true;
            }
            if Instant::now() >= until || self.coordinator.is_closed() {
                return false;
            }
        }
    }

    /// What is known of the sessions in the way.
    async fn look(&mut self, not_before: Instant) -> Search {
        let max_hold = self.coordinator.rules.max_hold;
        self.event.waiting_for = self.in_the_way().await;
        let blocker_known = self.keep_lasting(max_hold);
        Search {
            searched: self.event.searches_since.elapsed(),
            timeout: self.event.request.timeout,
            force: self.event.request.on_timeout == OnTimeout::Force,
            blocker_known,
            pause: not_before.saturating_duration_since(Instant::now()),
        }
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
        tracing::debug!(took = ?hold.since().elapsed(), "settled");
        let ended = match settled {
            Ok(()) => Some(self.cut_over(attached).await),
            Err(GaveUp::Blocked) => None,
            Err(GaveUp::Stuck) => Some(Ended::new(
                EventOutcome::Failed,
                "forced sessions did not end in time; nothing was changed".to_owned(),
            )),
        };
        let since = hold.since();
        if ended.is_some() {
            // Who was held goes on together, when all have their new server connections.
            cluster.line.close();
            drop(hold);
            let released = Instant::now();
            cluster.line.open(|| cluster.gate.queued()).await;
            tracing::debug!(took = ?released.elapsed(), "who was held is back");
        } else {
            drop(hold);
        }
        let held = since.elapsed();
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
            if self.coordinator.is_closed() {
                return Err(GaveUp::Blocked);
            }
            let held = hold.since().elapsed();
            let left = cluster.gate.working_leases();
            let giving_way = cluster.registry.giving_way();
            if left == giving_way.len() {
                self.ask_to_give_way(&giving_way);
            }
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
        while cluster.gate.working_leases() > 0 {
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
        self.event.step = Step::CutOver;
        if !self.coordinator.keep_unless_closed(&self.event) {
            return Ended::by_the_proxy();
        }
        let cluster = Arc::clone(self.cluster());
        let to = self.event.request.to;
        cluster.service.rest().await;
        // The fence: from here on only an instance that answered is served from.
        cluster.gate.serve_none();
        self.event.moved = attached.saturating_sub(self.gave_way);
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
}

enum GaveUp {
    Blocked,
    Stuck,
}
