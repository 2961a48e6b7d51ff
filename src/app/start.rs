//! From a checked configuration to running parts.

use super::AppError;
use super::query::{Account, MysqlAccount};
use crate::auth::Credential;
use crate::auth::mysql::Password;
use crate::auth::scram::mock_salt;
use crate::auth::users::Users;
use crate::backend::cluster::{Cluster, Settings};
use crate::backend::gate::Gate;
use crate::backend::mysql::connect::Request;
use crate::backend::mysql::verifiers as mysql_verifiers;
use crate::backend::registry::Registry;
use crate::backend::service::{self, Service};
use crate::backend::verifiers::Verifiers;
use crate::backend::{Capacity, Endpoint, Engine};
use crate::config::{
    AuthMethod, AuthSource, ClusterConfig, Config, LocalProvider as LocalKeys, ProviderConfig,
    ServiceAccount, StaticProvider as StaticKeys,
};
use crate::net::authentication::Method;
use crate::net::login::Entry;
use crate::net::mysql;
use crate::observe::Metrics;
use crate::provider::local::DataDir;
use crate::provider::{
    LocalConfig, LocalProvider, Provider, ServerQuery, StaticEndpoint, StaticProvider,
};
use crate::scale::coordinator::{Coordinator, Rules};
use crate::transport::SocketConfig;
use crate::transport::tls::{Shown, Source};
use crate::wire::pg::startup::StartupParams;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use zeroize::Zeroizing;

/// One running cluster.
pub(super) struct Running {
    pub(super) config: ClusterConfig,
    pub(super) coordinator: Arc<Coordinator>,
}

pub(super) fn fail(what: impl std::fmt::Display) -> AppError {
    AppError(what.to_string())
}

/// Makes `state_dir`, private to this account, and takes its lock.
pub(super) fn state_dir(path: &Path) -> Result<nix::fcntl::Flock<fs::File>, AppError> {
    lock_state_dir(path)?.ok_or_else(|| {
        fail(format!(
            "state_dir {} is in use by another slackwater: give each its own",
            path.display()
        ))
    })
}

/// [`state_dir`]; `None` while another process has the lock.
pub(super) fn lock_state_dir(path: &Path) -> Result<Option<nix::fcntl::Flock<fs::File>>, AppError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| fail(format!("state_dir {} can't be made: {e}", path.display())))?;
    let lock = path.join("slackwater.lock");
    let bad = |e: std::io::Error| fail(format!("{} can't be locked: {e}", lock.display()));
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)
        .map_err(bad)?;
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(bad(errno.into())),
    }
}

/// The secret behind the salts of users that don't exist; kept, so that they don't change.
pub(super) fn mock_secret(state_dir: &Path) -> Result<[u8; 32], AppError> {
    let path = state_dir.join("mock_secret");
    if let Ok(bytes) = fs::read(&path)
        && let Ok(secret) = bytes.try_into()
    {
        return Ok(secret);
    }
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| fail("the system gives no randomness"))?;
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(&secret)
    };
    write().map_err(|e| fail(format!("{} can't be written: {e}", path.display())))?;
    Ok(secret)
}

/// What clients are shown in TLS.
pub(super) fn tls_source(config: &Config) -> Source {
    let shown = if config.tls.certificates.is_empty() {
        Shown::SelfMade {
            state_dir: config.state_dir.clone(),
            dns_names: config
                .clusters
                .iter()
                .flat_map(|c| c.hostnames.clone())
                .collect(),
        }
    } else {
        Shown::Files(config.tls.certificates.clone())
    };
    Source {
        shown,
        client_ca: config.tls.client_ca.clone(),
    }
}

/// Users of a users file, with salts that a stranger can't tell from made-up ones.
pub(super) fn users(
    users: &[(String, crate::config::Secret)],
    mock_secret: &[u8; 32],
) -> Result<Users, AppError> {
    let pairs = users.iter().map(|(name, s)| (name.as_str(), s.reveal()));
    Users::of(pairs, |name| mock_salt(mock_secret, name.as_bytes()))
        .map_err(|e| fail(format!("users_file: {e}")))
}

/// A cluster as the listener of its engine knows it.
pub(super) enum AnyEntry {
    Pg(Box<Entry>),
    Mysql(Box<mysql::serve::Entry>),
}

/// Builds one cluster and starts, or finds, its server.
pub(super) async fn cluster(
    keys: ClusterConfig,
    socket: SocketConfig,
    mock_secret: &[u8; 32],
    metrics: &Metrics,
) -> Result<(Running, AnyEntry), AppError> {
    let socket = SocketConfig {
        proxy_protocol: match &keys.provider {
            ProviderConfig::Static(fixed) => fixed.proxy_protocol,
            ProviderConfig::Local(_) => None,
        },
        ..socket
    };
    let account = keys.auth.service.clone().unwrap_or_else(|| ServiceAccount {
        user: "slackwater".to_owned(),
        database: if keys.engine.speaks_mysql() {
            String::new()
        } else {
            "postgres".to_owned()
        },
        password: None,
    });
    let name = |e: AppError| AppError(format!("cluster {}: {e}", keys.name));
    let (provider, password) = provider(&keys, &account, socket).map_err(name)?;
    let registry = Arc::new(Registry::default());
    let limit = usize::try_from(keys.sessions.max_server_connections).unwrap_or(usize::MAX);
    let gate = Gate::new(limit, Arc::clone(&registry));
    let service = Service::new(service_account(keys.engine, account, password), socket);
    let settings = Settings {
        engine: keys.engine,
        socket,
        max_outage: keys.scaling.max_outage,
        custom_settings: keys.sessions.custom_settings.clone(),
        ends_replication: keys.sessions.ends_replication,
        diagnostics_wait: keys.sessions.diagnostics_wait,
    };
    let cluster = Arc::new(Cluster::new(&keys.name, gate, registry, service, settings));
    let rules = Rules {
        max_hold: keys.scaling.max_hold,
    };
    let handles = metrics.cluster(&keys.name);
    let coordinator = Coordinator::new(Arc::clone(&cluster), provider, rules, handles);
    coordinator
        .start(keys.capacity.min)
        .await
        .map_err(|e| name(fail(e)))?;
    let entry = if keys.engine.speaks_mysql() {
        AnyEntry::Mysql(Box::new(mysql_entry(cluster, &keys)?))
    } else {
        AnyEntry::Pg(Box::new(pg_entry(cluster, &keys, mock_secret)?))
    };
    Ok((
        Running {
            config: keys,
            coordinator,
        },
        entry,
    ))
}

fn pg_entry(
    cluster: Arc<Cluster>,
    keys: &ClusterConfig,
    mock_secret: &[u8; 32],
) -> Result<Entry, AppError> {
    Ok(Entry {
        cluster,
        default: keys.default,
        hostnames: keys.hostnames.clone(),
        method: match keys.auth.method {
            AuthMethod::ScramSha256 => Method::ScramSha256,
            AuthMethod::Md5 => Method::Md5,
            AuthMethod::Password => Method::Password,
            AuthMethod::Cert => Method::Certificate,
        },
        client_certificate: keys.auth.client_certificate,
        verifiers: match &keys.auth.source {
            AuthSource::Server { query } => Verifiers::server(query.clone()),
            AuthSource::Users { users: list, .. } => {
                Verifiers::File(arc_swap::ArcSwap::from_pointee(users(list, mock_secret)?))
            }
        },
    })
}

/// Users of a users file, for MySQL and MariaDB.
pub(super) fn mysql_users(
    users: &[(String, crate::config::Secret)],
) -> Result<Users<crate::auth::mysql::Secret>, AppError> {
    let pairs = users.iter().map(|(name, s)| (name.as_str(), s.reveal()));
    Users::of_mysql(pairs).map_err(|e| fail(format!("users_file: {e}")))
}

fn mysql_entry(
    cluster: Arc<Cluster>,
    keys: &ClusterConfig,
) -> Result<mysql::serve::Entry, AppError> {
    Ok(mysql::serve::Entry {
        family: keys.engine.into(),
        cluster,
        default: keys.default,
        hostnames: keys.hostnames.clone(),
        client_certificate: keys.auth.client_certificate,
        verifiers: match &keys.auth.source {
            AuthSource::Server { .. } => mysql_verifiers::Verifiers::server(),
            AuthSource::Users { users: list, .. } => mysql_verifiers::Verifiers::File(
                arc_swap::ArcSwap::from_pointee(mysql_users(list)?),
            ),
        },
        passwords: mysql_verifiers::Passwords::default(),
        thousands: AtomicU32::new(0),
    })
}

/// Who asks servers on Slackwater's behalf.
fn service_account(
    engine: Engine,
    account: ServiceAccount,
    password: Option<Zeroizing<String>>,
) -> service::Account {
    if !engine.speaks_mysql() {
        return service::Account::Pg {
            user: account.user,
            database: account.database,
            credential: password.map(Credential::Password),
        };
    }
    let database = Some(account.database.as_bytes()).filter(|name| !name.is_empty());
    service::Account::Mysql {
        request: Request::own(account.user.as_bytes(), database),
        credential: password.as_deref().map(|p| mysql_credential(p)),
    }
}

fn mysql_credential(password: &str) -> crate::auth::mysql::Credential {
    crate::auth::mysql::Credential::Password(Password::new(password.as_bytes()))
}

/// The provider, and the password of the service account.
fn provider(
    keys: &ClusterConfig,
    account: &ServiceAccount,
    socket: SocketConfig,
) -> Result<(Provider, Option<Zeroizing<String>>), AppError> {
    let password = account.password.as_ref().map(|p| p.reveal().to_owned());
    let query = |password: Option<&Zeroizing<String>>| -> Arc<dyn ServerQuery> {
        let engine = keys.engine;
        if engine.speaks_mysql() {
            let database = Some(account.database.as_bytes()).filter(|name| !name.is_empty());
            return Arc::new(MysqlAccount {
                engine,
                request: Request::own(account.user.as_bytes(), database),
                credential: password.map(|p| mysql_credential(p)),
                socket,
            });
        }
        let pair = |name: &str, value: &str| (name.as_bytes().into(), value.as_bytes().into());
        let params = StartupParams(vec![
            pair("user", &account.user),
            pair("database", &account.database),
            pair("application_name", "slackwater"),
        ]);
        Arc::new(Account {
            params,
            credential: password.cloned().map(Credential::Password),
            socket,
        })
    };
    match &keys.provider {
        ProviderConfig::Static(fixed) => {
            let password = password.map(Zeroizing::new);
            let query = query(password.as_ref());
            let provider = StaticProvider::new(endpoints(fixed), query).map_err(fail)?;
            Ok((Provider::Static(provider), password))
        }
        ProviderConfig::Local(local) => {
            let config = local_config(keys, local, account, password);
            let data_dir = DataDir::open(&config).map_err(fail)?;
            let password = Some(Zeroizing::new(data_dir.service_password().to_owned()));
            let query = query(password.as_ref());
            let provider = LocalProvider::new(config, data_dir, query).map_err(fail)?;
            Ok((Provider::Local(Box::new(provider)), password))
        }
    }
}

fn endpoints(keys: &StaticKeys) -> Vec<StaticEndpoint> {
    let endpoint = |(capacity, address): &(Capacity, crate::transport::Address)| StaticEndpoint {
        capacity: *capacity,
        endpoint: Endpoint {
            address: address.clone(),
            tls: keys.tls,
            tls_ca: keys.ca.clone(),
        },
    };
    keys.endpoints.iter().map(endpoint).collect()
}

/// What the provider `local` is told.
pub(super) fn local_config(
    keys: &ClusterConfig,
    local: &LocalKeys,
    account: &ServiceAccount,
    service_password: Option<String>,
) -> LocalConfig {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the configuration bounds it to a small positive number"
    )]
    let cpu_per_acu = (local.cpu_per_acu * 1000.0).round() as u32;
    LocalConfig {
        engine: keys.engine,
        cluster: keys.name.clone(),
        data_dir: local.data_dir.clone(),
        binaries: local.binaries.clone(),
        switch: local.switch,
        standby: local.standby,
        memory_per_acu: local.memory_per_acu,
        cpu_per_acu,
        max_capacity: keys.capacity.max,
        max_server_connections: keys.sessions.max_server_connections,
        service_user: account.user.clone(),
        service_password,
    }
}
