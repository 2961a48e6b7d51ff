//! Real clients at the front: the programs that come with the servers.

use crate::front::Front;
use crate::mysql::Version;
use crate::server::{Server, run};
use slackwater::transport::ListenTls;
use std::process::{Command, Output};

/// Runs a client program to its end, off the runtime that serves it.
async fn client(kind: Version, arguments: Vec<String>) -> Output {
    let program = match kind {
        Version::Mariadb1011 => "/usr/bin/mariadb".into(),
        Version::Mariadb118 => kind.binaries().unwrap().expect("fetched").join("mariadb"),
        Version::Mysql97 => kind.binaries().unwrap().expect("fetched").join("mysql"),
    };
    let run = move || {
        Command::new(program)
            .arg("--no-defaults")
            .args(arguments)
            .output()
    };
    let done = tokio::task::spawn_blocking(run)
        .await
        .expect("not cancelled");
    done.expect("the program runs")
}

/// What it says, or its error.
async fn ask(kind: Version, front: &Front, password: &str, sql: &str, more: &[&str]) -> String {
    let mut arguments = vec![
        "--host=127.0.0.1".to_owned(),
        format!("--port={}", front.port),
        "--protocol=tcp".to_owned(),
        "--skip-column-names".to_owned(),
        "--batch".to_owned(),
        format!("--execute={sql}"),
    ];
    if !password.is_empty() {
        arguments.push(format!("--password={password}"));
    }
    if !more.iter().any(|one| one.starts_with("--user")) {
        arguments.push("--user=app".to_owned());
    }
    arguments.extend(more.iter().map(|&one| one.to_owned()));
    let output = client(kind, arguments).await;
    let said = if output.status.success() {
        output.stdout
    } else {
        output.stderr
    };
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let warning =
        "mysql: [Warning] Using a password on the command line interface can be insecure.\n";
    said.strip_prefix(warning).unwrap_or(&said).to_owned()
}

/// How each program says that it wants no TLS, and that it wants it and the certificate checked.
fn tls_options(kind: Version, front: &Front) -> [Vec<String>; 3] {
    let ca = format!("--ssl-ca={}", front.ca());
    let own = |options: &[&str]| options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>();
    match kind {
        Version::Mysql97 => [
            own(&["--ssl-mode=DISABLED", "--get-server-public-key"]),
            own(&["--ssl-mode=REQUIRED"]),
            own(&["--ssl-mode=VERIFY_IDENTITY", &ca]),
        ],
        Version::Mariadb1011 => [
            own(&["--skip-ssl"]),
            own(&["--ssl"]),
            own(&["--ssl-verify-server-cert", &ca]),
        ],
        Version::Mariadb118 => [
            own(&["--skip-ssl"]),
            own(&["--ssl", "--skip-ssl-verify-server-cert"]),
            own(&["--ssl-verify-server-cert", &ca]),
        ],
    }
}

const ALL: [Version; 3] = [Version::Mariadb1011, Version::Mariadb118, Version::Mysql97];

#[tokio::test(flavor = "multi_thread")]
async fn zstd_is_not_offered_where_servers_are_mariadb() {
    if Version::Mysql97.binaries().is_err() {
        return;
    }
    let Some(server) = Server::start(Version::Mariadb1011, &[]) else {
        return;
    };
    let mut root = server.root().await;
    run(
        &mut root,
        "CREATE USER app@localhost IDENTIFIED BY 'pencil'",
    )
    .await;
    let front = Front::start(&server, &mut root, ListenTls::Prefer).await;
    // Where it goes on it fails later: this program has lost that plugin.
    for (algorithms, expected) in [
        ("zstd", "compression algorithm"),
        ("zstd,zlib", "mysql_native_password"),
        ("zstd,uncompressed", "mysql_native_password"),
    ] {
        let algorithms = format!("--compression-algorithms={algorithms}");
        let sql = "SELECT CURRENT_USER()";
        let said = ask(Version::Mysql97, &front, "pencil", sql, &[&algorithms]).await;
        assert!(said.contains(expected), "{algorithms}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_log_in_with_and_without_tls_and_compression() {
    for kind in ALL {
        let Some(server) = Server::start(kind, &[]) else {
            continue;
        };
        let mut root = server.root().await;
        run(&mut root, "CREATE DATABASE shop").await;
        run(
            &mut root,
            "CREATE USER app@localhost IDENTIFIED BY 'pencil'",
        )
        .await;
        run(&mut root, "GRANT ALL ON shop.* TO app@localhost").await;
        let front = Front::start(&server, &mut root, ListenTls::Prefer).await;
        let sql = "SELECT CURRENT_USER(), DATABASE(), LENGTH(REPEAT('x', 300000)); SELECT REPEAT('x', 100000)";
        for options in tls_options(kind, &front) {
            // What it is told to use and can't, MySQL's program does not go on without.
            let zstd: &[&[&str]] = match kind {
                Version::Mysql97 => &[
                    &["--compression-algorithms=zstd"],
                    &[
                        "--compression-algorithms=zstd",
                        "--zstd-compression-level=1",
                    ],
                    &[
                        "--compression-algorithms=zstd",
                        "--zstd-compression-level=22",
                    ],
                    &["--compression-algorithms=zlib,zstd,uncompressed"],
                ],
                Version::Mariadb1011 | Version::Mariadb118 => &[],
            };
            for compress in [&[][..], &["--compress"]].iter().chain(zstd) {
                let mut more: Vec<&str> = options.iter().map(String::as_str).collect();
                more.extend(*compress);
                more.push("--database=shop");
                let said = ask(kind, &front, "pencil", sql, &more).await;
                let expected = format!("app@localhost\tshop\t300000\n{}", "x".repeat(100_000));
                assert!(
                    said == expected,
                    "{kind:?} {more:?}: {}",
                    &said[..said.len().min(300)]
                );
                let said = ask(kind, &front, "Pencil", sql, &more).await;
                let denied = "ERROR 1045 (28000): Access denied for user 'app'@'127.0.0.1' (using password: YES)";
                assert!(said.ends_with(denied), "{kind:?} {more:?}: {said}");
            }
        }
        let plain = &tls_options(kind, &front)[0];
        let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        // An unknown user reads the same; the cluster may stand in front; other names with a slash are names.
        for (user, expected) in [
            (
                "--user=nobody",
                "Access denied for user 'nobody'@'127.0.0.1' (using password: YES)",
            ),
            ("--user=shop/app", "app@localhost"),
            (
                "--user=elsewhere/app",
                "Access denied for user 'elsewhere/app'@'127.0.0.1' (using password: YES)",
            ),
        ] {
            let more = [&plain[..], &[user]].concat();
            let said = ask(kind, &front, "pencil", "SELECT CURRENT_USER()", &more).await;
            assert!(said.ends_with(expected), "{kind:?} {user}: {said}");
        }
        let said = ask(kind, &front, "", "SELECT 1", &plain).await;
        assert!(said.ends_with("(using password: NO)"), "{kind:?}: {said}");
        let nowhere = [&plain[..], &["--database=nowhere"]].concat();
        let said = ask(kind, &front, "pencil", "SELECT 1", &nowhere).await;
        assert!(said.contains("ERROR 10"), "the server's own words: {said}");
        let (hashes, passwords) = front.kinds();
        assert_eq!(
            hashes == 0,
            kind == Version::Mysql97,
            "{hashes} {passwords}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_39_tls_is_demanded_where_it_is_configured() {
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
        let front = Front::start(&server, &mut root, ListenTls::Require).await;
        let [plain, encrypted, _] = tls_options(kind, &front);
        let words = |options: &'_ [String]| {
            options
                .iter()
                .map(String::as_str)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (plain, encrypted) = (words(&plain), words(&encrypted));
        let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        let encrypted: Vec<&str> = encrypted.iter().map(String::as_str).collect();
        let said = ask(kind, &front, "pencil", "SELECT 1", &plain).await;
        assert!(said.contains("ERROR 3159 (HY000)"), "{kind:?}: {said}");
        assert_eq!(
            ask(kind, &front, "pencil", "SELECT 1", &encrypted).await,
            "1"
        );
    }
}

/// MariaDB's clients since 11.4 believe a certificate that nobody signed when the server knows the password.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_proven_by_the_password() {
    let kind = Version::Mariadb118;
    let Some(server) = Server::start(kind, &[]) else {
        return;
    };
    let mut root = server.root().await;
    run(
        &mut root,
        "CREATE USER app@localhost IDENTIFIED BY 'pencil'",
    )
    .await;
    let front = Front::start(&server, &mut root, ListenTls::Prefer).await;
    // Neither a CA nor an option about TLS.
    let said = ask(
        kind,
        &front,
        "pencil",
        "SHOW STATUS LIKE 'Ssl_cipher'",
        &["--ssl-verify-server-cert"],
    )
    .await;
    assert!(said.starts_with("Ssl_cipher"), "{said}");
    // Who has no password is proven nothing, and the client does not believe the certificate.
    run(&mut root, "CREATE USER open@localhost").await;
    let said = ask(
        kind,
        &front,
        "",
        "SELECT 1",
        &["--user=open", "--ssl-verify-server-cert"],
    )
    .await;
    assert!(said.contains("certificate"), "{said}");
}
