//! Must show 7: many idle sessions and some busy ones: the event completes, all are usable afterwards, and the
//! server never sees more connections than the limit, both ends of a move counted.

use crate::support::ledger::Ledger;
use crate::support::postgres::{Postgres, SERVICE};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{SOON, sized, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const LIMIT: u64 = 90;

#[test]
fn ms7_idle_and_busy_sessions_within_the_limit_of_server_connections() {
    let server = Postgres::start(&["max_connections=200"]);
    let options = Options {
        limits: "login_timeout = \"60s\"".to_owned(),
        sessions: format!("max_server_connections = {LIMIT}"),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let watcher = Watcher::start(server.admin());
    let mut idle: Vec<Client> = (0..sized(250, 1000)).map(|n| resting(&proxy, n)).collect();
    let ledger = Ledger::start(&server.admin(), &proxy.app(), sized(20, 50));
    wait_until("the busy ones work", SOON, || ledger.written() > 200);
    for _ in 0..2 {
        proxy.admin().swap();
        let written = ledger.written();
        wait_until("the busy ones go on", SOON, || {
            ledger.written() > written + 200
        });
        for (n, client) in idle.iter_mut().enumerate() {
            let value = client.value("select current_setting('app.number')");
            assert_eq!(value, n.to_string(), "each session kept its own state");
        }
    }
    ledger.stop().must_be_right(&server.admin());
    let most = watcher.stop();
    assert!(most <= LIMIT, "{most} server connections were seen");
    assert!(most > LIMIT / 2, "the watcher has seen the load ({most})");
}

fn resting(proxy: &Proxy, number: u32) -> Client {
    let mut client = proxy.client("idle");
    client.run(&format!("set app.number = '{number}'"));
    client
}

/// Counts the sessions' connections on the server, again and again.
struct Watcher {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Watcher {
    fn start(admin: Target) -> Self {
        let (stop, most) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (asked, seen) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(&admin).expect("the superuser may log in");
            let sql = format!(
                "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                 and pid <> pg_backend_pid() and usename not in ('{}', 'postgres')",
                SERVICE.0
            );
            while !asked.load(Ordering::Relaxed) {
                seen.fetch_max(client.value(&sql).parse().unwrap(), Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(2));
            }
        });
        Self { stop, most, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watcher panicked");
        self.most.load(Ordering::Relaxed)
    }
}

#[test]
fn ms7_a_waiting_client_gets_the_connection_that_the_longest_resting_session_gives_up() {
    let server = Postgres::start(&[]);
    let options = Options {
        sessions: "max_server_connections = 4".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut clients: Vec<Client> = (0..6).map(|n| resting(&proxy, n)).collect();
    for round in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            let value = client.value("select current_setting('app.number')");
            assert_eq!(value, n.to_string(), "round {round}");
        }
    }
    // A session with a blocker keeps its connection, whoever waits.
    clients[0].run("select pg_advisory_lock(5)");
    let process = clients[0].server_process();
    for client in &mut clients[1..] {
        client.run("select 1");
    }
    assert_eq!(clients[0].server_process(), process);
}
