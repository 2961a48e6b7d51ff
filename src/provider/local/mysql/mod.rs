//! MySQL and MariaDB on this host: the half of the provider that is theirs.
//!
//! A server is found by its working directory, which both make their data directory, and by its name. It is up when
//! it has written its pid file. Its capacity and which start it is stand in `report_host`, which cannot change while it
//! runs.

mod accounts;
mod binlog;
mod check;
mod copy;
mod durability;
mod events;
mod make;
mod processes;
mod programs;
mod promote;
mod replication;
mod settings;
mod survey;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_standby;

pub(super) use events::Event;
pub(super) use make::{MARK, Mark};
pub(super) use programs::version_text;
pub(super) use settings::Sizes;

use super::super::{Identified, ProviderError, QueryError, ServerIdentity, ServerQuery};
use super::data_dir::{DataDir, random};
use super::files::Home;
use super::process::{self, Process};
use super::settings::Scale;
use super::slot::Slot;
use super::{LocalConfig, StandbyKeys, Switch};
use crate::backend::mysql::started::started_at_sql;
use crate::backend::{Capacity, Endpoint, Engine};
pub(super) use processes::find;
use programs::Programs;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::process::Command;

/// Bytes of what tells one start from the next.
const START_BYTES: usize = 8;

/// MySQL's or MariaDB's half.
pub(super) struct Mysql {
    engine: Engine,
    programs: Programs,
    data_dir: Arc<DataDir>,
    scale: Scale,
    query: Arc<dyn ServerQuery>,
    /// For a standby; none with `switch = "restart"`.
    standby: Option<StandbyKeys>,
    user: String,
    slot: Slot,
    /// The running server was started without what a standby needs, so that a change of capacity restarts it.
    restarts: AtomicBool,
    /// `init_connect` has each log-in run something: what that does on a standby need not be what it does on a primary.
    logins_run: AtomicBool,
}

/// What a server is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    /// It takes writes from its primary only.
    Standby,
}

impl Mysql {
    pub(super) fn find(
        config: &LocalConfig,
        data_dir: &Arc<DataDir>,
        scale: Scale,
        query: &Arc<dyn ServerQuery>,
    ) -> Result<Self, ProviderError> {
        let engine = config.engine;
        if let Some(mark) = Mark::read(data_dir)?
            && mark.engine != engine.name()
        {
            return Err(ProviderError::DataDir {
                path: data_dir.path().to_owned(),
                problem: format!(
                    "it has data of engine {}, and the cluster's engine is {engine}: dump and load it into another one",
                    mark.engine
                ),
            });
        }
        let programs = Programs::find(engine, config.binaries.as_deref())?;
        let standby = config.switch == Switch::Standby;
        if standby {
            programs.must_make_standbys(engine)?;
        }
        Ok(Self {
            engine,
            programs,
            data_dir: Arc::clone(data_dir),
            scale,
            query: Arc::clone(query),
            standby: standby.then_some(config.standby),
            user: config.service_user.clone(),
            slot: Slot::default(),
            restarts: AtomicBool::new(false),
            logins_run: AtomicBool::new(false),
        })
    }

    /// Whether the next change of capacity has to be a restart, although there are standbys.
    pub(super) fn restarts(&self) -> bool {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The standby that is ready, if sessions may log in to it ahead.
    pub(super) fn successor(&self) -> Option<(Endpoint, String)> {
        if self.logins_run.load(Ordering::Relaxed) {
            return None;
        }
        self.slot.successor(&self.data_dir)
    }

    /// Starts a server.
    pub(super) fn spawn(
        &self,
        home: Home,
        capacity: Capacity,
        role: Role,
    ) -> Result<Process, ProviderError> {
        let data_dir = &*self.data_dir;
        // A file that an earlier one left behind would look like the word of this one.
        let pid_file = pid_file(data_dir, home);
        match fs::remove_file(&pid_file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ProviderError::io("can't remove", pid_file)(e));
            }
            _ => {}
        }
        let log = data_dir.log_of(home);
        let mut command = self.server(home, capacity, role)?;
        if self.engine == Engine::Mysql {
            // Nothing on the command line says "standard error", so it is told the file, and opens it itself.
            process::open_log(&log)?;
            data_dir
                .give(&log)
                .map_err(ProviderError::io("can't give away", &log))?;
            command.arg(format!("--log-error={}", log.display()));
        }
        Process::spawn(&mut command, &log)
    }

    /// The server with all its arguments.
    fn server(&self, home: Home, capacity: Capacity, role: Role) -> Result<Command, ProviderError> {
        let start = random(START_BYTES)
            .map_err(ProviderError::io("can't read", "the system's randomness"))?;
        let mut command = self.command(home)?;
        command
            .args(self.fixed(home))
            .args(Sizes::of(&self.scale, capacity).arguments(&hex(&start)));
        if self.standby.is_some() {
            command.args(self.replication_arguments(home, role));
        }
        Ok(command)
    }

    /// The server's program on a data directory, in the place where it is found.
    fn command(&self, home: Home) -> Result<Command, ProviderError> {
        let data_dir = &*self.data_dir;
        let options = match self.standby {
            None => my_cnf(data_dir),
            Some(_) => self.write_defaults()?,
        };
        let data = data_dir.data_of(home);
        let mut command = process::command(&self.programs.server, data_dir.account());
        command
            // What says which files are read is the first argument.
            .arg(format!("--defaults-file={}", options.display()))
            .arg(format!("--datadir={}", data.display()))
            .current_dir(data);
        Ok(command)
    }

    /// What every capacity shares.
    fn fixed(&self, home: Home) -> Vec<String> {
        let data_dir = &*self.data_dir;
        let path = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let mut arguments = vec![
            path("socket", data_dir.socket_of(home)),
            path("pid-file", pid_file(data_dir, home)),
            format!("--port={}", data_dir.port_of(home)),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            path("secure-file-priv", files(data_dir)),
            path("tmpdir", temporary(data_dir)),
        ];
        // server.log is the server's standard error: errors quote it.
        let own: &[&str] = match self.engine {
            Engine::Mysql => &[
                "--mysqlx=OFF",
                // By these locks, variables and statements of sessions are seen.
                "--performance-schema=ON",
            ],
            _ => &["--skip-log-error", "--plugin-load-add=metadata_lock_info"],
        };
        arguments.extend(own.iter().map(|&a| a.to_owned()));
        arguments
    }

    /// Asks a server who it is. That it answers proves that it is ready for queries.
    pub(super) async fn identify(&self, endpoint: &Endpoint) -> Result<Identified, QueryError> {
        let rows = self
            .query
            .query(endpoint, &identity_sql(self.engine))
            .await?;
        self.identity(rows.into_iter().next().unwrap_or_default())
    }

    /// Reads version, `report_host` and start.
    fn identity(&self, row: Vec<Option<String>>) -> Result<Identified, QueryError> {
        let unreadable = |what: &str| QueryError::Other(format!("{what} could not be read"));
        let mut row = row.into_iter().map(Option::unwrap_or_default);
        let mut next = || row.next().unwrap_or_default();
        let (version, report_host, started) = (next(), next(), next());
        let (number, _) = programs::parse_version(&version)
            .filter(|_| !started.is_empty())
            .ok_or_else(|| unreadable("its answer about its own identity"))?;
        let mark = Mark::read(&self.data_dir)
            .map_err(|e| QueryError::Other(e.to_string()))?
            .ok_or_else(|| unreadable("the mark of its data directory"))?;
        let cluster_name = settings::split_mark(&report_host).map(|(mark, _)| mark.to_owned());
        Ok(Identified {
            identity: ServerIdentity {
                system_identifier: mark.id,
                started_at: started,
                server_version_num: number,
                in_recovery: false,
            },
            cluster_name: cluster_name.unwrap_or_default(),
        })
    }
}

/// Whether its programs are there; else what is missing.
pub(super) fn installed(engine: Engine) -> Result<(), ProviderError> {
    Programs::find(engine, None).map(drop)
}

/// Version, `report_host`, and which start of the server it is, as sessions ask for it themselves.
fn identity_sql(engine: Engine) -> String {
    let started = started_at_sql(engine.into());
    format!("SELECT VERSION(), @@GLOBAL.report_host, ({started})")
}

/// Whether this very process has written its pid file. Both do that just before they accept connections.
pub(super) fn is_up(
    data_dir: &DataDir,
    home: Home,
    process: Process,
) -> Result<bool, ProviderError> {
    let file = pid_file(data_dir, home);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(text.trim().parse() == Ok(process.pid())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(ProviderError::io("can't read", file)(e)),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn pid_file(data_dir: &DataDir, home: Home) -> PathBuf {
    let name = format!("{}.pid", home.directory(data_dir.engine()));
    data_dir.socket_directory().join(name)
}

/// The settings of the user's own.
fn my_cnf(data_dir: &DataDir) -> PathBuf {
    data_dir.path().join("my.cnf")
}

/// For temporary tables. Not /tmp: a server that starts removes there what it takes for left behind, and with it
/// what others are using.
fn temporary(data_dir: &DataDir) -> PathBuf {
    data_dir.path().join("tmp")
}

/// The only directory that LOAD DATA INFILE and SELECT INTO OUTFILE reach.
fn files(data_dir: &DataDir) -> PathBuf {
    data_dir.path().join("files")
}
