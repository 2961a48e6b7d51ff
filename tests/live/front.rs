//! The front door against real clients: libpq old and new, TLS in all its ways, certificates of both sides.

use crate::support::postgres::{APP, Postgres, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::{SOON, wait_until};
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A CA whose files are in a directory of the test's.
struct Ca {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("ca.pem"), made.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn sign(&self, name: &str, common_name: &str, hosts: &[&str]) {
        use std::os::unix::fs::PermissionsExt;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let made = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.crt")), made.pem()).unwrap();
        let key_file = self.file(&format!("{name}.key"));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Lines for `[tls]` or `[[tls.certificates]]`.
    fn lines(&self, name: &str) -> String {
        let file = |end| self.file(&format!("{name}.{end}")).display().to_string();
        format!(
            "certificate = \"{}\"\nprivate_key = \"{}\"\n",
            file("crt"),
            file("key")
        )
    }
}

/// psql to 127.0.0.1 by any host name.
pub(crate) fn psql(port: u16, host: &str, more: &str) -> Output {
    let connect = format!(
        "host={host} hostaddr=127.0.0.1 port={port} user=app dbname=app connect_timeout=20 {more}"
    );
    Command::new(binaries().join("psql"))
        .args(["-XAtc", "select session_user", &connect])
        .env("PGPASSWORD", APP.1)
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

pub(crate) fn must_work(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "app");
}

fn must_say(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains(words),
        "{words}: {output:?}"
    );
}

#[test]
fn channel_binding_is_there_when_it_is_demanded_and_the_session_moves_with_its_keys() {
    let ca = Ca::new();
    ca.sign("server", "server", &["localhost"]);
    let mut server = Postgres::start(&[]);
    server.stop();
    server.turn_on_tls(&ca.file("server.crt"), &ca.file("server.key"));
    server.boot();
    for (sections, root) in [
        (String::new(), None),
        // The hash of the signature is SHA-384 here.
        (
            format!("[tls]\n{}", ca.lines("server")),
            Some(ca.file("ca.pem")),
        ),
    ] {
        let options = Options {
            sections,
            // With TLS towards the server, which then offers channel binding too.
            provider: "server_tls = \"require\"".to_owned(),
            ..Options::default()
        };
        let proxy = Proxy::with(&server, &options);
        let root = root.unwrap_or_else(|| proxy.ca());
        let bound = format!(
            "sslmode=verify-full sslrootcert={} channel_binding=require",
            root.display()
        );
        must_work(&psql(proxy.port(), "localhost", &bound));
        must_say(
            &psql(
                proxy.port(),
                "localhost",
                "sslmode=disable channel_binding=require",
            ),
            "channel binding",
        );
        must_work(&psql(
            proxy.port(),
            "localhost",
            "sslmode=require channel_binding=disable",
        ));
        let mut client = proxy.client("moves");
        let before = client.server_process();
        proxy.admin().swap();
        assert_ne!(client.server_process(), before);
    }
}

#[test]
fn the_newest_libpq_comes_in_by_direct_tls_and_protocol_3_2() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/drivers/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run `make setup`",
        python.display()
    );
    let output = Command::new(python)
        .arg(root.join("tests/drivers/front_door.py"))
        .env("WORK_HOST", "localhost")
        .env("WORK_PORT", proxy.port().to_string())
        .env("WORK_USER", APP.0)
        .env("WORK_PASSWORD", APP.1)
        .env("WORK_DATABASE", "app")
        .env("WORK_CA", proxy.ca())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["direct 30002", "asked 30002", "old 30000"]
    );
}

#[test]
fn the_host_name_chooses_the_certificate_and_a_reload_changes_it_under_live_clients() {
    let ca = Ca::new();
    ca.sign("one", "one", &["one.example.com"]);
    ca.sign("two", "two", &["*.two.example.com"]);
    let server = Postgres::start(&[]);
    let options = Options {
        sections: format!(
            "[tls]\n{}[[tls.certificates]]\n{}",
            ca.lines("one"),
            ca.lines("two")
        ),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let verify = format!(
        "sslmode=verify-full sslrootcert={}",
        ca.file("ca.pem").display()
    );
    let mut live = proxy.client("live");
    must_work(&psql(proxy.port(), "one.example.com", &verify));
    must_work(&psql(proxy.port(), "x.two.example.com", &verify));
    let other = psql(proxy.port(), "three.example.com", &verify);
    must_say(&other, "\"one.example.com\"");

    // A bad file changes nothing, and the log says which.
    let good = fs::read(ca.file("two.crt")).unwrap();
    ca.sign("one", "one", &["three.example.com"]);
    fs::write(ca.file("two.crt"), "nothing").unwrap();
    proxy.signal(Signal::SIGHUP);
    wait_until("the log names the bad file", SOON, || {
        let log = proxy.log();
        log.contains("reload refused") && log.contains("two.crt")
    });
    must_work(&psql(proxy.port(), "one.example.com", &verify));

    fs::write(ca.file("two.crt"), good).unwrap();
    proxy.signal(Signal::SIGHUP);
    wait_until("the new certificate is shown", SOON, || {
        psql(proxy.port(), "three.example.com", &verify)
            .status
            .success()
    });
    must_work(&psql(proxy.port(), "x.two.example.com", &verify));
    live.run("select 1");
}

#[test]
fn client_certificates_as_each_cluster_demands_them() {
    let ca = Ca::new();
    ca.sign("app", "app", &[]);
    ca.sign("else", "else", &[]);
    let other = Ca::new();
    other.sign("app", "app", &[]);
    let server = Postgres::start(&[]);
    let tls = format!("[tls]\nclient_ca = \"{}\"", ca.file("ca.pem").display());
    let shown = |ca: &Ca, name: &str| {
        format!(
            "sslmode=require sslcert={} sslkey={}",
            ca.file(&format!("{name}.crt")).display(),
            ca.file(&format!("{name}.key")).display()
        )
    };
    let users = ca.file("users.toml");
    fs::write(&users, format!("app = \"{}\"\n", APP.1)).unwrap();
    let missing = "connection requires a valid client certificate";
    for (auth, none, another) in [
        ("client_certificate = \"off\"".to_owned(), None, None),
        (
            "client_certificate = \"verify-ca\"".to_owned(),
            Some(missing),
            None,
        ),
        (
            "client_certificate = \"verify-full\"".to_owned(),
            Some(missing),
            Some("certificate authentication failed for user \"app\""),
        ),
        (
            format!("method = \"cert\"\nusers_file = \"{}\"", users.display()),
            Some(missing),
            Some("certificate authentication failed for user \"app\""),
        ),
    ] {
        let options = Options {
            sections: tls.clone(),
            auth: auth.clone(),
            ..Options::default()
        };
        let proxy = Proxy::with(&server, &options);
        let port = proxy.port();
        must_work(&psql(port, "localhost", &shown(&ca, "app")));
        let check = |output: &Output, refusal: Option<&str>| match refusal {
            None => must_work(output),
            Some(words) => must_say(output, words),
        };
        check(&psql(port, "localhost", "sslmode=require"), none);
        check(&psql(port, "localhost", "sslmode=disable"), none);
        check(&psql(port, "localhost", &shown(&ca, "else")), another);
        // One that somebody else signed never does.
        let foreign = psql(port, "localhost", &shown(&other, "app"));
        assert!(!foreign.status.success(), "{auth}: {foreign:?}");
    }
}
