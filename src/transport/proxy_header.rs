//! The PROXY protocol, versions 1 and 2: a load balancer says in front of everything else whom it connects. Only believed of
//! networks that are configured, and demanded of those: where the server speaks first nobody could tell later. Slackwater
//! says it to servers that are configured to be told.

use super::stream::{Ends, Socket, Stream};
use bytes::{BufMut, BytesMut};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version and command: the sender speaks for itself, as its health checks do.
const LOCAL: u8 = 0x20;
/// Version and command: for a client.
const PROXY: u8 = 0x21;
/// Address family and transport.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Longest header of version 1, its end included.
const MAX_V1: usize = 107;

/// Longest body of version 2 that is taken: addresses, and what some load balancers add.
const MAX_V2: usize = 2048;

/// From where to where a client connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// Which header servers are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl Version {
    /// Appends the header of a connection that is made for a client with this route; none: for nobody, or for one without
    /// addresses.
    pub fn put(self, route: Option<Route>, out: &mut BytesMut) {
        let addresses = route.map(Route::addresses);
        match self {
            Self::V1 => put_v1(addresses.as_ref(), out),
            Self::V2 => put_v2(addresses.as_ref(), out),
        }
    }
}

/// What to say beside an error of a server that hangs up or answers with something else at once: it may take no header.
pub fn doubt(error: impl fmt::Display) -> String {
    format!(
        "{error} (it was sent a PROXY header, as server_proxy_protocol has it: does it take one from here?)"
    )
}

/// Such an error.
pub fn may_be_refusal(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::InvalidData
    )
}

/// Two addresses of one family, and their ports.
enum Addresses {
    Four([Ipv4Addr; 2], [u16; 2]),
    Six([Ipv6Addr; 2], [u16; 2]),
}

impl Route {
    /// IPv4 where both are, on whatever kind of socket they came.
    fn addresses(self) -> Addresses {
        let ports = [self.source.port(), self.destination.port()];
        let both = [self.source.ip(), self.destination.ip()].map(|ip| ip.to_canonical());
        match both {
            [IpAddr::V4(source), IpAddr::V4(destination)] => {
                Addresses::Four([source, destination], ports)
            }
            both => Addresses::Six(
                both.map(|ip| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                }),
                ports,
            ),
        }
    }
}

fn put_v1(addresses: Option<&Addresses>, out: &mut BytesMut) {
    let line = match addresses {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some(Addresses::Four([source, destination], [from, to])) => {
            format!("PROXY TCP4 {source} {destination} {from} {to}\r\n")
        }
        Some(Addresses::Six([source, destination], [from, to])) => {
            format!("PROXY TCP6 {source} {destination} {from} {to}\r\n")
        }
    };
    out.put_slice(line.as_bytes());
}

fn put_v2(addresses: Option<&Addresses>, out: &mut BytesMut) {
    out.put_slice(&SIGNATURE);
    let ports = match addresses {
        None => {
            out.put_slice(&[LOCAL, 0, 0, 0]);
            return;
        }
        Some(Addresses::Four(both, ports)) => {
            out.put_slice(&[PROXY, TCP4, 0, 12]);
            for ip in both {
                out.put_slice(&ip.octets());
            }
            ports
        }
        Some(Addresses::Six(both, ports)) => {
            out.put_slice(&[PROXY, TCP6, 0, 36]);
            for ip in both {
                out.put_slice(&ip.octets());
            }
            ports
        }
    };
    for port in ports {
        out.put_u16(*port);
    }
}

/// A network that may say whom it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// What is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a network: an address, or an address and a number of bits as in 10.0.0.0/8, is wanted"
)]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or(NotANetwork)?,
            None => most,
        };
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    /// The address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                u32::from(own) & mask == u32::from(other) & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                u128::from(own) & mask == u128::from(other) & mask
            }
            _ => false,
        }
    }
}

/// Reads the header of a connection that comes from one of these networks, and makes its client the other end. Nothing is read of
/// other connections, nor behind the header. The caller gives it a deadline.
pub async fn take(stream: Stream, networks: &[Network]) -> io::Result<Stream> {
    let peer = stream.peer_address().map(|address| address.ip());
    if !peer.is_some_and(|peer| networks.iter().any(|network| network.contains(peer))) {
        return Ok(stream);
    }
    let Stream::Plain(Socket::Tcp(mut tcp, balancer)) = stream else {
        return Ok(stream);
    };
    let ends = match read(&mut tcp).await? {
        Some(route) => Ends {
            peer: route.source,
            named: Some(route.destination),
        },
        None => balancer,
    };
    Ok(Stream::Plain(Socket::Tcp(tcp, ends)))
}

/// Whom a load balancer connects.
enum Connected {
    Client(Route),
    /// It speaks for itself, or does not know.
    Itself,
}

impl Connected {
    const fn client(self) -> Option<Route> {
        match self {
            Self::Client(route) => Some(route),
            Self::Itself => None,
        }
    }
}

/// Reads a header: the client's route, or `None` where the load balancer speaks for itself or does not know.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Route>> {
    let mut head = [0; SIGNATURE.len()];
    stream.read_exact(&mut head).await?;
    if head == SIGNATURE {
        return read_v2(stream).await;
    }
    if !head.starts_with(b"PROXY ") {
        return Err(invalid(
            "a connection from a network of proxy_protocol has no PROXY header",
        ));
    }
    let mut line = head.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= MAX_V1 {
            return Err(invalid("a PROXY header has no end"));
        }
        line.push(stream.read_u8().await?);
    }
    v1(&line)
        .map(Connected::client)
        .ok_or_else(|| invalid("a PROXY header can't be read"))
}

fn v1(line: &[u8]) -> Option<Connected> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = text.split(' ');
    let (Some("PROXY"), Some(family)) = (words.next(), words.next()) else {
        return None;
    };
    if family == "UNKNOWN" {
        return Some(Connected::Itself);
    }
    let source: IpAddr = words.next()?.parse().ok()?;
    let destination: IpAddr = words.next()?.parse().ok()?;
    let route = Route {
        source: SocketAddr::new(source, words.next()?.parse().ok()?),
        destination: SocketAddr::new(destination, words.next()?.parse().ok()?),
    };
    let fits = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    (fits && words.next().is_none()).then_some(Connected::Client(route))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Route>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [command, family, a, b] = head;
    let length = usize::from(u16::from_be_bytes([a, b]));
    if length > MAX_V2 {
        return Err(invalid("a PROXY header is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    v2(command, family, &body)
        .map(Connected::client)
        .ok_or_else(|| invalid("a PROXY header can't be read"))
}

fn v2(command: u8, family: u8, body: &[u8]) -> Option<Connected> {
    match command {
        // A health check of the load balancer's own.
        LOCAL => return Some(Connected::Itself),
        PROXY => {}
        _ => return None,
    }
    let (both, ports): ([IpAddr; 2], _) = match family {
        TCP4 => {
            let (source, rest) = body.split_first_chunk::<4>()?;
            let (destination, ports) = rest.split_first_chunk::<4>()?;
            ([(*source).into(), (*destination).into()], ports)
        }
        TCP6 => {
            let (source, rest) = body.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            ([(*source).into(), (*destination).into()], ports)
        }
        // Unix sockets and what has no address.
        _ => return Some(Connected::Itself),
    };
    let [a, b, c, d] = *ports.first_chunk()?;
    let [source, destination] = both;
    Some(Connected::Client(Route {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    }))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(mut bytes: &[u8]) -> (io::Result<Option<Route>>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let result = runtime.block_on(read(&mut bytes));
        (result, bytes.len())
    }

    fn v2_bytes(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[test]
    fn both_versions_name_the_client_and_read_no_further() {
        let four = [10, 1, 2, 3, 10, 0, 0, 1, 0x30, 0x39, 0x0c, 0xea];
        let mut six = [0; 36];
        six[15] = 1;
        six[32..].copy_from_slice(&[0x30, 0x39, 0x0c, 0xea]);
        let with_more = [&four[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        for (header, client) in [
            (
                b"PROXY TCP4 10.1.2.3 10.0.0.1 12345 3306\r\n".to_vec(),
                Some("10.1.2.3:12345"),
            ),
            (
                b"PROXY TCP6 ::1 ::2 12345 3306\r\n".to_vec(),
                Some("[::1]:12345"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 x 1 2\r\n".to_vec(), None),
            (v2_bytes(0x21, 0x11, &four), Some("10.1.2.3:12345")),
            (v2_bytes(0x21, 0x11, &with_more), Some("10.1.2.3:12345")),
            (v2_bytes(0x21, 0x21, &six), Some("[::1]:12345")),
            (v2_bytes(0x20, 0x11, &four), None),
            (v2_bytes(0x20, 0, b""), None),
            (v2_bytes(0x21, 0x31, &[0; 216]), None),
        ] {
            let bytes = [&header[..], b"more"].concat();
            let (read, left) = read_all(&bytes);
            let read = read.expect("read");
            let source = read.map(|route| route.source.to_string());
            assert_eq!((source.as_deref(), left), (client, 4), "{header:?}");
            assert!(read.is_none_or(|route| route.destination.port() == 3306));
            for end in 0..header.len() {
                assert!(read_all(&header[..end]).0.is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(),
            b"PROXY TCP4 10.1.2.3 ::1 1 1\r\n".to_vec(),
            b"PROXY TCP4 10.1.2.3 10.0.0.1 99999 1\r\n".to_vec(),
            b"PROXY TCP4 10.1.2.3 10.0.0.1 1 1 1\r\n".to_vec(),
            b"PROXY UNIX a b c d\r\n".to_vec(),
            [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
            v2_bytes(0x11, 0x11, &[0; 12]),
            v2_bytes(0x21, 0x11, &[0; 11]),
            v2_bytes(0x21, 0x11, &[0; 3000]),
        ] {
            assert!(read_all(&bytes).0.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn networks() {
        let network: Network = "10.1.0.0/16".parse().expect("a network");
        let inside = |text: &str| network.contains(text.parse().expect("an address"));
        assert!(inside("10.1.255.1") && inside("::ffff:10.1.0.1") && !inside("10.2.0.1"));
        assert!(!inside("::1"));
        let all: Network = "::/0".parse().expect("a network");
        assert!(all.contains("fe80::1".parse().expect("an address")));
        assert_eq!(
            "10.0.0.1".parse::<Network>().expect("one").to_string(),
            "10.0.0.1/32"
        );
        for bad in ["", "10.0.0.0/33", "example.com", "10.0.0.0/", "/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn only_configured_networks_are_asked_for_a_header() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        for (network, client) in [("127.0.0.0/8", "10.1.2.3:7"), ("10.0.0.0/8", "127.0.0.1:")] {
            let mut far = tokio::net::TcpStream::connect(address)
                .await
                .expect("connects");
            far.write_all(b"PROXY TCP4 10.1.2.3 10.0.0.1 7 3306\r\n!")
                .await
                .expect("written");
            let (near, peer) = listener.accept().await.expect("accepts");
            let stream = Stream::tcp(near, peer).expect("a socket");
            let networks = [network.parse().expect("a network")];
            let mut stream = take(stream, &networks).await.expect("taken");
            assert!(stream.peer().starts_with(client), "{}", stream.peer());
            let route = stream.route().expect("TCP");
            assert_eq!(route.source.to_string(), stream.peer());
            let connected_to = if client.starts_with("10.") {
                "10.0.0.1:3306".parse().expect("an address")
            } else {
                address
            };
            assert_eq!(route.destination, connected_to);
            let expected = if client.starts_with("10.") {
                b'!'
            } else {
                b'P'
            };
            assert_eq!(stream.read_u8().await.expect("a byte"), expected);
        }
    }

    fn put(version: Version, route: Option<Route>) -> BytesMut {
        let mut out = BytesMut::new();
        version.put(route, &mut out);
        out
    }

    #[test]
    fn what_servers_are_sent() {
        let route = |source: &str, destination: &str| {
            Some(Route {
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            })
        };
        let four = route("127.0.0.9:50000", "10.0.0.1:3306");
        assert_eq!(
            put(Version::V1, four)[..],
            *b"PROXY TCP4 127.0.0.9 10.0.0.1 50000 3306\r\n"
        );
        let body = [127, 0, 0, 9, 10, 0, 0, 1, 0xc3, 0x50, 0x0c, 0xea];
        assert_eq!(put(Version::V2, four)[..], v2_bytes(0x21, 0x11, &body)[..]);
        let six = route("[::1]:1", "[fe80::2]:65535");
        assert_eq!(
            put(Version::V1, six)[..],
            *b"PROXY TCP6 ::1 fe80::2 1 65535\r\n"
        );
        assert_eq!(put(Version::V1, None)[..], *b"PROXY UNKNOWN\r\n");
        assert_eq!(put(Version::V2, None)[..], v2_bytes(0x20, 0, b"")[..]);
        // A listener on `[::]` has IPv4 clients, too.
        let mapped = route("[::ffff:127.0.0.9]:50000", "[::ffff:10.0.0.1]:3306");
        assert_eq!(put(Version::V1, mapped), put(Version::V1, four));
        // A load balancer may say anything.
        let mixed = put(Version::V1, route("127.0.0.9:1", "[::2]:2"));
        assert_eq!(mixed[..], *b"PROXY TCP6 ::ffff:127.0.0.9 ::2 1 2\r\n");
        let longest = route(
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe]:65535",
        );
        assert!(put(Version::V1, longest).len() <= MAX_V1);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(source: SocketAddr, destination: SocketAddr) {
            let route = Route { source, destination };
            for version in [Version::V1, Version::V2] {
                let bytes = [&put(version, Some(route))[..], b"more"].concat();
                let (read, left) = read_all(&bytes);
                let read = read.expect("read").expect("a client");
                prop_assert_eq!(left, 4);
                for (read, sent) in [(read.source, source), (read.destination, destination)] {
                    prop_assert_eq!(read.ip().to_canonical(), sent.ip().to_canonical());
                    prop_assert_eq!(read.port(), sent.port());
                }
                let (read, left) = read_all(&[&put(version, None)[..], b"more"].concat());
                prop_assert!(read.expect("read").is_none() && left == 4);
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(begin in prop::sample::select(vec![&b""[..], b"PROXY TCP4 ", &SIGNATURE]), bytes: Vec<u8>) {
            drop(read_all(&[begin, &bytes].concat()));
        }
    }
}
