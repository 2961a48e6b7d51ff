//! A MariaDB or MySQL server in a temporary directory, for these tests.

use crate::mysql::{Mysql, Version};
use slackwater::auth::mysql::Credential;
use slackwater::backend::Endpoint;
use slackwater::backend::mysql::connect::{ConnectError, Connected, Login, Request, connect};
use slackwater::backend::mysql::exec::{self, Outcome};
use slackwater::transport::{Address, ServerTls, SocketConfig};
use std::time::Duration;
use tokio::time::Instant;

/// A running server; stopped when dropped.
pub(crate) struct Server(Mysql);

impl Server {
    /// `None`, and a line that says so, where its programs can't be had.
    pub(crate) fn start(version: Version, settings: &[&str]) -> Option<Self> {
        Mysql::start(version, settings).map(Self)
    }

    pub(crate) fn socket(&self) -> Endpoint {
        Endpoint {
            address: Address::Unix(self.0.socket()),
            tls: ServerTls::Disable,
            tls_ca: None,
        }
    }

    pub(crate) fn tcp(&self, tls: ServerTls) -> Endpoint {
        Endpoint {
            address: Address::Tcp {
                host: "127.0.0.1".to_owned(),
                port: self.0.port(),
            },
            tls,
            tls_ca: None,
        }
    }

    /// Root over the socket, once the server answers.
    pub(crate) async fn root(&self) -> Connected {
        let until = Instant::now() + Duration::from_mins(1);
        loop {
            let password = Credential::Password(slackwater::auth::mysql::Password::new(b""));
            match log_in(
                &self.socket(),
                &Request::own(b"root", None),
                Some(&password),
            )
            .await
            {
                Ok(connected) => return connected,
                Err(error) if error.may_pass() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}: {}", self.0.log()),
            }
        }
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) const SOCKET: SocketConfig = SocketConfig {
    keepalive: Duration::ZERO,
    tcp_user_timeout: Duration::ZERO,
    proxy_protocol: None,
};

pub(crate) async fn log_in(
    endpoint: &Endpoint,
    request: &Request,
    credential: Option<&Credential>,
) -> Result<Connected, ConnectError> {
    log_in_with(&SOCKET, endpoint, request, credential).await
}

pub(crate) async fn log_in_with(
    socket: &SocketConfig,
    endpoint: &Endpoint,
    request: &Request,
    credential: Option<&Credential>,
) -> Result<Connected, ConnectError> {
    let login = Login {
        endpoint,
        socket,
        request,
        credential,
        client: None,
        deadline: soon(),
    };
    connect(&login).await
}

pub(crate) async fn run(connected: &mut Connected, sql: &str) -> Outcome {
    let outcome = exec::query(connected, sql, soon()).await;
    outcome.unwrap_or_else(|error| panic!("{sql}: {error}"))
}
