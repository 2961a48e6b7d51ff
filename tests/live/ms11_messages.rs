//! Must show 11: what the user reads when something is wrong says what, and what to do.

use crate::support::postgres::{APP, Port, Postgres, binaries};
use crate::support::proxy::{Options, Proxy, program};
use crate::support::wire::{Client, Target};
use crate::support::{SOON, wait_until};
use std::fs;
use std::process::{Command, Output};

const GOOD: &str = "state_dir = \"STATE\"\n\
    [listen.postgres]\n\
    address = [\"127.0.0.1:5432\"]\n\
    [clusters.shop]\n\
    engine = \"postgres\"\n\
    default = true\n\
    [clusters.shop.auth]\n\
    service_user = \"slackwater\"\n\
    service_password = \"x\"\n\
    [clusters.shop.capacity]\n\
    min = 2\n\
    max = 4\n\
    [clusters.shop.provider]\n\
    kind = \"static\"\n\
    endpoints = [{ capacity = 2, address = \"127.0.0.1:1\" }, { capacity = 4, address = \"127.0.0.1:1\" }]\n";

fn check(text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.toml");
    fs::write(
        &file,
        text.replace("STATE", &dir.path().join("state").display().to_string()),
    )
    .unwrap();
    Command::new(program())
        .args(["check", "--config"])
        .arg(&file)
        .output()
        .unwrap()
}

#[test]
fn ms11_bad_configuration_names_key_and_line() {
    // Faults of the text itself: `check` may say more about a server that is not there, never less.
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "engine = \"postgres\"",
            "engine = \"postgras\"",
            &["postgras", ":5:"],
        ),
        (
            "kind = \"static\"",
            "kind = \"static\"\nkindly = 1",
            &["kindly", ":15:"],
        ),
        ("min = 2", "min = \"two\"", &["min", ":11:"]),
        ("max = 4", "max = 1", &["max", "min"]),
        (
            "[listen.postgres]",
            "[listen.postgras]",
            &["postgras", ":2:"],
        ),
        (
            "address = [\"127.0.0.1:5432\"]",
            "address = [\"127.0.0.1:5432x\"]",
            &["5432x"],
        ),
        (
            "kind = \"static\"",
            "kind = \"kubernetes\"",
            &["kubernetes"],
        ),
        (
            "max = 4",
            "max = 4\nauto_pause_after = \"5 parsecs\"",
            &["auto_pause_after", "parsecs"],
        ),
        ("min = 2\n", "min = 0\n", &["min"]),
        ("service_user = \"slackwater\"\n", "", &["service_user"]),
    ];
    let mut faults = Vec::new();
    for (old, new, wanted) in cases {
        let text = GOOD.replacen(old, new, 1);
        assert_ne!(text, GOOD, "{old} is in the text");
        let output = check(&text);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if output.status.code() != Some(2) {
            faults.push(format!("{new}: exit {:?}: {said}", output.status));
        }
        for word in wanted.iter().filter(|w| !said.contains(**w)) {
            faults.push(format!("{new}: does not say {word:?}: {said}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn ms11_check_accepts_a_good_configuration_with_its_server() {
    let server = Postgres::start(&[]);
    let text = GOOD.replace("127.0.0.1:1\"", &format!("{}\"", server.address()));
    let output = check(&text.replace("password = \"x\"", "password = \"service-secret\""));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn ms11_missing_file_is_named() {
    let output = Command::new(program())
        .args(["serve", "--config", "/nonexistent/p.toml"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/nonexistent/p.toml"), "{said}");
}

#[test]
fn ms11_wrong_password_and_unknown_user_read_like_postgresql() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    for (user, password) in [(APP.0, "wrong"), ("nobody_here", "x"), ("helper", "x")] {
        let error = Client::connect(&Target::new(proxy.port(), (user, password), "app"))
            .unwrap_err()
            .server();
        let told = (
            error.severity,
            error.code,
            error.message,
            error.detail,
            error.hint,
        );
        let wanted = format!("password authentication failed for user \"{user}\"");
        assert_eq!(
            told,
            (
                "FATAL".into(),
                "28P01".into(),
                wanted,
                String::new(),
                String::new()
            )
        );
    }
    Client::connect(&proxy.app()).expect("the right password goes in");
}

#[test]
fn ms11_errors_at_log_in_are_the_servers_own_words() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create role narrow login password 'n' connection limit 0",
        "create role gone login password 'g' valid until '2001-01-01'",
        "create database closed allow_connections false",
    ]);
    let proxy = Proxy::on(&server);
    for (user, database, code) in [
        (APP, "no_such", "3D000"),
        (("narrow", "n"), "app", "53300"),
        (("gone", "g"), "app", "28P01"),
        (APP, "closed", "55000"),
    ] {
        let direct = Client::connect(&Target::new(server.port(), user, database))
            .unwrap_err()
            .server();
        let through = Client::connect(&Target::new(proxy.port(), user, database))
            .unwrap_err()
            .server();
        assert_eq!(direct.code, code);
        assert_eq!(through, direct);
    }
}

#[test]
fn ms11_dead_server_is_named() {
    let nobody = Port::take();
    let address = format!("127.0.0.1:{}", nobody.number);
    let options = Options {
        limits: "login_timeout = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::unready(&address, &options);
    proxy.wait_alive();
    let (status, _) = proxy.admin().get_text("/readyz").expect("readyz answers");
    assert_eq!(status, 503, "not ready without a server");
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert_eq!(error.severity, "FATAL");
    assert!(
        error.code.starts_with("08") || error.code == "57P03",
        "{error:?}"
    );
    // The client need not know where the server is; whoever runs the proxy does.
    wait_until("the log names the server", SOON, || {
        proxy.log().contains(&address)
    });
}

#[test]
fn ms11_case_38_server_that_starts_is_waited_for() {
    let mut server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    server.stop();
    let target = proxy.app();
    let waits =
        std::thread::spawn(move || Client::connect(&target).map(|mut c| c.value("select 1")));
    server.boot();
    assert_eq!(
        waits
            .join()
            .unwrap()
            .expect("served once the server is back"),
        "1"
    );
}

#[test]
fn ms11_full_pool_names_the_limit() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"1s\"".to_owned(),
        sessions: "max_server_connections = 3".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut first = proxy.client("first");
    first.run("begin");
    let error = Client::connect(&proxy.named("second"))
        .and_then(|mut c| c.query("select 1"))
        .unwrap_err()
        .server();
    assert_eq!(error.code, "53300", "{error:?}");
    assert!(error.text().contains("max_server_connections"), "{error:?}");
    first.run("commit");
    proxy.client("third").run("select 1");
}

#[test]
fn ms11_too_many_clients_names_the_limit() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "max_clients = 1".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let _first = proxy.client("first");
    let error = Client::connect(&proxy.named("second"))
        .unwrap_err()
        .server();
    assert_eq!(error.code, "53300", "{error:?}");
    assert!(error.text().contains("max_clients"), "{error:?}");
}

#[test]
fn ms11_wrong_service_password_is_named() {
    let server = Postgres::start(&[]);
    let options = Options {
        service_password: Some("wrong".to_owned()),
        limits: "login_timeout = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::unready(&server.address(), &options);
    proxy.wait_alive();
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert_eq!(error.severity, "FATAL");
    wait_until("the log names the account", SOON, || {
        let log = proxy.log();
        log.contains("slackwater") && log.contains("password authentication failed")
    });
}

/// psql over TLS with a server name and a CA file.
fn psql(proxy: &Proxy, host: &str, mode: &str, ca: &str) -> Output {
    let connect = format!(
        "host={host} hostaddr=127.0.0.1 port={} user=app dbname=app sslmode={mode} sslrootcert={ca}",
        proxy.port()
    );
    Command::new(binaries().join("psql"))
        .args([
            "-XAtc",
            "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
            &connect,
        ])
        .env("PGPASSWORD", APP.1)
        .output()
        .unwrap()
}

#[test]
fn ms11_sslmodes_and_a_certificate_that_does_not_match() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let ca = proxy.ca().display().to_string();
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ] {
        let output = psql(&proxy, "localhost", mode, &ca);
        assert!(output.status.success(), "{mode}: {output:?}");
    }
    let output = psql(&proxy, "elsewhere.example", "verify-full", &ca);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("does not match host name"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.crt");
    let key = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
    fs::write(&other, key.cert.pem()).unwrap();
    let output = psql(
        &proxy,
        "localhost",
        "verify-full",
        &other.display().to_string(),
    );
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("certificate verify failed"),
        "{output:?}"
    );
}

#[test]
fn ms11_servers_certificate_that_does_not_match_is_named() {
    let made = rcgen::generate_simple_self_signed(["db.example".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    // The server reads its key as another account: inside its own directory.
    let mut server = Postgres::start(&[]);
    server.stop();
    server.turn_on_tls(&certificate, &key);
    server.boot();
    let options = Options {
        limits: "login_timeout = \"1s\"".to_owned(),
        provider: format!(
            "server_tls = \"verify-full\"\nserver_ca = \"{}\"",
            certificate.display()
        ),
        ..Options::default()
    };
    let proxy = Proxy::unready(&server.address(), &options);
    proxy.wait_alive();
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert_eq!(error.severity, "FATAL");
    wait_until("the log says why", SOON, || {
        proxy.log().to_lowercase().contains("certificate")
    });
}
