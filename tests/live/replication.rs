//! Replication connections: PostgreSQL's own programs through the proxy. An event waits for them and says so,
//! or ends them when nobody else is left, and they come back; nothing of the stream is lost.

use crate::support::postgres::{Postgres, REPL, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Message, Target, message, sync};
use crate::support::{EVENT, SOON, wait_for, wait_until};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One of PostgreSQL's replication clients, killed on drop.
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    fn start(proxy: &Proxy, dir: &Path, name: &str, arguments: &[&str]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = Command::new(binaries().join(name))
            .args(["-h", "127.0.0.1", "-p", &proxy.port().to_string()])
            .args(["-U", REPL.0, "-w"])
            .args(arguments)
            .env("PGPASSWORD", REPL.1)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { child, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn must_succeed(mut self) {
        let status = wait_for("the program ends", EVENT, || self.child.try_wait().unwrap());
        assert!(status.success(), "{}", self.said());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ending() -> Options {
    Options {
        sessions: "on_blocker = { replication = \"terminate\" }".to_owned(),
        ..Options::default()
    }
}

/// A raw replication client; `kind` is what `replication` says.
fn walsender(proxy: &Proxy, kind: &str) -> Client {
    let target = Target::new(proxy.port(), REPL, "app")
        .with("replication", kind)
        .with("application_name", "raw");
    Client::connect(&target).unwrap_or_else(|e| panic!("{e}\n{}", proxy.log()))
}

fn wait_for_stream(proxy: &Proxy, application: &str) {
    wait_until("the stream has begun", SOON, || {
        let blockers = proxy.admin().blockers(application);
        blockers.iter().any(|b| {
            b["kind"] == "replication" && b["detail"].as_str().unwrap().ends_with(", streaming")
        })
    });
}

/// Whole segments in `dir` are what the server has of them.
fn must_equal_the_servers(dir: &Path, data_dir: &Path) -> usize {
    let mut compared = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            continue;
        }
        let theirs = fs::read(data_dir.join("pg_wal").join(&name)).unwrap();
        assert!(fs::read(&path).unwrap() == theirs, "segment {name} differs");
        compared += 1;
    }
    compared
}

#[test]
fn case_40_receivewal_blocks_an_event_and_is_named() {
    let server = Postgres::start(&["wal_keep_size=1GB"]);
    let proxy = Proxy::on(&server);
    let dir = tempfile::tempdir().unwrap();
    let wal = dir.path().join("wal");
    fs::create_dir(&wal).unwrap();
    let program = Program::start(
        &proxy,
        dir.path(),
        "pg_receivewal",
        &["-D", wal.to_str().unwrap()],
    );
    wait_for_stream(&proxy, "pg_receivewal");
    let mut other = proxy.client("other");
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 3 }));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "rolled_back", "{event:#}");
    let waited = &event["waiting_for"][0];
    assert_eq!(waited["kind"], "replication", "{event:#}");
    let statement = waited["statement"].as_str().unwrap();
    assert!(statement.starts_with("START_REPLICATION"), "{event:#}");
    let session = proxy.admin().session("pg_receivewal").unwrap();
    assert_eq!(session["movable"], false, "{session:#}");
    assert_eq!(other.value("select 1"), "1");
    // It was not disturbed.
    server.run(&[
        "create table w as select generate_series(1, 1000) a",
        "select pg_switch_wal()",
    ]);
    wait_until("the segment was received", SOON, || {
        fs::read_dir(&wal)
            .unwrap()
            .any(|e| !e.unwrap().path().to_string_lossy().contains("partial"))
    });
    assert!(must_equal_the_servers(&wal, &server.data_dir()) >= 1);
    assert!(
        !program.said().contains("disconnected"),
        "{}",
        program.said()
    );
    drop(program);
    wait_until("it has left", SOON, || {
        proxy.admin().session("pg_receivewal").is_none()
    });
    proxy.admin().swap();
}

fn receivewal_goes_on(proxy: &Proxy, admin: &Target, data_dir: &Path) {
    let run = |sql: &str| Client::connect(admin).unwrap().run(sql);
    run("select pg_create_physical_replication_slot('keep', true)");
    let dir = tempfile::tempdir().unwrap();
    let wal = dir.path().join("wal");
    fs::create_dir(&wal).unwrap();
    let wal_text = wal.to_str().unwrap();
    let arguments = ["-D", wal_text, "--slot", "keep", "-s", "1"];
    let program = Program::start(proxy, dir.path(), "pg_receivewal", &arguments);
    for round in 0..2 {
        wait_for_stream(proxy, "pg_receivewal");
        run("create table if not exists w (a int)");
        run("insert into w select generate_series(1, 1000)");
        let event = proxy.admin().swap();
        assert_eq!(event["waiting_for"], json!([]), "{event:#}");
        run("insert into w select generate_series(1, 1000)");
        wait_until("it was told", SOON, || {
            program.said().matches("due to a scale event").count() == round + 1
        });
    }
    wait_for_stream(proxy, "pg_receivewal");
    run("select pg_switch_wal()");
    wait_until("the segment was received", SOON, || {
        must_equal_the_servers(&wal, data_dir) >= 1
    });
    let said = program.said();
    assert!(
        said.contains("terminating replication connection due to a scale event"),
        "{said}"
    );
}

#[test]
fn case_40_receivewal_is_ended_for_an_event_and_goes_on() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::with(&server, &ending());
    receivewal_goes_on(&proxy, &server.admin(), &server.data_dir());
}

#[test]
fn case_40_receivewal_is_ended_for_a_restart_and_goes_on() {
    let proxy = Proxy::local(&ending());
    let admin = Target::new(proxy.port(), crate::support::postgres::ADMIN, "app");
    receivewal_goes_on(&proxy, &admin, &proxy.primary_data());
}

#[test]
fn case_40_logical_decoding_loses_nothing_over_events() {
    let server = Postgres::start(&["wal_level=logical"]);
    server.run(&["create table t (a int)", "grant all on t to app"]);
    let proxy = Proxy::with(&server, &ending());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("changes");
    let at = ["-d", "app", "--slot", "decode"];
    let create = ["--create-slot", "-P", "test_decoding"];
    Program::start(
        &proxy,
        dir.path(),
        "pg_recvlogical",
        &[&at[..], &create].concat(),
    )
    .must_succeed();
    let out = file.to_str().unwrap();
    let start = [
        "--start",
        "-f",
        out,
        "-s",
        "1",
        "-F",
        "1",
        "-o",
        "skip-empty-xacts=1",
    ];
    let program = Program::start(
        &proxy,
        dir.path(),
        "pg_recvlogical",
        &[&at[..], &start].concat(),
    );
    let mut writer = proxy.client("writer");
    let mut wanted = BTreeSet::new();
    for round in 0..3 {
        wait_for_stream(&proxy, "pg_recvlogical");
        for n in 0..50 {
            let value = round * 1000 + n;
            writer.run(&format!("insert into t values ({value})"));
            wanted.insert(value);
            if n == 25 {
                proxy.admin().swap();
            }
        }
    }
    let line = |text: &str| {
        let (_, value) = text.split_once("INSERT: a[integer]:")?;
        value.trim().parse::<i32>().ok()
    };
    wait_until("every change has come", EVENT, || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().filter_map(line).collect::<BTreeSet<_>>() == wanted
    });
    assert!(program.said().contains("scale event"), "{}", program.said());
}

#[test]
fn case_40_base_backup_is_waited_for_and_its_standby_follows() {
    let proxy = Proxy::local(&ending());
    let admin = Target::new(proxy.port(), crate::support::postgres::ADMIN, "app");
    let run = |sql: &str| Client::connect(&admin).unwrap().run(sql);
    run("create table t as select generate_series(1, 1000) a");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let arguments = ["-D", copy.to_str().unwrap(), "-c", "fast", "-r", "8M", "-R"];
    let program = Program::start(&proxy, dir.path(), "pg_basebackup", &arguments);
    wait_until("the backup runs", SOON, || {
        let sessions = proxy.admin().sessions();
        let blockers = sessions
            .iter()
            .flat_map(|s| s["blockers"].as_array().unwrap());
        blockers
            .filter(|b| b["kind"] == "backup" || b["kind"] == "replication_slot")
            .count()
            == 2
    });
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 1 }));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(
        event["outcome"], "rolled_back",
        "a backup is not thrown away: {event:#}"
    );
    program.must_succeed();
    let verify = Command::new(binaries().join("pg_verifybackup"))
        .arg(&copy)
        .output()
        .unwrap();
    assert!(verify.status.success(), "{verify:?}");
    proxy.admin().swap();
    // The standby's walsender is a session like others: ended by the restart, back by itself.
    let standby = Postgres::start_from(
        &copy,
        &["wal_retrieve_retry_interval=200ms", "max_connections=200"],
    );
    for round in 0..2 {
        wait_for_stream(&proxy, "walreceiver");
        proxy.admin().swap();
        run(&format!("insert into t values ({})", -round));
    }
    let mut reader = Client::connect(&standby.admin()).unwrap();
    wait_until("the standby has the last row", EVENT, || {
        reader.value("select min(a) from t") == "-1"
    });
    assert_eq!(reader.value("select pg_is_in_recovery()"), "t");
}

#[test]
fn case_40_commands_of_a_replication_connection() {
    let server = Postgres::start(&["wal_level=logical"]);
    let proxy = Proxy::with(&server, &ending());
    let mut physical = walsender(&proxy, "1");
    let system = physical.query("IDENTIFY_SYSTEM").unwrap();
    assert_eq!(system[0].len(), 4);
    assert_eq!(
        physical.query("SHOW wal_segment_size").unwrap()[0][0].as_deref(),
        Some("16MB")
    );
    let session = proxy.admin().session("raw").unwrap();
    assert_eq!(
        (&session["database"], &session["user"]),
        (&json!(""), &json!("repl"))
    );
    // What a WAL sender does not take, the server refuses itself.
    let error = physical.query("select 1").unwrap_err().server();
    assert_eq!(error.code, "0A000", "{error:?}");
    physical
        .send(&[crate::support::wire::parse("", "select 1"), sync()].concat())
        .unwrap();
    assert_eq!(
        labels(&physical.until_ready().unwrap()),
        ["E(08P01)", "Z(I)"]
    );
    assert_eq!(physical.query("IDENTIFY_SYSTEM").unwrap(), system);

    // In a database SQL works beside commands; an open transaction is waited for.
    let mut logical = walsender(&proxy, "database");
    assert_eq!(logical.value("select current_database()"), "app");
    drop(physical);
    wait_until("one is left", SOON, || proxy.admin().sessions().len() == 1);
    logical.run("begin");
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 2 }));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "rolled_back", "{event:#}");
    logical.run("commit");
    // So is the snapshot that a new slot has exported, until the next command.
    let slot = "CREATE_REPLICATION_SLOT s1 TEMPORARY LOGICAL test_decoding";
    let made = logical.query(slot).unwrap();
    assert!(made[0][2].is_some(), "a snapshot: {made:?}");
    let kinds = |proxy: &Proxy| -> Vec<String> {
        let blockers = proxy.admin().blockers("raw");
        blockers
            .iter()
            .map(|b| b["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(kinds(&proxy), ["replication", "replication_slot"]);
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 1 }));
    assert_eq!(proxy.admin().finished(id, EVENT)["outcome"], "rolled_back");
    drop(logical);
    wait_until("it has left", SOON, || proxy.admin().sessions().is_empty());

    // With nothing to lose it is ended at rest, too.
    let mut idle = walsender(&proxy, "on");
    idle.query("IDENTIFY_SYSTEM").unwrap();
    proxy.admin().swap();
    let told = idle.until(b'E').unwrap();
    assert_eq!(labels(&told), ["E(57P01)"]);
    let mut rest = Vec::new();
    idle.writer().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "and closed");
}

#[test]
fn case_40_a_stream_ends_by_either_side_and_commands_go_on() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = walsender(&proxy, "true");
    let place = client.query("IDENTIFY_SYSTEM").unwrap()[0][2]
        .clone()
        .unwrap();
    for _ in 0..2 {
        client
            .start(&format!("START_REPLICATION PHYSICAL {place}"))
            .unwrap();
        assert_eq!(labels(&client.until(b'W').unwrap()), ["W"]);
        wait_for_stream(&proxy, "raw");
        // A status update, with a reply wanted.
        let mut status = vec![b'r'];
        status.extend([0; 32]);
        status.push(1);
        client.send(&message(b'd', &status)).unwrap();
        client.until(b'd').unwrap();
        client.send(&message(b'c', &[])).unwrap();
        let end = labels(&client.until_ready().unwrap());
        let end: Vec<_> = end.iter().filter(|l| *l != "d").collect();
        assert_eq!(end.first().map(|l| l.as_str()), Some("c"), "{end:?}");
        assert_eq!(client.query("IDENTIFY_SYSTEM").unwrap().len(), 1);
    }
    // A command inside the stream: the server's own FATAL.
    client
        .start(&format!("START_REPLICATION PHYSICAL {place}"))
        .unwrap();
    client.until(b'W').unwrap();
    client.start("IDENTIFY_SYSTEM").unwrap();
    let end = client.until(b'E').unwrap();
    assert_eq!(end.last().unwrap().label(), "E(08P01)");
}

#[test]
fn case_40_replication_is_let_in_by_the_servers_rules() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let refused = |target: Target| {
        let direct = Target {
            port: server.port(),
            ..target.clone()
        };
        let told = Client::connect(&target).unwrap_err().server();
        assert_eq!(told, Client::connect(&direct).unwrap_err().server());
        told
    };
    let told = refused(proxy.app().with("replication", "true"));
    assert_eq!(
        (told.severity.as_str(), told.code.as_str()),
        ("FATAL", "42501")
    );
    let told = refused(
        Target::new(proxy.port(), (REPL.0, "wrong"), "app").with("replication", "database"),
    );
    assert_eq!(told.code, "28P01");
    let told = refused(Target::new(proxy.port(), REPL, "nowhere").with("replication", "database"));
    assert_eq!(told.code, "3D000");
    let told = refused(Target::new(proxy.port(), REPL, "app").with("replication", "perhaps"));
    assert_eq!(told.code, "22023");
}

#[test]
fn case_40_force_and_a_lost_server_end_a_stream_between_two_messages() {
    let mut server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let stream = |client: &mut Client| {
        let place = client.query("IDENTIFY_SYSTEM").unwrap()[0][2]
            .clone()
            .unwrap();
        client
            .start(&format!("START_REPLICATION PHYSICAL {place}"))
            .unwrap();
        client.until(b'W').unwrap();
        wait_for_stream(&proxy, "raw");
    };
    // Much WAL is in flight when the end comes: what arrives is whole messages, then the reason.
    let mut client = walsender(&proxy, "true");
    stream(&mut client);
    let mut writer = Client::connect(&server.admin()).unwrap();
    writer
        .start("create table much as select generate_series(1, 400000) a")
        .unwrap();
    let id = proxy
        .admin()
        .start_event(&json!({ "timeout_seconds": 1, "on_timeout": "force" }));
    let told = client.until(b'E').unwrap();
    assert_eq!(told.last().unwrap().label(), "E(57P01)");
    assert!(told.len() > 1, "there was a stream");
    assert_eq!(proxy.admin().finished(id, EVENT)["outcome"], "forced");
    writer.finish().unwrap();

    let mut client = walsender(&proxy, "true");
    stream(&mut client);
    server.signal(nix::sys::signal::Signal::SIGQUIT);
    server.wait();
    let told = client.until(b'E').unwrap();
    assert_eq!(told.last().unwrap().label(), "E(57P02)");
}

fn labels(messages: &[Message]) -> Vec<String> {
    messages.iter().map(Message::label).collect()
}

#[test]
fn case_40_streams_do_not_hold_a_drain_up() {
    let server = Postgres::start(&[]);
    let mut proxy = Proxy::on(&server);
    let mut client = walsender(&proxy, "true");
    let place = client.query("IDENTIFY_SYSTEM").unwrap()[0][2]
        .clone()
        .unwrap();
    client
        .start(&format!("START_REPLICATION PHYSICAL {place}"))
        .unwrap();
    client.until(b'W').unwrap();
    wait_for_stream(&proxy, "raw");
    let (status, _) = proxy.admin().post("/v1/drain", &json!({}));
    assert_eq!(status / 100, 2);
    assert_eq!(
        client.until(b'E').unwrap().last().unwrap().label(),
        "E(57P01)"
    );
    assert!(proxy.ended().success());
}
