//! Clients that write numbered rows and remember what they were told of each; afterwards the table must agree.

use super::client::{Client, Target};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::Instant;

/// Answers that took longer are remembered.
const SLOW: Duration = Duration::from_millis(2);

/// What a client was told of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Done,
    /// It failed, and can't be there.
    Failed,
    /// Nobody said what became of it.
    Unknown,
}

/// Writers at work.
pub(crate) struct Ledger {
    stop: Arc<AtomicBool>,
    written: Vec<Arc<AtomicU64>>,
    kills: Arc<AtomicU32>,
    threads: Vec<JoinHandle<Book>>,
}

/// What a writer read as an error.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) client: usize,
    /// How often [`Ledger::next_kill`] had been called.
    pub(crate) kill: u32,
    /// It was about to log in.
    pub(crate) at_log_in: bool,
    #[allow(dead_code, reason = "shown when a test fails")]
    text: String,
}

/// What one writer was told, the errors that it read, and how long it waited for slow answers.
type Book = (Vec<Told>, Vec<Problem>, Vec<(Instant, Duration)>);

/// What they were told.
pub(crate) struct Entries {
    clients: Vec<Vec<Told>>,
    /// Errors that they read.
    pub(crate) errors: Vec<Problem>,
    /// When slow answers were asked for, and how long they took.
    slow: Vec<(Instant, Duration)>,
}

impl Ledger {
    /// Starts this many writers; the table is made new by `admin`.
    pub(crate) fn start(admin: &Target, app: &Target, writers: usize) -> Self {
        Self::paced(admin, app, writers, Duration::ZERO)
    }

    /// The same with a pause after each row: a standby on a busy machine falls behind those who write without one.
    pub(crate) fn paced(admin: &Target, app: &Target, writers: usize, pause: Duration) -> Self {
        let mut admin = Client::to(admin);
        admin.run("DROP TABLE IF EXISTS app.ledger");
        admin.run("CREATE TABLE app.ledger (client int, n bigint) ENGINE=InnoDB");
        let stop = Arc::new(AtomicBool::new(false));
        let kills = Arc::new(AtomicU32::new(0));
        let written: Vec<Arc<AtomicU64>> = (0..writers).map(|_| Arc::default()).collect();
        let threads = written.iter().enumerate().map(|(client, written)| {
            let (app, stop, written) = (app.clone(), Arc::clone(&stop), Arc::clone(written));
            let kills = Arc::clone(&kills);
            std::thread::spawn(move || write(&app, client, pause, &stop, (&written, &kills)))
        });
        Self {
            threads: threads.collect(),
            stop,
            written,
            kills,
        }
    }

    /// Rows that were acknowledged so far.
    pub(crate) fn written(&self) -> u64 {
        self.written_by_each().iter().sum()
    }

    /// The same, of each writer.
    pub(crate) fn written_by_each(&self) -> Vec<u64> {
        let each = self.written.iter();
        each.map(|rows| rows.load(Ordering::Relaxed)).collect()
    }

    /// From now on errors are those of the next kill.
    pub(crate) fn next_kill(&self) {
        self.kills.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends the writers.
    pub(crate) fn stop(self) -> Entries {
        self.stop.store(true, Ordering::Relaxed);
        let mut entries = Entries {
            clients: Vec::new(),
            errors: Vec::new(),
            slow: Vec::new(),
        };
        for thread in self.threads {
            let (told, errors, slow) = thread.join().expect("a writer goes on");
            entries.clients.push(told);
            entries.errors.extend(errors);
            entries.slow.extend(slow);
        }
        entries
    }
}

fn write(
    app: &Target,
    client: usize,
    pause: Duration,
    stop: &AtomicBool,
    (written, kills): (&AtomicU64, &AtomicU32),
) -> Book {
    let problem = |error: &mysql::Error, what: &str, at_log_in| Problem {
        client,
        kill: kills.load(Ordering::SeqCst),
        at_log_in,
        text: format!("{what}: {error}"),
    };
    let (mut told, mut errors, mut slow) = (Vec::new(), Vec::new(), Vec::new());
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(connected) = &mut connection else {
            match Client::connect(app) {
                Ok(client) => connection = Some(client),
                Err(error) => {
                    errors.push(problem(&error, "log-in", true));
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
            continue;
        };
        let n = told.len();
        // Every third row in a transaction of its own.
        let insert = format!("INSERT INTO ledger VALUES ({client}, {n})");
        let mut run = |sql: &str| {
            let at = Instant::now();
            let outcome = connected.try_run(sql);
            if at.elapsed() > SLOW {
                slow.push((at, at.elapsed()));
            }
            outcome
        };
        let outcome = if n % 3 == 0 {
            match run("BEGIN").and_then(|()| run(&insert)) {
                // Without its COMMIT it can't be there.
                Err(error) => Err((Told::Failed, error)),
                Ok(()) => run("COMMIT").map_err(|e| (Told::Unknown, e)),
            }
        } else {
            run(&insert).map_err(|e| (Told::Unknown, e))
        };
        match outcome {
            Ok(()) => {
                told.push(Told::Done);
                written.fetch_add(1, Ordering::Relaxed);
                if !pause.is_zero() {
                    std::thread::park_timeout(pause);
                }
            }
            Err((outcome, error)) => {
                told.push(outcome);
                errors.push(problem(&error, &n.to_string(), false));
                connection = None;
            }
        }
    }
    (told, errors, slow)
}

impl Entries {
    /// Everything that was acknowledged is there once, nothing else is there that was told to have failed.
    pub(crate) fn must_be_right(&self, admin: &Target) {
        let faults = self.faults(admin);
        assert!(faults.is_empty(), "{faults:?}");
    }

    /// The longest answer to a statement that was under way between `from` and `to`.
    pub(crate) fn longest(&self, from: Instant, to: Instant) -> Duration {
        let during = self.slow.iter();
        let during = during.filter(|(at, took)| *at <= to && *at + *took >= from);
        during.map(|(_, took)| *took).max().unwrap_or_default()
    }

    pub(crate) fn faults(&self, admin: &Target) -> Vec<String> {
        let mut admin = Client::to(admin);
        let mut found: HashMap<(usize, usize), usize> = HashMap::new();
        for line in admin.rows("SELECT client, n FROM app.ledger").lines() {
            let (client, n) = line.split_once('|').expect("two columns");
            *found
                .entry((client.parse().unwrap(), n.parse().unwrap()))
                .or_default() += 1;
        }
        let mut faults = Vec::new();
        for (client, told) in self.clients.iter().enumerate() {
            for (n, told) in told.iter().enumerate() {
                let times = found.remove(&(client, n)).unwrap_or_default();
                let right = match told {
                    Told::Done => times == 1,
                    Told::Failed => times == 0,
                    Told::Unknown => times <= 1,
                };
                if !right {
                    faults.push(format!(
                        "client {client}: {n} was {told:?} and is there {times} times"
                    ));
                }
            }
        }
        faults.extend(
            found
                .keys()
                .map(|k| format!("{k:?} is there and was never written")),
        );
        faults
    }
}
