//! What is PostgreSQL's own in the life of a local server: roles, the whole of Prepare, a switch to a standby
//! that an earlier proxy began.

use super::super::{Instance, ProviderError};
use super::engine::Postgres;
use super::files::Intent;
use super::promote::Stuck;
use super::{LocalProvider, State, Switch, UNTHROTTLED_AFTER_START, blocking, fence};
use crate::backend::{Capacity, Endpoint};
use std::sync::Arc;

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
            pg.follower
                .ready(&from.endpoint, to)
                .await
                .map_err(|error| ProviderError::Refused {
                    to,
                    why: error.to_string(),
                })?;
        }
        // It makes the one of the shutdown short.
        self.ask(&from.endpoint, "CHECKPOINT").await.map(drop)
    }

    /// Finishes a promotion that an earlier proxy decided, and answers its server; or takes it back, in `intent`
    /// too, where it is proven that it never happened.
    pub(super) async fn finish_promotion(
        &self,
        pg: &Postgres,
        state: &mut State,
        intent: &mut Option<Intent>,
    ) -> Result<Option<Instance>, ProviderError> {
        let Some(begun) = *intent else {
            return Ok(None);
        };
        if begun.pending(self.data_dir.primary()).is_none() {
            return Ok(None);
        }
        tracing::warn!(from = %begun.from, to = %begun.to, "a switch to a standby was interrupted: finishing it");
        match self.forward(pg, state, begun).await {
            Ok(instance) => Ok(Some(instance)),
            Err(Stuck::Unknown(why)) => Err(ProviderError::Server(why)),
            Err(Stuck::NeverPromoted(why)) => {
                tracing::error!(
                    why,
                    "the standby never became a primary: going back to the old server"
                );
                let undone = Intent {
                    promotion: None,
                    ..begun
                };
                self.give_up_promotion(undone).await?;
                *intent = Some(undone);
                Ok(None)
            }
        }
    }

    /// Nothing was promoted, and nothing will be. Durable when this returns; only then may the old server
    /// start. A standby that ended in the midst of its promotion may have let go of its fence.
    pub(super) async fn give_up_promotion(&self, undone: Intent) -> Result<(), ProviderError> {
        blocking(&self.data_dir, move |d| {
            let standby = d.data_of(d.primary().other());
            if standby.join("PG_VERSION").exists() {
                fence::fence(d, &standby)?;
            }
            d.write_intent(undone)
        })
        .await
    }

    /// Whatever is in the other home can only start as a standby: else one of the two was promoted, or
    /// started, by somebody else.
    pub(super) fn see_that_the_other_is_fenced(&self) -> Result<(), ProviderError> {
        let other = self.data_dir.data_of(self.data_dir.primary().other());
        if !other.join("PG_VERSION").exists() || fence::is_fenced(&other) {
            return Ok(());
        }
        Err(ProviderError::Server(format!(
            "{} has no standby.signal: somebody promoted it, and it may have what {} has not. Nothing is started; move \
             away the one that is not to serve, and see `primary` in {}",
            other.display(),
            self.data_dir.data().display(),
            self.data_dir.path().join("server.json").display()
        )))
    }

    /// Has a standby made in the background, once the sessions are back.
    pub(super) fn follow_soon(&self, pg: &Postgres, state: &mut State, capacity: Capacity) {
        if self.config.switch != Switch::Standby {
            return;
        }
        if let Some(following) = state.following.take() {
            following.abort();
        }
        let follower = Arc::clone(&pg.follower);
        state.following = Some(tokio::spawn(async move {
            tokio::time::sleep(UNTHROTTLED_AFTER_START).await;
            let primary = follower.data_dir.endpoint();
            if let Err(error) = follower.ready_if_none(&primary, capacity).await {
                tracing::warn!(%error, "no standby yet: the next change of capacity makes one");
            }
        }));
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
