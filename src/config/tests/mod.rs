//! proxy.toml as people write it: what it means, and what they are told when it is wrong.

mod mistakes;
mod mysql;

use super::*;
use crate::provider::{StandbyKeys, Switch};

/// The smallest file that works.
const SMALL: &str = r#"
[listen.postgres]
address = ["127.0.0.1:5433"]

[clusters.shop]
engine = "postgres"
default = true

[clusters.shop.auth]
service_user = "slackwater"

[clusters.shop.provider]
kind = "static"
endpoints = [{ capacity = 2, address = "10.0.0.5:5432" }, { capacity = 4, address = "10.0.0.6:5432" }]
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("proxy.toml"), text)
}

/// `text` must be refused with exactly one problem: that line, that key, those words.
fn refused(text: &str, line: usize, key: &str, words: &str) {
    let error = parse(text).expect_err(&format!("accepted: {text}"));
    let [problem] = error.problems.as_slice() else {
        panic!("one problem expected, for {key}: {error}\n{text}");
    };
    assert_eq!(
        (problem.line, problem.key.as_str()),
        (line, key),
        "{error}\n{text}"
    );
    assert!(
        problem.message.contains(words),
        "{error}\nexpected: {words}"
    );
}

/// [`SMALL`] with `old` replaced by `new`.
fn small(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old}");
    SMALL.replace(old, new)
}

/// [`SMALL`] with a table added at its end: the table's header is line 16, its first key line 17.
fn with(table: &str) -> String {
    format!("{SMALL}\n{table}\n")
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = parse(SMALL).unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/slackwater"));
    assert_eq!(config.admin.address.to_string(), "127.0.0.1:7432");
    assert_eq!(config.admin.token, None);
    assert_eq!(config.tls, Tls::default());
    let listen = config.listen.postgres.as_ref().unwrap();
    assert_eq!(listen.tls, ListenTls::Prefer);
    assert_eq!(listen.proxy_protocol, []);
    assert_eq!(
        config.limits,
        Limits {
            max_clients: 10_000,
            max_logins: 500,
            max_logins_per_address: 200,
            max_login_failures_per_address: 100,
            login_failure_window: Duration::from_mins(1),
            threads: 0,
            login_timeout: Duration::from_secs(30),
            max_connection_age: Some(Duration::from_hours(24)),
            max_connection_age_grace: Duration::from_mins(5),
            keepalive: Duration::from_mins(1),
            tcp_user_timeout: Duration::from_secs(30),
        }
    );
    let shop = config.cluster("shop").unwrap();
    assert_eq!(shop.engine, Engine::Postgres);
    assert_eq!(shop.auth.method, AuthMethod::ScramSha256);
    assert_eq!(shop.auth.source, AuthSource::Server { query: None });
    assert_eq!(shop.auth.service.as_ref().unwrap().database, "postgres");
    assert_eq!(
        shop.capacity,
        CapacityConfig {
            min: Capacity(2),
            max: Capacity(4),
            ladder: vec![Capacity(2), Capacity(4)],
        }
    );
    assert_eq!(
        shop.scaling,
        ScalingConfig {
            scaling_point_timeout: Duration::from_mins(5),
            on_timeout: OnTimeout::Rollback,
            max_hold: Duration::from_secs(1),
            max_outage: Duration::from_mins(1),
        }
    );
    assert_eq!(
        shop.sessions,
        SessionsConfig {
            park_after: None,
            snapshot_after: Duration::from_secs(1),
            diagnostics_wait: Duration::ZERO,
            custom_settings: vec![],
            ends_replication: false,
            max_server_connections: 90,
        }
    );
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn every_key_of_the_commented_file_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "server.crt",
        "server.key",
        "server-ca.pem",
        "other.crt",
        "other.key",
        "clients.pem",
    ] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    for name in ["service.password", "admin.token"] {
        std::fs::write(dir.path().join(name), "correct horse\n").unwrap();
    }
    let shipped = include_str!("../../../proxy.toml");
    // As it is shipped, and with every commented key (`#key = ...`) switched on.
    let mut all = String::new();
    for line in shipped.lines() {
        let key = line
            .strip_prefix('#')
            .filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase() || c == '['));
        all.push_str(key.unwrap_or(line));
        all.push('\n');
    }
    let path = dir.path().join("proxy.toml");
    for text in [shipped, &all] {
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.clusters.len(), 1);
    }
    for key in [
        "client_ca",
        "client_certificate",
        "certificates",
        "token_file",
        "tcp_user_timeout",
        "hostnames",
        "auth_query",
        "users_file",
        "ladder",
        "auto_pause_after",
        "scale_up",
        "scale_down",
        "on_blocker",
        "server_ca",
        "data_dir",
        "binaries",
        "switch",
        "stop_timeout",
        "catch_up_timeout",
        "wal_keep_size",
        "memory_per_acu",
        "cpu_per_acu",
        "method",
    ] {
        assert!(shipped.contains(key), "proxy.toml doesn't show {key}");
    }
}

#[test]
fn documents_that_are_no_toml() {
    refused("[listen\n", 1, "", "");
    refused("a = 1\na = 2\n", 2, "", "duplicate");
    let error = Config::load(Path::new("/nonexistent/proxy.toml")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/proxy.toml: can't be read"),
        "{error}"
    );
    let error = parse("").unwrap_err().to_string();
    assert!(error.contains("clusters: there is none"), "{error}");
}

#[test]
fn all_problems_are_told_in_the_order_of_the_file() {
    let text = with(
        "[limits]\nmax_clients = 0\nlogin_timeout = \"x\"\n[clusters.shop.scaling]\nmax_hold = \"0\"",
    );
    let error = parse(&text).unwrap_err();
    assert_eq!(
        error.problems.iter().map(|p| p.line).collect::<Vec<_>>(),
        [17, 18, 20],
        "{error}"
    );
    assert!(
        error
            .to_string()
            .starts_with("proxy.toml:17: limits.max_clients: 0 is out of range"),
        "{error}"
    );
}

#[test]
fn clusters_are_told_apart() {
    let second = |extra: &str| {
        with(&format!(
            "[clusters.other]\nengine = \"postgres\"\n{extra}\n[clusters.other.auth]\nservice_user = \"s\"\n\
             [clusters.other.provider]\nkind = \"static\"\nendpoints = [{{ capacity = 2, address = \"h:1\" }}]"
        ))
    };
    assert_eq!(
        parse(&second("")).unwrap().clusters.len(),
        2,
        "reached by its name"
    );
    refused(
        &second("default = true"),
        5,
        "clusters.shop.default",
        "clusters.other is the default already",
    );
    let both = second("hostnames = [\"A.example\"]")
        .replace("default = true", "hostnames = [\"a.example\"]");
    refused(
        &both,
        5,
        "clusters.shop.hostnames",
        "already belongs to clusters.other",
    );
    refused(
        &second("").replace("default = true", "hostnames = [\"a\"]"),
        16,
        "clusters.other",
        "set default = true",
    );
    assert!(
        parse(&small("shop", "\"shop floor\""))
            .unwrap_err()
            .to_string()
            .contains("letters, digits"),
    );
}

#[test]
fn a_ladder_with_rungs_that_no_endpoint_has_is_narrowed_with_a_warning() {
    let config = parse(&with(
        "[clusters.shop.capacity]\nmin = 1\nmax = 16\nladder = [1, 2, 4, 8, 16]",
    ))
    .unwrap();
    let capacity = &config.clusters[0].capacity;
    assert_eq!((capacity.min, capacity.max), (Capacity(2), Capacity(4)));
    assert_eq!(capacity.ladder, [Capacity(2), Capacity(4)]);
    assert!(config.warnings[0].starts_with("clusters.shop.capacity: only [2, 4] have an endpoint"));
}

#[test]
fn servers_are_sent_a_proxy_header_where_that_is_said() {
    for (word, expected) in [
        ("", None),
        ("off", None),
        ("v1", Some(Version::V1)),
        ("v2", Some(Version::V2)),
    ] {
        let key = match word {
            "" => String::new(),
            word => format!("server_proxy_protocol = \"{word}\""),
        };
        let config = parse(&format!("{SMALL}\n{key}\n")).unwrap();
        let ProviderConfig::Static(keys) = &config.clusters[0].provider else {
            panic!("static")
        };
        assert_eq!(keys.proxy_protocol, expected, "{word}");
    }
}

#[test]
fn local_servers_have_the_ladder_of_aurora() {
    let local = |extra: &str| {
        let (head, _) = SMALL.split_once("kind = ").unwrap();
        parse(&format!(
            "{head}kind = \"local\"\ndata_dir = \"data\"\n{extra}"
        ))
    };
    let config = local("").unwrap();
    let shop = &config.clusters[0];
    assert_eq!(shop.capacity.ladder, [2, 4, 8, 16].map(Capacity));
    assert_eq!(
        shop.provider,
        ProviderConfig::Local(LocalProvider {
            data_dir: "data".into(),
            binaries: None,
            switch: Switch::Restart,
            standby: StandbyKeys::default(),
            memory_per_acu: 2 << 30,
            cpu_per_acu: 0.25,
        })
    );
    let config = local("memory_per_acu = \"256MiB\"\ncpu_per_acu = 1\nswitch = \"restart\"\n[clusters.shop.capacity]\nmin = 4\nmax = 64").unwrap();
    assert_eq!(
        config.clusters[0].capacity.ladder,
        [4, 8, 16, 32, 64].map(Capacity)
    );
    let config = local(
        "switch = \"standby\"\nstop_timeout = \"5s\"\ncatch_up_timeout = \"1h\"\nwal_keep_size = \"1GiB\"",
    )
    .unwrap();
    let ProviderConfig::Local(keys) = &config.clusters[0].provider else {
        panic!("local")
    };
    assert_eq!(keys.switch, Switch::Standby);
    assert_eq!(
        keys.standby,
        StandbyKeys {
            stop: Duration::from_secs(5),
            catch_up: Duration::from_hours(1),
            wal_keep_bytes: 1 << 30,
        }
    );
    for (extra, words) in [
        (
            "switch = \"replica\"",
            "provider.switch: \"replica\" is not possible",
        ),
        (
            "stop_timeout = \"20s\"",
            "stop_timeout: is only looked at with switch = \"standby\"",
        ),
        (
            "switch = \"standby\"\nstop_timeout = \"0s\"",
            "stop_timeout",
        ),
        (
            "switch = \"standby\"\nwal_keep_size = \"1MiB\"",
            "out of range",
        ),
        (
            "server_proxy_protocol = \"v2\"",
            "provider.server_proxy_protocol: is only there for kind = \"static\"",
        ),
        (
            "binaries = \"/proc\"",
            "/proc has no program named postgres",
        ),
        ("memory_per_acu = \"256MB\"", "1 MiB is 1,048,576 bytes"),
        ("memory_per_acu = \"1MiB\"", "out of range"),
        ("cpu_per_acu = 0", "out of range"),
        (
            "[clusters.shop.capacity]\nmin = 1",
            "1 is not on the ladder [2, 4, 8",
        ),
        ("endpoints = []", "endpoints: unknown key"),
    ] {
        let error = local(extra).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one directory, many files")]
fn paths_start_from_the_file_and_secrets_stay_hidden() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let verifier = format!(
        "SCRAM-SHA-256$4096:c2FsdHNhbHQ=${}:{}",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [1; 32]),
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [2; 32]),
    );
    write(
        "users.toml",
        &format!("zoe = \"hunter2\"\n\"a b\" = \"{verifier}\"\n"),
        0o600,
    );
    write("pw", "correct horse\n", 0o644);
    write("token", "a-long-random-token\n", 0o600);
    let text = small(
        "service_user = \"slackwater\"",
        "service_user = \"s\"\nservice_password_file = \"pw\"\nusers_file = \"users.toml\"",
    );
    let text = format!(
        "state_dir = \"state\"\n{text}\n[admin]\naddress = \"0.0.0.0:7000\"\ntoken_file = \"token\"\n"
    );
    let path = dir.path().join("proxy.toml");
    write("proxy.toml", &text, 0o600);
    let config = Config::load(&path).unwrap();
    assert_eq!(config.state_dir, dir.path().join("state"));
    assert_eq!(
        config.admin.token.as_ref().unwrap().reveal(),
        "a-long-random-token"
    );
    let auth = &config.clusters[0].auth;
    assert_eq!(
        auth.service
            .as_ref()
            .unwrap()
            .password
            .as_ref()
            .unwrap()
            .reveal(),
        "correct horse"
    );
    let AuthSource::Users { users, .. } = &auth.source else {
        panic!("{auth:?}")
    };
    assert_eq!(
        users.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
        ["a b", "zoe"]
    );
    let [warning] = config.warnings.as_slice() else {
        panic!("{:?}", config.warnings)
    };
    assert!(
        warning.contains("service_password_file: every user of this machine can read"),
        "{warning}"
    );
    let shown = format!("{config:?}");
    for secret in [
        "hunter2",
        "correct horse",
        "a-long-random-token",
        "c2FsdHNhbHQ=",
    ] {
        assert!(!shown.contains(secret), "{secret}");
    }

    for (content, words) in [
        ("zoe = 5\n", "users.toml:1: zoe: expected a string"),
        (
            "zoe = \"SCRAM-SHA-256$4096:c2Fs$AAAA:AAAA\"\n",
            "is not a SCRAM verifier",
        ),
        (
            "\nzoe = \"md5zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\"\n",
            "users.toml:2: zoe: is not an md5 hash",
        ),
        ("zoe = \"hunter2\n", "users.toml:1:"),
        ("", "names no user"),
    ] {
        write("users.toml", content, 0o600);
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("clusters.shop.auth.users_file") && error.contains(words),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    write("users.toml", "zoe = \"x\"\n", 0o600);
    write("token", "two\nlines\n", 0o600);
    let error = Config::load(&path).unwrap_err().to_string();
    assert!(
        error.contains("admin.token_file") && error.contains("one line"),
        "{error}"
    );
}

#[test]
fn a_local_server_needs_no_service_user() {
    let local = small(
        "kind = \"static\"\nendpoints = [{ capacity = 2, address = \"10.0.0.5:5432\" }, { capacity = 4, address = \"10.0.0.6:5432\" }]",
        "kind = \"local\"\ndata_dir = \"/nowhere/shop\"",
    );
    let account = |text: &str| {
        let config = parse(text).unwrap();
        config
            .cluster("shop")
            .unwrap()
            .auth
            .service
            .clone()
            .unwrap()
    };
    let named = account(&local.replace("\"slackwater\"", "\"keeper\""));
    assert_eq!((&*named.user, named.password), ("keeper", None));
    let bare = local.replace("service_user = \"slackwater\"\n", "");
    let made = account(&bare);
    assert_eq!(
        (&*made.user, &*made.database, made.password),
        ("slackwater", "postgres", None)
    );
    let given = account(&bare.replace(
        "[clusters.shop.auth]",
        "[clusters.shop.auth]\nservice_password = \"x\"",
    ));
    assert_eq!(given.password.unwrap().reveal(), "x");
}
