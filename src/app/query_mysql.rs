//! How providers ask servers of MySQL and MariaDB: as the service account, over the real wire.

use crate::auth::mysql::Credential;
use crate::backend::Endpoint;
use crate::backend::mysql::connect::{ConnectError, Connected, Login, Request, close, connect};
use crate::backend::mysql::exec::{ExecError, connect_and_query, query};
use crate::provider::{QueryError, Rows, ServerQuery, ServerSession};
use crate::transport::SocketConfig;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// A question about all tables may take this long.
const QUERY_MAX: Duration = Duration::from_mins(5);

/// The service account of one cluster.
pub(super) struct MysqlAccount {
    pub(super) user: String,
    pub(super) credential: Option<Credential>,
    pub(super) socket: SocketConfig,
}

impl MysqlAccount {
    async fn ask(
        &self,
        endpoint: &Endpoint,
        database: Option<&str>,
        sql: &str,
    ) -> Result<Rows, QueryError> {
        let request = Request::own(self.user.as_bytes(), database.map(str::as_bytes));
        let login = self.login(endpoint, &request);
        let outcome = connect_and_query(&login, sql)
            .await
            .map_err(|error| explain(&error))?;
        Ok(as_text(outcome.rows))
    }

    fn login<'a>(&'a self, endpoint: &'a Endpoint, request: &'a Request) -> Login<'a> {
        Login {
            endpoint,
            socket: &self.socket,
            request,
            credential: self.credential.as_ref(),
            deadline: Instant::now() + QUERY_MAX,
        }
    }
}

impl ServerQuery for MysqlAccount {
    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.ask(endpoint, None, sql).boxed()
    }

    fn session<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>> {
        async move {
            let request = Request::own(self.user.as_bytes(), None);
            let connected = connect(&self.login(endpoint, &request))
                .await
                .map_err(|e| explain(&e.into()))?;
            Ok(Box::new(LoggedIn(Some(connected))) as _)
        }
        .boxed()
    }

    fn query_in<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        database: &'a str,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.ask(endpoint, Some(database), sql).boxed()
    }
}

/// One log-in; there until it is dropped.
struct LoggedIn(Option<Connected>);

impl ServerSession for LoggedIn {
    fn query<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<Rows, QueryError>> {
        async move {
            let Some(connected) = &mut self.0 else {
                return Err(QueryError::Refused("the log-in has ended".to_owned()));
            };
            let outcome = query(connected, sql, Instant::now() + QUERY_MAX)
                .await
                .map_err(|error| explain(&error))?;
            Ok(as_text(outcome.rows))
        }
        .boxed()
    }
}

impl Drop for LoggedIn {
    fn drop(&mut self) {
        // Without a good-bye the server would count and log it as a client that broke off.
        if let (Some(connected), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(close(connected.stream));
        }
    }
}

fn as_text(rows: crate::backend::mysql::exec::Rows) -> Rows {
    let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
    rows.into_iter()
        .map(|row| row.into_iter().map(|v| v.map(text)).collect())
        .collect()
}

fn explain(error: &ExecError) -> QueryError {
    let text = error.to_string();
    match error {
        ExecError::Connect(ConnectError::Server { error, .. }) | ExecError::Server(error) => {
            match error.code {
                // Too many connections; of this account.
                1040 | 1203 => QueryError::Full,
                // Shutting down.
                1053 => QueryError::Starting,
                // Wrong password or no such account, by which way ever; locked; expired.
                1045 | 1698 | 3118 | 4151 | 1820 | 1862 => QueryError::Auth(text),
                _ => QueryError::Other(text),
            }
        }
        ExecError::Connect(ConnectError::Auth(reason)) => QueryError::Auth(reason.clone()),
        ExecError::Connect(ConnectError::Io { .. } | ConnectError::Timeout { .. })
        | ExecError::Io(_)
        | ExecError::Timeout => QueryError::Refused(text),
        ExecError::Connect(ConnectError::Tls { .. } | ConnectError::Capabilities { .. }) => {
            QueryError::Other(text)
        }
    }
}
