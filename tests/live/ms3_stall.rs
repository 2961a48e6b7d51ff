//! Must show 3: measurements, run by `make bench`. The longest stall that a client sees per event (`local`,
//! switch by restart or to a standby), beside what the server itself needs: the same stop signal to the first successful
//! query, polled every 2 ms, or to the first write on its promoted standby, under the same load, a checkpoint just before
//! both, taken in turns.

use crate::support::admin::Admin;
use crate::support::ledger::Ledger;
use crate::support::pgbench;
use crate::support::postgres::{ADMIN, Postgres, SERVER};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{SOON, wait_until};
use nix::sys::signal::Signal;
use std::io::Write as _;
use std::time::Duration;
use tokio::time::Instant;

const CLIENTS: u32 = 20;

#[test]
#[ignore = "a measurement: make bench"]
fn ms3_stall_beside_the_servers_own_restart() {
    let events = std::env::var("BENCH_EVENTS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(50);
    // Two servers alike: one that the proxy restarts, one that is restarted by hand.
    let proxy = Proxy::local(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    pgbench::fill_through(proxy.port());
    let settings = settings_of(&admin);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut twin = Postgres::start(&settings);
    pgbench::fill(&twin);
    let (mut through, mut own) = (Vec::new(), Vec::new());
    for _ in 0..events {
        through.push(stall_of_one_event(&proxy, &admin));
        own.push(restart_by_hand(&mut twin));
    }
    report("the server's own stop to first query", through, own);
}

#[test]
#[ignore = "a measurement: make bench"]
fn ms3_stall_beside_the_servers_own_promotion() {
    let events = std::env::var("BENCH_EVENTS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(50);
    let proxy = Proxy::standby(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    pgbench::fill_through(proxy.port());
    let settings = settings_of(&admin);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut twin = Postgres::start(&settings);
    pgbench::fill(&twin);
    let mut standby = Postgres::standby_of(&mut twin, &settings);
    let (mut through, mut own) = (Vec::new(), Vec::new());
    for _ in 0..events {
        // The standby is there before clients begin to work: what is measured is the switch.
        proxy.admin().wait_standby();
        through.push(stall_of_one_event(&proxy, &admin));
        own.push(promotion_by_hand(&mut twin, &standby));
        std::mem::swap(&mut twin, &mut standby);
        standby.follow(&twin);
    }
    report("the server's own switch", through, own);
}

/// Stop signal to first successful write on the standby, with the same clients at work: the stop, the last of
/// the log, the promotion.
fn promotion_by_hand(server: &mut Postgres, standby: &Postgres) -> Duration {
    let admin = server.admin();
    let ledger = Ledger::start(&admin, &server.app(), CLIENTS);
    warm(&ledger);
    checkpoint(&admin);
    let mut client = Client::connect(&standby.admin()).expect("the standby lets its superuser in");
    let at = Instant::now();
    let end = at + SERVER;
    let mut until = |sql: &str| {
        while !matches!(client.query(sql), Ok(rows) if rows[0][0].as_deref() == Some("t")) {
            assert!(Instant::now() < end, "the standby did not take over: {sql}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    };
    server.signal(Signal::SIGINT);
    server.wait();
    until("select pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()");
    standby.promote();
    until("select not pg_is_in_recovery()");
    until("insert into ledger values (0, 0) returning true");
    let took = at.elapsed();
    ledger.stop();
    took
}

/// What the proxy's server was started with, but for its place.
fn settings_of(admin: &Target) -> Vec<String> {
    let mut client = Client::connect(admin).expect("the superuser may log in");
    let sql = "select name || '=' || current_setting(name) from pg_settings where source = 'command line' \
               and name not in ('port', 'listen_addresses', 'unix_socket_directories', 'data_directory', \
               'cluster_name', 'config_file', 'hba_file', 'ident_file', 'primary_conninfo')";
    let rows = client.query(sql).unwrap_or_else(|e| panic!("{e}"));
    let given = rows.into_iter().filter_map(|mut row| row.pop().flatten());
    // The tests' own servers leave durability out.
    given.chain(["fsync=on".to_owned()]).collect()
}

/// The longest answer that any of the clients waited for during one event.
fn stall_of_one_event(proxy: &Proxy, admin: &Target) -> Duration {
    let ledger = Ledger::start(admin, &proxy.app(), CLIENTS);
    warm(&ledger);
    checkpoint(admin);
    let api: Admin = proxy.admin();
    let from = Instant::now();
    api.swap();
    let to = Instant::now();
    let written = ledger.written();
    wait_until("clients go on", SOON, || ledger.written() > written + 200);
    let told = ledger.stop();
    told.must_be_right(admin);
    told.longest(from, to)
}

/// Stop signal to first successful query of the server alone, with the same clients at work.
fn restart_by_hand(server: &mut Postgres) -> Duration {
    let admin = server.admin();
    let ledger = Ledger::start(&admin, &server.app(), CLIENTS);
    warm(&ledger);
    checkpoint(&admin);
    // The clients leave at the stop, as the proxy's sessions do.
    let at = Instant::now();
    server.signal(Signal::SIGINT);
    server.wait();
    server.spawn();
    let end = at + SERVER;
    while Client::connect(&admin)
        .and_then(|mut c| c.query("select 1"))
        .is_err()
    {
        assert!(Instant::now() < end, "the server did not come back");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    let took = at.elapsed();
    ledger.stop();
    took
}

fn warm(ledger: &Ledger) {
    wait_until("clients work", SOON, || ledger.written() > 1_000);
}

fn checkpoint(admin: &Target) {
    Client::connect(admin)
        .expect("the superuser may log in")
        .run("checkpoint");
}

/// `what` the server itself needed.
fn report(what: &str, mut through: Vec<Duration>, mut own: Vec<Duration>) {
    let line = |name: &str, list: &mut Vec<Duration>| {
        list.sort();
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        let at = |part: f64| ms(list[((list.len() - 1) as f64 * part) as usize]);
        let text = format!(
            "| {name} | {} | {:.0} | {:.0} | {:.0} |",
            list.len(),
            at(0.5),
            at(0.9),
            at(1.0)
        );
        (at(0.5), text)
    };
    let (median_through, first) = line("longest stall of a client, per event", &mut through);
    let (median_own, second) = line(what, &mut own);
    let ratio = median_through / median_own;
    let text = format!(
        "\n| {CLIENTS} clients, ms | events | median | p90 | max |\n|---|---|---|---|---|\n\
         {first}\n{second}\n\nratio of the medians: {ratio:.2} (wanted: at most 1.5)\n"
    );
    std::io::stdout()
        .write_all(text.as_bytes())
        .expect("standard output takes the report");
    assert!(ratio.is_finite(), "both were measured");
}
