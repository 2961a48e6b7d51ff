//! Cases at which poolers of PostgreSQL fail first, by the numbers of a list of forty. `case_NN` in the name of
//! a test says that it shows that case; `S` is a script of `tests/live/scripts`.
//!
//! | case | where |
//! |---|---|
//! | 1 cancel of a request that waits for a server | `ms10_rest` |
//! | 2 cancel that comes late | `ms10_rest` |
//! | 3 a hundred cancels, one server connection | here |
//! | 4 cancel while state is restored | here |
//! | 5 a server that never closes a cancel's connection | here |
//! | 6 wrong secret, key of a session that is over | `front_abuse` |
//! | 7 cancel before and after a move | `ms10_rest` |
//! | 8 keys of protocol 3.2 | `front_abuse`, `backend::connect` |
//! | 9 a server that tells no key | here, `backend::connect` |
//! | 10, 14 start-up in pieces, bytes in front of TLS | `net::handshake` |
//! | 11 to 13, 15, 16 lengths, versions, GSS, direct TLS | `net::tests::front`, `wire::pg::startup`, `net::handshake` |
//! | 17 time-outs of a log-in, a reload of certificates | `front_abuse`, `transport::tls` |
//! | 18, 20 proofs that are none, unknown users | `net::authentication` |
//! | 19 verifiers of any cost and of another salt | `front_abuse` |
//! | 21 passwords: empty, very long, changed | here |
//! | 22 `options` of the start-up packet | here |
//! | 23 Flush without Sync | S |
//! | 24 an error in mid-pipeline | S, `session::pg` |
//! | 25 two Syncs, deep pipelines | S, `net::relay` |
//! | 26 to 29 names of statements and portals | S |
//! | 30 names and bodies larger than buffers | S |
//! | 31 DEALLOCATE ALL, DISCARD ALL | S |
//! | 32 Query inside a batch | S |
//! | 33 suspended portals | S |
//! | 34 COPY that fails, Sync in COPY | S, `session::pg`, `net::relay` |
//! | 35 clients that leave midway, by FIN and by RST | `cases_faults` |
//! | 36 a client that does not read, or is cut off in one direction or both | `edges`, `net::relay`, `fault_network` |
//! | 37 messages at any time, a parameter that is refused on replay | `cases_faults`, `protocol`, `session::pg`, `net::relay` |
//! | 38 servers that end sessions, start, are full, refuse, hang | `cases_faults`, `ms11_messages` |
//! | 39 holds: long ones, what may be done meanwhile | `cases_faults` |
//! | 40 replication, unknown messages, function calls, errors without SQLSTATE, names | `replication`, `protocol`, S |
//!
//! There is no eviction of prepared statements (29): each session keeps its own. Case 39 is about the hold by
//! hand, since there is no pause yet.

use crate::support::middle::{Middle, as_it_is};
use crate::support::postgres::{APP, Postgres, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::scripts;
use crate::support::wire::{Client, Target, bind, parse, sync};
use crate::support::{SOON, wait_until};
use nix::sys::signal::Signal;
use std::process::{Command, Output};
use std::time::Duration;

fn run(case: &str) {
    scripts::compare(|name| name.starts_with(case));
}

#[test]
fn case_23_flush_is_answered_at_once_and_keeps_the_server() {
    run("case_23_");
}

#[test]
fn case_24_an_error_in_mid_pipeline_is_skipped_to_one_sync() {
    run("case_24_");
}

#[test]
fn case_25_syncs_in_a_segment_and_pipelines_deeper_than_buffers() {
    run("case_25_");
}

#[test]
fn case_26_a_name_in_use_is_an_error_and_no_more() {
    run("case_26_");
}

#[test]
fn case_27_unknown_statements_and_portals_have_their_own_errors() {
    run("case_27_");
}

#[test]
fn case_28_close_of_what_is_there_or_not() {
    run("case_28_");
}

#[test]
fn case_29_a_parse_that_failed_leaves_its_name_free() {
    run("case_29_");
}

#[test]
fn case_30_names_and_bodies_larger_than_buffers() {
    run("case_30_");
}

#[test]
fn case_31_deallocate_all_and_discard_all_in_pipelines() {
    run("case_31_");
}

#[test]
fn case_32_queries_inside_batches_empty_and_many() {
    run("case_32_");
}

#[test]
fn case_33_suspended_portals_go_on_in_their_transaction() {
    run("case_33_");
}

#[test]
fn case_34_copy_that_fails_and_syncs_inside_copy() {
    run("case_34_");
}

#[test]
fn case_40_function_calls() {
    run("case_40_");
}

/// Backends on the server that serve `app`, the asker not counted.
const BACKENDS: &str = "select count(*) from pg_stat_activity where usename = 'app'";

fn runs(watcher: &mut Client, what: &str) {
    let sql = format!(
        "select count(*) from pg_stat_activity where query = '{what}' and state = 'active'"
    );
    wait_until("the statement runs", SOON, || watcher.value(&sql) == "1");
}

#[test]
fn case_03_a_hundred_cancels_and_one_server_connection() {
    let server = Postgres::start(&[]);
    let options = Options {
        sessions: "max_server_connections = 3".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    let mut client = proxy.client("only");
    for _ in 0..2 {
        client.start("select pg_sleep(600)").unwrap();
        runs(&mut watcher, "select pg_sleep(600)");
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| client.cancel());
            }
        });
        let error = client.finish().expect_err("it was canceled").server();
        assert_eq!(error.code, "57014");
        // All have seen their connection closed, so none hits what follows.
        client.run("select pg_sleep(0.01)");
    }
    // The only connection goes round.
    let mut other = proxy.client("other");
    for _ in 0..3 {
        other.run("select 1");
        client.run("select 1");
    }
    drop((client, other));
    wait_until("nothing is left", SOON, || watcher.value(BACKENDS) == "0");
}

#[test]
fn case_04_a_cancel_never_hits_the_restore_of_a_session() {
    let server = Postgres::start(&[]);
    server.run(&["create table t (a int)", "grant all on t to app"]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("restored");
    client
        .send(&[parse("on_t", "select count(*) from t"), sync()].concat())
        .unwrap();
    client.finish().unwrap();
    client.run("set work_mem = '5MB'");
    proxy.admin().act("hold");
    wait_until("it is detached", SOON, || {
        proxy.admin().sessions_count("parked") == 1
    });
    // To parse its statement again the restore needs the table.
    let mut blocker = Client::connect(&server.admin()).unwrap();
    blocker.run("begin");
    blocker.run("lock table t");
    client.start("select 1").unwrap();
    wait_until("it is held", SOON, || {
        proxy.admin().sessions_count("held") == 1
    });
    proxy.admin().act("release");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    let waiting = "select coalesce(min(pid), 0) from pg_locks where not granted";
    wait_until("the restore waits for the table", SOON, || {
        watcher.value(waiting) != "0"
    });
    let process = watcher.value(waiting);
    client.cancel();
    let error = client.finish().expect_err("it was held").server();
    assert_eq!(error.code, "57014");
    assert_eq!(watcher.value(waiting), process, "and the restore goes on");
    blocker.run("rollback");
    assert_eq!(client.value("show work_mem"), "5MB");
    client
        .send(&[bind("", "on_t", &[]), sync()].concat())
        .unwrap();
    client.finish().expect("its statement is there");
    assert!(
        !server.log().contains("canceling statement"),
        "{}",
        server.log()
    );
}

/// While a server is asked what a session holds nothing is read from its client: what came meanwhile was there before the
/// cancel.
#[test]
fn a_cancel_in_a_probe_is_for_what_came_before_it() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::with(
        &server,
        &Options {
            sessions: "snapshot_after = \"1h\"".to_owned(),
            ..Options::default()
        },
    );
    let mut client = proxy.client("probed");
    client.run("set work_mem = '5MB'");
    let process = nix::unistd::Pid::from_raw(client.server_process());
    let signal = |signal| nix::sys::signal::kill(process, signal).unwrap();
    signal(Signal::SIGSTOP);
    // The session's server is asked, and does not answer.
    proxy.admin().act("hold");
    wait_until("the cluster holds", SOON, || {
        proxy.admin().cluster()["state"] == "holding"
    });
    client.start("select pg_sleep(600)").unwrap();
    std::thread::scope(|scope| {
        let cancels = scope.spawn(|| client.cancel());
        std::thread::park_timeout(Duration::from_millis(300));
        assert!(!cancels.is_finished(), "its sender waits with it");
        signal(Signal::SIGCONT);
    });
    let error = client.finish().expect_err("it was canceled").server();
    assert_eq!(error.code, "57014");
    proxy.admin().act("release");
    assert_eq!(client.value("show work_mem"), "5MB");
}

#[test]
fn case_05_a_cancel_connection_that_never_closes_frees_the_server_in_time() {
    let server = Postgres::start(&[]);
    let middle = Middle::before(server.port(), as_it_is);
    let proxy = Proxy::behind(&middle, &Options::default());
    let mut client = proxy.client("canceled");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    middle.keep_cancels(true);
    client.start("select pg_sleep(600)").unwrap();
    runs(&mut watcher, "select pg_sleep(600)");
    std::thread::scope(|scope| {
        let cancel = scope.spawn(|| client.cancel());
        wait_until("the cancel has gone out", SOON, || middle.cancels() == 1);
        server.run(&["select pg_cancel_backend(pid) from pg_stat_activity where usename = 'app'"]);
        cancel.join().unwrap();
    });
    assert_eq!(client.finish().unwrap_err().server().code, "57014");
    // Until the cancel is given up it could hit whatever Slackwater does on that connection.
    proxy.admin().swap();
    client.run("select 1");
    middle.keep_cancels(false);
    client.start("select pg_sleep(600)").unwrap();
    runs(&mut watcher, "select pg_sleep(600)");
    client.cancel();
    assert_eq!(client.finish().unwrap_err().server().code, "57014");
}

#[test]
fn case_09_a_server_that_tells_no_key_serves_all_the_same() {
    let server = Postgres::start(&[]);
    let middle = Middle::before(server.port(), |tag, body, out| {
        if tag != b'K' {
            as_it_is(tag, body, out);
        }
    });
    let proxy = Proxy::behind(&middle, &Options::default());
    let (mut one, mut two) = (proxy.client("one"), proxy.client("two"));
    assert_ne!(one.process, two.process, "no number is told twice");
    for client in [&mut one, &mut two] {
        client.run("set work_mem = '5MB'");
    }
    proxy.admin().swap();
    for client in [&mut one, &mut two] {
        assert_eq!(client.value("show work_mem"), "5MB");
    }
    // There is nothing to cancel by: the statement comes to its end.
    let mut watcher = Client::connect(&server.admin()).unwrap();
    one.start("select pg_sleep(1)").unwrap();
    runs(&mut watcher, "select pg_sleep(1)");
    one.cancel();
    one.finish().expect("not canceled");
    assert_eq!(middle.cancels(), 0);
}

/// psql as the role `long`; it makes much faster proofs of long passwords than the client of these tests.
fn psql(port: u16, mode: &str, password: &str) -> Output {
    let connect = format!("host=127.0.0.1 port={port} user=long dbname=app sslmode={mode}");
    Command::new(binaries().join("psql"))
        .args(["-XAtc", "select session_user", &connect])
        .env("PGPASSWORD", password)
        .output()
        .unwrap()
}

#[test]
fn case_21_empty_long_and_changed_passwords() {
    let server = Postgres::start(&[]);
    let long = "p".repeat(65 * 1024);
    server.run(&[&format!("create role long login password '{long}'")]);
    let proxy = Proxy::on(&server);
    for (user, password) in [(APP.0, ""), ("long", ""), ("long", "p")] {
        let told = |port: u16| {
            let target = Target::new(port, (user, password), "app");
            Client::connect(&target).unwrap_err().server()
        };
        assert_eq!(told(proxy.port()), told(server.port()));
    }
    let output = psql(proxy.port(), "disable", &long);
    assert!(output.status.success(), "{output:?}");
    assert!(!psql(proxy.port(), "disable", &long[1..]).status.success());
    // Changed while a session is held: it can't be logged in again, and is told in the server's words.
    server.run(&["alter role long password 'first'"]);
    let mut client = Client::connect(&Target::new(proxy.port(), ("long", "first"), "app")).unwrap();
    client.run("select 1");
    proxy.admin().act("hold");
    wait_until("it is detached", SOON, || {
        proxy.admin().sessions_count("parked") == 1
    });
    server.run(&["alter role long password 'second'"]);
    client.start("select 1").unwrap();
    wait_until("it is held", SOON, || {
        proxy.admin().sessions_count("held") == 1
    });
    proxy.admin().act("release");
    let error = client.finish().unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "28P01")
    );
    Client::connect(&Target::new(proxy.port(), ("long", "second"), "app")).unwrap();
}

/// psql sends what it is given, inside TLS; a message above the limit is refused, not kept.
#[test]
fn case_21_a_long_password_in_clear_is_bounded() {
    let server = Postgres::start(&[]);
    let options = Options {
        auth: "method = \"password\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let long = "p".repeat(60_000);
    server.run(&[&format!("create role long login password '{long}'")]);
    let psql = |password: &str| psql(proxy.port(), "require", password);
    let output = psql(&long);
    assert!(
        output.status.success(),
        "{:?}",
        String::from_utf8_lossy(&output.stderr)
    );
    for password in [&long[1..], &"p".repeat(66_000), ""] {
        assert!(!psql(password).status.success());
    }
    assert!(psql(&long).status.success());
}

#[test]
fn case_22_options_of_the_start_up_packet() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let good = [
        (
            r#"-c search_path="a\ b","$user" -c geqo=off"#,
            &["search_path", "geqo"][..],
        ),
        (
            r"-c search_path=x\\y -cwork_mem=5MB",
            &["search_path", "work_mem"],
        ),
        (
            "-c extra_float_digits=2 --lock-timeout=7s",
            &["extra_float_digits", "lock_timeout"],
        ),
        (r"  -c   app.x=1+2\ 3  ", &["app.x"]),
    ];
    let with = |target: Target, options: &str| Client::connect(&target.with("options", options));
    for (options, names) in good {
        let mut direct = with(server.app(), options).unwrap_or_else(|e| panic!("{options}: {e}"));
        let mut through = with(proxy.app(), options).unwrap_or_else(|e| panic!("{options}: {e}"));
        let mut same = |when: &str| {
            for name in names {
                let sql = format!(
                    "select current_setting('{name}'), (select source from pg_settings where name = '{name}')"
                );
                assert_eq!(
                    through.query(&sql).unwrap(),
                    direct.query(&sql).unwrap(),
                    "{options} {when}"
                );
            }
        };
        same("at first");
        proxy.admin().swap();
        same("after a move");
    }
    for options in [
        // Two words where one name is wanted.
        r#"-c search_path=a\ b,"$user" -c geqo=off"#,
        "-c no_such=1",
        "-c work_mem=lots",
        "-c",
        "--",
        "plain",
        "-c log_statement_stats=on",
        "-c port=1",
    ] {
        let told = |target: Target| match with(target, options) {
            Ok(_) => None,
            Err(error) => Some(error.server()),
        };
        assert_eq!(told(proxy.app()), told(server.app()), "{options}");
    }
    // Parameters of their own in the packet, as drivers send them.
    let target = |target: Target| {
        target
            .with("extra_float_digits", "2")
            .with("datestyle", "German")
    };
    let mut through = Client::connect(&target(proxy.app())).unwrap();
    proxy.admin().swap();
    assert_eq!(through.value("show extra_float_digits"), "2");
    assert_eq!(through.value("show datestyle"), "German, DMY");
    let unknown = |target: Target| {
        Client::connect(&target.with("no_such", "1"))
            .unwrap_err()
            .server()
    };
    assert_eq!(unknown(proxy.app()), unknown(server.app()));
}
