//! The standby of MySQL and MariaDB: a replica by global transaction ids, made by a copy of the data or out of the last
//! primary, started at the capacity that is wanted next, kept following.
//!
//! It connects to its primary at 127.0.0.1, because a replica knows no Unix sockets, as an account of its own whose password is
//! new each time.

use super::super::super::gtid::Gtids;
use super::super::super::{ProviderError, QueryError, Rows, ServerIdentity, ServerSession};
use super::super::data_dir::{DataDir, random};
use super::super::files::Home;
use super::super::process::{Process, log_length, log_tail};
use super::super::settings::capacity_of;
use super::super::slot::{Followed, LOGIN_PATIENCE, LOOK, Maker, Progress, Slot, Standby};
use super::super::{blocking, engine, fence};
use super::accounts::literal;
use super::{Mysql, Role, Sizes, durability, identity_sql, is_up, my_cnf};
use crate::backend::{Capacity, Endpoint, Engine};
use base64::Engine as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The account as which a standby follows its primary.
pub(super) const ACCOUNT: &str = "'slackwater_standby'@'127.0.0.1'";
/// Names of binary and relay logs.
pub(super) const BINLOG: &str = "binlog";
const RELAY_LOG: &str = "relay";
/// Of MySQL: all its transactions, in one line.
const EXECUTED: &str = "REPLACE(@@GLOBAL.gtid_executed, CHAR(10), '')";
/// In a copy of MariaDB's data: which transactions it has. Removed once the server itself remembers.
pub(super) const POSITION: &str = "slackwater.gtid";

/// What a standby says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) identity: ServerIdentity,
    pub(super) capacity: Option<Capacity>,
    pub(super) read_only: bool,
    pub(super) streaming: bool,
    pub(super) gtids: Gtids,
}

impl Mysql {
    /// What primaries and standbys are started with beyond their sizes.
    pub(super) fn replication_arguments(&self, home: Home, role: Role) -> Vec<String> {
        let number = match home {
            Home::First => 1,
            Home::Second => 2,
        };
        let mut arguments = vec![
            format!("--server-id={number}"),
            format!("--log-bin={BINLOG}"),
            format!("--log-bin-index={BINLOG}.index"),
            format!("--relay-log={RELAY_LOG}"),
        ];
        let own: &[&str] = match self.engine {
            Engine::Mysql => &[
                "--gtid-mode=ON",
                "--enforce-gtid-consistency=ON",
                "--log-replica-updates=ON",
                "--skip-replica-start",
                // It copies the data.
                "--plugin-load-add=mysql_clone.so",
            ],
            _ => &[
                "--gtid-strict-mode=ON",
                "--log-slave-updates=ON",
                "--skip-slave-start",
                "--binlog-format=ROW",
                // One after the other, as it does by itself, it would fall behind whenever several clients write. They still
                // commit in the primary's order. (MySQL has four workers by itself.)
                "--slave-parallel-threads=4",
                "--slave-parallel-mode=optimistic",
            ],
        };
        arguments.extend(own.iter().map(|&a| a.to_owned()));
        if role == Role::Standby {
            arguments.push("--event-scheduler=OFF".to_owned());
            arguments.push("--read-only=ON".to_owned());
            if self.engine == Engine::Mysql {
                arguments.push("--super-read-only=ON".to_owned());
            }
        }
        arguments
    }

    /// An option file of our own, with what the user's `my.cnf` may change, in front of that file.
    pub(super) fn write_defaults(&self) -> Result<PathBuf, ProviderError> {
        let file = self.data_dir.socket_directory().join("server.cnf");
        let text = format!(
            "# Made by Slackwater at each start of a server with switch = \"standby\".\n[mysqld]\n\
             binlog_expire_logs_seconds = 86400\n!include {}\n",
            my_cnf(&self.data_dir).display()
        );
        fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)))
            .map_err(ProviderError::io("can't write", &file))?;
        Ok(file)
    }

    /// Asks a standby who it is and how far.
    pub(super) async fn look(&self, session: &mut dyn ServerSession) -> Result<Seen, QueryError> {
        let (state, gtids) = match self.engine {
            Engine::Mysql => (
                "(SELECT COUNT(*) FROM performance_schema.replication_connection_status c JOIN \
                 performance_schema.replication_applier_status a USING (CHANNEL_NAME) \
                 WHERE CHANNEL_NAME = '' AND c.SERVICE_STATE = 'ON' AND a.SERVICE_STATE = 'ON')",
                EXECUTED,
            ),
            _ => (
                "(SELECT VARIABLE_VALUE = 'ON' FROM information_schema.GLOBAL_STATUS \
                 WHERE VARIABLE_NAME = 'SLAVE_RUNNING')",
                "@@GLOBAL.gtid_current_pos",
            ),
        };
        let sql = format!(
            "{}, @@GLOBAL.read_only, {state}, {gtids}",
            identity_sql(self.engine)
        );
        let rows = ask(session, &sql).await?;
        let mut row = rows.into_iter().next().unwrap_or_default();
        let unreadable =
            || QueryError::Other("its answer about its state can't be read".to_owned());
        let own = row.split_off(row.len().min(3));
        let [read_only, streaming, gtids] = own.as_slice() else {
            return Err(unreadable());
        };
        let found = self.identity(row)?;
        let is_on = |value: &Option<String>| {
            value
                .as_deref()
                .is_some_and(|v| !matches!(v, "0" | "OFF" | ""))
        };
        Ok(Seen {
            identity: found.identity,
            capacity: capacity_of(&found.cluster_name),
            read_only: is_on(read_only),
            streaming: is_on(streaming),
            gtids: Gtids::parse(gtids.as_deref().unwrap_or_default()).ok_or_else(unreadable)?,
        })
    }

    /// Whether the server behind `session`, which has `here`, has all of `there`.
    pub(super) async fn has(
        &self,
        session: &mut dyn ServerSession,
        here: &Gtids,
        there: &Gtids,
    ) -> Result<bool, QueryError> {
        if self.engine == Engine::Mysql {
            let sql = format!(
                "SELECT GTID_SUBSET('{}', '{}')",
                there.as_str(),
                here.as_str()
            );
            let rows = ask(session, &sql).await?;
            return Ok(first(&rows) == Some("1"));
        }
        here.reaches(there)
            .ok_or_else(|| QueryError::Other("its position can't be read".to_owned()))
    }

    /// All transactions of a primary.
    pub(super) async fn gtids_of(
        &self,
        session: &mut dyn ServerSession,
    ) -> Result<Gtids, QueryError> {
        let sql = match self.engine {
            Engine::Mysql => format!("SELECT {EXECUTED}"),
            _ => "SELECT @@GLOBAL.gtid_binlog_pos".to_owned(),
        };
        let rows = ask(session, &sql).await?;
        Gtids::parse(first(&rows).unwrap_or_default())
            .ok_or_else(|| QueryError::Other("its position can't be read".to_owned()))
    }

    /// `REPLICA` where the server calls it so.
    pub(super) fn replica(&self) -> &'static str {
        match self.engine {
            Engine::Mysql => "REPLICA",
            _ => "SLAVE",
        }
    }

    /// What keeps a standby from following, in its own words.
    async fn complaint(&self, session: &mut dyn ServerSession) -> String {
        // Last_IO_Error, Last_SQL_Error and Last_Error; the columns are the same since MySQL 5.6 and MariaDB 10.
        const ERRORS: [usize; 3] = [35, 37, 19];
        let sql = format!("SHOW {} STATUS", self.replica());
        let rows = ask(session, &sql).await.unwrap_or_default();
        let row = rows.into_iter().next().unwrap_or_default();
        let said = ERRORS.iter().filter_map(|&at| row.get(at)?.as_deref());
        said.filter(|text| !text.is_empty())
            .map(str::to_owned)
            .next()
            .unwrap_or_else(|| "it does not say why".to_owned())
    }

    /// What the standby that runs has as its pool, and gives back when it is started again.
    pub(super) async fn pool_of_standby(&self) -> u64 {
        let home = self.data_dir.primary().other();
        let Ok(mut session) = self.session(home).await else {
            return 0;
        };
        match self.look(&mut *session).await {
            Ok(seen) if seen.read_only => seen
                .capacity
                .map_or(0, |c| Sizes::of(&self.scale, c).buffer_pool),
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

    /// Lets the standby's account in with a new password, and tells it.
    pub(super) async fn let_in(
        &self,
        primary: &mut dyn ServerSession,
    ) -> Result<String, QueryError> {
        let password = new_password().map_err(|e| QueryError::Other(e.to_string()))?;
        let secret = literal(&password);
        for sql in [
            format!("CREATE USER IF NOT EXISTS {ACCOUNT} IDENTIFIED BY {secret}"),
            format!("ALTER USER {ACCOUNT} IDENTIFIED BY {secret}"),
            format!("GRANT REPLICATION SLAVE ON *.* TO {ACCOUNT}"),
        ] {
            ask(primary, &sql).await?;
        }
        Ok(password)
    }

    /// Statements that have a standby follow the server at `port`.
    fn follow_statements(&self, port: u16, password: &str) -> Vec<String> {
        let (user, _) = ACCOUNT.split_once('@').unwrap_or_default();
        let secret = literal(password);
        match self.engine {
            // The password is not kept by the server when it is told at the start.
            Engine::Mysql => vec![
                "STOP REPLICA".to_owned(),
                format!(
                    "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, \
                     SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1, \
                     SOURCE_RETRY_COUNT = 0"
                ),
                format!("START REPLICA USER = {user} PASSWORD = {secret}"),
            ],
            _ => vec![
                "STOP SLAVE".to_owned(),
                format!(
                    "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = {user}, \
                     MASTER_PASSWORD = {secret}, MASTER_SSL = 0, MASTER_SSL_VERIFY_SERVER_CERT = 0, \
                     MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1"
                ),
                "START SLAVE".to_owned(),
            ],
        }
    }

    /// MariaDB is told from where it follows: a new copy by its position, a former primary by its own log.
    async fn set_position(
        &self,
        session: &mut dyn ServerSession,
        home: Home,
    ) -> Result<(), ProviderError> {
        if self.engine == Engine::Mysql {
            return Ok(());
        }
        let file = self.data_dir.data_of(home).join(POSITION);
        let position = match fs::read_to_string(&file) {
            Ok(text) => {
                let gtids = Gtids::parse(&text).ok_or_else(|| {
                    ProviderError::Server(format!("{} can't be read", file.display()))
                })?;
                literal(gtids.as_str())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => "@@GLOBAL.gtid_current_pos".to_owned(),
            Err(e) => return Err(ProviderError::io("can't read", file)(e)),
        };
        ask(session, &format!("SET GLOBAL gtid_slave_pos = {position}"))
            .await
            .map_err(|e| ProviderError::Server(format!("the standby: {e}")))?;
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ProviderError::io("can't remove", file)(e))
            }
            _ => Ok(()),
        }
    }

    /// Tells a standby that is up to follow, unless it has what its primary has not.
    async fn begin_to_follow(
        &self,
        primary: &Endpoint,
        session: &mut dyn ServerSession,
        home: Home,
    ) -> Result<(), ProviderError> {
        self.set_position(session, home).await?;
        let told = |e: QueryError| ProviderError::Server(format!("the standby: {e}"));
        let here = self.look(session).await.map_err(told)?.gtids;
        let unreachable = ProviderError::unreachable(primary);
        let mut source = self.query.session(primary).await.map_err(unreachable)?;
        let there = self.gtids_of(&mut *source).await.map_err(unreachable)?;
        if !self.has(session, &there, &here).await.map_err(told)? {
            return Err(ProviderError::Server(format!(
                "the standby has transactions that the server has not ({} beside {})",
                here.as_str(),
                there.as_str()
            )));
        }
        let password = self.let_in(&mut *source).await.map_err(unreachable)?;
        for sql in self.follow_statements(self.data_dir.port(), &password) {
            ask(session, &sql).await.map_err(told)?;
        }
        Ok(())
    }

    /// A standby as it is, if it is ready to follow.
    fn as_standby(
        home: Home,
        process: Process,
        to: Capacity,
        seen: &Seen,
        session: Box<dyn ServerSession>,
    ) -> Standby {
        Standby {
            home,
            process,
            capacity: to,
            started_at: seen.identity.started_at.clone(),
            session,
        }
    }
}

impl Maker for Mysql {
    type Position = Gtids;

    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn data_dir(&self) -> &Arc<DataDir> {
        &self.data_dir
    }

    fn catch_up(&self) -> Duration {
        self.standby.unwrap_or_default().catch_up
    }

    /// Nothing outlives a proxy that was making a standby, and matters to its primary.
    async fn tidy(&self, _primary: &Endpoint) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn running(&self, home: Home, to: Capacity) -> Result<Option<Standby>, ProviderError> {
        let Some(process) = engine::find(&self.data_dir, home)? else {
            return Ok(None);
        };
        if !is_up(&self.data_dir, home, process)? {
            return Ok(None);
        }
        if let Err(error) = durability::see_to_boot(&self.data_dir, home) {
            tracing::warn!(%error, "the standby that runs is of no use");
            return Ok(None);
        }
        let Ok(mut session) = self.session(home).await else {
            return Ok(None);
        };
        Ok(match self.look(&mut *session).await {
            Ok(seen) if seen.read_only && seen.streaming && seen.capacity == Some(to) => {
                self.relax(&mut *session, home, false).await;
                Some(Self::as_standby(home, process, to, &seen, session))
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
            durability::see_to_boot(d, home)?;
            d.see_to_port(home)?;
            fence::copy_configuration(d, home).map(drop)
        })
        .await?;
        let log = self.data_dir.log_of(home);
        let read_from = log_length(&log);
        let process = self.spawn(home, to, Role::Standby)?;
        let failed = |what: &str| {
            ProviderError::Server(format!(
                "the standby {what}: {} (whole log: {})",
                log_tail(&log, read_from),
                log.display()
            ))
        };
        let mut told = false;
        let mut followed = Followed::new(&self.data_dir);
        loop {
            if is_up(&self.data_dir, home, process)?
                && let Ok(mut session) = self.session(home).await
            {
                if !told {
                    self.begin_to_follow(primary, &mut *session, home).await?;
                    self.relax(&mut *session, home, true).await;
                    told = true;
                }
                if let Ok(seen) = self.look(&mut *session).await {
                    if !seen.read_only {
                        return Err(failed("takes writes of its own"));
                    }
                    if seen.streaming {
                        return Ok(Self::as_standby(home, process, to, &seen, session));
                    }
                }
                if Instant::now() >= deadline {
                    let why = self.complaint(&mut *session).await;
                    return Err(ProviderError::Server(format!(
                        "the standby does not receive the server's log: {why}"
                    )));
                }
            }
            if !process.alive() {
                return Err(failed("ended"));
            }
            followed.see_that_it_runs()?;
            if Instant::now() >= deadline {
                return Err(failed("does not start"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn written(&self, primary: &Endpoint) -> Result<Gtids, ProviderError> {
        let unreachable = ProviderError::unreachable(primary);
        let mut session = self.query.session(primary).await.map_err(unreachable)?;
        self.gtids_of(&mut *session).await.map_err(unreachable)
    }

    async fn progress(
        &self,
        standby: &mut Standby,
        written: &Gtids,
    ) -> Result<Progress, QueryError> {
        let session = &mut *standby.session;
        let seen = self.look(session).await?;
        let has_it = self.has(session, &seen.gtids, written).await?;
        let behind = if seen.streaming {
            format!(
                "at {}, and the server at {},",
                seen.gtids.as_str(),
                written.as_str()
            )
        } else {
            self.complaint(session).await
        };
        Ok(Progress {
            streaming: seen.streaming,
            has_it,
            behind,
        })
    }

    async fn copy(&self, primary: &Endpoint, home: Home) -> Result<(), ProviderError> {
        self.copy_data(primary, home).await
    }
}

/// One statement, with a limit on the wait for a server that hangs.
pub(super) async fn ask(session: &mut dyn ServerSession, sql: &str) -> Result<Rows, QueryError> {
    tokio::time::timeout(LOGIN_PATIENCE, session.query(sql))
        .await
        .unwrap_or_else(|_| Err(QueryError::Refused("no answer".to_owned())))
}

/// The first value.
pub(super) fn first(rows: &Rows) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}

/// Random, and to the taste of every plugin that looks at passwords.
pub(super) fn new_password() -> io::Result<String> {
    let bytes = random(18)?;
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    Ok(format!("{text}aA1!"))
}
