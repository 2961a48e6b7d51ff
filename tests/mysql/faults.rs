//! Servers that are killed, hang, are full or close by themselves: safety rules 6, 14, 15, 16 and 28.

use crate::support::client::{Client, code};
use crate::support::proxy::{Options, Proxy};
use crate::support::server::{Kind, Server};
use crate::support::{SOON, sized, wait_until};
use std::fs;
use std::thread::{self, JoinHandle};

/// Sessions are probed soon.
pub(crate) fn quick() -> Options {
    Options {
        sessions: "snapshot_after = \"200ms\"".to_owned(),
        ..Options::default()
    }
}

/// Waits until the session of this name is known to hold nothing that would be lost.
pub(crate) fn proven(proxy: &Proxy, name: &str) {
    wait_until("the session is probed", SOON, || {
        let session = proxy.admin().session(name);
        session.is_some_and(|s| s["movable"] == true && s["state"] == "at_rest")
    });
}

/// Runs a statement beside the test.
fn runs(mut client: Client, sql: &str) -> JoinHandle<(Client, Result<(), mysql::Error>)> {
    let sql = sql.to_owned();
    thread::spawn(move || {
        let outcome = client.try_run(&sql);
        (client, outcome)
    })
}

/// The next request is told this, and the connection is closed.
fn told(client: &mut Client, number: u16, text: &str) {
    let error = client.try_run("SELECT 1").unwrap_err();
    assert_eq!(code(&error), number, "{error}");
    assert!(error.to_string().contains(text), "{error}");
    let after = client.try_run("SELECT 1").unwrap_err();
    assert_eq!(code(&after), 0, "closed: {after}");
}

const TABLE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS app.t (a int) ENGINE=InnoDB",
    "DELETE FROM app.t",
];

#[test]
fn safety_14_mysql_sessions_at_rest_do_not_notice_that_their_server_was_killed() {
    let mut server = Server::start(&[]);
    let proxy = Proxy::with(&server, &quick());
    let mut clients: Vec<_> = (0..sized(12, 40))
        .map(|n| (n, proxy.client(&format!("c{n}"))))
        .collect();
    let mut statements = Vec::new();
    for (n, client) in &mut clients {
        client.run(&format!("SET @number = {n}"));
        client.run("PREPARE kept FROM 'SELECT 7'");
        statements.push(client.prepare("SELECT ? + @number"));
    }
    for _ in 0..sized(2, 20) {
        let mut locked = proxy.client("locked");
        locked.run("SELECT GET_LOCK('mine', 1)");
        for (n, _) in &clients {
            proven(&proxy, &format!("c{n}"));
        }
        server.kill();
        // A request during the outage waits.
        let (first, mut waiting) = clients.remove(0);
        let waits = thread::spawn(move || {
            let number = waiting.value("SELECT @number");
            (waiting, number)
        });
        told(&mut locked, 1053, "the session's state could not be proven");
        server.run_again();
        let (waiting, number) = waits.join().unwrap();
        assert_eq!(number, first.to_string());
        clients.insert(0, (first, waiting));
        for ((n, client), statement) in clients.iter_mut().zip(&statements) {
            assert_eq!(client.value("SELECT @number"), n.to_string());
            assert_eq!(client.value("EXECUTE kept"), "7");
            let sum: Option<i64> = client.execute(statement, (100,)).unwrap();
            assert_eq!(sum, Some(i64::from(*n) + 100));
        }
    }
}

#[test]
fn safety_14_mysql_a_local_server_that_was_killed_is_started_again() {
    let proxy = Proxy::local(&quick());
    let mut client = proxy.client("rests");
    for round in 0..sized(2, 20) {
        client.run(&format!("SET @round = {round}"));
        proven(&proxy, "rests");
        let before = proxy.server_process();
        proxy.kill_server();
        assert_eq!(client.value("SELECT @round"), round.to_string());
        assert_ne!(proxy.server_process(), before);
    }
}

#[test]
fn safety_14_mysql_what_is_not_proven_gets_an_error_and_is_closed() {
    let mut server = Server::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"1h\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("unproven");
    client.run("SET @tenant = 'mine'");
    server.kill();
    told(&mut client, 1053, "the session's state could not be proven");
    server.run_again();
}

#[test]
fn safety_14_mysql_requests_wait_for_max_outage_then_they_are_told() {
    let mut server = Server::start(&[]);
    let options = Options {
        scaling: "max_outage = \"2s\"".to_owned(),
        ..quick()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("waits");
    client.run("SET @tenant = 'mine'");
    proven(&proxy, "waits");
    server.kill();
    let error = client.try_run("SELECT 1").unwrap_err();
    assert_eq!(code(&error), 1105, "{error}");
    assert!(error.to_string().contains("is not available"), "{error}");
    server.run_again();
    wait_until("it is served again", SOON, || {
        client.try_run("SELECT 1").is_ok()
    });
    assert_eq!(client.value("SELECT @tenant"), "mine");
}

#[test]
fn safety_15_mysql_a_lost_transaction_is_told_and_nothing_of_it_is_run_on_its_own() {
    let mut server = Server::start(&[]);
    server.run(TABLE);
    let proxy = Proxy::with(&server, &quick());
    let ways: &[(&str, &[&str])] = &[
        ("begin", &["BEGIN", "INSERT INTO t VALUES (1)"]),
        (
            "savepoint",
            &["BEGIN", "INSERT INTO t VALUES (1)", "SAVEPOINT a"],
        ),
        (
            "no autocommit",
            &["SET autocommit=0", "INSERT INTO t VALUES (1)"],
        ),
        (
            "chained",
            &["BEGIN", "COMMIT AND CHAIN", "INSERT INTO t VALUES (1)"],
        ),
        ("xa", &["XA START 'x'", "INSERT INTO t VALUES (1)"]),
        ("only begun", &["BEGIN"]),
    ];
    for (name, statements) in ways {
        let mut client = proxy.client(name);
        client.run("SET @tenant = 'mine'");
        proven(&proxy, name);
        for sql in *statements {
            client.run(sql);
        }
        server.kill();
        server.run_again();
        let error = client.try_run("INSERT INTO t VALUES (2)").unwrap_err();
        assert_eq!(code(&error), 1053, "{name}: {error}");
        let text = "the transaction was rolled back";
        assert!(error.to_string().contains(text), "{name}: {error}");
        assert!(client.try_run("SELECT 1").is_err(), "{name}: closed");
        let found = Client::to(&server.admin()).value("SELECT COUNT(*) FROM app.t");
        assert_eq!(found, "0", "{name}");
    }
}

/// A packet of so many bytes, in clear or in a TLS record, has reached a server that does not read.
fn unread(server: &Server, bytes: usize) -> bool {
    let port: u16 = server
        .address()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
    let at = format!(":{port:04X}");
    let wanted = [bytes, bytes + 22];
    tcp.lines().skip(1).any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let queue = words[4].split(':').nth(1).unwrap_or_default();
        let queued = usize::from_str_radix(queue, 16).unwrap_or_default();
        words[1].ends_with(&at) && wanted.contains(&queued)
    })
}

#[test]
fn safety_06_mysql_an_unknown_outcome_is_told_as_such_and_nothing_is_sent_again() {
    let mut server = Server::start(&[]);
    server.run(TABLE);
    let proxy = Proxy::with(&server, &quick());
    let open: &[&str] = &["BEGIN", "INSERT INTO t VALUES (1)"];
    let ways: &[(&str, &[&str], &str)] = &[
        ("commit", open, "COMMIT"),
        ("autocommit", &[], "INSERT INTO t VALUES (2)"),
        ("several", &[], "DO 1; INSERT INTO t VALUES (3)"),
        ("by ddl", open, "CREATE TABLE made (a int)"),
        (
            "xa",
            &["XA START 'y'", "XA END 'y'"],
            "XA COMMIT 'y' ONE PHASE",
        ),
    ];
    for (name, first, last) in ways {
        let mut client = proxy.client(name);
        proven(&proxy, name);
        for sql in *first {
            client.run(sql);
        }
        server.freeze(true);
        let waits = runs(client, last);
        wait_until("it reached the server", SOON, || {
            unread(&server, last.len() + 5)
        });
        server.kill();
        let (mut client, outcome) = waits.join().unwrap();
        let error = outcome.unwrap_err();
        assert_eq!(code(&error), 1105, "{name}: {error}");
        let text = "whether the last statement took effect is unknown";
        assert!(error.to_string().contains(text), "{name}: {error}");
        assert!(client.try_run("SELECT 1").is_err(), "{name}: closed");
        server.run_again();
        let found = Client::to(&server.admin()).value("SELECT COUNT(*) FROM app.t");
        assert_eq!(
            found, "0",
            "{name}: it was never read, and is not sent again"
        );
    }
}

#[test]
fn safety_16_mysql_a_kill_by_an_administrator_is_told_from_a_lost_server() {
    let mut server = Server::start(&[]);
    let proxy = Proxy::with(&server, &quick());
    let mut other = proxy.client("other");
    other.run("SET @tenant = 'mine'");
    let mut admin = Client::to(&server.admin());
    for (name, statement) in [
        ("rests", ""),
        ("in transaction", "BEGIN"),
        ("locks", "DO GET_LOCK('a', 1)"),
    ] {
        let mut client = proxy.client(name);
        let number = client.value("SELECT CONNECTION_ID()");
        if statement.is_empty() {
            proven(&proxy, name);
        } else {
            client.run(statement);
        }
        admin.run(&format!("KILL {number}"));
        wait_until("its session is gone", SOON, || {
            proxy.admin().session(name).is_none()
        });
        assert!(client.try_run("SELECT 1").is_err(), "{name}");
    }
    // A statement's connection: it ends in the server's words, or without any.
    let client = proxy.client("works");
    let works = runs(client, "SELECT SLEEP(600)");
    let find = "SELECT id FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'";
    wait_until("it works", SOON, || admin.value(find) != "nothing");
    let number = admin.value(find);
    admin.run(&format!("KILL {number}"));
    let (mut client, outcome) = works.join().unwrap();
    assert!(outcome.is_err());
    assert!(client.try_run("SELECT 1").is_err());
    assert_eq!(other.value("SELECT @tenant"), "mine");
    // Not meant for it: the whole server goes, cleanly.
    proven(&proxy, "other");
    server.stop();
    server.run_again();
    assert_eq!(other.value("SELECT @tenant"), "mine");
}

#[test]
fn fault_a_server_that_hangs_is_waited_for_up_to_the_login_deadline() {
    let server = Server::start(&[]);
    let options = Options {
        limits: "login_timeout = \"2s\"".to_owned(),
        ..quick()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("stays");
    client.run("SET @tenant = 'mine'");
    proven(&proxy, "stays");
    server.freeze(true);
    let error = Client::connect(&proxy.app())
        .err()
        .expect("nobody is let in");
    assert_eq!(code(&error), 1105, "{error}");
    let waits = thread::spawn(move || client.value("SELECT @tenant"));
    server.freeze(false);
    assert_eq!(waits.join().unwrap(), "mine");
    wait_until("new clients come in again", SOON, || {
        Client::connect(&proxy.app()).is_ok()
    });
}

#[test]
fn fault_a_server_that_is_away_is_waited_for_up_to_the_login_deadline() {
    let mut server = Server::start(&[]);
    let options = Options {
        limits: "login_timeout = \"2s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    server.stop();
    let error = Client::connect(&proxy.app())
        .err()
        .expect("nobody is let in");
    assert_eq!(code(&error), 1105, "{error}");
    // One that starts while a client waits serves it.
    let options = Options {
        limits: "login_timeout = \"60s\"".to_owned(),
        ..Options::default()
    };
    server.run_again();
    let patient = Proxy::with(&server, &options);
    server.stop();
    let target = patient.app();
    let waits = thread::spawn(move || Client::connect(&target).map(|mut c| c.value("SELECT 5")));
    server.run_again();
    assert_eq!(waits.join().unwrap().unwrap(), "5");
}

#[test]
fn case_38_a_full_server_says_so_itself_at_the_login_deadline() {
    let server = Server::start(&["--max-connections=12"]);
    let options = Options {
        limits: "login_timeout = \"2s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut others = Vec::new();
    while let Ok(client) = Client::connect(&server.app()) {
        others.push(client);
    }
    let direct = Client::connect(&server.app()).err().expect("full");
    assert_eq!(code(&direct), 1040, "{direct}");
    let error = Client::connect(&proxy.app()).err().expect("full");
    assert_eq!(code(&error), 1040, "{error}");
    others.truncate(2);
    wait_until("clients come in again", SOON, || {
        Client::connect(&proxy.app()).is_ok()
    });
}

#[test]
fn safety_28_mysql_wait_timeout_runs_from_the_clients_last_request() {
    let server = Server::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"200ms\"\npark_after = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("short");
    client.run("SET SESSION wait_timeout=5");
    let since = tokio::time::Instant::now();
    // Parked, and moved: neither makes it live longer, nor shorter.
    wait_until("it is parked", SOON, || {
        proxy.admin().session("short").unwrap()["state"] == "parked"
    });
    proxy.admin().swap();
    wait_until("its time is over", SOON, || {
        proxy.admin().session("short").is_none()
    });
    assert!(since.elapsed().as_secs() >= 5);
    assert!(client.try_run("SELECT 1").is_err());
}

#[test]
fn case_35_a_hold_that_is_longer_than_wait_timeout_is_not_noticed() {
    let server = Server::start(&[]);
    let proxy = Proxy::with(&server, &quick());
    let mut client = proxy.client("short");
    client.run("SET SESSION wait_timeout=2, @tenant='mine'");
    proven(&proxy, "short");
    let mut watcher = Client::to(&server.admin());
    proxy.admin().act("hold");
    let since = tokio::time::Instant::now();
    let waits = thread::spawn(move || client.value("SELECT @tenant"));
    wait_until("longer than the server waits", SOON, || {
        since.elapsed().as_secs() >= 4
    });
    let here = "SELECT COUNT(*) FROM information_schema.processlist WHERE user='app'";
    assert_eq!(watcher.value(here), "0");
    proxy.admin().act("release");
    assert_eq!(waits.join().unwrap(), "mine");
}

#[test]
fn case_34_a_server_that_closes_a_session_at_rest_ends_it_in_its_own_words() {
    let server = Server::start(&[]);
    // Never probed, so that Slackwater does not know of its time-out.
    let options = Options {
        sessions: "snapshot_after = \"1h\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut client = proxy.client("short");
    client.run("SET SESSION wait_timeout=1");
    wait_until("the server has closed it", SOON, || {
        proxy.admin().session("short").is_none()
    });
    let error = client.try_run("SELECT 1").unwrap_err();
    let wanted = if Kind::wanted().is_mysql() { 4031 } else { 0 };
    assert_eq!(code(&error), wanted, "{error}");
}
