//! What is found out about the primary before a standby takes over from it: what would not survive is
//! refused by name, and what the standby may not have less of is noted.

use super::super::{Instance, ProviderError};
use super::LocalProvider;
use super::engine::Postgres;
use super::settings::Floors;
use super::{blocking, check};
use crate::backend::{Capacity, Endpoint};

/// Databases whose unlogged tables are named; of the others only the database is.
const NAMED_MAX: usize = 20;

struct Survey {
    wal_level: String,
    slots: Option<String>,
    tablespaces: Option<String>,
    /// Databases with unlogged relations.
    unlogged: Vec<String>,
    floors: Floors,
}

impl LocalProvider {
    /// Refuses what a standby would not have, and notes the floors.
    pub(super) async fn survey(
        &self,
        pg: &Postgres,
        from: &Instance,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        let refused = |why: String| ProviderError::Refused { to, why };
        let survey = self.ask_survey(&from.endpoint).await?;
        if survey.wal_level == "minimal" {
            return Err(refused(
                "wal_level is minimal, and a standby needs replica: change it and restart the server".to_owned(),
            ));
        }
        if let Some(slots) = survey.slots {
            return Err(refused(format!(
                "replication slots would vanish with the old server: {slots}; drop them, or use switch = \"restart\""
            )));
        }
        if let Some(tablespaces) = survey.tablespaces {
            return Err(refused(format!(
                "tablespaces outside the data directory can't be copied on the same host: {tablespaces}; move \
                 their tables to pg_default, or use switch = \"restart\""
            )));
        }
        if !survey.unlogged.is_empty() {
            let mut named = Vec::new();
            for (n, database) in survey.unlogged.iter().enumerate() {
                named.push(if n < NAMED_MAX {
                    let names = pg.follower.unlogged(&from.endpoint, database).await;
                    format!("database {database}: {names}")
                } else {
                    format!("database {database}")
                });
            }
            return Err(refused(format!(
                "unlogged tables would be empty on the new server: {}; ALTER TABLE ... SET LOGGED or drop them, or use \
                 switch = \"restart\"",
                named.join("; ")
            )));
        }
        blocking(&self.data_dir, move |d| d.raise_floors(survey.floors)).await
    }

    async fn ask_survey(&self, at: &Endpoint) -> Result<Survey, ProviderError> {
        // A setting in a file that waits for a restart counts, too: the next start has it.
        let floors = Floors::NAMES.map(|name| {
            format!(
                "greatest(pg_catalog.current_setting('{name}')::pg_catalog.int8, \
                 (SELECT f.setting::pg_catalog.int8 FROM pg_catalog.pg_file_settings f \
                 WHERE f.name = '{name}' AND f.setting ~ '^[0-9]{{1,9}}$' \
                 ORDER BY f.seqno DESC LIMIT 1))::pg_catalog.text"
            )
        });
        let sql = format!(
            "SELECT pg_catalog.current_setting('wal_level'), \
             (SELECT pg_catalog.string_agg(pg_catalog.format('%s (%s)', s.slot_name, s.slot_type), ', ') \
               FROM pg_catalog.pg_replication_slots s WHERE NOT s.temporary), \
             (SELECT pg_catalog.string_agg(t.spcname, ', ') FROM pg_catalog.pg_tablespace t \
               WHERE t.spcname NOT IN ('pg_default', 'pg_global')), \
             (SELECT pg_catalog.string_agg(d.datname, pg_catalog.chr(10)) FROM pg_catalog.pg_database d \
               WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_ls_dir('base/' || d.oid, true, false) f \
               WHERE f ~ '_init$')), {}",
            floors.join(", ")
        );
        let mut rows = self.ask(at, &sql).await?;
        let row = rows.pop().unwrap_or_default();
        let [Some(wal_level), slots, tablespaces, unlogged, floors @ ..] = row.as_slice() else {
            return Err(check::unreadable(at));
        };
        let mut values = [0; 5];
        for (value, text) in values.iter_mut().zip(floors) {
            let text = text.as_deref().unwrap_or_default();
            *value = text.parse().map_err(|_| check::unreadable(at))?;
        }
        Ok(Survey {
            wal_level: wal_level.clone(),
            slots: slots.clone(),
            tablespaces: tablespaces.clone(),
            unlogged: unlogged
                .iter()
                .flat_map(|names| names.lines())
                .map(str::to_owned)
                .collect(),
            floors: Floors::of(values),
        })
    }
}
