//! PROXY headers towards servers. PostgreSQL takes none, so something stands in front of it that does, and remembers.

use crate::support::postgres::{APP, Port, Postgres, SERVICE, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Client;
use crate::support::{SOON, sized, wait_until};
use parking_lot::Mutex;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// One connection that was taken.
#[derive(Debug, Clone)]
struct Taken {
    /// From where to where the client connected; none: the connection is nobody's.
    route: Option<[SocketAddr; 2]>,
    /// What came behind the header.
    first: [u8; 8],
    /// Its port as the server sees it.
    port: u16,
}

impl Taken {
    fn is_ssl_request(&self) -> bool {
        self.first[4..] == 80_877_103_i32.to_be_bytes()
    }

    fn is_cancel(&self) -> bool {
        self.first[4..] == 80_877_102_i32.to_be_bytes()
    }
}

/// Takes connections that begin with a header of one version, and passes on what is behind it.
struct Taker {
    port: Port,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Taker {
    fn before(server: u16, version: &'static str) -> Self {
        let port = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", port.number)).unwrap();
        let taken = Arc::new(Mutex::default());
        let theirs = Arc::clone(&taken);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let taken = Arc::clone(&theirs);
                std::thread::spawn(move || pass(near, server, version, &taken));
            }
        });
        Self { port, taken }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number)
    }

    fn all(&self) -> Vec<Taken> {
        self.taken.lock().clone()
    }

    /// The one that the server sees come from this port.
    fn seen_at(&self, port: &str) -> Taken {
        let found = self.all().into_iter().find(|t| t.port.to_string() == port);
        found.unwrap_or_else(|| panic!("{port}: {:?}", self.all()))
    }
}

fn pass(mut near: TcpStream, server: u16, version: &str, taken: &Mutex<Vec<Taken>>) -> Option<()> {
    let route = header(&mut near, version).unwrap();
    let mut first = [0; 8];
    near.read_exact(&mut first).ok()?;
    let mut far = TcpStream::connect(("127.0.0.1", server)).ok()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true).ok()?;
    }
    taken.lock().push(Taken {
        route,
        first,
        port: far.local_addr().ok()?.port(),
    });
    far.write_all(&first).ok()?;
    let (mut from, mut to) = (near.try_clone().ok()?, far.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut far, &mut near);
    near.shutdown(Shutdown::Both).ok()
}

/// Reads a header byte by byte, as the specification has it.
fn header(near: &mut TcpStream, version: &str) -> io::Result<Option<[SocketAddr; 2]>> {
    if version == "v1" {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            near.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).unwrap();
        let words: Vec<_> = line.trim_end().split(' ').collect();
        if words == ["PROXY", "UNKNOWN"] {
            return Ok(None);
        }
        assert_eq!(
            (words[..2].join(" "), words.len()),
            ("PROXY TCP4".to_owned(), 6)
        );
        let end = |ip: usize, port: usize| format!("{}:{}", words[ip], words[port]).parse();
        return Ok(Some([end(2, 4).unwrap(), end(3, 5).unwrap()]));
    }
    let mut head = [0; 16];
    near.read_exact(&mut head)?;
    assert_eq!(head[..12], SIGNATURE);
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    near.read_exact(&mut body)?;
    if head[12] == 0x20 {
        return Ok(None);
    }
    assert_eq!((head[12], head[13], body.len()), (0x21, 0x11, 12));
    let end = |ip: usize, port: usize| {
        let address = Ipv4Addr::new(body[ip], body[ip + 1], body[ip + 2], body[ip + 3]);
        SocketAddr::from((address, u16::from_be_bytes([body[port], body[port + 1]])))
    };
    Ok(Some([end(0, 8), end(4, 10)]))
}

/// With this version towards a server with or without TLS.
fn each_connection_says_whose_it_is(version: &'static str, tls: bool) {
    let mut server = Postgres::start(&[]);
    if tls {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        server.stop();
        server.turn_on_tls(&certificate, &key);
        server.boot();
    }
    let taker = Taker::before(server.port(), version);
    let sockets = tempfile::tempdir().unwrap();
    let mode = if tls { "require" } else { "disable" };
    let options = Options {
        provider: format!("server_tls = \"{mode}\"\nserver_proxy_protocol = \"{version}\""),
        socket_dir: Some(sockets.path().to_owned()),
        ..Options::default()
    };
    let proxy = Proxy::unready(&taker.address(), &options);
    proxy.wait_ready();
    let mut client = proxy.client("told");
    let route =
        [client.local_port(), proxy.port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let seen =
        "select client_port::text || ' ' || pid from pg_stat_activity where pid = pg_backend_pid()";
    let mut processes = Vec::new();
    for _ in 0..sized(3, 10) {
        let seen = client.value(seen);
        let (port, process) = seen.split_once(' ').unwrap();
        let taken = taker.seen_at(port);
        assert_eq!(taken.route, Some(route), "{:?}", taker.all());
        assert_eq!(taken.is_ssl_request(), tls, "in front of everything else");
        assert!(!processes.contains(&process.to_owned()), "it moved");
        processes.push(process.to_owned());
        client.run("set work_mem = '5MB'");
        proxy.admin().swap();
    }
    // The service account is Slackwater's own.
    let mut admin = Client::connect(&server.admin()).unwrap();
    let sql = format!(
        "select client_port from pg_stat_activity where usename = '{}' limit 1",
        SERVICE.0
    );
    assert_eq!(taker.seen_at(&admin.value(&sql)).route, None);

    // A cancel comes from who cancels a session, or from its client on its behalf.
    client.start("select pg_sleep(600)").unwrap();
    wait_until("it runs", SOON, || {
        admin.value("select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'") == "1"
    });
    client.cancel();
    assert_eq!(client.finish().unwrap_err().server().code, "57014");
    let (cancels, others): (Vec<_>, Vec<_>) = taker.all().into_iter().partition(Taken::is_cancel);
    assert_eq!(cancels.len(), usize::from(!tls), "inside TLS otherwise");
    assert!(
        cancels.iter().all(|c| c.route == Some(route)),
        "{cancels:?}"
    );
    assert!(others.iter().all(|t| t.is_ssl_request() == tls));

    // A client without an address.
    let connect = format!(
        "host={} port={} user={} dbname=app",
        sockets.path().display(),
        proxy.port(),
        APP.0
    );
    let output = Command::new(binaries().join("psql"))
        .args([
            "-XAtc",
            "select client_port from pg_stat_activity where pid = pg_backend_pid()",
            &connect,
        ])
        .env("PGPASSWORD", APP.1)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let port = String::from_utf8_lossy(&output.stdout);
    assert_eq!(taker.seen_at(port.trim()).route, None);
}

#[test]
fn each_server_connection_says_in_version_1_whose_it_is() {
    each_connection_says_whose_it_is("v1", false);
}

#[test]
fn each_server_connection_says_in_version_2_whose_it_is_in_front_of_tls() {
    each_connection_says_whose_it_is("v2", true);
}

#[test]
fn postgresql_itself_takes_no_header_and_the_log_says_so() {
    let server = Postgres::start(&[]);
    for version in ["v1", "v2"] {
        let options = Options {
            provider: format!("server_proxy_protocol = \"{version}\""),
            limits: "login_timeout = \"1s\"".to_owned(),
            ..Options::default()
        };
        let proxy = Proxy::unready(&server.address(), &options);
        proxy.wait_alive();
        let error = Client::connect(&proxy.app()).unwrap_err().server();
        assert_eq!(error.code, "57P03", "{}", error.message);
        let log = proxy.log();
        assert!(
            log.contains("PROXY header")
                && log.contains("server_proxy_protocol")
                && log.contains(&server.address()),
            "{log}"
        );
    }
}
