//! Every way to log in: SCRAM, md5, a password inside TLS, users from a file, a Unix socket. Whoever is in goes
//! through a scale event without being asked again.

use crate::support::postgres::{APP, Postgres, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{SOON, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn log_in(port: u16, user: &str, password: &str) -> Result<Client, String> {
    Client::connect(&Target::new(port, (user, password), "app")).map_err(|e| e.to_string())
}

fn must_be(client: &mut Client, user: &str) {
    assert_eq!(client.value("select session_user"), user);
}

/// psql with a connection string; what it said.
fn psql(connect: &str, password: &str) -> Output {
    Command::new(binaries().join("psql"))
        .args(["-XAtc", "select session_user", connect])
        .env("PGPASSWORD", password)
        .output()
        .unwrap()
}

#[test]
fn logins_md5_and_scram_users_side_by_side() {
    let server = Postgres::start(&[]);
    server.run(&[
        "set password_encryption = 'md5'; create role old login password 'old-secret'",
        "grant connect on database app to old",
    ]);
    server.allow_md5();
    let options = Options {
        auth: "method = \"md5\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut old = log_in(proxy.port(), "old", "old-secret").unwrap();
    let mut app = log_in(proxy.port(), APP.0, APP.1).unwrap();
    for (user, password) in [("old", "wrong"), (APP.0, "wrong"), ("nobody_here", "x")] {
        let said = log_in(proxy.port(), user, password).unwrap_err();
        assert!(said.contains("28P01"), "{user}: {said}");
    }
    let before = [old.server_process(), app.server_process()];
    proxy.admin().swap();
    let after = [old.server_process(), app.server_process()];
    assert!(before.iter().all(|p| !after.contains(p)), "both were moved");
    must_be(&mut old, "old");
    must_be(&mut app, APP.0);
}

#[test]
fn logins_by_a_users_file_that_is_read_again() {
    let server = Postgres::start(&[]);
    server.run(&["create role kept login password 'kept-secret'"]);
    let mut admin = Client::connect(&server.admin()).unwrap();
    let verifier = admin.value("select rolpassword from pg_authid where rolname = 'kept'");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let write = |password: &str| {
        let text = format!("app = \"{password}\"\nkept = \"{verifier}\"\n");
        fs::write(&file, text).unwrap();
    };
    write(APP.1);
    let options = Options {
        auth: format!("users_file = \"{}\"", file.display()),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut app = log_in(proxy.port(), APP.0, APP.1).unwrap();
    let mut kept = log_in(proxy.port(), "kept", "kept-secret").unwrap();
    // The server knows this one, the file does not.
    let said = log_in(proxy.port(), "repl", "repl-secret").unwrap_err();
    assert!(said.contains("28P01"), "{said}");
    let before = [app.server_process(), kept.server_process()];
    proxy.admin().swap();
    let after = [app.server_process(), kept.server_process()];
    assert!(before.iter().all(|p| !after.contains(p)), "both were moved");
    must_be(&mut app, APP.0);
    must_be(&mut kept, "kept");

    server.run(&["alter role app password 'new-secret'"]);
    write("new-secret");
    proxy.signal(Signal::SIGHUP);
    wait_until("the new password is taken", SOON, || {
        log_in(proxy.port(), APP.0, "new-secret").is_ok()
    });
    let said = log_in(proxy.port(), APP.0, APP.1).unwrap_err();
    assert!(said.contains("28P01"), "{said}");
    must_be(&mut app, APP.0);
}

#[test]
fn logins_by_the_password_itself_only_where_nobody_listens() {
    let server = Postgres::start(&[]);
    let options = Options {
        auth: "method = \"password\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let connect = |mode: &str| {
        format!(
            "host=127.0.0.1 port={} user=app dbname=app sslmode={mode}",
            proxy.port()
        )
    };
    let output = psql(&connect("require"), APP.1);
    assert!(output.status.success(), "{output:?}");
    let output = psql(&connect("require"), "wrong");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("password authentication failed for user \"app\""),
        "{said}"
    );
    let output = psql(&connect("disable"), APP.1);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("TLS") && said.contains("sslmode=require"),
        "{said}"
    );
}

#[test]
fn logins_over_a_unix_socket() {
    let server = Postgres::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        socket_dir: Some(dir.path().to_owned()),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let connect =
        |dir: &Path, port: u16| format!("host={} port={port} user=app dbname=app", dir.display());
    let output = psql(&connect(dir.path(), proxy.port()), APP.1);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "app");
    let output = psql(&connect(dir.path(), proxy.port()), "wrong");
    assert!(!output.status.success(), "{output:?}");
    let shown = proxy.admin().sessions();
    assert!(shown.is_empty(), "psql has left: {shown:?}");
}
