//! What happens seldom: notifications in a reply, state that can't be restored, every setting there is.

use super::*;

#[test]
fn notifications_inside_the_reply_are_for_the_client() {
    let server = Server::shared();
    let mut client = server.app();
    client.query("LISTEN news");
    server.app().query("NOTIFY news");
    // Whenever it arrives, it must reach the client: in the probe's reply, or just before it.
    let deadline = tokio_now() + Duration::from_secs(20);
    loop {
        let (out, mut reader) = client.put_probe(&[], None);
        client.send(&out);
        let (probe, for_client) = client.read_probe(&mut reader);
        assert_eq!(probe.unwrap().findings[0].kind, FindingKind::Listen);
        if for_client == b"A" {
            break;
        }
        assert!(tokio_now() < deadline, "no notification");
    }
}

#[test]
fn what_cannot_be_restored_is_named() {
    let server = Server::shared();
    let mut adm = server.adm();
    let mut client = server.app();
    adm.query("CREATE TABLE fleeting (a int)");
    adm.query("GRANT ALL ON fleeting TO app");
    client.parse("broken", "SELECT * FROM fleeting");
    client.parse("whole", "SELECT 1");
    let snapshot = client.probe(&[]).snapshot;
    adm.query("DROP TABLE fleeting");
    let none = BTreeSet::new();
    let error = client.again().restore(&snapshot, &none).unwrap_err();
    assert_eq!(error.statement.as_deref(), Some("broken"));
    assert_eq!(error.sqlstate, "42P01");
    let left_out = BTreeSet::from([error.statement.unwrap()]);
    let (_, probe) = client.again().restore(&snapshot, &left_out).unwrap();
    verify(&snapshot, &probe, &left_out).unwrap();
    assert!(verify(&snapshot, &probe, &none).is_err());

    let mut client = server.app();
    client.query("SELECT pwn()");
    let snapshot = client.probe(&[]).snapshot;
    let error = client.again().restore(&snapshot, &none).unwrap_err();
    assert_eq!(error.sqlstate, "42501");
    assert!(
        error.message.contains("log_min_duration_statement"),
        "{error}"
    );

    let mut client = server.app();
    adm.query("CREATE ROLE brief; GRANT brief TO app");
    client.query("SET ROLE brief");
    let snapshot = client.probe(&[]).snapshot;
    adm.query("DROP ROLE brief");
    let error = client.again().restore(&snapshot, &none).unwrap_err();
    assert_eq!(error.what, "role \"brief\"");
    assert!(!client.try_probe(&[]).unwrap_err().sqlstate.is_empty());

    let mut client = server.app();
    client.query("SELECT 1; PREPARE pm AS SELECT 2; INSERT INTO t VALUES (77, 'once')");
    let snapshot = client.probe(&[]).snapshot;
    assert!(snapshot.not_restorable().unwrap().contains("\"pm\""));
    let error = client.again().restore(&snapshot, &none).unwrap_err();
    assert_eq!(
        (error.sqlstate.as_str(), error.statement.as_deref()),
        ("42601", Some("pm"))
    );
    let count = client.query("SELECT count(*) FROM t WHERE id = 77");
    assert_eq!(count[0][0].as_deref(), Some("1"), "the INSERT ran once");
}

#[test]
fn types_that_changed_show_in_the_shape() {
    let server = Server::shared();
    let mut adm = server.adm();
    adm.query("CREATE TABLE shapely (a int); GRANT ALL ON shapely TO PUBLIC");
    let mut client = server.app();
    client.parse("s", "SELECT * FROM shapely");
    client.parse("n", "INSERT INTO shapely VALUES (1)");
    let (told, none) = (client.describe("s"), client.describe("n"));
    let snapshot = client.probe(&[]).snapshot;
    let (_, restored, _) = client.moved(&snapshot);
    assert_eq!((restored.shapes["s"], restored.shapes["n"]), (told, none));
    adm.query("ALTER TABLE shapely ALTER a TYPE bigint");
    let (_, restored, _) = client.moved(&snapshot);
    assert_ne!(restored.shapes["s"], told);
    assert_eq!(restored.shapes["n"], none);
}

/// All but jit_above_cost, whose source is lost when it is set to what RESET would give.
#[test]
fn every_setting_that_a_user_can_change_comes_back() {
    let server = Server::shared();
    for user in ["app", "adm"] {
        let mut client = server.open(&[("user", user), ("database", "postgres")]);
        let names = client.query(
            "SELECT name, setting FROM pg_settings WHERE context IN ('user', 'superuser') \
             AND name NOT LIKE 'transaction\\_%' AND name NOT IN ('seed', 'jit_above_cost') ORDER BY 1",
        );
        let mut set = 0;
        for row in &names {
            let (name, value) = (row[0].as_deref().unwrap(), row[1].as_deref().unwrap_or(""));
            let value = value.replace('\'', "''");
            let done = client.try_query(format!("SELECT set_config('{name}', '{value}', false)"));
            set += usize::from(done.is_ok());
        }
        assert!(set > 120, "{set}");
        let before = client.dump(&[]);
        let snapshot = client.probe(&[]).snapshot;
        let (mut new, _, _) = client.moved(&snapshot);
        let after = new.dump(&[]);
        for (a, b) in before.iter().zip(&after) {
            let missing: Vec<_> = a.iter().filter(|row| !b.contains(row)).collect();
            assert_eq!(missing, Vec::<&Row>::new());
            assert_eq!(a, b);
        }
    }
}

#[test]
fn safety_12_names_of_custom_settings_come_from_catalogs_and_statements() {
    let server = Server::shared();
    let mut client = server.app();
    client.query(
        "CREATE FUNCTION \"Foo Bar\".cat() RETURNS text LANGUAGE sql AS \
                  'SELECT set_config(''Catalog.name'', ''1'', false)'",
    );
    let names = client.query(slackwater::session::pg::CATALOG_NAMES_SQL);
    let names: Vec<_> = names.iter().filter_map(|row| row[0].as_deref()).collect();
    assert!(names.contains(&"catalog.name"), "{names:?}");
    let sql = "SET Myapp.\"user\" TO '1'";
    client.query(sql);
    let hints = hints::scan(sql.as_bytes());
    let ask: Vec<_> = hints.custom_names.iter().map(String::as_str).collect();
    let snapshot = client.probe(&ask).snapshot;
    assert_eq!(&*snapshot.state().custom[0].value, "1");
}
