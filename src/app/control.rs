//! The running proxy: its listeners, its signals, and what the admin API asks of it.

use super::AppError;
use super::handler::Handler;
use super::start::{self, AnyEntry, Running, fail};
use crate::api::view::ReloadReport;
use crate::api::{Control, ControlError, ErrorCode};
use crate::auth::mysql::rsa::PrivateKey;
use crate::backend::cluster::Cluster;
use crate::backend::mysql::verifiers as mysql_verifiers;
use crate::backend::registry::Ask;
use crate::backend::verifiers::Verifiers;
use crate::config::{AuthSource, Config};
use crate::net::admission::{Admission, AdmissionLimits};
use crate::net::handshake::HandshakeConfig;
use crate::net::janitor::{self, Rests};
use crate::net::login::{self, Entrance};
use crate::net::mysql;
use crate::net::shared::{Limits, Shared};
use crate::net::workers::Workers;
use crate::observe::Metrics;

use crate::transport::tls::{Certificates, Ready};
use crate::transport::{Address, SocketConfig, socket};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How long a drain waits for sessions to come to rest, before it ends them.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long ended sessions have to write their last message.
const STOP_MAX: Duration = Duration::from_secs(3);

/// How long the end waits for a server that is being changed. What takes longer the next proxy finishes.
const CUT_OVER_MAX: Duration = Duration::from_mins(1);

/// The running proxy.
pub(super) struct App {
    pub(super) clusters: Vec<Running>,
    pub(super) certificates: Arc<Certificates>,
    config: Mutex<Config>,
    path: Option<PathBuf>,
    pub(super) entrance: Arc<Entrance>,
    handshake: Arc<HandshakeConfig>,
    mysql_entrance: Arc<mysql::serve::Entrance>,
    mysql_handshake: Arc<mysql::handshake::HandshakeConfig>,
    pub(super) metrics: Metrics,
    mock_secret: [u8; 32],
    stop: CancellationToken,
    pub(super) usage: Mutex<Instant>,
    /// On them clients log in.
    logins: Workers,
    /// On them they are served after that.
    workers: Arc<Workers>,
    _lock: nix::fcntl::Flock<std::fs::File>,
}

impl App {
    /// Starts everything but the listeners.
    pub(super) async fn start(
        config: Config,
        path: Option<PathBuf>,
    ) -> Result<Arc<Self>, AppError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let lock = start::state_dir(&config.state_dir)?;
        let no_threads = |e| fail(format!("can't start the threads that serve clients: {e}"));
        let workers = Workers::for_sessions(config.limits.threads).map_err(no_threads)?;
        let logins = Workers::for_logins(&workers).map_err(no_threads)?;
        let mock_secret = start::mock_secret(&config.state_dir)?;
        let certificates = Arc::new(
            Certificates::read(&start::tls_source(&config))
                .map_err(|e| fail(format!("TLS: {e}")))?,
        );
        let metrics = Metrics::new();
        let limits = Limits {
            max_clients: usize::try_from(config.limits.max_clients).unwrap_or(usize::MAX),
            login_timeout: config.limits.login_timeout,
            max_connection_age: config.limits.max_connection_age,
            max_connection_age_grace: config.limits.max_connection_age_grace,
        };
        let socket = socket_config(&config);
        let shared = Arc::new(Shared::new(metrics.clone(), limits));
        let mut clusters = Vec::new();
        let (mut entries, mut mysql_entries) = (Vec::new(), Vec::new());
        for keys in &config.clusters {
            let (running, entry) =
                start::cluster(keys.clone(), socket, &mock_secret, &metrics).await?;
            clusters.push(running);
            match entry {
                AnyEntry::Pg(entry) => entries.push(*entry),
                AnyEntry::Mysql(entry) => mysql_entries.push(*entry),
            }
        }
        let tls = |listen: &Option<crate::config::ListenConfig>| {
            listen
                .as_ref()
                .map_or(crate::transport::ListenTls::Off, |l| l.tls)
        };
        let proxied = |listen: &Option<crate::config::ListenConfig>| {
            let listen = listen.as_ref();
            listen.map(|l| l.proxy_protocol.clone()).unwrap_or_default()
        };
        let admission = Arc::new(Admission::new(
            admission_limits(&config.limits),
            metrics.logins.clone(),
        ));
        let rsa = PrivateKey::generate().ok_or_else(|| fail("no RSA key can be made"))?;
        Ok(Arc::new(Self {
            clusters,
            mysql_handshake: Arc::new(mysql::handshake::HandshakeConfig {
                tls: tls(&config.listen.mysql),
                proxied: proxied(&config.listen.mysql),
                certificates: Arc::clone(&certificates),
                mock_secret,
                rsa: Arc::new(rsa),
            }),
            mysql_entrance: Arc::new(mysql::serve::Entrance {
                shared: Arc::clone(&shared),
                entries: mysql_entries,
                admission: Arc::clone(&admission),
            }),
            handshake: Arc::new(HandshakeConfig {
                tls: tls(&config.listen.postgres),
                proxied: proxied(&config.listen.postgres),
                certificates: Arc::clone(&certificates),
                mock_secret,
            }),
            certificates,
            entrance: Arc::new(Entrance {
                shared,
                entries,
                admission,
            }),
            config: Mutex::new(config),
            path,
            metrics,
            mock_secret,
            stop: CancellationToken::new(),
            usage: Mutex::new(Instant::now()),
            logins,
            workers: Arc::new(workers),
            _lock: lock,
        }))
    }

    /// Listens, prints the greeting, serves, and returns when everything has ended.
    pub(super) async fn run(self: Arc<Self>, greeting: &str) -> Result<(), AppError> {
        let config = self.config.lock().clone();
        let socket = socket_config(&config);
        for running in &self.clusters {
            let rests = Rests {
                snapshot_after: running.config.sessions.snapshot_after,
                park_after: running.config.sessions.park_after,
            };
            let cluster = Arc::clone(&running.coordinator.cluster);
            tokio::spawn(janitor::run(cluster, rests, self.entrance.shared.limits));
            tokio::spawn(Arc::clone(&running.coordinator).watch());
        }
        for (listen, mysql) in [
            (&config.listen.postgres, false),
            (&config.listen.mysql, true),
        ] {
            for address in listen.iter().flat_map(|l| &l.addresses) {
                let listener = socket::bind(address)
                    .await
                    .map_err(|e| fail(format!("can't listen on {address}: {e}")))?;
                let clients = if mysql { "MySQL" } else { "PostgreSQL" };
                tracing::info!(%address, "listening for {clients} clients");
                tokio::spawn(Arc::clone(&self).accept(listener, socket, mysql));
            }
        }
        let admin = self.listen_admin(&config).await?;
        super::print(greeting);
        self.signals().await?;
        self.end().await;
        admin.abort();
        Ok(())
    }

    async fn listen_admin(
        self: &Arc<Self>,
        config: &Config,
    ) -> Result<tokio::task::JoinHandle<()>, AppError> {
        let Address::Tcp { host, port } = &config.admin.address else {
            return Err(fail("admin.address must be a TCP address in this release"));
        };
        let address = &config.admin.address;
        let listener = tokio::net::TcpListener::bind((host.as_str(), *port))
            .await
            .map_err(|e| fail(format!("the admin API can't listen on {address}: {e}")))?;
        tracing::info!(%address, "admin API");
        let token = config
            .admin
            .token
            .as_ref()
            .map(|t| Zeroizing::new(t.reveal().to_owned()));
        let control: Arc<dyn Control> = Arc::new(Handler(Arc::clone(self)));
        let stop = self.stop.clone();
        Ok(tokio::spawn(async move {
            if let Err(error) = crate::api::serve(listener, control, token, stop).await {
                tracing::error!(%error, "the admin API ended");
            }
        }))
    }

    async fn accept(
        self: Arc<Self>,
        listener: socket::Listener,
        config: SocketConfig,
        mysql: bool,
    ) {
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = self.stop.cancelled() => return,
            };
            match stream {
                Ok(stream) => {
                    let unusable =
                        |error| tracing::warn!(%error, "a client's socket can't be used");
                    let workers = Arc::clone(&self.workers);
                    if mysql {
                        let (entrance, handshake) = (&self.mysql_entrance, &self.mysql_handshake);
                        let newcomer = mysql::serve::at_the_door(stream, entrance, handshake);
                        let Some(stream) = newcomer else { continue };
                        let (entrance, handshake) = (Arc::clone(entrance), Arc::clone(handshake));
                        self.logins.spawn(move || async move {
                            let stream = match stream.settle(&config) {
                                Ok(stream) => stream,
                                Err(error) => return unusable(error),
                            };
                            let proven = mysql::serve::log_in(stream, entrance, handshake);
                            if let Some(proven) = proven.await {
                                workers.spawn(move || proven.serve());
                            }
                        });
                    } else {
                        let (entrance, handshake) = (&self.entrance, &self.handshake);
                        let Some(stream) = login::at_the_door(stream, entrance, handshake) else {
                            continue;
                        };
                        let (entrance, handshake) = (Arc::clone(entrance), Arc::clone(handshake));
                        self.logins.spawn(move || async move {
                            let stream = match stream.settle(&config) {
                                Ok(stream) => stream,
                                Err(error) => return unusable(error),
                            };
                            if let Some(proven) = login::log_in(stream, entrance, handshake).await {
                                workers.spawn(move || proven.serve());
                            }
                        });
                    }
                }
                Err(error) => {
                    // Out of descriptors: nobody is served faster by asking again at once.
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// SIGHUP reloads, SIGTERM drains, SIGINT ends at once; so does a drain that was asked for.
    async fn signals(self: &Arc<Self>) -> Result<(), AppError> {
        let listen = |kind| signal(kind).map_err(|e| fail(format!("signals: {e}")));
        let mut reload = listen(SignalKind::hangup())?;
        let mut drain = listen(SignalKind::terminate())?;
        let mut end = listen(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = reload.recv() => match self.reload() {
                    Ok(report) => tracing::info!(?report, "reloaded"),
                    Err(error) => tracing::error!(%error, "reload refused; nothing was changed"),
                },
                _ = drain.recv() => self.drain(),
                _ = end.recv() => return Ok(()),
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    pub(super) fn drain(self: &Arc<Self>) {
        if self.entrance.shared.draining.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!("draining");
        self.close();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let until = Instant::now() + DRAIN_MAX;
            while Instant::now() < until && this.entrance.shared.clients() > 0 {
                this.ask_all(Ask::Drain);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            this.stop.cancel();
        });
    }

    fn ask_all(&self, what: Ask) {
        for running in &self.clusters {
            running.coordinator.cluster.registry.ask_all(what);
        }
    }

    async fn end(&self) {
        self.entrance.shared.draining.store(true, Ordering::Release);
        self.close();
        self.stop.cancel();
        let until = Instant::now() + STOP_MAX;
        // Some have their place already and are no session yet.
        while Instant::now() < until && self.entrance.shared.clients() > 0 {
            self.ask_all(Ask::Stop);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let leases = || {
            self.clusters
                .iter()
                .any(|c| c.coordinator.cluster.gate.session_leases() > 0)
        };
        while Instant::now() < until && leases() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.cut_over().await;
        tracing::info!("ended; local servers go on");
    }

    /// No event begins to change a server any more.
    fn close(&self) {
        for running in &self.clusters {
            running.coordinator.close();
        }
    }

    /// Waits for servers that are being changed: without this proxy they would be stopped and not started. Whoever does not
    /// want to wait interrupts again.
    async fn cut_over(&self) {
        let under_way = || {
            self.clusters
                .iter()
                .any(|c| c.coordinator.is_cutting_over())
        };
        if !under_way() {
            return;
        }
        tracing::info!("a server is being changed: waiting for it");
        let until = Instant::now() + CUT_OVER_MAX;
        let over = async {
            while Instant::now() < until && under_way() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match signal(SignalKind::interrupt()) {
            Ok(mut again) => tokio::select! {
                () = over => {}
                _ = again.recv() => {}
            },
            Err(_) => over.await,
        }
    }

    pub(super) fn reload(&self) -> Result<ReloadReport, ControlError> {
        let refuse = |text: String| ControlError::new(ErrorCode::InvalidConfig, text);
        let mut report = ReloadReport::default();
        let mut old = self.config.lock();
        // Everything is read before anything is changed: a mistake anywhere leaves all as it was.
        let new = match &self.path {
            Some(path) => Config::load(path).map_err(|e| refuse(e.to_string()))?,
            None => old.clone(),
        };
        let tls = Ready::read(&start::tls_source(&Config {
            state_dir: old.state_dir.clone(),
            ..new.clone()
        }))
        .map_err(|e| refuse(format!("TLS: {e}")))?;
        let (mut users, mut mysql_users) = (Vec::new(), Vec::new());
        for keys in &new.clusters {
            let AuthSource::Users { users: list, .. } = &keys.auth.source else {
                continue;
            };
            let wrong = |e: AppError| refuse(e.to_string());
            let of = |cluster: &Cluster| *cluster.name == *keys.name;
            let pg = self.entrance.entries.iter().find(|e| of(&e.cluster));
            let mysql = self.mysql_entrance.entries.iter().find(|e| of(&e.cluster));
            if let Some(Verifiers::File(known)) = pg.map(|e| &e.verifiers) {
                let read = start::users(list, &self.mock_secret).map_err(wrong)?;
                users.push((known, read));
            } else if let Some(mysql_verifiers::Verifiers::File(known)) =
                mysql.map(|e| &e.verifiers)
            {
                mysql_users.push((known, start::mysql_users(list).map_err(wrong)?));
            } else {
                continue;
            }
            let key = format!("clusters.{}.auth.users_file", keys.name);
            report.changed.push(key);
        }
        for (known, read) in users {
            known.store(Arc::new(read));
        }
        for (known, read) in mysql_users {
            known.store(Arc::new(read));
        }
        self.certificates.install(tls);
        report.certificates = true;
        if self.path.is_some() {
            report.warnings.clone_from(&new.warnings);
            report.needs_restart = differences(&old, &new);
            old.tls = new.tls;
        }
        Ok(report)
    }

    pub(super) fn running(&self, name: &str) -> Result<&Running, ControlError> {
        self.clusters
            .iter()
            .find(|c| c.config.name == name)
            .ok_or_else(|| ControlError::unknown_cluster(name))
    }
}

fn socket_config(config: &Config) -> SocketConfig {
    SocketConfig {
        keepalive: config.limits.keepalive,
        tcp_user_timeout: config.limits.tcp_user_timeout,
        proxy_protocol: None,
    }
}

fn admission_limits(limits: &crate::config::Limits) -> AdmissionLimits {
    let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    AdmissionLimits {
        max_logins: number(limits.max_logins),
        max_logins_per_address: number(limits.max_logins_per_address),
        // As many as could be let in.
        max_waiting: number(limits.max_clients),
        max_failures_per_address: limits.max_login_failures_per_address,
        failure_window: limits.login_failure_window,
    }
}

/// Keys that differ and that a reload does not apply.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    let mut note = |differs: bool, key: &str| {
        if differs {
            keys.push(key.to_owned());
        }
    };
    note(old.state_dir != new.state_dir, "state_dir");
    note(old.listen != new.listen, "listen");
    note(old.admin != new.admin, "admin");
    note(old.limits != new.limits, "limits");
    let names = |c: &Config| {
        c.clusters
            .iter()
            .map(|c| c.name.clone())
            .collect::<Vec<_>>()
    };
    note(names(old) != names(new), "clusters");
    for (old, new) in old.clusters.iter().zip(&new.clusters) {
        if old.name == new.name {
            let same_but_users = crate::config::ClusterConfig {
                auth: crate::config::AuthConfig {
                    source: old.auth.source.clone(),
                    ..new.auth.clone()
                },
                ..new.clone()
            };
            note(*old != same_but_users, &format!("clusters.{}", old.name));
        }
    }
    keys
}
