//! Scale events under load: no error, no acknowledged row lost or doubled.

use crate::support::client::{Client, Target};
use crate::support::ledger::Ledger;
use crate::support::proxy::{Options, Proxy};
use crate::support::server::Server;
use crate::support::sysbench::{self, Load};
use crate::support::{EVENT, SOON, sized, wait_until};
use serde_json::json;

const LOADS: [(&str, bool); 4] = [
    ("oltp_read_write", false),
    ("oltp_read_write", true),
    ("oltp_point_select", false),
    ("oltp_point_select", true),
];

/// `proof`: what each event changes, for one that is not the same server.
fn events_under_load(proxy: &Proxy, admin: &Target, proof: Option<&str>) {
    sysbench::fill(proxy.port());
    let events = sized(2, 13);
    let mut witness = proxy.client("witness");
    let mut ask = || proof.map(|sql| witness.value(sql));
    let mut last = ask();
    for (test, prepared) in LOADS {
        let ledger = Ledger::start(admin, &proxy.app(), 4);
        let load = Load::start(proxy.port(), test, prepared, sized(8, 16));
        for _ in 0..events {
            let before = ledger.written();
            wait_until("rows are written", SOON, || ledger.written() > before + 20);
            let id = proxy.admin().start_event(&json!({}));
            // A standby may have much to catch up with.
            let event = proxy.admin().finished(id, EVENT * 3);
            assert_eq!(event["outcome"], "completed", "{event:#}");
            let now = ask();
            assert!(proof.is_none() || now != last, "{now:?} as before");
            last = now;
        }
        let before = ledger.written();
        wait_until("rows are written", SOON, || ledger.written() > before + 20);
        load.stop();
        let told = ledger.stop();
        assert!(told.errors.is_empty(), "{test}: {:?}", told.errors);
        told.must_be_right(admin);
    }
}

#[test]
fn ms1_static_under_sysbench() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    events_under_load(&proxy, &server.admin(), None);
}

#[test]
fn ms1_local_restarts_under_sysbench() {
    let proxy = Proxy::local(&Options::default());
    let start = "SELECT @@GLOBAL.report_host";
    events_under_load(&proxy, &proxy.local_admin(), Some(start));
}

#[test]
fn ms1_standby_under_sysbench() {
    let proxy = Proxy::standby(&Options::default());
    // Where the ledger is changes with each event.
    events_under_load(&proxy, &proxy.app(), Some("SELECT @@GLOBAL.server_id"));
}

#[test]
fn ms1_the_ledger_finds_what_was_lost_and_what_was_doubled() {
    let server = Server::start(&[]);
    let ledger = Ledger::start(&server.admin(), &server.app(), 3);
    let mut client = Client::to(&server.admin());
    wait_until("each client has written", SOON, || {
        client.value("SELECT COUNT(DISTINCT client) FROM app.ledger WHERE n = 3") == "3"
    });
    let told = ledger.stop();
    told.must_be_right(&server.admin());
    server.run(&[
        "DELETE FROM app.ledger WHERE client = 1 AND n = 3",
        "INSERT INTO app.ledger SELECT * FROM app.ledger WHERE client = 2 AND n = 2",
        "INSERT INTO app.ledger VALUES (2, 1000000)",
    ]);
    let mut faults = told.faults(&server.admin());
    faults.sort();
    assert_eq!(
        faults,
        [
            "(2, 1000000) is there and was never written",
            "client 1: 3 was Done and is there 0 times",
            "client 2: 2 was Done and is there 2 times",
        ]
    );
}
