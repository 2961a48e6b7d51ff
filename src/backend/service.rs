//! The service account: one connection that is kept, and short ones to other databases.

use super::connect::{Connected, Login, connect};
use super::exec::{ExecError, Rows, query};
use super::gate::{Gate, Lease, Phase};
use crate::auth::Credential;
use crate::transport::SocketConfig;
use crate::wire::pg::startup::StartupParams;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the service account waits for a server.
const SERVICE_MAX: Duration = Duration::from_secs(5);

/// The service account of one cluster. No state of a client is ever applied to its connections.
#[derive(Debug)]
pub struct Service {
    user: String,
    database: String,
    credential: Option<Credential>,
    socket: SocketConfig,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    connected: Connected,
    generation: u64,
    _lease: Lease,
}

impl Service {
    /// An account that logs in when it is first needed.
    pub fn new(
        user: String,
        database: String,
        credential: Option<Credential>,
        socket: SocketConfig,
    ) -> Self {
        Self {
            user,
            database,
            credential,
            socket,
            kept: Mutex::new(None),
        }
    }

    /// Its user name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// One statement on the kept connection, which is made again when it broke.
    pub async fn query(
        &self,
        gate: &std::sync::Arc<Gate>,
        sql: &str,
        params: &[&str],
    ) -> Result<Rows, ExecError> {
        let deadline = Instant::now() + SERVICE_MAX;
        let mut kept = tokio::time::timeout_at(deadline, self.kept.lock())
            .await
            .map_err(|_| ExecError::Timeout)?;
        let view = gate.view();
        let generation = view.serving.map(|s| s.generation);
        // While sessions move one by one both generations are one server, and spare connections are rare.
        let rolling = matches!(view.phase, Phase::Rolling { .. });
        // Taken out while it is asked: a caller that stops waiting in the middle drops it, and nobody ever
        // reads the answer to somebody else's question.
        if let Some(mut one) = kept.take()
            && (Some(one.generation) == generation || rolling)
        {
            match query(&mut one.connected, sql, params, deadline).await {
                Err(ExecError::Io(_) | ExecError::Timeout) => {}
                Err(ExecError::Server(fields)) if fields.is_fatal() => {}
                done => {
                    *kept = Some(one);
                    return done;
                }
            }
        }
        let mut one = self.log_in(gate, &self.database, deadline).await?;
        let rows = query(&mut one.connected, sql, params, deadline).await;
        if !matches!(rows, Err(ExecError::Io(_) | ExecError::Timeout)) {
            *kept = Some(one);
        }
        rows
    }

    /// One statement in another database, on a connection of its own.
    pub async fn query_in(
        &self,
        gate: &std::sync::Arc<Gate>,
        database: &str,
        sql: &str,
    ) -> Result<Rows, ExecError> {
        let deadline = Instant::now() + SERVICE_MAX;
        let mut one = self.log_in(gate, database, deadline).await?;
        let rows = query(&mut one.connected, sql, &[], deadline).await;
        one.connected.end().await;
        rows
    }

    /// Lets the kept connection go, before its server stops.
    pub async fn rest(&self) {
        if let Some(kept) = self.kept.lock().await.take() {
            kept.connected.end().await;
        }
    }

    /// The start-up packet of the account.
    pub fn params(&self, database: &str) -> StartupParams {
        let pair = |name: &str, value: &str| (name.as_bytes().into(), value.as_bytes().into());
        StartupParams(vec![
            pair("user", &self.user),
            pair("database", database),
            pair("application_name", "slackwater"),
            pair("client_encoding", "UTF8"),
            pair("search_path", "pg_catalog"),
            pair("standard_conforming_strings", "on"),
        ])
    }

    /// What it logs in with.
    pub fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }

    async fn log_in(
        &self,
        gate: &std::sync::Arc<Gate>,
        database: &str,
        deadline: Instant,
    ) -> Result<Kept, ExecError> {
        let lease = loop {
            if let Some(lease) = gate.try_spare() {
                break lease;
            }
            if Instant::now() >= deadline {
                return Err(ExecError::Timeout);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let params = self.params(database);
        let login = Login {
            endpoint: &lease.serving().endpoint,
            socket: &self.socket,
            params: &params,
            credential: self.credential.as_ref(),
            deadline,
        };
        let connected = connect(&login).await?;
        Ok(Kept {
            connected,
            generation: lease.serving().generation,
            _lease: lease,
        })
    }
}
