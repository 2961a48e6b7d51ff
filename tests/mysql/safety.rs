//! Safety rules 3, 4, 7, 8, 13, 17, 26 and 29 as they are for MySQL and MariaDB, on real servers.

use crate::faults::{proven, quick};
use crate::support::client::{Client, Target, code};
use crate::support::proxy::{Options, Proxy};
use crate::support::raw::{Raw, query};
use crate::support::server::{Kind, Server};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;
use std::thread;

const TABLE: &[&str] = &["CREATE TABLE app.t (a int) ENGINE=InnoDB"];

fn state(proxy: &Proxy, name: &str) -> String {
    let session = proxy.admin().session(name).unwrap_or_default();
    session["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn safety_03_mysql_a_hold_lets_nothing_past_the_reply_that_is_owed() {
    let server = Server::start(&[]);
    server.run(TABLE);
    let proxy = Proxy::with(&server, &quick());
    let mut watcher = Client::to(&server.admin());
    let mut raw = Raw::connect(proxy.port(), "pipelines");
    let lock = "SELECT GET_LOCK('here', 0)";
    assert_eq!(watcher.value(lock), "1");
    // It waits for what another holds, and has sent the next command behind it.
    raw.send(
        0,
        &query("SELECT IS_FREE_LOCK('here'), GET_LOCK('here', 60), RELEASE_ALL_LOCKS()"),
    );
    let waits = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'User lock%'";
    wait_until("it waits", SOON, || watcher.value(waits) == "1");
    proxy.admin().act("hold");
    raw.pipeline(&[
        query("INSERT INTO t VALUES (1)"),
        query("INSERT INTO t VALUES (2)"),
    ]);
    watcher.run("DO RELEASE_LOCK('here')");
    assert_eq!(raw.rows().unwrap().len(), 1);
    wait_until("it is held", SOON, || state(&proxy, "pipelines") == "held");
    assert_eq!(watcher.value("SELECT COUNT(*) FROM app.t"), "0");
    proxy.admin().act("release");
    assert_eq!((raw.done(), raw.done()), (0, 0));
    assert_eq!(watcher.value("SELECT COUNT(*) FROM app.t"), "2");
}

#[test]
fn safety_04_mysql_a_session_with_a_blocker_is_not_held() {
    let server = Server::start(&[]);
    server.run(TABLE);
    let proxy = Proxy::with(&server, &quick());
    let mut writer = proxy.client("writer");
    writer.run("BEGIN");
    writer.run("INSERT INTO t VALUES (1)");
    let mut locker = proxy.client("locker");
    locker.run("SELECT GET_LOCK('mine', 1)");
    proxy.admin().act("hold");
    writer.run("INSERT INTO t VALUES (2)");
    writer.run("COMMIT");
    assert_eq!(locker.value("SELECT RELEASE_LOCK('mine')"), "1");
    let mut watcher = Client::to(&server.admin());
    assert_eq!(watcher.value("SELECT COUNT(*) FROM app.t"), "2");
    proxy.admin().act("release");
    writer.run("INSERT INTO t VALUES (3)");
}

#[test]
fn safety_07_mysql_kill_query_of_a_held_request_discards_it_and_no_more() {
    let server = Server::start(&[]);
    server.run(TABLE);
    let proxy = Proxy::with(&server, &quick());
    let mut killer = proxy.client("killer");
    killer.run("BEGIN");
    killer.run("INSERT INTO t VALUES (1)");
    let mut raw = Raw::connect(proxy.port(), "held");
    let number = raw.number;
    proxy.admin().act("hold");
    raw.pipeline(&[
        query("INSERT INTO t VALUES (2)"),
        query("INSERT INTO t VALUES (3)"),
    ]);
    wait_until("it is held", SOON, || state(&proxy, "held") == "held");
    // It is another user's.
    let error = killer.try_run(&format!("KILL QUERY {number}")).unwrap_err();
    assert_eq!(code(&error), 1095, "{error}");
    killer.run("COMMIT");
    proxy.admin().act("release");
    assert_eq!((raw.done(), raw.done()), (0, 0));

    let mut killer = Raw::connect(proxy.port(), "killer");
    killer.run("BEGIN");
    killer.run("INSERT INTO t VALUES (4)");
    proxy.admin().act("hold");
    raw.pipeline(&[
        query("INSERT INTO t VALUES (5)"),
        query("INSERT INTO t VALUES (6)"),
    ]);
    wait_until("it is held", SOON, || state(&proxy, "held") == "held");
    killer.run(&format!("KILL QUERY {number}"));
    assert_eq!(raw.done(), 1317, "the first one, while it is held");
    killer.run("ROLLBACK");
    proxy.admin().act("release");
    assert_eq!(raw.done(), 0, "what came behind it is run");
    let found = Client::to(&server.admin()).rows("SELECT a FROM app.t ORDER BY a");
    assert_eq!(found, "1\n2\n3\n6");
}

#[test]
fn safety_08_mysql_state_that_can_not_be_read_is_not_movable() {
    let server = Server::start(&["--max-allowed-packet=64M"]);
    let proxy = Proxy::with(&server, &quick());
    let mut client = proxy.client("large");
    // Of this size it is carried, or not moved; never lost, nor its session.
    for size in [1_000_000, 6_000_000, 9_000_000, 20_000_000, 40_000_000] {
        client.run(&format!("SET @large = REPEAT('x', {size})"));
        let id = proxy.admin().start_event(&json!({ "timeout_seconds": 3 }));
        let event = proxy.admin().finished(id, EVENT);
        let found = client.value("SELECT CONCAT(LENGTH(@large), ' ', CRC32(@large) = CRC32(REPEAT('x', LENGTH(@large))))");
        assert_eq!(found, format!("{size} 1"), "{event}");
        if size == 40_000_000 {
            assert_eq!(event["outcome"], "rolled_back", "{event}");
        }
        client.run("SET @large = 5");
        proxy.admin().swap();
        assert_eq!(client.value("SELECT @large"), "5");
    }
}

#[test]
fn safety_13_mysql_what_no_probe_shows_is_in_the_way_until_a_reset() {
    // Neither metadata_lock_info nor performance_schema.
    let blind = if Kind::wanted().is_mysql() {
        "--performance-schema=OFF"
    } else {
        "--metadata-lock-info=OFF"
    };
    let server = Server::start(&[blind]);
    let proxy = Proxy::with(&server, &quick());
    let mut client = proxy.client("blind");
    client.run("SELECT GET_LOCK('mine', 1)");
    let blocked = |kind: &str| {
        let id = proxy.admin().start_event(&json!({ "timeout_seconds": 2 }));
        let event = proxy.admin().finished(id, EVENT);
        assert_eq!(event["outcome"], "rolled_back", "{event}");
        let blockers = proxy.admin().blockers("blind");
        assert!(blockers.iter().any(|b| b["kind"] == kind), "{blockers:?}");
    };
    blocked("user_lock");
    // Nobody can see that it is gone.
    client.run("SELECT RELEASE_LOCK('mine')");
    blocked("user_lock");
    client.0.reset().unwrap();
    proxy.admin().swap();
    client.run("SET @text = 'SELECT 1'");
    client.run("PREPARE hidden FROM @text");
    blocked("unnamed_state");
    client.run("DEALLOCATE PREPARE hidden");
    client.0.reset().unwrap();
    proxy.admin().swap();
    assert_eq!(client.value("SELECT 5"), "5");
}

#[test]
fn safety_17_mysql_a_server_connection_never_serves_a_second_session() {
    let server = Server::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"200ms\"\npark_after = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut first = proxy.client("first");
    first.run("SET @mine = 'first', sort_buffer_size = 400000");
    let mut seen = vec![first.value("SELECT CONNECTION_ID()")];
    wait_until("it is parked", SOON, || state(&proxy, "first") == "parked");
    for n in 0..5 {
        let mut next = proxy.client(&format!("next{n}"));
        let number = next.value("SELECT CONNECTION_ID()");
        assert!(!seen.contains(&number), "{number} in {seen:?}");
        seen.push(number);
        assert_eq!(next.value("SELECT @mine"), "NULL");
        assert_ne!(next.value("SELECT @@sort_buffer_size"), "400000");
    }
    assert_eq!(first.value("SELECT @mine"), "first");
    assert!(!seen.contains(&first.value("SELECT CONNECTION_ID()")));
}

#[test]
fn safety_26_mysql_who_may_come_in_is_asked_at_each_log_in() {
    let mut server = Server::start(&[]);
    server.run(&[
        "CREATE USER changes@'%' IDENTIFIED BY 'first'",
        "GRANT ALL ON app.* TO changes@'%'",
    ]);
    let proxy = Proxy::with(&server, &quick());
    let log_in = |password: &str| {
        let target = Target::new(proxy.port(), ("changes", password));
        Client::connect(&target.named("changes")).map_err(|e| code(&e))
    };
    let mut stays = log_in("first").unwrap();
    stays.run("SET @mine = 5");
    server.run(&["ALTER USER changes@'%' IDENTIFIED BY 'second'"]);
    assert_eq!(log_in("first").err(), Some(1045));
    assert!(log_in("second").is_ok());
    server.run(&["ALTER USER changes@'%' ACCOUNT LOCK"]);
    assert!([3118, 4151, 1045].contains(&log_in("second").err().unwrap()));
    server.run(&["ALTER USER changes@'%' ACCOUNT UNLOCK"]);
    let mut again = log_in("second").unwrap();
    assert_eq!(again.value("SELECT 1"), "1");
    server.run(&["DROP USER changes@'%'"]);
    assert_eq!(log_in("second").err(), Some(1045));
    assert_eq!(log_in("").err(), Some(1045));
    // A session that was there is not let in elsewhere either, and is told.
    drop(again);
    server.kill();
    server.run_again();
    assert!(stays.try_run("SELECT 1").is_err());
}

#[test]
fn safety_29_mysql_a_client_that_leaves_in_mid_statement_leaves_nothing_behind() {
    let server = Server::start(&[]);
    server.run(TABLE);
    let proxy = Proxy::with(&server, &quick());
    let mut watcher = Client::to(&server.admin());
    let mut raw = Raw::connect(proxy.port(), "leaves");
    assert_eq!(raw.value("SELECT GET_LOCK('mine', 1)"), "1");
    raw.run("BEGIN");
    raw.run("INSERT INTO t VALUES (1)");
    raw.send(0, &query("SELECT SLEEP(600)"));
    let works =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'";
    wait_until("it works", SOON, || watcher.value(works) == "1");
    drop(raw);
    wait_until("it is gone", SOON, || watcher.value(works) == "0");
    wait_until("its lock is free", SOON, || {
        watcher.value("SELECT IS_FREE_LOCK('mine')") == "1"
    });
    assert_eq!(watcher.value("SELECT COUNT(*) FROM app.t"), "0");
    // A held one too: what it has sent is never sent on.
    let mut held = Raw::connect(proxy.port(), "held");
    held.run("SET @mine = 1");
    proven(&proxy, "held");
    proxy.admin().act("hold");
    held.send(0, &query("INSERT INTO t VALUES (2)"));
    wait_until("it is held", SOON, || state(&proxy, "held") == "held");
    drop(held);
    wait_until("it is gone", SOON, || {
        proxy.admin().session("held").is_none()
    });
    proxy.admin().act("release");
    let mut other = proxy.client("other");
    let counts = thread::spawn(move || other.value("SELECT COUNT(*) FROM t"));
    assert_eq!(counts.join().unwrap(), "0");
}

#[test]
fn safety_10_mysql_sessions_keep_their_values_when_new_ones_get_others() {
    let server = Server::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"200ms\"\npark_after = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let parked = |name: &str| {
        wait_until("it is parked", SOON, || state(&proxy, name) == "parked");
    };
    let read = "SELECT CONCAT(@@sort_buffer_size, ' ', @@net_read_timeout)";
    let (mut plain, mut full) = (proxy.client("plain"), proxy.client("full"));
    let before = plain.value(read);
    full.run("SET @mine = 'mine', sort_buffer_size = 400000");
    let of_full = full.value(read);
    for (sort, wait) in [(500_000, 41), (600_000, 42)] {
        for name in ["plain", "full"] {
            parked(name);
        }
        // What new sessions get; of one that a user may not set for itself as well.
        server.run(&[
            &format!("SET GLOBAL sort_buffer_size = {sort}"),
            &format!("SET GLOBAL net_read_timeout = {wait}"),
            &format!("SET GLOBAL binlog_cache_size = {}", 32_768 + 4096 * wait),
        ]);
        assert_eq!(plain.value(read), before);
        assert_eq!(full.value(read), of_full);
        assert_eq!(full.value("SELECT @mine"), "mine");
        let mut fresh = proxy.client("fresh");
        assert_eq!(fresh.value(read), format!("{sort} {wait}"));
        // The next server start decides anew, and what a session has set itself stays.
        proxy.admin().swap();
        assert_eq!(plain.value("SELECT 5"), "5");
        assert_eq!(full.value("SELECT @@sort_buffer_size"), "400000");
    }
}
