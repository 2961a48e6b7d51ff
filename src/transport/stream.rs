//! One connection, plain or encrypted, as the relay and the logins see it.
//!
//! Everything is delegated poll by poll: no boxed future, no buffer and no lock of its own.

use super::codec::Algorithm;
use super::compressed::Compressed;
use super::proxy_header::Route;
use bytes::BytesMut;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::CommonState;
use tokio_rustls::{client, server};

/// A connection to a client or to a server.
///
/// Under TLS a write may leave bytes inside until [`AsyncWrite::poll_flush`]; who writes, flushes.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(Socket),
    /// TLS that a client opened.
    TlsAccepted(Box<server::TlsStream<Socket>>),
    /// TLS opened towards a server.
    TlsConnected(Box<client::TlsStream<Socket>>),
    /// Any of them, compressed as MySQL's protocol does it.
    Compressed(Box<Compressed>),
}

/// What carries the bytes.
#[derive(Debug)]
pub enum Socket {
    /// TCP, and who is at its ends.
    Tcp(TcpStream, Ends),
    /// A Unix socket.
    Unix(UnixStream),
    /// A pipe inside the process, for tests.
    Duplex(DuplexStream),
}

/// The ends of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The other end, which the system forgets once it is gone; behind a load balancer the client that it names.
    pub peer: SocketAddr,
    /// What that client connected to by the load balancer's account; none: this end.
    pub named: Option<SocketAddr>,
}

impl Stream {
    /// A TCP connection without TLS. Small writes go out at once.
    pub fn tcp(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let ends = Ends { peer, named: None };
        Ok(Self::Plain(Socket::Tcp(stream, ends)))
    }

    /// A Unix socket.
    pub const fn unix(stream: UnixStream) -> Self {
        Self::Plain(Socket::Unix(stream))
    }

    /// A pipe inside the process.
    pub const fn duplex(stream: DuplexStream) -> Self {
        Self::Plain(Socket::Duplex(stream))
    }

    /// MySQL's compressed protocol is spoken.
    pub fn is_compressed(&self) -> bool {
        matches!(self, Self::Compressed(_))
    }

    /// What was written last ends a result: the compressed protocol numbers packets by that.
    pub fn end_of_result(&mut self) {
        if let Self::Compressed(layer) = self {
            layer.end_of_result();
        }
    }

    /// The same connection, compressed from now on (MySQL's protocol); `raw` was read already.
    #[must_use]
    pub fn compressed(self, algorithm: Algorithm, raw: BytesMut) -> Self {
        Self::Compressed(Box::new(Compressed::new(self, algorithm, raw)))
    }

    /// Bytes travel encrypted.
    pub const fn is_tls(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::TlsAccepted(_) | Self::TlsConnected(_) => true,
            Self::Compressed(layer) => layer.inner().is_tls(),
        }
    }

    /// Nobody on a network can read along: TLS, or a Unix socket.
    pub fn is_private(&self) -> bool {
        self.is_tls() || matches!(self.socket(), Socket::Unix(_))
    }

    /// The host name that a client asked for in its TLS handshake (SNI).
    pub fn server_name(&self) -> Option<&str> {
        match self {
            Self::TlsAccepted(tls) => tls.get_ref().1.server_name(),
            Self::Plain(_) | Self::TlsConnected(_) => None,
            Self::Compressed(layer) => layer.inner().server_name(),
        }
    }

    /// The protocol that was agreed on in the TLS handshake (ALPN).
    pub fn application_protocol(&self) -> Option<&[u8]> {
        self.tls().and_then(CommonState::alpn_protocol)
    }

    /// The certificate that the other end showed in the TLS handshake and proved to hold the key of.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        let shown = self.tls()?.peer_certificates()?;
        shown.first().map(AsRef::as_ref)
    }

    /// The other end, for logs and views: `address:port`, `unix`, or `duplex`.
    pub fn peer(&self) -> String {
        match self.socket() {
            Socket::Tcp(_, ends) => ends.peer.to_string(),
            Socket::Unix(_) => "unix".to_owned(),
            Socket::Duplex(_) => "duplex".to_owned(),
        }
    }

    /// The other end's address; `None` without TCP.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match self.socket() {
            Socket::Tcp(_, ends) => Some(ends.peer),
            Socket::Unix(_) | Socket::Duplex(_) => None,
        }
    }

    /// From where to where the other end connected; `None` without TCP.
    pub fn route(&self) -> Option<Route> {
        let Socket::Tcp(stream, ends) = self.socket() else {
            return None;
        };
        Some(Route {
            source: ends.peer,
            destination: match ends.named {
                Some(named) => named,
                None => stream.local_addr().ok()?,
            },
        })
    }

    /// The other end's FIN or RST has arrived, perhaps behind bytes that were not read yet, none of which
    /// this consumes. One system call. Always false on a `Duplex`, which can't tell.
    pub fn peer_gone(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(fd) = self.socket().fd() else {
            return false;
        };
        // nix has no name for it. Asked for nothing else, poll reports this, an error or a hang-up.
        let fin = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut fds = [PollFd::new(fd, fin)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Ready when a read is worth a buffer: bytes or an end are there. Lets an idle connection wait without
    /// owning one. Only to be relied on after [`AsyncRead::poll_read`] said `Pending`; a read may still find
    /// nothing (half a TLS record). A `Duplex` is always ready: its read itself waits.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Compressed(layer) = self {
            return if layer.has_more() {
                Poll::Ready(Ok(()))
            } else {
                layer.inner().poll_read_ready(cx)
            };
        }
        // Decrypted bytes wait inside, or there is something to say first.
        if self.tls().is_some_and(|tls| !tls.wants_read()) {
            return Poll::Ready(Ok(()));
        }
        match self.socket() {
            Socket::Tcp(stream, _) => stream.poll_read_ready(cx),
            Socket::Unix(stream) => stream.poll_read_ready(cx),
            Socket::Duplex(_) => Poll::Ready(Ok(())),
        }
    }

    /// Goes over to the runtime of the calling thread, with all that was read and said so far. After an error it is of no
    /// use any more.
    pub fn move_here(&mut self) -> io::Result<()> {
        let socket = self.socket_mut();
        // What is there while the socket is nowhere.
        let nowhere = Socket::Duplex(tokio::io::duplex(1).0);
        *socket = match std::mem::replace(socket, nowhere) {
            Socket::Tcp(stream, ends) => {
                Socket::Tcp(TcpStream::from_std(stream.into_std()?)?, ends)
            }
            Socket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream.into_std()?)?),
            Socket::Duplex(stream) => Socket::Duplex(stream),
        };
        Ok(())
    }

    fn socket_mut(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::TlsAccepted(tls) => tls.get_mut().0,
            Self::TlsConnected(tls) => tls.get_mut().0,
            Self::Compressed(layer) => layer.inner_mut().socket_mut(),
        }
    }

    /// What carries the bytes.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::TlsAccepted(tls) => tls.get_ref().0,
            Self::TlsConnected(tls) => tls.get_ref().0,
            Self::Compressed(layer) => layer.inner().socket(),
        }
    }

    fn tls(&self) -> Option<&CommonState> {
        match self {
            Self::Plain(_) => None,
            Self::TlsAccepted(tls) => Some(tls.get_ref().1),
            Self::TlsConnected(tls) => Some(tls.get_ref().1),
            Self::Compressed(layer) => layer.inner().tls(),
        }
    }
}

impl Socket {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream, _) => Some(stream.as_fd()),
            Self::Unix(stream) => Some(stream.as_fd()),
            Self::Duplex(_) => None,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::TlsAccepted(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
            Self::TlsConnected(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
            Self::Compressed(layer) => Pin::new(&mut **layer).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::TlsAccepted(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
            Self::TlsConnected(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
            Self::Compressed(layer) => Pin::new(&mut **layer).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::TlsAccepted(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
            Self::TlsConnected(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
            Self::Compressed(layer) => Pin::new(&mut **layer).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::TlsAccepted(_) | Self::TlsConnected(_) => true,
            Self::Compressed(_) => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::TlsAccepted(tls) => Pin::new(&mut **tls).poll_flush(cx),
            Self::TlsConnected(tls) => Pin::new(&mut **tls).poll_flush(cx),
            Self::Compressed(layer) => Pin::new(&mut **layer).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::TlsAccepted(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Self::TlsConnected(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Self::Compressed(layer) => Pin::new(&mut **layer).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Duplex(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Duplex(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Duplex(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream, _) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Duplex(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Duplex(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream, _) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Duplex(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn tcp_pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let far = TcpStream::connect(address).await.expect("connects");
        let (near, peer) = listener.accept().await.expect("accepts");
        (Stream::tcp(near, peer).expect("a socket"), far)
    }

    async fn until_gone(stream: &Stream) {
        let wait = async {
            while !stream.peer_gone() {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        waited.expect("the end is seen");
    }

    /// On a runtime of a thread of its own: goes over there, reads what there is and answers.
    fn answer_elsewhere(mut stream: Stream) -> std::thread::JoinHandle<()> {
        let work = async move {
            stream.move_here()?;
            let mut got = [0; 5];
            stream.read_exact(&mut got).await?;
            assert_eq!(&got, b"hello");
            stream.write_all(b"there").await
        };
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(work).expect("works");
        })
    }

    async fn talk_to_elsewhere(near: Stream, mut far: impl AsyncRead + AsyncWrite + Unpin) {
        // Half of it is there before, the rest comes after the first look.
        far.write_all(b"hel").await.expect("written");
        let thread = answer_elsewhere(near);
        far.write_all(b"lo").await.expect("written");
        let mut got = [0; 5];
        let answer = tokio::time::timeout(Duration::from_secs(10), far.read_exact(&mut got));
        answer.await.expect("in time").expect("an answer");
        assert_eq!(&got, b"there");
        thread.join().expect("no panic");
    }

    #[tokio::test]
    async fn another_threads_runtime_takes_it_over() {
        let (near, far) = tcp_pair().await;
        talk_to_elsewhere(near, far).await;
        let (near, far) = UnixStream::pair().expect("a pair");
        talk_to_elsewhere(Stream::unix(near), far).await;
        let (near, far) = tokio::io::duplex(64);
        talk_to_elsewhere(Stream::duplex(near), far).await;
    }

    #[tokio::test]
    async fn an_end_is_seen_behind_unread_bytes() {
        let (mut near, mut far) = tcp_pair().await;
        assert!(!near.peer_gone());
        far.write_all(b"a held request").await.expect("written");
        let mut byte = [0];
        near.read_exact(&mut byte).await.expect("bytes arrive");
        assert!(!near.peer_gone(), "bytes alone are no end");
        far.shutdown().await.expect("FIN");
        until_gone(&near).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.expect("nothing consumed");
        assert_eq!(rest, b" held request");
    }

    #[tokio::test]
    async fn a_reset_is_an_end() {
        let (near, far) = tcp_pair().await;
        socket2::SockRef::from(&far)
            .set_linger(Some(Duration::ZERO))
            .expect("an option");
        drop(far);
        until_gone(&near).await;
        assert!(near.peer().starts_with("127.0.0.1:"), "still known");
    }

    #[tokio::test]
    async fn an_end_is_seen_on_a_unix_socket() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let near = Stream::unix(near);
        assert!(!near.peer_gone());
        assert!(near.is_private() && !near.is_tls());
        drop(far);
        until_gone(&near).await;
    }

    #[tokio::test]
    async fn readiness_without_a_buffer() {
        let (mut near, mut far) = tcp_pair().await;
        let idle = std::future::poll_fn(|cx| {
            let mut none = [0];
            let mut none = ReadBuf::new(&mut none);
            let first = Pin::new(&mut near).poll_read(cx, &mut none);
            Poll::Ready(first.is_pending() && near.poll_read_ready(cx).is_pending())
        });
        assert!(idle.await);
        far.write_all(b"x").await.expect("written");
        let ready = std::future::poll_fn(|cx| near.poll_read_ready(cx));
        let ready = tokio::time::timeout(Duration::from_secs(10), ready).await;
        ready.expect("in time").expect("readable");
    }
}
