//! Writers that go past the proxy, to each home of a local server on its own port: what a server accepted,
//! on which timeline. Two writers at the same time would show as one timeline that goes on after the first write
//! of the next one.

use super::postgres::ADMIN;
use super::wire::{Client, Target};
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
    home: usize,
    timeline: String,
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
    /// Writes to whatever listens at the ports in `data_dir`; the table is made over `admin`.
    pub(crate) fn start(admin: &Target, data_dir: &Path) -> Self {
        let mut client = Client::connect(admin).expect("the superuser may log in");
        client.run("create table direct (home int, n bigint)");
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let writer = |home: usize| {
            let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
            let file = data_dir.join("server.json");
            std::thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Some(mut client) = log_in(&file, home) {
                        while !stop.load(Ordering::Relaxed)
                            && write(&mut client, home, &mut n, &accepted)
                        {}
                    }
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            })
        };
        let writers = vec![writer(0), writer(1)];
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
            writer.join().expect("a writer panicked");
        }
        let accepted = self.accepted.lock().clone();
        let mut timelines: BTreeMap<&str, Vec<&Accepted>> = BTreeMap::new();
        for row in &accepted {
            timelines.entry(&row.timeline).or_default().push(row);
        }
        let mut before: Option<&Accepted> = None;
        for (timeline, rows) in &timelines {
            let home = rows[0].home;
            assert!(
                rows.iter().all(|r| r.home == home),
                "timeline {timeline} was written to in both homes"
            );
            if let Some(last) = before {
                let first = rows.iter().map(|r| r.answered).min().expect("not empty");
                assert!(
                    last.sent <= first,
                    "row {} of home {} was accepted on timeline {} after the first one on {timeline}",
                    last.n,
                    last.home,
                    last.timeline
                );
            }
            before = rows.iter().max_by_key(|r| r.sent).copied();
        }
        let mut client = Client::connect(admin).expect("the superuser may log in");
        let mut there: HashMap<(usize, u64), u64> = HashMap::new();
        let rows = client.query("select home, n, count(*) from direct group by 1, 2");
        for row in rows.unwrap_or_else(|e| panic!("{e}")) {
            let value = |at: usize| row[at].as_deref().unwrap().parse::<u64>().unwrap();
            there.insert((value(0) as usize, value(1)), value(2));
        }
        for row in &accepted {
            assert_eq!(
                there.get(&(row.home, row.n)),
                Some(&1),
                "row {} that home {} accepted on timeline {}",
                row.n,
                row.home,
                row.timeline
            );
        }
        assert!(!accepted.is_empty(), "nobody accepted anything");
    }
}

fn log_in(file: &Path, home: usize) -> Option<Client> {
    let text = std::fs::read(file).ok()?;
    let json: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let port = json[["port", "second_port"][home]].as_u64()?;
    let target = Target::new(u16::try_from(port).ok()?, ADMIN, "app");
    Client::connect(&target).ok()
}

/// One row; whether the connection is still good.
fn write(client: &mut Client, home: usize, n: &mut u64, accepted: &Mutex<Vec<Accepted>>) -> bool {
    *n += 1;
    let sql = format!(
        "insert into direct values ({home}, {n}) \
         returning substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
    );
    let sent = Instant::now();
    match client.query(&sql) {
        Ok(rows) => {
            let timeline = rows[0][0].clone().expect("a file has a name");
            accepted.lock().push(Accepted {
                n: *n,
                home,
                timeline,
                sent,
                answered: Instant::now(),
            });
            std::thread::park_timeout(Duration::from_millis(1));
            true
        }
        Err(_) => false,
    }
}
