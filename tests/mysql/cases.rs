//! Cases at which proxies of MySQL fail first, by the numbers of a list of forty. `case_NN` in the name of a test says
//! that it shows that case, here or where the table says.
//!
//! | case | where |
//! |---|---|
//! | 1 packets of exactly 16 MiB, and more | here, `session::mysql` |
//! | 2 sequence numbers wrap, also inside compression | here |
//! | 3 rows that begin like something else | `session::mysql` |
//! | 4 an error among rows | `session::mysql`, here (31: KILL QUERY) |
//! | 5 DEPRECATE_EOF on and off | `session::mysql`, `mysql_state`: it is agreed on with the server as the client asked, so both legs have the same |
//! | 6 pipelines | here, `session::mysql` |
//! | 7 several statements, one fails | here, `session::mysql` |
//! | 8 CALL with several results | here, `session::mysql` |
//! | 9 commands without a reply | `session::mysql`, here (10) |
//! | 10 to 14 prepared statements across moves | `cases_moves`, `session::mysql` |
//! | 15 open cursors | `mysql_state`, `session::mysql`: never moved, so none is fetched from elsewhere |
//! | 16 local files | `cases_moves`, `session::mysql` |
//! | 17 COM_CHANGE_USER | here, `net::mysql`: a failure closes, as MySQL does |
//! | 18 COM_RESET_CONNECTION | here, `mysql_state`, `session::mysql` |
//! | 19 a client that changes tracking | `session::mysql` |
//! | 20, 21 settings that trackers do not tell | `cases_moves` |
//! | 22 an error that may have ended the transaction | `mysql_state`, `session::mysql` |
//! | 23 SET TRANSACTION for the next one | `mysql_state`, `session::mysql`, here (18) |
//! | 24 transactions that nobody began | `ms3_blockers`, `session::mysql` |
//! | 25 XA | `ms3_blockers`, `session::mysql`: what is prepared is the server's, which stays the same across events |
//! | 26 implicit commits, chains, RELEASE | `cases_moves` |
//! | 27 a temporary table in front of another | `cases_moves` |
//! | 28, 29, 30 locks, hidden ones too, HANDLER | `ms3_blockers`, `mysql_state` |
//! | 31 KILL | here, `session::mysql` |
//! | 32 CONNECTION_ID() | `cases_moves`: it is the server's, as documented |
//! | 33 a server that dies after COMMIT was sent | `faults` (safety rule 6) |
//! | 34, 35 servers that close connections at rest, `wait_timeout` | `faults` |
//! | 36 log-ins that are no longer possible | `cases_moves` |
//! | 37 a cold cache of caching_sha2_password | `cases_moves`, `mysql_login` |
//! | 38 a full server | `faults`; a server blocks no proxy (1129), since every check of Slackwater's logs in |
//! | 39 clear text around a request for TLS | `net::mysql` |
//! | 40 another version, other defaults | `cases_moves`; what a server does not know is named by `mysql_state` |

use crate::support::client::{Client, code};
use crate::support::proxy::{Options, Proxy};
use crate::support::server::{APP, Server};
use crate::support::{SOON, wait_until};
use mysql::prelude::Queryable as _;
use std::thread;

fn rows_in_thread(mut client: Client, sql: &'static str) -> thread::JoinHandle<(Client, u16)> {
    thread::spawn(move || {
        let outcome = client.try_value(sql);
        let code = outcome.err().as_ref().map_or(0, code);
        (client, code)
    })
}

#[test]
fn case_31_kill_finds_its_session_by_the_number_it_was_greeted_with() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut killer = proxy.client("killer");
    let mut victim = proxy.client("victim");
    for round in 0..3 {
        let number = victim.number();
        let at_work = rows_in_thread(victim, "SELECT SLEEP(30)");
        wait_until("it works", SOON, || {
            let text = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'";
            Client::to(&server.admin()).value(text) == "1"
        });
        let sql = ["KILL QUERY {}", "kill /* it */ query {}", "KILL QUERY {};"][round];
        killer.run(&sql.replace("{}", &number.to_string()));
        let (client, error) = at_work.join().unwrap();
        // MySQL's SLEEP ends early and says so with its result.
        assert!(error == 1317 || server.kind.is_mysql(), "{error}");
        victim = client;
        assert_eq!(victim.value("SELECT 1"), "1");
        // The number on the server is another one from here on.
        proxy.admin().swap();
    }
    killer.run(&format!("KILL {}", victim.number()));
    assert!(victim.try_run("SELECT 1").is_err());
    let error = killer.try_run("KILL 4000000000").unwrap_err();
    assert_eq!(code(&error), 1094, "{error}");
    assert!(error.to_string().contains("4000000000"), "{error}");
}

#[test]
fn case_31_kill_of_a_parked_session_and_of_a_held_one() {
    let server = Server::start(&[]);
    let options = Options {
        sessions: "park_after = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut parked = proxy.client("parked");
    parked.run("SELECT 1");
    wait_until("it is parked", SOON, || {
        proxy.admin().session("parked").unwrap()["state"] == "parked"
    });
    let mut killer = proxy.client("killer");
    // Nothing runs.
    killer.run(&format!("KILL QUERY {}", parked.number()));
    assert_eq!(parked.value("SELECT 1"), "1");
    wait_until("it is parked", SOON, || {
        proxy.admin().session("parked").unwrap()["state"] == "parked"
    });
    killer.run(&format!("KILL {}", parked.number()));
    assert!(parked.try_run("SELECT 1").is_err());

    let held = proxy.client("held");
    let number = held.number();
    proxy.admin().act("hold");
    let waits = rows_in_thread(held, "SELECT 5");
    wait_until("it is held", SOON, || {
        proxy.admin().session("held").unwrap()["state"] == "held"
    });
    // The killer's own statement is held too: it is killed by the next one, once released.
    proxy.admin().act("release");
    let (mut held, error) = waits.join().unwrap();
    assert_eq!((error, held.number()), (0, number));
    assert_eq!(held.value("SELECT 6"), "6");
}

#[test]
fn case_17_change_user_takes_all_that_the_session_held() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("changing");
    client.run("SET @a = 1, sort_buffer_size = 400000");
    client.run("CREATE TABLE IF NOT EXISTS t (a int)");
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (1)");
    let number = client.number();
    let second = mysql::ChangeUserOpts::new()
        .with_user(Some("second".to_owned()))
        .with_pass(Some("second-secret".to_owned()))
        .with_db_name(Some("app".to_owned()));
    client.0.change_user(second).unwrap();
    assert_eq!(client.number(), number);
    assert_eq!(client.value("SELECT @a"), "NULL");
    assert!(client.value("SELECT CURRENT_USER()").starts_with("second@"));
    assert_eq!(client.value("SELECT COUNT(*) FROM t"), "0");
    proxy.admin().swap();
    assert!(client.value("SELECT CURRENT_USER()").starts_with("second@"));
    let told = proxy.admin().session("changing").unwrap();
    assert_eq!(told["user"], "second");
    let back = mysql::ChangeUserOpts::new()
        .with_user(Some(APP.0.to_owned()))
        .with_pass(Some(APP.1.to_owned()))
        .with_db_name(Some("other".to_owned()));
    client.0.change_user(back).unwrap();
    assert_eq!(client.value("SELECT DATABASE()"), "other");
    let wrong = mysql::ChangeUserOpts::new()
        .with_user(Some(APP.0.to_owned()))
        .with_pass(Some("wrong".to_owned()));
    let error = client.0.change_user(wrong).unwrap_err();
    assert_eq!(code(&error), 1045, "{error}");
    assert!(client.try_run("SELECT 1").is_err());
}

#[test]
fn case_18_a_reset_session_is_fresh_and_moves_on() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("reset");
    client.run("USE other");
    client.run("SET @a = 1, sort_buffer_size = 400000");
    client.run("SELECT GET_LOCK('a', 1)");
    client.0.reset().unwrap();
    assert_eq!(client.value("SELECT @a"), "NULL");
    assert_eq!(client.value("SELECT DATABASE()"), "other");
    proxy.admin().swap();
    assert_eq!(client.value("SELECT DATABASE()"), "other");
    // Tracking goes on: what is set for the next transaction is seen, and carried.
    client.run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE");
    proxy.admin().swap();
    client.run("CREATE TABLE IF NOT EXISTS app.t (a int)");
    client.run("SET TRANSACTION READ ONLY");
    proxy.admin().swap();
    let error = client.try_run("INSERT INTO app.t VALUES (1)").unwrap_err();
    assert_eq!(code(&error), 1792, "{error}");
}

#[test]
fn case_01_packets_of_16_mib_and_more_pass_both_ways() {
    let server = Server::start(&["--max-allowed-packet=64M", "--net-buffer-length=16K"]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("large");
    // The command and `SELECT ''` are 10 bytes; before the value of a row come 4, from 16 MiB on 9.
    for length in [
        0xff_fffe - 10,
        0xff_ffff - 10,
        0xff_ffff - 4,
        0x100_0000,
        20_000_000,
        0x1ff_fffe - 10,
        0x1ff_fffe - 9,
    ] {
        let text = "x".repeat(length);
        let got: Option<String> = client.0.query_first(format!("SELECT '{text}'")).unwrap();
        assert!(got.unwrap() == text, "{length}");
        let prepared: Option<String> = client.0.exec_first("SELECT ?", (&text,)).unwrap();
        assert!(prepared.unwrap() == text, "{length}");
        proxy.admin().swap();
    }
}

#[test]
fn case_02_sequence_numbers_wrap_also_inside_compression() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    for compressed in [false, true] {
        let target = proxy.app().named("many").compressed(compressed);
        let mut client = Client::to(&target);
        client.run("CREATE TABLE IF NOT EXISTS t (a int, b varchar(200))");
        client.run("INSERT INTO t SELECT 1, REPEAT('x', 200)");
        for _ in 0..11 {
            client.run("INSERT INTO t SELECT a, b FROM t");
        }
        let statement = client.prepare("SELECT a, b FROM t WHERE a = ?");
        for _ in 0..3 {
            let rows: Vec<(i64, String)> = client.0.query("SELECT a, b FROM t").unwrap();
            assert!(rows.len() >= 2048 && rows.iter().all(|r| r.1.len() == 200));
            let again: Vec<(i64, String)> = client.0.exec(&statement, (1,)).unwrap();
            assert_eq!(again, rows);
            proxy.admin().swap();
        }
        client.run("DROP TABLE t");
    }
}

#[test]
fn case_08_procedures_with_several_results_and_moves_between_calls() {
    let server = Server::start(&[]);
    server.run(&[
        "CREATE PROCEDURE app.several(IN a int, OUT b int) BEGIN SELECT a; SELECT a + 1; SET b = a + 2; END",
    ]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("calls");
    for n in 1..4_i64 {
        let mut results = client
            .0
            .query_iter(format!("CALL several({n}, @b)"))
            .unwrap();
        let mut seen = Vec::new();
        while let Some(rows) = results.iter() {
            seen.extend(rows.map(|r| r.unwrap().get::<i64, _>(0).unwrap()));
        }
        drop(results);
        assert_eq!(seen, [n, n + 1]);
        proxy.admin().swap();
        assert_eq!(client.value("SELECT @b"), (n + 2).to_string());
    }
}

#[test]
fn case_07_several_statements_in_a_text_the_third_one_fails() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("several");
    client.run("CREATE TABLE IF NOT EXISTS t (a int)");
    let mut results = client
        .0
        .query_iter("SELECT 1; SET @a = 2; SELECT nothing; SELECT 4")
        .unwrap();
    let mut seen = 0;
    while let Some(rows) = results.iter() {
        seen += rows.flatten().count();
    }
    drop(results);
    // The fourth is not run.
    assert_eq!(seen, 1);
    proxy.admin().swap();
    assert_eq!(client.value("SELECT @a"), "2");
}

#[test]
fn case_06_pipelined_commands_and_moves_between_them() {
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let mut client = proxy.client(&format!("worker{n}"));
            thread::spawn(move || {
                for i in 0..400 {
                    assert_eq!(
                        client.value(&format!("SELECT {i} + {n}")),
                        (i + n).to_string()
                    );
                }
            })
        })
        .collect();
    for _ in 0..3 {
        proxy.admin().swap();
    }
    for worker in workers {
        worker.join().unwrap();
    }
}
