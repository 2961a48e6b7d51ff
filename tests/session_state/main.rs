//! Probe, restore and verification against a real PostgreSQL server of its own.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod costs;
mod edges;
mod server;
#[path = "../common/servers.rs"]
mod servers;

use bytes::BytesMut;
use server::{Client, Row, Server, tokio_now};
use slackwater::session::Portable as _;
use slackwater::session::pg::findings::FindingKind;
use slackwater::session::pg::hints;
use slackwater::session::pg::made::Made;
use slackwater::session::pg::restore::{RestoreStep, put_restore, verify};
use slackwater::session::pg::snapshot::Source;
use std::collections::BTreeSet;
use std::time::Duration;

const SETTINGS: [(&str, &str); 31] = [
    ("work_mem", "7MB"),
    ("timezone", "europe/paris"),
    ("datestyle", "SQL, DMY"),
    ("intervalstyle", "iso_8601"),
    ("search_path", "\"Foo Bar\", s1, public"),
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_session_timeout", "1h"),
    ("idle_in_transaction_session_timeout", "10min"),
    ("application_name", "my \"app\" 'x'"),
    ("client_min_messages", "warning"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "0"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_read_only", "off"),
    ("enable_seqscan", "off"),
    ("random_page_cost", "1.1"),
    ("effective_cache_size", "1GB"),
    ("from_collapse_limit", "12"),
    ("geqo", "off"),
    ("jit", "on"),
    ("maintenance_work_mem", "70MB"),
    ("temp_buffers", "10MB"),
    ("plan_cache_mode", "force_custom_plan"),
    ("vacuum_cost_delay", "1.5ms"),
    ("xmloption", "document"),
    ("default_statistics_target", "55"),
    ("lc_monetary", "C"),
    ("standard_conforming_strings", "off"),
    ("client_encoding", "LATIN1"),
    ("plpgsql.extra_warnings", "all"),
];

fn furnish(client: &mut Client) {
    client
        .query("CREATE FUNCTION pg_temp.x() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'");
    client.query("SELECT pg_temp.x()");
    client.query("DISCARD TEMP");
    for (name, value) in SETTINGS {
        if name == "idle_session_timeout" && client.version < 140_000 {
            continue;
        }
        let value = value.replace('\'', "''");
        client.query(&format!("SELECT set_config('{name}', '{value}', false)"));
    }
    client.query("SET myapp.user_id = '7'");
    client.query("SET myapp.\"name\" = 'O''Neill \\\"x\\\" \\\\'");
    client.query("BEGIN; SET LOCAL myapp.\"left\" = '1'; COMMIT");
    client.parse("ps1", "SELECT * FROM t WHERE id = $1 AND v = $2");
    client.parse("Ps \"2\"", "INSERT INTO t VALUES ($1, $2)");
    client.parse("ps3", b"SELECT '\xe9t\xe9'::text, $1::int[]");
    client.query("PREPARE sq1(int) AS SELECT $1 + 1");
    client.query("PREPARE sq2 AS SELECT * FROM t WHERE v = $1");
    client.query("SET ROLE grp");
}

const CUSTOM: [&str; 4] = ["myapp.user_id", "myapp.name", "myapp.left", "myapp.never"];

#[test]
fn safety_10_a_furnished_session_stays_the_same_through_twenty_moves() {
    let server = Server::shared();
    let mut client = server.open(&[
        ("user", "app"),
        ("database", "postgres"),
        (
            "options",
            "-c hash_mem_multiplier=3 -c statement_timeout=20s",
        ),
        ("DateStyle", "German"),
        ("application_name", "from start-up"),
    ]);
    furnish(&mut client);
    let before = client.dump(&CUSTOM);
    let parameters = client.parameters.clone();
    let shape = client.describe("ps1");
    let first = client.probe(&CUSTOM);
    assert_eq!(first.findings, []);
    let plpgsql = first.modules.iter().any(|m| m.contains("plpgsql"));
    assert_eq!(plpgsql, client.version >= 180_000, "{:?}", first.modules);
    let timeout = if client.version < 140_000 {
        0
    } else {
        3_600_000
    };
    assert_eq!(first.idle_session_timeout_ms, timeout);
    let mut snapshot = first.snapshot;
    assert!(!snapshot.is_plain());
    for round in 0..20 {
        let (new, restored, probe) = client.moved(&snapshot);
        assert_ne!(probe.server.pid, first.server.pid);
        assert_eq!(probe.server.started_us, first.server.started_us);
        client = new;
        if round % 5 == 4 {
            // plpgsql is loaded again by use, so that its settings become real ones.
            client.query("RESET ROLE");
            client.query("DO 'BEGIN PERFORM 1; END'");
            client.query("SET ROLE grp");
            assert_eq!(client.dump(&CUSTOM), before, "round {round}");
        }
        assert_eq!(restored.shapes["ps1"], shape);
        assert_eq!(restored.shapes.len(), 5);
        assert_eq!(client.parameters, parameters);
        snapshot = probe.snapshot;
    }
    assert_eq!(
        client.execute("ps3", &["{1,2}"]).unwrap()[0][1].as_deref(),
        Some("{1,2}")
    );
    assert_eq!(client.query("EXECUTE sq1(4)")[0][0].as_deref(), Some("5"));
    assert_eq!(client.execute("ps1", &["1", "x"]).unwrap().len(), 0);
}

#[test]
fn on_every_version() {
    servers::on_every_version("", &["on_every_version"]);
}

#[test]
fn a_plain_session_needs_no_restore() {
    let server = Server::shared();
    let mut client = server.open(&[
        ("user", "app"),
        ("database", "postgres"),
        ("client_encoding", "LATIN1"),
        ("application_name", "psql"),
    ]);
    let snapshot = client.probe(&["a.b"]).snapshot;
    assert!(snapshot.is_plain(), "{snapshot:?}");
    assert_eq!(snapshot.not_restorable(), None);
    let probe = client.again().probe(&["a.b"]);
    verify(&snapshot, &probe, &BTreeSet::new()).unwrap();
    assert_eq!(probe.snapshot.fingerprint(), snapshot.fingerprint());
    client.query("SET jit = on");
    let changed = client.probe(&[]).snapshot;
    assert!(
        !changed.is_plain(),
        "set to what it was, the source still shows"
    );
    assert_ne!(changed.fingerprint(), snapshot.fingerprint());
}

#[test]
fn hostile_settings_do_not_fool_the_probe() {
    let server = Server::shared();
    let mut client = server.app();
    for sql in [
        "CREATE SCHEMA IF NOT EXISTS evil",
        "CREATE FUNCTION evil.ne(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false'",
        "CREATE OPERATOR evil.= (FUNCTION = evil.ne, LEFTARG = text, RIGHTARG = text)",
        "CREATE OPERATOR evil.<> (FUNCTION = evil.ne, LEFTARG = text, RIGHTARG = text)",
        "CREATE FUNCTION evil.current_setting(text, bool) RETURNS text LANGUAGE sql AS 'SELECT ''evil'''",
        "CREATE FUNCTION evil.set_config(text, text, bool) RETURNS text LANGUAGE sql AS 'SELECT ''evil'''",
        "CREATE TYPE evil.text AS ENUM ('a')",
    ] {
        let mut adm = server.adm();
        drop(adm.try_query(sql));
        drop(adm.try_query("GRANT ALL ON SCHEMA evil TO PUBLIC"));
    }
    client.query("SET client_encoding = LATIN1");
    client.parse("latin", b"SELECT '\xe9'::pg_catalog.text");
    client.query("SET client_encoding = UTF8");
    client.parse("snow", "SELECT '☃'::pg_catalog.text");
    let parallel = if client.version >= 160_000 {
        "SET debug_parallel_query = on"
    } else {
        "SET force_parallel_mode = on"
    };
    for sql in [
        "SET search_path = evil, pg_catalog",
        "SET row_security = off",
        "SET standard_conforming_strings = off",
        "SET transform_null_equals = on",
        "SET quote_all_identifiers = on",
        "SET bytea_output = escape",
        parallel,
        "SET jit = on",
        "SET jit_above_cost = 0",
        "SET jit_inline_above_cost = 0",
        "SET default_transaction_isolation = serializable",
        "SET default_transaction_read_only = on",
        "SET default_transaction_deferrable = on",
        "SET client_min_messages = debug5",
        "SET debug_print_plan = on",
        "SET IntervalStyle = sql_standard",
        "SET plan_cache_mode = force_generic_plan",
        "SET client_encoding = LATIN1",
        "SET my.name = 'x'",
    ] {
        client.query(sql);
    }
    // A serializable writer would make a deferrable reader wait.
    let mut writer = server.app();
    writer.query("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t VALUES (1, 'x')");
    let before = client.dump(&["my.name"]);
    let started = tokio_now();
    let probe = client.probe(&["my.name"]);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(probe.findings, []);
    assert_eq!(
        client.dump(&["my.name"]),
        before,
        "the probe leaves no trace"
    );
    let state = probe.snapshot.state();
    let text = |name: &str| {
        &*state
            .prepared
            .iter()
            .find(|p| &*p.name == name)
            .unwrap()
            .text
    };
    assert_eq!(text("latin"), "SELECT 'é'::pg_catalog.text");
    assert_eq!(text("snow"), "SELECT '☃'::pg_catalog.text");
    let (mut new, _, _) = client.moved(&probe.snapshot);
    assert_eq!(new.dump(&["my.name"]), before);
    writer.query("ROLLBACK");
}

#[test]
fn safety_10_a_tiny_statement_timeout_ends_neither_probe_nor_restore() {
    let server = Server::shared();
    for (startup, set) in [
        ("", "SET statement_timeout = '2ms'"),
        ("-c statement_timeout=9s", ""),
    ] {
        let mut client = server.open(&[
            ("user", "app"),
            ("database", "postgres"),
            ("options", startup),
        ]);
        client.probe(&[]);
        client.query("SET work_mem = '5MB'");
        if client.version >= 170_000 {
            client.query("SET transaction_timeout = '9s'");
        }
        if !set.is_empty() {
            client.query(set);
        }
        let show = "SELECT setting, source FROM pg_settings WHERE name = 'statement_timeout'";
        let before = client.query("SHOW statement_timeout");
        // The first messages run before the time-out is off: then the answer is "unknown", asked again.
        let deadline = tokio_now() + Duration::from_secs(20);
        let snapshot = loop {
            match client.try_probe(&[]) {
                Ok(probe) => break probe.snapshot,
                Err(e) => {
                    assert_eq!((&*e.sqlstate, e.usable), ("57014", true));
                    assert!(tokio_now() < deadline, "{e}");
                }
            }
        };
        let mut new = client.again();
        let (_, probe) = loop {
            // The verification has the same short race.
            let mut out = BytesMut::new();
            let mut reader = put_restore(
                &mut out,
                &snapshot,
                &BTreeSet::new(),
                &Made::default(),
                new.version,
            );
            new.send(&out);
            let restored = loop {
                let (tag, body) = new.frame().unwrap();
                if let RestoreStep::Done(restored) = reader.on_frame(tag, &body).unwrap() {
                    break restored;
                }
            };
            let (out, mut reader) = new.put_probe(&[], Some(&snapshot));
            new.send(&out);
            match new.read_probe(&mut reader).0 {
                Ok(probe) => break (restored, probe),
                Err(e) => assert!(tokio_now() < deadline && &*e.sqlstate == "57014", "{e}"),
            }
            new = client.again();
        };
        verify(&snapshot, &probe, &BTreeSet::new()).unwrap();
        assert_eq!(new.query("SHOW statement_timeout"), before);
        if new.version >= 170_000 {
            let shown = new.query("SHOW transaction_timeout");
            assert_eq!(shown[0][0].as_deref(), Some("9s"));
        }
        if set.is_empty() {
            assert_eq!(new.query(show)[0][1].as_deref(), Some("client"));
        }
    }
}

#[test]
fn every_kind_of_finding_is_seen_whoever_made_it() {
    let server = Server::shared();
    let mut adm = server.adm();
    let cases = [
        (
            FindingKind::AdvisoryLock,
            "PERFORM pg_advisory_lock(-42)",
            "pg_advisory_lock(-42)",
        ),
        (
            FindingKind::AdvisoryLock,
            "PERFORM pg_advisory_lock_shared(3, -4)",
            "pg_advisory_lock_shared(3, -4)",
        ),
        (FindingKind::TempTable, "CREATE TEMP TABLE tt (a int)", "tt"),
        (FindingKind::TempTable, "CREATE TEMP SEQUENCE ts", "ts"),
        (
            FindingKind::TempTable,
            "CREATE FUNCTION pg_temp.tf() RETURNS int LANGUAGE sql AS ''SELECT 1''",
            "tf",
        ),
        (
            FindingKind::TempTable,
            "CREATE TYPE pg_temp.ty AS ENUM (''a'')",
            "ty",
        ),
        (
            FindingKind::HoldCursor,
            "EXECUTE ''DECLARE hc CURSOR WITH HOLD FOR SELECT 4711''",
            "hc",
        ),
        (FindingKind::Listen, "EXECUTE ''LISTEN \"Ch 1\"''", "Ch 1"),
        (
            FindingKind::ReplicationSlot,
            "PERFORM pg_create_logical_replication_slot(''sl'', ''pgoutput'', true)",
            "sl",
        ),
        (
            FindingKind::Dblink,
            "PERFORM dblink_connect(''my link'', format(''host=%s user=adm dbname=postgres'', current_setting(''unix_socket_directories'')))",
            "my link",
        ),
    ];
    for (kind, body, named) in cases {
        for in_function in [false, true] {
            let mut client = adm.again();
            assert_eq!(client.probe(&[]).findings, []);
            // The name is the server's own, and the connection before may still be closing.
            let slots = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'sl'";
            while !adm.query(slots).is_empty() {
                std::thread::yield_now();
            }
            if in_function {
                client.query(&format!("DO 'BEGIN {body}; END'"));
            } else {
                let direct = body.replace("''", "'").replace("PERFORM", "SELECT");
                let direct = direct
                    .strip_prefix("EXECUTE '")
                    .map_or(direct.clone(), |d| d.trim_end_matches('\'').to_owned());
                client.query(&direct);
            }
            let probe = client.probe(&[]);
            let [finding] = &probe.findings[..] else {
                panic!("{body}: {:?}", probe.findings)
            };
            assert_eq!(finding.kind, kind, "{body}");
            assert!(finding.detail.contains(named), "{body}: {finding:?}");
            if kind == FindingKind::HoldCursor {
                let statement = finding.statement.as_deref().unwrap();
                assert!(statement.contains("FOR SELECT ?"), "{statement}");
                assert!(finding.age_ms.is_some());
            }
            // Such a connection never counts as a faithful copy of a clean session.
            let clean = adm.probe(&[]).snapshot;
            assert!(verify(&clean, &probe, &BTreeSet::new()).is_err());
        }
    }
}

#[test]
fn a_temporary_schema_without_objects_is_no_finding() {
    let server = Server::shared();
    let mut client = server.app();
    client.query("CREATE TEMP TABLE gone (a int); DROP TABLE gone");
    client.query("SELECT pg_advisory_lock(1); SELECT pg_advisory_unlock(1)");
    client.query("LISTEN x; UNLISTEN *");
    assert_eq!(client.probe(&[]).findings, []);
    client.query("SELECT pg_advisory_lock(n) FROM generate_series(1000, 1024) n");
    let findings = client.probe(&[]).findings;
    assert_eq!(findings.len(), 21);
    assert_eq!(findings[20].detail, "and 5 more");
}

#[test]
fn safety_10_role_settings_changed_in_between_keep_the_session_as_it_was() {
    let server = Server::shared();
    let mut adm = server.adm();
    adm.query("CREATE ROLE tenant LOGIN");
    adm.query("ALTER ROLE tenant SET work_mem = '5MB'");
    adm.query("ALTER ROLE tenant SET statement_timeout = '7s'");
    adm.query("ALTER ROLE tenant SET jit = off");
    adm.query("ALTER ROLE tenant SET acme.tenant = 'one'");
    adm.query("ALTER ROLE tenant SET timezone = 'europe/berlin'");
    let timeouts = adm.version >= 140_000;
    if timeouts {
        adm.query("ALTER ROLE tenant SET idle_session_timeout = '90s'");
    }
    let mut client = server.open(&[("user", "tenant"), ("database", "postgres")]);
    let ask = "SELECT name, setting, source FROM pg_settings WHERE name IN \
               ('work_mem', 'statement_timeout', 'jit', 'TimeZone', 'enable_sort') ORDER BY 1";
    let before = client.query(ask);
    let probe = client.probe(&[]);
    let timeout = if timeouts { 90_000 } else { 0 };
    assert_eq!(probe.idle_session_timeout_ms, timeout);
    let role_settings = probe.role_settings;
    // Nothing changed: the same rows, and "user" stays "user", even after a needless restore.
    let (mut new, _, probe) = client.moved(&probe.snapshot);
    assert_eq!(new.query(ask), before);
    assert_eq!(probe.role_settings, role_settings);
    let custom = "SELECT current_setting('acme.tenant', true)";
    assert_eq!(new.query(custom)[0][0].as_deref(), Some("one"));
    // Changed, added, taken away.
    adm.query("ALTER ROLE tenant SET work_mem = '9MB'");
    adm.query("ALTER ROLE tenant SET statement_timeout = '8s'");
    adm.query("ALTER ROLE tenant SET enable_sort = off");
    adm.query("ALTER ROLE tenant SET acme.tenant = 'two'");
    adm.query("ALTER ROLE tenant RESET jit");
    let probe = client.probe(&[]);
    assert_ne!(probe.role_settings, role_settings);
    let enable_sort = probe
        .snapshot
        .state()
        .settings
        .iter()
        .find(|s| &*s.name == "enable_sort");
    assert_eq!(enable_sort.unwrap().source, Source::Other);
    let plain = client.again().probe(&[]);
    assert!(verify(&probe.snapshot, &plain, &BTreeSet::new()).is_err());
    let (mut new, _, _) = client.moved(&probe.snapshot);
    let values = |rows: &[Row]| rows.iter().map(|r| r[1].clone()).collect::<Vec<_>>();
    assert_eq!(values(&new.query(ask)), values(&before));
    assert_eq!(new.query(custom)[0][0].as_deref(), Some("one"));
    let mut fresh = client.again();
    assert_eq!(fresh.query(custom)[0][0].as_deref(), Some("two"));
    assert_eq!(fresh.query("SHOW work_mem")[0][0].as_deref(), Some("9MB"));
}

#[test]
fn session_authorization_and_role_come_back_in_order() {
    let server = Server::shared();
    let mut client = server.adm();
    client.query("SET log_min_duration_statement = 1234");
    client.query("SET SESSION AUTHORIZATION app");
    client.query("SET ROLE grp");
    client.query("SET work_mem = '9MB'");
    let before = client.dump(&[]);
    let snapshot = client.probe(&[]).snapshot;
    let (mut new, _, _) = client.moved(&snapshot);
    assert_eq!(new.dump(&[]), before);
    new.query("RESET ROLE");
    new.query("RESET SESSION AUTHORIZATION");
    assert_eq!(
        new.query("SELECT current_user")[0][0].as_deref(),
        Some("adm")
    );
}

#[test]
fn safety_08_a_failing_probe_cleans_up_and_leaves_the_unnamed_statement() {
    let server = Server::shared();
    let mut client = server.app();
    client.parse("_px4", "SELECT 'mine'");
    client.parse("", "SELECT 'unnamed'");
    let error = client.try_probe(&[]).unwrap_err();
    assert_eq!((&*error.sqlstate, error.usable), ("42P05", true));
    assert_eq!(
        client.execute("", &[]).unwrap()[0][0].as_deref(),
        Some("unnamed")
    );
    let mine = client.execute("_px4", &[]).unwrap();
    assert_eq!(
        mine[0][0].as_deref(),
        Some("mine"),
        "only what the probe made is closed"
    );
    client.query("DEALLOCATE ALL");
    client.parse("", "SELECT 'unnamed'");
    client.probe(&[]);
    assert_eq!(
        client.execute("", &[]).unwrap()[0][0].as_deref(),
        Some("unnamed")
    );
    assert_eq!(
        client.query("SELECT * FROM pg_prepared_statements"),
        Vec::<Row>::new()
    );
    // A function of pg_catalog that this user may not run: "unknown", not "clean".
    let mut adm = server.adm();
    adm.query("CREATE DATABASE closed");
    let mut closed = server.open(&[("user", "adm"), ("database", "closed")]);
    closed.query("REVOKE EXECUTE ON FUNCTION pg_lock_status() FROM PUBLIC");
    let mut client = server.open(&[("user", "app"), ("database", "closed")]);
    let error = client.try_probe(&[]).unwrap_err();
    assert_eq!((&*error.sqlstate, error.usable), ("42501", true));
    assert_eq!(client.query("SELECT 1")[0][0].as_deref(), Some("1"));
    closed.query("REVOKE SELECT ON pg_settings, pg_locks, pg_cursors FROM PUBLIC");
    closed.query("GRANT EXECUTE ON FUNCTION pg_lock_status() TO PUBLIC");
    assert_eq!(client.probe(&[]).findings, []);
}

#[test]
fn safety_08_more_state_than_fits_is_unknown_and_harmless() {
    let server = Server::shared();
    let mut client = server.app();
    client.parse("huge", format!("SELECT '{}'", "x".repeat(17 << 20)));
    let error = client.try_probe(&[]).unwrap_err();
    assert!(error.usable && error.message.contains("16 MiB"), "{error}");
    client.query("DEALLOCATE huge");
    assert_eq!(client.probe(&[]).findings, []);
}
