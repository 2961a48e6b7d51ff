//! What a client may do at the edges: before it is logged in, at the limits of time and of size.

use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target, cstr};
use crate::support::{SOON, sized, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tokio::time::Instant;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

fn raw(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn start_up(version: i32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(cstr(name));
        body.extend(cstr(value));
    }
    body.push(0);
    let mut out = (body.len() as u32 + 4).to_be_bytes().to_vec();
    out.extend(body);
    out
}

/// Everything up to the other side's close; an end by reset counts as one.
fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut out = Vec::new();
    match stream.read_to_end(&mut out) {
        Ok(_) => out,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => out,
        Err(e) => panic!("wanted a close, got {e} after {out:?}"),
    }
}

fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn edges_before_the_login() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let user = [("user", "app"), ("database", "app")];

    // Bytes buffered behind an SSLRequest were sent by somebody in between: no session comes of them.
    let mut stream = raw(&proxy);
    let mut bytes = SSL_REQUEST.to_vec();
    bytes.extend(start_up(196_608, &user));
    stream.write_all(&bytes).unwrap();
    let answer = until_closed(&mut stream);
    assert!(!answer.contains(&b'R'), "{answer:?}");

    // GSSAPI encryption is not there; the client goes on without.
    let mut stream = raw(&proxy);
    stream.write_all(&GSSENC_REQUEST).unwrap();
    let mut one = [0];
    stream.read_exact(&mut one).unwrap();
    assert_eq!(&one, b"N");
    stream.write_all(&start_up(196_608, &user)).unwrap();
    stream.read_exact(&mut one).unwrap();
    assert_eq!(&one, b"R");

    // A client of protocol 3.2 is told that 3.0 is spoken, and what of its options is not known.
    let mut stream = raw(&proxy);
    let newer = [("user", "app"), ("database", "app"), ("_pq_.unheard", "1")];
    stream.write_all(&start_up(196_610, &newer)).unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], b'v');

    // Too long, too short, and not a version at all.
    for packet in [
        [&20_000_u32.to_be_bytes()[..], &[0; 100]].concat(),
        vec![0, 0, 0, 3, 0, 0, 0],
        vec![0xff; 8],
        start_up(131_072, &user),
        start_up(196_608, &[("database", "app")]),
    ] {
        let mut stream = raw(&proxy);
        stream.write_all(&packet).unwrap();
        let answer = until_closed(&mut stream);
        assert!(
            answer.is_empty() || answer[0] == b'E',
            "{packet:?}: {answer:?}"
        );
    }
    proxy.client("after").run("select 1");
}

#[test]
fn edges_silence_before_the_login_ends_at_its_deadline() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "login_timeout = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut silent = raw(&proxy);
    let mut slow = raw(&proxy);
    slow.write_all(&start_up(196_608, &[("user", "app")])[..6])
        .unwrap();
    until_closed(&mut silent);
    until_closed(&mut slow);
}

#[test]
fn edges_safety_28_age_limit_ends_sessions_at_rest_blockers_or_not() {
    let server = Postgres::start(&[]);
    let options = Options {
        limits: "max_connection_age = \"2s\"\nmax_connection_age_grace = \"2s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut resting = proxy.client("resting");
    let mut locked = proxy.client("locked");
    let mut open = proxy.client("open");
    locked.run("select pg_advisory_lock(1)");
    open.run("begin");
    for client in [&mut resting, &mut locked, &mut open] {
        let error = client.finish().unwrap_err().server();
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "57P01")
        );
        assert!(error.text().contains("max_connection_age"), "{error:?}");
    }
    let mut watcher = Client::connect(&server.admin()).unwrap();
    wait_until("the lock went with its session", SOON, || {
        watcher.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
    });
}

/// Ends of sessions that idle, told from those that a move made younger by the order of events alone: what runs since
/// just before the move takes as long as a session may idle.
#[test]
fn edges_safety_28_idle_session_timeout_counts_from_the_clients_last_request() {
    let server = Postgres::start(&[]);
    server.run(&[
        "create role idler login password 'idler-secret'",
        "alter role idler set idle_session_timeout = '6s'",
    ]);
    let proxies = ["0", "1s"].map(|park_after| {
        let sessions = format!("snapshot_after = \"200ms\"\npark_after = \"{park_after}\"");
        let options = Options {
            sessions,
            ..Options::default()
        };
        Proxy::with(&server, &options)
    });
    let mut idle = Vec::new();
    let mut others = Vec::new();
    for proxy in &proxies {
        let idler = Target::new(proxy.port(), ("idler", "idler-secret"), "app");
        let mut by_role = Client::connect(&idler).unwrap();
        by_role.run("select 1");
        let mut by_set = proxy.client("idles");
        by_set.run("set idle_session_timeout = '6s'");
        let mut other = proxy.client("other");
        other.run("select 1");
        idle.extend([by_role, by_set]);
        others.push(other);
    }
    // (A lower bound: the later the move comes, the more a session would have got from it.)
    let until = Instant::now() + Duration::from_millis(4500);
    wait_until("they idle for a while", SOON, || Instant::now() > until);
    assert_eq!(proxies[0].admin().sessions_count("parked"), 0);
    assert_eq!(proxies[1].admin().sessions_count("parked"), 3);
    let mut clock = Client::connect(&server.admin()).unwrap();
    clock.start("select pg_sleep(6)").unwrap();
    for proxy in &proxies {
        proxy.admin().swap();
    }
    for client in &mut idle {
        let error = client.finish().unwrap_err().server();
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "57P05")
        );
    }
    let (answers, _) = clock.arrived();
    assert!(answers.is_empty(), "neither a move nor a probe extends it");
    for client in &mut others {
        client.run("select 1");
    }
}

#[test]
fn edges_case_36_a_client_that_does_not_read_stops_only_itself() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut slow = proxy.client("slow");
    let rows = sized(100_000_u64, 1_000_000);
    let before = memory_kib(proxy.process());
    slow.start(&format!(
        "select repeat('r', 1000) from generate_series(1, {rows})"
    ))
    .unwrap();
    // Whatever thread it is on, some of them are on it.
    let mut others: Vec<Client> = (0..8).map(|_| proxy.client("other")).collect();
    for _ in 0..50 {
        for client in &mut others {
            client.run("select 1");
        }
    }
    let grown = memory_kib(proxy.process()).saturating_sub(before);
    assert!(grown < 20_000, "the proxy grew by {grown} KiB");
    let mut read = 0;
    loop {
        match slow.receive().unwrap().tag {
            b'D' => read += 1,
            b'Z' => break,
            _ => {}
        }
    }
    assert_eq!(read, rows);
}

#[test]
fn edges_large_messages_flow_in_bounded_memory() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("large");
    client.run("select 1");
    let before = memory_kib(proxy.process());
    let megabytes = sized(50, 500);
    let sql = format!("select length('{}')", "x".repeat(megabytes << 20));
    assert_eq!(client.value(&sql), (megabytes << 20).to_string());
    assert_eq!(
        client
            .value(&format!("select repeat('y', {})", megabytes << 20))
            .len(),
        megabytes << 20
    );
    let grown = memory_kib(proxy.process()).saturating_sub(before);
    assert!(grown < 20_000, "the proxy grew by {grown} KiB");
    proxy.admin().swap();
    client.run("select 1");
}

#[test]
fn edges_safety_27_process_numbers_stay_true_after_a_move() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut client = proxy.client("listens");
    assert_eq!(
        client.server_process(),
        client.process,
        "the first server connection's own number"
    );
    proxy.admin().swap();
    assert_ne!(client.server_process(), client.process);
    client.start("listen chan; notify chan, 'self'").unwrap();
    let heard = client.until(b'A').unwrap();
    let told = &heard.last().unwrap().body[..4];
    assert_eq!(i32::from_be_bytes(told.try_into().unwrap()), client.process);
}

#[test]
fn edges_lost_server_is_told_and_nothing_is_doubled() {
    let mut server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let ledger = crate::support::ledger::Ledger::start(&server.admin(), &proxy.app(), 6);
    for _ in 0..sized(2, 10) {
        let written = ledger.written();
        wait_until("rows are written", SOON, || {
            ledger.written() > written + 100
        });
        server.signal(nix::sys::signal::Signal::SIGQUIT);
        server.wait();
        server.boot();
    }
    let written = ledger.written();
    wait_until("clients come back", SOON, || {
        ledger.written() > written + 100
    });
    let faults = ledger.stop().faults(&server.admin());
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn edges_safety_17_superuser_state_never_reaches_another_session() {
    let server = Postgres::start(&[]);
    let options = Options {
        sessions: "max_server_connections = 4".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut admin = Client::connect(&Target::new(proxy.port(), ADMIN, "app")).unwrap();
    admin.run("set app.tenant = 'theirs'");
    admin.run("set work_mem = '77MB'");
    admin.run("prepare theirs as select 1");
    for n in 0..6 {
        let mut client = proxy.client(&format!("c{n}"));
        assert_eq!(client.value("select current_user"), "app");
        assert_eq!(
            client.value("select coalesce(current_setting('app.tenant', true), '')"),
            ""
        );
        assert_eq!(client.value("show work_mem"), "4MB");
        assert_eq!(
            client.value("select count(*) from pg_prepared_statements"),
            "0"
        );
    }
    assert_eq!(admin.value("show work_mem"), "77MB");
    assert_eq!(admin.value("select current_user"), ADMIN.0);
    wait_until("the others are gone", Duration::from_secs(20), || {
        proxy.admin().cluster()["clients"] == 1
    });
}
