//! Safety rules 6, 14, 15 and 16 on servers that are killed, stopped, and end sessions.

use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::script::{self, Direct};
use crate::support::wire::{Client, Message, Target, bind, execute, message, parse, sync};
use crate::support::{SOON, sized, wait_until};
use nix::sys::signal::Signal;

/// Waits until the session of this name is known to hold nothing that would be lost.
fn proven(proxy: &Proxy, application: &str) {
    wait_until("the session is probed", SOON, || {
        let session = proxy.admin().session(application);
        session.is_some_and(|s| s["movable"] == true && s["state"] == "at_rest")
    });
}

fn fatal(client: &mut Client) -> (String, String) {
    let error = client.finish().unwrap_err().server();
    (error.severity, error.code)
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

fn static_proxy(server: &Postgres) -> Proxy {
    let options = Options {
        sessions: "snapshot_after = \"200ms\"".to_owned(),
        ..Options::default()
    };
    Proxy::with(server, &options)
}

#[test]
fn safety_14_sessions_at_rest_do_not_notice_that_their_server_was_killed() {
    let mut server = Postgres::start(&[]);
    let proxy = static_proxy(&server);
    let mut clients: Vec<_> = (0..sized(40, 80))
        .map(|n| (n, proxy.client(&format!("c{n}"))))
        .collect();
    for (n, client) in &mut clients {
        client.run(&format!("set app.number = '{n}'"));
        client.run("prepare kept as select 7");
    }
    // One that is not proven, and one with a blocker.
    let mut locked = proxy.client("locked");
    locked.run("select pg_advisory_lock(1)");
    wait_until("all are probed", SOON, || {
        let sessions = proxy.admin().sessions();
        let movable = sessions.iter().filter(|s| s["movable"] == true).count();
        movable == clients.len()
    });
    server.kill();
    // A request during the outage waits.
    for (_, client) in &mut clients[..5] {
        client.start("show app.number").unwrap();
    }
    assert_eq!(fatal(&mut locked), pair("FATAL", "57P02"));
    server.boot();
    for (n, client) in &mut clients[..5] {
        let rows = client.finish().unwrap();
        assert_eq!(rows[0][0].as_deref(), Some(n.to_string().as_str()));
    }
    for (n, client) in &mut clients {
        assert_eq!(client.value("show app.number"), n.to_string());
        assert_eq!(client.value("execute kept"), "7");
    }
}

#[test]
fn safety_14_a_local_server_that_was_killed_is_started_again() {
    let proxy = Proxy::local(&Options {
        sessions: "snapshot_after = \"200ms\"".to_owned(),
        ..Options::default()
    });
    let mut client = proxy.client("rests");
    for round in 0..sized(2, 20) {
        client.run(&format!("set app.round = '{round}'"));
        proven(&proxy, "rests");
        let before = client.value("select pg_postmaster_start_time()");
        proven(&proxy, "rests");
        proxy.kill_server();
        assert_eq!(client.value("show app.round"), round.to_string());
        assert_ne!(client.value("select pg_postmaster_start_time()"), before);
    }
}

#[test]
fn safety_14_what_is_not_proven_gets_a_fatal() {
    let mut server = Postgres::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"1h\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("unproven");
    client.run("set app.tenant = 'mine'");
    server.kill();
    assert_eq!(fatal(&mut client), pair("FATAL", "57P02"));
    assert!(client.receive().is_err(), "closed");
    server.boot();
}

#[test]
fn safety_14_requests_wait_for_max_outage_then_they_are_told() {
    let mut server = Postgres::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"200ms\"".to_owned(),
        scaling: "max_outage = \"2s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("waits");
    client.run("set app.tenant = 'mine'");
    proven(&proxy, "waits");
    server.kill();
    let error = client.query("select 1").unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("ERROR", "57P03")
    );
    server.boot();
    wait_until("it is served again", SOON, || {
        client.query("select 1").is_ok()
    });
    assert_eq!(client.value("show app.tenant"), "mine");
}

/// A session that was probed, then began a transaction and did this in it; its server was killed and is back.
fn lost_in(server: &mut Postgres, proxy: &Proxy, name: &str, statements: &[&str]) -> Client {
    let mut client = proxy.client(name);
    client.run("set app.tenant = 'mine'");
    proven(proxy, name);
    client.run("begin");
    for sql in statements {
        client.run(sql);
    }
    server.kill();
    server.boot();
    client
}

const TABLE: &[&str] = &[
    "create table if not exists t (a int)",
    "grant all on t to app",
    "truncate t",
];

#[test]
fn safety_15_only_the_transaction_is_lost() {
    let mut server = Postgres::start(&[]);
    server.run(TABLE);
    let proxy = static_proxy(&server);
    let insert: &[&str] = &["insert into t values (1)", "savepoint a", "set role helper"];
    let mut client = lost_in(&mut server, &proxy, "statements", insert);
    // As PostgreSQL answers in a transaction that has failed.
    for (sql, wanted) in [
        ("insert into t values (2)", "25P02"),
        ("savepoint b", "25P02"),
        ("release a", "25P02"),
        ("rollback to a", "3B001"),
        ("commit and chain", "25P02"),
        ("select 1; rollback", "25P02"),
    ] {
        client.start(sql).unwrap();
        let answer = client.until_ready().unwrap();
        let labels: Vec<_> = answer.iter().map(Message::label).collect();
        assert_eq!(labels, [format!("E({wanted})"), "Z(E)".to_owned()], "{sql}");
    }
    script::run(
        "Q \"\"\n> I Z(E)\nQ \"commit\"\n> C Z(I)",
        &mut client,
        &mut Direct,
    );
    assert_eq!(client.value("select count(*) from t"), "0");
    assert_eq!(client.value("select current_user"), "app");
    assert_eq!(client.value("show app.tenant"), "mine");

    // Rolled back and gone on in one message, and by ROLLBACK alone.
    let mut client = lost_in(&mut server, &proxy, "goes on", insert);
    assert_eq!(client.value("rollback; select 7"), "7");
    let mut client = lost_in(&mut server, &proxy, "rollback", insert);
    script::run("Q \"rollback\"\n> C Z(I)", &mut client, &mut Direct);
    assert_eq!(client.value("show app.tenant"), "mine");
}

#[test]
fn safety_15_a_commit_is_never_answered_as_if_nothing_was_wrong() {
    let mut server = Postgres::start(&[]);
    server.run(TABLE);
    let proxy = static_proxy(&server);
    let insert: &[&str] = &["insert into t values (1)"];
    let mut client = lost_in(&mut server, &proxy, "simple", insert);
    let error = client.query("commit").unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("ERROR", "57P02")
    );
    assert_eq!(client.value("select count(*) from t"), "0");

    let mut client = lost_in(&mut server, &proxy, "extended", insert);
    let commit = [
        parse("", "commit"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&commit).unwrap();
    let answer = client.until_ready().unwrap();
    let labels: Vec<_> = answer.iter().map(Message::label).collect();
    assert_eq!(labels, ["1", "2", "E(57P02)", "Z(I)"]);
    assert_eq!(client.value("show app.tenant"), "mine");
}

#[test]
fn safety_15_the_extended_protocol_in_a_lost_transaction() {
    let mut server = Postgres::start(&[]);
    server.run(TABLE);
    let proxy = static_proxy(&server);
    let mut client = lost_in(
        &mut server,
        &proxy,
        "extended",
        &["insert into t values (1)"],
    );
    let labels = |client: &mut Client, bytes: &[Vec<u8>]| -> Vec<String> {
        client.send(&bytes.concat()).unwrap();
        let answer = client.until_ready().unwrap();
        answer.iter().map(Message::label).collect()
    };
    let insert = [
        parse("", "insert into t values ($1)"),
        bind("", "", &["5"]),
        execute("", 0),
        sync(),
    ];
    assert_eq!(labels(&mut client, &insert), ["E(25P02)", "Z(E)"]);
    assert_eq!(
        labels(&mut client, &[bind("", "none", &[]), sync()]),
        ["E(26000)", "Z(E)"]
    );
    assert_eq!(
        labels(&mut client, &[execute("none", 0), sync()]),
        ["E(34000)", "Z(E)"]
    );
    // A named ROLLBACK is there afterwards as well; the batch goes on behind it.
    let rollback = [
        parse("back", "rollback"),
        message(b'D', b"Sback\0"),
        bind("", "back", &[]),
        execute("", 0),
        parse("", "insert into t values (7)"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    assert_eq!(
        labels(&mut client, &rollback),
        ["1", "t", "n", "2", "C", "1", "2", "C", "Z(I)"]
    );
    assert_eq!(client.value("select string_agg(a::text, ',') from t"), "7");
    let again = [bind("", "back", &[]), execute("", 0), sync()];
    assert_eq!(labels(&mut client, &again), ["2", "N", "C", "Z(I)"]);
}

#[test]
fn safety_15_what_was_in_flight_is_answered_to_its_end() {
    let mut server = Postgres::start(&[]);
    server.run(TABLE);
    let proxy = static_proxy(&server);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    let mut client = proxy.client("in flight");
    client.run("set app.tenant = 'mine'");
    proven(&proxy, "in flight");
    client.run("begin");
    let mut bytes = Vec::new();
    for sql in [
        "insert into t select 1 from pg_sleep(600)",
        "insert into t values (2)",
    ] {
        bytes.extend([parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat());
    }
    client.send(&bytes).unwrap();
    let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)' and state = 'active' and usename = 'app'";
    wait_until("the statement runs", SOON, || watcher.value(running) == "1");
    server.kill();
    for wanted in [["E(57P02)", "Z(E)"], ["E(25P02)", "Z(E)"]] {
        let answer = client.until_ready().unwrap();
        let labels: Vec<_> = answer.iter().map(Message::label).collect();
        // What was read before it was lost (ParseComplete, BindComplete) came before.
        assert!(labels.ends_with(&wanted.map(str::to_owned)), "{labels:?}");
    }
    client.run("rollback");
    server.boot();
    assert_eq!(client.value("select count(*) from t"), "0");
    assert_eq!(client.value("show app.tenant"), "mine");
}

#[test]
fn safety_15_anything_else_in_between_ends_the_session() {
    let mut server = Postgres::start(&[]);
    server.run(TABLE);
    let proxy = static_proxy(&server);
    for (name, before, inside) in [
        (
            "set before",
            "set app.other = 'x'",
            "insert into t values (1)",
        ),
        ("lock", "select 1", "select pg_advisory_lock(5)"),
        ("prepared", "select 1", "prepare p as select 1"),
        (
            "chained",
            "select 1",
            "insert into t values (1); commit and chain",
        ),
        ("code", "select 1", "do $$ begin perform 1; end $$"),
    ] {
        let mut client = proxy.client(name);
        client.run("set app.tenant = 'mine'");
        proven(&proxy, name);
        if before != "select 1" {
            client.run(before);
        }
        client.run("begin");
        client.run(inside);
        server.kill();
        assert_eq!(fatal(&mut client), pair("FATAL", "57P02"), "{name}");
        assert!(client.receive().is_err(), "{name}: closed");
        server.boot();
    }
}

#[test]
fn safety_06_an_unknown_outcome_is_told_as_such_and_nothing_is_sent_again() {
    let mut server = Postgres::start(&["max_prepared_transactions=5"]);
    server.run(TABLE);
    server.run(&[
        "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(600); return null; end $$",
        "create table u (a int)",
        "grant all on u to app",
        "create constraint trigger slow after insert on u deferrable initially deferred for each row execute function slow()",
    ]);
    let proxy = static_proxy(&server);
    let extended = [
        parse("", "insert into t select 1 from pg_sleep(600)"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    let query = |sql: &str| message(b'Q', &[sql.as_bytes(), b"\0"].concat());
    let insert = query("insert into t select 1 from pg_sleep(600)");
    // Its text goes ahead in a batch of its own, as some drivers send it.
    let prepared_commit = |statement: &str| {
        vec![
            [parse(statement, "commit"), sync()].concat(),
            [bind("", statement, &[]), execute("", 0), sync()].concat(),
        ]
    };
    let bound_commit = vec![
        [parse("", "commit"), bind("p", "", &[]), sync()].concat(),
        [execute("p", 0), sync()].concat(),
    ];
    let executed_commit = vec![[parse("c", "commit"), sync()].concat(), query("execute c")];
    let open = || vec!["begin", "insert into u values (1)"];
    for (name, first, batches) in [
        ("autocommit", vec![], vec![insert]),
        ("sync", vec![], vec![extended]),
        (
            "several",
            vec![],
            vec![query("select 1; insert into t select 1 from pg_sleep(600)")],
        ),
        ("commit", open(), vec![query("commit")]),
        ("prepare", open(), vec![query("prepare transaction 'x'")]),
        ("unnamed", open(), prepared_commit("")),
        ("named", open(), prepared_commit("c")),
        ("portal", open(), bound_commit),
        ("by execute", open(), executed_commit),
    ] {
        let mut watcher = Client::connect(&server.admin()).unwrap();
        let mut client = proxy.client(name);
        proven(&proxy, name);
        for sql in first {
            client.run(sql);
        }
        let (last, ahead) = batches.split_last().unwrap();
        for batch in ahead {
            client.send(batch).unwrap();
            client.finish().unwrap();
        }
        client.send(last).unwrap();
        let running = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active' and wait_event = 'PgSleep'";
        wait_until("it runs", SOON, || watcher.value(running) == "1");
        server.kill();
        assert_eq!(fatal(&mut client), pair("FATAL", "08007"), "{name}");
        server.boot();
        let mut watcher = Client::connect(&server.admin()).unwrap();
        let found = "select (select count(*) from t) + (select count(*) from u) + (select count(*) from pg_prepared_xacts)";
        assert_eq!(watcher.value(found), "0", "{name}");
    }
}

/// A server's process that reads nothing has got the bytes all the same: they are not sent to the next one. What waited
/// for a server is sent to the next one, once.
#[test]
fn safety_05_a_request_of_which_a_byte_reached_a_server_is_not_sent_to_another() {
    let mut server = Postgres::start(&[]);
    server.run(TABLE);
    let proxy = static_proxy(&server);
    for round in 0..sized(2, 20) {
        let (mut reached, mut waits) = (proxy.client("reached"), proxy.client("waits"));
        proven(&proxy, "reached");
        proven(&proxy, "waits");
        let process = nix::unistd::Pid::from_raw(reached.server_process());
        proven(&proxy, "reached");
        nix::sys::signal::kill(process, Signal::SIGSTOP).unwrap();
        reached.start("insert into t values (1)").unwrap();
        wait_until("it is on its way", SOON, || {
            let session = proxy.admin().session("reached");
            session.is_some_and(|s| s["state"] == "active")
        });
        server.kill();
        assert_eq!(fatal(&mut reached), pair("FATAL", "08007"));
        waits.start("insert into t values (2)").unwrap();
        wait_until("it waits", SOON, || {
            let session = proxy.admin().session("waits");
            session.is_some_and(|s| s["state"] != "at_rest" && s["attached"] == false)
        });
        server.boot();
        waits.finish().expect("sent to the server that is there");
        let mut watcher = Client::connect(&server.admin()).unwrap();
        let count = |n| format!("select count(*) from t where a = {n}");
        assert_eq!(watcher.value(&count(1)), "0");
        assert_eq!(watcher.value(&count(2)), (round + 1).to_string());
    }
}

#[test]
fn safety_16_a_fatal_at_rest_is_told_from_a_lost_server() {
    let mut server = Postgres::start(&[]);
    let proxy = static_proxy(&server);
    // Meant for this session: it ends with the server's own words.
    let mut client = proxy.client("ended");
    proven(&proxy, "ended");
    let process = client.process;
    server.run(&[&format!("select pg_terminate_backend({process})")]);
    let error = client.finish().unwrap_err().server();
    assert_eq!(
        (
            error.severity.as_str(),
            error.code.as_str(),
            error.message.as_str()
        ),
        (
            "FATAL",
            "57P01",
            "terminating connection due to administrator command"
        )
    );
    let mut client = proxy.client("in transaction");
    proven(&proxy, "in transaction");
    client.run("begin");
    let process = client.server_process();
    server.run(&[&format!("select pg_terminate_backend({process})")]);
    assert_eq!(fatal(&mut client), pair("FATAL", "57P01"));
    let mut client = proxy.client("idles in transaction");
    client.run("set idle_in_transaction_session_timeout = '500ms'");
    proven(&proxy, "idles in transaction");
    client.run("begin");
    assert_eq!(fatal(&mut client), pair("FATAL", "25P03"));
    // 57P04: its database is dropped.
    server.run(&["create database other owner app"]);
    let target = Target::new(proxy.port(), crate::support::postgres::APP, "other");
    let mut client = Client::connect(&target.with("application_name", "dropped")).unwrap();
    proven(&proxy, "dropped");
    server.run(&["drop database other with (force)"]);
    let (severity, told) = fatal(&mut client);
    assert_eq!(severity, "FATAL");
    assert!(told == "57P01" || told == "57P04", "{told}");
    // Not meant for it: the whole server goes, cleanly, at once, or by a crash of another session.
    let mut client = proxy.client("stays");
    client.run("set app.tenant = 'mine'");
    proven(&proxy, "stays");
    server.stop();
    server.boot();
    assert_eq!(client.value("show app.tenant"), "mine");
    proven(&proxy, "stays");
    server.signal(Signal::SIGQUIT);
    server.wait();
    server.boot();
    assert_eq!(client.value("show app.tenant"), "mine");
    proven(&proxy, "stays");
    let mut other = Client::connect(&Target::new(server.port(), ADMIN, "app")).unwrap();
    let pid = nix::unistd::Pid::from_raw(other.server_process());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    assert!(other.finish().is_err());
    // A request that reaches the server before it notices is lost with it: not this one.
    wait_until("the proxy has noticed", SOON, || {
        let session = proxy.admin().session("stays");
        session.is_some_and(|s| s["attached"] == false)
    });
    assert_eq!(client.value("show app.tenant"), "mine");
}
