//! Servers and proxies that are killed at every moment, with the ledger beside: what was acknowledged is there once,
//! what was not at most once, and the cluster comes back by itself.

use crate::faults::quick;
use crate::support::client::{Client, Target, code};
use crate::support::ledger::{Ledger, Problem};
use crate::support::proxy::{Options, Proxy};
use crate::support::server::Server;
use crate::support::{EVENT, SOON, sized, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

pub(crate) const WRITERS: usize = 4;

/// Lets the ledger go on for a number of rows that differs from round to round, of each writer two at least: the second
/// was begun after the last kill. What its writers read as errors from then on is of the next kill.
pub(crate) fn some_more(ledger: &Ledger, round: u64) {
    let (written, by_each) = (ledger.written(), ledger.written_by_each());
    let wanted = round * 37 % 101 + 20;
    wait_until("everybody's rows are written", SOON * 3, || {
        let now = ledger.written_by_each();
        let mut each = now.iter().zip(&by_each);
        ledger.written() > written + wanted && each.all(|(now, then)| *now >= then + 2)
    });
    ledger.next_kill();
}

/// What was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Killed {
    Server,
    Proxy,
}

/// The ledger is right, and each kill cost each writer one error at most. Where the proxy was killed nobody is there for who
/// comes again, until the next one listens.
pub(crate) fn check(ledger: Ledger, admin: &Target, killed: Killed) {
    let told = ledger.stop();
    told.must_be_right(admin);
    let mut of_kill: BTreeMap<(u32, usize), Vec<&Problem>> = BTreeMap::new();
    let nobody_there = |problem: &Problem| killed == Killed::Proxy && problem.at_log_in;
    for problem in told.errors.iter().filter(|p| !nobody_there(p)) {
        assert!(problem.kill > 0, "{problem:?}");
        let of_writer = of_kill.entry((problem.kill, problem.client)).or_default();
        of_writer.push(problem);
    }
    let many: Vec<_> = of_kill.values().filter(|told| told.len() > 1).collect();
    assert!(many.is_empty(), "more than one error: {many:#?}");
}

#[test]
fn fault_kills_of_the_server_at_random() {
    let mut server = Server::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"100ms\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let ledger = Ledger::start(&server.admin(), &proxy.app(), WRITERS);
    let rounds = sized(3, 20);
    for round in 0..rounds {
        some_more(&ledger, round as u64);
        server.kill();
        server.run_again();
    }
    some_more(&ledger, 0);
    check(ledger, &server.admin(), Killed::Server);
}

/// The steps of an event, and none.
pub(crate) const STEPS: [&str; 6] = ["prepare", "probe", "wait", "settle", "cut_over", "none"];

/// Starts an event that comes to this step. For two of them somebody has to be in the way.
pub(crate) fn reach(proxy: &Proxy, step: &str, options: &Value) -> Option<Client> {
    let in_the_way = ["probe", "wait"].contains(&step).then(|| {
        let mut client = proxy.client("in the way");
        client.run("BEGIN");
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
    let proxy = Proxy::local(&quick());
    let ledger = Ledger::start(&proxy.local_admin(), &proxy.app(), WRITERS);
    for step in STEPS {
        for round in 0..sized(1, 20) {
            some_more(&ledger, round as u64);
            let in_the_way = reach(&proxy, step, &json!({ "restart": true }));
            proxy.kill_server();
            drop(in_the_way);
            settled(&proxy);
        }
    }
    // And while it is held by hand.
    for _ in 0..sized(1, 20) {
        proxy.admin().act("hold");
        proxy.kill_server();
        proxy.admin().act("release");
        some_more(&ledger, 1);
        settled(&proxy);
    }
    proxy.admin().swap();
    some_more(&ledger, 1);
    check(ledger, &proxy.local_admin(), Killed::Server);
}

/// Server processes that work in this directory.
fn servers(dir: &std::path::Path) -> usize {
    let dir = dir.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let here = processes.filter(|e| {
        let line = fs::read(e.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("--datadir=") && line.contains(&dir)
    });
    here.count()
}

#[test]
fn fault_kills_of_the_proxy_in_each_step_of_an_event() {
    let mut proxy = Proxy::local(&quick());
    let ledger = Ledger::start(&proxy.local_admin(), &proxy.app(), WRITERS);
    for step in STEPS {
        for round in 0..sized(1, 20) {
            some_more(&ledger, round as u64);
            let in_the_way = reach(&proxy, step, &json!({ "restart": true }));
            proxy.kill_and_restart();
            drop(in_the_way);
            assert_eq!(servers(proxy.local_dir()), 1, "{step}");
        }
    }
    some_more(&ledger, 1);
    settled(&proxy);
    proxy.admin().swap();
    assert_eq!(servers(proxy.local_dir()), 1);
    some_more(&ledger, 1);
    check(ledger, &proxy.local_admin(), Killed::Proxy);
}

#[test]
fn safety_25_mysql_the_next_proxy_adopts_the_server_as_it_is() {
    let mut proxy = Proxy::local(&quick());
    let mut client = proxy.client("before");
    client.run("CREATE TABLE t (a int)");
    client.run("INSERT INTO t VALUES (5)");
    let process = proxy.server_process();
    proxy.kill_and_restart();
    // It was not at the proxy's connection that the client was.
    let error = client.try_run("SELECT 1").unwrap_err();
    assert_eq!(code(&error), 0, "{error}");
    assert_eq!(proxy.server_process(), process);
    let mut client: Client = proxy.client("after");
    assert_eq!(client.value("SELECT a FROM t"), "5");
    assert_eq!(servers(proxy.local_dir()), 1);
}
