//! The cases of `cases` in which somebody leaves, refuses, hangs or has to wait.

use crate::support::postgres::Postgres;
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, bind, cstr, execute, message, parse};
use crate::support::{EVENT, SOON, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

/// Backends on the server that serve `app`.
const BACKENDS: &str = "select count(*) from pg_stat_activity where usename = 'app'";

#[test]
fn case_35_clients_that_leave_midway_leave_nothing_behind() {
    leave_midway(|client| client.hang_up());
}

#[test]
fn case_35_clients_that_are_reset_midway_leave_nothing_behind() {
    leave_midway(Client::reset);
}

fn leave_midway(leave: impl Fn(Client)) {
    let server = Postgres::start(&[]);
    server.run(&["create table t (a int)", "grant all on t to app"]);
    let proxy = Proxy::on(&server);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    for _ in 0..3 {
        let mut copy_in = proxy.client("copy_in");
        copy_in.start("copy t from stdin").unwrap();
        copy_in.until(b'G').unwrap();
        copy_in.send(&message(b'd', b"1\n2\n")).unwrap();
        let mut copy_out = proxy.client("copy_out");
        copy_out
            .start("copy (select repeat('x', 1000) from generate_series(1, 10000000)) to stdout")
            .unwrap();
        copy_out.until(b'd').unwrap();
        let mut half = proxy.client("half");
        let whole = message(b'Q', &cstr("insert into t values (3)"));
        half.send(&whole[..whole.len() - 3]).unwrap();
        let mut open = proxy.client("open");
        open.run("begin");
        open.run("insert into t values (4)");
        let mut pipeline = proxy.client("pipeline");
        pipeline
            .send(&parse("", "insert into t values (5)"))
            .unwrap();
        pipeline
            .send(&[bind("", "", &[]), execute("", 0)].concat())
            .unwrap();
        assert_eq!(watcher.value(BACKENDS), "5");
        for client in [copy_in, copy_out, half, open, pipeline] {
            leave(client);
        }
        wait_until("their backends are gone", SOON, || {
            watcher.value(BACKENDS) == "0"
        });
        assert_eq!(
            watcher.value("select count(*) from t"),
            "0",
            "nothing of it was committed"
        );
    }
    let mut held = proxy.client("held");
    held.run("select 1");
    proxy.admin().act("hold");
    held.start("insert into t values (7)").unwrap();
    wait_until("its request is held", SOON, || {
        proxy.admin().sessions_count("held") == 1
    });
    leave(held);
    wait_until("the proxy has noticed", SOON, || {
        proxy.admin().session("held").is_none()
    });
    proxy.admin().act("release");
    proxy.client("after").run("insert into t values (6)");
    proxy.admin().swap();
    assert_eq!(watcher.value("select sum(a) from t"), "6");
}

#[test]
fn case_35_a_server_lost_in_mid_message_never_ends_it_with_other_bytes() {
    let mut server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("reads");
    client.start("select repeat('y', 100000000)").unwrap();
    client.until(b'T').unwrap();
    wait_until("the row is on its way", SOON, || {
        proxy
            .admin()
            .metric("slackwater_bytes_total", "direction=\"to_client\"")
            > 1_000_000.0
            || proxy
                .admin()
                .session("reads")
                .is_some_and(|s| s["state"] == "active")
    });
    server.signal(Signal::SIGQUIT);
    server.wait();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut client.writer(), &mut rest).unwrap();
    assert!(rest.len() < 100_000_000, "the row was cut");
    let row = rest.iter().skip_while(|b| **b != b'y');
    assert!(
        row.clone().count() > 0 && row.clone().all(|b| *b == b'y'),
        "{} bytes",
        rest.len()
    );
}

#[test]
fn case_37_a_parameter_that_the_new_server_refuses_blocks_and_is_named() {
    let server = Postgres::start(&[]);
    server.run(&["grant set on parameter log_min_duration_statement to app"]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("granted");
    client.run("set log_min_duration_statement = '7s'");
    proxy.admin().swap();
    assert_eq!(client.value("show log_min_duration_statement"), "7s");
    server.run(&["revoke set on parameter log_min_duration_statement from app"]);
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 4 }));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "rolled_back", "{event:#}");
    let waited = &event["waiting_for"][0];
    assert_eq!(waited["kind"], "not_restorable", "{event:#}");
    assert!(
        waited["detail"]
            .as_str()
            .unwrap()
            .contains("log_min_duration_statement"),
        "{event:#}"
    );
    assert_eq!(client.value("show log_min_duration_statement"), "7s");
    server.run(&["grant set on parameter log_min_duration_statement to app"]);
    proxy.admin().swap();
    assert_eq!(client.value("show log_min_duration_statement"), "7s");
}

/// A session without a server connection, and its next request, while something is wrong with the server.
fn held_until_it_is_well(
    server: &mut Postgres,
    worse: impl FnOnce(&mut Postgres),
    better: impl FnOnce(&mut Postgres),
) {
    let proxy = Proxy::on(server);
    let mut client = proxy.client("held");
    client.run("set work_mem = '5MB'");
    proxy.admin().act("hold");
    wait_until("it is detached", SOON, || {
        proxy.admin().sessions_count("parked") == 1
    });
    proxy.admin().act("release");
    worse(server);
    client.start("show work_mem").unwrap();
    wait_until("it is held", SOON, || {
        proxy.admin().sessions_count("held") == 1
    });
    better(server);
    assert_eq!(client.finish().unwrap()[0][0].as_deref(), Some("5MB"));
}

#[test]
fn case_38_a_server_that_refuses_or_starts_is_waited_for() {
    let mut server = Postgres::start(&[]);
    held_until_it_is_well(&mut server, Postgres::stop, Postgres::boot);
}

#[test]
fn case_38_a_server_that_hangs_is_waited_for() {
    let mut server = Postgres::start(&[]);
    let hang = |server: &mut Postgres| server.signal(Signal::SIGSTOP);
    held_until_it_is_well(&mut server, hang, |server| server.signal(Signal::SIGCONT));
}

#[test]
fn case_38_a_full_server_is_waited_for() {
    let mut server = Postgres::start(&["max_connections=12"]);
    let mut others = Vec::new();
    let app = server.app();
    let fill = |_: &mut Postgres| {
        loop {
            match Client::connect(&app) {
                Ok(client) => others.push(client),
                Err(error) => break assert_eq!(error.server().code, "53300"),
            }
        }
        others
    };
    let taken = std::cell::RefCell::new(Vec::new());
    held_until_it_is_well(
        &mut server,
        |server| taken.replace(fill(server)).clear(),
        |_| taken.take().clear(),
    );
}

#[test]
fn case_38_a_session_at_rest_outlives_the_servers_end() {
    let mut server = Postgres::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"100ms\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("rests");
    client.run("set work_mem = '5MB'");
    wait_until("it is probed", SOON, || {
        proxy
            .admin()
            .session("rests")
            .is_some_and(|s| s["movable"] == true)
    });
    server.stop();
    server.boot();
    assert_eq!(client.value("show work_mem"), "5MB");
}

#[test]
fn case_39_a_long_hold_and_what_may_be_done_meanwhile() {
    let server = Postgres::start(&[]);
    server.run(&["create table t (a int)", "grant all on t to app"]);
    let options = Options {
        limits: "login_timeout = \"8s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let admin = proxy.admin();
    let mut open = proxy.client("open");
    open.run("begin");
    let (mut timed, mut leaves, mut resting) = (
        proxy.client("timed"),
        proxy.client("leaves"),
        proxy.client("resting"),
    );
    // Shorter than the hold, all of them.
    for name in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
    ] {
        timed.run(&format!("set {name} = '500ms'"));
    }
    leaves.run("select 1");
    resting.run("select 1");
    admin.act("hold");
    wait_until("the cluster holds", SOON, || {
        admin.cluster()["state"] == "holding"
    });
    // A transaction goes on, and comes to its end; then its session is held like the others.
    open.run("insert into t values (1)");
    open.run("commit");
    open.start("insert into t values (2)").unwrap();
    timed.start("insert into t values (3)").unwrap();
    leaves.start("insert into t values (4)").unwrap();
    wait_until("three are held", SOON, || admin.sessions_count("held") == 3);
    // Terminate behind a held request: the client has left, its request is never sent.
    leaves.close();
    wait_until("it has left", SOON, || admin.session("leaves").is_none());
    // A login waits for as long as it may, and is told.
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P03")
    );
    timed.cancel();
    assert_eq!(timed.finish().unwrap_err().server().code, "57014");
    timed.start("insert into t values (5)").unwrap();
    let (status, answer) = admin.post("/v1/reload", &json!({}));
    assert_eq!(status / 100, 2, "{answer}");
    admin.act("hold");
    wait_until("two are held", SOON, || admin.sessions_count("held") == 2);
    admin.act("release");
    open.finish().unwrap();
    timed.finish().unwrap();
    resting.run("select 1");
    let (status, answer) = admin.post("/v1/clusters/shop/release", &json!({}));
    assert_eq!(status, 409, "released already: {answer}");
    assert_eq!(
        open.value("select string_agg(a::text, ',' order by a) from t"),
        "1,2,5"
    );
    admin.swap();
}
