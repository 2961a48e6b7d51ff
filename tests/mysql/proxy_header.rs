//! PROXY headers towards servers: MariaDB sees each session come from its client, on each of its server connections.

use crate::faults::proven;
use crate::support::client::{Client, code};
use crate::support::proxy::{Options, Proxy};
use crate::support::raw::Raw;
use crate::support::server::{Kind, SERVICE, Server};
use crate::support::{SOON, wait_until};

/// Lets this machine say whom it connects. Its own connections need no header.
const TAKES: &str = "--proxy-protocol-networks=127.0.0.1";

/// A user of one address, who is somebody else at the proxy's.
const NINE: (&str, &str) = ("nine", "nine-secret");
const ACCOUNTS: [&str; 8] = [
    "CREATE USER nine@'127.0.0.9' IDENTIFIED BY 'nine-secret'",
    "GRANT ALL ON app.* TO nine@'127.0.0.9'",
    "GRANT helper TO nine@'127.0.0.9'",
    "CREATE USER nine@'127.0.0.1' IDENTIFIED BY 'another-secret'",
    "GRANT ALL ON app.* TO nine@'127.0.0.1'",
    "DROP USER raw@'%'",
    "CREATE USER raw@'127.0.0.9' IDENTIFIED BY ''",
    "GRANT ALL ON app.* TO raw@'127.0.0.9'",
];

fn options(version: &str) -> Options {
    Options {
        provider: format!("server_proxy_protocol = \"{version}\""),
        sessions: "snapshot_after = \"200ms\"".to_owned(),
        ..Options::default()
    }
}

/// Where the server sees connections of this user come from, without ports.
fn hosts(admin: &mut Client, user: &str) -> Vec<String> {
    let sql = format!(
        "SELECT SUBSTRING_INDEX(HOST, ':', 1) FROM information_schema.processlist WHERE USER = '{user}'"
    );
    let hosts = admin.rows(&sql);
    hosts.lines().map(str::to_owned).collect()
}

#[test]
fn mariadb_sees_the_clients_address_on_each_server_connection_of_a_session() {
    if Kind::wanted().is_mysql() {
        return;
    }
    for version in ["v1", "v2"] {
        let mut server = Server::start(&[TAKES]);
        server.run(&ACCOUNTS);
        let proxy = Proxy::with(&server, &options(version));
        let nine = proxy.app().user(NINE).at("127.0.0.9");
        let mut client = Client::to(&nine.named("nine"));
        client.run("SET @kept = 7");
        let seen = "SELECT CONCAT_WS(' ', USER(), CURRENT_USER())";
        assert_eq!(client.value(seen), "nine@127.0.0.9 nine@127.0.0.9");
        let own_port = "SELECT SUBSTRING_INDEX(HOST, ':', -1) FROM information_schema.processlist WHERE ID = CONNECTION_ID()";
        let port = client.value(own_port);
        let before = client.value("SELECT CONNECTION_ID()");
        proxy.admin().swap();
        assert_ne!(client.value("SELECT CONNECTION_ID()"), before, "it moved");
        assert_eq!(client.value(seen), "nine@127.0.0.9 nine@127.0.0.9");
        assert_eq!(client.value(own_port), port, "the client's own");
        assert_eq!(client.value("SELECT @kept"), "7");
        let mut admin = Client::to(&server.admin());
        assert_eq!(hosts(&mut admin, "nine"), ["127.0.0.9"]);
        let own = hosts(&mut admin, SERVICE.0);
        assert!(
            !own.is_empty() && own.iter().all(|h| h == "127.0.0.1"),
            "{own:?}"
        );

        // A server that comes back is logged in to with it.
        proven(&proxy, "nine");
        server.kill();
        server.run_again();
        assert_eq!(client.value(seen), "nine@127.0.0.9 nine@127.0.0.9");
        assert_eq!(client.value("SELECT @kept"), "7");

        // What runs for a client that has left is killed by a log-in as its user, who is nobody elsewhere.
        let mut leaves = Raw::from("127.0.0.9", b"", proxy.port(), "leaves");
        leaves.send(0, b"\x03SELECT SLEEP(1000)");
        let mut admin = Client::to(&server.admin());
        let mut asleep = || {
            admin.value("SELECT COUNT(*) FROM information_schema.processlist WHERE USER = 'raw' AND STATE = 'User sleep'")
        };
        wait_until("it sleeps", SOON, || asleep() == "1");
        drop(leaves);
        wait_until("its statement ends", SOON, || asleep() == "0");

        // Who is told apart by address is told apart at the proxy.
        let elsewhere = proxy.app().user(NINE);
        for from in ["127.0.0.1", "127.0.0.8"] {
            let error = Client::connect(&elsewhere.at(from)).err().expect("denied");
            assert_eq!(code(&error), 1045, "{from}: {error}");
        }
        let another = proxy.app().user(("nine", "another-secret"));
        let mut another = Client::to(&another.at("127.0.0.1"));
        assert_eq!(another.value("SELECT CURRENT_USER()"), "nine@127.0.0.1");
    }
}

#[test]
fn mariadb_sees_whom_a_load_balancer_connects() {
    if Kind::wanted().is_mysql() {
        return;
    }
    let server = Server::start(&[TAKES]);
    let proxy = Proxy::with(
        &server,
        &Options {
            listen: "proxy_protocol = [\"127.0.0.1\"]".to_owned(),
            ..options("v2")
        },
    );
    let header = b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 3306\r\n";
    let mut behind = Raw::from("127.0.0.1", header, proxy.port(), "behind");
    for _ in 0..2 {
        assert_eq!(behind.value("SELECT USER()"), "raw@10.1.2.3");
        proxy.admin().swap();
    }
    // It does not know itself, or is a client of its own.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut own = Raw::from("127.0.0.1", header, proxy.port(), "own");
        assert_eq!(own.value("SELECT USER()"), "raw@127.0.0.1");
    }
}

#[test]
fn a_server_that_takes_no_header_any_more_is_told_of_in_the_log() {
    if Kind::wanted().is_mysql() {
        return;
    }
    let server = Server::start(&[TAKES]);
    let proxy = Proxy::with(&server, &options("v2"));
    Client::to(&proxy.app());
    server.run(&["SET GLOBAL proxy_protocol_networks = ''"]);
    let error = Client::connect(&proxy.app()).err().expect("refused");
    assert_eq!(code(&error), 1105, "{error}");
    let log = proxy.log();
    let words = "Proxy header is not accepted from 127.0.0.1";
    let line = log.lines().find(|line| line.contains(words));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.contains("server_proxy_protocol") && line.contains(&server.address()),
        "{line}"
    );
}
