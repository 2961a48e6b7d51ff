//! Cases of the list in `cases`, each with moves in between: prepared statements, local files, settings, log-ins that
//! are no longer possible, other servers.

use crate::faults::{proven, quick};
use crate::support::client::{Client, code};
use crate::support::proxy::{Options, Proxy};
use crate::support::raw::{
    LONGLONG, Raw, STRING, execute, execute_plain, long_data, prepare, query,
};
use crate::support::server::Server;
use crate::support::{EVENT, SOON, wait_until};
use mysql::prelude::Queryable as _;
use serde_json::{Value, json};
use slackwater::wire::mysql::command::LAST_STATEMENT;

/// An event that this session stands in the way of: what for, once that is told. It is let run out.
fn refused(proxy: &Proxy, name: &str, kind: &str) -> String {
    let admin = proxy.admin();
    let id = admin.start_event(&json!({ "timeout_seconds": 3 }));
    let mut detail = String::new();
    wait_until("the blocker is told", SOON, || {
        let blockers = admin.blockers(name);
        let found = blockers.iter().find(|b| b["kind"] == kind);
        detail = found.map_or(String::new(), |b| b["detail"].to_string());
        found.is_some()
    });
    let event = admin.finished(id, EVENT);
    assert_eq!(event["outcome"], "rolled_back", "{name}: {event}");
    detail
}

#[test]
fn case_10_data_that_was_sent_ahead_is_waited_for() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut raw = Raw::connect(proxy.port(), "ahead");
    raw.run("CREATE TABLE t (a text)");
    let id = raw.prepare("INSERT INTO t VALUES (?)");
    raw.send(0, &long_data(id, b"first, "));
    raw.send(0, &long_data(id, b"second"));
    let admin = proxy.admin();
    let event = admin.start_event(&json!({ "timeout_seconds": 50 }));
    wait_until("the blocker is told", SOON, || {
        admin
            .blockers("ahead")
            .iter()
            .any(|b| b["kind"] == "long_data")
    });
    assert_eq!(admin.outcome(event), None);
    raw.send(0, &execute(id, Some(STRING), b""));
    assert_eq!(raw.done(), 0);
    assert_eq!(admin.finished(event, EVENT)["outcome"], "completed");
    assert_eq!(raw.value("SELECT a FROM t"), "first, second");
    // On the new server connection as well.
    raw.send(0, &long_data(id, b"third"));
    raw.send(0, &execute(id, None, b""));
    assert_eq!(raw.done(), 0);
    assert_eq!(raw.value("SELECT MAX(a) FROM t"), "third");
}

#[test]
fn case_11_types_that_only_the_old_server_was_told() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut raw = Raw::connect(proxy.port(), "types");
    let id = raw.prepare("SELECT ? + 1");
    raw.send(0, &execute(id, Some(LONGLONG), &41_i64.to_le_bytes()));
    assert!(ends_with_text(&raw.rows().unwrap()[0], 42));
    for n in 1..4_i64 {
        proxy.admin().swap();
        raw.send(0, &execute(id, None, &n.to_le_bytes()));
        assert!(ends_with_text(&raw.rows().unwrap()[0], n + 1));
    }
    // Other types than before, at once after a move.
    proxy.admin().swap();
    raw.send(0, &execute(id, Some(STRING), b"\x0299"));
    assert_eq!(raw.rows().unwrap().len(), 1);
    proxy.admin().swap();
    raw.send(0, &execute(id, None, b"\x0299"));
    assert_eq!(raw.rows().unwrap().len(), 1);
}

/// A row in binary form whose only value is this number.
fn ends_with_text(row: &[u8], number: i64) -> bool {
    row.ends_with(&number.to_le_bytes())
}

#[test]
fn case_12_a_run_behind_a_preparation_that_failed() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut raw = Raw::connect(proxy.port(), "pipelines");
    let before = raw.prepare("SELECT 5");
    for _ in 0..2 {
        raw.pipeline(&[
            prepare("SELEKT 1"),
            execute_plain(LAST_STATEMENT),
            query("DO 1"),
        ]);
        assert_eq!(raw.prepared(), Err(1064));
        assert_eq!(raw.rows(), Err(1243), "no statement is run instead");
        assert_eq!(raw.done(), 0);
        proxy.admin().swap();
        if !server.kind.is_mysql() {
            // MariaDB: the last one that was prepared.
            raw.pipeline(&[prepare("SELECT 6"), execute_plain(LAST_STATEMENT)]);
            raw.prepared().unwrap();
            assert_eq!(raw.rows().unwrap().len(), 1);
        }
        proxy.admin().swap();
        raw.send(0, &execute_plain(before));
        assert_eq!(raw.rows().unwrap().len(), 1);
    }
}

#[test]
fn case_13_a_table_that_changed_under_a_prepared_statement() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("drifts");
    client.run("CREATE TABLE t (a int)");
    client.run("INSERT INTO t VALUES (1)");
    let all = client.prepare("SELECT * FROM t WHERE a = ?");
    let gone = client.prepare("SELECT a FROM t");
    server.run(&["ALTER TABLE app.t ADD COLUMN b int DEFAULT 7"]);
    proxy.admin().swap();
    let row: Option<(i64, i64)> = client.0.exec_first(&all, (1,)).unwrap();
    assert_eq!(row, Some((1, 7)));
    // What can't be prepared any more says so when it is run; nothing else is disturbed.
    server.run(&["ALTER TABLE app.t RENAME COLUMN a TO c"]);
    proxy.admin().swap();
    let error = client.execute::<i64>(&gone, ()).unwrap_err();
    assert!([1243, 1054].contains(&code(&error)), "{error}");
    assert_eq!(client.value("SELECT c FROM t"), "1");
}

#[test]
fn safety_09_mysql_case_14_no_room_for_prepared_statements() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("prepared");
    let statements: Vec<_> = (0..5)
        .map(|n| client.prepare(&format!("SELECT {n}")))
        .collect();
    server.run(&["SET GLOBAL max_prepared_stmt_count=7"]);
    let detail = refused(&proxy, "prepared", "not_restorable");
    assert!(detail.contains("1461"), "{detail}");
    for (n, statement) in statements.iter().enumerate() {
        assert_eq!(client.execute(statement, ()).unwrap(), Some(n as i64));
    }
    server.run(&["SET GLOBAL max_prepared_stmt_count=100"]);
    proxy.admin().swap();
    for (n, statement) in statements.iter().enumerate() {
        assert_eq!(client.execute(statement, ()).unwrap(), Some(n as i64));
    }
}

#[test]
fn case_16_local_files_refused_empty_and_too_early() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut raw = Raw::connect(proxy.port(), "files");
    raw.run("CREATE TABLE t (a varchar(20))");
    let load = query("LOAD DATA LOCAL INFILE 'x' INTO TABLE t");
    for parts in [&[&b"1\n2\n"[..], b"3\n"][..], &[], &[b"4\n"]] {
        raw.send(0, &load);
        assert_eq!(raw.read().unwrap()[0], 0xfb, "the file is asked for");
        // An empty file, and one that the client refuses, are the same.
        let mut seq = raw.seq() + 1;
        for part in parts {
            raw.send(seq, part);
            seq += 1;
        }
        raw.send(seq, b"");
        assert_eq!(raw.done(), 0);
        proxy.admin().swap();
    }
    assert_eq!(
        raw.value("SELECT GROUP_CONCAT(a ORDER BY a) FROM t"),
        "1,2,3,4"
    );
    // An error before the file is asked for.
    raw.send(0, &query("LOAD DATA LOCAL INFILE 'x' INTO TABLE nothing"));
    let first = raw.read().unwrap();
    if first[0] == 0xfb {
        raw.send(raw.seq() + 1, b"");
        assert_ne!(raw.done(), 0);
    }
    // An error while the client still sends.
    raw.run("CREATE TABLE strict (a int)");
    raw.run("SET sql_mode='STRICT_ALL_TABLES'");
    raw.send(0, &query("LOAD DATA LOCAL INFILE 'x' INTO TABLE strict"));
    assert_eq!(raw.read().unwrap()[0], 0xfb);
    let mut seq = raw.seq() + 1;
    for _ in 0..20 {
        raw.send(seq, "no number\n".repeat(1000).as_bytes());
        seq += 1;
    }
    raw.send(seq, b"");
    raw.done();
    proxy.admin().swap();
    assert_eq!(raw.value("SELECT 9"), "9");
}

#[test]
fn case_20_and_21_settings_of_which_trackers_tell_little_or_the_wrong_thing() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("settings");
    let read = "SELECT @@character_set_client, @@character_set_connection, @@collation_connection, \
                @@character_set_results, @@sort_buffer_size, @@max_statement_time";
    let read = if server.kind.is_mysql() {
        read.replace("max_statement_time", "max_execution_time")
    } else {
        read.to_owned()
    };
    for sql in [
        "SET NAMES utf8mb4 COLLATE utf8mb4_spanish_ci",
        "SET NAMES latin1 COLLATE latin1_german2_ci",
        "SET CHARACTER SET latin1",
        "SET collation_connection=utf8mb4_bin",
        "SET NAMES utf8mb4",
        "SET STATEMENT sort_buffer_size=400000, max_statement_time=5 FOR SELECT 1",
        "SET SESSION sort_buffer_size=DEFAULT",
    ] {
        if sql.starts_with("SET STATEMENT") && server.kind.is_mysql() {
            continue;
        }
        client.run(sql);
        let before = client.rows(&read);
        proxy.admin().swap();
        assert_eq!(client.rows(&read), before, "{sql}");
    }
    // A clock that stands, and one that goes on.
    client.run("SET timestamp=1000000000.5");
    proxy.admin().swap();
    assert_eq!(client.value("SELECT UNIX_TIMESTAMP()"), "1000000000");
    client.run("SET timestamp=DEFAULT");
    proxy.admin().swap();
    let now: f64 = client.value("SELECT UNIX_TIMESTAMP()").parse().unwrap();
    assert!(now > 1_700_000_000.0, "{now}");
}

#[test]
fn case_26_transactions_that_end_or_begin_by_the_way() {
    let server = Server::start(&[]);
    let proxy = Proxy::with(&server, &quick());
    let mut client = proxy.client("ends");
    client.run("CREATE TABLE t (a int)");
    // DDL has committed what was open: there is nothing in the way.
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (1)");
    client.run("CREATE TABLE other.made (a int)");
    proxy.admin().swap();
    client.run("ROLLBACK");
    assert_eq!(client.value("SELECT COUNT(*) FROM t"), "1");
    // A chain has begun the next one.
    for chain in ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"] {
        client.run("BEGIN");
        client.run(chain);
        refused(&proxy, "ends", "transaction");
        client.run("INSERT INTO t VALUES (2)");
        client.run("ROLLBACK");
        proxy.admin().swap();
    }
    assert_eq!(client.value("SELECT COUNT(*) FROM t"), "1");
    // The server closes behind this one: so does the session.
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (3)");
    client.run("ROLLBACK RELEASE");
    // The next request may reach the server while it closes: what became of that nobody knows.
    let error = client.try_run("SELECT 1").unwrap_err();
    assert!([0, 1105].contains(&code(&error)), "{error}");
    let mut client = proxy.client("releases");
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (4)");
    client.run("COMMIT RELEASE");
    assert!(client.try_run("SELECT 1").is_err());
    assert_eq!(proxy.client("next").value("SELECT SUM(a) FROM t"), "5");
}

#[test]
fn case_27_a_temporary_table_in_front_of_another_is_never_left_behind() {
    let server = Server::start(&[]);
    let proxy = Proxy::with(&server, &quick());
    let mut client = proxy.client("shadows");
    client.run("CREATE TABLE t (a int)");
    client.run("INSERT INTO t VALUES (1)");
    client.run("CREATE TEMPORARY TABLE t (a int)");
    client.run("INSERT INTO t VALUES (2)");
    refused(&proxy, "shadows", "temp_table");
    assert_eq!(client.value("SELECT a FROM t"), "2");
    // Emptied, renamed, made again: it is there.
    client.run("TRUNCATE t");
    client.run("ALTER TABLE t RENAME TO u");
    refused(&proxy, "shadows", "temp_table");
    client.0.reset().unwrap();
    proxy.admin().swap();
    assert_eq!(client.value("SELECT a FROM t"), "1");
}

#[test]
fn case_32_the_number_of_a_session_and_that_of_its_server_connection() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("numbered");
    let (told, on_server) = (client.number(), client.value("SELECT CONNECTION_ID()"));
    proxy.admin().swap();
    // As documented: the greeting's number stays, the function tells the server's.
    assert_ne!(client.value("SELECT CONNECTION_ID()"), on_server);
    assert_eq!(client.number(), told);
    // A lock whose name was made of it is in the way for as long as it is held.
    client.run("SELECT GET_LOCK(CONCAT('of', CONNECTION_ID()), 1)");
    refused(&proxy, "numbered", "user_lock");
    let released = "SELECT RELEASE_LOCK(CONCAT('of', CONNECTION_ID()))";
    assert_eq!(client.value(released), "1");
    proxy.admin().swap();
}

#[test]
fn safety_09_mysql_case_36_a_log_in_that_is_no_longer_possible_is_found_before_anything_is_given_up()
 {
    let server = Server::start(&[]);
    let proxy = Proxy::with(&server, &quick());
    let account = |n: usize| format!("victim{n}@'%'");
    let ways: &[(&str, &str)] = &[
        (
            "ALTER USER {} IDENTIFIED BY 'other'",
            "ALTER USER {} IDENTIFIED BY 'secret'",
        ),
        ("ALTER USER {} ACCOUNT LOCK", "ALTER USER {} ACCOUNT UNLOCK"),
        ("REVOKE ALL ON app.* FROM {}", "GRANT ALL ON app.* TO {}"),
        ("DROP USER {}", ""),
        (
            "ALTER USER {} WITH MAX_USER_CONNECTIONS 1",
            "ALTER USER {} WITH MAX_USER_CONNECTIONS 9",
        ),
    ];
    for (n, (harm, amends)) in ways.iter().enumerate() {
        let account = account(n);
        server.run(&[
            &format!("CREATE USER {account} IDENTIFIED BY 'secret' WITH MAX_USER_CONNECTIONS 9"),
            &format!("GRANT ALL ON app.* TO {account}"),
        ]);
        let name = format!("victim{n}");
        let target = crate::support::client::Target::new(proxy.port(), (&name, "secret"));
        let mut client = Client::to(&target.named(&name));
        client.run("SET @mine = 5");
        server.run(&[&harm.replace("{}", &account)]);
        let detail = refused(&proxy, &name, "not_restorable");
        assert!(!detail.contains("secret"), "{detail}");
        assert_eq!(client.value("SELECT @mine"), "5", "{harm}");
        if amends.is_empty() {
            continue;
        }
        server.run(&[&amends.replace("{}", &account)]);
        proxy.admin().swap();
        assert_eq!(client.value("SELECT @mine"), "5", "{harm}");
    }
}

#[test]
fn case_37_a_server_that_has_forgotten_the_password_is_told_it_again() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("sha2");
    client.run("SET @mine = 5");
    for _ in 0..3 {
        // Empties the cache of caching_sha2_password.
        server.run(&["FLUSH PRIVILEGES"]);
        proxy.admin().swap();
        assert_eq!(client.value("SELECT @mine"), "5");
    }
    server.run(&["FLUSH PRIVILEGES"]);
    assert_eq!(proxy.client("new").value("SELECT 1"), "1");
}

#[test]
fn case_37_a_local_server_that_was_restarted_knows_no_password_yet() {
    let proxy = Proxy::local(&quick());
    let mut client = proxy.client("sha2");
    client.run("SET @mine = 5");
    proven(&proxy, "sha2");
    proxy.kill_server();
    assert_eq!(client.value("SELECT @mine"), "5");
    proxy.admin().swap();
    assert_eq!(client.value("SELECT @mine"), "5");
}

#[test]
fn safety_18_mysql_case_40_sessions_never_go_to_a_server_that_is_another_one() {
    let (first, second) = (Server::start(&[]), Server::start(&["--sql-mode="]));
    let proxy = Proxy::on_two(&first, &second, &Options::default());
    let mut client = proxy.client("stays");
    client.run("SET @mine = 5");
    let before = proxy.admin().capacity();
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 10 }));
    let event = proxy.admin().finished(id, EVENT);
    assert!(
        event["outcome"] == "rolled_back" || event["outcome"] == "failed",
        "{event}"
    );
    assert_ne!(event["reason"], Value::Null, "{event}");
    assert_eq!(proxy.admin().capacity(), before);
    assert_eq!(client.value("SELECT @mine"), "5");
    let port: String = client.value("SELECT @@port");
    assert!(first.address().ends_with(&port) || second.address().ends_with(&port));
}

#[test]
fn case_40_the_same_data_under_other_defaults() {
    // What a server is started with decides what a session has by default; what the session set itself goes along.
    let mut server = Server::start(&["--sql-mode=ANSI_QUOTES", "--sort-buffer-size=300000"]);
    let proxy = Proxy::with(&server, &quick());
    let mut client = proxy.client("keeps");
    assert_eq!(client.value("SELECT @@sql_mode"), "ANSI_QUOTES");
    client.run("SET SESSION join_buffer_size=400000");
    assert_eq!(client.value("SELECT @@sort_buffer_size"), "300000");
    proven(&proxy, "keeps");
    server.stop();
    server.set(&[
        "--sql-mode=NO_ENGINE_SUBSTITUTION",
        "--sort-buffer-size=350000",
    ]);
    server.run_again();
    let mode = client.value("SELECT @@sql_mode");
    assert_eq!(mode, "NO_ENGINE_SUBSTITUTION");
    assert_eq!(client.value("SELECT @@sort_buffer_size"), "350000");
    assert_eq!(client.value("SELECT @@join_buffer_size"), "400000");
}
