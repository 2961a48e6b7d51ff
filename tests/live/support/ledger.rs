//! The ledger: clients insert rows that nobody else can have written, and remember what they were told.
//!
//! The table has no constraint, so a statement that ran twice shows as a row that is there twice. Acknowledged
//! must be there exactly once; what was sent and never answered at most once; anything else not at all.

use super::wire::{Client, Failure, Target, bind, execute, parse, sync};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::Instant;

/// The table that clients write to.
const TABLE: &str = "create table if not exists ledger (client int, n bigint)";

/// Rows of one pipeline, each with a Sync of its own.
const PIPELINE: u64 = 5;

/// How a client writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// One statement, one transaction.
    Autocommit,
    /// BEGIN, two rows, COMMIT, each in a message of its own.
    Transaction,
    /// Several Parse, Bind, Execute, Sync in one write.
    Pipeline,
}

/// All styles.
const STYLES: [Style; 3] = [Style::Autocommit, Style::Transaction, Style::Pipeline];

/// A request that took long: when it was sent, and how long its answer took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stall {
    /// When it was sent.
    pub(crate) at: Instant,
    /// Time to its answer.
    pub(crate) took: Duration,
}

/// What a client read as an error.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// The client.
    pub(crate) client: u32,
    /// How often [`Ledger::next_kill`] had been called.
    pub(crate) kill: u32,
    /// SQLSTATE; `None`: the connection was ended without a word.
    pub(crate) code: Option<String>,
    /// It was about to log in.
    pub(crate) at_log_in: bool,
    #[allow(dead_code, reason = "shown when a test fails")]
    text: String,
}

/// What one client knows.
#[derive(Debug, Default)]
struct Book {
    acknowledged: Vec<u64>,
    unacknowledged: Vec<u64>,
    errors: Vec<Problem>,
    stalls: Vec<Stall>,
}

/// Running clients.
#[derive(Debug)]
pub(crate) struct Ledger {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    kills: Arc<AtomicU32>,
    clients: Vec<JoinHandle<()>>,
    books: Vec<Arc<Mutex<Book>>>,
    first: u32,
}

/// What the clients of a ledger were told, once they have stopped.
#[derive(Debug)]
pub(crate) struct Told {
    /// Per client: rows that were acknowledged.
    pub(crate) acknowledged: HashMap<u32, Vec<u64>>,
    /// Per client: rows that were sent and never answered.
    pub(crate) unacknowledged: HashMap<u32, Vec<u64>>,
    /// What clients read as errors.
    pub(crate) errors: Vec<Problem>,
    /// Answers that took more than 1 ms.
    pub(crate) stalls: Vec<Stall>,
}

impl Ledger {
    /// Makes the table over `admin` (straight to the server) and starts `count` clients of all styles.
    pub(crate) fn start(admin: &Target, target: &Target, count: u32) -> Self {
        let mut client = Client::connect(admin).expect("the server takes its superuser");
        client.run(TABLE);
        client.run("grant all on ledger to public");
        let first = client
            .value("select coalesce(max(client), 0) + 1 from ledger")
            .parse()
            .unwrap();
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let mut out = Self {
            stop,
            written,
            kills: Arc::default(),
            clients: Vec::new(),
            books: Vec::new(),
            first,
        };
        for index in 0..count {
            let book = Arc::new(Mutex::new(Book::default()));
            let writer = Writer {
                number: first + index,
                style: STYLES[index as usize % STYLES.len()],
                target: target.clone(),
                next: 0,
                written: Arc::clone(&out.written),
                kills: Arc::clone(&out.kills),
                book: Arc::clone(&book),
            };
            let stop = Arc::clone(&out.stop);
            out.books.push(book);
            out.clients
                .push(std::thread::spawn(move || writer.work(&stop)));
        }
        out
    }

    /// Rows acknowledged so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Rows acknowledged so far to each client.
    pub(crate) fn written_by_each(&self) -> Vec<usize> {
        let books = self.books.iter();
        books.map(|book| book.lock().acknowledged.len()).collect()
    }

    /// From now on errors are those of the next kill.
    pub(crate) fn next_kill(&self) {
        self.kills.fetch_add(1, Ordering::SeqCst);
    }

    /// Lets the clients finish what they are doing.
    pub(crate) fn stop(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut told = Told {
            acknowledged: HashMap::new(),
            unacknowledged: HashMap::new(),
            errors: Vec::new(),
            stalls: Vec::new(),
        };
        for client in self.clients {
            client.join().expect("a ledger client panicked");
        }
        for (number, book) in (self.first..).zip(self.books) {
            let book = std::mem::take(&mut *book.lock());
            told.acknowledged.insert(number, book.acknowledged);
            told.unacknowledged.insert(number, book.unacknowledged);
            told.errors.extend(book.errors);
            told.stalls.extend(book.stalls);
        }
        told
    }
}

impl Told {
    /// How many rows were acknowledged.
    pub(crate) fn count(&self) -> usize {
        self.acknowledged.values().map(Vec::len).sum()
    }

    /// Compares with the table (over `admin`, straight to the server); every fault found.
    pub(crate) fn faults(&self, admin: &Target) -> Vec<String> {
        let mut client = Client::connect(admin).expect("the server takes its superuser");
        let mut there: HashMap<(u32, u64), u64> = HashMap::new();
        for &number in self.acknowledged.keys() {
            let sql = format!("select n, count(*) from ledger where client = {number} group by n");
            for row in client.query(&sql).unwrap_or_else(|e| panic!("{e}")) {
                let value = |at: usize| row[at].as_deref().unwrap().parse::<u64>().unwrap();
                there.insert((number, value(0)), value(1));
            }
        }
        let mut faults = Vec::new();
        for (&number, rows) in &self.acknowledged {
            for &n in rows {
                match there.remove(&(number, n)) {
                    Some(1) => {}
                    None => {
                        faults.push(format!("client {number}: {n} was acknowledged and is lost"));
                    }
                    Some(k) => faults.push(format!("client {number}: {n} is there {k} times")),
                }
            }
            for &n in &self.unacknowledged[&number] {
                match there.remove(&(number, n)) {
                    None | Some(1) => {}
                    Some(k) => faults.push(format!(
                        "client {number}: {n}, never answered, is there {k} times"
                    )),
                }
            }
        }
        for ((number, n), _) in there {
            faults.push(format!(
                "client {number}: {n} is there and its client was told that it failed"
            ));
        }
        faults
    }

    /// Panics unless everything is as it was told, and nobody read an error.
    pub(crate) fn must_be_right(&self, admin: &Target) {
        assert!(
            self.errors.is_empty(),
            "errors: {:#?}",
            &self.errors[..self.errors.len().min(5)]
        );
        let faults = self.faults(admin);
        assert!(
            faults.is_empty(),
            "{} faults: {:#?}",
            faults.len(),
            &faults[..faults.len().min(10)]
        );
        assert!(self.count() > 0, "nothing was written");
    }

    /// Answers that took longer than `limit`: how long after `from` each was asked for, and its time.
    pub(crate) fn stalls_over(&self, limit: Duration, from: Instant) -> Vec<(Duration, Duration)> {
        let long = self.stalls.iter().filter(|s| s.took > limit);
        long.map(|s| (s.at.saturating_duration_since(from), s.took))
            .collect()
    }

    /// The longest answer to a request that was under way between `from` and `to`.
    pub(crate) fn longest(&self, from: Instant, to: Instant) -> Duration {
        let during = self
            .stalls
            .iter()
            .filter(|s| s.at <= to && s.at + s.took >= from);
        during.map(|s| s.took).max().unwrap_or_default()
    }
}

/// One client at work.
struct Writer {
    number: u32,
    style: Style,
    target: Target,
    next: u64,
    written: Arc<AtomicU64>,
    kills: Arc<AtomicU32>,
    book: Arc<Mutex<Book>>,
}

impl Writer {
    fn work(mut self, stop: &AtomicBool) {
        let mut client = None;
        while !stop.load(Ordering::Relaxed) {
            let connected = client
                .take()
                .map_or_else(|| Client::connect(&self.target), Ok);
            let mut connected = match connected {
                Ok(connected) => connected,
                Err(e) => {
                    self.complain(&e, true);
                    std::thread::park_timeout(Duration::from_millis(20));
                    continue;
                }
            };
            if self.write(&mut connected) {
                client = Some(connected);
            }
        }
        if let Some(client) = client {
            client.close();
        }
    }

    /// One unit of work; whether the connection is still good.
    fn write(&mut self, client: &mut Client) -> bool {
        match self.style {
            Style::Autocommit => {
                let n = self.take(1);
                let answer = self.timed(client, &self.insert(n));
                self.settle(&[n], answer)
            }
            Style::Transaction => {
                let n = self.take(2);
                for sql in ["begin".to_owned(), self.insert(n), self.insert(n + 1)] {
                    // Before COMMIT nothing can have happened: an error means "not there".
                    if let Err(e) = self.timed(client, &sql) {
                        self.complain(&e, false);
                        return matches!(&e, Failure::Server(e) if e.severity == "ERROR")
                            && client.query("rollback").is_ok();
                    }
                }
                let answer = self.timed(client, "commit");
                self.settle(&[n, n + 1], answer)
            }
            Style::Pipeline => self.pipeline(client),
        }
    }

    fn pipeline(&mut self, client: &mut Client) -> bool {
        let first = self.take(PIPELINE);
        let mut bytes = parse("", "insert into ledger values ($1, $2)");
        let number = self.number.to_string();
        for n in first..first + PIPELINE {
            bytes.extend(bind("", "", &[&number, &n.to_string()]));
            bytes.extend(execute("", 0));
            bytes.extend(sync());
        }
        let at = Instant::now();
        if let Err(e) = client.send(&bytes) {
            self.settle(
                &(first..first + PIPELINE).collect::<Vec<_>>(),
                Err(e.into()),
            );
            return false;
        }
        for n in first..first + PIPELINE {
            let answer = client.finish().map(|_| ());
            let lost = matches!(&answer, Err(Failure::Io(_)))
                || matches!(&answer, Err(Failure::Server(e)) if e.severity != "ERROR");
            if lost {
                self.settle(&(n..first + PIPELINE).collect::<Vec<_>>(), answer);
                return false;
            }
            self.settle(&[n], answer);
        }
        self.note(at);
        true
    }

    fn take(&mut self, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        first
    }

    fn insert(&self, n: u64) -> String {
        format!("insert into ledger values ({}, {n})", self.number)
    }

    fn timed(&self, client: &mut Client, sql: &str) -> Result<(), Failure> {
        let at = Instant::now();
        let answer = client.query(sql);
        self.note(at);
        answer.map(|_| ())
    }

    fn note(&self, at: Instant) {
        let took = at.elapsed();
        if took > Duration::from_millis(1) {
            self.book.lock().stalls.push(Stall { at, took });
        }
    }

    fn complain(&self, failure: &Failure, at_log_in: bool) {
        let code = match failure {
            Failure::Server(error) => Some(error.code.clone()),
            Failure::Io(_) => None,
        };
        self.book.lock().errors.push(Problem {
            client: self.number,
            kill: self.kills.load(Ordering::SeqCst),
            code,
            at_log_in,
            text: failure.to_string(),
        });
    }

    /// Writes down what was said about these rows; whether the connection is still good.
    fn settle(&self, rows: &[u64], answer: Result<(), Failure>) -> bool {
        let Err(failure) = answer else {
            self.written.fetch_add(rows.len() as u64, Ordering::Relaxed);
            self.book.lock().acknowledged.extend(rows);
            return true;
        };
        self.complain(&failure, false);
        // A plain error: the server has said that it did not happen.
        if matches!(&failure, Failure::Server(e) if e.severity == "ERROR" && e.code != "08007") {
            return true;
        }
        self.book.lock().unacknowledged.extend(rows);
        false
    }
}
