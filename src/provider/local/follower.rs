//! The standby of a local server: made by a base backup or out of the last primary, started at the capacity
//! that is wanted next, kept following. All of it happens while the primary serves; nobody is held.

use super::super::lsn::Lsn;
use super::super::{ProviderError, QueryError, Rows, ServerQuery, ServerSession};
use super::control::system_identifier;
use super::copy::directory_bytes;
use super::data_dir::DataDir;
use super::fence;
use super::files::Home;
use super::install::Install;
use super::postmaster::{self, PidFile, Status};
use super::process::{Process, log_length, log_tail};
use super::settings::{self, Scale};
use super::{LocalConfig, StandbyKeys, blocking};
use crate::backend::{Capacity, Endpoint};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// By this name the primary knows its standby.
pub(super) const STANDBY: &str = "slackwater_standby";
/// By this one a copy of its data that is made.
pub(super) const COPYING: &str = "slackwater_copy";
/// How often a standby is asked how far it is, while nobody waits for it.
const LOOK: Duration = Duration::from_millis(50);
/// A standby made of the last primary that does not stream by then is made anew.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(15);
/// How long a standby may receive nothing, as when its primary was just started again.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// For the stop of a standby, which has little to write.
const STOP_PATIENCE: Duration = Duration::from_mins(1);
/// A standby is level when it has replayed what the primary had written so short a time ago.
const LEVEL: Duration = Duration::from_secs(1);
/// For an answer of a standby, which has nothing else to do.
const LOGIN_PATIENCE: Duration = Duration::from_secs(10);

/// A standby that was ready when it was last looked at.
pub(super) struct Standby {
    pub(super) home: Home,
    pub(super) process: Process,
    pub(super) capacity: Capacity,
    pub(super) started_at: String,
    /// Logged in ahead, so that the switch need not.
    pub(super) session: Box<dyn ServerSession>,
}

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

/// For `status`.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// What the standby is doing.
    pub(super) doing: String,
    /// Its data directory on disk.
    pub(super) bytes: Option<u64>,
    /// How long the last one took until it was level, and how it was made.
    pub(super) made: Option<(Duration, &'static str)>,
}

/// Makes standbys.
pub(super) struct Follower {
    pub(super) data_dir: Arc<DataDir>,
    pub(super) install: Install,
    pub(super) query: Arc<dyn ServerQuery>,
    pub(super) scale: Scale,
    pub(super) user: String,
    pub(super) keys: StandbyKeys,
    pub(super) told: Mutex<Told>,
    /// Held while a standby is made or promoted.
    pub(super) standby: tokio::sync::Mutex<Option<Standby>>,
}

const LOOK_SQL: &str = "SELECT \
    (SELECT c.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() c), \
    (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8::pg_catalog.text, \
    pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
    pg_catalog.current_setting('cluster_name'), \
    coalesce((SELECT w.status FROM pg_catalog.pg_stat_wal_receiver w), ''), \
    coalesce(pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text, '0/0')";

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
            told: Mutex::default(),
            standby: tokio::sync::Mutex::default(),
        }
    }

    /// Sees to it that a standby at `to` follows the primary at `primary` and is level with it. Uses the
    /// standby that runs, else the data directory that is there, else makes a copy of the primary's.
    pub(super) async fn ready(
        &self,
        primary: &Endpoint,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        let mut standby = self.standby.lock().await;
        self.replace(&mut standby, primary, to).await
    }

    /// [`Self::ready`], unless one is: it may be that of an event under way.
    pub(super) async fn ready_if_none(
        &self,
        primary: &Endpoint,
        capacity: Capacity,
    ) -> Result<(), ProviderError> {
        let mut standby = self.standby.lock().await;
        if standby.as_ref().is_some_and(|s| s.process.alive()) {
            return Ok(());
        }
        self.replace(&mut standby, primary, capacity).await
    }

    async fn replace(
        &self,
        standby: &mut Option<Standby>,
        primary: &Endpoint,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        *standby = None;
        let made = self.make_ready(primary, to).await;
        let mut told = self.told.lock();
        match made {
            Ok(ready) => {
                told.doing = format!("capacity {to}, follows the server and is level with it");
                *standby = Some(ready);
                Ok(())
            }
            Err(error) => {
                told.doing = format!("not ready: {error}");
                Err(error)
            }
        }
    }

    /// What `status` tells of it.
    pub(super) fn told(&self) -> Told {
        let mut told = self.told.lock().clone();
        if let Ok(standby) = self.standby.try_lock()
            && standby.as_ref().is_some_and(|s| !s.process.alive())
        {
            "ended: the next change of capacity starts it again".clone_into(&mut told.doing);
        }
        told
    }

    async fn make_ready(&self, primary: &Endpoint, to: Capacity) -> Result<Standby, ProviderError> {
        let home = self.data_dir.primary().other();
        let begun = Instant::now();
        // Such a standby may be the only one that has the last writes.
        if let Some(intent) = self.data_dir.intent()?
            && intent.pending(self.data_dir.primary()).is_some()
        {
            return Err(ProviderError::Server(
                "the last one was to be promoted, and it is not known yet how that ended"
                    .to_owned(),
            ));
        }
        // A copy that an earlier proxy began and that nobody waits for: a stop would.
        let orphans = format!(
            "SELECT pg_catalog.pg_terminate_backend(r.pid) FROM pg_catalog.pg_stat_replication r \
             WHERE r.application_name = '{COPYING}'"
        );
        self.one(primary, &orphans).await?;
        let same_files =
            blocking(&self.data_dir, move |d| fence::same_configuration(d, home)).await?;
        let catch_up = begun + self.keys.catch_up;
        if same_files && let Some(mut ready) = self.running(home, to).await? {
            match self.level(primary, &mut ready, catch_up).await {
                Ok(()) => return Ok(ready),
                Err(error) if Instant::now() >= catch_up => return Err(error),
                Err(error) => tracing::warn!(%error, "the standby is started again"),
            }
        }
        self.stop(home).await?;
        if self.usable(home) {
            self.say(format!("capacity {to}, is started"));
            match self.follow_again(primary, home, to, begun).await {
                Ok(ready) => {
                    self.made(
                        home,
                        begun.elapsed(),
                        "from the data directory that was there",
                    )
                    .await;
                    return Ok(ready);
                }
                // It follows, and there is too much to do: a copy would take longer still.
                Err(error) if Instant::now() >= catch_up => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the standby does not follow: making it anew");
                    self.stop(home).await?;
                }
            }
        }
        self.say(format!("capacity {to}, is made: the data is copied"));
        self.copy(primary, home).await?;
        let started = Instant::now();
        let mut ready = self
            .follow(primary, home, to, started + self.keys.catch_up)
            .await?;
        self.level(primary, &mut ready, started + self.keys.catch_up)
            .await?;
        self.made(home, begun.elapsed(), "by a copy of the data")
            .await;
        Ok(ready)
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

    fn say(&self, doing: String) {
        self.told.lock().doing = doing;
    }

    async fn made(&self, home: Home, took: Duration, how: &'static str) {
        let path = self.data_dir.data_of(home);
        let bytes = tokio::task::spawn_blocking(move || directory_bytes(&path)).await;
        let mut told = self.told.lock();
        told.made = Some((took, how));
        told.bytes = bytes.ok();
        let took_ms = took.as_millis();
        tracing::info!(took_ms, how, "a standby is ready");
    }

    /// The standby that runs in `home` as it should, or `None`.
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

    /// Whether it can be tried to let the server in `home` follow.
    fn usable(&self, home: Home) -> bool {
        let pgdata = self.data_dir.data_of(home);
        pgdata.join("PG_VERSION").is_file() && fence::is_fenced(&pgdata)
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

    /// Starts the standby that is there, which may end at once or soon, and waits until it is level.
    async fn follow_again(
        &self,
        primary: &Endpoint,
        home: Home,
        to: Capacity,
        begun: Instant,
    ) -> Result<Standby, ProviderError> {
        let mut ready = self
            .follow(primary, home, to, begun + FOLLOW_PATIENCE)
            .await?;
        self.level(primary, &mut ready, begun + self.keys.catch_up)
            .await?;
        Ok(ready)
    }

    /// Starts the standby and waits until it streams.
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
            if Instant::now() >= deadline {
                return Err(failed("does not receive the server's log"));
            }
            tokio::time::sleep(LOOK).await;
        }
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

    /// Waits until the standby has replayed what the primary had written at most a second ago.
    pub(super) async fn level(
        &self,
        primary: &Endpoint,
        standby: &mut Standby,
        deadline: Instant,
    ) -> Result<(), ProviderError> {
        let mut silent_since: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            if asked >= deadline {
                return Err(ProviderError::Server(format!(
                    "the standby was not level with the server in {} s (catch_up_timeout): ask again when there is \
                     less to do",
                    self.keys.catch_up.as_secs()
                )));
            }
            let written: Lsn = self
                .one(
                    primary,
                    "SELECT pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text",
                )
                .await?
                .parse()
                .map_err(|()| ProviderError::Server("its position can't be read".to_owned()))?;
            loop {
                let seen = look(&mut *standby.session).await.map_err(|e| {
                    ProviderError::Server(format!("the standby does not answer: {e}"))
                })?;
                if seen.streaming {
                    silent_since = None;
                } else if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENT_MAX {
                    return Err(ProviderError::Server(
                        "the standby does not receive the server's log".to_owned(),
                    ));
                }
                if seen.streaming && seen.replayed >= written {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(ProviderError::Server(format!(
                        "the standby is {} MiB behind after {} s (catch_up_timeout): ask again when there is less to do",
                        written.0.saturating_sub(seen.replayed.0) >> 20,
                        self.keys.catch_up.as_secs()
                    )));
                }
                tokio::time::sleep(LOOK).await;
            }
            if asked.elapsed() <= LEVEL {
                return Ok(());
            }
        }
    }

    /// Stops what runs in `home`, which has not the primary.
    pub(super) async fn stop(&self, home: Home) -> Result<(), ProviderError> {
        let Some((process, _)) = postmaster::find(&self.data_dir.data_of(home))? else {
            return Ok(());
        };
        process.stop_fast()?;
        if process.gone_within(STOP_PATIENCE).await {
            return Ok(());
        }
        Err(ProviderError::Server(format!(
            "the standby, process {}, does not stop: see {}",
            process.pid(),
            self.data_dir.log_of(home).display()
        )))
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
