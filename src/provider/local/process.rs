//! A server process: told apart from others by its start time, started as its own process group, asked to
//! stop by signal. What it logs, and short-lived programs, too.

use super::super::ProviderError;
use super::data_dir::Account;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// How often the process is looked at while something is awaited of it.
pub(super) const POLL: Duration = Duration::from_millis(1);
/// Above this size the server's log is set aside as `server.log.1` at the next start.
const LOG_LIMIT_BYTES: u64 = 64 << 20;
/// How much of the log's end an error may quote.
const TAIL_BYTES: u64 = 2048;

/// One server process, safe against the reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    /// Start time of the process, in clock ticks since boot.
    start_ticks: u64,
}

impl Process {
    /// The living process of this number.
    pub(super) fn of(pid: i32) -> Option<Self> {
        start_ticks(pid).map(|start_ticks| Self { pid, start_ticks })
    }

    /// Starts a server and returns at once. It outlives this process and its terminal; what it says goes to
    /// the file `log`.
    pub(super) fn spawn(command: &mut Command, log: &Path) -> Result<Self, ProviderError> {
        let program = PathBuf::from(command.as_std().get_program());
        let opened = open_log(log)?;
        let again = opened
            .try_clone()
            .map_err(ProviderError::io("can't open", log))?;
        command
            .stdin(Stdio::null())
            .stdout(opened)
            .stderr(again)
            .process_group(0)
            .kill_on_drop(false);
        let mut child = command
            .spawn()
            .map_err(ProviderError::io("can't run", &program))?;
        // Not yet waited for, so the number is still its own even if it has ended.
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let born = pid.and_then(|pid| born(pid).map(|ticks| (pid, ticks)));
        // Reaps it when it ends; when this runtime ends first, init does.
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::debug!(pid, %status, "server process ended"),
                Err(error) => tracing::warn!(pid, %error, "can't wait for the server process"),
            }
        });
        let (pid, start_ticks) = born.ok_or_else(|| {
            ProviderError::Server("its process can't be seen in /proc: mount /proc".to_owned())
        })?;
        Ok(Self { pid, start_ticks })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Whether it still runs. A process that ended but was not reaped yet does not: it has let go of
    /// everything.
    pub(super) fn alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Whether its working directory is `directory`.
    pub(super) fn works_in(&self, directory: &Path) -> bool {
        let here = fs::canonicalize(directory);
        let cwd = fs::read_link(format!("/proc/{}/cwd", self.pid));
        matches!((here, cwd), (Ok(here), Ok(cwd)) if here == cwd)
    }

    /// Sends it a signal; one that has ended needs none.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), ProviderError> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(e) => Err(ProviderError::Server(format!(
                "process {} can't be sent {signal}: {e}; run slackwater as its owner",
                self.pid
            ))),
        }
    }

    /// Waits for its end; false when it still runs after `patience`.
    pub(super) async fn gone_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

/// Start time of a living process, `None` for one that ended.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, ticks) = parse_stat(&stat)?;
    (!matches!(state, 'Z' | 'X' | 'x')).then_some(ticks)
}

/// Start time of a process, whether it still runs or not.
fn born(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).map(|(_, ticks)| ticks)
}

/// State and start time; the name before them may hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Opens the log of a server, set aside first if it has grown large.
pub(super) fn open_log(path: &Path) -> Result<fs::File, ProviderError> {
    if fs::metadata(path).is_ok_and(|m| m.len() > LOG_LIMIT_BYTES) {
        let aside = path.with_extension("log.1");
        fs::rename(path, &aside).map_err(ProviderError::io("can't set aside", path))?;
    }
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(ProviderError::io("can't open", path))
}

/// Length of the log now, as the place from which [`log_tail`] reads later.
pub(super) fn log_length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}

/// What the server logged since `from`, at most its last lines, in one line.
pub(super) fn log_tail(path: &Path, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        // Shorter than it was: it was set aside in between.
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text),
        Err(e) => format!("its log {} can't be read: {e}", path.display()),
    }
}

/// What makes a line of the log tell more than others. Faults in configuration files come as LOG.
const COMPLAINTS: [&str; 11] = [
    "FATAL:",
    "PANIC:",
    "ERROR:",
    "[ERROR]",
    "HINT:",
    "DETAIL:",
    "error:",
    "invalid",
    "syntax error",
    "could not",
    "unrecognized",
];

/// The lines that tell most: complaints if there are any, else the last ones.
pub(super) fn last_lines(text: &str) -> String {
    const LINES: usize = 6;
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let complaint = |l: &&str| COMPLAINTS.iter().any(|word| l.contains(word));
    let complaints: Vec<&str> = lines.iter().copied().filter(complaint).collect();
    let chosen = if complaints.is_empty() {
        &lines
    } else {
        &complaints
    };
    chosen[chosen.len().saturating_sub(LINES)..].join(" | ")
}

/// A command that runs under the server's account, away from this process' terminal and settings.
pub(super) fn command(program: &Path, account: Option<&Account>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env_clear()
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null());
    for keep in ["PATH", "LD_LIBRARY_PATH", "TZ"] {
        if let Some(value) = std::env::var_os(keep) {
            command.env(keep, value);
        }
    }
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Runs a short-lived program of the engine; its output, or its complaint.
pub(super) async fn run(
    command: &mut Command,
    program: &'static str,
    patience: Duration,
) -> Result<String, ProviderError> {
    let failed = |output: String| ProviderError::Program { program, output };
    let output = tokio::time::timeout(patience, command.kill_on_drop(true).output())
        .await
        .map_err(|_| failed(format!("no end after {} s", patience.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let complaint = last_lines(&String::from_utf8_lossy(&output.stderr));
    Err(failed(if complaint.is_empty() {
        output.status.to_string()
    } else {
        complaint
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_hostile_process_names() {
        let tail = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 100 2";
        assert_eq!(
            parse_stat(&format!("12 (postgres) {tail}")),
            Some(('S', 987_654))
        );
        assert_eq!(
            parse_stat(&format!("12 (a) Z 1 (b) {tail}")),
            Some(('S', 987_654))
        );
        assert_eq!(parse_stat("12 (short) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn complaints_come_before_chatter() {
        let text = "LOG:  starting\nFATAL:  no\nHINT:  do\nLOG:  database system is shut down\n";
        assert_eq!(last_lines(text), "FATAL:  no | HINT:  do");
        let faults = "LOG:  a\nLOG:  invalid value for \"x\"\nFATAL:  file has errors\n";
        assert_eq!(
            last_lines(faults),
            "LOG:  invalid value for \"x\" | FATAL:  file has errors"
        );
        assert_eq!(last_lines("LOG: a\n\nLOG: b\n"), "LOG: a | LOG: b");
        assert_eq!(last_lines(""), "");
    }
}
