//! Sockets: listening, accepting, connecting, and the options that notice a dead peer.

use super::proxy_header::Route;
use super::stream::{Socket, Stream};
use super::{Address, SocketConfig};
use bytes::BytesMut;
use nix::libc::{MSG_MORE, MSG_NOSIGNAL};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, Read};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A bound socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Listens on an address. A Unix socket's file that nobody listens on any more is replaced; everybody on the
/// machine may connect to it, since a password is asked there too. Errors name the address.
pub async fn bind(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Tcp { host, port } => bind_tcp(host, *port).await.map(Listener::Tcp),
        Address::Unix(path) => bind_unix(path).map(Listener::Unix),
    }
    .map_err(|error| named(&format!("can't listen on {address}"), &error))
}

impl Listener {
    /// The next connection.
    pub async fn accept(&self) -> io::Result<Newcomer> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Newcomer::Tcp(stream.into_std()?, peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Newcomer::Unix(stream.into_std()?))
            }
        }
    }

    /// Where it listens; the port is the real one if zero was asked for.
    pub fn local_address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                Ok(Address::Tcp {
                    host: address.ip().to_string(),
                    port: address.port(),
                })
            }
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new(""));
                Ok(Address::Unix(path.to_owned()))
            }
        }
    }
}

/// An accepted connection that belongs to no runtime yet, so that any thread may serve it.
#[derive(Debug)]
pub enum Newcomer {
    /// TCP, from this address.
    Tcp(std::net::TcpStream, SocketAddr),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Newcomer {
    /// The other end's address; `None` without TCP.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(_, peer) => Some(peer.ip()),
            Self::Unix(_) => None,
        }
    }

    /// Closes it with some last words, in one packet and without waiting for anything. What has arrived already is taken off
    /// the socket, up to a limit: closing over unread bytes sends a reset, which can overtake the words.
    pub fn turn_away(self, words: &[u8]) {
        let Self::Tcp(stream, _) = self else {
            return;
        };
        let last_words = || {
            // They go out with the end behind them.
            SockRef::from(&stream).send_with_flags(words, MSG_MORE | MSG_NOSIGNAL)?;
            stream.shutdown(Shutdown::Write)?;
            (&stream).read(&mut [0; 2048])
        };
        // It never was anybody's: what fails now is nothing to tell of.
        let _ = last_words();
    }

    /// The connection, without TLS, on the runtime of the calling thread, with its options set.
    pub fn settle(self, config: &SocketConfig) -> io::Result<Stream> {
        let stream = match self {
            Self::Tcp(stream, peer) => Stream::tcp(TcpStream::from_std(stream)?, peer)?,
            Self::Unix(stream) => Stream::unix(UnixStream::from_std(stream)?),
        };
        if let Err(error) = configure(&stream, config) {
            tracing::debug!(%error, "socket options of a client");
        }
        Ok(stream)
    }
}

/// Connects to a server's address, trying each that its name resolves to, until `deadline`, and says for which client it
/// does where servers are told that. Errors name the address.
pub async fn dial(
    address: &Address,
    config: &SocketConfig,
    client: Option<Route>,
    deadline: Instant,
) -> io::Result<Stream> {
    let connected = async {
        let mut stream = match address {
            Address::Tcp { host, port } => dial_tcp(host, *port, config).await?,
            Address::Unix(path) => UnixStream::connect(path).await.map(Stream::unix)?,
        };
        if let Some(version) = config.proxy_protocol {
            let mut header = BytesMut::new();
            version.put(client, &mut header);
            stream.write_all(&header).await?;
        }
        Ok(stream)
    };
    let result = timeout_at(deadline, connected).await;
    let result = result
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")));
    result.map_err(|error| named(&format!("can't connect to {address}"), &error))
}

/// Sets keepalive and TCP_USER_TIMEOUT; nothing to do without TCP.
fn configure(stream: &Stream, config: &SocketConfig) -> io::Result<()> {
    match stream.socket() {
        Socket::Tcp(stream, _) => set_options(&SockRef::from(stream), config),
        Socket::Unix(_) | Socket::Duplex(_) => Ok(()),
    }
}

fn set_options(socket: &SockRef<'_>, config: &SocketConfig) -> io::Result<()> {
    if config.keepalive.is_zero() {
        socket.set_keepalive(false)?;
    } else {
        let keepalive = TcpKeepalive::new()
            .with_time(config.keepalive)
            .with_interval(config.keepalive);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    let user_timeout = config.tcp_user_timeout;
    socket.set_tcp_user_timeout((!user_timeout.is_zero()).then_some(user_timeout))
}

fn tcp_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut failure = None;
    for address in lookup_host((host, port)).await? {
        let bound = tcp_socket(address).and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(no_address))
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file of that name is there, and it is no socket",
            ));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process listens there",
                ));
            }
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

async fn dial_tcp(host: &str, port: u16, config: &SocketConfig) -> io::Result<Stream> {
    let mut failure = None;
    for address in lookup_host((host, port)).await? {
        let socket = tcp_socket(address)?;
        set_options(&SockRef::from(&socket), config)?;
        match socket.connect(address).await {
            Ok(stream) => return Stream::tcp(stream, address),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(no_address))
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

/// The same kind of error, told with what was being done.
fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    const CONFIG: SocketConfig = SocketConfig {
        keepalive: Duration::from_mins(1),
        tcp_user_timeout: Duration::from_secs(30),
        proxy_protocol: None,
    };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    async fn talk(listener: &Listener) -> (Stream, Stream) {
        let address = listener.local_address().expect("bound");
        let (near, far) = tokio::join!(listener.accept(), dial(&address, &CONFIG, None, soon()));
        let near = near.expect("accepted").settle(&CONFIG);
        let (mut near, mut far) = (near.expect("usable"), far.expect("connected"));
        far.write_all(b"hello").await.expect("written");
        let mut got = [0; 5];
        near.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"hello");
        (near, far)
    }

    #[tokio::test]
    async fn tcp_with_its_options() {
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let listener = bind(&address).await.expect("a free port");
        let (near, far) = talk(&listener).await;
        for stream in [&near, &far] {
            let Socket::Tcp(tcp, _) = stream.socket() else {
                panic!("a TCP socket");
            };
            let socket = SockRef::from(tcp);
            assert!(tcp.nodelay().expect("an option"));
            assert!(socket.keepalive().expect("an option"));
            assert_eq!(
                socket.tcp_keepalive_time().expect("an option"),
                CONFIG.keepalive
            );
            assert_eq!(
                socket.tcp_user_timeout().expect("an option"),
                Some(CONFIG.tcp_user_timeout)
            );
        }
        let in_use = listener.local_address().expect("bound");
        let error = bind(&in_use).await.expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&in_use.to_string()), "{error}");
    }

    #[tokio::test]
    async fn nobody_listens() {
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let listener = bind(&address).await.expect("a free port");
        let address = listener.local_address().expect("bound");
        drop(listener);
        let error = dial(&address, &CONFIG, None, soon())
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let late = dial(
            &address,
            &CONFIG,
            None,
            Instant::now() - Duration::from_secs(1),
        )
        .await;
        assert!(late.is_err());
    }

    #[tokio::test]
    async fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let address = Address::Unix(dir.path().join("s"));
        let listener = bind(&address).await.expect("a new socket");
        talk(&listener).await;
        let error = bind(&address).await.expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let listener = bind(&address).await.expect("a stale socket");
        talk(&listener).await;
        std::fs::write(dir.path().join("f"), "precious").expect("written");
        let error = bind(&Address::Unix(dir.path().join("f"))).await;
        assert_eq!(
            error.expect_err("a file").kind(),
            io::ErrorKind::AlreadyExists
        );
        let kept = std::fs::read_to_string(dir.path().join("f")).expect("kept");
        assert_eq!(kept, "precious");
    }
}
