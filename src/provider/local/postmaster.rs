//! PostgreSQL's server process: found by its pid file and working directory, signalled as it wants to be.

use super::super::ProviderError;
use super::data_dir::DataDir;
use super::files::Home;
use super::install::Install;
use super::process::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// So long processes of a server that is gone may take to end by themselves; then they are told to, as an immediate stop
/// does.
const LEFTOVER_QUIT: Duration = Duration::from_secs(1);
/// Then they are killed.
const LEFTOVER_KILL: Duration = Duration::from_secs(3);

/// What a server says of itself in its pid file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Starting,
    /// A primary that answers, or a standby that answers.
    Ready,
    Stopping,
}

/// The lines of `postmaster.pid` that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PidFile {
    /// Negative for a server in single-user mode.
    pub(super) pid: i32,
    pub(super) port: Option<u16>,
    pub(super) socket_directory: Option<String>,
    pub(super) status: Status,
}

impl PidFile {
    /// `None` without a file, or while it is being written.
    pub(super) fn read(pgdata: &Path) -> Result<Option<Self>, ProviderError> {
        let path = pgdata.join("postmaster.pid");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ProviderError::io("can't read", path)(e)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let filled = |n: usize| lines.get(n).filter(|l| !l.is_empty());
        Some(Self {
            pid: filled(0)?.parse().ok().filter(|pid| *pid != 0)?,
            port: filled(3).and_then(|l| l.parse().ok()),
            socket_directory: filled(4).map(|l| (*l).to_owned()),
            status: match filled(7).copied() {
                Some("ready") => Status::Ready,
                Some("stopping") => Status::Stopping,
                _ => Status::Starting,
            },
        })
    }
}

/// The living server of this data directory.
pub(super) fn find(pgdata: &Path) -> Result<Option<(Process, PidFile)>, ProviderError> {
    let Some(file) = PidFile::read(pgdata)? else {
        return Ok(None);
    };
    if file.pid < 0 {
        return match Process::of(-file.pid) {
            Some(_) => Err(ProviderError::Server(format!(
                "process {} has the data directory in single-user mode: end it first",
                -file.pid
            ))),
            None => Ok(None),
        };
    }
    // A process that only has the number of a server that is long gone works elsewhere.
    let process = Process::of(file.pid).filter(|p| p.works_in(pgdata));
    Ok(process.map(|process| (process, file)))
}

/// Processes of a server whose postmaster is gone. They end by themselves, unless one waits for what another had that
/// was killed.
fn leftovers(pgdata: &Path) -> Vec<Process> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_of_postgres = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let first = line.split(|b| *b == 0).next().unwrap_or_default();
        // A title, or what its postmaster was started as.
        first.starts_with(b"postgres:") || first.ends_with(b"/postgres")
    };
    pids.filter(is_of_postgres)
        .filter_map(Process::of)
        .filter(|process| process.works_in(pgdata))
        .collect()
}

/// Ends what the last server left behind, so that the next one can start: with care first, at last in any case.
/// Nothing but crash recovery follows either. `waited`: since the next one was first refused.
pub(super) fn end_leftovers(pgdata: &Path, waited: Duration) {
    let signal = match waited {
        w if w >= LEFTOVER_KILL => Signal::SIGKILL,
        w if w >= LEFTOVER_QUIT => Signal::SIGQUIT,
        _ => return,
    };
    for process in leftovers(pgdata) {
        let pid = process.pid();
        tracing::warn!(pid, %signal, "a process of a server that is gone does not end by itself");
        if let Err(error) = process.signal(signal) {
            tracing::warn!(pid, %error, "a process of a server that is gone is in the way");
        }
    }
}

/// Starts a server with these settings (`name=value`) beside those that every capacity shares.
pub(super) fn spawn(
    install: &Install,
    data_dir: &DataDir,
    home: Home,
    settings: &[String],
) -> Result<Process, ProviderError> {
    let mut command = install.command("postgres", data_dir.account());
    command.arg("-D").arg(data_dir.data_of(home)).args(
        data_dir
            .fixed_settings(home)
            .iter()
            .chain(settings)
            .flat_map(|s| ["-c", s]),
    );
    Process::spawn(&mut command, &data_dir.log_of(home))
}

impl Process {
    /// PostgreSQL's fast shutdown: sessions are ended, a checkpoint is written.
    pub(super) fn stop_fast(&self) -> Result<(), ProviderError> {
        self.signal(Signal::SIGINT)
    }

    /// Tells a standby to become a primary. Repeating it does no harm.
    pub(super) fn promote(&self, data_dir: &DataDir, home: Home) -> Result<(), ProviderError> {
        data_dir.write_for_server(&data_dir.data_of(home).join("promote"), "")?;
        self.signal(Signal::SIGUSR1)
    }

    /// Has it read its configuration files again.
    pub(super) fn reload(&self) -> Result<(), ProviderError> {
        self.signal(Signal::SIGHUP)
    }

    /// Ends the processes that send its log to standbys and backups: a stop waits for them.
    pub(super) fn end_senders(&self) {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid()));
        for child in children.unwrap_or_default().split_ascii_whitespace() {
            let title = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if title.starts_with("postgres:")
                && title.contains(" walsender ")
                && let Ok(child) = child.parse()
            {
                // One that just ended needs no signal.
                let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_is_read_in_every_stage_of_being_written() {
        let whole = "4711\n/d/pgdata\n1700000000\n20001\n/d/run\n127.0.0.1\n  123 4\nready   \n";
        let file = PidFile::parse(whole).unwrap();
        assert_eq!(
            (file.pid, file.port, file.status),
            (4711, Some(20001), Status::Ready)
        );
        assert_eq!(file.socket_directory.as_deref(), Some("/d/run"));
        let stopping = whole.replace("ready   ", "stopping");
        assert_eq!(PidFile::parse(&stopping).unwrap().status, Status::Stopping);
        let early = PidFile::parse("4711\n/d/pgdata\n1700000000\n20001\n").unwrap();
        assert_eq!(
            (early.status, early.socket_directory),
            (Status::Starting, None)
        );
        assert_eq!(PidFile::parse("-12\n").unwrap().pid, -12);
        for not_yet in ["", "\n", "0\n", "x\n"] {
            assert_eq!(PidFile::parse(not_yet), None);
        }
    }
}
