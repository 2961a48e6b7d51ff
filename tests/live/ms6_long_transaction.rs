//! Must show 6: one long transaction, many others at work, an event wanted: nobody else ever waits longer than
//! `max_hold` and the cut-over, and all holds together take at most 5 % of the search.

use crate::support::ledger::Ledger;
use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Target;
use crate::support::{EVENT, SOON, sized, wait_until};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// `max_hold` of the cluster: the short variant keeps its relation to the transaction's length.
fn max_hold() -> Duration {
    Duration::from_millis(sized(200, 1000))
}

/// What a busy machine may add to a wait.
const SLACK: Duration = Duration::from_millis(500);

#[test]
fn ms6_static_a_long_transaction_keeps_nobody_waiting() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::with(&server, &options());
    long_transaction(&proxy, &server.admin(), Duration::ZERO);
}

#[test]
fn ms6_local_a_long_transaction_keeps_nobody_waiting() {
    let proxy = Proxy::local(&options());
    let admin = Target::new(proxy.port(), ADMIN, "app");
    // The cut-over is a restart of the server.
    long_transaction(&proxy, &admin, Duration::from_secs(5));
}

fn options() -> Options {
    Options {
        scaling: format!("max_hold = \"{}ms\"", max_hold().as_millis()),
        ..Options::default()
    }
}

fn long_transaction(proxy: &Proxy, ledger_admin: &Target, cut_over: Duration) {
    let admin = proxy.admin();
    let ledger = Ledger::start(ledger_admin, &proxy.app(), sized(10, 50));
    wait_until("the others work", SOON, || ledger.written() > 200);
    let before = Instant::now();
    let mut long = proxy.client("long");
    long.run("create table if not exists slow (a int)");
    // What the machine makes the same clients wait without any event, for as long as the search will take.
    let seconds = sized(8, 60);
    long.run(&format!("select pg_sleep({seconds})"));
    long.run("begin");
    long.run("insert into slow values (1)");
    let from = Instant::now();
    let event = admin.start_event(&json!({ "timeout_seconds": 120 }));
    // The transaction's length is what is tested: one statement that takes it.
    long.run(&format!("select pg_sleep({seconds})"));
    assert!(
        admin.outcome(event).is_none(),
        "the event waits: {:#}",
        admin.event(event)
    );
    let searched = from.elapsed();
    let during = admin.event(event);
    let searching_until = Instant::now();
    long.run("commit");
    let state = admin.finished(event, EVENT);
    let to = Instant::now();
    assert_eq!(state["outcome"], "completed", "{state:#}");
    assert_eq!(long.value("select count(*) from slow"), "1");
    let told = ledger.stop();
    told.must_be_right(ledger_admin);
    let slack = SLACK + 2 * told.longest(before, from);
    let search = told.longest(from, searching_until);
    assert!(
        search <= max_hold() + slack,
        "somebody waited {search:?} while the event searched for {searched:?}: {:#?}\n{during:#}",
        told.stalls_over(SLACK, from)
    );
    let all = told.longest(from, to);
    assert!(
        all <= max_hold() + cut_over + slack,
        "somebody waited {all:?}"
    );
    let held = Duration::from_millis(during["held_total_ms"].as_u64().unwrap_or_default());
    assert!(
        held <= searched / 20,
        "held {held:?} of {searched:?}: {during:#}"
    );
}
