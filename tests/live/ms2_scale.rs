//! Must show 2: `slackwater scale` up and down while pgbench runs and a ledger is kept: no error, nothing lost,
//! nothing doubled, and each event proven by a new server process or a new start time of the server.

use crate::support::ledger::Ledger;
use crate::support::pgbench::{self, Load};
use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Target;
use crate::support::{SOON, sized, wait_until};

const CLIENTS: u32 = 20;

/// Events per query mode: 50 in all, or some.
fn events() -> u32 {
    sized(2, 17)
}

#[test]
fn ms2_static_simple() {
    on_static("simple");
}

#[test]
fn ms2_static_extended() {
    on_static("extended");
}

#[test]
fn ms2_static_prepared() {
    on_static("prepared");
}

#[test]
fn ms2_local_simple() {
    on_local("simple");
}

#[test]
fn ms2_local_extended() {
    on_local("extended");
}

#[test]
fn ms2_local_prepared() {
    on_local("prepared");
}

#[test]
fn ms2_standby_simple() {
    on_standby("simple");
}

#[test]
fn ms2_standby_extended() {
    on_standby("extended");
}

#[test]
fn ms2_standby_prepared() {
    on_standby("prepared");
}

fn on_static(mode: &str) {
    let server = Postgres::start(&[]);
    pgbench::fill(&server);
    let proxy = Proxy::on(&server);
    events_under_load(&proxy, &server.admin(), mode, "select pg_backend_pid()");
}

fn on_local(mode: &str) {
    // An update that was under way holds rows of pgbench's tables, never the event for long.
    let proxy = Proxy::local(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    pgbench::fill_through(proxy.port());
    events_under_load(&proxy, &admin, mode, "select pg_postmaster_start_time()");
}

fn on_standby(mode: &str) {
    let proxy = Proxy::standby(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    pgbench::fill_through(proxy.port());
    events_under_load(&proxy, &admin, mode, "select pg_postmaster_start_time()");
}

fn events_under_load(proxy: &Proxy, admin: &Target, mode: &str, proof: &str) {
    let ledger = Ledger::start(admin, &proxy.app(), 6);
    let load = Load::start(proxy.port(), mode, CLIENTS);
    let mut witness = proxy.client("witness");
    let mut last = witness.value(proof);
    for event in 1..=events() {
        let written = ledger.written();
        wait_until("the ledger goes on", SOON, || {
            ledger.written() > written + 50 || load.is_over()
        });
        if load.is_over() {
            break;
        }
        proxy.scale_by_command();
        let now = witness.value(proof);
        assert_ne!(now, last, "event {event} changed nothing");
        last = now;
    }
    let transactions = load.stop();
    assert!(transactions > 0);
    ledger.stop().must_be_right(admin);
    let completed = proxy
        .admin()
        .metric("slackwater_scale_events_total", "completed");
    assert!(
        (completed - f64::from(events())).abs() < 0.5,
        "{completed} events were counted"
    );
}
