//! What the tests stand on: a place for one cluster, and log-ins with a driver of its own.

use super::super::super::{QueryError, Rows, ServerSession};
use super::super::*;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

/// Logs in over the Unix socket with tokio-postgres.
struct Service {
    user: String,
    password: String,
}

impl ServerQuery for Service {
    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        query(&self.user, &self.password, "postgres", endpoint, sql).boxed()
    }

    fn session<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>> {
        async move {
            let (user, password) = (&self.user, &self.password);
            let client = log_in(user, password, "postgres", endpoint).await?;
            Ok(Box::new(LoggedIn(client)) as _)
        }
        .boxed()
    }

    fn query_in<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        database: &'a str,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        query(&self.user, &self.password, database, endpoint, sql).boxed()
    }
}

struct LoggedIn(tokio_postgres::Client);

impl ServerSession for LoggedIn {
    fn query<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<Rows, QueryError>> {
        run(&self.0, sql).boxed()
    }
}

pub(in super::super) async fn query(
    user: &str,
    password: &str,
    database: &str,
    endpoint: &Endpoint,
    sql: &str,
) -> Result<Rows, QueryError> {
    let client = log_in(user, password, database, endpoint).await?;
    run(&client, sql).await
}

async fn log_in(
    user: &str,
    password: &str,
    database: &str,
    endpoint: &Endpoint,
) -> Result<tokio_postgres::Client, QueryError> {
    let crate::transport::Address::Unix(socket) = &endpoint.address else {
        panic!("unix only")
    };
    let port = socket
        .extension()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let connected = Config::new()
        .user(user)
        .password(password)
        .dbname(database)
        .host_path(socket.parent().unwrap())
        .port(port)
        .connect(NoTls)
        .await;
    let (client, connection) = connected.map_err(told)?;
    tokio::spawn(connection);
    Ok(client)
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn told(error: tokio_postgres::Error) -> QueryError {
    match error.code().map(|c| c.code().to_owned()) {
        None => QueryError::Refused(error.to_string()),
        Some(code) if code == "57P03" => QueryError::Starting,
        Some(code) if code == "53300" => QueryError::Full,
        Some(code) if code.starts_with("28") => QueryError::Auth(error.to_string()),
        Some(_) => QueryError::Other(error.as_db_error().unwrap().to_string()),
    }
}

async fn run(client: &tokio_postgres::Client, sql: &str) -> Result<Rows, QueryError> {
    let messages = client.simple_query(sql).await.map_err(told)?;
    let rows = messages.into_iter().filter_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|n| row.get(n).map(str::to_owned))
                .collect(),
        ),
        _ => None,
    });
    Ok(rows.collect())
}

/// The provider's half that is PostgreSQL's.
pub(in super::super) fn postgres(provider: &LocalProvider) -> &engine::Postgres {
    let Part::Postgres(pg) = &provider.part else {
        panic!("another engine")
    };
    pg
}

/// A place for one cluster; its server is killed at the end.
pub(in super::super) struct Place {
    pub(in super::super) directory: tempfile::TempDir,
}

impl Place {
    pub(in super::super) fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("sw")
            .tempdir_in("/tmp")
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    pub(in super::super) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(in super::super) fn pgdata(&self) -> PathBuf {
        self.data_dir().join("pgdata")
    }

    pub(in super::super) fn config(&self) -> LocalConfig {
        LocalConfig {
            data_dir: self.data_dir(),
            ..LocalConfig::for_tests()
        }
    }

    pub(in super::super) fn provider(&self) -> LocalProvider {
        Self::provider_with(self.config())
    }

    pub(in super::super) fn provider_with(config: LocalConfig) -> LocalProvider {
        let data_dir = DataDir::open(&config).unwrap();
        let service = Service {
            user: config.service_user.clone(),
            password: data_dir.service_password().to_owned(),
        };
        LocalProvider::new(config, data_dir, Arc::new(service)).unwrap()
    }

    pub(in super::super) fn server(&self) -> Option<Process> {
        postmaster::find(&self.pgdata())
            .unwrap()
            .map(|(process, _)| process)
    }

    pub(in super::super) fn pid(&self) -> i32 {
        i32::try_from(self.server().expect("a server runs").pid()).unwrap()
    }

    pub(in super::super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let homes = ["data", "data.2"].map(|home| self.data_dir().join(home));
        for server in homes.iter().filter_map(|home| mysql::find(home)) {
            let _ = server.signal(Signal::SIGCONT);
            let _ = server.signal(Signal::SIGKILL);
            let deadline = Instant::now() + Duration::from_secs(10);
            while server.alive() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        let homes = ["pgdata", "pgdata.2"].map(|home| self.data_dir().join(home));
        for home in homes.iter().filter(|home| home.exists()) {
            let Ok(Some((server, _))) = postmaster::find(home) else {
                continue;
            };
            let pid = i32::try_from(server.pid()).unwrap();
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            while server.alive() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        if let Ok(config) = serde_json::from_slice::<serde_json::Value>(
            &fs::read(self.data_dir().join("server.json")).unwrap_or_default(),
        ) && let Ok(group) = CpuGroup::create(&format!("slackwater-test-{}", config["port"]))
        {
            let _ = fs::remove_dir(group.directory());
        }
    }
}
