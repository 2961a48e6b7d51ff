//! Must show 1: measurements, run by `make bench`. The longest stall that a client sees per event (`local`, switch by
//! restart or to a standby), beside what the servers themselves need under the same load, changed pages written just before
//! both, taken in turns: the same stop signal to the first successful query, polled every 2 ms; or the promotion of a standby
//! by hand, from the moment at which its primary takes no more writes to the first write.

use crate::support::client::{Client, Target};
use crate::support::ledger::Ledger;
use crate::support::proxy::{Options, Proxy};
use crate::support::server::{Kind, Server};
use crate::support::{SOON, wait_until};
use std::fs;
use std::io::Write as _;
use std::time::Duration;
use tokio::time::Instant;

const CLIENTS: usize = 20;

/// Of each client after each row where there is a standby: one on a busy machine falls behind twenty that write without.
const PAUSE: Duration = Duration::from_millis(40);

/// Settings of the proxy's own server that its twin is to have: what a stop and a start cost depends on them.
const ALIKE: [&str; 11] = [
    "--innodb",
    "--max-connections",
    "--performance-schema",
    "--log-bin",
    "--log-replica-updates",
    "--log-slave-updates",
    "--binlog-format",
    "--gtid",
    "--enforce-gtid",
    "--skip-replica-start",
    "--skip-slave-start",
];

fn events() -> usize {
    let events = std::env::var("BENCH_EVENTS").ok();
    events.and_then(|v| v.parse().ok()).unwrap_or(50)
}

/// What the proxy's own server was started with, but for its place.
fn settings_of(proxy: &Proxy) -> Vec<String> {
    let process = proxy.server_process().expect("it runs");
    let line = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
    line.split('\0')
        .filter(|a| ALIKE.iter().any(|start| a.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

#[test]
#[ignore = "a measurement: make bench"]
fn ms1_stall_beside_the_servers_own_restart() {
    // Two servers alike: one that the proxy restarts, one that is restarted by hand.
    let proxy = Proxy::local(&Options::default());
    let settings = settings_of(&proxy);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut twin = Server::start(&settings);
    let (mut through, mut own) = (Vec::new(), Vec::new());
    for _ in 0..events() {
        through.push(stall_of_one_event(&proxy, Duration::ZERO));
        own.push(restart_by_hand(&mut twin));
    }
    report("the server's own stop to first query", through, own);
}

#[test]
#[ignore = "a measurement: make bench"]
fn ms1_stall_beside_the_servers_own_promotion() {
    let proxy = Proxy::standby(&Options::default());
    let settings = settings_of(&proxy);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let [mut primary, mut standby] = Server::pair(&settings);
    let (mut through, mut own) = (Vec::new(), Vec::new());
    for _ in 0..events() {
        // The standby is there before clients begin to work: what is measured is the switch.
        proxy.admin().wait_standby();
        through.push(stall_of_one_event(&proxy, PAUSE));
        own.push(promotion_by_hand(&mut primary, &standby));
        std::mem::swap(&mut primary, &mut standby);
        standby.run_again();
        standby.follow(&primary);
    }
    report("the servers' own last to first write", through, own);
}

/// The longest answer that any of the clients waited for during one event.
fn stall_of_one_event(proxy: &Proxy, pause: Duration) -> Duration {
    let admin = proxy.local_admin();
    let ledger = Ledger::paced(&admin, &proxy.app(), CLIENTS, pause);
    warm(&ledger);
    write_changed_pages(&admin);
    let from = Instant::now();
    proxy.admin().swap();
    let to = Instant::now();
    let written = ledger.written();
    wait_until("clients go on", SOON, || ledger.written() > written + 200);
    let told = ledger.stop();
    assert!(told.errors.is_empty(), "{:?}", told.errors);
    // Where it is now.
    told.must_be_right(&proxy.app());
    told.longest(from, to)
}

/// Stop signal to first successful query of the server alone, with the same clients at work.
fn restart_by_hand(server: &mut Server) -> Duration {
    let admin = server.admin();
    let ledger = Ledger::start(&admin, &server.app(), CLIENTS);
    warm(&ledger);
    write_changed_pages(&admin);
    let at = Instant::now();
    server.stop();
    server.run_again();
    let took = at.elapsed();
    ledger.stop();
    took
}

/// The last write to the first one on the standby, with the same clients at work: as a careful administrator does it, with
/// all log-ins done ahead and nothing waited for longer than it takes.
fn promotion_by_hand(primary: &mut Server, standby: &Server) -> Duration {
    let words = primary.kind.words();
    let admin = primary.admin();
    let ledger = Ledger::paced(&admin, &primary.app(), CLIENTS, PAUSE);
    warm(&ledger);
    write_changed_pages(&admin);
    let (mut old, mut new) = (Client::to(&admin), Client::to(&standby.admin()));
    // It is level, as the proxy's is, when it begins.
    standby.wait_for_all(&mut new, &old.value(words.transactions));
    let at = Instant::now();
    old.run(words.read_only);
    let all = old.value(words.transactions);
    standby.wait_for_all(&mut new, &all);
    new.run(words.stop_receiving);
    // MySQL's stop would wait long for who reads its log.
    let readers = "SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%'";
    for reader in old.rows(readers).lines() {
        // It may have ended by itself.
        let _ = old.try_run(&format!("KILL {reader}"));
    }
    drop(old);
    primary.stop();
    new.run(words.stop_following);
    new.run(words.follow_nobody);
    new.run(&standby.durable());
    new.run(words.writable);
    new.run("INSERT INTO app.ledger VALUES (0, 0)");
    let took = at.elapsed();
    ledger.stop();
    took
}

fn warm(ledger: &Ledger) {
    wait_until("clients work", SOON, || ledger.written() > 1_000);
}

/// As the proxy has its own server do before it holds anybody.
fn write_changed_pages(admin: &Target) {
    let mut admin = Client::to(admin);
    let before = admin.value("SELECT @@GLOBAL.innodb_max_dirty_pages_pct");
    admin.run("SET GLOBAL innodb_max_dirty_pages_pct = 0");
    let dirty = "SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'";
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let left = admin.rows(dirty);
        let left = left.rsplit('|').next().and_then(|n| n.parse().ok());
        if left.unwrap_or(0) < 100 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    admin.run(&format!("SET GLOBAL innodb_max_dirty_pages_pct = {before}"));
}

fn report(of_own: &str, mut through: Vec<Duration>, mut own: Vec<Duration>) {
    let line = |name: &str, list: &mut Vec<Duration>| {
        list.sort();
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        let at = |percent: usize| ms(list[(list.len() - 1) * percent / 100]);
        let (median, p90, most) = (at(50), at(90), at(100));
        let count = list.len();
        let text = format!("| {name} | {count} | {median:.0} | {p90:.0} | {most:.0} |");
        (median, text)
    };
    let (median_through, first) = line("longest stall of a client, per event", &mut through);
    let (median_own, second) = line(of_own, &mut own);
    let ratio = median_through / median_own;
    let text = format!(
        "\n{:?}\n\n| {CLIENTS} clients, ms | events | median | p90 | max |\n|---|---|---|---|---|\n\
         {first}\n{second}\n\nratio of the medians: {ratio:.2} (wanted: at most 1.5)\n",
        Kind::wanted()
    );
    std::io::stdout()
        .write_all(text.as_bytes())
        .expect("standard output takes the report");
    assert!(ratio.is_finite(), "both were measured");
}
