//! What is found out about a change of capacity while the old server still serves: whether the new settings are
//! read, whether memory and disk suffice, what a restart would lose. Ends with what makes the stop short: changed
//! pages are written.

use super::super::super::{Instance, ProviderError, Rows, ServerSession};
use super::super::LocalProvider;
use super::super::check::{free_memory, unreadable};
use super::super::process::run;
use super::accounts::identifier;
use super::processes::READS_SETTINGS;
use super::survey::named;
use super::{Mysql, Role, Sizes};
use crate::backend::{Capacity, Endpoint, Engine};
use std::time::Duration;
use tokio::time::Instant;

/// Limit on a program that only reads the configuration.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(20);
/// Disk space that a stop and a start may need, for temporary tables and small files.
const DISK_BYTES: u64 = 128 << 20;
/// Changed pages that a stop writes in no time.
const FEW_PAGES: u64 = 1000;
/// How long pages are written ahead of the stop.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked how many are left.
const FLUSH_LOOK: Duration = Duration::from_millis(50);
/// How many are left, at which the server begins to write them by itself, and when it hurries.
const DIRTY: [&str; 2] = [
    "innodb_max_dirty_pages_pct",
    "innodb_max_dirty_pages_pct_lwm",
];

/// Tables whose rows are in memory alone.
const MEMORY_TABLES: &str = "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES \
    WHERE ENGINE = 'MEMORY' AND TABLE_TYPE = 'BASE TABLE' \
    AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema') ORDER BY 1, 2";

impl LocalProvider {
    /// The whole of Prepare.
    pub(in super::super) async fn prepare_mysql(
        &self,
        my: &Mysql,
        from: &Instance,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        if to == Capacity(0) {
            return Err(ProviderError::Paused);
        }
        let refused = |why: String| ProviderError::Refused { to, why };
        let at = &from.endpoint;
        let unreachable = ProviderError::unreachable(at);
        let now = self.who(at).await.map_err(unreachable)?;
        if now.identity.started_at != from.identity.started_at {
            return Err(refused(
                "it was restarted by somebody else in the meantime: ask again".to_owned(),
            ));
        }
        let sizes = Sizes::of(&self.scale, to);
        self.read_my_cnf(my, to)
            .await
            .map_err(|e| refused(e.to_string()))?;
        let mut session = self.query.session(at).await.map_err(unreachable)?;
        let pool = session
            .query("SELECT @@GLOBAL.innodb_buffer_pool_size")
            .await
            .map_err(unreachable)?;
        let pool = match my.standby {
            // Both run at the same time; a standby that runs is started again.
            Some(_) => my.pool_of_standby().await,
            None => number(&pool).ok_or_else(|| unreadable(at))?,
        };
        check_memory(sizes.buffer_pool, pool, free_memory()).map_err(refused)?;
        self.check_disk(DISK_BYTES).map_err(refused)?;
        if let Some(tables) = filled_memory_tables(&mut *session, at).await? {
            return Err(refused(format!(
                "MEMORY tables would be empty after the restart: {tables}; ALTER TABLE ... ENGINE=InnoDB, or delete \
                 their rows"
            )));
        }
        if my.standby.is_some() {
            my.see_to_standby(from, to).await?;
        }
        if let Err(error) = write_pages(&mut *session, my.engine).await {
            tracing::warn!(%error, "changed pages are not written ahead: the stop takes longer");
        }
        Ok(())
    }

    /// Has the server's program read its configuration with the new settings, as it would at a start.
    async fn read_my_cnf(&self, my: &Mysql, to: Capacity) -> Result<(), ProviderError> {
        let mut command = my.server(self.data_dir.primary(), to, Role::Primary)?;
        let [validate, help] = READS_SETTINGS;
        match my.engine {
            Engine::Mysql => command.arg(validate),
            // Says which values it would have, after it has read them all.
            _ => command.args([help, "--verbose"]),
        };
        let name = super::programs::server_name(my.engine);
        run(&mut command, name, PROGRAM_PATIENCE).await.map(drop)
    }
}

/// MEMORY tables with rows, named.
async fn filled_memory_tables(
    session: &mut dyn ServerSession,
    at: &Endpoint,
) -> Result<Option<String>, ProviderError> {
    let unreachable = ProviderError::unreachable(at);
    let tables = session.query(MEMORY_TABLES).await.map_err(unreachable)?;
    let mut filled = Vec::new();
    for row in tables {
        let [Some(schema), Some(table)] = row.as_slice() else {
            return Err(unreadable(at));
        };
        let (schema, table) = (identifier(schema), identifier(table));
        // Their number of rows in information_schema can be a day old.
        let sql = format!("SELECT 1 FROM {schema}.{table} LIMIT 1");
        match session.query(&sql).await {
            Ok(rows) if rows.is_empty() => {}
            // One that can't be read is as good as one with rows.
            _ => filled.push(format!("{schema}.{table}")),
        }
    }
    Ok((!filled.is_empty()).then(|| named(filled.into_iter())))
}

/// Has changed pages written until few are left, and puts the settings back.
async fn write_pages(session: &mut dyn ServerSession, engine: Engine) -> Result<(), String> {
    let ask = "SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'";
    if dirty_pages(session, ask).await? <= FEW_PAGES {
        return Ok(());
    }
    let before = session
        .query(&format!(
            "SELECT @@GLOBAL.{}, @@GLOBAL.{}",
            DIRTY[0], DIRTY[1]
        ))
        .await
        .map_err(|e| e.to_string())?;
    let before: Vec<String> = before.into_iter().flatten().flatten().collect();
    let [limit, low] = before.as_slice() else {
        return Err("its settings could not be read".to_owned());
    };
    let written = async {
        set(session, "0", "0").await?;
        let deadline = Instant::now() + FLUSH_PATIENCE;
        let mut least = u64::MAX;
        let mut fell = Instant::now();
        loop {
            let left = dirty_pages(session, ask).await?;
            if left < least {
                (least, fell) = (left, Instant::now());
            }
            // Clients change pages all the time: it never comes to none.
            let level = fell.elapsed() > Duration::from_secs(1);
            if left <= FEW_PAGES || level || Instant::now() >= deadline {
                return Ok(());
            }
            tokio::time::sleep(FLUSH_LOOK).await;
        }
    }
    .await;
    tracing::debug!(%engine, ?written, "changed pages were written ahead of the stop");
    set(session, limit, low).await?;
    written
}

/// The low mark is never above the limit, so it is lowered first and raised last.
async fn set(session: &mut dyn ServerSession, limit: &str, low: &str) -> Result<(), String> {
    let mut orders = vec![(DIRTY[0], limit), (DIRTY[1], low)];
    if low == "0" {
        orders.reverse();
    }
    for (name, value) in orders {
        let sql = format!("SET GLOBAL {name} = {value}");
        session.query(&sql).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

async fn dirty_pages(session: &mut dyn ServerSession, ask: &str) -> Result<u64, String> {
    let rows = session.query(ask).await.map_err(|e| e.to_string())?;
    let value = rows
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().nth(1));
    value
        .flatten()
        .and_then(|v| v.parse().ok())
        .ok_or_else(|| "how many pages are changed could not be read".to_owned())
}

/// The number in the one row of one column.
fn number(rows: &Rows) -> Option<u64> {
    match rows.as_slice() {
        [row] => row.first()?.as_ref()?.parse().ok(),
        _ => None,
    }
}

fn check_memory(pool: u64, now: u64, free: Option<u64>) -> Result<(), String> {
    let Some(free) = free else { return Ok(()) };
    // A tenth more for what InnoDB keeps about each page.
    let more = pool.saturating_sub(now) / 10 * 11;
    if more <= free {
        return Ok(());
    }
    Err(format!(
        "innodb_buffer_pool_size would grow from {} to {} MiB, and {} MiB of memory are free: lower memory_per_acu or \
         choose a smaller capacity",
        now >> 20,
        pool >> 20,
        free >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_to_hold_the_growth_and_no_more() {
        let gib = 1 << 30;
        assert!(check_memory(2 * gib, gib, Some(2 * gib)).is_ok());
        assert!(check_memory(gib, 2 * gib, Some(0)).is_ok());
        assert!(check_memory(2 * gib, gib, None).is_ok());
        let error = check_memory(2 * gib, gib, Some(gib)).unwrap_err();
        assert!(
            error.contains("from 1024 to 2048 MiB, and 1024 MiB"),
            "{error}"
        );
    }
}
