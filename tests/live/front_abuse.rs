//! The front door against those who have no business there: cancel keys, time-outs, limits, what strangers try. Numbers are those of the forty cases; `cve_*` are what other proxies got wrong. Of their list
//! CVE-2026-6667 (who may run KILL_CLIENT) has no counterpart here: there is no console, and the admin API
//! demands a token where other machines can reach it (`api::guard` has the tests). CVE-2021-3935 is
//! `case_14_cve_2021_3935_*` in `net::handshake`, CVE-2026-6664 and -6665 are in `net::authentication`, and
//! CVE-2026-6666 is in `backend::connect`.

use crate::front::{must_work, psql};
use crate::support::postgres::{APP, Postgres, SERVICE, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{SOON, wait_for, wait_until};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

#[test]
fn case_08_cancel_keys_are_as_long_as_the_protocol_says_and_are_compared_whole() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    for (minor, length) in [(0, 4), (1, 4), (2, 32), (9999, 32)] {
        let name = format!("minor{minor}");
        let mut client = Client::connect(&proxy.named(&name).speaking(minor)).unwrap();
        assert_eq!(client.secret.len(), length, "3.{minor}");
        client.start("select pg_sleep(600)").unwrap();
        wait_until("the statement runs", SOON, || {
            let sql = format!(
                "select count(*) from pg_stat_activity where application_name = '{name}' and state = 'active'"
            );
            watcher.value(&sql) == "1"
        });
        let right = client.secret.clone();
        for wrong in [
            right[..4.min(length - 1)].to_vec(),
            [&right[..], b"x"].concat(),
            vec![0; 256],
            vec![0; 257],
            Vec::new(),
        ] {
            let answer = cancel(proxy.port(), client.process, &wrong);
            if (4..=256).contains(&wrong.len()) {
                assert_eq!(answer, b"", "{} bytes", wrong.len());
            }
        }
        assert_eq!(
            watcher.value(&format!(
                "select state from pg_stat_activity where application_name = '{name}'"
            )),
            "active"
        );
        client.cancel();
        assert_eq!(client.finish().unwrap_err().server().code, "57014");
    }
}

/// Silence is the answer, and nobody's statement is hit: not that of the session whose number it is, and not of another.
#[test]
fn case_06_a_wrong_secret_and_the_key_of_a_session_that_is_over_hit_nobody() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut watcher = Client::connect(&server.admin()).unwrap();
    let running = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    for minor in [0, 2] {
        let connect = |name: &str| Client::connect(&proxy.named(name).speaking(minor)).unwrap();
        let left = connect("left");
        let (process, secret) = (left.process, left.secret.clone());
        left.close();
        wait_until("it has left", SOON, || {
            proxy.admin().session("left").is_none()
        });
        let (mut one, mut other) = (connect("one"), connect("other"));
        for client in [&mut one, &mut other] {
            client.start("select pg_sleep(600)").unwrap();
        }
        wait_until("both run", SOON, || watcher.value(running) == "2");
        let mut wrong = one.secret.clone();
        *wrong.last_mut().unwrap() ^= 1;
        for (process, secret) in [
            (process, &secret),
            (one.process, &wrong),
            (one.process, &secret),
            (one.process, &other.secret),
            (process, &one.secret),
        ] {
            assert_eq!(cancel(proxy.port(), process, secret), b"");
        }
        assert_eq!(watcher.value(running), "2", "nobody was hit");
        for client in [&mut one, &mut other] {
            client.cancel();
            assert_eq!(client.finish().unwrap_err().server().code, "57014");
        }
    }
}

/// Sends a CancelRequest; what was answered before the close.
fn cancel(port: u16, process: i32, secret: &[u8]) -> Vec<u8> {
    let mut packet = (12 + secret.len() as u32).to_be_bytes().to_vec();
    packet.extend(80_877_102_i32.to_be_bytes());
    packet.extend(process.to_be_bytes());
    packet.extend(secret);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&packet).unwrap();
    until_closed(&mut stream)
}

/// Reads to the end; a reset is one too. Panics if none comes.
fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut heard = Vec::new();
    let mut piece = [0; 512];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return heard,
            Ok(n) => heard.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return heard,
            Err(e) => panic!("not closed: {e}"),
        }
    }
}

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

#[test]
fn case_17_a_stalled_start_up_ends_at_the_login_timeout() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let start_up = [&[0, 0, 0, 27, 0, 3, 0, 0][..], b"user\0nobody_here\0\0"].concat();
    for (first, then) in [
        (&b""[..], &b""[..]),
        (&SSL_REQUEST[..4], b""),
        (&SSL_REQUEST, b""),
        (&SSL_REQUEST, &hello),
        (&hello, b""),
        (&start_up[..20], b""),
        (&start_up, b""),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        stream.write_all(first).unwrap();
        if first == SSL_REQUEST {
            stream.read_exact(&mut [0; 1]).unwrap();
        }
        stream.write_all(then).unwrap();
        until_closed(&mut stream);
    }
    proxy.client("served").run("select 1");
}

/// Whoever sends something again and again has no more time than who sends nothing: it is over long before the last byte.
#[test]
fn case_17_a_start_up_that_trickles_ends_at_the_login_timeout() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut start_up = [
        &[0, 0, 0, 200, 0, 3, 0, 0][..],
        b"user\0app\0application_name\0",
    ]
    .concat();
    start_up.resize(200, b'a');
    let hello = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 189]].concat();
    let long = [&b"p\0\0\0\xc8"[..], &[b'a'; 195]].concat();
    let finished = [&[0, 0, 0, 18, 0, 3, 0, 0][..], b"user\0app\0\0"].concat();
    let nothing: &[u8] = b"";
    std::thread::scope(|scope| {
        for (first, wait_for, trickle) in [
            (nothing, 0, &start_up),
            (nothing, 0, &hello),
            (&SSL_REQUEST, 1, &hello),
            // The first answer has 24 bytes: which ways there are to prove who it is.
            (&finished, 24, &long),
        ] {
            let since = Instant::now();
            let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
            scope.spawn(move || {
                stream.write_all(first).unwrap();
                stream.read_exact(&mut vec![0; wait_for]).unwrap();
                let pause = Some(Duration::from_millis(200));
                stream.set_read_timeout(pause).unwrap();
                let ended = trickle.iter().any(|byte| {
                    let sent = stream.write_all(&[*byte]);
                    // What is said before the close, or nothing yet.
                    let heard = stream.read(&mut [0; 512]);
                    sent.is_err() || !matches!(heard, Err(e) if e.kind() == ErrorKind::WouldBlock)
                });
                assert!(ended, "it was let finish: {trickle:?}");
                let early = since.elapsed() < Duration::from_millis(900);
                assert!(!early, "not for its bytes: {trickle:?}");
            });
        }
    });
    proxy.client("served").run("select 1");
}

#[test]
fn case_17_who_used_the_login_timeout_up_is_named() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"6s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    // Its verifier is known from here on.
    proxy.client("served").run("select 1");
    let start_up = [&[0, 0, 0, 18, 0, 3, 0, 0][..], b"user\0app\0\0"].concat();
    // A client that never proves who it is, and a server that takes 5 s to be found away.
    for (frozen, code) in [(false, "C57014"), (true, "C57P03")] {
        server.freeze(frozen);
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        stream.write_all(&start_up).unwrap();
        let heard = String::from_utf8_lossy(&until_closed(&mut stream)).into_owned();
        assert!(
            heard.contains("SCRAM-SHA-256") && heard.contains(code),
            "{heard}"
        );
        server.freeze(false);
    }
}

#[test]
fn case_19_verifiers_of_any_cost_and_of_another_salt() {
    let server = Postgres::start(&[]);
    let verifier = |iterations: u32, salt: &[u8]| {
        let rounds = std::num::NonZeroU32::new(iterations).unwrap();
        slackwater::auth::ScramVerifier::derive(b"one-secret", salt, rounds)
            .to_text()
            .to_string()
    };
    let mut lines = Vec::new();
    for iterations in [1, 4096, 100_000] {
        let text = verifier(iterations, b"0123456789abcdef");
        server.run(&[&format!(
            "create role cost{iterations} login password '{text}'"
        )]);
        lines.push(format!("cost{iterations} = '{text}'"));
    }
    // The file has another salt than the server: the client gets in here, and Slackwater not there.
    server.run(&["create role salted login password 'one-secret'"]);
    let other = verifier(4096, b"another salt 123");
    lines.push(format!("salted = '{other}'"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    fs::write(&file, lines.join("\n")).unwrap();
    for auth in [
        String::new(),
        format!("users_file = \"{}\"", file.display()),
    ] {
        let options = Options {
            auth: auth.clone(),
            ..Options::default()
        };
        let proxy = Proxy::with(&server, &options);
        let connect = |user: &str, password: &str| {
            Client::connect(&Target::new(proxy.port(), (user, password), "postgres"))
        };
        for iterations in [1, 4096, 100_000] {
            let user = format!("cost{iterations}");
            let mut client = connect(&user, "one-secret").unwrap();
            assert_eq!(client.value("select session_user"), user);
            assert_eq!(connect(&user, "other").unwrap_err().server().code, "28P01");
        }
        let salted = connect("salted", "one-secret");
        if auth.is_empty() {
            salted.unwrap();
        } else {
            let error = salted.unwrap_err().server();
            assert_eq!(
                (&*error.severity, &*error.code),
                ("FATAL", "28P01"),
                "{error:?}"
            );
            // It is the server that said so, and it was asked once; a wrong password never gets that far.
            let refusal = "password authentication failed for user \"salted\"";
            let asked = || server.log().matches(refusal).count();
            assert_eq!((asked(), &*error.message), (1, refusal));
            assert_eq!(
                connect("salted", "wrong").unwrap_err().server().code,
                "28P01"
            );
            assert_eq!(asked(), 1);
        }
    }
}

#[test]
fn addresses_that_fail_too_often_are_refused_unless_they_have_a_session() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "max_login_failures_per_address = 5".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let wrong = || {
        let target = Target::new(proxy.port(), (APP.0, "wrong"), "app");
        Client::connect(&target).unwrap_err().server().code
    };
    let mut session = proxy.client("stays");
    for _ in 0..8 {
        assert_eq!(wrong(), "28P01");
    }
    proxy.client("another").run("select 1");
    session.run("select 1");
    session.close();
    wait_until("nobody is there", SOON, || {
        proxy.admin().sessions().is_empty()
    });
    let refused = wait_for("the address is refused", SOON, || {
        Some(wrong()).filter(|code| code != "28P01")
    });
    assert_eq!(refused, "53300");
    let error = Client::connect(&proxy.app()).unwrap_err().server();
    assert_eq!(error.code, "53300");
    assert!(
        error.text().contains("max_login_failures_per_address"),
        "{error:?}"
    );
    let counted = proxy.admin().metric(
        "slackwater_logins_refused_total",
        "reason=\"address_failures\"",
    );
    assert!(counted >= 2.0, "{counted}");
}

#[test]
fn strangers_that_wait_take_no_place_from_clients() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits:
            "max_clients = 4\nmax_logins = 4\nmax_logins_per_address = 2\nlogin_timeout = \"60s\""
                .to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let connect_from = |address: [u8; 4]| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let from = std::net::SocketAddr::from((address, 0));
        socket.bind(&from.into()).unwrap();
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], proxy.port()));
        socket.connect(&to.into()).unwrap();
        TcpStream::from(socket)
    };
    // All places are taken by those who say nothing, and as many wait.
    let _strangers: Vec<_> = (0..8)
        .map(|n| connect_from([127, 0, 7, n % 2 + 1]))
        .collect();
    wait_until("every place is taken", SOON, || {
        proxy
            .admin()
            .metric("slackwater_logins", "state=\"in_progress\"")
            >= 4.0
    });
    for _ in 0..3 {
        proxy.client("served").run("select 1");
    }
    let ended = proxy
        .admin()
        .metric("slackwater_logins_refused_total", "reason=\"slow\"");
    assert!(ended >= 1.0, "{ended}");
}

#[test]
fn cve_2025_2291_auth_query_does_not_let_an_expired_password_in() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create role expired login password 'expired-secret' valid until '2020-01-01'",
        "create role lasting login password 'lasting-secret' valid until '2120-01-01'",
    ]);
    let mut admin = Client::connect(&server.admin()).unwrap();
    admin.run("grant connect on database app to expired, lasting");
    // As pgbouncer's: a name and a verifier, and nothing of an end.
    let proxy = by_query(
        &server,
        "select usename, passwd from pg_catalog.pg_shadow where usename = $1",
    );
    let connect = |user: &str, password: &str| {
        Client::connect(&Target::new(proxy.port(), (user, password), "app"))
    };
    let error = connect("expired", "expired-secret").unwrap_err().server();
    assert_eq!(error.code, "28P01", "{error:?}");
    assert_eq!(
        error.message,
        "password authentication failed for user \"expired\""
    );
    // Not even where the server itself would not look.
    fs::write(
        server.data_dir().join("pg_hba.conf"),
        format!(
            "host all {} all scram-sha-256\nhost all all all trust\n",
            SERVICE.0
        ),
    )
    .unwrap();
    admin.run("select pg_reload_conf()");
    connect("lasting", "lasting-secret").unwrap();
    let error = connect("expired", "expired-secret").unwrap_err().server();
    assert_eq!(error.code, "28P01", "{error:?}");
}

fn by_query(server: &Postgres, query: &str) -> Proxy {
    let options = Options {
        auth: format!("auth_query = \"{query}\""),
        ..Options::default()
    };
    Proxy::with(server, &options)
}

#[test]
fn cve_2025_12819_no_setting_of_a_client_reaches_the_auth_query() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create role other login password 'other-secret'",
        "create schema evil",
        "grant all on schema evil to public",
    ]);
    let mut admin = Client::connect(&server.admin().in_database("postgres")).unwrap();
    for sql in [
        "create function public.lookup(name) returns table (n name, v text) language sql as \
         'select usename, passwd from pg_catalog.pg_shadow where usename = $1'",
        "create schema evil",
        "create table public.called (by text)",
        "grant all on table public.called to public",
        "create function evil.lookup(name) returns table (n name, v text) language sql as \
         'insert into public.called values (current_user); \
          select usename, passwd from pg_catalog.pg_shadow where usename = ''app'''",
    ] {
        admin.run(sql);
    }
    let proxy = by_query(&server, "select n, v from public.lookup($1)");
    for (name, value) in [
        ("search_path", "evil"),
        ("options", "-c search_path=evil"),
        ("options", "-c role=app -c session_preload_libraries=evil"),
    ] {
        let target = Target::new(proxy.port(), ("other", APP.1), "app").with(name, value);
        let error = Client::connect(&target).unwrap_err().server();
        assert_eq!(error.code, "28P01", "{name}={value}: {error:?}");
    }
    let hostile = proxy.app().with("search_path", "evil");
    let mut client = Client::connect(&hostile).unwrap();
    assert_eq!(client.value("show search_path"), "evil");
    assert_eq!(admin.value("select count(*) from public.called"), "0");
}

#[test]
fn no_secret_is_in_the_log_whatever_is_logged() {
    let server = Postgres::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.toml");
    fs::write(&users, format!("app = \"{}\"\n", APP.1)).unwrap();
    let mut admin = Client::connect(&server.admin()).unwrap();
    let verifier = admin.value("select rolpassword from pg_authid where rolname = 'app'");
    for auth in [
        String::new(),
        "method = \"password\"".to_owned(),
        format!("users_file = \"{}\"", users.display()),
    ] {
        let options = Options {
            auth,
            environment: vec![("SLACKWATER_LOG".to_owned(), "trace".to_owned())],
            ..Options::default()
        };
        let proxy = Proxy::with(&server, &options);
        must_work(&psql(proxy.port(), "localhost", "sslmode=require"));
        let wrong = Command::new(binaries().join("psql"))
            .args(["-XAtc", "select 1"])
            .arg(format!(
                "host=127.0.0.1 port={} user=app dbname=app sslmode=require",
                proxy.port()
            ))
            .env("PGPASSWORD", "a-wrong-guess")
            .output()
            .unwrap();
        assert!(!wrong.status.success());
        let log = proxy.log();
        assert!(
            log.contains("TRACE") || log.contains("DEBUG"),
            "it is verbose: {log}"
        );
        let (_, keys) = verifier.rsplit_once('$').unwrap();
        let (stored, signing) = keys.split_once(':').unwrap();
        for secret in [APP.1, SERVICE.1, "a-wrong-guess", stored, signing] {
            let bytes = format!("{:?}", secret.as_bytes());
            let bytes = bytes.trim_matches(['[', ']']);
            assert!(!log.contains(secret), "{secret} is in the log");
            assert!(!log.contains(bytes), "{secret} is in the log, byte by byte");
        }
    }
}
