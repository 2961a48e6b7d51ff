//! What `status` shows of a local server.

use super::super::Fact;
use super::{LocalProvider, Switch};

impl LocalProvider {
    /// What the present capacity is on this host.
    pub fn facts(&self) -> Vec<Fact> {
        let shown = self.shown.lock();
        let directory = self.data_dir.path().display();
        let mut facts = vec![
            Fact::new("data_dir", directory.to_string(), "one proxy at a time"),
            Fact::new(
                "port",
                format!("127.0.0.1:{}", self.data_dir.port()),
                "past the proxy; also the Unix socket in data_dir/run",
            ),
        ];
        facts.extend(self.standby_facts());
        let Some(capacity) = shown.capacity else {
            facts.push(Fact::new(
                "server",
                "not started",
                "sizes are known once it runs",
            ));
            return facts;
        };
        if let Some(version) = shown.version {
            let version = self.part.version_text(version);
            facts.push(Fact::new("server_version", version, ""));
        }
        for (name, value, note) in self.part.sizes(&self.scale, capacity) {
            facts.push(Fact::new(name, value, note));
        }
        facts.push(Fact::new(
            "memory",
            format!(
                "{} MiB",
                u64::from(capacity.0).saturating_mul(self.scale.memory_per_acu) >> 20
            ),
            "sizes the settings above; not enforced by a cgroup",
        ));
        if let Some((value, note)) = &shown.cpu {
            facts.push(Fact::new("cpu_quota", value, note));
        }
        if let Some(times) = shown.times {
            facts.push(Fact::new(
                "last_switch",
                times.to_string(),
                "stop, start, first query",
            ));
        }
        if let Some(times) = shown.promotion {
            facts.push(Fact::new(
                "last_switch",
                times.to_string(),
                "stop of the old server, proof that nothing is missing, promotion to first write",
            ));
        }
        facts
    }

    fn standby_facts(&self) -> Vec<Fact> {
        if self.config.switch != Switch::Standby {
            return Vec::new();
        }
        let told = self.part.slot().told();
        let doing = if told.doing.is_empty() {
            "not looked at yet".to_owned()
        } else {
            told.doing
        };
        let mut facts = vec![Fact::new("standby", doing, "")];
        if let Some(bytes) = told.bytes {
            facts.push(Fact::new(
                "standby_disk",
                format!("{} MiB", bytes >> 20),
                "a second copy of the data, its log included",
            ));
        }
        if let Some((took, how)) = told.made {
            facts.push(Fact::new(
                "standby_made_in",
                format!("{:.1} s", took.as_secs_f64()),
                how,
            ));
        }
        facts
    }
}
