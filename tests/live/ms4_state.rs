//! Must show 4: a session with much state goes through many swaps and is the same afterwards.

use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Rows, Target, bind, execute, parse, sync};
use crate::support::{servers, sized};

/// 30 settings, custom ones too.
const SETTINGS: &[(&str, &str)] = &[
    ("work_mem", "5MB"),
    ("maintenance_work_mem", "66MB"),
    ("statement_timeout", "71s"),
    ("lock_timeout", "41s"),
    ("idle_in_transaction_session_timeout", "91s"),
    ("search_path", "app_schema, \"Odd, Name\", public"),
    ("TimeZone", "Asia/Kathmandu"),
    ("DateStyle", "German, DMY"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "-3"),
    ("bytea_output", "escape"),
    ("xmloption", "document"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("random_page_cost", "1.25"),
    ("cpu_tuple_cost", "0.0123"),
    ("effective_cache_size", "123MB"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_deferrable", "on"),
    ("client_min_messages", "warning"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "off"),
    ("row_security", "off"),
    ("synchronous_commit", "off"),
    ("gin_fuzzy_search_limit", "17"),
    ("plan_cache_mode", "force_generic_plan"),
    ("application_name", "über''s \\ app"),
    ("app.user", "7"),
    ("app.tenant", "Zoë''s \"shop\""),
    ("my_ext.deep.name", ""),
];

const DUMPS: &[&str] = &[
    "select name, setting, source from pg_settings where source in ('session', 'client') order by name",
    "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by name",
    "select current_user, session_user, current_setting('role'), current_schemas(true)::text",
    "select current_setting('app.user'), current_setting('app.tenant'), current_setting('my_ext.deep.name'), \
     current_setting('fn.hidden', true)",
    "select now() - now() + interval '1 day 2 hours', 1.0::float8 / 3, '\\001'::bytea, timestamptz 'epoch'",
];

fn dump(client: &mut Client) -> Vec<Rows> {
    DUMPS
        .iter()
        .map(|sql| client.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}")))
        .collect()
}

fn prepare(admin: &Target) {
    let mut admin = Client::connect(admin).unwrap();
    for sql in [
        "create schema app_schema authorization app",
        "create schema \"Odd, Name\" authorization app",
        "create table app_schema.things (id int, name text)",
        "insert into app_schema.things values (1, 'one'), (2, 'zwölf')",
        "grant all on app_schema.things to app, helper",
        "grant usage on schema app_schema to helper",
        "create function hide() returns text language sql as $$ select set_config('fn.hidden', 'h1', false) $$",
    ] {
        admin.run(sql);
    }
}

fn fill(client: &mut Client) {
    for (name, value) in SETTINGS.iter().filter(|(n, _)| *n != "search_path") {
        let name = name
            .split('.')
            .map(|p| format!("\"{p}\""))
            .collect::<Vec<_>>()
            .join(".");
        client.run(&format!("set {name} = e'{}'", value.replace('\\', "\\\\")));
    }
    client.run("set search_path = app_schema, \"Odd, Name\", public");
    client.run("select hide()");
    client.run("prepare sql_one (int) as select name from things where id = $1");
    client.run("prepare sql_two as select count(*) from things");
    for (name, sql) in [
        ("wire_one", "select id + $1 from things order by id"),
        ("wire_two", "select $1::text || ' ☃'"),
        ("Wire \"Three\"", "insert into things values ($1, $2)"),
    ] {
        client.send(&[parse(name, sql), sync()].concat()).unwrap();
        client.finish().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    client.run("set role helper");
}

fn use_statements(client: &mut Client, round: u32) {
    assert_eq!(client.value("execute sql_one (2)"), "zwölf");
    assert_eq!(client.value("execute sql_two"), (2 + round).to_string());
    let id = (100 + round).to_string();
    for (name, values, rows) in [
        ("wire_one", vec!["1"], 2 + round as usize),
        ("wire_two", vec!["snow"], 1),
        ("Wire \"Three\"", vec![id.as_str(), "more"], 0),
    ] {
        client
            .send(&[bind("", name, &values), execute("", 0), sync()].concat())
            .unwrap();
        let answer = client
            .finish()
            .unwrap_or_else(|e| panic!("{name} in round {round}: {e}"));
        assert_eq!(answer.len(), rows, "{name}");
    }
}

#[test]
fn ms4_state_is_right_about_postgresql() {
    let server = Postgres::start(&[]);
    prepare(&server.admin());
    let mut client = Client::connect(&server.app()).unwrap();
    fill(&mut client);
    let before = dump(&mut client);
    use_statements(&mut client, 0);
    assert_eq!(dump(&mut client), before);
}

fn hidden() -> Options {
    Options {
        sessions: "custom_settings = [\"fn.hidden\"]".to_owned(),
        ..Options::default()
    }
}

#[test]
fn ms4_on_every_version() {
    // (Standbys need more programs: `standby` has them.)
    servers::on_every_version("ms4_", &["ms4_on_every_version", "standby"]);
}

#[test]
fn ms4_much_state_goes_through_swaps() {
    let server = Postgres::start(&[]);
    prepare(&server.admin());
    let proxy = Proxy::with(&server, &hidden());
    much_state_goes_through(&proxy, sized(5, 20));
}

#[test]
fn ms4_much_state_goes_through_restarts_at_another_capacity() {
    let proxy = Proxy::local(&hidden());
    prepare(&Target::new(proxy.port(), ADMIN, "app"));
    let mut watcher = proxy.client("watcher");
    let before = watcher.value("show shared_buffers");
    proxy.admin().swap();
    assert_ne!(watcher.value("show shared_buffers"), before);
    much_state_goes_through(&proxy, sized(3, 20));
}

#[test]
fn ms4_much_state_goes_through_standby_switches() {
    let proxy = Proxy::standby(&hidden());
    prepare(&Target::new(proxy.port(), ADMIN, "app"));
    much_state_goes_through(&proxy, sized(2, 20));
}

fn much_state_goes_through(proxy: &Proxy, rounds: u32) {
    let target = proxy
        .app()
        .with("options", "-c geqo=off -c my_start.up=given")
        .with("DateStyle", "ISO, YMD");
    let mut client = Client::connect(&target).unwrap_or_else(|e| panic!("{e}"));
    fill(&mut client);
    let before = dump(&mut client);
    assert!(before[0].len() >= 28, "settings are set: {:?}", before[0]);
    assert_eq!(
        before[1].len(),
        5,
        "statements are prepared: {:?}",
        before[1]
    );
    let mut told = client.parameters.clone();
    told.sort();
    for round in 0..rounds {
        let process = client.server_process();
        proxy.admin().swap();
        assert_ne!(client.server_process(), process, "the session was moved");
        let after = dump(&mut client);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(after, before, "round {round}");
        }
        use_statements(&mut client, round);
        let mut now = client.parameters.clone();
        now.sort();
        assert_eq!(now, told, "what ParameterStatus told");
        assert_eq!(client.value("show my_start.up"), "given");
    }
    client.run("reset role");
    client.run("reset \"work_mem\"");
    proxy.admin().swap();
    assert_eq!(client.value("select current_user"), "app");
    assert_eq!(client.value("show work_mem"), "4MB");
}

#[test]
fn ms4_client_encodings_by_set_and_by_start_up() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut by_start = Client::connect(&proxy.app().with("client_encoding", "LATIN1")).unwrap();
    let mut by_set = proxy.client("by_set");
    by_set.run("set client_encoding = 'WIN1252'");
    let check = |client: &mut Client, name: &str| {
        assert_eq!(client.value("show client_encoding"), name);
        assert_eq!(client.parameter("client_encoding"), Some(name));
        client.start("select 'é'").unwrap();
        // Two bytes in, since the text above is UTF-8: each counts as a character of the client's encoding.
        assert_eq!(client.finish().unwrap().len(), 1);
        assert_eq!(
            client.value("select octet_length(convert_to('é', 'UTF8'))"),
            "4"
        );
    };
    for _ in 0..3 {
        check(&mut by_start, "LATIN1");
        check(&mut by_set, "WIN1252");
        proxy.admin().swap();
    }
    check(&mut by_start, "LATIN1");
    check(&mut by_set, "WIN1252");
}

#[test]
fn ms4_role_and_database_settings_changed_in_between() {
    let server = Postgres::start(&[]);
    server.run(&[
        "alter role app set work_mem = '6MB'",
        "alter database app set random_page_cost = 1.5",
        "alter role app in database app set lock_timeout = '33s'",
    ]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("keeps");
    let values = |client: &mut Client| {
        client
            .query("select current_setting('work_mem'), current_setting('random_page_cost'), current_setting('lock_timeout')")
            .unwrap()
    };
    let before = values(&mut client);
    proxy.admin().swap();
    assert_eq!(values(&mut client), before);
    server.run(&[
        "alter role app set work_mem = '8MB'",
        "alter database app reset random_page_cost",
        "alter role app in database app set lock_timeout = '44s'",
    ]);
    let process = client.server_process();
    proxy.admin().swap();
    assert_ne!(client.server_process(), process);
    assert_eq!(values(&mut client), before, "the session keeps what it had");
    let mut fresh = proxy.client("fresh");
    let expected: Vec<_> = ["8MB", "4", "44s"]
        .iter()
        .map(|v| Some((*v).to_owned()))
        .collect();
    assert_eq!(
        values(&mut fresh),
        vec![expected],
        "a new session gets the new ones"
    );
}
