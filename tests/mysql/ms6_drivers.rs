//! Must show 6: drivers that people use, over verified TLS, in clear, and compressed, work through swaps and restarts.

use crate::support::proxy::{Options, Proxy};
use crate::support::server::{APP, Server};
use crate::support::{SOON, sized, wait_until};
use mysql_async::prelude::Queryable as _;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Ways in. The first proves the password where only TLS or RSA lets a driver do that; the others need not.
const WAYS: [&str; 3] = ["tls", "plain", "compressed"];

/// How long a round may take on a busy machine.
const ROUND: Duration = Duration::from_secs(60);

#[test]
fn ms6_pymysql() {
    // It can't compress.
    through_swaps(&script("pymysql_work.py", ""), &WAYS[..2]);
}

#[test]
fn ms6_mysql_connector_pure() {
    through_swaps(&script("mysql_connector_work.py", "pure"), &WAYS);
}

#[test]
fn ms6_mysql_connector_c_extension() {
    through_swaps(&script("mysql_connector_work.py", "c"), &WAYS);
}

#[test]
fn ms6_mysql2() {
    through_swaps(&script("mysql2_work.js", ""), &WAYS);
}

#[test]
fn ms6_mysql_async() {
    through_swaps(&start_mysql_async, &WAYS);
}

#[test]
fn ms6_all_of_them_through_restarts() {
    let proxy = Proxy::local(&Options::default());
    let mut all = Vec::new();
    for (name, driver, ways) in [
        ("pymysql_work.py", "", &WAYS[..2]),
        ("mysql_connector_work.py", "pure", &WAYS[..]),
        ("mysql_connector_work.py", "c", &WAYS[..]),
        ("mysql2_work.js", "", &WAYS[..]),
    ] {
        for way in ways {
            all.push(script(name, driver)(&proxy, way));
            all.last().unwrap().next_round();
        }
    }
    for way in WAYS {
        all.push(start_mysql_async(&proxy, way));
    }
    swap(&proxy, &all, 2);
    for work in all {
        work.must_be_right();
    }
}

/// Runs a driver, each way in at once, beside swaps.
fn through_swaps(start: &dyn Fn(&Proxy, &str) -> Work, ways: &[&str]) {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut all = Vec::new();
    for way in ways {
        let work = start(&proxy, way);
        work.next_round();
        all.push(work);
    }
    let swaps = sized(4, 10);
    swap(&proxy, &all, swaps);
    for work in all {
        let numbers = work.must_be_right();
        assert!(
            numbers > swaps,
            "{numbers} server connections in {swaps} swaps"
        );
    }
}

fn swap(proxy: &Proxy, all: &[Work], swaps: usize) {
    for _ in 0..swaps {
        let id = proxy.admin().start_event(&serde_json::json!({}));
        let outcome = || proxy.admin().outcome(id);
        wait_until("the event ends", ROUND, || {
            let over = all.iter().find(|work| work.told.lock().over);
            assert!(
                over.is_none(),
                "{:?}",
                over.map(|w| (&w.name, w.complaint()))
            );
            outcome().is_some()
        });
        assert_eq!(
            outcome().as_deref(),
            Some("completed"),
            "{:#?}",
            proxy.admin().sessions()
        );
        for work in all {
            work.next_round();
        }
    }
}

/// What a driver at work has told.
#[derive(Debug, Default)]
struct Told {
    rounds: usize,
    /// The server's numbers of the connections that rounds ended on.
    numbers: BTreeSet<String>,
    /// The last line.
    last: String,
    /// It tells nothing any more.
    over: bool,
}

impl Told {
    fn line(&mut self, line: String) {
        if let Some(number) = line.strip_prefix("round ") {
            self.rounds += 1;
            self.numbers.insert(number.to_owned());
        }
        self.last = line;
    }
}

/// A driver at work.
struct Work {
    name: String,
    told: Arc<Mutex<Told>>,
    worker: Worker,
}

enum Worker {
    Script(Child),
    Thread(Arc<AtomicBool>),
}

/// How a driver's script is started on a way in. It prints `round N` behind each round, N being the number of its server
/// connection, and `right` at its end, after it compared the table with what it was told.
fn script(name: &'static str, driver: &'static str) -> impl Fn(&Proxy, &str) -> Work {
    move |proxy, way| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let drivers = root.join("target/drivers");
        let interpreter = if std::path::Path::new(name)
            .extension()
            .is_some_and(|e| e == "js")
        {
            PathBuf::from("node")
        } else {
            drivers.join("venv/bin/python")
        };
        let mut child = Command::new(&interpreter)
            .arg(root.join("tests/drivers").join(name))
            .env("NODE_PATH", drivers.join("node_modules"))
            .env("PYTHONUNBUFFERED", "1")
            .env("WORK_HOST", "localhost")
            .env("WORK_PORT", proxy.port().to_string())
            .env("WORK_USER", APP.0)
            .env("WORK_PASSWORD", APP.1)
            .env("WORK_SECOND_PASSWORD", "second-secret")
            .env("WORK_DATABASE", "app")
            .env("WORK_CA", proxy.ca())
            .env("WORK_TABLE", table(name, driver, way))
            .env("WORK_WAY", way)
            .env("WORK_DRIVER", driver)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e} (run `make setup`)", interpreter.display()));
        let told = Arc::new(Mutex::new(Told::default()));
        let output = child.stdout.take().expect("piped");
        let teller = Arc::clone(&told);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                teller.lock().line(line);
            }
            teller.lock().over = true;
        });
        Work {
            name: format!("{name} {driver} {way}"),
            told,
            worker: Worker::Script(child),
        }
    }
}

fn table(name: &str, driver: &str, way: &str) -> String {
    let (name, _) = name.split_once('.').unwrap_or((name, ""));
    format!("{name}_{driver}_{way}")
}

impl Work {
    /// Waits until a whole round was done from now on.
    fn next_round(&self) {
        let rounds = || self.told.lock().rounds;
        let over = || self.told.lock().over;
        let before = rounds();
        wait_until(&self.name, ROUND, || rounds() > before + 1 || over());
        assert!(!over(), "{} ended: {}", self.name, self.complaint());
    }

    fn complaint(&self) -> String {
        format!("{:?}", self.told.lock())
    }

    /// Ends it; the number of server connections that its rounds ended on.
    fn must_be_right(mut self) -> usize {
        let mut errors = String::new();
        match &mut self.worker {
            Worker::Script(child) => drop(child.stdin.take()),
            Worker::Thread(stop) => stop.store(true, Ordering::Relaxed),
        }
        let over = || self.told.lock().over;
        wait_until(&self.name, ROUND, over);
        if let Worker::Script(child) = &mut self.worker {
            if let Some(mut said) = child.stderr.take() {
                let _ = said.read_to_string(&mut errors);
            }
            assert!(child.wait().unwrap().success(), "{}: {errors}", self.name);
        }
        let told = self.told.lock();
        assert_eq!(told.last, "right", "{}: {errors}", self.name);
        told.numbers.len()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        match &mut self.worker {
            Worker::Script(child) => {
                let _ = child.kill();
                if let Some(mut said) = child.stderr.take()
                    && std::thread::panicking()
                {
                    let mut text = String::new();
                    let _ = said.read_to_string(&mut text);
                    let text = format!("--- {}: {text}\n", self.name);
                    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
                }
                let _ = child.wait();
            }
            Worker::Thread(stop) => stop.store(true, Ordering::Relaxed),
        }
    }
}

fn start_mysql_async(proxy: &Proxy, way: &str) -> Work {
    wait_until("the CA's certificate", SOON, || proxy.ca().exists());
    let tls = (way != "plain").then(|| {
        mysql_async::SslOpts::default()
            .with_root_certs(vec![proxy.ca().into()])
            .with_disable_built_in_roots(true)
    });
    let host = if tls.is_some() {
        "localhost"
    } else {
        "127.0.0.1"
    };
    let options = mysql_async::OptsBuilder::default()
        .ip_or_hostname(host)
        .tcp_port(proxy.port())
        .user(Some(APP.0))
        .pass(Some(APP.1))
        .db_name(Some("app"))
        .prefer_socket(false)
        .ssl_opts(tls)
        .compression((way == "compressed").then(mysql_async::Compression::default));
    let told = Arc::new(Mutex::new(Told::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let (teller, ends) = (Arc::clone(&told), Arc::clone(&stop));
    let table = table("mysql_async", "", way);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let tell = |line: String| teller.lock().line(line);
        let done = runtime.block_on(mysql_async_rounds(options, &table, &ends, &tell));
        if let Err(error) = done {
            tell(format!("failed: {error}"));
        }
        teller.lock().over = true;
    });
    Work {
        name: format!("mysql_async {way}"),
        told,
        worker: Worker::Thread(stop),
    }
}

async fn mysql_async_rounds(
    options: mysql_async::OptsBuilder,
    table: &str,
    stop: &AtomicBool,
    tell: &dyn Fn(String),
) -> Result<(), mysql_async::Error> {
    let mut db = mysql_async::Conn::new(options.clone()).await?;
    let mut side = mysql_async::Conn::new(options.clone()).await?;
    db.query_drop(format!(
        "create table {table} (n int primary key, v varchar(40))"
    ))
    .await?;
    db.exec_drop("set @mine = ?, time_zone = '+03:00'", ("Grüße ☃",))
        .await?;
    let insert = db
        .prep(format!("insert into {table} values (?, ?)"))
        .await?;
    let second = options
        .clone()
        .user(Some("second"))
        .pass(Some("second-secret"));
    let mut written = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..5 {
            db.exec_drop(&insert, (written, "prepared")).await?;
            assert_eq!(db.affected_rows(), 1);
            written += 1;
        }
        let rows: Vec<_> = (written..written + 3).map(|n| (n, "batch")).collect();
        db.exec_batch(&insert, rows).await?;
        written += 3;
        let mut transaction = db.start_transaction(mysql_async::TxOpts::default()).await?;
        transaction
            .exec_drop(&insert, (written, "prepared"))
            .await?;
        transaction.commit().await?;
        written += 1;
        let mut transaction = db.start_transaction(mysql_async::TxOpts::default()).await?;
        transaction
            .exec_drop(&insert, (written, "not to stay"))
            .await?;
        transaction.rollback().await?;
        let mut several = db.query_iter("select 1; select 'two', @mine").await?;
        assert_eq!(several.collect::<u32>().await?, [1]);
        let two: Vec<(String, String)> = several.collect().await?;
        assert_eq!(two, [("two".to_owned(), "Grüße ☃".to_owned())]);
        drop(several);
        let large: Option<String> = db.query_first("select repeat('a', 100000)").await?;
        assert!(large.is_some_and(|text| text.len() == 100_000));
        let taken = db.exec_drop(&insert, (0, "taken")).await;
        assert!(
            matches!(&taken, Err(mysql_async::Error::Server(e)) if e.code == 1062),
            "{taken:?}"
        );
        for (options, user) in [(&second, "second"), (&options, APP.0)] {
            side.query_drop("set @gone = 1").await?;
            assert!(side.reset().await?, "COM_RESET_CONNECTION is there");
            let gone: Option<Option<u32>> = side.query_first("select @gone").await?;
            assert_eq!(gone, Some(None));
            let options: mysql_async::Opts = options.clone().into();
            let wanted = mysql_async::ChangeUserOpts::new()
                .with_user(options.user().map(str::to_owned))
                .with_pass(options.pass().map(str::to_owned))
                .with_db_name(Some("app".to_owned()));
            side.change_user(wanted).await?;
            let found: Option<String> = side.query_first("select current_user()").await?;
            assert!(found.is_some_and(|found| found.starts_with(user)));
        }
        db.ping().await?;
        let zone: Option<String> = db.query_first("select @@session.time_zone").await?;
        assert_eq!(zone.as_deref(), Some("+03:00"));
        let number: Option<u32> = db.query_first("select connection_id()").await?;
        tell(format!("round {}", number.unwrap_or_default()));
    }
    let found: Option<(u32, u32)> = db
        .query_first(format!("select count(*), count(distinct n) from {table}"))
        .await?;
    assert_eq!(found, Some((written, written)));
    side.disconnect().await?;
    db.disconnect().await?;
    tell("right".to_owned());
    Ok(())
}
