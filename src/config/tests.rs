//! proxy.toml as people write it: what it means, and what they are told when it is wrong.

use super::*;

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
    assert_eq!(config.tls, Tls::SelfMade);
    assert_eq!(
        config.listen.postgres.as_ref().unwrap().tls,
        ListenTls::Prefer
    );
    assert_eq!(
        config.limits,
        Limits {
            max_clients: 10_000,
            login_timeout: Duration::from_secs(30),
            max_connection_age: Some(Duration::from_secs(86_400)),
            max_connection_age_grace: Duration::from_secs(300),
            keepalive: Duration::from_secs(60),
            tcp_user_timeout: Duration::from_secs(30),
        }
    );
    let shop = config.cluster("shop").unwrap();
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
            scaling_point_timeout: Duration::from_secs(300),
            on_timeout: OnTimeout::Rollback,
            max_hold: Duration::from_secs(1),
            max_outage: Duration::from_secs(60),
        }
    );
    assert_eq!(
        shop.sessions,
        SessionsConfig {
            park_after: None,
            snapshot_after: Duration::from_secs(1),
            custom_settings: vec![],
            max_server_connections: 90,
        }
    );
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn every_key_of_the_commented_file_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["server.crt", "server.key", "server-ca.pem"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    for name in ["service.password", "admin.token"] {
        std::fs::write(dir.path().join(name), "correct horse\n").unwrap();
    }
    let shipped = include_str!("../../proxy.toml");
    // As it is shipped, and with every commented key (`#key = ...`) switched on.
    let all: String = shipped
        .lines()
        .map(|line| {
            let key = line
                .strip_prefix('#')
                .filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase() || c == '['));
            format!("{}\n", key.unwrap_or(line))
        })
        .collect();
    let path = dir.path().join("proxy.toml");
    for text in [shipped, &all] {
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.clusters.len(), 1);
    }
    for key in [
        "client_ca",
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
        "memory_per_acu",
        "cpu_per_acu",
        "method",
    ] {
        assert!(shipped.contains(key), "proxy.toml doesn't show {key}");
    }
}

#[test]
fn later_features_are_refused_by_name() {
    for (text, line, key, words) in [
        (
            small("\"postgres\"", "\"mysql\""),
            6,
            "clusters.shop.engine",
            "engine \"mysql\" is not in this release",
        ),
        (
            small("\"postgres\"", "\"mariadb\""),
            6,
            "clusters.shop.engine",
            "engine \"mariadb\" is not in this release",
        ),
        (
            with("[clusters.shop.sessions]\npooling = \"transaction\""),
            17,
            "clusters.shop.sessions.pooling",
            "not in this release; use \"session\"",
        ),
        (
            with("[clusters.shop.sessions]\non_blocker = { listen = \"move\" }"),
            17,
            "clusters.shop.sessions.on_blocker.listen",
            "moving listen is not in this release",
        ),
        (
            with("[clusters.shop.sessions]\non_blocker = { replication = \"terminate\" }"),
            17,
            "clusters.shop.sessions.on_blocker.replication",
            "not in this release",
        ),
        (
            with("[clusters.shop.capacity]\nmin = 0"),
            17,
            "clusters.shop.capacity.min",
            "capacity 0 (pause) is not in this release",
        ),
        (
            with("[clusters.shop.capacity]\nauto_pause_after = \"300s\""),
            17,
            "clusters.shop.capacity.auto_pause_after",
            "pausing is not in this release",
        ),
        (
            with("[clusters.shop.scaling]\nauto = true"),
            17,
            "clusters.shop.scaling.auto",
            "not in this release",
        ),
        (
            with("[tls]\nclient_ca = \"clients.pem\""),
            17,
            "tls.client_ca",
            "not in this release",
        ),
        (
            small("kind = \"static\"", "kind = \"exec\""),
            13,
            "clusters.shop.provider.kind",
            "provider \"exec\" is not in this release",
        ),
        (
            small("kind = \"static\"", "kind = \"kubernetes\""),
            13,
            "clusters.shop.provider.kind",
            "not in this release",
        ),
    ] {
        refused(&text, line, key, words);
    }
    let off = with(
        "[clusters.shop.sessions]\npooling = \"session\"\npark_after = \"0\"\n\
         on_blocker = { advisory_lock = \"block\", listen = \"block\", temp_table = \"block\", hold_cursor = \"block\", replication = \"block\" }\n\
         [clusters.shop.capacity]\nauto_pause_after = \"0\"\n\
         [clusters.shop.scaling]\nauto = false\nscale_up = { cpu_above = 0.7, connections_above = 0.9 }\n\
         scale_down = { cpu_below = 0.3, connections_below = 0.4, cooldown_after_up = \"900s\", cooldown_after_down = \"310s\" }\n\
         [listen.mysql]\naddress = [\"0.0.0.0:3306\"]\ntls = \"prefer\"",
    );
    let config = parse(&off).unwrap();
    assert_eq!(
        config.warnings,
        ["listen.mysql: is not bound, since no cluster has its engine"]
    );
}

#[test]
fn one_mistake_is_told_with_line_and_key() {
    for (text, line, key, words) in [
        (
            small("default = true", "default = true\ncolour = 1"),
            8,
            "clusters.shop.colour",
            "unknown key; known here: engine, default",
        ),
        (
            with("[limits]\nmax_client = 5"),
            17,
            "limits.max_client",
            "known here: max_clients",
        ),
        (with("[limit]\nmax_clients = 5"), 16, "limit", "unknown key"),
        (
            with("[limits]\nmax_clients = 0"),
            17,
            "limits.max_clients",
            "1 to 1000000",
        ),
        (
            with("[limits]\nmax_clients = \"5\""),
            17,
            "limits.max_clients",
            "expected a whole number, found a string",
        ),
        (
            with("[limits]\nlogin_timeout = 30"),
            17,
            "limits.login_timeout",
            "expected a duration in quotes",
        ),
        (
            with("[limits]\nlogin_timeout = \"30\""),
            17,
            "limits.login_timeout",
            "ms, s, m, h or d",
        ),
        (
            with("[limits]\nlogin_timeout = \"0\""),
            17,
            "limits.login_timeout",
            "\"1s\" to \"1h\" are possible",
        ),
        (
            with("[limits]\nmax_connection_age = \"100ms\""),
            17,
            "limits.max_connection_age",
            "or \"0\" (never)",
        ),
        (
            with("[clusters.shop.scaling]\nmax_hold = \"5m\""),
            17,
            "clusters.shop.scaling.max_hold",
            "\"10ms\" to \"60s\"",
        ),
        (
            with("[clusters.shop.scaling]\non_timeout = \"fail\""),
            17,
            "clusters.shop.scaling.on_timeout",
            "\"rollback\", \"force\" are",
        ),
        (
            with("[clusters.shop.scaling]\nscale_up = { cpu_above = 1.5 }"),
            17,
            "clusters.shop.scaling.scale_up.cpu_above",
            "0 to 1",
        ),
        (
            with("[clusters.shop.scaling]\nscale_up = { cpu_below = 0.5 }"),
            17,
            "clusters.shop.scaling.scale_up.cpu_below",
            "unknown key",
        ),
        (
            with("[clusters.shop.capacity]\nladder = [4, 2]"),
            17,
            "clusters.shop.capacity.ladder[1]",
            "ascends",
        ),
        (
            with("[clusters.shop.capacity]\nladder = []"),
            17,
            "clusters.shop.capacity.ladder",
            "empty",
        ),
        (
            with("[clusters.shop.capacity]\nladder = [1, 2, 4]\nmin = 3"),
            18,
            "clusters.shop.capacity.min",
            "3 is not on the ladder [1, 2, 4]",
        ),
        (
            with("[clusters.shop.capacity]\nmin = 4\nmax = 2"),
            17,
            "clusters.shop.capacity.min",
            "min must not be above max",
        ),
        (
            with("[clusters.shop.capacity]\nmin = 8\nmax = 16"),
            16,
            "clusters.shop.capacity",
            "no endpoint has a capacity from 8 to 16",
        ),
        (
            with("[clusters.shop.sessions]\ncustom_settings = [\"tenant\"]"),
            17,
            "clusters.shop.sessions.custom_settings[0]",
            "app.tenant",
        ),
        (
            with("[clusters.shop.sessions]\npooling = \"statement\""),
            17,
            "clusters.shop.sessions.pooling",
            "no kind of pooling",
        ),
        (
            with("[tls]\ncertificate = \"/proc/version\""),
            17,
            "tls.certificate",
            "needs private_key",
        ),
        (
            with("[tls]\ncertificate = \"nowhere.crt\"\nprivate_key = \"/proc/version\""),
            17,
            "tls.certificate",
            "nowhere.crt can't be read",
        ),
        (
            with("[admin]\naddress = \"0.0.0.0:7432\""),
            17,
            "admin.address",
            "token_file is demanded",
        ),
        (
            with("[admin]\naddress = \"unix:/tmp/admin\""),
            17,
            "admin.address",
            "TCP",
        ),
        (
            with("[admin]\naddress = \"127.0.0.1:5433\""),
            3,
            "listen.postgres.address[0]",
            "already taken by admin.address",
        ),
        (
            small("[\"127.0.0.1:5433\"]", "[]"),
            3,
            "listen.postgres.address",
            "empty",
        ),
        (
            small("[\"127.0.0.1:5433\"]", "[\"localhost\"]"),
            3,
            "listen.postgres.address[0]",
            "host:port",
        ),
        (
            small(
                "[\"127.0.0.1:5433\"]",
                "[\"0.0.0.0:5433\", \"0.0.0.0:5433\"]",
            ),
            3,
            "listen.postgres.address[1]",
            "already taken by listen.postgres.address[0]",
        ),
        (
            small("default = true", ""),
            5,
            "clusters.shop",
            "set default = true, or hostnames",
        ),
        (
            small(
                "default = true",
                "default = true\nhostnames = [\"*.example.com\"]",
            ),
            8,
            "clusters.shop.hostnames[0]",
            "not a host name",
        ),
        (
            small("service_user = \"slackwater\"", ""),
            9,
            "clusters.shop.auth",
            "nobody may log in",
        ),
        (
            small(
                "service_user = \"slackwater\"",
                "service_user = \"s\"\nservice_password = \"a\"\nservice_password_file = \"/proc/version\"",
            ),
            11,
            "clusters.shop.auth.service_password",
            "keep one",
        ),
        (
            small(
                "service_user = \"slackwater\"",
                "service_user = \"s\"\nauth_query = \"SELECT 1\"",
            ),
            11,
            "clusters.shop.auth.auth_query",
            "$1",
        ),
        (
            small(
                "service_user = \"slackwater\"",
                "service_user = \"s\"\nmethod = \"trust\"",
            ),
            11,
            "clusters.shop.auth.method",
            "\"scram-sha-256\", \"md5\", \"password\" are",
        ),
        (
            small("capacity = 4", "capacity = 2"),
            14,
            "clusters.shop.provider.endpoints[1].capacity",
            "already",
        ),
        (
            small("capacity = 4, ", ""),
            14,
            "clusters.shop.provider.endpoints[1].capacity",
            "is missing",
        ),
        (
            small("10.0.0.6:5432", "10.0.0.6"),
            14,
            "clusters.shop.provider.endpoints[1].address",
            "host:port",
        ),
        (
            small("10.0.0.6:5432", "127.0.0.1:5433"),
            5,
            "clusters.shop.provider.endpoints",
            "connect to itself",
        ),
        (
            small(
                "kind = \"static\"",
                "kind = \"static\"\nserver_tls = \"on\"",
            ),
            14,
            "clusters.shop.provider.server_tls",
            "\"verify-full\"",
        ),
        (
            small(
                "kind = \"static\"",
                "kind = \"static\"\nserver_ca = \"/proc/version\"",
            ),
            14,
            "clusters.shop.provider.server_ca",
            "verify-ca",
        ),
        (
            small("kind = \"static\"", "kind = \"static\"\ndata_dir = \"d\""),
            14,
            "clusters.shop.provider.data_dir",
            "unknown key; known here: kind, endpoints",
        ),
    ] {
        refused(&text, line, key, words);
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
    assert!(
        error.contains("clusters: there is none") && error.contains("listen.postgres: is missing"),
        "{error}"
    );
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
            memory_per_acu: 2 << 30,
            cpu_per_acu: 0.25,
        })
    );
    let config = local("memory_per_acu = \"256MiB\"\ncpu_per_acu = 1\nswitch = \"restart\"\n[clusters.shop.capacity]\nmin = 4\nmax = 64").unwrap();
    assert_eq!(
        config.clusters[0].capacity.ladder,
        [4, 8, 16, 32, 64].map(Capacity)
    );
    for (extra, words) in [
        (
            "switch = \"standby\"",
            "provider.switch: switch = \"standby\" is not in this release",
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
