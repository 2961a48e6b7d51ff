//! Log-ins ahead: before a hold, sessions at work log in to the server that is to take over, as far as there is
//! one and it lets them. What they would do all at once after the cut-over, while their clients wait, is then
//! done while nobody does. Nothing of a client's request goes there before that server serves.

use super::run::Run;
use crate::backend::registry::{Handle, State};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Log-ins at the same time.
const AT_ONCE: usize = 4;

/// How long a hold is put off for them.
const AHEAD_MAX: Duration = Duration::from_secs(2);

/// A session that rests longer is not likely to have a request in hand.
const AT_WORK: Duration = Duration::from_secs(1);

/// How often it is looked how far they are.
const LOOK: Duration = Duration::from_millis(2);

impl Run {
    pub(super) async fn log_in_ahead(&self) {
        let Some(successor) = self.coordinator.provider.successor() else {
            return;
        };
        let gate = Arc::clone(&self.cluster().gate);
        gate.expect(Some(successor));
        let until = Instant::now() + AHEAD_MAX;
        let mut left: VecDeque<_> = self.cluster().registry.all().into();
        left.retain(|handle| is_at_work(handle));
        let mut making: Vec<Arc<Handle>> = Vec::new();
        loop {
            making.retain(|handle| handle.has_offer() || handle.is_moving());
            while making.len() < AT_ONCE
                && let Some(handle) = left.pop_front()
            {
                let Some(lease) = gate.try_ahead() else {
                    left.clear();
                    break;
                };
                handle.offer(lease);
                making.push(handle);
            }
            if making.is_empty() || Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        for handle in making {
            drop(handle.take_offer());
        }
    }
}

fn is_at_work(handle: &Handle) -> bool {
    match handle.state() {
        State::Active => !handle.with_report(|r| r.gives_way),
        State::AtRest => handle
            .resting(Instant::now().into_std())
            .is_none_or(|rest| rest < AT_WORK),
        State::Held | State::Parked => false,
    }
}
