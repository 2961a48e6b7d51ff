//! The PROXY protocol, versions 1 and 2: a load balancer says in front of everything else whom it connects. Only believed of
//! networks that are configured, and demanded of those: where the server speaks first nobody could tell later.

use super::stream::{Socket, Stream};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, its end included.
const MAX_V1: usize = 107;

/// Longest body of version 2 that is taken: addresses, and what some load balancers add.
const MAX_V2: usize = 2048;

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
    let client = read(&mut tcp).await?.unwrap_or(balancer);
    Ok(Stream::Plain(Socket::Tcp(tcp, client)))
}

/// Whom a load balancer connects.
enum Connected {
    Client(SocketAddr),
    /// It speaks for itself, or does not know.
    Itself,
}

impl Connected {
    const fn client(self) -> Option<SocketAddr> {
        match self {
            Self::Client(address) => Some(address),
            Self::Itself => None,
        }
    }
}

/// Reads a header: the client, or `None` where the load balancer speaks for itself or does not know.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
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
    let _destination: IpAddr = words.next()?.parse().ok()?;
    let port = words.next()?.parse().ok()?;
    let _port: u16 = words.next()?.parse().ok()?;
    let fits = match family {
        "TCP4" => source.is_ipv4(),
        "TCP6" => source.is_ipv6(),
        _ => false,
    };
    (fits && words.next().is_none()).then_some(Connected::Client(SocketAddr::new(source, port)))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
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
        // LOCAL: a health check of the load balancer's own.
        0x20 => return Some(Connected::Itself),
        0x21 => {}
        _ => return None,
    }
    match family {
        0x11 => {
            let (source, rest) = body.split_first_chunk::<4>()?;
            let (_destination, rest) = rest.split_first_chunk::<4>()?;
            let port = u16::from_be_bytes(*rest.first_chunk()?);
            rest.get(..4)?;
            let source = Ipv4Addr::from(*source).into();
            Some(Connected::Client(SocketAddr::new(source, port)))
        }
        0x21 => {
            let (source, rest) = body.split_first_chunk::<16>()?;
            let (_destination, rest) = rest.split_first_chunk::<16>()?;
            let port = u16::from_be_bytes(*rest.first_chunk()?);
            rest.get(..4)?;
            let source = Ipv6Addr::from(*source).into();
            Some(Connected::Client(SocketAddr::new(source, port)))
        }
        // Unix sockets and what has no address.
        _ => Some(Connected::Itself),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(mut bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, usize) {
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
        six[32..34].copy_from_slice(&[0x30, 0x39]);
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
            let read = read.expect("read").map(|address| address.to_string());
            assert_eq!((read.as_deref(), left), (client, 4), "{header:?}");
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
            let expected = if client.starts_with("10.") {
                b'!'
            } else {
                b'P'
            };
            assert_eq!(stream.read_u8().await.expect("a byte"), expected);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(begin in prop::sample::select(vec![&b""[..], b"PROXY TCP4 ", &SIGNATURE]), bytes: Vec<u8>) {
            drop(read_all(&[begin, &bytes].concat()));
        }
    }
}
