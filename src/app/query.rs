//! How providers ask servers: as the service account, over the real wire.

use crate::auth::{Credential, mysql};
use crate::backend::connect::{ConnectError, Connected, Login, connect as log_in};
use crate::backend::exec::{ExecError, connect_and_query, query};
use crate::backend::mysql::connect::{self, Request};
use crate::backend::mysql::exec;
use crate::backend::{Endpoint, Engine};
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
            let connected = log_in(&login).await.map_err(|e| explain(&e.into()))?;
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
            client: None,
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

/// The service account of one cluster of MySQL or MariaDB.
pub(super) struct MysqlAccount {
    pub(super) engine: Engine,
    pub(super) request: Request,
    pub(super) credential: Option<mysql::Credential>,
    pub(super) socket: SocketConfig,
}

impl MysqlAccount {
    fn login<'a>(&'a self, endpoint: &'a Endpoint, request: &'a Request) -> connect::Login<'a> {
        connect::Login {
            endpoint,
            socket: &self.socket,
            request,
            credential: self.credential.as_ref(),
            client: None,
            deadline: Instant::now() + QUERY_MAX,
        }
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        sql: &str,
    ) -> Result<Rows, QueryError> {
        let login = self.login(endpoint, request);
        match exec::connect_and_query(&login, sql).await {
            Ok(outcome) => Ok(outcome.into_text()),
            Err(error) => Err(explain_mysql(&error)),
        }
    }
}

impl ServerQuery for MysqlAccount {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.ask(endpoint, &self.request, sql).boxed()
    }

    fn session<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>> {
        async move {
            let login = self.login(endpoint, &self.request);
            let connected = connect::connect(&login).await;
            let connected = connected.map_err(|e| explain_mysql(&e.into()))?;
            Ok(Box::new(MysqlLoggedIn(connected)) as _)
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
            let mut request = self.request.clone();
            request.database = Some(database.as_bytes().to_vec().into());
            self.ask(endpoint, &request, sql).await
        }
        .boxed()
    }
}

/// One log-in.
struct MysqlLoggedIn(connect::Connected);

impl ServerSession for MysqlLoggedIn {
    fn query<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.query_within(sql, QUERY_MAX)
    }

    fn query_within<'a>(
        &'a mut self,
        sql: &'a str,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        async move {
            let deadline = Instant::now() + limit;
            match exec::query(&mut self.0, sql, deadline).await {
                Ok(outcome) => Ok(outcome.into_text()),
                Err(error) => Err(explain_mysql(&error)),
            }
        }
        .boxed()
    }
}

fn explain_mysql(error: &exec::ExecError) -> QueryError {
    let text = error.to_string();
    match error {
        exec::ExecError::Connect(connect::ConnectError::Server { error, .. })
        | exec::ExecError::Server(error) => match error.code {
            // Shutdown in progress; killed; offline.
            1053 | 1927 | 3032 => QueryError::Starting,
            1040 | 1203 => QueryError::Full,
            // Access denied, to the server, to a database; host not allowed; locked; expired.
            1044 | 1045 | 1130 | 1862 | 3118 | 4151 => QueryError::Auth(error.message.clone()),
            _ => QueryError::Other(text),
        },
        exec::ExecError::Connect(connect::ConnectError::Auth(reason)) => {
            QueryError::Auth(reason.clone())
        }
        exec::ExecError::Connect(
            connect::ConnectError::Io { .. } | connect::ConnectError::Timeout { .. },
        )
        | exec::ExecError::Io(_)
        | exec::ExecError::Timeout => QueryError::Refused(text),
        exec::ExecError::Connect(_) => QueryError::Other(text),
    }
}
