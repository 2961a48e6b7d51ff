//! What happens to sessions because time passes: snapshots at rest, parking, age, idle time-outs, and
//! giving way to those who wait. One task per cluster; sessions own no timers.

use super::shared::Limits;
use crate::backend::cluster::Cluster;
use crate::backend::registry::{Ask, Handle, Report, State};
use crate::session::blocker::{Blocker, BlockerKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};
use tokio::time::Instant;

/// How often it looks.
const ROUND: Duration = Duration::from_millis(250);

/// The longest pause between two questions to a server that has not answered yet.
const FIRST_MAX: Duration = Duration::from_secs(5);

/// How often it looks while sessions wait for a server connection.
const PRESSED: Duration = Duration::from_millis(5);

/// A session that rests for less is in the middle of its work.
const REST_MIN: Duration = Duration::from_millis(10);

/// Every so many rounds a session that could not be parked is asked again.
const AGAIN: u64 = 20;

/// Rest times of a cluster's sessions.
#[derive(Debug, Clone, Copy)]
pub struct Rests {
    /// At rest this long: probed once.
    pub snapshot_after: Duration,
    /// At rest this long: detached.
    pub park_after: Option<Duration>,
}

/// Runs until it is dropped.
pub async fn run(cluster: Arc<Cluster>, rests: Rests, limits: Limits) {
    let mut next_round = Instant::now();
    let mut rounds = 0_u64;
    let mut first = pin!(first_look(&cluster));
    let mut looked = false;
    loop {
        let pause = if cluster.gate.waiting() > 0 {
            PRESSED
        } else {
            ROUND
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cluster.gate.pressure() => {}
            () = &mut first, if !looked => looked = true,
        }
        let now = Instant::now();
        make_room(&cluster, now.into_std());
        if now >= next_round {
            next_round = now + ROUND;
            rounds += 1;
            for handle in cluster.registry.all() {
                let again = rounds % AGAIN == handle.identity.id % AGAIN;
                look(&handle, &rests, &limits, now.into_std(), again);
            }
        }
    }
}

/// What is known before the first sessions come is what they are compared with. Clients of MySQL and MariaDB are
/// greeted in a server's words: one that is away is asked until it has told them.
async fn first_look(cluster: &Cluster) {
    let mut pause = ROUND;
    loop {
        cluster.read_access().await;
        if !cluster.engine.speaks_mysql() || cluster.offer().is_some() {
            return;
        }
        tokio::time::sleep(pause).await;
        // A password that is wrong would be refused for ever.
        pause = (pause * 2).min(FIRST_MAX);
    }
}

/// Sessions wait and every server connection is taken: those that rest longest give theirs up.
fn make_room(cluster: &Cluster, now: StdInstant) {
    let waiting = cluster.gate.waiting();
    if waiting == 0 || !cluster.gate.is_full() {
        return;
    }
    let resting = cluster.registry.resting(now);
    let movable = resting.into_iter().filter(|(rest, handle)| {
        *rest >= REST_MIN && handle.with_report(|r| r.movable != Some(false))
    });
    for (_, handle) in movable.take(waiting) {
        handle.ask(Ask::Park);
    }
}

/// A session that can't be restored stays where it is; `again`: what was in the way may have been put right.
fn may_park(report: &Report, again: bool) -> bool {
    let refused = |b: &Blocker| b.kind == BlockerKind::NotRestorable;
    report.movable != Some(false) || (again && report.blockers.iter().all(refused))
}

fn look(handle: &Handle, rests: &Rests, limits: &Limits, now: StdInstant, again: bool) {
    if let Some(limit) = handle.identity.age_limit {
        let age = now.saturating_duration_since(handle.identity.connected_at);
        if age >= limit + limits.max_connection_age_grace {
            handle.ask(Ask::Expire);
            handle.ask(Ask::ExpireHard);
        } else if age >= limit {
            handle.ask(Ask::Expire);
        }
    }
    let state = handle.state();
    if matches!(state, State::AtRest | State::Parked) {
        let timeout = handle.with_report(|r| r.idle_session_timeout);
        if timeout.is_some_and(|timeout| handle.silent(now) >= timeout) {
            handle.ask(Ask::IdleTimeout);
        }
    }
    if let Some(rest) = handle.resting(now) {
        if rest >= rests.snapshot_after && handle.first_look() {
            handle.ask(Ask::Probe);
        }
        if rests.park_after.is_some_and(|after| rest >= after)
            && handle.with_report(|r| may_park(r, again))
        {
            handle.ask(Ask::Park);
        }
    }
}
