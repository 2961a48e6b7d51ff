//! Provider `local`: real PostgreSQL servers on this host, resized by a restart on the same data directory.
//!
//! Servers outlive the proxy. A running one is adopted by its pid file, start time and working directory,
//! and tells its capacity itself (`cluster_name`, which cannot change while it runs). What can be found
//! out while the old server runs is found out then (`check`); the restart itself (`switch`) does
//! nothing but signal, wait, spawn, wait.

mod cgroup;
mod check;
mod data_dir;
mod install;
mod postmaster;
mod settings;
mod stop;
mod switch;
#[cfg(test)]
mod tests;

pub use data_dir::DataDir;
pub use switch::SwitchTimes;

use super::{CutOver, Fact, Instance, ProviderError, ServerQuery, SwitchKind};
use crate::backend::{Capacity, Endpoint};
use cgroup::CpuGroup;
use install::Install;
use parking_lot::Mutex;
use postmaster::{PidFile, Postmaster, Status};
use settings::Scale;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use switch::{LaunchError, NotReady};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a server has all CPUs after a start, before its quota begins: sessions come back, caches and
/// plans are made again.
const UNTHROTTLED_AFTER_START: Duration = Duration::from_secs(2);

/// Configuration of the provider `local`.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Name of the cluster: letters, digits, `-`, `_`. Part of the name of its CPU group.
    pub cluster: String,
    /// Directory for everything that the server has on disk; made if it is not there.
    pub data_dir: PathBuf,
    /// Directory of `postgres` and `initdb`; found by itself when left out.
    pub binaries: Option<PathBuf>,
    /// Memory of one ACU, in bytes.
    pub memory_per_acu: u64,
    /// CPU of one ACU, in thousandths of a CPU.
    pub cpu_per_acu: u32,
    /// Top of the cluster's ladder.
    pub max_capacity: Capacity,
    /// Most server connections that the proxy opens for sessions; the server always allows 10 more.
    pub max_server_connections: u32,
    /// Name of the superuser that initdb makes and Slackwater logs in as.
    pub service_user: String,
    /// Its password; when left out a random one is made and kept in `data_dir`.
    pub service_password: Option<String>,
}

/// Limits on waiting.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a fast shutdown. Never escalated.
    stop: Duration,
    /// For a start within a cut-over.
    start: Duration,
    /// For a start when the proxy starts: it may have to recover from a crash.
    recovery: Duration,
}

const PATIENCE: Patience = Patience {
    stop: Duration::from_mins(1),
    start: Duration::from_mins(1),
    recovery: Duration::from_mins(5),
};

/// The server process as last seen.
#[derive(Debug, Clone)]
struct Running {
    postmaster: Postmaster,
    /// `started_at` of its identity, once it has answered.
    started_at: Option<String>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// Removes the intent after a cut-over, so that nobody waits for the disk.
    tidying: Option<JoinHandle<()>>,
    /// Begins the CPU quota some time after a start.
    throttling: Option<JoinHandle<()>>,
}

/// What `status` shows.
#[derive(Default)]
struct Shown {
    capacity: Option<Capacity>,
    version: Option<u32>,
    cpu: Option<(String, String)>,
    times: Option<SwitchTimes>,
}

/// The provider `local`.
pub struct LocalProvider {
    config: LocalConfig,
    scale: Scale,
    data_dir: Arc<DataDir>,
    install: Install,
    query: Arc<dyn ServerQuery>,
    cpu: OnceLock<Result<Arc<CpuGroup>, String>>,
    patience: Patience,
    state: tokio::sync::Mutex<State>,
    shown: Arc<Mutex<Shown>>,
}

impl LocalProvider {
    /// Finds PostgreSQL's programs. Starts nothing.
    pub fn new(
        config: LocalConfig,
        data_dir: DataDir,
        query: Arc<dyn ServerQuery>,
    ) -> Result<Self, ProviderError> {
        let version = data_dir.version()?;
        let install = Install::find(config.binaries.as_deref(), version.as_deref())?;
        let host_cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let scale = Scale {
            memory_per_acu: config.memory_per_acu,
            cpu_per_acu: config.cpu_per_acu,
            host_cpus: u32::try_from(host_cpus).unwrap_or(u32::MAX),
            max_capacity: config.max_capacity,
            max_server_connections: config.max_server_connections,
        };
        Ok(Self {
            config,
            scale,
            data_dir: Arc::new(data_dir),
            install,
            query,
            cpu: OnceLock::new(),
            patience: PATIENCE,
            state: tokio::sync::Mutex::default(),
            shown: Arc::default(),
        })
    }

    /// The data directory, with the server's endpoint, port and service password.
    pub fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    /// How long the parts of the last completed change of capacity took.
    pub fn last_switch(&self) -> Option<SwitchTimes> {
        self.shown.lock().times
    }

    /// Adopts the running server, else starts one: with `wanted`, or with the old capacity of a change that
    /// was interrupted. Makes the data directory when there is none.
    pub async fn start(&self, wanted: Capacity) -> Result<Instance, ProviderError> {
        if wanted == Capacity(0) {
            return Err(ProviderError::Paused);
        }
        let mut state = self.state.lock().await;
        state.tidy().await;
        if self.data_dir.version()?.is_none() {
            tracing::info!(data_dir = %self.data_dir.path().display(), "making a data directory");
            self.install
                .initdb(&self.data_dir, &self.config.service_user)
                .await?;
        }
        let intent = self.data_dir.intent()?;
        if let Some(instance) = self.adopt(&mut state).await? {
            tracing::info!(capacity = %instance.capacity, ?intent, "adopted the running server");
            if intent.is_some() {
                self.data_dir.remove_intent()?;
            }
            self.throttle(&mut state, instance.capacity, Duration::ZERO);
            return Ok(instance);
        }
        self.data_dir.see_to_port()?;
        let capacity = intent.map_or(wanted, |i| i.from);
        if let Some(intent) = intent {
            tracing::warn!(from = %intent.from, to = %intent.to, "a change of capacity was interrupted: undone");
        }
        let deadline = Instant::now() + self.patience.recovery;
        let (instance, _) = self
            .launch(&mut state, capacity, deadline)
            .await
            .map_err(|error| match error {
                LaunchError::Ended(why) | LaunchError::Alive(why) => ProviderError::Server(why),
                LaunchError::NotTried(error) => error,
            })?;
        tracing::info!(%capacity, version = instance.identity.server_version_num, "started a server");
        self.data_dir.remove_intent()?;
        self.throttle(&mut state, capacity, UNTHROTTLED_AFTER_START);
        Ok(instance)
    }

    /// Checks settings, memory and disk for `to`, writes a checkpoint and the intent.
    pub async fn prepare(
        &self,
        from: &Instance,
        to: Capacity,
    ) -> Result<SwitchKind, ProviderError> {
        let mut state = self.state.lock().await;
        state.tidy().await;
        self.check(from, to).await?;
        Ok(SwitchKind::Barrier)
    }

    /// Stops the server and starts it with the settings of `to`; with those of `from` when that fails.
    pub async fn cut_over(&self, from: &Instance, to: Capacity) -> CutOver {
        let mut state = self.state.lock().await;
        state.tidy().await;
        self.switch(&mut state, from, to).await
    }

    /// What the present capacity is on this host.
    pub fn facts(&self) -> Vec<Fact> {
        let shown = self.shown.lock();
        let directory = self.data_dir.path().display();
        let mut facts = vec![
            Fact::new("data_dir", directory.to_string(), "one proxy at a time"),
            Fact::new(
                "port",
                format!("127.0.0.1:{}", self.data_dir.port()),
                "past the proxy; also the Unix socket in data_dir/run",
            ),
        ];
        let Some(capacity) = shown.capacity else {
            facts.push(Fact::new(
                "server",
                "not started",
                "sizes are known once it runs",
            ));
            return facts;
        };
        if let Some(version) = shown.version {
            let version = format!("{}.{}", version / 10_000, version % 10_000);
            facts.push(Fact::new("server_version", version, ""));
        }
        for (name, value, note) in self.scale.sizes(capacity).list() {
            facts.push(Fact::new(name, value, note));
        }
        facts.push(Fact::new(
            "memory",
            format!(
                "{} MiB",
                u64::from(capacity.0).saturating_mul(self.scale.memory_per_acu) >> 20
            ),
            "sizes the settings above; not enforced by a cgroup",
        ));
        if let Some((value, note)) = &shown.cpu {
            facts.push(Fact::new("cpu_quota", value, note));
        }
        if let Some(times) = shown.times {
            facts.push(Fact::new(
                "last_switch",
                times.to_string(),
                "stop, start, first query",
            ));
        }
        facts
    }

    /// Makes a role that can log in, or sets the password of the one that is there. `password` is best a
    /// verifier (`SCRAM-SHA-256$...`): statements can end up in the server's log.
    pub async fn create_user(
        &self,
        at: &Endpoint,
        name: &str,
        password: &str,
    ) -> Result<(), ProviderError> {
        let there = format!(
            "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = {}",
            literal(name)
        );
        let verb = if self.ask(at, &there).await?.is_empty() {
            "CREATE"
        } else {
            "ALTER"
        };
        let sql = format!(
            "{verb} ROLE {} LOGIN PASSWORD {}",
            identifier(name),
            literal(password)
        );
        self.ask(at, &sql).await.map(drop)
    }

    /// Makes a database that belongs to `owner`, unless it is there.
    pub async fn create_database(
        &self,
        at: &Endpoint,
        name: &str,
        owner: &str,
    ) -> Result<(), ProviderError> {
        let there = format!(
            "SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}",
            literal(name)
        );
        if self.ask(at, &there).await?.is_empty() {
            let sql = format!(
                "CREATE DATABASE {} OWNER {}",
                identifier(name),
                identifier(owner)
            );
            self.ask(at, &sql).await?;
        }
        Ok(())
    }

    async fn ask(&self, at: &Endpoint, sql: &str) -> Result<super::Rows, ProviderError> {
        self.query
            .query(at, sql)
            .await
            .map_err(|source| ProviderError::Unreachable {
                address: at.address.to_string(),
                source,
            })
    }

    /// Takes over the server that runs, waiting for one that is starting; `None` when none does, after
    /// waiting for one that is stopping.
    async fn adopt(&self, state: &mut State) -> Result<Option<Instance>, ProviderError> {
        let pgdata = self.data_dir.pgdata();
        let Some((postmaster, _)) = Postmaster::find(&pgdata)? else {
            return Ok(None);
        };
        let deadline = Instant::now() + self.patience.recovery;
        loop {
            let file = PidFile::read(&pgdata)?;
            match file {
                Some(file) if file.status == Status::Ready => {
                    self.see_that_it_is_ours(&file)?;
                    break;
                }
                _ if !postmaster.alive() => return Ok(None),
                _ if Instant::now() >= deadline => {
                    return Err(ProviderError::Server(format!(
                        "process {} is neither up nor down after {} s: see {}",
                        postmaster.pid(),
                        self.patience.recovery.as_secs(),
                        self.data_dir.log().display()
                    )));
                }
                _ => tokio::time::sleep(postmaster::POLL).await,
            }
        }
        match self.ready(postmaster, deadline).await {
            Ok(found) => {
                let capacity = settings::capacity_of(&found.cluster_name).ok_or_else(|| {
                    ProviderError::Server(format!(
                        "process {} was not started by slackwater: stop it with pg_ctl, it is started again then",
                        postmaster.pid()
                    ))
                })?;
                Ok(Some(self.now_running(
                    state,
                    postmaster,
                    capacity,
                    found.identity,
                )))
            }
            Err(NotReady::Ended) => Ok(None),
            Err(NotReady::Late(why)) => Err(ProviderError::Server(why)),
        }
    }

    fn see_that_it_is_ours(&self, file: &PidFile) -> Result<(), ProviderError> {
        let ours = self.data_dir.socket_directory();
        if file.port == Some(self.data_dir.port())
            && file.socket_directory.as_deref().map(std::path::Path::new) == Some(&*ours)
        {
            return Ok(());
        }
        Err(ProviderError::Server(format!(
            "process {} serves data_dir at another port or socket than {} in {}: stop it with pg_ctl, it is \
             started again then",
            file.pid,
            self.data_dir.port(),
            ours.display()
        )))
    }

    /// Notes who runs, at which capacity.
    fn now_running(
        &self,
        state: &mut State,
        postmaster: Postmaster,
        capacity: Capacity,
        identity: super::ServerIdentity,
    ) -> Instance {
        state.running = Some(Running {
            postmaster,
            started_at: Some(identity.started_at.clone()),
        });
        let mut shown = self.shown.lock();
        shown.capacity = Some(capacity);
        shown.version = Some(identity.server_version_num);
        Instance {
            capacity,
            endpoint: self.data_dir.endpoint(),
            identity,
        }
    }

    fn cpu_group(&self) -> &Result<Arc<CpuGroup>, String> {
        self.cpu.get_or_init(|| {
            let name = format!(
                "slackwater-{}-{}",
                self.config.cluster,
                self.data_dir.port()
            );
            CpuGroup::create(&name).map(Arc::new)
        })
    }

    /// Lets the server have all CPUs: it stops and starts faster so.
    fn unthrottle(&self, state: &mut State) {
        if let Some(throttling) = state.throttling.take() {
            throttling.abort();
        }
        if let Some(Ok(group)) = self.cpu.get()
            && let Err(why) = group.set(None)
        {
            tracing::warn!(why, "can't lift the CPU quota");
        }
    }

    /// Puts the running server into its CPU group and, `after` a while, under its capacity's quota.
    fn throttle(&self, state: &mut State, capacity: Capacity, after: Duration) {
        if let Some(throttling) = state.throttling.take() {
            throttling.abort();
        }
        let quota = self.scale.cpu_quota(capacity);
        let all = format!("all {} of the host", self.scale.host_cpus);
        let wanted = match quota {
            Some(quota) => format!("{}.{:03} CPU", quota / 1000, quota % 1000),
            None => all.clone(),
        };
        let group = match (self.cpu_group(), &state.running) {
            (Ok(group), Some(running)) => (Arc::clone(group), running.postmaster),
            (Err(why), _) => {
                let note = match quota {
                    Some(_) => format!("{wanted} would be its share, but {why}"),
                    None => "its share is no less".to_owned(),
                };
                self.shown.lock().cpu = Some((all, note));
                return;
            }
            (Ok(_), None) => return,
        };
        let (group, postmaster) = group;
        let shown = Arc::clone(&self.shown);
        shown.lock().cpu = Some((all.clone(), format!("just after a start; then {wanted}")));
        state.throttling = Some(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if !postmaster.alive() {
                return;
            }
            shown.lock().cpu = Some(
                match group
                    .adopt(postmaster.pid())
                    .and_then(|()| group.set(quota))
                {
                    Ok(()) => (wanted, group.describe()),
                    Err(why) => (all, format!("{wanted} would be its share, but {why}")),
                },
            );
        }));
    }
}

impl State {
    /// Waits for what the last cut-over left to do.
    async fn tidy(&mut self) {
        if let Some(tidying) = &mut self.tidying {
            // It only fails when the runtime ends.
            let _ = tidying.await;
            self.tidying = None;
        }
    }
}

/// A quoted SQL identifier.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted SQL string, whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
