//! Clusters of MySQL and MariaDB, beside PostgreSQL's.

use super::*;

const SMALL: &str = r#"
[listen.mysql]
address = ["127.0.0.1:3307", "unix:mysql.sock"]
tls = "require"

[clusters.till]
engine = "mariadb"
default = true

[clusters.till.provider]
kind = "local"
data_dir = "/d"
"#;

fn small(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old}");
    SMALL.replace(old, new)
}

/// A table at the end: its header is line 14, its first key line 15.
fn with(table: &str) -> String {
    format!("{SMALL}\n{table}\n")
}

#[test]
fn defaults_are_the_documented_ones() {
    for (name, engine) in [("mariadb", Engine::Mariadb), ("mysql", Engine::Mysql)] {
        let config = parse(&small("mariadb", name)).unwrap();
        assert_eq!(config.warnings, Vec::<String>::new());
        assert_eq!(config.listen.postgres, None);
        let listen = config.listen.mysql.as_ref().unwrap();
        let shown: Vec<_> = listen.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:3307", "unix:mysql.sock"]);
        assert_eq!(listen.tls, ListenTls::Require);
        let till = config.cluster("till").unwrap();
        assert_eq!(till.engine, engine);
        assert_eq!(till.engine.to_string(), name);
        assert_eq!(till.capacity.ladder, [1, 2, 4, 8, 16].map(Capacity));
        assert_eq!(till.sessions.diagnostics_wait, Duration::from_millis(100));
        assert_eq!(
            till.auth.service,
            Some(ServiceAccount {
                user: "slackwater".to_owned(),
                database: String::new(),
                password: None,
            })
        );
        let ProviderConfig::Local(local) = &till.provider else {
            panic!("local")
        };
        assert_eq!(local.switch, Switch::Restart);
    }
    let whole = parse(&with("[clusters.till.capacity]\nmax = 256")).unwrap();
    let ladder = [1, 2, 4, 8, 16, 32, 64, 128, 256].map(Capacity);
    assert_eq!(whole.clusters[0].capacity.ladder, ladder);
    let none = parse(&with("[clusters.till.sessions]\ndiagnostics_wait = \"0\"")).unwrap();
    assert_eq!(none.clusters[0].sessions.diagnostics_wait, Duration::ZERO);
}

#[test]
fn engines_stand_side_by_side_each_with_its_default() {
    let shop = super::SMALL;
    let config = parse(&format!("{SMALL}{shop}")).unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    assert!(config.listen.postgres.is_some() && config.listen.mysql.is_some());
    let engines: Vec<_> = config.clusters.iter().map(|c| c.engine).collect();
    assert_eq!(engines, [Engine::Postgres, Engine::Mariadb]);
    // MySQL and MariaDB come in by one listener.
    let second = "[clusters.kiosk]\nengine = \"mysql\"\ndefault = true\n\
                  [clusters.kiosk.provider]\nkind = \"local\"\ndata_dir = \"/e\"";
    refused(
        &with(second),
        6,
        "clusters.till.default",
        "clusters.kiosk is the default already; one cluster per listener can be",
    );
    let loops = "[clusters.kiosk]\nengine = \"mysql\"\nhostnames = [\"k\"]\n[clusters.kiosk.auth]\nservice_user = \"s\"\n\
                 [clusters.kiosk.provider]\nkind = \"static\"\nendpoints = [{ capacity = 1, address = \"127.0.0.1:3307\" }]";
    refused(
        &with(loops),
        14,
        "clusters.kiosk.provider.endpoints",
        "the proxy's own listener",
    );
}

#[test]
fn a_listener_goes_with_its_engine() {
    let shop = super::SMALL;
    let both = format!("{shop}[listen.mysql]\naddress = [\"127.0.0.1:3306\"]\n");
    let config = parse(&both).unwrap();
    assert_eq!(config.listen.mysql, None);
    assert_eq!(
        config.warnings,
        ["listen.mysql: is not bound, since no cluster has its engine"]
    );
    refused(
        &small("listen.mysql", "listen.postgres"),
        0,
        "listen.mysql",
        "is missing; without it no client can reach clusters.till: add address = [\"0.0.0.0:3306\"]",
    );
    let error = parse(&small(
        "address = [\"127.0.0.1:3307\", \"unix:mysql.sock\"]\n",
        "",
    ))
    .unwrap_err();
    assert!(
        error.to_string().contains(
            "proxy.toml:2: listen.mysql.address: is missing; write address = [\"0.0.0.0:3306\"]"
        ),
        "{error}"
    );
}

#[test]
fn keys_of_another_engine_are_refused_by_name() {
    for (table, line, key) in [
        ("[clusters.till.auth]\nmethod = \"md5\"", 15, "auth.method"),
        (
            "[clusters.till.auth]\nclient_certificate = \"verify-ca\"",
            15,
            "auth.client_certificate",
        ),
        (
            "[clusters.till.auth]\nservice_database = \"x\"",
            15,
            "auth.service_database",
        ),
        (
            "[clusters.till.auth]\nauth_query = \"SELECT $1\"",
            15,
            "auth.auth_query",
        ),
        (
            "[clusters.till.sessions]\ncustom_settings = [\"a.b\"]",
            15,
            "sessions.custom_settings",
        ),
        (
            "[clusters.till.sessions]\non_blocker = { listen = \"block\" }",
            15,
            "sessions.on_blocker.listen",
        ),
        (
            "[clusters.till.sessions.on_blocker]\nhold_cursor = \"block\"",
            15,
            "sessions.on_blocker.hold_cursor",
        ),
    ] {
        let words =
            "is only there for PostgreSQL, and this cluster has engine = \"mariadb\": leave it out";
        refused(&with(table), line, &format!("clusters.till.{key}"), words);
    }
    let postgres = |table: &str| format!("{}\n{table}\n", super::SMALL);
    refused(
        &postgres("[clusters.shop.sessions]\ndiagnostics_wait = \"1s\""),
        17,
        "clusters.shop.sessions.diagnostics_wait",
        "is only there for MySQL and MariaDB",
    );
    refused(
        &postgres("[clusters.shop.sessions]\non_blocker = { user_lock = \"block\" }"),
        17,
        "clusters.shop.sessions.on_blocker.user_lock",
        "is only there for MySQL",
    );
    let kinds = "[clusters.till.sessions]\n\
                 on_blocker = { user_lock = \"block\", temp_table = \"block\", replication = \"terminate\" }";
    assert!(
        parse(&with(kinds)).unwrap().clusters[0]
            .sessions
            .ends_replication
    );
}

#[test]
fn one_mistake_is_told_with_line_and_key() {
    for (text, line, key, words) in [
        (
            small("mariadb", "maria"),
            7,
            "clusters.till.engine",
            "\"maria\" is not possible; \"postgres\", \"mysql\", \"mariadb\" are",
        ),
        (
            with("[clusters.till.sessions]\ndiagnostics_wait = \"61s\""),
            15,
            "clusters.till.sessions.diagnostics_wait",
            "out of range",
        ),
        (
            with("[clusters.till.capacity]\nmin = 3"),
            15,
            "clusters.till.capacity.min",
            "3 is not on the ladder [1, 2, 4, 8, 16, 32, 64, 128, 256]",
        ),
        (
            small("\"/d\"", "\"/d\"\nbinaries = \"/proc\""),
            13,
            "clusters.till.provider.binaries",
            "has no program named mariadbd",
        ),
        (
            small(
                "\"/d\"",
                "\"/d\"\nswitch = \"standby\"\nwal_keep_size = \"1GiB\"",
            ),
            14,
            "clusters.till.provider.wal_keep_size",
            "is PostgreSQL's; for MySQL and MariaDB set binlog_expire_logs_seconds",
        ),
    ] {
        refused(&text, line, key, words);
    }
}

#[test]
fn a_users_file_has_the_engines_verifiers() {
    let dir = tempfile::tempdir().unwrap();
    let users = |text: &str| {
        let file = dir.path().join("users.toml");
        std::fs::write(&file, text).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        parse(&with(&format!(
            "[clusters.till.auth]\nusers_file = \"{}\"",
            file.display()
        )))
    };
    let hash = "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19";
    let config = users(&format!(
        "app = \"{hash}\"\n\"{}\" = \"secret\"\n",
        "x".repeat(80)
    ))
    .unwrap();
    let AuthSource::Users { users: list, .. } = &config.clusters[0].auth.source else {
        panic!("users")
    };
    assert_eq!(list[0].1.reveal(), hash);
    for (text, words) in [
        (
            format!("app = \"{}\"", &hash[..40]),
            "is not a mysql_native_password hash",
        ),
        (
            format!("app = \"{}\"", hash.replace('2', "x")),
            "is not a mysql_native_password hash",
        ),
        (
            "app = \"SCRAM-SHA-256$4096:x\"".to_owned(),
            "is a verifier of PostgreSQL",
        ),
        (
            format!("{} = \"x\"", "x".repeat(81)),
            "a user name has 1 to 80 bytes",
        ),
    ] {
        let error = users(&text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
