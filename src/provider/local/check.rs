//! What is found out about a change of capacity while the old server still serves: whether the new settings
//! are read, whether memory and disk suffice, whether the stop would hang.

use super::super::{Instance, ProviderError, QueryError};
use super::engine::Postgres;
use super::follower::{COPYING, STANDBY};
use super::install::Install;
use super::postgres::literal;
use super::process::run;
use super::settings::Sizes;
use super::{LocalProvider, Switch, cgroup};
use crate::backend::{Capacity, Endpoint, started_us};
use nix::sys::statvfs::statvfs;
use std::fs;
use std::time::Duration;

/// Limit on a program that only reads the configuration.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(20);
/// Disk space that a stop and a start may need: two WAL segments and small files.
const DISK_BYTES: u64 = 64 << 20;
/// A receiver of the log that is further behind would make the stop wait for it. Those that come through
/// Slackwater, by the server's socket, are sessions: the event waits for them, or ends them, before the stop.
const WALSENDER_LAG_BYTES: u64 = 16 << 20;

/// The running server: libraries loaded at its start, shared_buffers in kB, complaints about pg_hba.conf,
/// receivers that would hold up a stop.
struct Present {
    started_at: String,
    libraries: String,
    shared_buffers_kib: u64,
    hba_errors: Option<String>,
    slow_receivers: Option<String>,
}

impl LocalProvider {
    pub(super) async fn check(
        &self,
        pg: &Postgres,
        from: &Instance,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        if to == Capacity(0) {
            return Err(ProviderError::Paused);
        }
        let refused = |why: String| ProviderError::Refused { to, why };
        let present = self.present(&from.endpoint).await?;
        if present.started_at != from.identity.started_at {
            return Err(refused(format!(
                "it was restarted at {} by somebody else: ask again",
                present.started_at
            )));
        }
        let sizes = self.scale.sizes(to);
        let libraries = self
            .read_settings(&pg.install, &sizes)
            .await
            .map_err(|e| refused(e.to_string()))?;
        if let Some(errors) = present.hba_errors {
            return Err(refused(format!(
                "pg_hba.conf would not be read at a start: {errors}"
            )));
        }
        self.check_libraries(&from.endpoint, &present.libraries, &libraries)
            .await
            .map_err(refused)?;
        if let Some(receivers) = present.slow_receivers {
            return Err(refused(format!(
                "the stop would wait for receivers of its log, which are more than 16 MB behind: {receivers}"
            )));
        }
        let replaced_kib = match self.config.switch {
            Switch::Restart => present.shared_buffers_kib,
            // Both run at the same time; a standby that runs is started again.
            Switch::Standby => pg.follower.shared_buffers_kib().await,
        };
        check_memory(&sizes, replaced_kib, free_memory()).map_err(refused)?;
        self.check_disk(DISK_BYTES).map_err(refused)
    }

    /// Whether so much is free where the data is.
    pub(super) fn check_disk(&self, needed: u64) -> Result<(), String> {
        let data = self.data_dir.data();
        let disk = statvfs(&data).map_err(|e| format!("can't look at {}: {e}", data.display()))?;
        let free = disk.blocks_available() * disk.fragment_size();
        if free < needed {
            return Err(format!(
                "{} MiB are free on the disk of data_dir, {} are needed: make room",
                free >> 20,
                needed >> 20
            ));
        }
        Ok(())
    }

    async fn present(&self, at: &Endpoint) -> Result<Present, ProviderError> {
        let sql = format!(
            "SELECT {}::pg_catalog.text, \
             pg_catalog.current_setting('shared_preload_libraries'), \
             (SELECT setting::pg_catalog.int8 * 8 FROM pg_catalog.pg_settings WHERE name = 'shared_buffers'), \
             (SELECT pg_catalog.string_agg(pg_catalog.format('line %s: %s', line_number, error), '; ') \
               FROM pg_catalog.pg_hba_file_rules WHERE error IS NOT NULL), \
             (SELECT pg_catalog.string_agg(pg_catalog.format('%s (%s)', application_name, state), ', ') \
               FROM pg_catalog.pg_stat_replication WHERE client_addr IS NOT NULL AND application_name NOT IN ('{STANDBY}', '{COPYING}') AND pg_catalog.pg_wal_lsn_diff( \
               pg_catalog.pg_current_wal_lsn(), coalesce(flush_lsn, sent_lsn, '0/0')) > {WALSENDER_LAG_BYTES})",
            started_us!()
        );
        let mut rows = self.ask(at, &sql).await?;
        let row = rows.pop().unwrap_or_default();
        let [
            Some(started_at),
            Some(libraries),
            Some(buffers),
            hba_errors,
            slow_receivers,
        ] = row.as_slice()
        else {
            return Err(unreadable(at));
        };
        Ok(Present {
            started_at: started_at.clone(),
            libraries: libraries.clone(),
            shared_buffers_kib: buffers.parse().map_err(|_| unreadable(at))?,
            hba_errors: hba_errors.clone(),
            slow_receivers: slow_receivers.clone(),
        })
    }

    /// Has `postgres` read its configuration with the new settings, as it would at a start; returns
    /// shared_preload_libraries.
    async fn read_settings(
        &self,
        install: &Install,
        sizes: &Sizes,
    ) -> Result<String, ProviderError> {
        let mut command = install.command("postgres", self.data_dir.account());
        let settings = self
            .data_dir
            .fixed_settings(self.data_dir.primary())
            .into_iter()
            .chain(sizes.arguments());
        command.arg("-D").arg(self.data_dir.data());
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        command.args(["-C", "shared_preload_libraries"]);
        run(&mut command, "postgres -C", PROGRAM_PATIENCE).await
    }

    /// A library that was configured after the last start and is not there would prevent the next one.
    async fn check_libraries(
        &self,
        at: &Endpoint,
        loaded: &str,
        configured: &str,
    ) -> Result<(), String> {
        for library in added(loaded, configured) {
            let answer = self
                .query
                .query(at, &format!("LOAD {}", literal(&library)))
                .await;
            match answer {
                Err(QueryError::Other(why)) if why.contains("could not") => {
                    return Err(format!(
                        "shared_preload_libraries names `{library}`, which can't be loaded: {why}"
                    ));
                }
                // Some libraries refuse to be loaded later than at the start.
                _ => {}
            }
        }
        Ok(())
    }
}

pub(super) fn unreadable(at: &Endpoint) -> ProviderError {
    ProviderError::Unreachable {
        address: at.address.to_string(),
        source: QueryError::Other("its answer about its settings could not be read".to_owned()),
    }
}

/// Libraries of the second list that are not in the first.
fn added(loaded: &str, configured: &str) -> Vec<String> {
    let list = |text: &str| -> Vec<String> {
        let names = text
            .split(',')
            .map(|n| n.trim().trim_matches('"').to_owned());
        names.filter(|n| !n.is_empty()).collect()
    };
    let loaded = list(loaded);
    list(configured)
        .into_iter()
        .filter(|n| !loaded.contains(n))
        .collect()
}

/// Bytes that the host and our memory groups still give.
pub(super) fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let host = text.lines().find_map(|l| {
        let kib = l
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix("kB")?
            .trim();
        kib.parse::<u64>().ok()?.checked_mul(1024)
    });
    host.into_iter().chain(cgroup::memory_headroom()).min()
}

fn check_memory(sizes: &Sizes, now_kib: u64, free: Option<u64>) -> Result<(), String> {
    let Some(free) = free else { return Ok(()) };
    // A tenth more for what PostgreSQL keeps about each buffer.
    let more = sizes.shared_buffers_kib.saturating_sub(now_kib) / 10 * 11;
    if more <= free / 1024 {
        return Ok(());
    }
    Err(format!(
        "shared_buffers would grow from {} to {} MiB, and {} MiB of memory are free: lower memory_per_acu or \
         choose a smaller capacity",
        now_kib / 1024,
        sizes.shared_buffers_kib / 1024,
        free >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::super::settings::Scale;
    use super::*;

    #[test]
    fn memory_has_to_hold_the_growth_and_no_more() {
        let scale = Scale {
            memory_per_acu: 4 << 30,
            cpu_per_acu: 1000,
            host_cpus: 2,
            max_capacity: Capacity(8),
            max_server_connections: 10,
            standby: false,
        };
        let sizes = scale.sizes(Capacity(2));
        let now = 1 << 20;
        assert!(check_memory(&sizes, now, Some(2 << 30)).is_ok());
        let error = check_memory(&sizes, now, Some(1 << 30)).unwrap_err();
        assert!(
            error.contains("from 1024 to 2048 MiB, and 1024 MiB"),
            "{error}"
        );
        assert!(check_memory(&sizes, 2 << 20, Some(0)).is_ok());
        assert!(check_memory(&sizes, now, None).is_ok());
        assert!(free_memory().is_some_and(|free| free > 1 << 20));
    }

    #[test]
    fn only_new_libraries_are_looked_at() {
        assert_eq!(added("a, b", "b,\"c d\", a"), vec!["c d"]);
        assert!(added("", " ").is_empty());
    }
}
