//! The rolling switch: the same server is behind both capacities, so each session moves by itself.

use super::event::{InTheWay, OnTimeout, Step};
use super::run::{Ended, FORCE_MAX, LOOK, Run};
use crate::backend::registry::{Ask, Handle};
use crate::observe::EventOutcome;
use crate::provider::CutOver;
use crate::session::blocker::BlockerKind;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Moves that run at the same time.
const MOVES: usize = 4;

/// How often session variables are counted anew.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How long a session may take to come to a safe point with the second end of its move ready, before
/// another session gets its turn.
const OFFER_MAX: Duration = Duration::from_secs(1);

/// How long after a failed one a move is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Run {
    /// Both capacities are the same server: sessions move one by one, each at its own safe point, and
    /// keep their old server connection until the new one is verified.
    pub(super) async fn roll(&mut self) -> Ended {
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
        let mut tried = HashMap::new();
        let mut next_report = Instant::now();
        let mut next_probe = next_report + OFFER_MAX;
        let mut next_count = next_report + COUNT_EVERY;
        let mut turn = 0_usize;
        loop {
            let left = self.left_behind(generation);
            self.event.moved += before.saturating_sub(left.len()) as u64;
            before = left.len();
            if left.is_empty() {
                self.event.moved = self.event.moved.saturating_sub(self.gave_way);
                if self.ended_some {
                    return Ended::new(EventOutcome::Forced, None);
                }
                self.event.waiting_for.clear();
                return Ended::new(EventOutcome::Completed, None);
            }
            if left.iter().all(|h| h.with_report(|r| r.gives_way)) {
                self.ask_to_give_way(&left);
            }
            let now = Instant::now();
            if now >= next_report {
                next_report = now + LOOK;
                if now >= next_count {
                    next_count = now + COUNT_EVERY;
                    self.count_variables().await;
                }
                self.event.waiting_for = self.in_the_way().await;
                let old: BTreeSet<_> = left.iter().map(|h| h.identity.id).collect();
                self.event.waiting_for.retain(|w| old.contains(&w.session));
                if self.keep_lasting(max_hold) && now >= next_probe {
                    // What was in the way once may be gone, and a busy session never rests for long.
                    next_probe = now + OFFER_MAX;
                    for handle in &left {
                        let id = handle.identity.id;
                        if self.event.waiting_for.iter().any(|w| w.session == id) {
                            handle.ask(Ask::Probe);
                        }
                    }
                }
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
                    for handle in &left {
                        handle.ask(Ask::Force);
                    }
                }
                if now >= since + max_hold + FORCE_MAX {
                    let reason = "forced sessions did not end in time".to_owned();
                    return Ended::new(EventOutcome::Failed, reason);
                }
            }
            offers.retain(|(handle, at)| {
                if !left.iter().any(|l| Arc::ptr_eq(l, handle)) {
                    // It has moved, or ended before it could.
                    drop(handle.take_offer());
                    return false;
                }
                if now.saturating_duration_since(*at) > OFFER_MAX {
                    handle.ask(Ask::StayHere);
                }
                handle.has_offer() || handle.is_moving()
            });
            turn = self.make_offers(&left, &mut offers, &mut tried, turn);
            drop(tokio::time::timeout(Duration::from_millis(20), cluster.gate.progress()).await);
        }
    }

    /// Offers free server connections to sessions that are left behind, in turn.
    fn make_offers(
        &self,
        left: &[Arc<Handle>],
        offers: &mut Vec<(Arc<Handle>, Instant)>,
        tried: &mut HashMap<u64, Instant>,
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
                let age = w.blocker.since.elapsed();
                w.session == handle.identity.id
                    && match w.blocker.kind {
                        // Only another try can tell.
                        BlockerKind::NotRestorable => {
                            tried.get(&w.session).is_some_and(|at| at.elapsed() < RETRY)
                        }
                        kind => !kind.is_passing() || age > OFFER_MAX,
                    }
            };
            if handle.has_offer()
                || handle.is_moving()
                || handle.with_report(|r| r.gives_way)
                || self.event.waiting_for.iter().any(in_the_way)
            {
                continue;
            }
            let Some(lease) = cluster.gate.try_spare() else {
                break;
            };
            handle.offer(lease);
            tried.insert(handle.identity.id, Instant::now());
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
