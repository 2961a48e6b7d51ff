//! Log-ins to real servers, and of real clients, of MariaDB and MySQL.

#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail that way")]

mod clients;
mod front;
#[path = "../common/guard.rs"]
mod guard;
#[path = "../common/mysql.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod mysql;
#[path = "../common/ports.rs"]
mod ports;
mod server;

use mysql::Version;
use server::{SOCKET, Server, log_in, log_in_with, run, soon};
use slackwater::auth::mysql::{Credential, Password, native};
use slackwater::backend::mysql::connect::{ConnectError, Kill, Login, Request, kill};
use slackwater::backend::mysql::exec::{self, ExecError};
use slackwater::backend::mysql::started::started_at;
use slackwater::backend::mysql::verifiers::Verifiers;
use slackwater::transport::{ServerTls, SocketConfig, proxy_header};
use slackwater::wire::mysql::capabilities::Capabilities;
use slackwater::wire::mysql::handshake::{Family, put_attribute};

const ALL: [Version; 3] = [Version::Mariadb1011, Version::Mariadb118, Version::Mysql97];

fn password(text: &str) -> Credential {
    Credential::Password(Password::new(text.as_bytes()))
}

#[tokio::test]
async fn every_plugin_on_every_transport() {
    for kind in ALL {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let mut root = server.root().await;
        let own = Request::own(b"app", None);
        let mut methods = vec![("mysql_native_password", "native")];
        if kind == Version::Mysql97 {
            methods = vec![("caching_sha2_password", "sha2")];
        } else if exec::query(&mut root, "INSTALL SONAME 'auth_ed25519'", soon())
            .await
            .is_ok()
        {
            methods.push(("ed25519", "ed25519"));
        }
        assert!(kind != Version::Mariadb1011 || methods.len() == 2);
        for (method, name) in methods {
            run(&mut root, "DROP USER IF EXISTS app@'%', app@localhost").await;
            for host in ["%", "localhost"] {
                let sql = match kind {
                    Version::Mysql97 => {
                        format!("CREATE USER app@'{host}' IDENTIFIED WITH {method} BY 'pencil'")
                    }
                    _ => format!(
                        "CREATE USER app@'{host}' IDENTIFIED VIA {method} USING PASSWORD('pencil')"
                    ),
                };
                run(&mut root, &sql).await;
            }
            for endpoint in [
                server.tcp(ServerTls::Disable),
                server.tcp(ServerTls::Prefer),
                server.socket(),
            ] {
                for cold in [true, false] {
                    if cold && kind == Version::Mysql97 {
                        run(&mut root, "FLUSH PRIVILEGES").await;
                    }
                    let what = format!("{kind:?} {name} {endpoint:?} cold {cold}");
                    let done = log_in(&endpoint, &own, Some(&password("pencil"))).await;
                    let mut app = done.unwrap_or_else(|error| panic!("{what}: {error}"));
                    let id = run(&mut app, "SELECT CONNECTION_ID()").await;
                    assert_eq!(id.scalar(), Some(app.connection_id.to_string()), "{what}");
                    app.end().await;
                }
                let error = log_in(&endpoint, &own, Some(&password("Pencil"))).await;
                let Err(ConnectError::Server { error, payload }) = error else {
                    panic!("{kind:?} {name}: {error:?}");
                };
                assert_eq!((error.code, error.state), (1045, Some(*b"28000")));
                assert_eq!(payload[0], 0xff);
            }
            let stage1 = Credential::Native(native::stage1(b"pencil"));
            let done = log_in(&server.tcp(ServerTls::Disable), &own, Some(&stage1)).await;
            if name == "native" {
                drop(done.expect("the hash alone"));
            } else {
                let text = done.expect_err("only the hash").to_string();
                assert!(text.contains("only has the hash"), "{text}");
            }
        }
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one server for all of it")]
async fn what_a_connection_is_asked_for_and_tells() {
    for kind in ALL {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let mut root = server.root().await;
        run(&mut root, "CREATE DATABASE shop").await;
        let is_mysql = kind == Version::Mysql97;
        assert_eq!(root.version.family == Family::MySql, is_mysql);
        let mut attributes = bytes::BytesMut::new();
        put_attribute(&mut attributes, b"first", b"1");
        put_attribute(&mut attributes, b"second", &[b'x'; 300]);
        let request = Request {
            database: Some("shop".into()),
            capabilities: root.offer.capabilities.without(Capabilities::INTERACTIVE),
            attributes: attributes.freeze(),
            charset: 8,
            ..Request::own(b"root", None)
        };
        let mut one = log_in(&server.socket(), &request, Some(&password("")))
            .await
            .expect("logged in");
        assert!(
            one.capabilities
                .contains(Capabilities::SESSION_TRACK | Capabilities::MULTI_STATEMENTS)
        );
        assert_eq!(
            one.capabilities.contains(Capabilities::MARIADB_STMT_BULK),
            !is_mysql
        );
        let told = run(
            &mut one,
            "SELECT DATABASE(), @@character_set_client, NULL, ''",
        )
        .await;
        let row: Vec<_> = told.rows[0].iter().map(|v| v.as_deref()).collect();
        assert_eq!(row, [Some(&b"shop"[..]), Some(b"latin1"), None, Some(b"")]);
        assert_eq!(told.columns.len(), 4);
        if is_mysql {
            let sql = "SELECT GROUP_CONCAT(attr_name, LENGTH(attr_value) ORDER BY attr_name) FROM performance_schema.session_account_connect_attrs WHERE processlist_id = CONNECTION_ID()";
            assert_eq!(
                run(&mut one, sql).await.scalar().as_deref(),
                Some("first1,second300")
            );
        }
        // Several results: the first is told, and the connection stays in step.
        let two = run(&mut one, "SELECT 1; SELECT 2; DO 0").await;
        assert_eq!(two.scalar().as_deref(), Some("1"));
        run(&mut one, "CREATE TABLE t (a INT)").await;
        assert_eq!(
            run(&mut one, "INSERT INTO t VALUES (1), (2)")
                .await
                .affected,
            2
        );
        let error = exec::query(&mut one, "SELECT nonsense", soon())
            .await
            .expect_err("no such column");
        assert!(
            !error.is_fatal() && error.to_string().contains("1054"),
            "{error}"
        );
        // With EOF packets.
        let old = Request {
            capabilities: request.capabilities.without(Capabilities::DEPRECATE_EOF),
            ..request.clone()
        };
        let mut old = log_in(&server.socket(), &old, Some(&password("")))
            .await
            .expect("logged in");
        assert_eq!(run(&mut old, "SELECT a FROM t").await.rows.len(), 2);
        assert_eq!(
            run(&mut old, "SELECT REPEAT('x', 1000000)")
                .await
                .scalar()
                .map(|s| s.len()),
            Some(1_000_000)
        );
        // What it can't do is not promised.
        let more = Request {
            capabilities: Capabilities::MARIADB_STMT_BULK,
            ..request.clone()
        };
        let done = log_in(&server.socket(), &more, Some(&password(""))).await;
        assert_eq!(
            matches!(done, Err(ConnectError::Capabilities { .. })),
            is_mysql
        );
        let elsewhere = Request {
            database: Some("nowhere".into()),
            ..request.clone()
        };
        let done = log_in(&server.socket(), &elsewhere, Some(&password(""))).await;
        assert!(matches!(done, Err(ConnectError::Server { error, .. }) if error.code == 1049));
    }
}

#[tokio::test]
async fn a_start_is_known_by_every_connection_and_no_other_start() {
    for kind in ALL {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let Some(server) = Server::start(kind, &[]) else {
                return;
            };
            let mut root = server.root().await;
            run(
                &mut root,
                "CREATE USER app@localhost IDENTIFIED BY 'pencil'",
            )
            .await;
            let first = started_at(&mut root, soon()).await.expect("told");
            assert!(!seen.contains(&first), "{first}");
            // Another account, seconds later, with a clock of its own.
            for _ in 0..3 {
                let own = Request::own(b"app", None);
                let mut app = log_in(&server.socket(), &own, Some(&password("pencil")))
                    .await
                    .expect("in");
                assert_eq!(started_at(&mut app, soon()).await.expect("told"), first);
                run(&mut app, "SET timestamp = 1000000000").await;
                assert_eq!(started_at(&mut app, soon()).await.expect("told"), first);
                tokio::time::sleep(std::time::Duration::from_millis(700)).await;
            }
            seen.push(first);
        }
    }
}

#[tokio::test]
async fn case_31_what_runs_is_killed_by_the_same_user() {
    for kind in ALL {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let mut root = server.root().await;
        run(
            &mut root,
            "CREATE USER app@localhost IDENTIFIED BY 'pencil'",
        )
        .await;
        let (endpoint, own, secret) = (
            server.socket(),
            Request::own(b"app", None),
            password("pencil"),
        );
        let mut app = log_in(&endpoint, &own, Some(&secret)).await.expect("in");
        let login = Login {
            endpoint: &endpoint,
            socket: &SOCKET,
            request: &own,
            credential: Some(&secret),
            client: None,
            deadline: soon(),
        };
        let id = app.connection_id;
        let (slept, killed) = tokio::join!(
            exec::query(
                &mut app,
                "SELECT SLEEP(15) FROM (SELECT 1 UNION SELECT 2) x",
                soon()
            ),
            async {
                let running = format!(
                    "SELECT COUNT(*) FROM information_schema.processlist WHERE id = {id} AND info LIKE '%SLEEP%'"
                );
                while run(&mut root, &running).await.scalar().as_deref() != Some("1") {}
                kill(&login, id, Kill::Query).await
            }
        );
        killed.expect("killed");
        // MySQL's SLEEP says so in its result.
        match slept {
            Err(ExecError::Server(error)) => assert_eq!(error.code, 1317),
            Ok(outcome) => assert_eq!(outcome.scalar().as_deref(), Some("1")),
            Err(other) => panic!("{other}"),
        }
        run(&mut app, "DO 0").await;
        kill(&login, id, Kill::Connection).await.expect("killed");
        let gone = exec::query(&mut app, "DO 0", soon())
            .await
            .expect_err("ended");
        assert!(gone.is_fatal(), "{gone}");
        kill(&login, 4_000_000, Kill::Query)
            .await
            .expect("nobody there is fine");
    }
}

#[tokio::test]
async fn a_server_that_takes_no_proxy_header_is_told_of() {
    for kind in ALL {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let mut root = server.root().await;
        run(&mut root, "CREATE USER told@'%' IDENTIFIED BY 'pencil'").await;
        let secret = password("pencil");
        let own = Request::own(b"told", None);
        let words = match kind {
            Version::Mysql97 => "Got packets out of order",
            Version::Mariadb1011 | Version::Mariadb118 => {
                "Proxy header is not accepted from 127.0.0.1"
            }
        };
        for version in [proxy_header::Version::V1, proxy_header::Version::V2] {
            let socket = SocketConfig {
                proxy_protocol: Some(version),
                ..SOCKET
            };
            for tls in [ServerTls::Disable, ServerTls::Prefer] {
                let endpoint = server.tcp(tls);
                let failed = log_in_with(&socket, &endpoint, &own, Some(&secret)).await;
                let text = failed.expect_err("refused").to_string();
                assert!(text.contains("server_proxy_protocol"), "{kind:?}: {text}");
                // Inside a handshake of TLS they can't be read.
                let readable = tls == ServerTls::Disable;
                assert!(!readable || text.contains(words), "{kind:?}: {text}");
                log_in(&endpoint, &own, Some(&secret)).await.expect("in");
            }
        }
    }
}

#[tokio::test]
async fn verifiers_come_from_the_account_that_the_server_chooses() {
    for kind in ALL {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let mut root = server.root().await;
        run(&mut root, "DROP USER app@'%'").await;
        for (host, secret) in [("%", "far"), ("localhost", "near"), ("10.%", "other")] {
            run(
                &mut root,
                &format!("CREATE USER app@'{host}' IDENTIFIED BY '{secret}'"),
            )
            .await;
        }
        run(&mut root, "CREATE ROLE role1").await;
        let family = root.version.family;
        let verifiers = Verifiers::server();
        let mut find = async |user: &str| {
            let root = &mut root;
            verifiers
                .find(family, user, None, async move |sql| {
                    exec::query(root, sql, soon()).await
                })
                .await
                .expect("answered")
        };
        let known = find("app").await.expect("an account");
        let account = known.account.expect("of the server");
        assert_eq!(account.host, "localhost");
        let verifier = account.verifier.expect("usable");
        assert!(verifier.matches(b"near") && !verifier.matches(b"far"));
        assert!(find("nobody").await.is_none() || kind != Version::Mysql97);
        if kind != Version::Mysql97 {
            assert!(find("role1").await.is_none());
        }
        let odd = find("o'hara\\").await;
        assert!(odd.is_none(), "{odd:?}");
    }
}

#[tokio::test]
async fn case_38_a_full_server_says_so_before_anything_else() {
    let Some(server) = Server::start(Version::Mariadb1011, &["max-connections=10"]) else {
        return;
    };
    let mut root = server.root().await;
    run(
        &mut root,
        "CREATE USER app@localhost IDENTIFIED BY 'pencil'",
    )
    .await;
    let own = Request::own(b"app", None);
    let mut held = Vec::new();
    let error = loop {
        match log_in(&server.socket(), &own, Some(&password("pencil"))).await {
            Ok(one) => held.push(one),
            Err(error) => break error,
        }
    };
    assert!(error.may_pass(), "{error}");
    assert!(matches!(error, ConnectError::Server { ref error, .. } if error.code == 1040));
    assert!(held.len() >= 8, "{}", held.len());
}
