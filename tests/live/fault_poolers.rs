//! Where poolers lose first when real suites run through them: start-up options, process numbers, errors of
//! log-ins, settings of roles and databases, connections that sit in a database, late cancels.

use crate::support::postgres::{ADMIN, APP, Postgres, binaries};
use crate::support::proxy::Proxy;
use crate::support::wire::{Client, Target};
use crate::support::{SOON, wait_until};
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

#[test]
fn poolers_start_up_options_reach_the_server_and_stay() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::parking(&server);
    let target = proxy
        .named("options")
        .with(
            "options",
            "-c search_path=\"a\\ b\",\"$user\" --geqo=off -c app.tenant=x+y -cwork_mem=5MB",
        )
        .with("extra_float_digits", "3")
        .with("DateStyle", "SQL, DMY");
    let mut client = Client::connect(&target).unwrap();
    for round in 0..3 {
        assert_eq!(
            client.value("show search_path"),
            "\"a b\",\"$user\"",
            "round {round}"
        );
        assert_eq!(client.value("show geqo"), "off");
        assert_eq!(client.value("show app.tenant"), "x+y");
        assert_eq!(client.value("show work_mem"), "5MB");
        assert_eq!(client.value("show extra_float_digits"), "3");
        assert_eq!(client.value("show datestyle"), "SQL, DMY");
        let sql = "select source from pg_settings where name = 'geqo'";
        assert_eq!(client.value(sql), "client");
        client.run("set work_mem = '6MB'; reset work_mem");
        proxy.wait_parked("options");
    }
}

#[test]
fn poolers_process_numbers_are_those_of_the_server() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let (mut one, mut other) = (proxy.client("one"), proxy.client("other"));
    assert_eq!(one.server_process(), one.process);
    one.run("select pg_advisory_lock(7)");
    let holder = other.value("select pid from pg_locks where locktype = 'advisory'");
    assert_eq!(holder, one.process.to_string());
    one.run("listen chan");
    other.run("notify chan, 'hello'");
    let heard = one.until(b'A').unwrap();
    let told = &heard.last().unwrap().body[..4];
    assert_eq!(i32::from_be_bytes(told.try_into().unwrap()), other.process);
    let sql = format!("select pg_terminate_backend({})", one.process);
    assert_eq!(other.value(&sql), "t");
    let direct = {
        let mut client = Client::connect(&server.app()).unwrap();
        server.run(&[&format!("select pg_terminate_backend({})", client.process)]);
        client.finish().unwrap_err().server()
    };
    assert_eq!(
        one.finish().unwrap_err().server(),
        direct,
        "the last words unchanged"
    );
}

#[test]
fn poolers_errors_of_log_ins_are_the_servers_own() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create role limited login password 'x' connection limit 0",
        "create role nologin_role nologin password 'x'",
        "create role expired login password 'x' valid until '2001-01-01'",
        "create database closed allow_connections false",
        "create database private",
        "revoke connect on database private from public",
    ]);
    let proxy = Proxy::on(&server);
    for (user, password, database, parameter) in [
        ("app", "wrong", "app", None),
        ("nobody", "wrong", "app", None),
        ("expired", "x", "app", None),
        ("app", APP.1, "missing", None),
        ("app", APP.1, "closed", None),
        ("app", APP.1, "private", None),
        ("limited", "x", "app", None),
        ("nologin_role", "x", "app", None),
        (
            "app",
            APP.1,
            "app",
            Some(("options", "-c no_such_setting=1")),
        ),
        ("app", APP.1, "app", Some(("work_mem", "lots"))),
        ("app", APP.1, "app", Some(("log_statement", "all"))),
    ] {
        let ask = |port: u16| {
            let mut target = Target::new(port, (user, password), database);
            if let Some((name, value)) = parameter {
                target = target.with(name, value);
            }
            Client::connect(&target).unwrap_err().server()
        };
        assert_eq!(
            ask(proxy.port()),
            ask(server.port()),
            "{user} {database} {parameter:?}"
        );
    }
}

#[test]
fn poolers_settings_of_roles_and_databases_are_those_of_the_log_in() {
    let server = Postgres::start(&[]);
    server.run(&[
        "alter role app set work_mem = '5MB'",
        "alter database app set work_mem = '6MB'",
        "alter database app set geqo = off",
        "alter role app in database app set app.tenant = 'mine'",
    ]);
    let proxy = Proxy::parking(&server);
    let mut client = proxy.client("role");
    for _ in 0..2 {
        assert_eq!(client.value("show work_mem"), "5MB");
        assert_eq!(client.value("show geqo"), "off");
        assert_eq!(client.value("show app.tenant"), "mine");
        client.run("set work_mem = '9MB'; reset work_mem");
        proxy.wait_parked("role");
    }
}

#[test]
fn poolers_nothing_of_the_proxys_own_sits_in_a_database() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::parking(&server);
    let mut admin = Client::connect(&Target::new(proxy.port(), ADMIN, "app")).unwrap();
    for round in 0..2 {
        admin.run("create database other owner app");
        let target = Target::new(proxy.port(), APP, "other").with("application_name", "inside");
        let mut client = Client::connect(&target).unwrap();
        client.run("create table t (a int); insert into t values (1)");
        client.run("set app.tenant = 'mine'");
        let refused = admin
            .query("create database copied template other")
            .unwrap_err()
            .server();
        assert_eq!(
            refused.code, "55006",
            "a client is connected, as without Slackwater"
        );
        // Parked, nothing of it is there; neither is anything of the proxy's own.
        proxy.wait_parked("inside");
        admin.run("create database copied template other");
        admin.run("drop database copied");
        assert_eq!(client.value("show app.tenant"), "mine", "round {round}");
        client.close();
        wait_until("the client's server connection is gone", SOON, || {
            admin.query("drop database other").is_ok()
        });
    }
}

#[test]
fn poolers_pg_restore_with_several_jobs() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut admin = Client::connect(&Target::new(proxy.port(), ADMIN, "app")).unwrap();
    admin.run("create database source owner app");
    let mut client = Client::connect(&Target::new(proxy.port(), APP, "source")).unwrap();
    for n in 0..8 {
        client.run(&format!(
            "create table t{n} as select g as a from generate_series(1, 2000) g; create index on t{n} (a)"
        ));
    }
    client.close();
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(binaries().join(program))
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &proxy.port().to_string(),
                "-U",
                "postgres",
            ])
            .args(arguments)
            .env("PGPASSWORD", ADMIN.1)
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    };
    let path = dump.to_str().unwrap();
    run("pg_dump", &["-Fd", "-j", "3", "-f", path, "source"]);
    run(
        "pg_restore",
        &[
            "-d",
            "postgres",
            "-C",
            "--clean",
            "--if-exists",
            "-j",
            "3",
            path,
        ],
    );
    let mut client = Client::connect(&Target::new(proxy.port(), APP, "source")).unwrap();
    assert_eq!(client.value("select count(*) from t7"), "2000");
}

#[test]
fn poolers_cancels_that_come_early_late_or_broken_hit_nobody() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let send = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let packet = |length: u32, process: i32, secret: &[u8]| {
        let mut out = length.to_be_bytes().to_vec();
        out.extend(80_877_102_i32.to_be_bytes());
        out.extend(process.to_be_bytes());
        out.extend(secret);
        out
    };
    // Of nobody, cut short, too long, of a client that has left.
    let gone = proxy.client("gone");
    let (process, secret) = (gone.process, gone.secret.clone());
    gone.close();
    let open: Vec<_> = [
        packet(16, 1, &[0; 4]),
        packet(16, process, &secret),
        packet(12, process, &[]),
        packet(400, process, &[7; 388]),
        packet(16, process, &[1])[..9].to_vec(),
    ]
    .iter()
    .map(|bytes| send(bytes))
    .collect();
    let mut client = proxy.client("works");
    // At rest, inside a transaction, just before and just after a statement.
    client.cancel();
    client.run("begin");
    client.cancel();
    client.run("select 1");
    client.run("commit");
    for _ in 0..20 {
        client.cancel();
        client.run("select 1");
    }
    drop(open);
}
