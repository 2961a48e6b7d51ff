//! What is found out about a primary before a standby takes over from it: what would not be on the standby is refused by
//! name.

use super::super::super::{Instance, ProviderError, QueryError, Rows, ServerSession};
use super::super::{fence, slot};
use super::Mysql;
use super::accounts::identifier;
use super::replication::{ask, first};
use crate::backend::{Capacity, Engine};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Things that are named; more are counted.
const NAMED_MAX: usize = 20;

/// Tables whose rows are not in InnoDB. (MEMORY has a question of its own.)
const OTHER_TABLES: &str = "SELECT TABLE_SCHEMA, TABLE_NAME, ENGINE FROM information_schema.TABLES \
    WHERE TABLE_TYPE = 'BASE TABLE' AND ENGINE NOT IN ('InnoDB', 'MEMORY') \
    AND TABLE_SCHEMA NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') ORDER BY 1, 2";

/// What is there, whether it went through the log or not.
const PRESENT: &str = "SELECT CONCAT('table ', TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.TABLES \
    WHERE TABLE_SCHEMA NOT IN ('sys', 'information_schema', 'performance_schema') \
    UNION SELECT CONCAT('plugin ', PLUGIN_NAME) FROM information_schema.PLUGINS WHERE PLUGIN_STATUS = 'ACTIVE'";

/// Where a server's binary log ends, and what it leaves out.
pub(super) struct LogStatus {
    pub(super) file: String,
    pub(super) position: String,
    /// `binlog_do_db` and `binlog_ignore_db`.
    filters: String,
}

impl Mysql {
    pub(super) async fn log_status(
        &self,
        session: &mut dyn ServerSession,
    ) -> Result<LogStatus, QueryError> {
        let sql = match self.engine {
            Engine::Mysql if self.programs.version >= 80_200 => "SHOW BINARY LOG STATUS",
            _ => "SHOW MASTER STATUS",
        };
        let rows = ask(session, sql).await?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut next = || row.next().flatten().unwrap_or_default();
        let (file, position) = (next(), next());
        let filters = [next(), next()].join(",");
        if file.is_empty() {
            return Err(QueryError::Other("it writes no binary log".to_owned()));
        }
        Ok(LogStatus {
            file,
            position,
            filters: filters.trim_matches(',').to_owned(),
        })
    }

    /// Whether the running server writes what a standby needs. One that was started before `switch` became "standby"
    /// does not.
    async fn has_what_a_standby_needs(
        &self,
        session: &mut dyn ServerSession,
    ) -> Result<bool, QueryError> {
        let sql = match self.engine {
            Engine::Mysql => "SELECT @@GLOBAL.log_bin AND @@GLOBAL.gtid_mode = 'ON'",
            _ => {
                "SELECT @@GLOBAL.log_bin AND @@GLOBAL.log_slave_updates AND @@GLOBAL.gtid_strict_mode"
            }
        };
        Ok(first(&ask(session, sql).await?) == Some("1"))
    }

    /// What can't be on a standby, as a reason.
    async fn in_the_way(
        &self,
        session: &mut dyn ServerSession,
    ) -> Result<Option<String>, QueryError> {
        let encrypted = match self.engine {
            Engine::Mysql => "binlog_encryption",
            _ => "encrypt_binlog",
        };
        let sql = format!("SELECT @@GLOBAL.{encrypted}, @@GLOBAL.binlog_format");
        let row = ask(session, &sql).await?.into_iter().next();
        let row = row.unwrap_or_default();
        let value = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        if value(0) != "0" {
            return Ok(Some(format!(
                "{encrypted} is on, and where the log ends could not be read"
            )));
        }
        if value(1) != "ROW" {
            return Ok(Some(format!(
                "binlog_format is {}, and a standby needs ROW",
                value(1)
            )));
        }
        let filters = self.log_status(session).await?.filters;
        if !filters.is_empty() {
            return Ok(Some(format!(
                "binlog_do_db or binlog_ignore_db keeps changes out of the log: {filters}"
            )));
        }
        if !self.sessions_past_the_log(session).await?.is_empty() {
            return Ok(Some(
                "a session has sql_log_bin = OFF, or another binlog_format than ROW: what it writes would not be on \
                 the new server"
                    .to_owned(),
            ));
        }
        let sql = format!("SHOW {} STATUS", self.replica());
        if !ask(session, &sql).await?.is_empty() {
            return Ok(Some("it follows another server".to_owned()));
        }
        if let Some(row) = ask(session, "XA RECOVER").await?.first() {
            let name = row.get(3).cloned().flatten().unwrap_or_default();
            return Ok(Some(format!(
                "the XA transaction {name} is prepared: XA COMMIT or XA ROLLBACK it"
            )));
        }
        let tables = session.query(OTHER_TABLES).await?;
        if !tables.is_empty() {
            return Ok(Some(format!(
                "tables outside InnoDB are not safe in a copy that follows: {}; ALTER TABLE ... ENGINE=InnoDB",
                named(tables.iter().map(|row| table(row)))
            )));
        }
        let outside = self.files_outside(session).await?;
        if !outside.is_empty() {
            return Ok(Some(format!(
                "files outside the data directory can't be copied on the same host: {}; move their tables",
                named(outside.into_iter())
            )));
        }
        Ok(None)
    }

    /// Sessions whose writes the log lacks or has as statements, where the server shows them.
    async fn sessions_past_the_log(
        &self,
        session: &mut dyn ServerSession,
    ) -> Result<Rows, QueryError> {
        if self.engine != Engine::Mysql {
            return Ok(Rows::new());
        }
        ask(
            session,
            "SELECT THREAD_ID FROM performance_schema.variables_by_thread \
             WHERE VARIABLE_NAME = 'sql_log_bin' AND VARIABLE_VALUE = 'OFF' \
             OR VARIABLE_NAME = 'binlog_format' AND VARIABLE_VALUE <> 'ROW' LIMIT 1",
        )
        .await
    }

    async fn files_outside(
        &self,
        session: &mut dyn ServerSession,
    ) -> Result<Vec<String>, QueryError> {
        if self.engine == Engine::Mysql {
            let sql = "SELECT PATH FROM information_schema.INNODB_DATAFILES WHERE PATH LIKE '/%' OR PATH LIKE '../%'";
            let rows = ask(session, sql).await?;
            return Ok(rows.into_iter().flatten().flatten().collect());
        }
        // A table elsewhere has a file beside its place that names it.
        let data = self.data_dir.data();
        tokio::task::spawn_blocking(move || links(&data))
            .await
            .map_err(|_| QueryError::Other("slackwater is ending".to_owned()))
    }

    /// Refuses what a standby would not have, and sees to it that one is there.
    pub(super) async fn see_to_standby(
        &self,
        from: &Instance,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        let refused = |why: String| ProviderError::Refused { to, why };
        let unreachable = ProviderError::unreachable(&from.endpoint);
        let mut session = self
            .query
            .session(&from.endpoint)
            .await
            .map_err(unreachable)?;
        let session = &mut *session;
        let usable = self
            .has_what_a_standby_needs(session)
            .await
            .map_err(unreachable)?;
        self.restarts.store(!usable, Ordering::Relaxed);
        if !usable {
            tracing::warn!(
                "the server was started without what a standby needs (a binary log by GTID): this change of capacity is a \
                 restart, the next one a switch"
            );
            return Ok(());
        }
        fence::see_that_a_fence_fits(&self.data_dir, &self.data_dir.data())
            .map_err(|e| refused(e.to_string()))?;
        if let Some(why) = self.in_the_way(session).await.map_err(unreachable)? {
            return Err(refused(format!("{why}; or use switch = \"restart\"")));
        }
        slot::ready(self, &from.endpoint, to)
            .await
            .map_err(|e| refused(e.to_string()))?;
        if let Some(why) = self.left_out().await.map_err(unreachable)? {
            return Err(refused(format!("{why}; or use switch = \"restart\"")));
        }
        let runs = ask(session, "SELECT @@GLOBAL.init_connect <> ''").await;
        let runs = first(&runs.map_err(unreachable)?) == Some("1");
        self.logins_run.store(runs, Ordering::Relaxed);
        // What was done past the log is found by comparison, and a new copy has it.
        for again in [true, false] {
            let missing = self.missing(session).await.map_err(unreachable)?;
            let Some(what) = missing else { return Ok(()) };
            if !again {
                return Err(refused(format!(
                    "the standby differs from the server: {what}; or use switch = \"restart\""
                )));
            }
            tracing::warn!(what, "the standby differs from the server: making it anew");
            slot::ready_anew(self, &from.endpoint, to)
                .await
                .map_err(|e| refused(e.to_string()))?;
        }
        Ok(())
    }

    /// What has a standby leave out, or pass over, what its primary wrote: settings of the user's own file, which both read.
    async fn left_out(&self) -> Result<Option<String>, QueryError> {
        // Replicate_Do_DB to Replicate_Wild_Ignore_Table, Replicate_Ignore_Server_Ids; then MariaDB's domains, and what is
        // renamed.
        let columns: &[usize] = match self.engine {
            Engine::Mysql => &[12, 13, 14, 15, 16, 17, 38, 54],
            _ => &[12, 13, 14, 15, 16, 17, 38, 44, 45, 53],
        };
        let mut kept = self.slot.standby.lock().await;
        let Some(standby) = kept.as_mut() else {
            return Ok(None);
        };
        let session = &mut *standby.session;
        let rows = ask(session, &format!("SHOW {} STATUS", self.replica())).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let filters = columns.iter().filter_map(|&at| row.get(at)?.as_deref());
        let filters: Vec<&str> = filters.filter(|f| !f.is_empty()).collect();
        if !filters.is_empty() {
            return Ok(Some(format!(
                "replicate_* settings in my.cnf would leave changes out on the standby: {}",
                filters.join(", ")
            )));
        }
        let (errors, mode) = match self.engine {
            Engine::Mysql => ("replica_skip_errors", "replica_exec_mode"),
            _ => ("slave_skip_errors", "slave_exec_mode"),
        };
        let sql = format!("SELECT @@GLOBAL.{errors}, @@GLOBAL.{mode}");
        let row = ask(session, &sql).await?.into_iter().next();
        let strict = row.is_some_and(|row| {
            matches!(
                row.as_slice(),
                [Some(errors), Some(mode)] if errors == "OFF" && mode == "STRICT"
            )
        });
        Ok((!strict).then(|| {
            format!("{errors} or {mode} in my.cnf would have the standby pass over differences")
        }))
    }

    /// What is on one of both servers only. It may just be on its way, so it is asked twice.
    async fn missing(&self, primary: &mut dyn ServerSession) -> Result<Option<String>, QueryError> {
        let mut kept = self.slot.standby.lock().await;
        let Some(standby) = kept.as_mut() else {
            return Ok(None);
        };
        let session = &mut *standby.session;
        let before = differences(primary, session).await?;
        if before.is_empty() {
            return Ok(None);
        }
        tokio::time::sleep(slot::LEVEL).await;
        let after = differences(primary, session).await?;
        let both: BTreeSet<String> = before.intersection(&after).cloned().collect();
        Ok((!both.is_empty()).then(|| named(both.into_iter())))
    }
}

async fn differences(
    primary: &mut dyn ServerSession,
    standby: &mut dyn ServerSession,
) -> Result<BTreeSet<String>, QueryError> {
    let there = present(primary).await?;
    let here = present(standby).await?;
    Ok(there.symmetric_difference(&here).cloned().collect())
}

async fn present(session: &mut dyn ServerSession) -> Result<BTreeSet<String>, QueryError> {
    let rows = session.query(PRESENT).await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

fn table(row: &[Option<String>]) -> String {
    let value = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    format!(
        "{}.{} ({})",
        identifier(value(0)),
        identifier(value(1)),
        value(2)
    )
}

/// The first names, and how many more there are.
pub(super) fn named(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let text = names.take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more == 0 {
        return text;
    }
    format!("{text} and {more} more")
}

/// Symbolic links, and files of InnoDB that name one elsewhere, below a directory.
fn links(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path: PathBuf = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => links(&path),
                Ok(kind) if kind.is_symlink() || path.extension().is_some_and(|e| e == "isl") => {
                    vec![path.display().to_string()]
                }
                _ => Vec::new(),
            }
        })
        .collect()
}
