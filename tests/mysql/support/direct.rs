//! Writers that go past the proxy, to each home of a local server on its own port, as an ordinary account: what a server
//! accepted, by which start of it. A server that starts as a standby takes writes once, until it ends, so two servers that
//! took writes at the same time would show as two starts of which each goes on after the first write of the other.

use super::client::{Client, Target, app, code};
use super::proxy::{Home, port_of};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::Instant;

/// One row that a server accepted.
#[derive(Debug, Clone)]
struct Accepted {
    n: u64,
    home: Home,
    /// Which start of the server that was.
    start: String,
    sent: Instant,
    answered: Instant,
}

/// Running writers, one for each home.
#[derive(Debug)]
pub(crate) struct Direct {
    stop: Arc<AtomicBool>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    writers: Vec<JoinHandle<()>>,
}

impl Direct {
    /// Writes to whatever listens at the ports in `local`; the table is made over `admin`.
    pub(crate) fn start(admin: &Target, local: &Path) -> Self {
        Client::to(admin).run("CREATE TABLE app.direct (home int, n bigint, start text)");
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let writer = |home: Home| {
            let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
            let local = local.to_owned();
            std::thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Some((mut client, start)) = log_in(&local, home) {
                        while !stop.load(Ordering::Relaxed)
                            && write(&mut client, home, &start, &mut n, &accepted)
                        {
                            std::thread::park_timeout(Duration::from_millis(5));
                        }
                    }
                    std::thread::park_timeout(Duration::from_millis(5));
                }
            })
        };
        let writers = Home::BOTH.map(writer).into();
        Self {
            stop,
            accepted,
            writers,
        }
    }

    /// Rows accepted so far.
    pub(crate) fn written(&self) -> usize {
        self.accepted.lock().len()
    }

    /// Stops, and compares what was accepted with what is there now, over `admin`.
    pub(crate) fn must_be_right(self, admin: &Target) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().expect("a writer goes on");
        }
        let accepted = self.accepted.lock().clone();
        assert!(!accepted.is_empty(), "nobody accepted anything");
        let faults = one_after_the_other(&accepted);
        assert!(faults.is_empty(), "{faults:#?}");
        let mut client = Client::to(admin);
        let mut there: HashMap<(usize, u64), String> = HashMap::new();
        for line in client.rows("SELECT home, n, start FROM app.direct").lines() {
            let mut values = line.splitn(3, '|');
            let mut next = || values.next().expect("three columns").to_owned();
            let key = (next().parse().unwrap(), next().parse().unwrap());
            let twice = there.insert(key, next());
            assert_eq!(twice, None, "{key:?} is there twice");
        }
        for row in &accepted {
            let start = there.get(&(row.home as usize, row.n));
            assert_eq!(start, Some(&row.start), "accepted: {row:?}");
        }
    }
}

/// What shows that two starts of servers took writes at the same time.
fn one_after_the_other(accepted: &[Accepted]) -> Vec<String> {
    let mut starts: BTreeMap<&str, Vec<&Accepted>> = BTreeMap::new();
    for row in accepted {
        starts.entry(&row.start).or_default().push(row);
    }
    // Of each the first row by its answer, and the last one by when it was sent.
    let mut spans: Vec<_> = starts
        .into_values()
        .filter_map(|rows| {
            let first = rows.iter().min_by_key(|r| r.answered)?;
            let last = rows.iter().max_by_key(|r| r.sent)?;
            Some((*first, *last))
        })
        .collect();
    spans.sort_by_key(|(first, _)| first.answered);
    let fault = |pair: &[(&Accepted, &Accepted)]| {
        let [(_, last), (first, _)] = pair else {
            return None;
        };
        (last.sent > first.answered)
            .then(|| format!("{last:?} was accepted after {first:?} was by another server"))
    };
    spans.windows(2).filter_map(fault).collect()
}

/// A client of the server in `home`, and which start of it that is.
fn log_in(local: &Path, home: Home) -> Option<(Client, String)> {
    let mut client = Client::connect(&app(port_of(local, home)?)).ok()?;
    let start = client.try_value("SELECT @@GLOBAL.report_host").ok()?;
    Some((client, start))
}

/// One row; whether the connection is still good.
fn write(
    client: &mut Client,
    home: Home,
    start: &str,
    n: &mut u64,
    accepted: &Mutex<Vec<Accepted>>,
) -> bool {
    *n += 1;
    let number = home as usize;
    let sql = format!("INSERT INTO app.direct VALUES ({number}, {n}, @@GLOBAL.report_host)");
    let sent = Instant::now();
    match client.try_run(&sql) {
        Ok(()) => {
            accepted.lock().push(Accepted {
                n: *n,
                home,
                start: start.to_owned(),
                sent,
                answered: Instant::now(),
            });
            true
        }
        // A standby, which may become a primary.
        Err(error) => code(&error) == READ_ONLY,
    }
}

/// ER_OPTION_PREVENTS_STATEMENT: the server takes no writes.
pub(crate) const READ_ONLY: u16 = 1290;

#[test]
fn writers_at_the_same_time_are_found() {
    let begin = Instant::now();
    let row = |start: &str, n: u64, at: u64| Accepted {
        n,
        home: Home::First,
        start: start.to_owned(),
        sent: begin + Duration::from_millis(at),
        answered: begin + Duration::from_millis(at + 2),
    };
    let [a, b, c] = [row("z", 1, 0), row("z", 2, 10), row("a", 1, 11)];
    assert_eq!(
        one_after_the_other(&[a.clone(), b.clone(), c.clone()]),
        [""; 0]
    );
    let late = row("z", 3, 20);
    assert_eq!(one_after_the_other(&[a, b, c, late]).len(), 1);
}
