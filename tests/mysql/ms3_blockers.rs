//! Each kind of blocker, also made inside a stored procedure: the event waits and says for what; let go, it completes; at
//! its timeout it rolls back with nobody disturbed; by force exactly the blocking session is ended, in Aurora's words.

use crate::support::client::{Client, code};
use crate::support::proxy::Proxy;
use crate::support::server::{Kind, Server};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;

/// A way into a blocker and the way out.
struct Case {
    name: &'static str,
    kind: &'static str,
    enter: &'static [&'static str],
    /// Empty: nothing but a reset of the connection lets it go.
    leave: &'static [&'static str],
}

const fn case(
    name: &'static str,
    kind: &'static str,
    enter: &'static [&'static str],
    leave: &'static [&'static str],
) -> Case {
    Case {
        name,
        kind,
        enter,
        leave,
    }
}

const ROUTINES: &[&str] = &[
    "CREATE TABLE app.t (a int) ENGINE=InnoDB",
    "CREATE PROCEDURE app.lock_it() DO GET_LOCK('inside', 1)",
    "CREATE FUNCTION app.lock_in() RETURNS INT READS SQL DATA RETURN GET_LOCK('within', 1)",
    "CREATE PROCEDURE app.temp_it() CREATE TEMPORARY TABLE app.tt (a int)",
    "CREATE PROCEDURE app.prepare_it() PREPARE hidden FROM 'SELECT 1'",
    "GRANT EXECUTE ON app.* TO app@'%'",
    "GRANT RELOAD ON *.* TO app@'%'",
];

const CASES: &[Case] = &[
    case(
        "transaction",
        "transaction",
        &["BEGIN", "INSERT INTO t VALUES (1)"],
        &["COMMIT"],
    ),
    case(
        "read_only",
        "transaction",
        &["START TRANSACTION READ ONLY", "SELECT * FROM t"],
        &["COMMIT"],
    ),
    case(
        "autocommit_off",
        "transaction",
        &["SET autocommit=0", "INSERT INTO t VALUES (1)"],
        &["ROLLBACK"],
    ),
    case(
        "failed_statement",
        "transaction",
        &["BEGIN", "INSERT INTO t VALUES (1)", "-SELECT nothing"],
        &["ROLLBACK"],
    ),
    case(
        "user_lock",
        "user_lock",
        &["SELECT GET_LOCK('plain', 1)"],
        &["SELECT RELEASE_LOCK('plain')"],
    ),
    case(
        "user_lock_twice",
        "user_lock",
        &["SELECT GET_LOCK('twice', 1), GET_LOCK('twice', 1)"],
        &[
            "SELECT RELEASE_LOCK('twice')",
            "SELECT RELEASE_LOCK('twice')",
        ],
    ),
    case(
        "user_lock_hidden",
        "user_lock",
        &["SELECT /*! get_lock/**/('hidden',1) */"],
        &["DO RELEASE_ALL_LOCKS()"],
    ),
    case(
        "user_lock_in_procedure",
        "user_lock",
        &["CALL lock_it()"],
        &["DO RELEASE_ALL_LOCKS()"],
    ),
    case(
        "user_lock_in_function",
        "user_lock",
        &["SELECT lock_in()"],
        &["DO RELEASE_LOCK('within')"],
    ),
    case(
        "table_lock",
        "table_lock",
        &["LOCK TABLES t WRITE"],
        &["UNLOCK TABLES"],
    ),
    case(
        "handler",
        "handler",
        &["HANDLER t OPEN"],
        &["HANDLER t CLOSE"],
    ),
    case(
        "global_lock",
        "global_lock",
        &["FLUSH TABLES WITH READ LOCK"],
        &["UNLOCK TABLES"],
    ),
    case(
        "temp_table",
        "temp_table",
        &["CREATE TEMPORARY TABLE tt (a int)"],
        &["DROP TEMPORARY TABLE tt"],
    ),
    case("temp_in_procedure", "temp_table", &["CALL temp_it()"], &[]),
    case(
        "xa",
        "xa",
        &["XA START 'x1'", "INSERT INTO t VALUES (1)"],
        &["XA END 'x1'", "XA ROLLBACK 'x1'"],
    ),
    case(
        "prepared_in_procedure",
        "unnamed_state",
        &["CALL prepare_it()"],
        &[],
    ),
    case(
        "prepared_from_variable",
        "unnamed_state",
        &["SET @t='SELECT 1'", "PREPARE v FROM @t"],
        &["DEALLOCATE PREPARE v"],
    ),
];

fn enter(client: &mut Client, case: &Case) {
    for sql in case.enter {
        match sql.strip_prefix('-') {
            Some(fails) => assert!(client.try_run(fails).is_err(), "{fails}"),
            None => client.run(sql),
        }
    }
}

fn leave(client: &mut Client, case: &Case) {
    let of_its_own = case.leave.is_empty()
        // MariaDB 10.11 can't show that a temporary table is gone: nothing but a reset tells.
        || (case.kind == "temp_table" && Kind::wanted() == Kind::MariaDb)
        || (case.kind == "temp_table" && Kind::wanted().is_mysql());
    for sql in case.leave {
        client.run(sql);
    }
    if of_its_own {
        client.0.reset().unwrap();
    }
}

#[test]
fn ms3_each_blocker_is_named_waited_for_and_let_go() {
    let server = Server::start(&[]);
    server.run(ROUTINES);
    let proxy = Proxy::on(&server);
    for case in CASES {
        let mut client = proxy.client(case.name);
        enter(&mut client, case);
        let admin = proxy.admin();
        let id = admin.start_event(&json!({ "timeout_seconds": 50 }));
        wait_until("the blocker is told", SOON, || {
            admin
                .blockers(case.name)
                .iter()
                .any(|b| b["kind"] == case.kind)
        });
        let blocker = &admin.blockers(case.name)[0];
        assert!(blocker["age_seconds"].is_u64(), "{}: {blocker}", case.name);
        assert_ne!(blocker["statement"], "", "{}: {blocker}", case.name);
        assert_eq!(admin.outcome(id), None, "{}", case.name);
        leave(&mut client, case);
        let event = admin.finished(id, EVENT);
        assert_eq!(event["outcome"], "completed", "{}: {event}", case.name);
        assert_eq!(client.value("SELECT 7"), "7", "{}", case.name);
    }
}

#[test]
fn ms3_a_timeout_rolls_back_and_disturbs_nobody() {
    let server = Server::start(&[]);
    server.run(ROUTINES);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("holder");
    client.run("SELECT GET_LOCK('mine', 1)");
    let mut other = proxy.client("other");
    other.run("SET @a = 1");
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 2 }));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "rolled_back", "{event}");
    assert_eq!(client.value("SELECT RELEASE_LOCK('mine')"), "1");
    assert_eq!(other.value("SELECT @a"), "1");
}

#[test]
fn ms3_safety_24_force_ends_the_blocking_session_in_auroras_words_and_no_other() {
    let server = Server::start(&[]);
    server.run(ROUTINES);
    let proxy = Proxy::on(&server);
    let mut holder = proxy.client("holder");
    holder.run("BEGIN");
    holder.run("INSERT INTO t VALUES (1)");
    let mut locker = proxy.client("locker");
    locker.run("SELECT GET_LOCK('mine', 1)");
    let mut other = proxy.client("other");
    other.run("SET @a = 1");
    let options = json!({ "timeout_seconds": 2, "on_timeout": "force" });
    let id = proxy.admin().start_event(&options);
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "forced", "{event}");
    for ended in [&mut holder, &mut locker] {
        let error = ended.try_run("SELECT 1").unwrap_err();
        assert_eq!(code(&error), 1105, "{error}");
        let text = "The last transaction was aborted due to Seamless Scaling. Please retry.";
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(other.value("SELECT @a"), "1");
    assert_eq!(other.value("SELECT COUNT(*) FROM t"), "0");
    assert_eq!(other.value("SELECT IS_FREE_LOCK('mine')"), "1");
}

#[test]
fn ms3_safety_13_a_detection_that_the_server_lacks_is_named() {
    let extra = if Kind::wanted().is_mysql() {
        "--performance-schema=OFF"
    } else {
        "--metadata-lock-info=OFF"
    };
    let server = Server::start(&[extra]);
    server.run(ROUTINES);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("hinted");
    client.run("SELECT GET_LOCK('plain', 1)");
    let admin = proxy.admin();
    let id = admin.start_event(&json!({ "timeout_seconds": 50 }));
    wait_until("the text gives it away", SOON, || {
        let blockers = admin.blockers("hinted");
        blockers.iter().any(|b| b["kind"] == "user_lock")
    });
    let facts = admin.cluster()["facts"].clone();
    let missing = facts.as_array().unwrap().iter();
    let missing: Vec<_> = missing
        .filter(|f| f["name"] == "missing_detection")
        .collect();
    assert!(!missing.is_empty(), "{facts:#}");
    client.0.reset().unwrap();
    assert_eq!(admin.finished(id, EVENT)["outcome"], "completed");
}
