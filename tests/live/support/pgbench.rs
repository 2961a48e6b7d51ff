//! pgbench as a load beside a test: run again and again until told to stop, each run without an error.

use super::postgres::{APP, Postgres, binaries};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Rows of pgbench's tables, in units of 100,000 accounts.
const SCALE: &str = "3";

/// A load that runs until it is told to stop.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

/// Fills pgbench's tables, straight on the server.
pub(crate) fn fill(server: &Postgres) {
    fill_through(server.port());
}

/// Fills pgbench's tables over whatever listens on this port of 127.0.0.1.
pub(crate) fn fill_through(port: u16) {
    let done = run(port, &["-i", "-q", "-s", SCALE]);
    done.unwrap_or_else(|e| panic!("pgbench -i: {e}"));
}

impl Load {
    /// Both built-in scripts (select-only and tpcb-like) with this query mode and number of clients.
    pub(crate) fn start(port: u16, mode: &str, clients: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let (mode, clients) = (mode.to_owned(), clients.to_string());
        let thread = std::thread::spawn(move || {
            let mut transactions = 0;
            loop {
                let arguments = [
                    "-n",
                    "-M",
                    &mode,
                    "-c",
                    &clients,
                    "-j",
                    "2",
                    "-T",
                    "4",
                    "-s",
                    SCALE,
                    "-b",
                    "select-only@3",
                    "-b",
                    "tpcb-like@1",
                ];
                transactions += check(&run(port, &arguments)?)?;
                if asked.load(Ordering::Relaxed) {
                    return Ok(transactions);
                }
            }
        });
        Self { stop, thread }
    }

    /// Whether it has ended by itself, which only an error does.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the last run's end; transactions done. Panics when one had an error.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().expect("the load's thread panicked");
        result.unwrap_or_else(|e| panic!("pgbench: {e}"))
    }
}

fn run(port: u16, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(binaries().join("pgbench"))
        .args(arguments)
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            APP.0,
            "-p",
            &port.to_string(),
            "app",
        ])
        .env("PGPASSWORD", APP.1)
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!(
            "{}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        ))
    }
}

/// Transactions of a run that had no failed one.
fn check(report: &str) -> Result<u64, String> {
    let after = |name: &str| {
        let line = report.lines().find_map(|l| l.strip_prefix(name))?;
        line.split([' ', '/'])
            .find(|w| !w.is_empty())?
            .parse::<u64>()
            .ok()
    };
    let failed = after("number of failed transactions:");
    match (after("number of transactions actually processed:"), failed) {
        // On a busy machine a whole run may be held by one event.
        (Some(count), Some(0)) => Ok(count),
        other => Err(format!("{other:?} in\n{report}")),
    }
}
