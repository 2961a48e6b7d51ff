//! The service account: one connection that is kept, and short ones to other databases.

use super::connect::{self, Connected, Login};
use super::exec::{self, ExecError, Rows};
use super::gate::{Gate, Lease, Phase};
use super::mysql;
use super::mysql::offer::Offer;
use crate::auth::Credential;
use crate::transport::SocketConfig;
use crate::wire::pg::startup::StartupParams;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the service account waits for a server.
const SERVICE_MAX: Duration = Duration::from_secs(5);

/// Who the service account is.
#[derive(Debug)]
pub enum Account {
    /// On PostgreSQL.
    Pg {
        /// Its name.
        user: String,
        /// The database that it logs in to.
        database: String,
        /// What it logs in with.
        credential: Option<Credential>,
    },
    /// On MySQL or MariaDB.
    Mysql {
        /// What it asks for.
        request: mysql::connect::Request,
        /// What it logs in with.
        credential: Option<crate::auth::mysql::Credential>,
    },
}

/// How long [`Service::rest`] waits for who asks something: clients are held meanwhile.
const REST_MAX: Duration = Duration::from_millis(50);

/// The service account of one cluster. No state of a client is ever applied to its connections.
#[derive(Debug)]
pub struct Service {
    account: Account,
    socket: SocketConfig,
    kept: Mutex<Option<Kept>>,
    offer: parking_lot::Mutex<Option<Offer>>,
}

#[derive(Debug)]
struct Kept {
    talk: Talk,
    generation: u64,
    _lease: Lease,
}

/// A connection of the account.
#[derive(Debug)]
enum Talk {
    Pg(Connected),
    Mysql(mysql::connect::Connected),
}

/// What a statement came to.
enum Answer {
    Rows(Rows),
    Outcome(mysql::exec::Outcome),
}

impl Answer {
    fn into_rows(self) -> Rows {
        match self {
            Self::Rows(rows) => rows,
            Self::Outcome(outcome) => outcome.into_text(),
        }
    }
}

impl Talk {
    async fn query(
        &mut self,
        sql: &str,
        params: &[&str],
        deadline: Instant,
    ) -> Result<Answer, ExecError> {
        Ok(match self {
            Self::Pg(connected) => {
                Answer::Rows(exec::query(connected, sql, params, deadline).await?)
            }
            Self::Mysql(connected) => {
                Answer::Outcome(mysql::exec::query(connected, sql, deadline).await?)
            }
        })
    }

    fn move_here(&mut self) -> io::Result<()> {
        match self {
            Self::Pg(connected) => connected.stream.move_here(),
            Self::Mysql(connected) => connected.stream.move_here(),
        }
    }

    async fn end(self) {
        match self {
            Self::Pg(connected) => connected.end().await,
            Self::Mysql(connected) => connected.end().await,
        }
    }
}

impl Service {
    /// An account that logs in when it is first needed.
    pub fn new(account: Account, socket: SocketConfig) -> Self {
        Self {
            account,
            socket,
            kept: Mutex::new(None),
            offer: parking_lot::Mutex::default(),
        }
    }

    /// One statement on the kept connection, which is made again when it broke. (Parameters are PostgreSQL's only.)
    pub async fn query(
        &self,
        gate: &Arc<Gate>,
        sql: &str,
        params: &[&str],
    ) -> Result<Rows, ExecError> {
        Ok(self.ask(gate, sql, params).await?.into_rows())
    }

    /// The same on MySQL or MariaDB, the result as it came.
    pub async fn query_mysql(
        &self,
        gate: &Arc<Gate>,
        sql: &str,
    ) -> Result<mysql::exec::Outcome, mysql::exec::ExecError> {
        match self.ask(gate, sql, &[]).await {
            Ok(Answer::Outcome(outcome)) => Ok(outcome),
            Err(ExecError::Mysql(error)) => Err(error),
            Ok(Answer::Rows(_)) | Err(_) => Err(mysql::exec::ExecError::Timeout),
        }
    }

    async fn ask(&self, gate: &Arc<Gate>, sql: &str, params: &[&str]) -> Result<Answer, ExecError> {
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
        // It goes over to the asking thread: that of whoever logged in may be busy with strangers.
        if let Some(mut one) = kept.take()
            && (Some(one.generation) == generation || rolling)
            && one.talk.move_here().is_ok()
        {
            let answer = one.talk.query(sql, params, deadline).await;
            if !answer.as_ref().is_err_and(ExecError::breaks) {
                *kept = Some(one);
                return answer;
            }
        }
        let mut one = self.log_in(gate, None, deadline).await?;
        let answer = one.talk.query(sql, params, deadline).await;
        if !answer.as_ref().is_err_and(ExecError::breaks) {
            *kept = Some(one);
        }
        answer
    }

    /// One statement in another database, on a connection of its own.
    pub async fn query_in(
        &self,
        gate: &Arc<Gate>,
        database: &str,
        sql: &str,
    ) -> Result<Rows, ExecError> {
        let deadline = Instant::now() + SERVICE_MAX;
        let mut one = self.log_in(gate, Some(database), deadline).await?;
        let answer = one.talk.query(sql, &[], deadline).await;
        one.talk.end().await;
        Ok(answer?.into_rows())
    }

    /// What the server offered at the last log-in, on MySQL and MariaDB.
    pub fn offer(&self) -> Option<Offer> {
        self.offer.lock().clone()
    }

    /// Lets the kept connection go, before its server stops. Nobody waits for its end: nothing is asked on it. One on which
    /// something slow is asked ends with its server.
    pub async fn rest(&self) {
        let Ok(mut kept) = tokio::time::timeout(REST_MAX, self.kept.lock()).await else {
            return;
        };
        if let Some(kept) = kept.take() {
            let Kept {
                talk,
                _lease: lease,
                ..
            } = kept;
            tokio::spawn(async move {
                talk.end().await;
                drop(lease);
            });
        }
    }

    async fn log_in(
        &self,
        gate: &Arc<Gate>,
        database: Option<&str>,
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
        let endpoint = &lease.serving().endpoint;
        let socket = &self.socket;
        let talk = match &self.account {
            Account::Pg {
                user,
                database: own,
                credential,
            } => {
                let params = params(user, database.unwrap_or(own));
                let login = Login {
                    endpoint,
                    socket,
                    params: &params,
                    credential: credential.as_ref(),
                    client: None,
                    deadline,
                };
                Talk::Pg(connect::connect(&login).await?)
            }
            Account::Mysql {
                request,
                credential,
            } => {
                let mut request = request.clone();
                if let Some(database) = database {
                    request.database = Some(database.as_bytes().to_vec().into());
                }
                let login = mysql::connect::Login {
                    endpoint,
                    socket,
                    request: &request,
                    credential: credential.as_ref(),
                    client: None,
                    deadline,
                };
                let connected = mysql::connect::connect(&login).await;
                let connected = connected.map_err(mysql::exec::ExecError::from)?;
                *self.offer.lock() = Some(connected.offer.clone());
                Talk::Mysql(connected)
            }
        };
        Ok(Kept {
            talk,
            generation: lease.serving().generation,
            _lease: lease,
        })
    }
}

/// The start-up packet of the account on PostgreSQL.
fn params(user: &str, database: &str) -> StartupParams {
    let pair = |name: &str, value: &str| (name.as_bytes().into(), value.as_bytes().into());
    StartupParams(vec![
        pair("user", user),
        pair("database", database),
        pair("application_name", "slackwater"),
        pair("client_encoding", "UTF8"),
        pair("search_path", "pg_catalog"),
        pair("standard_conforming_strings", "on"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_lets_the_connection_go_waits_for_no_slow_question() {
        let socket = SocketConfig {
            keepalive: Duration::ZERO,
            tcp_user_timeout: Duration::ZERO,
            proxy_protocol: None,
        };
        let account = Account::Pg {
            user: "slackwater".to_owned(),
            database: "postgres".to_owned(),
            credential: None,
        };
        let service = Service::new(account, socket);
        let _asked = service.kept.lock().await;
        let rest = tokio::time::timeout(SERVICE_MAX / 10, service.rest());
        assert!(rest.await.is_ok());
    }
}
