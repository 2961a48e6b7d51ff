//! `switch = "standby"`: everything that the old server had is on the new one, whoever is killed when, and never do two
//! servers take writes. Tests of the provider alone, with its future dropped at every step, are beside it.

use crate::fault_kills::{Killed, WRITERS, check, reach, settled, some_more};
use crate::faults::quick;
use crate::support::client::{Client, Target, app, code};
use crate::support::direct::{Direct, READ_ONLY};
use crate::support::ledger::Ledger;
use crate::support::proxy::{Home, Options, Proxy};
use crate::support::{EVENT, SOON, sized, wait_until};
use serde_json::json;
use std::time::Duration;

/// The ordinary user, straight to the server in this home, if one answers.
fn direct(proxy: &Proxy, home: Home) -> Option<Client> {
    Client::connect(&app(proxy.port_of(home)?)).ok()
}

/// The homes whose servers say that they take writes.
fn writable(proxy: &Proxy) -> Vec<Home> {
    let read_only = |home: Home| {
        direct(proxy, home)?
            .try_value("SELECT @@GLOBAL.read_only")
            .ok()
    };
    let homes = Home::BOTH.into_iter();
    homes
        .filter(|h| read_only(*h).as_deref() == Some("0"))
        .collect()
}

/// Waits until no event is left and the cluster runs; then one server takes writes, and it is the one that is meant.
fn one_writer(proxy: &Proxy) {
    settled(proxy);
    wait_until("the cluster is back", EVENT, || {
        proxy.admin().cluster()["state"] == "running"
    });
    let primary = proxy.settled_primary();
    wait_until("the primary answers", EVENT, || {
        let now = writable(proxy);
        assert!(now.len() < 2, "two servers take writes");
        now == [primary]
    });
}

#[test]
fn safety_21_mysql_a_switch_keeps_sessions_and_data_and_fences_the_old_server() {
    let proxy = Proxy::standby(&Options::default());
    let mut client = proxy.client("witness");
    client.run("CREATE TABLE t (n int)");
    client.run("SET SESSION sort_buffer_size = 400000, @mine = 'kept'");
    for n in 1..=3 {
        let old = client.value("SELECT @@GLOBAL.server_id");
        client.run(&format!("INSERT INTO t VALUES ({n})"));
        proxy.admin().swap();
        assert_ne!(client.value("SELECT @@GLOBAL.server_id"), old);
        assert_eq!(client.value("SELECT COUNT(*) FROM t"), n.to_string());
        let kept = client.value("SELECT CONCAT(@@sort_buffer_size, @mine)");
        assert_eq!(kept, "400000kept");
        one_writer(&proxy);
    }
    // After three switches the first home is the standby.
    assert_eq!(proxy.settled_primary(), Home::Second);
    wait_until("the old server follows", SOON, || {
        let old = direct(&proxy, Home::First);
        old.is_some_and(|mut old| old.value("SELECT COUNT(*) FROM t") == "3")
    });
    let mut old = direct(&proxy, Home::First).expect("it runs");
    let error = old.try_run("INSERT INTO t VALUES (4)").unwrap_err();
    assert_eq!(code(&error), READ_ONLY, "{error}");
    let facts = proxy.admin().cluster()["facts"].to_string();
    for fact in ["standby", "standby_disk", "standby_made_in", "last_switch"] {
        assert!(facts.contains(&format!("\"{fact}\"")), "{facts}");
    }
}

/// Of writers between two rows.
const PAUSE: Duration = Duration::from_millis(10);

/// A cluster with everybody at work: clients of the proxy, and writers past it.
struct AtWork {
    proxy: Proxy,
    ledger: Ledger,
    direct: Direct,
}

impl AtWork {
    fn start() -> Self {
        let proxy = Proxy::standby(&quick());
        proxy.admin().wait_standby();
        let app: Target = proxy.app();
        Self {
            ledger: Ledger::paced(&app, &app, WRITERS, PAUSE),
            direct: Direct::start(&app, proxy.local_dir()),
            proxy,
        }
    }

    /// Everybody writes again.
    fn go_on(&self, round: u32) {
        let accepted = self.direct.written();
        some_more(&self.ledger, u64::from(round));
        wait_until("writers past the proxy go on", EVENT, || {
            self.direct.written() > accepted + 20
        });
    }

    /// After a kill: it comes back by itself, with one server that takes writes.
    fn killed(&self) {
        one_writer(&self.proxy);
    }

    fn must_be_right(self, killed: Killed) {
        self.go_on(1);
        // And nothing is left that would be in the way of the next event.
        let id = self.proxy.admin().start_event(&json!({}));
        // The standby may have to be made anew.
        let event = self.proxy.admin().finished(id, EVENT * 2);
        assert_eq!(event["outcome"], "completed", "{event:#}");
        self.go_on(1);
        one_writer(&self.proxy);
        let app = self.proxy.app();
        check(self.ledger, &app, killed);
        self.direct.must_be_right(&app);
    }
}

/// A moment within a step, later from round to round.
fn within(step: &str, round: u32) {
    let each = match step {
        "prepare" => 15,
        "cut_over" => sized(150, 30),
        _ => 0,
    };
    std::thread::park_timeout(Duration::from_millis(each) * round);
}

/// The primary is killed while an event is in this step.
fn server_killed_in(step: &str) {
    let all = AtWork::start();
    for round in 0..sized(1, 20) {
        all.go_on(round);
        let in_the_way = reach(&all.proxy, step, &json!({}));
        within(step, round);
        all.proxy.kill_server();
        drop(in_the_way);
        all.killed();
    }
    all.must_be_right(Killed::Server);
}

#[test]
fn safety_22_mysql_a_primary_killed_at_rest_is_started_again() {
    server_killed_in("none");
}

#[test]
fn safety_22_mysql_a_primary_killed_in_prepare_is_started_again() {
    server_killed_in("prepare");
}

#[test]
fn safety_22_mysql_a_primary_killed_in_probe_is_started_again() {
    server_killed_in("probe");
}

#[test]
fn safety_22_mysql_a_primary_killed_in_wait_is_started_again() {
    server_killed_in("wait");
}

#[test]
fn safety_22_mysql_a_primary_killed_in_settle_is_started_again() {
    server_killed_in("settle");
}

#[test]
fn safety_22_mysql_a_primary_killed_in_cut_over_leaves_one_with_everything() {
    server_killed_in("cut_over");
}

#[test]
fn safety_22_mysql_a_primary_killed_during_a_hold_is_started_again() {
    let all = AtWork::start();
    for round in 0..sized(1, 20) {
        all.go_on(round);
        all.proxy.admin().act("hold");
        all.proxy.kill_server();
        all.proxy.admin().act("release");
        all.killed();
    }
    all.must_be_right(Killed::Server);
}

/// The standby is killed while it takes over: whatever serves then has everything.
#[test]
fn safety_23_mysql_a_standby_killed_during_the_switch_leads_back_or_forward() {
    let all = AtWork::start();
    for round in 0..sized(4, 20) {
        all.go_on(round);
        let standby = all.proxy.settled_primary().other();
        reach(&all.proxy, "cut_over", &json!({}));
        within("cut_over", round);
        all.proxy.kill_server_in(standby);
        all.killed();
    }
    all.must_be_right(Killed::Server);
}

/// The proxy is killed while an event is in this step, in the longer ones a little later each time, and started
/// again.
fn proxy_killed_in(step: &str) {
    let mut all = AtWork::start();
    for round in 0..sized(3, 20) {
        all.go_on(round);
        let in_the_way = reach(&all.proxy, step, &json!({}));
        within(step, round);
        all.proxy.kill_and_restart();
        drop(in_the_way);
        all.killed();
    }
    all.must_be_right(Killed::Proxy);
}

#[test]
fn safety_25_mysql_a_proxy_killed_in_prepare_is_followed_by_one_that_goes_on() {
    proxy_killed_in("prepare");
}

#[test]
fn safety_25_mysql_a_proxy_killed_in_probe_is_followed_by_one_that_goes_on() {
    proxy_killed_in("probe");
}

#[test]
fn safety_25_mysql_a_proxy_killed_in_wait_is_followed_by_one_that_goes_on() {
    proxy_killed_in("wait");
}

#[test]
fn safety_25_mysql_a_proxy_killed_in_settle_is_followed_by_one_that_goes_on() {
    proxy_killed_in("settle");
}

#[test]
fn safety_25_mysql_a_proxy_killed_in_cut_over_is_followed_by_one_that_goes_on() {
    proxy_killed_in("cut_over");
}
