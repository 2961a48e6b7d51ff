//! Must show 5: each kind of blocker, also taken inside functions, and in a session that is probed only after
//! the event has begun. The event waits and says for what; let go, it completes; at its timeout it rolls back
//! with nobody disturbed; by force exactly the blocking session gets the error.

use crate::support::admin::Admin;
use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target, bind, execute, message, parse, sync};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;

const FUNCTIONS: &[&str] = &[
    "create function lock_it() returns void language plpgsql as $$ begin perform pg_advisory_lock(4, 2); end $$",
    "create function temp_it() returns void language plpgsql as $$ begin create temp table tt (a int); end $$",
    "create function listen_it() returns void language plpgsql as $$ begin execute 'listen chan'; end $$",
    "create function hold_it() returns void language plpgsql as \
     $$ begin execute 'declare hc cursor with hold for select 1'; end $$",
    "create table t (a int)",
    "grant all on t to public",
];

/// A way into a blocker and the way out.
struct Case {
    name: &'static str,
    kind: &'static str,
    user: (&'static str, &'static str),
    enter: &'static [&'static str],
    leave: &'static [&'static str],
}

const APP: (&str, &str) = crate::support::postgres::APP;

const fn case(
    name: &'static str,
    kind: &'static str,
    enter: &'static [&'static str],
    leave: &'static [&'static str],
) -> Case {
    Case {
        name,
        kind,
        user: APP,
        enter,
        leave,
    }
}

const CASES: &[Case] = &[
    case(
        "transaction",
        "transaction",
        &["begin", "insert into t values (1)"],
        &["commit"],
    ),
    case(
        "lock",
        "advisory_lock",
        &["select pg_advisory_lock(42)"],
        &["select pg_advisory_unlock(42)"],
    ),
    case(
        "lock_shared",
        "advisory_lock",
        &["select pg_advisory_lock_shared(43)"],
        &["select pg_advisory_unlock_all()"],
    ),
    case(
        "lock_rolled_back",
        "advisory_lock",
        &["begin", "select pg_advisory_lock(44)", "rollback"],
        &["select pg_advisory_unlock(44)"],
    ),
    case(
        "lock_in_function",
        "advisory_lock",
        &["select lock_it()"],
        &["select pg_advisory_unlock(4, 2)"],
    ),
    case(
        "temp_table",
        "temp_table",
        &["create temp table tt (a int)"],
        &["drop table tt"],
    ),
    case(
        "temp_view",
        "temp_table",
        &["create temp view tv as select 1"],
        &["discard temp"],
    ),
    case(
        "temp_sequence",
        "temp_table",
        &["create temp sequence ts"],
        &["drop sequence ts"],
    ),
    case(
        "temp_in_function",
        "temp_table",
        &["select temp_it()"],
        &["discard temp"],
    ),
    case(
        "select_into_temp",
        "temp_table",
        &["select 1 as a into temp tt"],
        &["drop table tt"],
    ),
    case("listen", "listen", &["listen chan"], &["unlisten chan"]),
    case(
        "listen_in_function",
        "listen",
        &["select listen_it()"],
        &["unlisten *"],
    ),
    case(
        "hold_cursor",
        "hold_cursor",
        &["declare hc cursor with hold for select 1"],
        &["close hc"],
    ),
    case(
        "hold_cursor_in_function",
        "hold_cursor",
        &["select hold_it()"],
        &["close all"],
    ),
    Case {
        name: "replication_slot",
        kind: "replication_slot",
        user: ("repl", "repl-secret"),
        enter: &["select pg_create_physical_replication_slot('tmp_slot', true, true)"],
        leave: &["select pg_drop_replication_slot('tmp_slot')"],
    },
    Case {
        name: "backup",
        kind: "backup",
        user: ADMIN,
        enter: &["select pg_backup_start('b', true)"],
        leave: &["select pg_backup_stop(false)"],
    },
];

fn start() -> (Postgres, Proxy) {
    let server = Postgres::start(&[]);
    server.run(FUNCTIONS);
    let proxy = Proxy::on(&server);
    (server, proxy)
}

fn connect(proxy: &Proxy, user: (&str, &str), name: &str) -> Client {
    let target = Target::new(proxy.port(), user, "app").with("application_name", name);
    Client::connect(&target).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Waits until the event names this session and kind; checks what is said about it.
fn named(admin: &Admin, event: u64, session: &str, kind: &str) {
    wait_until(&format!("{session} is named as {kind}"), SOON, || {
        let state = admin.event(event);
        assert!(
            admin.outcome(event).is_none(),
            "{session}: the event must wait: {state:#}"
        );
        admin
            .blockers(session)
            .iter()
            .any(|b| b["kind"] == kind && b["age_seconds"].is_number() && b["detail"].is_string())
    });
    let shown = admin.session(session).expect("the session is there");
    assert_eq!(shown["movable"], false, "{shown:#}");
    let blockers = shown["blockers"].as_array().expect("blockers are a list");
    let blocker = blockers
        .iter()
        .find(|b| b["kind"] == kind)
        .expect("seen just now");
    assert!(blocker.get("statement").is_some(), "{blocker:#}");
}

fn must_complete(admin: &Admin, event: u64, name: &str) {
    let state = admin.finished(event, EVENT);
    assert_eq!(
        state["outcome"],
        "completed",
        "{name}: {state:#}\n{:#?}",
        admin.sessions()
    );
}

#[test]
fn ms5_cases_are_right_about_postgresql() {
    let server = Postgres::start(&[]);
    server.run(FUNCTIONS);
    for case in CASES {
        let target = Target::new(server.port(), case.user, "app");
        let mut client = Client::connect(&target).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        for sql in case.enter.iter().chain(case.leave) {
            client.run(sql);
        }
        client.close();
    }
}

#[test]
fn ms5_static_every_kind_waits_is_named_and_lets_go() {
    let (_server, proxy) = start();
    every_kind(&proxy);
}

#[test]
fn ms5_local_every_kind_waits_is_named_and_lets_go() {
    every_kind(&start_local());
}

/// With a server of its own: all sessions are held together.
fn start_local() -> Proxy {
    let proxy = Proxy::local(&Options::default());
    let mut client = connect(&proxy, ADMIN, "set-up");
    for sql in FUNCTIONS {
        client.run(sql);
    }
    client.close();
    proxy
}

fn every_kind(proxy: &Proxy) {
    let admin = proxy.admin();
    for case in CASES {
        let mut client = connect(proxy, case.user, case.name);
        let before = client.server_process();
        for sql in case.enter {
            client.run(sql);
        }
        let event = admin.start_event(&json!({}));
        named(&admin, event, case.name, case.kind);
        for sql in case.leave {
            client.run(sql);
        }
        must_complete(&admin, event, case.name);
        assert_ne!(client.server_process(), before, "{}: moved", case.name);
        client.close();
        wait_until("the session is gone", SOON, || {
            admin.session(case.name).is_none()
        });
    }
}

#[test]
fn ms5_running_statement_and_copy_and_unnamed_statement() {
    let (server, proxy) = start();
    let admin = proxy.admin();
    let mut holder = Client::connect(&server.admin()).unwrap();
    holder.run("select pg_advisory_lock(99)");
    let mut client = proxy.client("runs");
    client.start("select pg_advisory_xact_lock(99)").unwrap();
    let event = admin.start_event(&json!({}));
    named(&admin, event, "runs", "statement");
    holder.run("select pg_advisory_unlock(99)");
    client.finish().expect("the statement ends as usual");
    must_complete(&admin, event, "statement");
    client.close();

    let mut client = proxy.client("copies");
    client.start("copy t from stdin").unwrap();
    client.until(b'G').unwrap();
    let event = admin.start_event(&json!({}));
    named(&admin, event, "copies", "copy");
    client
        .send(&[message(b'd', b"1\n"), message(b'c', b"")].concat())
        .unwrap();
    client.until_ready().unwrap();
    must_complete(&admin, event, "copy");
    client.close();

    let mut client = proxy.client("unnamed");
    let large = format!("select length('{}') + $1", "x".repeat(70_000));
    client.send(&[parse("", &large), sync()].concat()).unwrap();
    client.until_ready().unwrap();
    let event = admin.start_event(&json!({}));
    named(&admin, event, "unnamed", "unnamed_statement");
    client
        .send(&[bind("", "", &["1"]), execute("", 0), sync()].concat())
        .unwrap();
    assert_eq!(client.finish().unwrap()[0][0].as_deref(), Some("70001"));
    client
        .send(&[parse("", "select 1"), sync()].concat())
        .unwrap();
    client.until_ready().unwrap();
    must_complete(&admin, event, "unnamed");
}

#[test]
fn ms5_session_that_is_probed_only_after_the_event_began() {
    let (_server, proxy) = start();
    let admin = proxy.admin();
    for case in CASES
        .iter()
        .filter(|c| c.user == APP && c.kind != "transaction")
    {
        // In a transaction when the event begins: it can't have been moved before.
        let mut late = connect(&proxy, APP, case.name);
        late.run("begin");
        let mut first = connect(&proxy, APP, "first");
        first.run("select 1");
        let event = admin.start_event(&json!({}));
        named(&admin, event, case.name, "transaction");
        for sql in case.enter {
            late.run(sql);
        }
        late.run("commit");
        named(&admin, event, case.name, case.kind);
        first.run("select 1");
        for sql in case.leave {
            late.run(sql);
        }
        must_complete(&admin, event, case.name);
        late.close();
        first.close();
        wait_until("both are gone", SOON, || admin.sessions().is_empty());
    }
}

#[test]
fn ms5_timeout_rolls_back_and_disturbs_nobody() {
    let (_server, proxy) = start();
    let admin = proxy.admin();
    let (mut blocking, mut resting, mut open) = (
        proxy.client("blocking"),
        proxy.client("resting"),
        proxy.client("open"),
    );
    blocking.run("select pg_advisory_lock(7)");
    resting.run("set work_mem = '5MB'");
    open.run("begin");
    let processes = [blocking.server_process(), open.server_process()];
    let capacity = admin.capacity();
    let event = admin.start_event(&json!({ "timeout_seconds": 2, "on_timeout": "rollback" }));
    named(&admin, event, "blocking", "advisory_lock");
    let state = admin.finished(event, EVENT);
    assert_eq!(state["outcome"], "rolled_back", "{state:#}");
    assert!(
        !state["reason"].as_str().unwrap_or_default().is_empty(),
        "{state:#}"
    );
    assert_eq!(admin.capacity(), capacity, "the capacity stays");
    assert_eq!(
        [blocking.server_process(), open.server_process()],
        processes
    );
    assert_eq!(
        blocking.value(
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        ),
        "1"
    );
    assert_eq!(resting.value("show work_mem"), "5MB");
    open.run("commit");
    blocking.run("select pg_advisory_unlock(7)");
    admin.swap();
}

#[test]
fn ms5_command_says_rolled_back_by_its_exit_code() {
    let (_server, proxy) = start();
    let mut blocking = proxy.client("blocking");
    blocking.run("begin");
    let to = proxy.admin().other_capacity().to_string();
    let output = proxy.command(&[
        "scale",
        "shop",
        &to,
        "--timeout",
        "1s",
        "--rollback",
        "--wait",
    ]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    blocking.run("commit");
}

#[test]
fn ms5_safety_24_static_force_ends_exactly_the_blocking_sessions() {
    let (server, proxy) = start();
    force(&proxy);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    wait_until("nothing of them is left on the server", SOON, || {
        watcher.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
    });
}

#[test]
fn ms5_safety_24_local_force_ends_exactly_the_blocking_sessions() {
    force(&start_local());
}

fn force(proxy: &Proxy) {
    let admin = proxy.admin();
    for case in CASES {
        let mut blocking = connect(proxy, case.user, case.name);
        let (mut resting, mut fresh) = (proxy.client("resting"), proxy.client("fresh"));
        resting.run("set work_mem = '5MB'");
        for sql in case.enter {
            blocking.run(sql);
        }
        let event = admin.start_event(&json!({ "timeout_seconds": 1, "on_timeout": "force" }));
        let state = admin.finished(event, EVENT);
        assert_eq!(state["outcome"], "forced", "{}: {state:#}", case.name);
        let error = blocking.finish().expect_err("it was ended").server();
        assert_eq!(
            (
                error.severity.as_str(),
                error.code.as_str(),
                error.message.as_str()
            ),
            (
                "FATAL",
                "57P01",
                "terminating connection due to serverless scale event timeout"
            ),
            "{}",
            case.name
        );
        assert_eq!(resting.value("show work_mem"), "5MB", "{}", case.name);
        fresh.run("select 1");
        for client in [blocking, resting, fresh] {
            client.close();
        }
        wait_until("all are gone", SOON, || admin.sessions().is_empty());
    }
}
