//! `switch = "standby"`: whoever is killed when, everything that was acknowledged is there, and never do two servers
//! take writes. Tests of the provider alone, with its future dropped at every step, are beside it.

use crate::fault_kills::{Killed, WRITERS, check, hold, reach, settled, some_more};
use crate::standby::admin;
use crate::support::direct::Direct;
use crate::support::ledger::Ledger;
use crate::support::postgres::{kill_tree, pid_in};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{EVENT, sized, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::time::Duration;

/// A cluster with everybody at work: clients of the proxy, and writers past it.
struct AtWork {
    proxy: Proxy,
    over_proxy: Target,
    ledger: Ledger,
    direct: Direct,
}

impl AtWork {
    fn start() -> Self {
        let proxy = Proxy::standby(&Options::default());
        proxy.admin().wait_standby();
        let over_proxy = admin(&proxy);
        Self {
            ledger: Ledger::start(&over_proxy, &proxy.app(), WRITERS),
            direct: Direct::start(&over_proxy, proxy.data_dir()),
            proxy,
            over_proxy,
        }
    }

    /// Everybody writes again.
    fn go_on(&self, round: u32) {
        let accepted = self.direct.written();
        some_more(&self.ledger, round);
        wait_until("writers past the proxy go on", EVENT, || {
            self.direct.written() > accepted + 20
        });
    }

    /// After a kill: it comes back by itself, with one server that takes writes, and the other data directory fenced.
    fn killed(&self) {
        settled(&self.proxy);
        wait_until("the cluster is back", EVENT, || {
            self.proxy.admin().cluster()["state"] == "running"
        });
        let primary = self.proxy.settled_primary();
        wait_until("the primary takes writes", EVENT, || {
            let answer = |client: &mut Client| client.query("select pg_is_in_recovery()").ok();
            let client = Client::connect(&self.over_proxy).ok();
            let rows = client.and_then(|mut client| answer(&mut client));
            rows.is_some_and(|rows| rows[0][0].as_deref() == Some("f"))
        });
        let homes = self.proxy.homes();
        let has = |home: usize, file: &str| homes[home].join(file).exists();
        assert!(!has(primary, "standby.signal"), "a primary is not fenced");
        // (A standby that is made anew takes the place of the one before, which is removed file by file.)
        let other = 1 - primary;
        wait_until("the other data directory is fenced", EVENT, || {
            !has(other, "PG_VERSION") || has(other, "standby.signal")
        });
    }

    fn must_be_right(self, killed: Killed) {
        self.go_on(1);
        // And nothing is left that would be in the way of the next event.
        let id = self.proxy.admin().start_event(&json!({}));
        // The standby may have to be made anew.
        let event = self.proxy.admin().finished(id, EVENT * 2);
        assert_eq!(event["outcome"], "completed", "{event:#}");
        self.go_on(1);
        check(self.ledger, &self.over_proxy, killed);
        self.direct.must_be_right(&self.over_proxy);
    }
}

/// A moment within a step, later from round to round.
fn within(step: &str, round: u32) {
    let each = match step {
        "prepare" => 15,
        "cut_over" => sized(60, 15),
        _ => 0,
    };
    std::thread::park_timeout(Duration::from_millis(each) * round);
}

/// The primary is killed while an event is in this step.
fn server_killed_in(step: &str) {
    let all = AtWork::start();
    for round in 0..sized(if step == "cut_over" { 3 } else { 1 }, 20) {
        all.go_on(round);
        let in_the_way = reach(&all.proxy, step, &json!({}));
        within(step, round);
        all.proxy.kill_server();
        drop(in_the_way);
        all.killed();
    }
    all.must_be_right(Killed::Server);
}

/// Nothing is to be done then: it is started again, and its standby is not promoted.
#[test]
fn safety_22_a_crashed_primary_is_started_again_and_its_standby_not_promoted() {
    let all = AtWork::start();
    all.proxy.scale_by_command();
    let primary = all.proxy.settled_primary();
    for round in 0..sized(2, 20) {
        all.go_on(round);
        let pid = pid_in(&all.proxy.homes()[primary]).expect("the primary runs");
        if round % 2 == 0 {
            // Its other processes go on for a moment without it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        } else {
            all.proxy.kill_server();
        }
        wait_until("it is started again", EVENT, || {
            pid_in(&all.proxy.homes()[primary]).is_some_and(|now| now != pid)
        });
        all.killed();
        assert_eq!(all.proxy.settled_primary(), primary);
    }
    all.must_be_right(Killed::Server);
}

#[test]
fn safety_22_a_primary_killed_in_prepare_is_started_again() {
    server_killed_in("prepare");
}

#[test]
fn safety_22_a_primary_killed_in_probe_is_started_again() {
    server_killed_in("probe");
}

#[test]
fn safety_22_a_primary_killed_in_wait_is_started_again() {
    server_killed_in("wait");
}

#[test]
fn safety_22_a_primary_killed_in_settle_is_started_again() {
    server_killed_in("settle");
}

#[test]
fn safety_22_a_primary_killed_in_cut_over_leaves_one_with_everything() {
    server_killed_in("cut_over");
}

#[test]
fn safety_22_a_primary_killed_during_a_hold_is_started_again() {
    let all = AtWork::start();
    for round in 0..sized(1, 20) {
        all.go_on(round);
        hold(&all.proxy);
        all.proxy.kill_server();
        all.proxy.admin().act("release");
        all.killed();
    }
    all.must_be_right(Killed::Server);
}

/// The standby is killed while it takes over: whatever serves then has everything.
#[test]
fn safety_23_a_standby_killed_during_the_switch_leads_back_or_forward() {
    let all = AtWork::start();
    for round in 0..sized(4, 20) {
        all.go_on(round);
        let standby = 1 - all.proxy.settled_primary();
        reach(&all.proxy, "cut_over", &json!({}));
        within("cut_over", round);
        if let Some(pid) = pid_in(&all.proxy.homes()[standby]) {
            kill_tree(pid);
        }
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
fn safety_25_a_proxy_killed_in_prepare_is_followed_by_one_that_goes_on() {
    proxy_killed_in("prepare");
}

#[test]
fn safety_25_a_proxy_killed_in_probe_is_followed_by_one_that_goes_on() {
    proxy_killed_in("probe");
}

#[test]
fn safety_25_a_proxy_killed_in_wait_is_followed_by_one_that_goes_on() {
    proxy_killed_in("wait");
}

#[test]
fn safety_25_a_proxy_killed_in_settle_is_followed_by_one_that_goes_on() {
    proxy_killed_in("settle");
}

#[test]
fn safety_25_a_proxy_killed_in_cut_over_is_followed_by_one_that_goes_on() {
    proxy_killed_in("cut_over");
}
