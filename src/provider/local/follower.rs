//! PostgreSQL's standby: made by a base backup or out of the last primary, started at the capacity that is wanted next,
//! kept streaming.

use super::super::lsn::Lsn;
use super::super::{ProviderError, QueryError, Rows, ServerQuery, ServerSession};
use super::control::system_identifier;
use super::data_dir::DataDir;
use super::fence;
use super::files::Home;
use super::install::Install;
use super::postmaster::{self, PidFile, Status};
use super::process::{Process, log_length, log_tail};
use super::settings::{self, Scale};
use super::slot::{Followed, LOGIN_PATIENCE, LOOK, Maker, Progress, Slot, Standby};
use super::{LocalConfig, StandbyKeys, blocking};
use crate::backend::{Capacity, Endpoint, started_us};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// By this name the primary knows its standby.
pub(super) const STANDBY: &str = "slackwater_standby";
/// By this one a copy of its data that is made.
pub(super) const COPYING: &str = "slackwater_copy";

/// What a standby says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) system_identifier: u64,
    pub(super) started_at: String,
    pub(super) in_recovery: bool,
    pub(super) capacity: Option<Capacity>,
    pub(super) streaming: bool,
    pub(super) replayed: Lsn,
}

/// Makes standbys.
pub(super) struct Follower {
    pub(super) data_dir: Arc<DataDir>,
    pub(super) install: Install,
    pub(super) query: Arc<dyn ServerQuery>,
    pub(super) scale: Scale,
    pub(super) user: String,
    pub(super) keys: StandbyKeys,
    pub(super) slot: Slot,
}

const LOOK_SQL: &str = concat!(
    "SELECT \
    (SELECT c.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() c), \
    ",
    started_us!(),
    "::pg_catalog.text, \
    pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
    pg_catalog.current_setting('cluster_name'), \
    coalesce((SELECT w.status FROM pg_catalog.pg_stat_wal_receiver w), ''), \
    coalesce(pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text, '0/0')"
);

/// Asks a standby who it is and how far.
pub(super) async fn look(session: &mut dyn ServerSession) -> Result<Seen, QueryError> {
    let rows = tokio::time::timeout(LOGIN_PATIENCE, session.query(LOOK_SQL))
        .await
        .unwrap_or_else(|_| Err(QueryError::Refused("no answer".to_owned())))?;
    parse_seen(&rows).ok_or_else(|| {
        QueryError::Other("its answer about its own state could not be read".to_owned())
    })
}

fn parse_seen(rows: &Rows) -> Option<Seen> {
    let [row] = rows.as_slice() else { return None };
    let [
        Some(system),
        Some(started),
        Some(recovery),
        Some(name),
        Some(status),
        Some(replayed),
    ] = row.as_slice()
    else {
        return None;
    };
    Some(Seen {
        system_identifier: system_identifier(system)?,
        started_at: started.clone(),
        in_recovery: matches!(recovery.as_str(), "true" | "t"),
        capacity: settings::capacity_of(name),
        streaming: status == "streaming",
        replayed: replayed.parse().ok()?,
    })
}

impl Follower {
    pub(super) fn new(
        config: &LocalConfig,
        data_dir: &Arc<DataDir>,
        install: &Install,
        scale: Scale,
        query: &Arc<dyn ServerQuery>,
    ) -> Self {
        Self {
            data_dir: Arc::clone(data_dir),
            install: install.clone(),
            query: Arc::clone(query),
            scale,
            user: config.service_user.clone(),
            keys: config.standby,
            slot: Slot::default(),
        }
    }

    /// What the standby that runs has, and gives back when it is started again.
    pub(super) async fn shared_buffers_kib(&self) -> u64 {
        let home = self.data_dir.primary().other();
        let Ok(mut session) = self.session(home).await else {
            return 0;
        };
        match look(&mut *session).await {
            Ok(seen) if seen.in_recovery => seen
                .capacity
                .map_or(0, |c| self.scale.sizes(c).shared_buffers_kib),
            _ => 0,
        }
    }

    /// Logs in to the server in `home`. A server that hangs is given up.
    pub(super) async fn session(&self, home: Home) -> Result<Box<dyn ServerSession>, QueryError> {
        let endpoint = self.data_dir.endpoint_of(home);
        tokio::time::timeout(LOGIN_PATIENCE, self.query.session(&endpoint))
            .await
            .unwrap_or_else(|_| Err(QueryError::Refused("no answer to a log-in".to_owned())))
    }

    /// Settings of a server that has a standby, or may have one.
    pub(super) fn primary_arguments(&self, to: Capacity) -> Vec<String> {
        let sizes = self.scale.sizes(to);
        let mut arguments = sizes.arguments();
        arguments.extend(self.data_dir.floors().arguments(&sizes));
        arguments.push(format!(
            "wal_keep_size={}kB",
            self.keys.wal_keep_bytes / 1024
        ));
        arguments
    }

    /// Settings of a server that is a standby now and may be the primary later.
    fn arguments(&self, to: Capacity) -> Vec<String> {
        let run = self.data_dir.socket_directory();
        let mut arguments = self.primary_arguments(to);
        arguments.extend([
            "hot_standby=on".to_owned(),
            format!(
                "primary_conninfo=host={} port={} user={} passfile={} application_name={STANDBY}",
                conninfo(&run.display().to_string()),
                self.data_dir.port(),
                conninfo(&self.user),
                conninfo(&password_file(&run).display().to_string()),
            ),
            "recovery_target_timeline=latest".to_owned(),
            // The primary is on this host: it is there again as soon as it is.
            "wal_retrieve_retry_interval=100ms".to_owned(),
        ]);
        arguments
    }

    /// Starts a server in `home`: a standby if it is fenced.
    pub(super) fn spawn(&self, home: Home, to: Capacity) -> Result<Process, ProviderError> {
        self.write_password()?;
        postmaster::spawn(&self.install, &self.data_dir, home, &self.arguments(to))
    }

    pub(super) fn write_password(&self) -> Result<(), ProviderError> {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let line = format!(
            "*:*:*:{}:{}\n",
            escaped(&self.user),
            escaped(self.data_dir.service_password())
        );
        let file = password_file(&self.data_dir.socket_directory());
        self.data_dir.write_for_server(&file, &line)
    }

    async fn same_system(&self, primary: &Endpoint, seen: &Seen) -> Result<(), ProviderError> {
        let sql =
            "SELECT c.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() c";
        let theirs = self.one(primary, sql).await?;
        if system_identifier(&theirs) == Some(seen.system_identifier) {
            return Ok(());
        }
        Err(ProviderError::Server(
            "the standby is of another system than the server".to_owned(),
        ))
    }

    pub(super) async fn one(&self, at: &Endpoint, sql: &str) -> Result<String, ProviderError> {
        let rows =
            self.query
                .query(at, sql)
                .await
                .map_err(|source| ProviderError::Unreachable {
                    address: at.address.to_string(),
                    source,
                })?;
        Ok(rows
            .into_iter()
            .flatten()
            .flatten()
            .next()
            .unwrap_or_default())
    }

    /// Names of unlogged tables and sequences in `database`.
    pub(super) async fn unlogged(&self, primary: &Endpoint, database: &str) -> String {
        let sql = "SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.relname), ', ') \
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'S', 'm', 'p')";
        match self.query.query_in(primary, database, sql).await {
            Ok(rows) => rows
                .into_iter()
                .flatten()
                .flatten()
                .next()
                .unwrap_or_default(),
            Err(error) => format!("(their names can't be read: {error})"),
        }
    }
}

impl Maker for Follower {
    type Position = Lsn;

    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn data_dir(&self) -> &Arc<DataDir> {
        &self.data_dir
    }

    fn catch_up(&self) -> Duration {
        self.keys.catch_up
    }

    /// A copy that is under way: a stop would wait for it.
    async fn tidy(&self, primary: &Endpoint) -> Result<(), ProviderError> {
        let orphans = format!(
            "SELECT pg_catalog.pg_terminate_backend(r.pid) FROM pg_catalog.pg_stat_replication r \
             WHERE r.application_name = '{COPYING}'"
        );
        self.one(primary, &orphans).await.map(drop)
    }

    async fn copy(&self, primary: &Endpoint, home: Home) -> Result<(), ProviderError> {
        self.base_backup(primary, home).await
    }

    async fn running(&self, home: Home, to: Capacity) -> Result<Option<Standby>, ProviderError> {
        let Some((process, file)) = postmaster::find(&self.data_dir.data_of(home))? else {
            return Ok(None);
        };
        let ours = file.port == Some(self.data_dir.port_of(home));
        if !ours || file.status != Status::Ready {
            return Ok(None);
        }
        let Ok(mut session) = self.session(home).await else {
            return Ok(None);
        };
        Ok(match look(&mut *session).await {
            Ok(seen) if seen.in_recovery && seen.streaming && seen.capacity == Some(to) => {
                Some(Standby {
                    home,
                    process,
                    capacity: to,
                    started_at: seen.started_at,
                    session,
                })
            }
            _ => None,
        })
    }

    async fn follow(
        &self,
        primary: &Endpoint,
        home: Home,
        to: Capacity,
        deadline: Instant,
    ) -> Result<Standby, ProviderError> {
        blocking(&self.data_dir, move |d| {
            d.see_to_port(home)?;
            fence::copy_configuration(d, home).map(drop)
        })
        .await?;
        let log = self.data_dir.log_of(home);
        let read_from = log_length(&log);
        let process = self.spawn(home, to)?;
        let pgdata = self.data_dir.data_of(home);
        let failed = |what: &str| {
            ProviderError::Server(format!(
                "the standby {what}: {} (whole log: {})",
                log_tail(&log, read_from),
                log.display()
            ))
        };
        let mut followed = Followed::new(&self.data_dir);
        loop {
            let up = PidFile::read(&pgdata)?.is_some_and(|f| {
                f.pid.unsigned_abs() == process.pid() && f.status == Status::Ready
            });
            if up
                && let Ok(mut session) = self.session(home).await
                && let Ok(seen) = look(&mut *session).await
            {
                if !seen.in_recovery {
                    return Err(failed("is none"));
                }
                if seen.streaming {
                    self.same_system(primary, &seen).await?;
                    return Ok(Standby {
                        home,
                        process,
                        capacity: to,
                        started_at: seen.started_at,
                        session,
                    });
                }
            }
            if !process.alive() {
                return Err(failed("ended"));
            }
            followed.see_that_it_runs()?;
            if Instant::now() >= deadline {
                return Err(failed("does not receive the server's log"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn written(&self, primary: &Endpoint) -> Result<Lsn, ProviderError> {
        let sql = "SELECT pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text";
        let written = self.one(primary, sql).await?;
        written
            .parse()
            .map_err(|()| ProviderError::Server("its position can't be read".to_owned()))
    }

    async fn progress(&self, standby: &mut Standby, written: &Lsn) -> Result<Progress, QueryError> {
        let seen = look(&mut *standby.session).await?;
        let behind = written.0.saturating_sub(seen.replayed.0) >> 20;
        Ok(Progress {
            streaming: seen.streaming,
            has_it: seen.replayed >= *written,
            behind: format!("{behind} MiB behind"),
        })
    }
}

pub(super) fn password_file(run: &Path) -> PathBuf {
    run.join("standby.pgpass")
}

/// A value in a connection string.
pub(super) fn conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_in_names_are_quoted() {
        assert_eq!(conninfo("it's a \\"), "'it\\'s a \\\\'");
    }

    #[test]
    fn a_standby_is_read_or_refused_whole() {
        let row = |values: [&str; 6]| vec![values.map(|v| Some(v.to_owned())).to_vec()];
        let seen = parse_seen(&row([
            "7",
            "1",
            "true",
            "slackwater:4",
            "streaming",
            "0/10",
        ]))
        .unwrap();
        assert!(seen.in_recovery && seen.streaming);
        assert_eq!((seen.capacity, seen.replayed), (Some(Capacity(4)), Lsn(16)));
        let other = parse_seen(&row(["7", "1", "false", "main", "", "0/0"])).unwrap();
        assert!(!other.in_recovery && !other.streaming && other.capacity.is_none());
        assert_eq!(parse_seen(&row(["x", "1", "true", "", "", "0/0"])), None);
        assert_eq!(parse_seen(&row(["7", "1", "true", "", "", "zero"])), None);
        assert_eq!(parse_seen(&Vec::new()), None);
    }
}
