//! Rules of safety that need a server and have no other test of their own; the number is the rule's.

use crate::support::postgres::{APP, Postgres, SERVICE};
use crate::support::proxy::Proxy;
use crate::support::wire::{Client, Target};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;
use std::fs;

fn told(proxy: &Proxy, user: &str, password: &str) -> Option<String> {
    match Client::connect(&Target::new(proxy.port(), (user, password), "app")) {
        Ok(_) => None,
        Err(error) => Some(error.server().code),
    }
}

#[test]
fn safety_24_a_reply_that_was_owed_comes_before_the_forced_end() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create table t (a int)",
        "grant all on t to app",
        "create function slow() returns trigger language plpgsql as \
         $$ begin perform pg_sleep(3); return null; end $$",
        "create constraint trigger slow after insert on t deferrable initially deferred \
         for each row execute function slow()",
    ]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("commits");
    client.run("begin");
    client.run("insert into t values (1)");
    client.start("commit").unwrap();
    let options = json!({ "timeout_seconds": 1, "on_timeout": "force" });
    let id = proxy.admin().start_event(&options);
    // The outcome of the COMMIT is told, whichever it was, and what was told is so.
    let committed = match client.finish() {
        Ok(_) => "1",
        Err(error) => {
            assert_eq!(error.server().code, "57014");
            "0"
        }
    };
    let error = client.finish().expect_err("it was ended").server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P01")
    );
    assert_eq!(proxy.admin().finished(id, EVENT)["outcome"], "forced");
    let mut watcher = Client::connect(&server.admin()).unwrap();
    assert_eq!(watcher.value("select count(*) from t"), committed);
}

#[test]
fn safety_26_verifiers_are_asked_at_each_login_and_trust_lets_nobody_in() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    assert_eq!(told(&proxy, APP.0, APP.1), None);
    server.run(&["alter role app password 'another'"]);
    assert_eq!(told(&proxy, APP.0, APP.1).as_deref(), Some("28P01"));
    assert_eq!(told(&proxy, APP.0, "another"), None);
    server.run(&["alter role app valid until '2001-01-01'"]);
    assert_eq!(told(&proxy, APP.0, "another").as_deref(), Some("28P01"));
    server.run(&["alter role app valid until 'infinity'"]);
    let hba = server.data_dir().join("pg_hba.conf");
    fs::write(hba, "host all all 127.0.0.1/32 trust\n").unwrap();
    server.run(&["select pg_reload_conf()"]);
    wait_until("the server trusts everybody", SOON, || {
        let anybody = Target::new(server.port(), (APP.0, "anything"), "app");
        Client::connect(&anybody).is_ok()
    });
    assert_eq!(told(&proxy, APP.0, "anything").as_deref(), Some("28P01"));
    assert_eq!(told(&proxy, "nobody_here", "").as_deref(), Some("28P01"));
    assert_eq!(told(&proxy, APP.0, "another"), None);
    // A server that runs and does not tell is not one that is away: what was told before lets nobody in.
    server.run(&[
        "alter role app valid until '2001-01-01'",
        &format!("alter role {} nologin", SERVICE.0),
        &format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{}'",
            SERVICE.0
        ),
    ]);
    assert!(told(&proxy, APP.0, "another").is_some());
    assert!(told(&proxy, APP.0, "another").is_some());
}

#[test]
fn safety_27_nothing_of_a_client_is_on_the_service_connection() {
    let server = Postgres::start(&["log_statement=all"]);
    server.run(&[
        "create schema evil authorization app",
        "grant all on schema evil to public",
    ]);
    let proxy = Proxy::on(&server);
    // What runs as the superuser must never look into a client's schema, whatever the client asks for.
    let target = proxy
        .app()
        .with("search_path", "evil, pg_catalog")
        .with("options", "-c role=app -c work_mem=77MB")
        .with("application_name", "evil");
    let mut client = Client::connect(&target).unwrap();
    client.run("create function evil.coalesce_(text) returns text language sql as 'select null'");
    client.run("create table evil.pg_authid as select 1 as rolname");
    client.run("create table evil.pg_db_role_setting as select 1 as s");
    assert_eq!(told(&proxy, APP.0, APP.1), None);
    proxy.admin().swap();
    let mut watcher = Client::connect(&server.admin()).unwrap();
    let sql = format!(
        "select count(*) from pg_stat_activity where usename = '{}' and application_name = 'evil'",
        SERVICE.0
    );
    assert_eq!(watcher.value(&sql), "0");
    assert_eq!(client.value("show work_mem"), "77MB");
    let log = server.log();
    let service = log.lines().filter(|l| l.contains(" slackwater LOG:"));
    let mut count = 0;
    for line in service.filter(|l| l.contains("statement:") || l.contains("execute")) {
        count += 1;
        assert!(!line.contains("evil") && !line.contains("77MB"), "{line}");
    }
    assert!(count > 0, "the service connection was used");
}
