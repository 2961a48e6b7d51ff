//! What changes on the server while a session is parked, and what a client leaves behind: safety rules 9, 10,
//! 11 and 29.

use crate::support::postgres::{APP, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Message, Target, bind, execute, message, parse, sync};
use crate::support::{SOON, wait_until};

#[test]
fn safety_09_a_session_that_could_not_log_in_again_is_not_parked() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::parking(&server);
    let (mut plain, mut set) = (proxy.client("plain"), proxy.client("set"));
    set.run("set work_mem = '5MB'");
    // Inside a transaction nobody is parked before the password is changed.
    for client in [&mut plain, &mut set] {
        client.run("begin");
    }
    server.run(&["alter role app password 'another'"]);
    for client in [&mut plain, &mut set] {
        client.run("commit");
    }
    for name in ["plain", "set"] {
        wait_until("it stays, and says why", SOON, || {
            let blockers = proxy.admin().blockers(name);
            blockers.iter().any(|b| b["kind"] == "not_restorable")
        });
    }
    plain.run("select 1");
    assert_eq!(set.value("show work_mem"), "5MB");
    // The password is put right: they are parked after all.
    server.run(&[&format!("alter role app password '{}'", APP.1)]);
    // (Another salt: the keys of their log-ins do not fit, but those of new ones do.)
    let mut fresh = proxy.client("fresh");
    fresh.run("set work_mem = '6MB'");
    proxy.wait_parked("fresh");
    assert_eq!(fresh.value("show work_mem"), "6MB");
    plain.run("select 1");
}

#[test]
fn safety_09_hundreds_of_sessions_are_parked_and_come_back() {
    let server = Postgres::start(&["max_connections=300"]);
    let options = Options {
        sessions: "park_after = \"1s\"\nsnapshot_after = \"200ms\"\nmax_server_connections = 250"
            .to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut clients: Vec<_> = (0..200)
        .map(|n| (n, proxy.client(&format!("c{n}"))))
        .collect();
    for (n, client) in &mut clients {
        client.run(&format!("set app.number = '{}'", *n % 20));
    }
    wait_until("all are parked", SOON * 3, || {
        proxy.admin().sessions_count("parked") == 200
    });
    for (n, client) in &mut clients {
        assert_eq!(
            client.value("show app.number"),
            (*n % 20).to_string(),
            "client {n}"
        );
    }
}

#[test]
fn safety_10_a_session_keeps_its_values_when_its_role_gets_others() {
    let server = Postgres::start(&["work_mem=3MB"]);
    let proxy = Proxy::parking(&server);
    let (mut plain, mut role) = (proxy.client("plain"), proxy.client("role"));
    plain.run("select 1");
    role.run("set role helper");
    role.run("prepare kept as select 7");
    role.run("set app.other = 'x'");
    for name in ["plain", "role"] {
        proxy.wait_parked(name);
    }
    server.run(&[
        "alter role app set work_mem = '77MB'",
        "alter role app set search_path = 'pg_catalog'",
        "alter role app set statement_timeout = '5s'",
        "alter database app set app.tenant = 'theirs'",
    ]);
    for client in [&mut plain, &mut role] {
        assert_eq!(client.value("show work_mem"), "3MB");
        assert_eq!(client.value("show search_path"), "\"$user\", public");
        assert_eq!(client.value("show statement_timeout"), "0");
        assert_eq!(
            client.value("select coalesce(current_setting('app.tenant', true), '')"),
            ""
        );
    }
    assert_eq!(role.value("select current_user"), "helper");
    assert_eq!(role.value("execute kept"), "7");
    assert_eq!(role.value("show app.other"), "x");
    // They keep them through the next park as well, and through events.
    for name in ["plain", "role"] {
        proxy.wait_parked(name);
    }
    assert_eq!(plain.value("show work_mem"), "3MB");
    proxy.admin().swap();
    assert_eq!(role.value("show search_path"), "\"$user\", public");
    assert_eq!(plain.value("show statement_timeout"), "0");
    let mut fresh = proxy.client("fresh");
    assert_eq!(fresh.value("show work_mem"), "77MB");
    assert_eq!(fresh.value("show app.tenant"), "theirs");
    // What comes with the role at the log-in goes with the session as what it is.
    proxy.wait_parked("fresh");
    server.run(&["alter role app set work_mem = '78MB'"]);
    assert_eq!(fresh.value("show work_mem"), "77MB");
}

/// Parse and Describe of a named statement; what is answered up to ReadyForQuery.
fn prepare(client: &mut Client, name: &str, sql: &str) -> Vec<String> {
    let mut describe = b"S".to_vec();
    describe.extend(name.as_bytes());
    describe.push(0);
    let bytes = [parse(name, sql), message(b'D', &describe), sync()].concat();
    client.send(&bytes).unwrap();
    labels(client)
}

fn labels(client: &mut Client) -> Vec<String> {
    let answer = client.until_ready().unwrap();
    answer.iter().map(Message::label).collect()
}

fn execute_named(client: &mut Client, name: &str) -> Vec<String> {
    let bytes = [bind("", name, &[]), execute("", 0), sync()].concat();
    client.send(&bytes).unwrap();
    labels(client)
}

#[test]
fn safety_11_a_statement_with_other_rows_than_the_client_was_told_is_refused() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create table t (a int)",
        "create table gone (a int)",
        "insert into t values (1)",
        "grant all on t, gone to app",
    ]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("keeps");
    for (name, sql) in [
        ("all", "select * from t"),
        ("one", "select a from t"),
        ("gone", "select * from gone"),
    ] {
        assert_eq!(prepare(&mut client, name, sql), ["1", "t", "T", "Z(I)"]);
    }
    proxy.wait_parked("keeps");
    server.run(&["alter table t add column b text", "drop table gone"]);
    let refused = |labels: &[String], code: &str| {
        labels.contains(&format!("E({code})")) && labels.last().is_some_and(|l| l == "Z(I)")
    };
    for _ in 0..2 {
        let labels = execute_named(&mut client, "all");
        assert!(refused(&labels, "0A000"), "{labels:?}");
        let labels = execute_named(&mut client, "gone");
        assert!(refused(&labels, "42P01"), "{labels:?}");
        assert_eq!(execute_named(&mut client, "one"), ["2", "D", "C", "Z(I)"]);
        // Still so after a move.
        proxy.admin().swap();
    }
    let error = client.query("execute \"all\"").unwrap_err().server();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("0A000", "cached plan must not change result type")
    );
    client.run("deallocate \"all\"");
    assert_eq!(
        prepare(&mut client, "all", "select * from t"),
        ["1", "t", "T", "Z(I)"]
    );
    assert_eq!(execute_named(&mut client, "all"), ["2", "D", "C", "Z(I)"]);
    proxy.wait_parked("keeps");
    assert_eq!(execute_named(&mut client, "all"), ["2", "D", "C", "Z(I)"]);
}

#[test]
fn safety_29_a_good_bye_behind_a_statement_does_not_lose_it() {
    let server = Postgres::start(&[]);
    server.run(&["create table t (a int)", "grant all on t to app"]);
    let proxy = Proxy::on(&server);
    let goodbye = message(b'X', &[]);
    let slow = |n: u32| format!("insert into t select {n} from pg_sleep(0.5)");
    let query = |sql: &str| message(b'Q', &[sql.as_bytes(), b"\0"].concat());
    // It stays to read, it goes at once, it is a pipeline.
    let mut reads = proxy.client("reads");
    reads
        .send(&[query(&slow(1)), goodbye.clone()].concat())
        .unwrap();
    assert!(reads.finish().is_ok(), "the answer comes");
    assert!(reads.receive().is_err(), "and then the end");
    let mut goes = proxy.client("goes");
    goes.send(&[query(&slow(2)), goodbye.clone()].concat())
        .unwrap();
    goes.hang_up();
    let mut pipeline = proxy.client("pipeline");
    let mut bytes = Vec::new();
    for n in 3..6 {
        bytes.extend(
            [
                parse("", &slow(n)),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        );
    }
    bytes.extend(&goodbye);
    pipeline.send(&bytes).unwrap();
    pipeline.hang_up();
    let mut watcher = Client::connect(&server.admin()).unwrap();
    wait_until("all of it was done", SOON, || {
        watcher.value("select string_agg(a::text, '' order by a) from t") == "12345"
    });
    for name in ["reads", "goes", "pipeline"] {
        wait_until("the session is gone", SOON, || {
            proxy.admin().session(name).is_none()
        });
    }
    // Nothing of it runs on without a good-bye.
    let mut lost = proxy.client("lost");
    lost.start("insert into t select 6 from pg_sleep(600)")
        .unwrap();
    let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)'  and state = 'active'";
    wait_until("the statement runs", SOON, || watcher.value(running) == "1");
    lost.hang_up();
    wait_until("it was canceled", SOON, || watcher.value(running) == "0");
    // A transaction without its COMMIT is rolled back.
    let mut open = proxy.client("open");
    open.run("begin");
    open.send(&[query(&slow(7)), goodbye].concat()).unwrap();
    assert!(open.finish().is_ok());
    wait_until("the session is gone", SOON, || {
        proxy.admin().session("open").is_none()
    });
    assert_eq!(watcher.value("select count(*) from t where a > 5"), "0");
}

#[test]
fn safety_29_what_a_client_leaves_behind_is_gone_at_once() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    for clean in [true, false] {
        let mut client = Client::connect(&Target::new(proxy.port(), APP, "app")).unwrap();
        client.run("select pg_advisory_lock(4711)");
        client.run("create temporary table mine (a int)");
        client.run("listen chan");
        let process = client.server_process();
        if clean {
            client.close();
        } else {
            client.hang_up();
        }
        let sql = format!("select count(*) from pg_stat_activity where pid = {process}");
        wait_until("its server process is gone", SOON, || {
            watcher.value(&sql) == "0"
        });
        let locks = "select count(*) from pg_locks where locktype = 'advisory'";
        assert_eq!(watcher.value(locks), "0");
        let tables = "select count(*) from pg_class where relname = 'mine'";
        assert_eq!(watcher.value(tables), "0");
    }
}
