//! What a capacity means in PostgreSQL's own settings. Pure: capacity and host in, settings out.
//!
//! They are given on the server's command line, which wins over postgresql.conf and ALTER SYSTEM: a
//! capacity is always what it says, a reload cannot mix two of them, and no file has to be changed
//! between the stop and the start. What a role or database sets for itself still wins over these.

use crate::backend::Capacity;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Connection slots above those for sessions: 5 reserved for superusers (the service account among them),
/// 5 for server processes that are just ending.
pub(super) const SPARE_CONNECTIONS: u32 = 10;
const RESERVED_CONNECTIONS: u32 = 5;
/// Sessions beyond `max_server_connections` that go past the proxy: one per 16 MiB of the capacity.
const MEMORY_PER_CONNECTION: u64 = 16 * MIB;
const MOST_CONNECTIONS: u32 = 1000;
/// Senders of the log: PostgreSQL's default. A standby takes one, a base backup two.
const WAL_SENDERS: u32 = 10;
/// What starts `cluster_name`, by which a running server tells its capacity. It cannot change while the
/// server runs.
pub(super) const CAPACITY_MARK: &str = "slackwater:";

/// What the sizes are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// Bytes per ACU.
    pub(super) memory_per_acu: u64,
    /// Thousandths of a CPU per ACU.
    pub(super) cpu_per_acu: u32,
    /// CPUs of the host.
    pub(super) host_cpus: u32,
    /// Top of the ladder.
    pub(super) max_capacity: Capacity,
    /// Most server connections that the proxy opens for sessions.
    pub(super) max_server_connections: u32,
    /// A standby may follow: what it may not have less of than its primary is the same at each capacity.
    pub(super) standby: bool,
}

/// Least values of settings that a standby may not have less of than its primary had when it wrote the log
/// (PostgreSQL documentation, "Administrator's Overview" of hot standby). They come from the
/// configuration files, so they are those of the running primary, or what the files say now if that is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[expect(
    clippy::struct_field_names,
    reason = "these are PostgreSQL's names of the settings"
)]
pub(super) struct Floors {
    pub(super) max_connections: u32,
    pub(super) max_worker_processes: u32,
    pub(super) max_wal_senders: u32,
    pub(super) max_prepared_transactions: u32,
    pub(super) max_locks_per_transaction: u32,
}

impl Floors {
    /// Their names, in the order of the fields.
    pub(super) const NAMES: [&'static str; 5] = [
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
    ];

    pub(super) fn of(values: [u32; 5]) -> Self {
        let [
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_transactions,
            max_locks_per_transaction,
        ] = values;
        Self {
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_transactions,
            max_locks_per_transaction,
        }
    }

    fn values(self) -> [u32; 5] {
        [
            self.max_connections,
            self.max_worker_processes,
            self.max_wal_senders,
            self.max_prepared_transactions,
            self.max_locks_per_transaction,
        ]
    }

    /// The larger of both, one by one.
    #[must_use]
    pub(super) fn max(self, other: Self) -> Self {
        let mut values = self.values();
        for (value, other) in values.iter_mut().zip(other.values()) {
            *value = other.max(*value);
        }
        Self::of(values)
    }

    /// `name=value`, for the command line behind that of the sizes: the last one counts.
    pub(super) fn arguments(self, sizes: &Sizes) -> Vec<String> {
        let wanted = self.max(Self {
            max_connections: sizes.max_connections,
            max_worker_processes: sizes.max_worker_processes,
            max_wal_senders: WAL_SENDERS,
            ..Self::default()
        });
        let named = Self::NAMES.into_iter().zip(wanted.values());
        // 0: nobody has set it, so PostgreSQL's default or what the files say is right.
        named
            .filter(|(_, value)| *value > 0)
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// Settings of one capacity, in the units that PostgreSQL shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) capacity: Capacity,
    pub(super) shared_buffers_kib: u64,
    pub(super) effective_cache_size_kib: u64,
    pub(super) work_mem_kib: u64,
    pub(super) maintenance_work_mem_kib: u64,
    pub(super) max_connections: u32,
    pub(super) max_worker_processes: u32,
    pub(super) max_parallel_workers: u32,
    pub(super) max_parallel_workers_per_gather: u32,
}

impl Scale {
    /// Thousandths of a CPU that a capacity has, or `None` when that is the whole host or more.
    pub(super) fn cpu_quota(&self, capacity: Capacity) -> Option<u32> {
        let wanted = u64::from(capacity.0) * u64::from(self.cpu_per_acu);
        (wanted < u64::from(self.host_cpus) * 1000)
            .then(|| u32::try_from(wanted).unwrap_or(u32::MAX))
    }

    /// Whole CPUs that a capacity can use, at least one.
    fn cpus(&self, capacity: Capacity) -> u32 {
        self.cpu_quota(capacity)
            .map_or(self.host_cpus, |quota| quota.div_ceil(1000))
            .max(1)
    }

    pub(super) fn sizes(&self, capacity: Capacity) -> Sizes {
        let memory = u64::from(capacity.0).saturating_mul(self.memory_per_acu);
        let cpus = self.cpus(capacity);
        let sessions = u64::from(self.max_server_connections.max(1));
        let room = if self.standby {
            u64::from(self.max_capacity.max(capacity).0).saturating_mul(self.memory_per_acu)
        } else {
            memory
        };
        let by_memory = u32::try_from(room / MEMORY_PER_CONNECTION).unwrap_or(MOST_CONNECTIONS);
        Sizes {
            capacity,
            // PostgreSQL counts pages of 8 kB in 31 bits.
            shared_buffers_kib: (memory / 4).clamp(16 * MIB, 8191 * GIB) / 8192 * 8,
            effective_cache_size_kib: (memory / 4 * 3).clamp(48 * MIB, 8191 * GIB) / 8192 * 8,
            work_mem_kib: (memory / 4 / sessions).clamp(4 * MIB, GIB) / 1024,
            maintenance_work_mem_kib: (memory / 16).clamp(16 * MIB, 2 * GIB - MIB) / 1024,
            max_connections: by_memory.min(MOST_CONNECTIONS).max(
                self.max_server_connections
                    .saturating_add(SPARE_CONNECTIONS),
            ),
            // Allocated at start: the largest capacity's everywhere, as a standby would need it.
            max_worker_processes: self.cpus(self.max_capacity.max(capacity)).max(8),
            max_parallel_workers: cpus,
            max_parallel_workers_per_gather: match cpus {
                1 => 0,
                more => more / 2,
            },
        }
    }
}

impl Sizes {
    /// Name, value with unit, and what it comes from; in the order of the command line.
    pub(super) fn list(&self) -> Vec<(&'static str, String, &'static str)> {
        let kib = |n: u64| format!("{n}kB");
        vec![
            (
                "shared_buffers",
                kib(self.shared_buffers_kib),
                "a quarter of the capacity's memory",
            ),
            (
                "effective_cache_size",
                kib(self.effective_cache_size_kib),
                "three quarters of the capacity's memory; a hint for the planner",
            ),
            (
                "work_mem",
                kib(self.work_mem_kib),
                "a quarter of the memory over all connections",
            ),
            (
                "maintenance_work_mem",
                kib(self.maintenance_work_mem_kib),
                "a sixteenth of the memory",
            ),
            (
                "max_connections",
                self.max_connections.to_string(),
                "at least max_server_connections + 10",
            ),
            (
                "superuser_reserved_connections",
                RESERVED_CONNECTIONS.to_string(),
                "fixed",
            ),
            (
                "max_worker_processes",
                self.max_worker_processes.to_string(),
                "the largest capacity's at every capacity",
            ),
            (
                "max_parallel_workers",
                self.max_parallel_workers.to_string(),
                "CPUs of the capacity",
            ),
            (
                "max_parallel_workers_per_gather",
                self.max_parallel_workers_per_gather.to_string(),
                "half of the capacity's CPUs",
            ),
        ]
    }

    /// `name=value` for the server's command line, the capacity's mark included.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = self
            .list()
            .into_iter()
            .map(|(name, value, _)| format!("{name}={value}"))
            .collect();
        arguments.push(format!("cluster_name={CAPACITY_MARK}{}", self.capacity));
        arguments
    }
}

/// The capacity that a running server was started with, from its `cluster_name`.
pub(super) fn capacity_of(cluster_name: &str) -> Option<Capacity> {
    cluster_name
        .strip_prefix(CAPACITY_MARK)?
        .parse()
        .ok()
        .map(Capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale() -> Scale {
        Scale {
            memory_per_acu: 256 * MIB,
            cpu_per_acu: 250,
            host_cpus: 4,
            max_capacity: Capacity(16),
            max_server_connections: 20,
            standby: false,
        }
    }

    #[test]
    fn capacity_sets_memory_cpu_and_connections() {
        let one = scale().sizes(Capacity(1));
        let sixteen = scale().sizes(Capacity(16));
        assert_eq!(one.shared_buffers_kib, 64 * 1024);
        assert_eq!(sixteen.shared_buffers_kib, 1024 * 1024);
        assert_eq!((one.max_connections, sixteen.max_connections), (30, 256));
        assert_eq!(
            (one.max_parallel_workers, sixteen.max_parallel_workers),
            (1, 4)
        );
        assert_eq!(one.max_parallel_workers_per_gather, 0);
        assert_eq!(sixteen.max_parallel_workers_per_gather, 2);
        assert_eq!(one.max_worker_processes, sixteen.max_worker_processes);
        assert_eq!(scale().cpu_quota(Capacity(1)), Some(250));
        assert_eq!(scale().cpu_quota(Capacity(16)), None);
    }

    #[test]
    fn extremes_stay_within_what_postgresql_takes() {
        let mut scale = scale();
        scale.memory_per_acu = 1;
        scale.max_server_connections = 0;
        let small = scale.sizes(Capacity(1));
        assert_eq!(small.shared_buffers_kib, 16 * 1024);
        assert_eq!(small.work_mem_kib, 4 * 1024);
        assert_eq!(small.max_connections, SPARE_CONNECTIONS);
        scale.memory_per_acu = u64::MAX;
        let large = scale.sizes(Capacity(u32::MAX));
        assert!(large.shared_buffers_kib / 8 < (1 << 30));
        assert!(large.effective_cache_size_kib / 8 < (1 << 31));
        assert!(large.maintenance_work_mem_kib < (2 << 20));
        assert_eq!(large.max_connections, MOST_CONNECTIONS);
    }

    #[test]
    fn capacity_is_read_back_from_its_mark() {
        let sizes = scale().sizes(Capacity(8));
        let arguments = sizes.arguments();
        let name = arguments
            .last()
            .and_then(|a| a.strip_prefix("cluster_name="))
            .unwrap();
        assert_eq!(capacity_of(name), Some(Capacity(8)));
        assert_eq!(capacity_of("main"), None);
        assert_eq!(capacity_of("slackwater:x"), None);
    }
}
