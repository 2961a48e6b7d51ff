//! What the operator does to a proxy that serves: new certificates, a drain, an end at once.

use crate::support::postgres::{APP, Postgres, binaries, pid_in};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Client;
use crate::support::{SOON, sized, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Makes a certificate for `localhost` that is its own CA.
fn make_certificate(certificate: &Path, key: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(certificate, made.cert.pem()).unwrap();
    fs::write(key, made.signing_key.serialize_pem()).unwrap();
}

fn psql(proxy: &Proxy, ca: &Path) -> Command {
    let mut command = Command::new(binaries().join("psql"));
    command
        .arg("-XAtq")
        .arg(format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=app dbname=app sslmode=verify-full sslrootcert={}",
            proxy.port(),
            ca.display()
        ))
        .env("PGPASSWORD", APP.1);
    command
}

/// A psql that stays connected.
struct Psql {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Psql {
    fn start(proxy: &Proxy, ca: &Path) -> Self {
        let mut child = psql(proxy, ca)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    fn value(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql};").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn operation_new_certificates_are_taken_and_nobody_is_dropped() {
    let server = Postgres::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make_certificate(&path("server.crt"), &path("server.key"));
    fs::copy(path("server.crt"), path("first.crt")).unwrap();
    let options = Options {
        sections: format!(
            "[tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"",
            path("server.crt").display(),
            path("server.key").display()
        ),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let works = |ca: &str| {
        let output = psql(&proxy, &path(ca)).args(["-c", "select 1"]).output();
        output.unwrap().status.success()
    };
    let mut stays = Psql::start(&proxy, &path("first.crt"));
    assert_eq!(stays.value("select 1"), "1");

    make_certificate(&path("server.crt"), &path("server.key"));
    fs::copy(path("server.crt"), path("second.crt")).unwrap();
    proxy.signal(Signal::SIGHUP);
    wait_until("the new certificate is shown", SOON, || works("second.crt"));
    assert!(!works("first.crt"), "the old one is not shown any more");
    assert_eq!(stays.value("select 2"), "2", "who was there stays");

    // A file that is no certificate changes nothing.
    fs::write(path("server.crt"), "no certificate").unwrap();
    proxy.signal(Signal::SIGHUP);
    wait_until("the refusal is told", SOON, || {
        proxy.log().contains("nothing was changed") && proxy.log().contains("server.crt")
    });
    assert!(works("second.crt"));
    assert_eq!(stays.value("select 3"), "3");
}

#[test]
fn operation_drain_lets_transactions_end() {
    let server = Postgres::start(&[]);
    server.run(&["create table done (a int)", "grant all on done to app"]);
    let mut proxy = Proxy::on(&server);
    let (mut resting, mut open, mut runs) = (
        proxy.client("resting"),
        proxy.client("open"),
        proxy.client("runs"),
    );
    resting.run("select 1");
    open.run("begin");
    open.run("insert into done values (1)");
    runs.start("select pg_sleep(2), 'slept'").unwrap();
    wait_until("the statement runs", SOON, || {
        let session = proxy.admin().session("runs");
        session.is_some_and(|s| s["state"] == "active")
    });
    proxy.signal(Signal::SIGTERM);
    let error = resting.finish().unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P01")
    );
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P03"),
        "new clients are told"
    );
    let rows = runs.finish().expect("what runs is answered");
    assert_eq!(rows[0][1].as_deref(), Some("slept"));
    open.run("insert into done values (2)");
    open.run("commit");
    for mut client in [open, runs] {
        let error = client.finish().unwrap_err().server();
        assert_eq!(error.code, "57P01");
    }
    let status = proxy.ended();
    assert!(status.success(), "{status:?}");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    assert_eq!(watcher.value("select count(*) from done"), "2");
}

#[test]
fn operation_interrupt_ends_at_once_and_leaves_nothing_on_the_server() {
    let server = Postgres::start(&[]);
    let mut proxy = Proxy::on(&server);
    let mut open = proxy.client("open");
    open.run("begin");
    open.run("select pg_advisory_lock(1)");
    proxy.signal(Signal::SIGINT);
    let error = open.finish().unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P01")
    );
    let status = proxy.ended();
    assert!(status.success(), "{status:?}");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    wait_until("its locks are gone", SOON, || {
        watcher.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
    });
}

/// The server of a proxy that has ended is there, and answers.
fn serves(proxy: &Proxy) {
    let pid = pid_in(&proxy.primary_data()).expect("a server runs");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let socket = proxy.data_dir().join("run");
    let mut answers = Command::new(binaries().join("pg_isready"));
    answers.arg("-q").arg("-h").arg(&socket);
    let config = fs::read(proxy.data_dir().join("server.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    answers.arg("-p").arg(config["port"].to_string());
    assert!(answers.status().unwrap().success(), "the server is away");
}

#[test]
fn operation_drain_begins_no_cut_over() {
    let options = Options {
        scaling: "max_hold = \"2s\"".to_owned(),
        ..Options::default()
    };
    let mut proxy = Proxy::local(&options);
    for _ in 0..sized(3, 20) {
        let mut client = proxy.client("in the way");
        client.run("select pg_advisory_lock(1)");
        let mut runs = proxy.client("runs");
        let id = proxy.admin().start_event(&json!({}));
        wait_until("the event waits", SOON, || {
            proxy.admin().event(id)["step"] == "wait"
        });
        let server = pid_in(&proxy.primary_data());
        // Its end is what a hold would wait for.
        runs.start("select pg_sleep(1)").unwrap();
        wait_until("the statement runs", SOON, || {
            let session = proxy.admin().session("runs");
            session.is_some_and(|s| s["state"] == "active")
        });
        proxy.signal(Signal::SIGTERM);
        let error = client.finish().unwrap_err().server();
        assert_eq!(error.code, "57P01", "nobody is in the way any more");
        runs.finish().expect("what runs is answered");
        let status = proxy.ended();
        assert!(status.success(), "{status:?}");
        assert_eq!(pid_in(&proxy.primary_data()), server);
        serves(&proxy);
        proxy.start_again();
    }
}

#[test]
fn operation_interrupt_waits_for_a_cut_over() {
    let mut proxy = Proxy::local(&Options::default());
    for _ in 0..sized(5, 20) {
        proxy.admin().reach("cut_over", &json!({ "restart": true }));
        proxy.signal(Signal::SIGINT);
        let status = proxy.ended();
        assert!(status.success(), "{status:?}");
        serves(&proxy);
        proxy.start_again();
    }
}
