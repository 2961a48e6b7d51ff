//! Sessions whose fresh login is not what the first one was, or whose statements mean something else by now.

use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::Proxy;
use crate::support::wire::{Client, Message, Target, bind, execute, message, parse, sync};
use crate::support::{SOON, sized, wait_until};

/// Waits until the session is not parked for this reason.
fn stays(proxy: &Proxy, application: &str, word: &str) {
    wait_until("it stays, and says why", SOON, || {
        let blockers = proxy.admin().blockers(application);
        let told = |b: &serde_json::Value| b["detail"].as_str().is_some_and(|d| d.contains(word));
        blockers
            .iter()
            .any(|b| b["kind"] == "not_restorable" && told(b))
    });
}

#[test]
fn safety_10_settings_that_only_a_superuser_may_set_are_the_roles_own() {
    let server = Postgres::start(&[]);
    server.run(&["alter role app set lc_messages = 'C'"]);
    server.run(&["alter role app set deadlock_timeout = '7s'"]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("app");
    client.run("set work_mem = '5MB'");
    client.run("prepare kept as select 7");
    assert_eq!(client.value("show deadlock_timeout"), "7s");
    proxy.wait_parked("app");
    // One that is new, one that is another, and one that is gone; and one that the session can keep.
    server.run(&[
        "alter role app set log_min_duration_statement = '1s'",
        "alter role app set deadlock_timeout = '8s'",
        "alter role app reset lc_messages",
        "alter role app set statement_timeout = '55s'",
    ]);
    for _ in 0..2 {
        assert_eq!(client.value("show work_mem"), "5MB");
        assert_eq!(client.value("show log_min_duration_statement"), "1s");
        assert_eq!(client.value("show deadlock_timeout"), "8s");
        assert_eq!(client.value("show statement_timeout"), "0");
        assert_eq!(client.value("execute kept"), "7");
        proxy.wait_parked("app");
    }
    server.run(&["alter role app set deadlock_timeout = '9s'"]);
    proxy.admin().swap();
    assert_eq!(client.value("show deadlock_timeout"), "9s");
    proxy.admin().swap();
    assert_eq!(client.value("show work_mem"), "5MB");
    // Who may set it keeps it.
    let mut direct =
        Client::connect(&Target::new(proxy.port(), ADMIN, "app").with("application_name", "admin"))
            .unwrap();
    direct.run("set deadlock_timeout = '3s'");
    server.run(&["alter role postgres set log_min_duration_statement = '2s'"]);
    proxy.wait_parked("admin");
    assert_eq!(direct.value("show deadlock_timeout"), "3s");
    assert_eq!(direct.value("show log_min_duration_statement"), "-1");
}

#[test]
fn safety_12_a_statement_made_among_others_is_in_the_way() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("several");
    client.run("prepare p as select 4; select 4");
    stays(&proxy, "several", "prepared statement \"p\"");
    client.run("deallocate p");
    client.run("prepare p as select ';' /* ; */ ; -- ;");
    proxy.wait_parked("several");
    assert_eq!(client.value("execute p"), ";");
}

#[test]
fn safety_10_a_role_that_the_session_left_stays_left() {
    let server = Postgres::start(&[]);
    server.run(&["alter role app set role = 'helper'"]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("left");
    assert_eq!(client.value("select current_user"), "helper");
    client.run("set role none");
    proxy.wait_parked("left");
    assert_eq!(client.value("select current_user"), "app");
    proxy.admin().swap();
    assert_eq!(client.value("select current_user"), "app");
    // And one that it never had.
    server.run(&["alter role app reset role"]);
    let mut client = proxy.client("never");
    client.run("select 1");
    proxy.wait_parked("never");
    server.run(&["alter role app set role = 'helper'"]);
    assert_eq!(client.value("select current_user"), "app");
}

#[test]
fn safety_09_a_session_that_comes_back_waits_for_a_place_of_its_role() {
    let server = Postgres::start(&[]);
    server.run(&["alter role app connection limit 1"]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("first");
    client.run("select 1");
    proxy.wait_parked("first");
    let mut second = proxy.client("second");
    second.run("begin");
    client.start("select 5").unwrap();
    wait_until("the server has refused it once", SOON, || {
        server.log().contains("too many connections for role")
    });
    second.close();
    assert_eq!(client.finish().unwrap()[0][0].as_deref(), Some("5"));
}

fn prepare(client: &mut Client, name: &str, sql: &str) {
    let mut describe = b"S".to_vec();
    describe.extend(name.as_bytes());
    describe.push(0);
    let bytes = [parse(name, sql), message(b'D', &describe), sync()].concat();
    client.send(&bytes).unwrap();
    client.finish().unwrap();
}

fn use_named(client: &mut Client, name: &str) -> Vec<String> {
    let bytes = [bind("", name, &[]), execute("", 0), sync()].concat();
    client.send(&bytes).unwrap();
    let answer = client.until_ready().unwrap();
    answer.iter().map(Message::label).collect()
}

#[test]
fn safety_11_a_statement_that_cannot_be_made_now_is_made_when_it_is_used() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create schema tenant_a authorization app",
        "create table tenant_a.invoices (a int)",
        "insert into tenant_a.invoices values (42)",
        "grant all on all tables in schema tenant_a to app",
    ]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("tenant");
    client.run("set search_path = tenant_a");
    for name in ["s1", "s2", "s3", "s4"] {
        prepare(&mut client, name, "select * from invoices");
    }
    client.run("set search_path = public");
    for _ in 0..2 {
        proxy.wait_parked("tenant");
        // As directly: its text is looked at when it is bound.
        assert_eq!(use_named(&mut client, "s1"), ["E(42P01)", "Z(I)"]);
        // Only what is there is told.
        let listed = "select count(*) from pg_prepared_statements";
        assert_eq!(client.value(listed), "0");
        client.run("set search_path = tenant_a");
        assert_eq!(use_named(&mut client, "s1"), ["2", "D", "C", "Z(I)"]);
        assert_eq!(use_named(&mut client, "s1"), ["2", "D", "C", "Z(I)"]);
        client.run("set search_path = public");
        proxy.admin().swap();
        assert_eq!(use_named(&mut client, "s1"), ["E(42P01)", "Z(I)"]);
    }
    // In a pipeline it is made once, and in a transaction its error ends that, as directly.
    client.run("set search_path = tenant_a");
    let batch = [bind("", "s2", &[]), execute("", 0)].concat();
    let bytes = [&*batch, &batch, &sync(), &batch, &sync()].concat();
    client.send(&bytes).unwrap();
    for wanted in [5, 3] {
        let answer = client.until_ready().unwrap();
        let labels: Vec<_> = answer.iter().map(Message::label).collect();
        assert_eq!(
            labels.iter().filter(|l| *l == "C").count(),
            wanted / 2,
            "{labels:?}"
        );
    }
    client.run("set search_path = public");
    proxy.admin().swap();
    client.run("begin");
    assert_eq!(use_named(&mut client, "s2"), ["E(42P01)", "Z(E)"]);
    assert_eq!(use_named(&mut client, "s2"), ["E(25P02)", "Z(E)"]);
    client.run("rollback");
    // It can be closed and deallocated like any other, and its name used again.
    client.run("deallocate s2");
    client.run("prepare s2 as select 8");
    assert_eq!(use_named(&mut client, "s2"), ["2", "D", "C", "Z(I)"]);
    client.run("deallocate s2");
    let close = [message(b'C', b"Ss3\0"), sync()].concat();
    client.send(&close).unwrap();
    client.finish().unwrap();
    for name in ["s2", "s3"] {
        prepare(&mut client, name, "select 7");
    }
    proxy.admin().swap();
    client.run("set search_path = tenant_a");
    for name in ["s1", "s2", "s3", "s4"] {
        assert_eq!(
            use_named(&mut client, name),
            ["2", "D", "C", "Z(I)"],
            "{name}"
        );
    }
    client.run("set search_path = public");
    proxy.admin().swap();
    client.run("discard all");
    assert_eq!(use_named(&mut client, "s1"), ["E(26000)", "Z(I)"]);
}

#[test]
fn safety_11_many_statements_that_cannot_be_made_now_are_made_when_they_are_used() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create schema tenant_a authorization app",
        "create table tenant_a.invoices (a int)",
        "grant all on all tables in schema tenant_a to app",
    ]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("many");
    client.run("set search_path = tenant_a");
    let names: Vec<_> = (0..sized(50, 500)).map(|n| format!("s{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let table = if n % 2 == 0 { "invoices" } else { "pg_class" };
        prepare(&mut client, name, &format!("select count(*) from {table}"));
    }
    client.run("prepare by_sql as select 7");
    client.run("set search_path = public");
    proxy.wait_parked("many");
    assert_eq!(client.value("execute by_sql"), "7");
    proxy.admin().swap();
    client.run("set search_path = tenant_a");
    for name in &names {
        assert_eq!(
            use_named(&mut client, name),
            ["2", "D", "C", "Z(I)"],
            "{name}"
        );
    }
}

#[test]
fn safety_11_a_statement_that_is_made_late_with_other_rows_ends_its_session() {
    let server = Postgres::start(&[]);
    let table = |columns: &str| {
        server.run(&[
            "drop table if exists t",
            &format!("create table t ({columns})"),
            "grant all on t to app",
        ]);
    };
    table("a int");
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("late");
    prepare(&mut client, "s", "select * from t");
    server.run(&["drop table t"]);
    proxy.admin().swap();
    assert_eq!(use_named(&mut client, "s"), ["E(42P01)", "Z(I)"]);
    table("a int");
    assert_eq!(use_named(&mut client, "s"), ["2", "C", "Z(I)"]);
    server.run(&["drop table t"]);
    proxy.admin().swap();
    table("a int, b text");
    client
        .send(&[bind("", "s", &[]), execute("", 0), sync()].concat())
        .unwrap();
    let error = client.finish().unwrap_err().server();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "08007")
    );
}

#[test]
fn safety_11_statements_keep_what_their_constants_meant() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::parking(&server);
    let mut direct = Client::connect(&server.app()).unwrap();
    let mut client = proxy.client("styles");
    for client in [&mut direct, &mut client] {
        client.run("prepare first as select '01/02/2020'::date - date '2020-01-01'");
        client.run("set datestyle = 'ISO, DMY'");
        client.run("prepare \"Second\" as select '01/02/2020'::date - date '2020-01-01'");
        prepare(client, "third", "select length('a\\tb')");
        client.run("set standard_conforming_strings = off");
        client.run("set escape_string_warning = off");
        prepare(client, "fourth", "select length('a\\tb')");
        client.run("set timezone = 'UTC'");
        client.run("prepare fifth as select extract(epoch from '2020-01-01'::timestamptz)::int8");
        client.run("set timezone = 'Asia/Tokyo'");
        client.run("set datestyle = 'ISO, YMD'");
        client.run("set standard_conforming_strings = on");
    }
    let mut same = |client: &mut Client| {
        for name in ["first", "\"Second\"", "third", "fourth", "fifth"] {
            let sql = format!("execute {name}");
            assert_eq!(client.value(&sql), direct.value(&sql), "{name}");
        }
    };
    same(&mut client);
    proxy.wait_parked("styles");
    same(&mut client);
    proxy.admin().swap();
    same(&mut client);
    // Nobody knows which of them the server saw first.
    let query = |sql: &str| message(b'Q', &[sql.as_bytes(), b"\0"].concat());
    let both = [
        query("set timezone = 'UTC'"),
        parse("beside", "select 1"),
        sync(),
    ]
    .concat();
    client.send(&both).unwrap();
    client.until_ready().unwrap();
    client.until_ready().unwrap();
    stays(&proxy, "styles", "prepare it again");
    client.run("deallocate beside");
    client.run("set timezone = 'Asia/Tokyo'");
    // What is made anew means what it means now.
    client.run("deallocate \"Second\"");
    client.run("prepare \"Second\" as select '2020/01/02'::date - date '2020-01-01'");
    proxy.admin().swap();
    assert_eq!(client.value("execute \"Second\""), "1");
    assert_eq!(client.value("show datestyle"), "ISO, YMD");
    assert_eq!(client.value("show timezone"), "Asia/Tokyo");
    assert_eq!(client.value("show standard_conforming_strings"), "on");
}

#[test]
fn safety_11_a_locked_table_keeps_no_session_from_its_server() {
    let server = Postgres::start(&["max_prepared_transactions=5"]);
    server.run(&["create table t (a int)", "grant all on t to app"]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("locked");
    prepare(&mut client, "s", "select * from t");
    client.run("begin");
    client.run("lock table t in access exclusive mode");
    client.run("prepare transaction 'mine'");
    proxy.wait_parked("locked");
    // It holds the lock itself, and only it will let it go.
    client.run("commit prepared 'mine'");
    assert_eq!(use_named(&mut client, "s"), ["2", "C", "Z(I)"]);
}

#[test]
fn safety_11_late_statements_are_sent_in_their_own_encoding() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create schema s authorization app",
        "create table s.t (a text)",
        "grant all on s.t to app",
    ]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("latin");
    client.run("set search_path = s");
    prepare(&mut client, "plain", "insert into t values ('e')");
    prepare(&mut client, "accent", "insert into t values ('\u{e9}')");
    client.run("set search_path = public");
    proxy.wait_parked("latin");
    client.run("set search_path = s; set client_encoding = 'LATIN1'");
    assert_eq!(use_named(&mut client, "plain"), ["2", "C", "Z(I)"]);
    assert_eq!(use_named(&mut client, "accent"), ["E(26000)", "Z(I)"]);
    client.run("set client_encoding = 'UTF8'");
    assert_eq!(use_named(&mut client, "accent"), ["2", "C", "Z(I)"]);
    assert_eq!(
        client.value("select string_agg(a, '' order by a) from t"),
        "e\u{e9}"
    );
}
