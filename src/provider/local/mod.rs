//! Provider `local`: real servers on this host, resized by a restart on the same data directory or (PostgreSQL)
//! by a switch to a standby that was made ahead with the new capacity.
//!
//! What differs between the engines is in `engine`; MySQL's and MariaDB's own half in `mysql`, PostgreSQL's in
//! the other files that name it. Processes, directories, locks, quotas, ports and the restart itself are the same.
//!
//! Servers outlive the proxy. A running one is adopted by its pid file, start time and working directory,
//! and tells its capacity itself (`cluster_name`, or MySQL's `report_host`, which cannot change while it runs). What can be found
//! out while the old server runs is found out then (`check`, `survey`); the restart itself (`switch`) does
//! nothing but signal, wait, spawn, wait; the switch to a standby (`promote`) nothing but what proves that
//! nothing is lost. `follower` makes standbys while traffic flows.

mod cgroup;
mod check;
mod control;
mod copy;
mod data_dir;
mod engine;
mod facts;
mod fence;
mod files;
mod follower;
mod install;
mod mysql;
mod ports;
mod postgres;
mod postmaster;
mod process;
mod promote;
mod proof;
mod quota;
mod settings;
mod slot;
mod stop;
mod succession;
mod survey;
mod switch;
#[cfg(test)]
mod tests;

pub use data_dir::DataDir;
pub use engine::installed;
pub use proof::PromotionTimes;
pub use switch::SwitchTimes;

use super::{CutOver, Instance, ProviderError, ServerQuery, SwitchKind};
use crate::backend::{Capacity, Endpoint, Engine};
use cgroup::CpuGroup;
use engine::Part;
use files::Intent;
use parking_lot::Mutex;
use process::Process;
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

/// How a change of capacity is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Switch {
    /// The server is started again with other settings.
    #[default]
    Restart,
    /// A standby with other settings takes over.
    Standby,
}

/// What a switch to a standby goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyKeys {
    /// How long the clean stop of the old primary may take.
    pub stop: Duration,
    /// How long a standby may take until it is level with the primary, once its data is there.
    pub catch_up: Duration,
    /// Log that a primary keeps for a standby that is away.
    pub wal_keep_bytes: u64,
}

impl Default for StandbyKeys {
    fn default() -> Self {
        Self {
            stop: Duration::from_secs(20),
            catch_up: Duration::from_mins(5),
            wal_keep_bytes: 256 << 20,
        }
    }
}

/// Configuration of the provider `local`.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// What the server is.
    pub engine: Engine,
    /// Name of the cluster: letters, digits, `-`, `_`. Part of the name of its CPU group.
    pub cluster: String,
    /// Directory for everything that the server has on disk; made if it is not there.
    pub data_dir: PathBuf,
    /// Directory of the server's programs; found by itself when left out.
    pub binaries: Option<PathBuf>,
    /// How a change of capacity is done.
    pub switch: Switch,
    /// For [`Switch::Standby`].
    pub standby: StandbyKeys,
    /// Memory of one ACU, in bytes.
    pub memory_per_acu: u64,
    /// CPU of one ACU, in thousandths of a CPU.
    pub cpu_per_acu: u32,
    /// Top of the cluster's ladder.
    pub max_capacity: Capacity,
    /// Most server connections that the proxy opens for sessions; the server always allows 10 more.
    pub max_server_connections: u32,
    /// Name of the superuser that is made with the data directory and that Slackwater logs in as.
    pub service_user: String,
    /// Its password; when left out a random one is made and kept in `data_dir`.
    pub service_password: Option<String>,
}

/// Limits on waiting.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a fast shutdown. Never escalated.
    stop: Duration,
    /// For a start or a promotion within a cut-over.
    start: Duration,
    /// For a standby that has received everything and replays it, within a cut-over.
    replay: Duration,
    /// For a start when the proxy starts: it may have to recover from a crash.
    recovery: Duration,
}

const PATIENCE: Patience = Patience {
    stop: Duration::from_mins(1),
    start: Duration::from_mins(1),
    replay: Duration::from_secs(10),
    recovery: Duration::from_mins(5),
};

/// The server process as last seen.
#[derive(Debug, Clone)]
struct Running {
    process: Process,
    /// `started_at` of its identity, once it has answered.
    started_at: Option<String>,
}

impl Running {
    /// One that has not answered yet.
    fn new(process: Process) -> Self {
        Self {
            process,
            started_at: None,
        }
    }
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// Removes the intent after a cut-over, so that nobody waits for the disk.
    tidying: Option<JoinHandle<()>>,
    /// Begins the CPU quota some time after a start.
    throttling: Option<JoinHandle<()>>,
    /// Makes the next standby.
    following: Option<JoinHandle<()>>,
}

/// What `status` shows.
#[derive(Default)]
struct Shown {
    capacity: Option<Capacity>,
    version: Option<u32>,
    cpu: Option<(String, String)>,
    times: Option<SwitchTimes>,
    promotion: Option<PromotionTimes>,
}

/// The provider `local`.
pub struct LocalProvider {
    config: LocalConfig,
    scale: Scale,
    part: Part,
    data_dir: Arc<DataDir>,
    query: Arc<dyn ServerQuery>,
    cpu: OnceLock<Result<Arc<CpuGroup>, String>>,
    patience: Patience,
    state: tokio::sync::Mutex<State>,
    shown: Arc<Mutex<Shown>>,
}

impl LocalProvider {
    /// Finds the engine's programs. Starts nothing.
    pub fn new(
        config: LocalConfig,
        data_dir: DataDir,
        query: Arc<dyn ServerQuery>,
    ) -> Result<Self, ProviderError> {
        let host_cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let scale = Scale {
            memory_per_acu: config.memory_per_acu,
            cpu_per_acu: config.cpu_per_acu,
            host_cpus: u32::try_from(host_cpus).unwrap_or(u32::MAX),
            max_capacity: config.max_capacity,
            max_server_connections: config.max_server_connections,
            standby: config.switch == Switch::Standby,
        };
        let data_dir = Arc::new(data_dir);
        let part = Part::of(&config, &data_dir, scale, &query)?;
        Ok(Self {
            config,
            scale,
            part,
            data_dir,
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
        if !self.data_dir.is_made()? {
            tracing::info!(data_dir = %self.data_dir.path().display(), "making a data directory");
            self.make().await?;
        }
        let mut intent = self.data_dir.intent()?;
        let finished = match &self.part {
            Part::Postgres(pg) => self.finish_promotion(pg, &mut state, &mut intent).await?,
            Part::Mysql(my) => self.finish_promotion(my, &mut state, &mut intent).await?,
        };
        if let Some(instance) = finished {
            return Ok(instance);
        }
        self.see_that_the_other_is_fenced()?;
        if let Some(instance) = self.adopt(&mut state).await? {
            tracing::info!(capacity = %instance.capacity, ?intent, "adopted the running server");
            if intent.is_some() {
                self.take_back_drain(&instance).await;
                if let Err(error) = self.data_dir.remove_intent() {
                    // It serves all the same, and who asks next tries again.
                    tracing::warn!(%error, "the change of capacity that is over can't be put away");
                }
            }
            self.throttle(&mut state, instance.capacity, Duration::ZERO);
            self.see_to_standby(&mut state, instance.capacity).await;
            return Ok(instance);
        }
        self.data_dir.see_to_port(self.data_dir.primary())?;
        let capacity = intent.as_ref().map_or(wanted, |i| match i.promotion {
            Some(_) => i.to,
            None => i.from,
        });
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
        self.see_to_standby(&mut state, capacity).await;
        Ok(instance)
    }

    /// Has the standby follow, or ends one that is not wanted any more.
    async fn see_to_standby(&self, state: &mut State, capacity: Capacity) {
        match self.config.switch {
            // `start` is called again and again while the server is away.
            Switch::Standby if state.following.as_ref().is_some_and(|f| !f.is_finished()) => {}
            Switch::Standby => match &self.part {
                Part::Postgres(pg) => self.follow_soon(&pg.follower, state, capacity),
                Part::Mysql(my) => self.follow_soon(my, state, capacity),
            },
            Switch::Restart => {
                let other = self.data_dir.primary().other();
                if let Err(error) = slot::stop(&self.data_dir, other).await {
                    tracing::warn!(%error, "switch is \"restart\", and a standby still runs");
                }
            }
        }
    }

    /// Checks settings, memory and disk for `to`, sees to the standby if there is to be one, writes a
    /// checkpoint and the intent.
    pub async fn prepare(
        &self,
        from: &Instance,
        to: Capacity,
    ) -> Result<SwitchKind, ProviderError> {
        let mut state = self.state.lock().await;
        state.tidy().await;
        match &self.part {
            Part::Postgres(pg) => self.prepare_postgres(pg, from, to).await?,
            Part::Mysql(my) => self.prepare_mysql(my, from, to).await?,
        }
        self.write_intent(Intent::new(from.capacity, to)).await?;
        Ok(SwitchKind::Barrier)
    }

    /// The standby that is ready: its connections survive its promotion.
    pub fn successor(&self) -> Option<(Endpoint, String)> {
        match &self.part {
            Part::Postgres(pg) => pg.follower.slot.successor(&self.data_dir),
            Part::Mysql(my) => my.successor(),
        }
    }

    /// Stops the server and starts it with the settings of `to`, with those of `from` when that fails; or has
    /// the standby take over.
    pub async fn cut_over(&self, from: &Instance, to: Capacity) -> CutOver {
        let mut state = self.state.lock().await;
        state.tidy().await;
        match (&self.part, self.config.switch) {
            (Part::Postgres(pg), Switch::Standby) => {
                self.switch_to_standby(pg, &mut state, from, to).await
            }
            (Part::Mysql(my), Switch::Standby) if !my.restarts() => {
                self.switch_to_standby(my, &mut state, from, to).await
            }
            _ => self.switch(&mut state, from, to).await,
        }
    }

    /// Makes a role that can log in, or sets the password of the one that is there. `password` is best a
    /// verifier (`SCRAM-SHA-256$...`): statements can end up in the server's log.
    pub async fn create_user(
        &self,
        at: &Endpoint,
        name: &str,
        password: &str,
    ) -> Result<(), ProviderError> {
        match &self.part {
            Part::Postgres(_) => self.create_role(at, name, password).await,
            Part::Mysql(_) => self.create_account(at, name, password).await,
        }
    }

    /// Makes a database that belongs to `owner`, unless it is there.
    pub async fn create_database(
        &self,
        at: &Endpoint,
        name: &str,
        owner: &str,
    ) -> Result<(), ProviderError> {
        match &self.part {
            Part::Postgres(_) => self.create_database_of(at, name, owner).await,
            Part::Mysql(_) => self.create_schema(at, name, owner).await,
        }
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
        let Some(process) = engine::find(&self.data_dir, self.data_dir.primary())? else {
            return Ok(None);
        };
        let deadline = Instant::now() + self.patience.recovery;
        if !self.settle(process, deadline).await? {
            return Ok(None);
        }
        match self.ready(process, deadline).await {
            Ok(found) => {
                let capacity = settings::capacity_of(&found.cluster_name).ok_or_else(|| {
                    ProviderError::Server(format!(
                        "process {} was not started by slackwater: stop it, it is started again then",
                        process.pid()
                    ))
                })?;
                Ok(Some(self.now_running(
                    state,
                    process,
                    capacity,
                    found.identity,
                )))
            }
            Err(NotReady::Ended) => Ok(None),
            Err(NotReady::Late(why)) => Err(ProviderError::Server(why)),
        }
    }

    /// Notes who runs, at which capacity.
    fn now_running(
        &self,
        state: &mut State,
        process: Process,
        capacity: Capacity,
        identity: super::ServerIdentity,
    ) -> Instance {
        state.running = Some(Running {
            process,
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
}

impl Drop for State {
    fn drop(&mut self) {
        // It would keep the lock of the directory.
        if let Some(following) = self.following.take() {
            following.abort();
        }
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

/// Runs work on files away from the runtime's threads.
async fn blocking<T: Send + 'static>(
    data_dir: &Arc<DataDir>,
    work: impl FnOnce(&DataDir) -> Result<T, ProviderError> + Send + 'static,
) -> Result<T, ProviderError> {
    let data_dir = Arc::clone(data_dir);
    tokio::task::spawn_blocking(move || work(&data_dir))
        .await
        .map_err(|_| ProviderError::Server("slackwater is ending".to_owned()))?
}
