//! What differs between the engines, as far as one server on one data directory goes: how it is found,
//! started, stopped and asked who it is. Everything else about a restart is the same.

use super::super::{Identified, Instance, ProviderError, QueryError, ServerQuery, identify};
use super::data_dir::DataDir;
use super::files::Home;
use super::follower::Follower;
use super::install::Install;
use super::mysql::{self, Mysql};
use super::postmaster::{self, PidFile, Status};
use super::process::{self, Process};
use super::settings::Scale;
use super::slot::{Maker, Slot};
use super::succession::Succession;
use super::{LocalConfig, LocalProvider, Switch, blocking, fence};
use crate::backend::{Capacity, Endpoint, Engine};
use nix::sys::signal::Signal;
use std::path::Path;
use std::sync::Arc;
use tokio::time::Instant;

/// One engine's own half of the provider.
pub(super) enum Part {
    Postgres(Postgres),
    Mysql(Arc<Mysql>),
}

/// PostgreSQL's.
pub(super) struct Postgres {
    pub(super) install: Install,
    pub(super) follower: Arc<Follower>,
}

impl Part {
    /// Finds the programs of the configured engine.
    pub(super) fn of(
        config: &LocalConfig,
        data_dir: &Arc<DataDir>,
        scale: Scale,
        query: &Arc<dyn ServerQuery>,
    ) -> Result<Self, ProviderError> {
        if config.engine.speaks_mysql() {
            return Mysql::find(config, data_dir, scale, query).map(|my| Self::Mysql(Arc::new(my)));
        }
        let version = data_dir.version()?;
        let install = Install::find(config.binaries.as_deref(), version.as_deref())?;
        if config.switch == Switch::Standby {
            install.must_have(&["pg_basebackup", "pg_controldata"])?;
        }
        let follower = Arc::new(Follower::new(config, data_dir, &install, scale, query));
        Ok(Self::Postgres(Postgres { install, follower }))
    }

    /// Whether a server ended at its start because of what an earlier one that was killed left running, and
    /// what is about to notice it.
    pub(super) fn is_leftover(&self, log: &str) -> bool {
        matches!(self, Self::Postgres(_)) && log.contains("pre-existing shared memory block")
    }

    /// Where its standby is kept.
    pub(super) fn slot(&self) -> &Slot {
        match self {
            Self::Postgres(pg) => pg.follower.slot(),
            Self::Mysql(my) => my.maker().slot(),
        }
    }

    /// A version number for people.
    pub(super) fn version_text(&self, number: u32) -> String {
        match self {
            Self::Postgres(_) => format!("{}.{}", number / 10_000, number % 10_000),
            Self::Mysql(_) => mysql::version_text(number),
        }
    }

    /// Name, value and origin of what a capacity sets.
    pub(super) fn sizes(
        &self,
        scale: &Scale,
        capacity: Capacity,
    ) -> Vec<(&'static str, String, &'static str)> {
        match self {
            Self::Postgres(_) => scale.sizes(capacity).list(),
            Self::Mysql(_) => mysql::Sizes::of(scale, capacity).list(),
        }
    }
}

/// Whether the programs of an engine are installed where they are looked for; else what is missing.
pub fn installed(engine: Engine) -> Result<(), ProviderError> {
    if engine.speaks_mysql() {
        return mysql::installed(engine);
    }
    Install::find(None, None).map(drop)
}

/// The living server of a home.
pub(super) fn find(data_dir: &DataDir, home: Home) -> Result<Option<Process>, ProviderError> {
    let data = data_dir.data_of(home);
    if data_dir.engine().speaks_mysql() {
        return Ok(mysql::find(&data));
    }
    Ok(postmaster::find(&data)?.map(|(process, _)| process))
}

/// Tells a server to end cleanly: sessions are ended, a checkpoint is written.
pub(super) fn stop(data_dir: &DataDir, process: Process) -> Result<(), ProviderError> {
    match data_dir.engine() {
        Engine::Postgres => process.stop_fast(),
        Engine::Mysql | Engine::Mariadb => process.signal(Signal::SIGTERM),
    }
}

impl LocalProvider {
    /// Makes a data directory with the service account in it.
    pub(super) async fn make(&self) -> Result<(), ProviderError> {
        let user = &self.config.service_user;
        match &self.part {
            Part::Postgres(pg) => pg.install.initdb(&self.data_dir, user).await,
            Part::Mysql(my) => my.make(user).await,
        }
    }

    /// Lets the primary's data directory start as a primary.
    pub(super) async fn unfence(&self) -> Result<(), ProviderError> {
        blocking(&self.data_dir, |d| fence::unfence(d, &d.data())).await
    }

    /// A switch to a standby that did not get as far as its stop may have left a primary that takes no writes.
    pub(super) async fn take_back_drain(&self, instance: &Instance) {
        match &self.part {
            Part::Postgres(pg) => pg.undrain(self, instance).await,
            Part::Mysql(my) => my.undrain(self, instance).await,
        }
    }

    /// Starts the primary with the settings of `capacity`.
    pub(super) fn spawn(&self, capacity: Capacity) -> Result<Process, ProviderError> {
        let home = self.data_dir.primary();
        match &self.part {
            Part::Postgres(pg) => {
                let arguments = match self.config.switch {
                    Switch::Restart => self.scale.sizes(capacity).arguments(),
                    Switch::Standby => pg.follower.primary_arguments(capacity),
                };
                postmaster::spawn(&pg.install, &self.data_dir, home, &arguments)
            }
            Part::Mysql(my) => my.spawn(home, capacity, mysql::Role::Primary),
        }
    }

    /// Whether the process itself says that it is up. A file is asked: a login attempt would cost it a process or
    /// a thread each time.
    pub(super) fn is_up(&self, process: Process) -> Result<bool, ProviderError> {
        match &self.part {
            Part::Postgres(_) => {
                let file = PidFile::read(&self.data_dir.data())?;
                Ok(file.is_some_and(|f| {
                    f.pid.unsigned_abs() == process.pid() && f.status == Status::Ready
                }))
            }
            Part::Mysql(_) => mysql::is_up(&self.data_dir, self.data_dir.primary(), process),
        }
    }

    /// Whether the primary is known to be on its way down.
    pub(super) fn is_stopping(&self) -> Result<bool, ProviderError> {
        match &self.part {
            Part::Postgres(_) => {
                let file = PidFile::read(&self.data_dir.data())?;
                Ok(file.is_some_and(|f| f.status == Status::Stopping))
            }
            // It does not say so: who asks it waits for its answer or its end.
            Part::Mysql(_) => Ok(false),
        }
    }

    /// Asks the server who it is. That it answers proves that it is ready for queries.
    pub(super) async fn who(&self, endpoint: &Endpoint) -> Result<Identified, QueryError> {
        match &self.part {
            Part::Postgres(_) => identify(&*self.query, endpoint).await,
            Part::Mysql(my) => my.identify(endpoint).await,
        }
    }

    /// Waits for a server that was found until it is up; false when it ended instead.
    pub(super) async fn settle(
        &self,
        process: Process,
        deadline: Instant,
    ) -> Result<bool, ProviderError> {
        loop {
            if self.is_up(process)? {
                self.see_that_it_is_ours()?;
                return Ok(true);
            }
            if !process.alive() {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                return Err(ProviderError::Server(format!(
                    "process {} is neither up nor down after {} s: see {}",
                    process.pid(),
                    self.patience.recovery.as_secs(),
                    self.data_dir.log().display()
                )));
            }
            tokio::time::sleep(process::POLL).await;
        }
    }

    /// Another port or socket than ours: somebody else started it. (A MySQL server of others has not our pid
    /// file, so it is never up for us.)
    fn see_that_it_is_ours(&self) -> Result<(), ProviderError> {
        if self.data_dir.engine().speaks_mysql() {
            return Ok(());
        }
        let Some(file) = PidFile::read(&self.data_dir.data())? else {
            return Ok(());
        };
        let ours = self.data_dir.socket_directory();
        if file.port == Some(self.data_dir.port())
            && file.socket_directory.as_deref().map(Path::new) == Some(&*ours)
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
}
