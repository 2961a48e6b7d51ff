//! Must show 10: the traps of "at rest", and held requests. Each script runs straight on the server and through
//! the proxy with a scale event wanted at its awkward moment; what the client reads is the same, byte for byte.

use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::script::Direct;
use crate::support::scripts::{self, FRESH_TABLE};
use crate::support::wire::{Client, bind, execute, parse, sync};
use crate::support::{SOON, wait_until};

#[test]
fn ms10_scripts_are_right_about_postgresql() {
    let server = Postgres::start(&[]);
    let mut faults = Vec::new();
    for (name, text) in scripts::all() {
        let mut client = Client::connect(&server.app()).unwrap();
        if let Err(fault) = scripts::attempt(&server, &mut client, &text, &mut Direct) {
            faults.push(format!("{name}: {fault}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn ms10_safety_01_at_rest_traps_read_the_same_through_events() {
    let only = std::env::var("SLACKWATER_TEST_SCRIPT").unwrap_or_default();
    // Those of a case are run by its test.
    scripts::compare(|name| !name.starts_with("case_") && name.contains(&only));
}

#[test]
fn ms10_safety_05_request_held_for_a_client_that_left_is_never_sent() {
    let server = Postgres::start(&[]);
    server.run(FRESH_TABLE);
    let proxy = Proxy::on(&server);
    let admin = proxy.admin();
    let (mut simple, mut extended, mut stays) = (
        proxy.client("simple"),
        proxy.client("extended"),
        proxy.client("stays"),
    );
    for client in [&mut simple, &mut extended, &mut stays] {
        client.run("select 1");
    }
    admin.act("hold");
    wait_until("the cluster holds", SOON, || {
        admin.cluster()["state"] == "holding"
    });
    simple.start("insert into t values (1)").unwrap();
    let bytes = [
        parse("", "insert into t values (2)"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    extended.send(&bytes).unwrap();
    stays.start("insert into t values (3)").unwrap();
    wait_until("all three are held", SOON, || {
        admin.sessions_count("held") == 3
    });
    simple.hang_up();
    extended.hang_up();
    wait_until("the proxy has noticed", SOON, || {
        admin.cluster()["clients"] == 1
    });
    admin.act("release");
    stays.finish().expect("the client that stayed is answered");
    assert_eq!(stays.value("select string_agg(a::text, ',') from t"), "3");
}

#[test]
fn ms10_case_01_cancel_of_a_held_request_is_answered_at_once() {
    let server = Postgres::start(&[]);
    server.run(FRESH_TABLE);
    let proxy = Proxy::on(&server);
    let admin = proxy.admin();
    let (mut client, mut other) = (proxy.client("canceled"), proxy.client("other"));
    client.run("select 1");
    other.run("select 1");
    admin.act("hold");
    wait_until("the cluster holds", SOON, || {
        admin.cluster()["state"] == "holding"
    });
    // Nothing waits: a cancel does nothing.
    client.cancel();
    client.start("insert into t values (1)").unwrap();
    other.start("insert into t values (2)").unwrap();
    wait_until("both are held", SOON, || admin.sessions_count("held") == 2);
    client.cancel();
    let error = client.finish().expect_err("it was canceled").server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("ERROR", "57014")
    );
    // The session lives on: its next request is held as well, then served.
    client.start("insert into t values (3)").unwrap();
    wait_until("the next is held", SOON, || {
        admin.sessions_count("held") == 2
    });
    // The first held request of a pipeline goes up to its Sync, the rest stays.
    admin.act("release");
    client.finish().expect("served after the release");
    other.finish().expect("the other was never touched");
    assert_eq!(
        client.value("select string_agg(a::text, ',' order by a) from t"),
        "2,3"
    );
}

#[test]
fn ms10_safety_07_cancel_of_a_held_pipeline_takes_its_first_part_only() {
    let server = Postgres::start(&[]);
    server.run(FRESH_TABLE);
    let proxy = Proxy::on(&server);
    let admin = proxy.admin();
    let mut client = proxy.client("pipeline");
    client.run("select 1");
    admin.act("hold");
    wait_until("the cluster holds", SOON, || {
        admin.cluster()["state"] == "holding"
    });
    let mut bytes = Vec::new();
    for n in ["1", "2"] {
        bytes.extend(parse("", "insert into t values ($1)"));
        bytes.extend(bind("", "", &[n]));
        bytes.extend(execute("", 0));
        bytes.extend(sync());
    }
    client.send(&bytes).unwrap();
    wait_until("it is held", SOON, || admin.sessions_count("held") == 1);
    client.cancel();
    let error = client
        .finish()
        .expect_err("the first part was canceled")
        .server();
    assert_eq!(error.code, "57014");
    admin.act("release");
    client.finish().expect("the second part is served");
    assert_eq!(client.value("select string_agg(a::text, ',') from t"), "2");
}

#[test]
fn ms10_case_07_cancel_stops_a_running_statement_before_and_after_a_move() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("runs");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    for _ in 0..3 {
        client.start("select pg_sleep(600)").unwrap();
        wait_until("the statement runs", SOON, || {
            let sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)' and state = 'active'";
            watcher.value(sql) == "1"
        });
        client.cancel();
        let error = client.finish().expect_err("it was canceled").server();
        assert_eq!(error.code, "57014");
        client.run("select 1");
        let before = client.server_process();
        proxy.admin().swap();
        assert_ne!(client.server_process(), before);
    }
}

#[test]
fn ms10_a_client_that_leaves_in_mid_statement_leaves_nothing_behind() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("leaves");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    client.run("select pg_advisory_lock(4711)");
    client.start("select pg_sleep(600)").unwrap();
    let mut count = |sql: &str| watcher.value(sql);
    wait_until("the statement runs", SOON, || {
        count(
            "select count(*) from pg_stat_activity where query like '%pg_sleep(600)' and state = 'active'",
        ) == "1"
    });
    client.hang_up();
    wait_until("its lock is free", SOON, || {
        count("select count(*) from pg_locks where locktype = 'advisory'") == "0"
    });
    wait_until("it is not counted any more", SOON, || {
        proxy.admin().session("leaves").is_none()
    });
}

#[test]
fn ms10_case_02_a_late_cancel_hits_nothing() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let (mut client, mut other) = (proxy.client("late"), proxy.client("other"));
    for round in 0..100 {
        // Sent while the statement may run, be over, or not have begun.
        client.start("select 1").unwrap();
        if round % 2 == 0 {
            client.finish().expect("there was no cancel yet");
            client.cancel();
        } else {
            client.cancel();
            if let Err(error) = client.finish() {
                assert_eq!(error.server().code, "57014");
            }
        }
        // Whoever sent the cancel has seen its connection closed: it hits nothing of what follows.
        client.run("select pg_sleep(0.001)");
        other.run("select 1");
    }
    // A key that is wrong in one bit is nobody's.
    client.secret[0] ^= 1;
    client.start("select pg_sleep(0.5), 'slept'").unwrap();
    wait_until("the statement runs", SOON, || {
        let session = proxy.admin().session("late");
        session.is_some_and(|s| s["state"] == "active")
    });
    client.cancel();
    let rows = client.finish().expect("not canceled");
    assert_eq!(rows[0][1].as_deref(), Some("slept"));
}
