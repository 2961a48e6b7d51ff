//! From a checked configuration to running parts.

use super::AppError;
use super::query::Account;
use super::query_mysql::MysqlAccount;
use crate::auth::scram::mock_salt;
use crate::auth::users::Users;
use crate::auth::{Credential, mysql};
use crate::backend::cluster::{Cluster, Settings};
use crate::backend::gate::Gate;
use crate::backend::registry::Registry;
use crate::backend::service::Service;
use crate::backend::verifiers::Verifiers;
use crate::backend::{Capacity, Endpoint};
use crate::config::{
    AuthMethod, AuthSource, ClusterConfig, Config, LocalProvider as LocalKeys, ProviderConfig,
    ServiceAccount, StaticProvider as StaticKeys,
};
use crate::net::authentication::Method;
use crate::net::login::Entry;
use crate::observe::Metrics;
use crate::provider::local::DataDir;
use crate::provider::{LocalConfig, LocalProvider, Provider, StaticEndpoint, StaticProvider};
use crate::scale::coordinator::{Coordinator, Rules};
use crate::transport::SocketConfig;
use crate::transport::tls::{Shown, Source};
use crate::wire::pg::startup::StartupParams;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Whether clients of MySQL and MariaDB are let in. Their servers can be run before that.
pub(super) const SERVES_MYSQL: bool = false;

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

/// Builds one cluster and starts, or finds, its server.
pub(super) async fn cluster(
    keys: ClusterConfig,
    socket: SocketConfig,
    mock_secret: &[u8; 32],
    metrics: &Metrics,
) -> Result<(Running, Entry), AppError> {
    let account = keys.auth.service.clone().unwrap_or_else(|| ServiceAccount {
        user: "slackwater".to_owned(),
        database: "postgres".to_owned(),
        password: None,
    });
    let name = |e: AppError| AppError(format!("cluster {}: {e}", keys.name));
    if keys.engine.speaks_mysql() && !SERVES_MYSQL {
        return Err(name(fail(
            "MySQL and MariaDB are not served by this release yet",
        )));
    }
    let (provider, credential) = provider(&keys, &account, socket).map_err(name)?;
    let registry = Arc::new(Registry::default());
    let limit = usize::try_from(keys.sessions.max_server_connections).unwrap_or(usize::MAX);
    let gate = Gate::new(limit, Arc::clone(&registry));
    let service = Service::new(account.user, account.database, credential, socket);
    let settings = Settings {
        socket,
        max_outage: keys.scaling.max_outage,
        custom_settings: keys.sessions.custom_settings.clone(),
        ends_replication: keys.sessions.ends_replication,
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
    let entry = Entry {
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
    };
    Ok((
        Running {
            config: keys,
            coordinator,
        },
        entry,
    ))
}

fn provider(
    keys: &ClusterConfig,
    account: &ServiceAccount,
    socket: SocketConfig,
) -> Result<(Provider, Option<Credential>), AppError> {
    let password = account.password.as_ref().map(|p| p.reveal().to_owned());
    match &keys.provider {
        ProviderConfig::Static(fixed) => {
            if keys.engine.speaks_mysql() {
                let query = mysql_query(account, password.as_deref(), socket);
                let provider =
                    StaticProvider::new(keys.engine, endpoints(fixed), query).map_err(fail)?;
                return Ok((Provider::Static(provider), None));
            }
            let credential = password.map(|p| Credential::Password(Zeroizing::new(p)));
            let query = query(account, credential.clone(), socket);
            let provider =
                StaticProvider::new(keys.engine, endpoints(fixed), query).map_err(fail)?;
            Ok((Provider::Static(provider), credential))
        }
        ProviderConfig::Local(local) => {
            let config = local_config(keys, local, account, password);
            let data_dir = DataDir::open(&config).map_err(fail)?;
            if keys.engine.speaks_mysql() {
                let query = mysql_query(account, Some(data_dir.service_password()), socket);
                let provider = LocalProvider::new(config, data_dir, query).map_err(fail)?;
                return Ok((Provider::Local(Box::new(provider)), None));
            }
            let secret = Zeroizing::new(data_dir.service_password().to_owned());
            let credential = Some(Credential::Password(secret));
            let query = query(account, credential.clone(), socket);
            let provider = LocalProvider::new(config, data_dir, query).map_err(fail)?;
            Ok((Provider::Local(Box::new(provider)), credential))
        }
    }
}

fn query(
    account: &ServiceAccount,
    credential: Option<Credential>,
    socket: SocketConfig,
) -> Arc<Account> {
    let pair = |name: &str, value: &str| (name.as_bytes().into(), value.as_bytes().into());
    let params = StartupParams(vec![
        pair("user", &account.user),
        pair("database", &account.database),
        pair("application_name", "slackwater"),
    ]);
    Arc::new(Account {
        params,
        credential,
        socket,
    })
}

/// The same for MySQL and MariaDB.
pub(super) fn mysql_query(
    account: &ServiceAccount,
    password: Option<&str>,
    socket: SocketConfig,
) -> Arc<MysqlAccount> {
    Arc::new(MysqlAccount {
        user: account.user.clone(),
        credential: password
            .map(|p| mysql::Credential::Password(mysql::Password::new(p.as_bytes()))),
        socket,
    })
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
