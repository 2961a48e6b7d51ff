//! How providers ask servers: as the service account, over the real wire.

use crate::auth::Credential;
use crate::backend::Endpoint;
use crate::backend::connect::{ConnectError, Connected, Login, connect};
use crate::backend::exec::{ExecError, connect_and_query, query};
use crate::provider::{QueryError, Rows, ServerQuery, ServerSession};
use crate::transport::SocketConfig;
use crate::wire::pg::startup::StartupParams;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// A CHECKPOINT may take this long.
const QUERY_MAX: Duration = Duration::from_mins(5);

/// The service account of one cluster.
pub(super) struct Account {
    pub(super) params: StartupParams,
    pub(super) credential: Option<Credential>,
    pub(super) socket: SocketConfig,
}

impl ServerQuery for Account {
    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.ask(endpoint, &self.params, sql).boxed()
    }

    fn session<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>> {
        async move {
            let login = self.login(endpoint, &self.params);
            let connected = connect(&login).await.map_err(|e| explain(&e.into()))?;
            Ok(Box::new(LoggedIn(connected)) as _)
        }
        .boxed()
    }

    fn query_in<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        database: &'a str,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        async move {
            let mut params = self.params.clone();
            for (name, value) in &mut params.0 {
                if name.as_ref() == b"database" {
                    *value = database.as_bytes().into();
                }
            }
            self.ask(endpoint, &params, sql).await
        }
        .boxed()
    }
}

/// One log-in.
struct LoggedIn(Connected);

impl ServerSession for LoggedIn {
    fn query<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<Rows, QueryError>> {
        async move {
            query(&mut self.0, sql, &[], Instant::now() + QUERY_MAX)
                .await
                .map_err(|error| explain(&error))
        }
        .boxed()
    }
}

impl Account {
    fn login<'a>(&'a self, endpoint: &'a Endpoint, params: &'a StartupParams) -> Login<'a> {
        Login {
            endpoint,
            socket: &self.socket,
            params,
            credential: self.credential.as_ref(),
            deadline: Instant::now() + QUERY_MAX,
        }
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        params: &StartupParams,
        sql: &str,
    ) -> Result<Rows, QueryError> {
        let login = self.login(endpoint, params);
        connect_and_query(&login, sql)
            .await
            .map_err(|error| explain(&error))
    }
}

fn explain(error: &ExecError) -> QueryError {
    let text = error.to_string();
    match error {
        ExecError::Connect(ConnectError::Server { fields, .. }) | ExecError::Server(fields) => {
            match fields.code.as_str() {
                "57P03" => QueryError::Starting,
                "53300" => QueryError::Full,
                code if code.starts_with("28") => QueryError::Auth(fields.message.clone()),
                _ => QueryError::Other(text),
            }
        }
        ExecError::Connect(ConnectError::Auth(reason)) => QueryError::Auth(reason.clone()),
        ExecError::Connect(ConnectError::Io { .. } | ConnectError::Timeout { .. })
        | ExecError::Io(_)
        | ExecError::Timeout => QueryError::Refused(text),
        ExecError::Connect(ConnectError::Tls { .. }) | ExecError::Mysql(_) => {
            QueryError::Other(text)
        }
    }
}
