//! The CPU quota of the server that serves.

use super::cgroup::CpuGroup;
use super::{LocalProvider, State};
use crate::backend::Capacity;
use std::sync::Arc;
use std::time::Duration;

impl LocalProvider {
    pub(super) fn cpu_group(&self) -> &Result<Arc<CpuGroup>, String> {
        self.cpu.get_or_init(|| {
            let name = format!(
                "slackwater-{}-{}",
                self.config.cluster,
                self.data_dir.port()
            );
            CpuGroup::create(&name).map(Arc::new)
        })
    }

    /// Lets the server have all CPUs: it stops and starts faster so.
    pub(super) fn unthrottle(&self, state: &mut State) {
        if let Some(throttling) = state.throttling.take() {
            throttling.abort();
        }
        if let Some(Ok(group)) = self.cpu.get()
            && let Err(why) = group.set(None)
        {
            tracing::warn!(why, "can't lift the CPU quota");
        }
    }

    /// Puts the running server into its CPU group and, `after` a while, under its capacity's quota.
    pub(super) fn throttle(&self, state: &mut State, capacity: Capacity, after: Duration) {
        if let Some(throttling) = state.throttling.take() {
            throttling.abort();
        }
        let quota = self.scale.cpu_quota(capacity);
        let all = format!("all {} of the host", self.scale.host_cpus);
        let wanted = match quota {
            Some(quota) => format!("{}.{:03} CPU", quota / 1000, quota % 1000),
            None => all.clone(),
        };
        let group = match (self.cpu_group(), &state.running) {
            (Ok(group), Some(running)) => (Arc::clone(group), running.process),
            (Err(why), _) => {
                let note = match quota {
                    Some(_) => format!("{wanted} would be its share, but {why}"),
                    None => "its share is no less".to_owned(),
                };
                self.shown.lock().cpu = Some((all, note));
                return;
            }
            (Ok(_), None) => return,
        };
        let (group, process) = group;
        let shown = Arc::clone(&self.shown);
        shown.lock().cpu = Some((all.clone(), format!("just after a start; then {wanted}")));
        state.throttling = Some(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if !process.alive() {
                return;
            }
            shown.lock().cpu = Some(
                match group.adopt(process.pid()).and_then(|()| group.set(quota)) {
                    Ok(()) => (wanted, group.describe()),
                    Err(why) => (all, format!("{wanted} would be its share, but {why}")),
                },
            );
        }));
    }
}
