//! What a capacity means in the settings of MySQL and MariaDB. Pure: capacity and host in, settings out.
//!
//! As for PostgreSQL they are given on the command line, which wins over files and over SET PERSIST.

use super::super::settings::{CAPACITY_MARK, SPARE_CONNECTIONS, Scale};
use crate::backend::Capacity;

const MIB: u64 = 1 << 20;
/// Connections beyond `max_server_connections` that go past the proxy: one per 12 MiB of the largest capacity,
/// Aurora's measure.
const MEMORY_PER_CONNECTION: u64 = 12 * MIB;
const MOST_CONNECTIONS: u32 = 1000;
/// InnoDB's pool has pages; MariaDB wants at least this much.
const SMALLEST_POOL: u64 = 32 * MIB;

/// Settings of one capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Sizes {
    pub(in super::super) capacity: Capacity,
    pub(in super::super) buffer_pool: u64,
    pub(in super::super) max_connections: u32,
}

impl Sizes {
    pub(in super::super) fn of(scale: &Scale, capacity: Capacity) -> Self {
        let memory = u64::from(capacity.0).saturating_mul(scale.memory_per_acu);
        let largest = u64::from(scale.max_capacity.max(capacity).0);
        let room = largest.saturating_mul(scale.memory_per_acu) / MEMORY_PER_CONNECTION;
        let by_memory = u32::try_from(room).unwrap_or(MOST_CONNECTIONS);
        Self {
            capacity,
            // Whole MiB: both servers round to their own pieces from there.
            buffer_pool: (memory / 2).max(SMALLEST_POOL) / MIB * MIB,
            max_connections: by_memory.min(MOST_CONNECTIONS).max(
                scale
                    .max_server_connections
                    .saturating_add(SPARE_CONNECTIONS),
            ),
        }
    }

    /// Name, value and what it comes from; in the order of the command line.
    pub(in super::super) fn list(&self) -> Vec<(&'static str, String, &'static str)> {
        vec![
            (
                "innodb_buffer_pool_size",
                format!("{}M", self.buffer_pool / MIB),
                "half of the capacity's memory",
            ),
            (
                "max_connections",
                self.max_connections.to_string(),
                "the largest capacity's at every capacity; at least max_server_connections + 10",
            ),
        ]
    }

    /// For the server's command line, the capacity's mark included: `report_host` cannot change while the server
    /// runs, and means nothing but a name that a replica tells its source. `start` tells one start of the server
    /// from the next.
    pub(in super::super) fn arguments(&self, start: &str) -> Vec<String> {
        let mut arguments: Vec<_> = self
            .list()
            .into_iter()
            .map(|(name, value, _)| format!("--{}={value}", name.replace('_', "-")))
            .collect();
        let capacity = self.capacity;
        arguments.push(format!("--report-host={CAPACITY_MARK}{capacity}:{start}"));
        arguments
    }
}

/// What a server says of itself in its `report_host`: its capacity's mark, and which start it is.
pub(super) fn split_mark(report_host: &str) -> Option<(&str, &str)> {
    let (mark, start) = report_host.rsplit_once(':')?;
    mark.starts_with(CAPACITY_MARK).then_some((mark, start))
}

#[cfg(test)]
mod tests {
    use super::super::super::settings::capacity_of;
    use super::*;

    fn scale() -> Scale {
        Scale {
            memory_per_acu: 128 * MIB,
            cpu_per_acu: 250,
            host_cpus: 4,
            max_capacity: Capacity(16),
            max_server_connections: 20,
            standby: false,
        }
    }

    #[test]
    fn a_capacity_sets_memory_and_never_the_connections() {
        let sizes = |capacity| Sizes::of(&scale(), Capacity(capacity));
        assert_eq!(sizes(1).buffer_pool, 64 * MIB);
        assert_eq!(sizes(8).buffer_pool, 512 * MIB);
        assert_eq!(sizes(1).max_connections, 170);
        assert_eq!(sizes(16).max_connections, 170);
        let mut scale = scale();
        scale.memory_per_acu = 1;
        let tiny = Sizes::of(&scale, Capacity(1));
        assert_eq!((tiny.buffer_pool, tiny.max_connections), (32 * MIB, 30));
        scale.memory_per_acu = u64::MAX;
        scale.max_server_connections = u32::MAX;
        let huge = Sizes::of(&scale, Capacity(u32::MAX));
        assert_eq!(huge.max_connections, u32::MAX);
    }

    #[test]
    fn the_capacity_is_read_back_from_its_mark() {
        let arguments = Sizes::of(&scale(), Capacity(8)).arguments("4f");
        assert_eq!(arguments[0], "--innodb-buffer-pool-size=512M");
        let host = arguments
            .last()
            .and_then(|a| a.strip_prefix("--report-host="))
            .unwrap();
        let (mark, start) = split_mark(host).unwrap();
        assert_eq!((capacity_of(mark), start), (Some(Capacity(8)), "4f"));
        for foreign in ["", "db1", "db1:3306", "slackwater"] {
            assert_eq!(split_mark(foreign), None, "{foreign}");
        }
    }
}
