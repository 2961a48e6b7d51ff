//! `static` with two servers: sessions go to the second one only when it is proven that it has everything.

use crate::support::ledger::Ledger;
use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::Proxy;
use crate::support::wire::{Client, Target};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;

fn refused(proxy: &Proxy, why: &str) {
    let id = proxy.admin().start_event(&json!({}));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "failed", "{event:#}");
    let reason = event["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(why), "{reason}");
    assert_eq!(proxy.admin().capacity(), 2);
}

#[test]
fn safety_18_two_servers_are_switched_only_after_the_proof() {
    let mut first = Postgres::start(&[]);
    let mut second = Postgres::standby_of(&mut first, &[]);
    let proxy = Proxy::between(&first, &second);
    let admin = Target::new(proxy.port(), ADMIN, "app");
    let ledger = Ledger::start(&first.admin(), &proxy.app(), 3);
    let written = ledger.written();
    wait_until("clients write", SOON, || ledger.written() > written + 50);
    // A standby takes no writes.
    refused(&proxy, "standby");
    let written = ledger.written();
    wait_until("clients write", SOON, || ledger.written() > written + 50);

    // Stopped, and the second one promoted: nobody tells where the log of the first one ended.
    first.stop();
    second.promote();
    wait_until("it is promoted", SOON, || {
        Client::connect(&second.admin())
            .is_ok_and(|mut c| c.value("select pg_is_in_recovery()") == "f")
    });
    refused(&proxy, "does not tell where its log ends");

    // It follows: proven. Who waited goes on there.
    first.follow(&second);
    wait_until("the second one serves", EVENT, || {
        proxy.admin().capacity() == 4 && proxy.admin().cluster()["state"] == "running"
    });
    let written = ledger.written();
    wait_until("clients write", SOON, || ledger.written() > written + 50);
    let faults = ledger.stop().faults(&admin);
    assert!(faults.is_empty(), "{faults:#?}");
    second.stop();
}

#[test]
fn safety_18_two_primaries_are_refused() {
    let mut first = Postgres::start(&[]);
    let second = Postgres::standby_of(&mut first, &[]);
    let proxy = Proxy::between(&first, &second);
    let mut client = proxy.client("witness");
    second.promote();
    wait_until("it is promoted", SOON, || {
        Client::connect(&second.admin())
            .is_ok_and(|mut c| c.value("select pg_is_in_recovery()") == "f")
    });
    refused(&proxy, "both take writes");
    assert_eq!(
        client.value("select current_setting('port')"),
        first.port().to_string()
    );
}
