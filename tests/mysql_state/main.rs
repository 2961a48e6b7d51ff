//! Machine, probe, restore and verification against a real MariaDB or MySQL server of their own.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../common/guard.rs"]
mod guard;
#[path = "../common/mysql.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod mysql;
#[path = "../common/ports.rs"]
mod ports;
mod server;

use server::{Client, Server};
use slackwater::session::Portable as _;
use slackwater::session::blocker::BlockerKind;
use slackwater::session::mysql::grammar::Family;
use slackwater::session::mysql::probe::count_sql;
use slackwater::wire::mysql::command;
use slackwater::wire::mysql::reply::ERR;

const USER_VARIABLES: [&str; 14] = [
    "i", "n", "min", "u", "u5", "d", "d5", "neg", "f", "s", "bin", "nul", "utf", "a `b` c",
];

/// 20 variables and more, user variables of each type, database, role, statements of both kinds.
fn furnish(client: &mut Client) -> Vec<u32> {
    client.all(&[
        "SET SESSION sort_buffer_size=400000, join_buffer_size=300032, wait_timeout=777, interactive_timeout=888",
        "SET SESSION net_read_timeout=33, net_write_timeout=66, time_zone='+03:00', lc_time_names='de_DE'",
        "SET SESSION group_concat_max_len=5000, foreign_key_checks=0, unique_checks=0, sql_safe_updates=1",
        "SET SESSION sql_select_limit=3, max_join_size=1000000, div_precision_increment=6, lock_wait_timeout=44",
        "SET SESSION innodb_lock_wait_timeout=22, tmp_table_size=2000000, max_heap_table_size=2000896",
        "SET SESSION sql_auto_is_null=1, max_sort_length=2000, eq_range_index_dive_limit=11, default_week_format=3",
        "SET SESSION sql_mode='ANSI_QUOTES,NO_BACKSLASH_ESCAPES', optimizer_search_depth=5, autocommit=0",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET NAMES latin1 COLLATE latin1_german1_ci",
        "SET character_set_results=NULL",
        "SET ROLE r1",
        "USE other",
        "SET @i=1, @n=-5, @min=-9223372036854775808, @u=18446744073709551615, @u5=CAST(5 AS UNSIGNED)",
        "SET @d=1.50, @d5=CAST(5 AS DECIMAL(10,0)), @neg=-0.000001, @f=1.5e-7, @s='it''s\\', @bin=_binary x'00ff27'",
        "SET @nul=NULL, @utf=_utf8mb4 x'E29883F09F9880' COLLATE utf8mb4_bin, @`a ``b`` c`='x'",
    ]);
    let mut ids: Vec<u32> = (0..4)
        .map(|n| client.prepare(&format!("SELECT other, {n} FROM t WHERE other=?")))
        .collect();
    client.all(&["USE app"]);
    ids.push(client.prepare("SELECT v FROM t WHERE id=?"));
    client.all(&[
        "PREPARE one FROM 'SELECT 1, ''\\'''",
        "PREPARE two FROM 'SELECT v FROM t WHERE id=?'",
        "USE other",
        "PREPARE \"Three\" FROM 'SELECT other FROM t'",
        "SELECT LAST_INSERT_ID(4242)",
        "SET timestamp=1000000000.5",
    ]);
    ids
}

#[test]
fn safety_10_mysql_a_furnished_session_stays_the_same_through_twenty_moves() {
    let server = &Server::start();
    let mut client = server.app();
    let ids = furnish(&mut client);
    let run = |client: &mut Client, with_types| client.execute(ids[4], Some((1, with_types)), 0);
    let rows = run(&mut client, true);
    client.all(&["ROLLBACK"]);
    let before = client.dump(&USER_VARIABLES);
    assert!(client.machine.at_rest(), "{:?}", client.machine);
    let first = server.probe(&mut client).unwrap();
    assert_eq!(first.findings, []);
    assert!(!first.snapshot.is_plain());
    let mut probe = first.clone();
    for round in 0..20 {
        let (moved, restored) = server.moved(client, &probe);
        client = moved;
        assert_eq!(restored.refused, [""; 0]);
        assert_eq!(restored.ids.len(), ids.len());
        probe = server.probe(&mut client).unwrap();
        assert_eq!(probe.snapshot, first.snapshot, "round {round}");
        assert_eq!(probe.snapshot.fingerprint(), first.snapshot.fingerprint());
        if round % 7 == 0 {
            // The types are told again.
            assert_eq!(run(&mut client, false), rows);
            client.all(&["ROLLBACK"]);
            probe = server.probe(&mut client).unwrap();
        }
    }
    assert_eq!(client.dump(&USER_VARIABLES), before);
    assert_eq!(client.value("EXECUTE one"), Some("1".to_owned()));
    assert_eq!(client.error("EXECUTE nowhere"), 1243);
    assert_eq!(client.value("SELECT @f = 1.5e-7"), Some("1".to_owned()));
    // The one in the other database still means that one.
    client.all(&["SET @one = 1", "EXECUTE two USING @one", "EXECUTE three"]);
    client.all(&["DEALLOCATE PREPARE one"]);
}

#[test]
fn a_login_that_did_nothing_is_plain_and_is_checked_in_one_go() {
    let server = &Server::start();
    for deprecate_eof in [true, false] {
        let mut client = server.login("app", "app", deprecate_eof);
        client.all(&["SELECT 1", "DO 1"]);
        let probe = server.probe(&mut client).unwrap();
        assert_eq!(probe.findings, []);
        assert!(probe.snapshot.is_plain(), "{:?}", probe.snapshot);
        let (_, restored) = server.moved(client, &probe);
        assert_eq!(restored.ids.len(), 0);
    }
}

/// What a session is left with, by what made it.
fn blockers(server: &Server, texts: &[&str]) -> Vec<BlockerKind> {
    let mut client = server.app();
    client.all(texts);
    let mut kinds: Vec<_> = client.machine.wire_blocker().into_iter().collect();
    let probe = server.probe(&mut client).unwrap();
    kinds.extend(probe.findings.iter().map(|f| f.kind));
    kinds.extend(client.machine.sticky_blockers().map(|(kind, _)| kind));
    kinds.extend(client.machine.wire_blocker());
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[test]
fn every_mysql_kind_of_finding_is_seen_whoever_made_it() {
    let server = &Server::start();
    let of_mariadb = server.family == Family::MariaDb;
    let mut faults = Vec::new();
    let mut check = |texts: &[&str], wanted: &[BlockerKind]| {
        let found = blockers(server, texts);
        if found != wanted {
            faults.push(format!("{texts:?}: {found:?} instead of {wanted:?}"));
        }
    };
    for lock in [
        "SELECT GET_LOCK('a', 10)",
        "DO GET_LOCK('a', 10)",
        "CALL p_lock()",
        "SELECT f_lock()",
        "SELECT /*!40000 GET_LOCK('a', 10) */",
    ] {
        check(&[lock], &[BlockerKind::UserLock]);
        check(&[lock, "DO RELEASE_ALL_LOCKS()"], &[]);
    }
    check(
        &[
            "SELECT GET_LOCK('a', 10)",
            "SELECT GET_LOCK('a', 10)",
            "DO RELEASE_LOCK('a')",
        ],
        &[BlockerKind::UserLock],
    );
    check(
        &["CREATE TEMPORARY TABLE x (a INT) ENGINE=InnoDB"],
        &[BlockerKind::TempTable],
    );
    check(
        &["CREATE TEMPORARY TABLE x (a INT) ENGINE=MEMORY"],
        &[BlockerKind::TempTable],
    );
    check(&["CALL p_temp()"], &[BlockerKind::TempTable]);
    let listed = if !of_mariadb || server.version >= 110_200 {
        &[][..]
    } else {
        // Nothing shows that it is gone.
        &[BlockerKind::TempTable]
    };
    check(
        &["CREATE TEMPORARY TABLE x (a INT)", "DROP TABLE x"],
        listed,
    );
    check(&["LOCK TABLES t READ"], &[BlockerKind::TableLock]);
    check(&["LOCK TABLES t WRITE"], &[BlockerKind::TableLock]);
    check(&["LOCK TABLES t READ", "UNLOCK TABLES"], &[]);
    check(&["FLUSH TABLES WITH READ LOCK"], &[BlockerKind::GlobalLock]);
    check(&["FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES"], &[]);
    if of_mariadb {
        check(&["BACKUP STAGE START"], &[BlockerKind::GlobalLock]);
        check(&["BACKUP LOCK t"], &[BlockerKind::GlobalLock]);
    } else {
        check(&["LOCK INSTANCE FOR BACKUP"], &[BlockerKind::GlobalLock]);
    }
    check(&["HANDLER t OPEN"], &[BlockerKind::Handler]);
    check(&["HANDLER t OPEN", "HANDLER t CLOSE"], &[]);
    check(&["BEGIN"], &[BlockerKind::Transaction]);
    check(
        &["SET autocommit=0", "SELECT * FROM t"],
        &[BlockerKind::Transaction],
    );
    check(&["SET autocommit=0", "SELECT 1"], &[]);
    check(&["CALL p_prepare()"], &[BlockerKind::UnnamedState]);
    check(
        &["SET @q='SELECT 1'", "PREPARE s FROM @q"],
        &[BlockerKind::UnnamedState],
    );
    check(
        &[
            "SET @q='SELECT 1'",
            "PREPARE s FROM @q",
            "DEALLOCATE PREPARE s",
        ],
        &[],
    );
    check(
        &["PREPARE s FROM 'SELECT 1'", "SET sql_mode=''"],
        &[BlockerKind::NotRestorable],
    );
    let xa = blockers(server, &["XA START 'x'"]);
    assert!(xa.contains(&BlockerKind::Xa), "{xa:?}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_stored_programs_set_is_carried() {
    let server = &Server::start();
    let mut client = server.app();
    client.all(&[
        "CALL p_var()",
        "SELECT 7 INTO @into",
        "SELECT @assigned := 8",
    ]);
    let before = client.dump(&["in_procedure", "into", "assigned"]);
    let probe = server.probe(&mut client).unwrap();
    assert_eq!(probe.findings, []);
    assert_eq!(probe.snapshot.state().user_variables.len(), 3);
    let (mut client, _) = server.moved(client, &probe);
    assert_eq!(client.dump(&["in_procedure", "into", "assigned"]), before);
    assert_eq!(
        client.value("SELECT @@sort_buffer_size"),
        Some("300000".to_owned())
    );
}

#[test]
fn case_23_mysql_what_was_set_for_the_next_transaction_goes_along() {
    let server = &Server::start();
    let mut client = server.app();
    client.all(&["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY"]);
    let probe = server.probe(&mut client).unwrap();
    assert_eq!(probe.findings, []);
    let (mut client, _) = server.moved(client, &probe);
    let probe = server.probe(&mut client).unwrap();
    let (mut client, _) = server.moved(client, &probe);
    client.all(&["BEGIN"]);
    assert_eq!(client.error("INSERT INTO t (v) VALUES ('c')"), 1792);
    client.all(&[
        "ROLLBACK",
        "BEGIN",
        "INSERT INTO t (v) VALUES ('c')",
        "ROLLBACK",
    ]);
    let probe = server.probe(&mut client).unwrap();
    assert!(probe.snapshot.state().characteristics.is_empty());
}

#[test]
fn case_22_mysql_an_error_may_leave_a_transaction_open() {
    let server = &Server::start();
    let mut client = server.app();
    assert_eq!(client.error("BEGIN; SELECT * FROM nowhere"), 1146);
    assert_eq!(
        client.machine.wire_blocker(),
        Some(BlockerKind::Transaction)
    );
    client.all(&["ROLLBACK"]);
    assert!(client.machine.at_rest());
    assert_eq!(client.error("CALL p_begin()"), 1146);
    assert_eq!(
        client.machine.wire_blocker(),
        Some(BlockerKind::Transaction)
    );
    client.all(&["COMMIT"]);
    assert_eq!(client.error("SELECT * FROM nowhere"), 1146);
    assert!(client.machine.at_rest());
}

#[test]
fn case_15_mysql_cursors_are_in_the_way_until_they_end() {
    let server = &Server::start();
    for deprecate_eof in [true, false] {
        let mut client = server.login("app", "app", deprecate_eof);
        let id = client.prepare("SELECT id FROM t");
        client.execute(id, None, 1);
        assert_eq!(client.machine.wire_blocker(), Some(BlockerKind::Cursor));
        client.all(&["SELECT 1"]);
        assert_eq!(client.machine.wire_blocker(), Some(BlockerKind::Cursor));
        client.with_id(command::STMT_FETCH, id, &[1, 0, 0, 0]);
        assert_eq!(client.machine.wire_blocker(), Some(BlockerKind::Cursor));
        client.with_id(command::STMT_FETCH, id, &[100, 0, 0, 0]);
        assert!(client.machine.at_rest(), "{:?}", client.machine);
        client.execute(id, None, 1);
        client.with_id(command::STMT_CLOSE, id, &[]);
        assert!(client.machine.at_rest());
        let id = client.prepare("SELECT ?");
        client.with_id(command::STMT_SEND_LONG_DATA, id, b"\0\0data");
        assert_eq!(client.machine.wire_blocker(), Some(BlockerKind::LongData));
        client.with_id(command::STMT_RESET, id, &[]);
        assert!(client.machine.at_rest());
    }
}

#[test]
fn case_18_mysql_a_reset_is_followed() {
    let server = &Server::start();
    let mut client = server.app();
    furnish(&mut client);
    client.all(&["ROLLBACK", "USE other"]);
    client.command(&[command::RESET_CONNECTION]);
    assert!(client.machine.at_rest());
    let probe = server.probe(&mut client).unwrap();
    assert_eq!(probe.findings, []);
    assert!(probe.is_tracked);
    let state = probe.snapshot.state();
    assert_eq!(state.database.as_deref(), Some("other"));
    assert_eq!(
        (
            state.user_variables.len(),
            state.prepared.len(),
            state.texts.len()
        ),
        (0, 0, 0)
    );
    server.moved(client, &probe);
}

#[test]
fn other_commands_are_followed_on_a_real_server() {
    let server = &Server::start();
    for deprecate_eof in [true, false] {
        let mut client = server.login("app", "app", deprecate_eof);
        for payload in [
            &[command::PING][..],
            &[command::STATISTICS],
            &[command::PROCESS_INFO],
            &[command::DEBUG],
            &[command::SET_OPTION, 1, 0],
            &[command::SET_OPTION, 0, 0],
            &[command::FIELD_LIST, b't', 0],
            &[command::FIELD_LIST, b'x', 0],
            &[command::INIT_DB, b'a', b'p', b'p'],
            &[0x20],
            &[0x0f],
            &[0x70, 1, 2],
            b"\x03CALL p_lock()",
            b"\x03SELECT 1; SELECT 2; DO 1; SELECT 3",
            b"\x03SELECT 1; SELEKT",
            b"\x03/* nothing */",
            b"\x03",
        ] {
            client.command(payload);
            assert!(
                client.machine.at_rest(),
                "{payload:?}: {:?}",
                client.machine
            );
        }
        let unknown = client.command(&[0x20]);
        assert_eq!(unknown[0][..3], [ERR, 0x17, 0x04], "1047");
        // A local file.
        client.all(&["CREATE TABLE IF NOT EXISTS loaded (a INT)", "SET @x=1"]);
        client.send(0, b"\x03LOAD DATA LOCAL INFILE 'x' INTO TABLE loaded");
        let asked = client.read().unwrap();
        if asked[0] == 0xfb {
            client.send(2, b"1\n2\n");
            client.send(3, b"");
            client.settle();
            assert!(client.machine.at_rest(), "{:?}", client.machine);
        }
    }
}

#[test]
fn what_can_not_be_restored_is_named() {
    let server = &Server::start();
    let mut root = server.login("root", "app", true);
    root.all(&[
        "DROP ROLE IF EXISTS gone",
        "CREATE ROLE gone",
        "GRANT gone TO app@localhost",
    ]);
    let mut client = server.app();
    client.all(&["SET ROLE gone"]);
    let probe = server.probe(&mut client).unwrap();
    root.all(&["DROP ROLE gone"]);
    let mut fresh = server.app();
    let error = fresh
        .restore(&probe.snapshot, &server.baseline())
        .unwrap_err();
    assert!(error.starts_with("role "), "{error}");
    // A statement whose table is gone is no longer run, and says so.
    let mut client = server.app();
    client.all(&["CREATE TABLE vanishes (a INT)"]);
    let id = client.prepare("SELECT * FROM vanishes");
    let probe = server.probe(&mut client).unwrap();
    root.all(&["DROP TABLE app.vanishes"]);
    let (mut client, restored) = server.moved(client, &probe);
    assert_eq!(restored.refused.len(), 1);
    let packets = client.execute(id, None, 0);
    assert_eq!(packets[0][0], ERR);
}

#[test]
fn hostile_settings_do_not_fool_a_probe() {
    let server = &Server::start();
    for setting in [
        "SET SESSION sql_select_limit=0",
        "SET SESSION max_join_size=1",
        "SET SESSION sql_mode='ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,IGNORE_SPACE,HIGH_NOT_PRECEDENCE'",
        "SET character_set_results=latin1",
        "SET NAMES binary",
        "SET NAMES sjis",
        "SET group_concat_max_len=4",
        "SET SESSION TRANSACTION READ ONLY",
        "SET collation_connection=utf8mb4_bin",
    ] {
        let mut client = server.app();
        client.all(&[setting, "SET @a=_utf8mb4 x'E29883'"]);
        let probe = match server.probe(&mut client) {
            Ok(probe) => probe,
            Err(error) => {
                // Where a probe fails, nothing is known, and nothing is moved.
                assert!(error.usable, "{setting}: {error}");
                assert!(
                    setting.contains("max_join_size") && server.family == Family::MySql,
                    "{setting}: {error}"
                );
                continue;
            }
        };
        assert_eq!(probe.findings, [], "{setting}");
        assert_eq!(probe.snapshot.state().user_variables.len(), 1, "{setting}");
        let before = client.dump(&["a"]);
        let (mut client, _) = server.moved(client, &probe);
        assert_eq!(client.dump(&["a"]), before, "{setting}");
    }
}

#[test]
fn limits_that_a_probe_runs_without_are_carried() {
    let server = &Server::start();
    let mut settings = vec![
        // Each of these two switches sql_big_selects.
        "SET SESSION max_join_size=1000000",
        "SET SESSION max_join_size=1000000; SET SESSION sql_big_selects=1",
        "SET SESSION sql_big_selects=0",
        "SET SESSION sql_select_limit=3, sql_big_selects=0",
    ];
    if server.family == Family::MariaDb {
        settings.push("SET SESSION max_statement_time=7.5");
        settings.push("SET SESSION max_statement_time=30, max_join_size=1000000");
    } else {
        settings.push("SET SESSION max_execution_time=7500");
    }
    for setting in settings {
        let mut client = server.app();
        client.all(&setting.split(';').collect::<Vec<_>>());
        let before = client.dump(&[]);
        let probe = server.probe(&mut client).unwrap();
        assert_eq!(
            client.dump(&[]),
            before,
            "{setting}: a probe changes nothing"
        );
        assert!(!probe.snapshot.is_plain(), "{setting}");
        let (mut client, _) = server.moved(client, &probe);
        assert_eq!(client.dump(&[]), before, "{setting}");
    }
}

#[test]
fn a_digest_of_the_variables_tells_each_change_of_one() {
    let server = &Server::start();
    let mut client = server.app();
    let mut before = server.probe(&mut client).unwrap();
    assert!(before.snapshot.is_plain());
    assert_eq!(before.known.is_some(), server.family == Family::MariaDb);
    if let Some(digest) = &server.baseline().digest {
        // More than that, and a plugin has brought some that it does not tell of.
        assert_eq!(client.value(&count_sql()), Some(digest.listed.to_string()));
    }
    for (setting, name) in [
        ("SET SESSION long_query_time=1.25", "long_query_time"),
        ("SET SESSION long_query_time=1.125", "long_query_time"),
        ("SET SESSION sql_mode='ANSI_QUOTES'", "sql_mode"),
        (
            "SET SESSION character_set_results=NULL",
            "character_set_results",
        ),
        ("SET SESSION max_join_size=1000000", "max_join_size"),
    ] {
        client.all(&[setting]);
        let probe = server.probe(&mut client).unwrap();
        assert_ne!(
            probe.variables.get(name),
            before.variables.get(name),
            "{setting}"
        );
        // Neither a fresh login's nor new: the one of the last time.
        let again = server.probe(&mut client).unwrap();
        assert_eq!(again.variables, probe.variables, "{setting}");
        assert_eq!(again.snapshot, probe.snapshot, "{setting}");
        before = again;
    }
    client.command(&[command::RESET_CONNECTION]);
    let probe = server.probe(&mut client).unwrap();
    let own = probe.snapshot.state().variables.iter();
    let own: Vec<_> = own.map(|(name, _)| &**name).collect();
    assert!(!own.contains(&"long_query_time"), "{own:?}");
    assert!(!own.contains(&"max_join_size"), "{own:?}");
}

#[test]
fn case_23_mysql_what_was_set_for_the_next_transaction_is_gone_when_that_is_over() {
    let server = &Server::start();
    for deprecate_eof in [true, false] {
        let mut client = server.login("app", "app", deprecate_eof);
        client.all(&["SET TRANSACTION READ ONLY", "SELECT 1"]);
        let probe = server.probe(&mut client).unwrap();
        let next = String::from_utf8_lossy(&probe.snapshot.state().characteristics).into_owned();
        assert_eq!(next, "SET TRANSACTION READ ONLY;", "no table was read");
        // Rows that end with EOF say nothing of it.
        client.all(&["SELECT COUNT(*) FROM t"]);
        let probe = server.probe(&mut client).unwrap();
        let next = String::from_utf8_lossy(&probe.snapshot.state().characteristics).into_owned();
        assert_eq!(next, "", "deprecate_eof {deprecate_eof}");
    }
}

#[test]
fn case_23_mysql_a_reply_that_tells_changes_does_not_make_up_for_one_that_could_not() {
    let server = &Server::start();
    let mut client = server.login("app", "app", false);
    client.all(&[
        "SET TRANSACTION READ ONLY",
        "SELECT COUNT(*) FROM t",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    ]);
    let probe = server.probe(&mut client).unwrap();
    assert_eq!(&*probe.snapshot.state().characteristics, b"");
}
