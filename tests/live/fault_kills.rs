//! Servers and proxies that are killed at every moment, with the ledger beside: what was acknowledged is there
//! once, what was not at most once, and the cluster comes back by itself. And servers that do not answer.

use crate::support::direct::Direct;
use crate::support::ledger::{Ledger, Problem};
use crate::support::postgres::{ADMIN, APP, Postgres, pid_in, restart_in};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Failure, ServerError, Target};
use crate::support::{EVENT, SOON, sized, skipped, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use tokio::time::Instant;

pub(crate) const WRITERS: u32 = 6;

fn rounds() -> u32 {
    sized(3, 20)
}

/// Rows of each client, more than it asks for at a time: one of them was asked for after the last kill, so whatever
/// error that one had for its client has been read.
const ROWS_OF_EACH: usize = 12;

/// Lets the ledger go on for a number of rows that differs from round to round. What its clients read as errors from
/// then on is of the next kill.
pub(crate) fn some_more(ledger: &Ledger, round: u32) {
    let (written, by_each) = (ledger.written(), ledger.written_by_each());
    let wanted = u64::from(round * 37 % 101) + 20;
    wait_until("everybody's rows are written", EVENT, || {
        let now = ledger.written_by_each();
        let mut each = now.iter().zip(&by_each);
        ledger.written() > written + wanted && each.all(|(now, then)| *now > then + ROWS_OF_EACH)
    });
    ledger.next_kill();
}

/// What was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Killed {
    Server,
    Proxy,
}

/// What a client may be told of a kill: that the server was lost, or is not there; that nobody knows what came of its
/// statement; between two statements, that its transaction is over.
const CLEAR: [&str; 5] = ["57P01", "57P02", "57P03", "08007", "25P02"];

/// The ledger is right, and each kill cost each client one clear error at most. Where the proxy was killed nobody is
/// there to tell it, and who comes again is refused or reset until the next one listens.
pub(crate) fn check(ledger: Ledger, admin: &Target, killed: Killed) {
    let told = ledger.stop();
    let faults = told.faults(admin);
    assert!(faults.is_empty(), "{faults:#?}");
    let mut of_kill: BTreeMap<(u32, u32), Vec<&Problem>> = BTreeMap::new();
    let nobody_there =
        |problem: &Problem| killed == Killed::Proxy && problem.at_log_in && problem.code.is_none();
    for problem in told.errors.iter().filter(|p| !nobody_there(p)) {
        let clear = match &problem.code {
            Some(code) => CLEAR.contains(&code.as_str()),
            None => killed == Killed::Proxy,
        };
        assert!(clear && problem.kill > 0, "{problem:?}");
        let of_client = of_kill.entry((problem.kill, problem.client)).or_default();
        of_client.push(problem);
    }
    let many: Vec<_> = of_kill.values().filter(|told| told.len() > 1).collect();
    assert!(many.is_empty(), "more than one error: {many:#?}");
}

/// The clients of a ledger wait in a hold by hand.
pub(crate) fn hold(proxy: &Proxy) {
    proxy.admin().act("hold");
    wait_until("everybody is held", SOON, || {
        proxy.admin().sessions_count("held") == u64::from(WRITERS)
    });
}

#[test]
fn fault_kills_of_the_server_at_random() {
    let mut server = Postgres::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"100ms\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let ledger = Ledger::start(&server.admin(), &proxy.app(), WRITERS);
    for round in 0..rounds() {
        some_more(&ledger, round);
        server.kill();
        server.boot();
    }
    some_more(&ledger, 0);
    check(ledger, &server.admin(), Killed::Server);
}

/// The steps of an event, and none.
const STEPS: [&str; 6] = ["prepare", "probe", "wait", "settle", "cut_over", "none"];

/// Starts an event that comes to this step. For two of them somebody has to be in the way.
pub(crate) fn reach(proxy: &Proxy, step: &str, options: &Value) -> Option<Client> {
    let in_the_way = ["probe", "wait"].contains(&step).then(|| {
        let mut client = proxy.client("in the way");
        client.run("begin");
        client
    });
    if step != "none" {
        proxy.admin().reach(step, options);
    }
    in_the_way
}

pub(crate) fn settled(proxy: &Proxy) {
    wait_until("no event is left", EVENT, || {
        proxy.admin().cluster()["event"].is_null()
    });
}

#[test]
fn fault_kills_of_the_local_server_in_each_step_of_an_event() {
    let proxy = Proxy::local(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    let ledger = Ledger::start(&admin, &proxy.app(), WRITERS);
    let direct = Direct::start(&admin, proxy.data_dir());
    for step in STEPS {
        for round in 0..sized(1, 20) {
            some_more(&ledger, round);
            let in_the_way = reach(&proxy, step, &json!({ "restart": true }));
            proxy.kill_server();
            drop(in_the_way);
            settled(&proxy);
        }
    }
    some_more(&ledger, 1);
    settled(&proxy);
    proxy.admin().swap();
    check(ledger, &admin, Killed::Server);
    direct.must_be_right(&admin);
}

/// Who is held has no server connection that could be lost.
#[test]
fn fault_kills_of_the_local_server_during_a_hold_are_told_nobody() {
    let proxy = Proxy::local(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    let ledger = Ledger::start(&admin, &proxy.app(), WRITERS);
    for round in 0..sized(2, 20) {
        some_more(&ledger, round);
        hold(&proxy);
        proxy.kill_server();
        proxy.admin().act("release");
    }
    some_more(&ledger, 1);
    ledger.stop().must_be_right(&admin);
}

/// A COMMIT that is under way: one waits for a trigger and has written nothing yet, the other is in the log and waits
/// for a standby that never says so. Both are told that nobody knows, once; and so it is.
#[test]
fn fault_kills_of_the_server_in_commit_are_told_as_an_unknown_outcome() {
    let mut server = Postgres::start(&[
        "synchronous_standby_names=nobody",
        "synchronous_commit=local",
    ]);
    server.run(&[
        "create function slow() returns trigger language plpgsql as \
         $$begin perform pg_sleep(600); return null; end$$",
        "create table before (n int)",
        "create table behind (n int)",
        "grant all on before, behind to app",
        "create constraint trigger slow after insert on before deferrable initially deferred \
         for each row execute function slow()",
    ]);
    let proxy = Proxy::on(&server);
    for round in 0..sized(2, 20) {
        let mut watcher = Client::connect(&server.admin()).unwrap();
        let mut clients = Vec::new();
        for table in ["before", "behind"] {
            let mut client = proxy.client(table);
            client.run("set synchronous_commit = 'on'");
            client.run("begin");
            client.run(&format!("insert into {table} values ({round})"));
            client.start("commit").unwrap();
            clients.push(client);
        }
        for waits in ["PgSleep", "SyncRep"] {
            let sql = format!(
                "select count(*) from pg_stat_activity where usename = 'app' and wait_event = '{waits}'"
            );
            wait_until("the COMMIT is under way", SOON, || {
                watcher.value(&sql) == "1"
            });
        }
        server.kill();
        for mut client in clients {
            let error = client.finish().unwrap_err().server();
            assert_eq!(pair(&error), ("FATAL", "08007"));
            assert!(client.receive().is_err(), "and no second word");
        }
        server.boot();
        let mut watcher = Client::connect(&server.admin()).unwrap();
        let count = |table| format!("select count(*) from {table} where n = {round}");
        assert_eq!(watcher.value(&count("before")), "0");
        assert_eq!(watcher.value(&count("behind")), "1");
    }
}

fn pair(error: &ServerError) -> (&str, &str) {
    (&error.severity, &error.code)
}

/// Servers that have this data directory. A process that one of them has just forked looks like it for a moment.
fn postmasters(data: &std::path::Path) -> usize {
    let data = fs::canonicalize(data).unwrap();
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let is_server = fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.windows(3).any(|w| w == b"-D\0"));
        let is_here = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data);
        if is_server && is_here {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let behind_name = stat.rsplit(") ").next().unwrap_or_default();
            let parent = behind_name.split(' ').nth(1).unwrap_or_default().to_owned();
            parents.insert(entry.file_name().into_string().unwrap_or_default(), parent);
        }
    }
    let forked = |parent: &&String| parents.contains_key(*parent);
    parents.len() - parents.values().filter(forked).count()
}

/// Between two holds an event spares the clients; when the server is gone there is nobody to be spared.
#[test]
fn fault_a_server_lost_between_two_holds_is_started_again_at_once() {
    let options = Options {
        scaling: "max_hold = \"3s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::local(&options);
    let mut slow = proxy.client("slow");
    slow.start("select pg_sleep(600)").unwrap();
    let id = proxy.admin().start_event(&json!({}));
    // Long after the statement's own time, and long before the next hold.
    wait_until("the first hold was given up", SOON, || {
        let event = proxy.admin().event(id);
        event["attempt"] == 1 && event["step"] == "wait"
    });
    proxy.kill_server();
    assert!(slow.finish().is_err(), "its outcome is not known");
    // It waits for the server up to its deadline, which comes before the next hold.
    proxy.client("new").run("select 1");
    proxy.admin().finished(id, SOON);
}

#[test]
fn fault_kills_of_the_proxy_in_each_step_of_an_event() {
    let mut proxy = Proxy::local(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    let ledger = Ledger::start(&admin, &proxy.app(), WRITERS);
    let direct = Direct::start(&admin, proxy.data_dir());
    for step in STEPS {
        for round in 0..sized(1, 20) {
            some_more(&ledger, round);
            let in_the_way = reach(&proxy, step, &json!({ "restart": true }));
            proxy.kill_and_restart();
            drop(in_the_way);
            assert_eq!(postmasters(&proxy.primary_data()), 1, "{step}");
        }
    }
    some_more(&ledger, 1);
    settled(&proxy);
    proxy.admin().swap();
    assert_eq!(postmasters(&proxy.primary_data()), 1);
    check(ledger, &admin, Killed::Proxy);
    direct.must_be_right(&admin);
}

/// What a new client is told where `login_timeout` is 2 s and nothing of the server: not before it has waited for it.
fn refused_late(proxy: &Proxy) -> ServerError {
    let since = Instant::now();
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert!(
        since.elapsed() >= Duration::from_millis(1500),
        "not waited for: {error:?}"
    );
    error
}

#[test]
fn fault_a_server_that_hangs_is_waited_for_up_to_the_login_deadline() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"2s\"".to_owned(),
        sessions: "snapshot_after = \"200ms\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("stays");
    client.run("set app.tenant = 'mine'");
    server.freeze(true);
    let error = refused_late(&proxy);
    assert_eq!(pair(&error), ("FATAL", "57P03"));
    client.start("show app.tenant").unwrap();
    server.freeze(false);
    let rows = client.finish().expect("served when it goes on");
    assert_eq!(rows[0][0].as_deref(), Some("mine"));
    wait_until("new clients come in again", SOON, || {
        Client::connect(&proxy.app()).is_ok()
    });
}

#[test]
fn fault_a_server_that_refuses_or_starts_up_is_waited_for_up_to_the_login_deadline() {
    let mut server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"2s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let refused = || {
        let error = refused_late(&proxy);
        assert_eq!(pair(&error), ("FATAL", "57P03"));
    };
    server.stop();
    refused();
    // A standby that lets nobody in says 57P03 for as long as it likes.
    let signal = server.data_dir().join("standby.signal");
    fs::write(&signal, "").unwrap();
    server.set("hot_standby=off");
    server.spawn();
    refused();
    server.signal(Signal::SIGQUIT);
    server.wait();
    fs::remove_file(&signal).unwrap();
    server.boot();
    wait_until("clients come in again", SOON, || {
        Client::connect(&proxy.app()).is_ok()
    });
}

#[test]
fn fault_a_full_server_says_so_itself_at_the_login_deadline() {
    let server = Postgres::start(&["max_connections=12", "superuser_reserved_connections=3"]);
    let options = Options {
        limits: "login_timeout = \"2s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut others = Vec::new();
    while let Ok(client) = Client::connect(&server.app()) {
        others.push(client);
    }
    let direct = Client::connect(&server.app()).unwrap_err().server();
    assert_eq!(direct.code, "53300");
    let told = refused_late(&proxy);
    assert_eq!(told, direct, "in the server's own words");
    others.truncate(2);
    wait_until("clients come in again", SOON, || {
        Client::connect(&proxy.app()).is_ok()
    });
}

/// Which file of the table it was, and which block, differs from time to time.
fn but_for_the_place(mut error: ServerError) -> ServerError {
    let end = error.message.find('"').expect("the file is named");
    error.message.truncate(end);
    error
}

#[test]
fn fault_a_full_disk_is_told_word_for_word_and_nothing_is_lost() {
    let Some(mut server) =
        Postgres::on_small_disk("150m", &["max_wal_size=32MB", "wal_keep_size=0"])
    else {
        skipped("a small file system can be mounted by root only");
        return;
    };
    let options = Options {
        sessions: "snapshot_after = \"100ms\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let ledger = Ledger::start(&server.admin(), &proxy.app(), WRITERS);
    some_more(&ledger, 1);
    let mut client = proxy.client("fills");
    client.run("create unlogged table big (a text)");
    client.run("alter table big alter a set storage external");
    let fill = "insert into big select repeat('x', 7000) from generate_series(1, 30000)";
    let error = client.query(fill).unwrap_err().server();
    let direct = Client::connect(&server.app()).and_then(|mut direct| direct.query(fill));
    let mut answers = vec![error.clone()];
    if let ("53100", Err(Failure::Server(direct))) = (error.code.as_str(), direct)
        && direct.code == "53100"
    {
        assert_eq!(but_for_the_place(error), but_for_the_place(*direct));
        match client.query("drop table big") {
            Ok(_) => client.run("select 1"),
            Err(failure) => answers.push(failure.server()),
        }
    }
    // The log of writes meets the end of the disk, too: at any moment until there is room the server itself may go.
    for error in answers {
        let expected = ["53100", "57P02", "08007"].contains(&error.code.as_str());
        assert!(expected, "{error:?}");
    }
    server.grow_disk("600m");
    server.kill();
    server.boot();
    some_more(&ledger, 1);
    let told = ledger.stop();
    let faults = told.faults(&server.admin());
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn safety_25_two_proxies_never_share_a_server() {
    let proxy = Proxy::local(&Options::default());
    let second = proxy.second();
    let output = second.wait_with_output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("in use by another slackwater"), "{said}");
    let mut client = Client::connect(&Target::new(proxy.port(), APP, "app")).unwrap();
    client.run("select 1");
    assert_eq!(postmasters(&proxy.primary_data()), 1);
}

#[test]
fn fault_an_event_starts_a_server_that_nobody_missed() {
    let proxy = Proxy::local(&Options::default());
    for _ in 0..2 {
        proxy.kill_server();
        proxy.scale_by_command();
    }
    restart_in(&proxy.primary_data());
    proxy.scale_by_command();
}

#[test]
fn fault_a_server_lost_at_rest_is_started_again_without_a_request() {
    let proxy = Proxy::local(&Options::default());
    let mut idle = proxy.client("idle");
    idle.run("select 1");
    let before = pid_in(&proxy.primary_data()).unwrap();
    proxy.kill_server();
    wait_until("a server runs again", SOON, || {
        pid_in(&proxy.primary_data()).is_some_and(|pid| pid != before)
    });
}
