//! What a statement left (ROW_COUNT(), warnings, the error) stays to be asked for `diagnostics_wait` long, whatever happens.

use crate::support::client::{Client, code};
use crate::support::proxy::{Options, Proxy};
use crate::support::server::Server;
use crate::support::{SOON, wait_until};
use mysql::prelude::Queryable as _;
use serde_json::json;

fn options(wait: &str) -> Options {
    Options {
        sessions: format!("diagnostics_wait = \"{wait}\"\nsnapshot_after = \"100ms\""),
        // One hold, however long a session lingers.
        scaling: "max_hold = \"30s\"".to_owned(),
        ..Options::default()
    }
}

/// Begins a swap; returns when it holds requests.
fn begin(proxy: &Proxy) -> u64 {
    let admin = proxy.admin();
    let id = admin.start_event(&json!({}));
    wait_until("it holds", SOON, || {
        let event = admin.event(id);
        assert!(event["outcome"].is_null(), "{event:#}");
        matches!(event["step"].as_str(), Some("settle" | "roll"))
    });
    id
}

fn must_complete(proxy: &Proxy, id: u64) {
    let event = proxy.admin().finished(id, SOON);
    assert_eq!(event["outcome"], "completed", "{event:#}");
}

fn furnished(proxy: &Proxy) -> Client {
    let mut client = proxy.client("asks");
    client.run("CREATE TABLE IF NOT EXISTS d (id int PRIMARY KEY, v varchar(3))");
    client.run("DELETE FROM d");
    client
}

#[test]
fn what_a_statement_left_is_answered_by_the_server_that_has_it() {
    asks_in_the_middle(&Proxy::local(&options("50s")));
}

#[test]
fn what_a_statement_left_is_answered_where_sessions_move_one_by_one() {
    let server = Server::start(&[]);
    asks_in_the_middle(&Proxy::with(&server, &options("50s")));
}

fn asks_in_the_middle(proxy: &Proxy) {
    let mut client = furnished(proxy);
    let counts = client.prepare("SELECT ROW_COUNT()");
    for round in 0..4 {
        client.run(&format!(
            "REPLACE INTO d VALUES ({round}1, 'a'), ({round}2, 'b'), ({round}3, 'c')"
        ));
        let event = begin(proxy);
        let count = match round {
            0 => client.value("SELECT ROW_COUNT()"),
            1 => client.value("select /* as Connector/J */ row_count() as n"),
            2 => client
                .execute::<i64>(&counts, ())
                .unwrap()
                .unwrap()
                .to_string(),
            _ => {
                let late = client.prepare("SELECT ROW_COUNT() /* prepared in the hold */");
                client
                    .execute::<i64>(&late, ())
                    .unwrap()
                    .unwrap()
                    .to_string()
            }
        };
        // A prepare is a statement of its own to some servers.
        assert!(count == "3" || round == 3, "{round}: {count}");
        must_complete(proxy, event);
    }
}

#[test]
fn warnings_and_errors_are_there_through_a_hold() {
    let proxy = Proxy::local(&options("50s"));
    let mut client = furnished(&proxy);
    client.run("SET sql_mode = ''");
    client.run("INSERT INTO d VALUES (1, 'too long')");
    let event = begin(&proxy);
    let warnings = client.rows("SHOW WARNINGS");
    assert!(warnings.contains("Data truncated"), "{warnings}");
    assert_eq!(client.rows("SHOW WARNINGS"), warnings, "once more");
    // Nothing is left behind it, so nothing is waited for.
    client.run("DO 0");
    must_complete(&proxy, event);
    let error = client.try_run("INSERT INTO d VALUES (1, 'a')").unwrap_err();
    assert_eq!(code(&error), 1062);
    let event = begin(&proxy);
    let errors = client.rows("SHOW ERRORS");
    assert!(errors.contains("1062"), "{errors}");
    client.run("DO 0");
    must_complete(&proxy, event);
}

#[test]
fn a_client_that_asks_for_something_else_is_held_at_once() {
    let proxy = Proxy::local(&options("50s"));
    let mut client = furnished(&proxy);
    for round in 0..3 {
        // With an error the server has to be asked whether this is rest.
        if round == 2 {
            let error = client.try_run("INSERT INTO d VALUES (1, 'a')").unwrap_err();
            assert_eq!(code(&error), 1062);
        } else {
            client.run(&format!("INSERT INTO d VALUES ({round}, 'a')"));
        }
        let event = begin(&proxy);
        // This may be the last that the old server answers, no more.
        assert_eq!(client.value("SELECT 1"), "1");
        assert_eq!(client.value("SELECT 2"), "2");
        must_complete(&proxy, event);
    }
}

#[test]
fn a_client_that_asks_nothing_is_moved_when_the_time_is_over() {
    let server = Server::start(&[]);
    let proxy = Proxy::with(&server, &options("300ms"));
    let mut client = furnished(&proxy);
    client.run("INSERT INTO d VALUES (1, 'a')");
    let number = client.number();
    proxy.admin().swap();
    assert_eq!(client.number(), number);
    // Lost, as documented: the new connection knows of no statement.
    assert_ne!(client.value("SELECT ROW_COUNT()"), "1");
    let none: Vec<mysql::Row> = client.0.query("SHOW WARNINGS").unwrap();
    assert!(none.is_empty());
}

#[test]
fn a_snapshot_leaves_what_a_client_may_still_ask_for() {
    let server = Server::start(&[]);
    let proxy = Proxy::with(&server, &options("50s"));
    let mut client = furnished(&proxy);
    client.run("SET sql_mode = ''");
    client.run("INSERT INTO d VALUES (1, 'too long')");
    let mut other = proxy.client("other");
    other.run("DO 0");
    // Snapshots are made: of the other session, which has nothing to lose.
    wait_until("a snapshot is made", SOON, || {
        proxy.admin().session("other").unwrap()["movable"] == true
    });
    assert!(client.rows("SHOW WARNINGS").contains("Data truncated"));
}
