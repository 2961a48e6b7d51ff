//! What is PostgreSQL's own in the life of a local server: roles, and the whole of Prepare.

use super::super::{Instance, ProviderError};
use super::engine::Postgres;
use super::{LocalProvider, Switch, slot};
use crate::backend::{Capacity, Endpoint};

impl LocalProvider {
    /// Checks settings, memory and disk for `to`, sees to the standby if there is to be one, writes a checkpoint.
    pub(super) async fn prepare_postgres(
        &self,
        pg: &Postgres,
        from: &Instance,
        to: Capacity,
    ) -> Result<(), ProviderError> {
        self.check(pg, from, to).await?;
        if self.config.switch == Switch::Standby {
            self.survey(pg, from, to).await?;
            slot::ready(&*pg.follower, &from.endpoint, to)
                .await
                .map_err(|error| ProviderError::Refused {
                    to,
                    why: error.to_string(),
                })?;
        }
        // It makes the one of the shutdown short.
        self.ask(&from.endpoint, "CHECKPOINT").await.map(drop)
    }

    pub(super) async fn create_role(
        &self,
        at: &Endpoint,
        name: &str,
        password: &str,
    ) -> Result<(), ProviderError> {
        let there = format!(
            "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = {}",
            literal(name)
        );
        let verb = if self.ask(at, &there).await?.is_empty() {
            "CREATE"
        } else {
            "ALTER"
        };
        let sql = format!(
            "{verb} ROLE {} LOGIN PASSWORD {}",
            identifier(name),
            literal(password)
        );
        self.ask(at, &sql).await.map(drop)
    }

    pub(super) async fn create_database_of(
        &self,
        at: &Endpoint,
        name: &str,
        owner: &str,
    ) -> Result<(), ProviderError> {
        let there = format!(
            "SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}",
            literal(name)
        );
        if self.ask(at, &there).await?.is_empty() {
            let sql = format!(
                "CREATE DATABASE {} OWNER {}",
                identifier(name),
                identifier(owner)
            );
            self.ask(at, &sql).await?;
        }
        Ok(())
    }
}

/// A quoted SQL identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted SQL string, whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
