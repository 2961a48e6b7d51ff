//! A client's login: TLS and the start-up packet here, the password in [`super::authentication`].
//!
//! Nothing that a stranger sends makes more memory than it sent, and reads stop at fixed limits. There is no
//! clock in here: the caller puts one deadline around the whole login, and dropping these futures is safe,
//! since the connection goes with them. A refusal is written to the client before it is returned.

use crate::transport::ListenTls;
use crate::transport::proxy_header::Network;
use crate::transport::stream::Stream;
use crate::transport::tls::{ALPN, Certificates, EndPoint, Secured};
use crate::wire::pg::backend::{ErrorMessage, put_error};
use crate::wire::pg::startup::{
    self, CLUSTER_SETTING, FirstPacket, MAX_STARTUP, Replication, Startup, StartupParams,
};
use bytes::{BufMut, BytesMut};
use futures_util::FutureExt;
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

/// Bytes asked for by one read.
pub(super) const READ: usize = 1024;

/// Reads after a refusal, for what the client had sent already.
const GOODBYE_READS: usize = 64;

/// First byte of a TLS handshake. A start-up packet that began with it would be 369 MB long.
const TLS_HANDSHAKE: u8 = 0x16;

/// `handshake_failure`, for a client that opens TLS where there is none.
const TLS_ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

pub use super::authentication::{
    AuthError, Challenge, ClientCertificate, Method, authenticate, check_certificate,
};

/// What a listener's logins share.
pub struct HandshakeConfig {
    /// Whether TLS is there and whether it must be used. A Unix socket needs none.
    pub tls: ListenTls,
    /// Load balancers, which say whom they connect.
    pub proxied: Vec<Network>,
    /// What clients are shown.
    pub certificates: Arc<Certificates>,
    /// Salts for users that don't exist are made from it. Kept over restarts, or the salts would change and
    /// give away who exists.
    pub mock_secret: [u8; 32],
}

impl fmt::Debug for HandshakeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandshakeConfig with tls {:?}", self.tls)
    }
}

/// What a connection turned out to be.
pub enum Accepted {
    /// A client that wants a session; nothing is known of it yet but its words.
    Session(Box<Arrival>),
    /// A CancelRequest, which is never answered: act on it and close.
    Cancel {
        /// Process number that the client was told.
        process: i32,
        /// Secret that the client was told, 4 to 256 bytes.
        secret: Vec<u8>,
        /// To be closed once the cancel is settled: who sent it waits for that.
        stream: Stream,
    },
    /// It left before it said anything (a health check, or a client that wanted TLS and heard `N`).
    Closed,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(arrival) => arrival.fmt(f),
            Self::Cancel { process, .. } => write!(f, "Cancel of process {process}"),
            Self::Closed => f.write_str("Closed"),
        }
    }
}

/// A client after its start-up packet.
pub struct Arrival {
    /// Its connection, encrypted if it asked for that.
    pub stream: Stream,
    /// Its parameters as it sent them, but for `slackwater.cluster` in `options` and protocol options.
    pub params: StartupParams,
    /// Whether it wants to be a WAL sender's client.
    pub replication: Replication,
    /// The cluster that `options` names.
    pub cluster: Option<String>,
    /// Minor version of protocol 3 that is spoken with it.
    pub minor: u16,
    /// What channel binding to the certificate that it was shown means.
    pub end_point: Option<EndPoint>,
    /// Bytes received behind the last message that was read: the start of what a pipelining client wants.
    pub buffered: BytesMut,
    pub(super) mock_secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is buffered may be a password.
        f.debug_struct("Arrival")
            .field("peer", &self.stream.peer())
            .field("params", &self.params)
            .field("minor", &self.minor)
            .finish_non_exhaustive()
    }
}

impl Arrival {
    /// The user's name, never empty.
    pub fn user(&self) -> &[u8] {
        self.params.get("user").unwrap_or_default()
    }

    /// The database's name; the user's where the client gave none, as PostgreSQL does. Physical replication
    /// is in none.
    pub fn database(&self) -> &[u8] {
        if self.replication == Replication::Physical {
            return b"";
        }
        self.params
            .get("database")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| self.user())
    }
}

/// Why there is no session. The client was told, where it could be.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke, or ended inside a message.
    #[error("the client's connection was lost during its start-up")]
    Io(#[source] io::Error),
    /// No TLS came about; the source says whose fault it is.
    #[error("no TLS with the client")]
    Tls(#[source] io::Error),
    /// The client was told this and hung up on.
    #[error("refused the client's start-up: {message} ({code})")]
    Refused {
        /// SQLSTATE.
        code: &'static str,
        /// What the client read.
        message: String,
    },
}

/// Takes a new connection up to its start-up packet: SSLRequest and GSSENCRequest are answered, each once,
/// and direct TLS is taken. On an error the client was told what is wrong with it, and the connection is gone.
pub async fn accept(
    mut stream: Stream,
    config: &HandshakeConfig,
) -> Result<Accepted, HandshakeError> {
    let mut buf = BytesMut::new();
    let mut end_point = None;
    let (mut ssl_answered, mut gss_answered) = (false, false);
    loop {
        let packet = match first_packet(&mut stream, &mut buf).await {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(Accepted::Closed),
            Err(First::Io(error)) => return Err(HandshakeError::Io(error)),
            Err(First::Malformed(error)) => {
                return Err(refuse(stream, error.code(), &error.to_string(), "").await);
            }
            Err(First::DirectTls) if stream.is_tls() || ssl_answered || gss_answered => {
                let text = "TLS opened where a startup packet was expected";
                return Err(refuse(stream, "08P01", text, "").await);
            }
            Err(First::DirectTls) => {
                let secured = direct_tls(stream, &mut buf, config).await?;
                (stream, end_point) = (secured.stream, secured.end_point);
                (ssl_answered, gss_answered) = (true, true);
                continue;
            }
        };
        match packet {
            FirstPacket::Ssl if !ssl_answered => {
                ssl_answered = true;
                nothing_behind(&mut stream, &buf, "SSL").await?;
                if config.tls == ListenTls::Off || stream.is_private() {
                    send(&mut stream, b"N").await?;
                } else {
                    send(&mut stream, b"S").await?;
                    let accepted = config.certificates.accept(stream).await;
                    let secured = accepted.map_err(HandshakeError::Tls)?;
                    (stream, end_point) = (secured.stream, secured.end_point);
                    gss_answered = true;
                }
            }
            FirstPacket::GssEnc if !gss_answered => {
                gss_answered = true;
                nothing_behind(&mut stream, &buf, "GSSAPI encryption").await?;
                send(&mut stream, b"N").await?;
            }
            FirstPacket::Ssl | FirstPacket::GssEnc => {
                let text = "encryption was requested again after the request had been answered";
                return Err(refuse(stream, "08P01", text, "").await);
            }
            FirstPacket::Cancel { process, secret } => {
                return Ok(Accepted::Cancel {
                    process,
                    secret,
                    stream,
                });
            }
            FirstPacket::Startup(startup) => {
                let secured = Secured { stream, end_point };
                return arrive(secured, startup, buf, config).await;
            }
        }
    }
}

enum First {
    Io(io::Error),
    Malformed(startup::StartupError),
    DirectTls,
}

/// Reads until a first packet is there; `None` when the client left before it began one.
async fn first_packet(
    stream: &mut Stream,
    buf: &mut BytesMut,
) -> Result<Option<FirstPacket>, First> {
    loop {
        if buf.first() == Some(&TLS_HANDSHAKE) {
            return Err(First::DirectTls);
        }
        if let Some((packet, length)) = startup::parse(buf).map_err(First::Malformed)? {
            let _read = buf.split_to(length);
            return Ok(Some(packet));
        }
        let room = MAX_STARTUP.saturating_sub(buf.len());
        if read_more(stream, buf, room).await.map_err(First::Io)? == 0 {
            return if buf.is_empty() {
                Ok(None)
            } else {
                Err(First::Io(io::ErrorKind::UnexpectedEof.into()))
            };
        }
    }
}

/// Bytes that arrived in clear behind a request for encryption may be another's: they must never be taken
/// for the client's own words (CVE-2021-3935).
async fn nothing_behind(
    stream: &mut Stream,
    buf: &BytesMut,
    what: &str,
) -> Result<(), HandshakeError> {
    if buf.is_empty() {
        return Ok(());
    }
    let message = format!("received unencrypted data after {what} request");
    let detail = "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.";
    let error = ErrorMessage::fatal("08P01", &message).detail(detail);
    say_goodbye(stream, &error).await;
    Err(HandshakeError::Refused {
        code: "08P01",
        message,
    })
}

/// A client that opens TLS without asking (`sslnegotiation=direct`). It must name the protocol in ALPN, as
/// PostgreSQL demands.
async fn direct_tls(
    mut stream: Stream,
    buf: &mut BytesMut,
    config: &HandshakeConfig,
) -> Result<Secured, HandshakeError> {
    if config.tls == ListenTls::Off || stream.is_private() {
        send(&mut stream, &TLS_ALERT).await?;
        let text = "TLS opened on a listener without TLS";
        return Err(HandshakeError::Refused {
            code: "08P01",
            message: text.to_owned(),
        });
    }
    let begun = buf.split();
    let accepted = config.certificates.accept_begun(stream, &begun).await;
    let secured = accepted.map_err(HandshakeError::Tls)?;
    if secured.stream.application_protocol() == Some(ALPN) {
        Ok(secured)
    } else {
        let text =
            "received direct SSL connection request without ALPN protocol negotiation extension";
        Err(refuse(secured.stream, "08P01", text, "").await)
    }
}

async fn arrive(
    secured: Secured,
    startup: Startup,
    buffered: BytesMut,
    config: &HandshakeConfig,
) -> Result<Accepted, HandshakeError> {
    let Secured {
        mut stream,
        end_point,
    } = secured;
    let Startup {
        minor: asked,
        mut params,
        unsupported,
    } = startup;
    let minor = asked.min(startup::NEWEST_MINOR);
    if config.tls == ListenTls::Require && !stream.is_private() {
        let text = "connection requires TLS: this listener takes no unencrypted connections";
        let hint = "Connect with sslmode=require, verify-ca or verify-full.";
        return Err(refuse(stream, "28000", text, hint).await);
    }
    let replication = match startup::replication(&params) {
        asked @ (Replication::No | Replication::Physical | Replication::Logical) => asked,
        Replication::Invalid => {
            let value = params.get("replication").unwrap_or_default();
            let value = String::from_utf8_lossy(value);
            let text = format!("invalid value for parameter \"replication\": \"{value}\"");
            let hint = "Valid values are: \"false\", 0, \"true\", 1, \"database\".";
            return Err(refuse(stream, "22023", &text, hint).await);
        }
    };
    let cluster = match params.take_cluster().map(String::from_utf8) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(_)) => {
            let text = format!("the value of {CLUSTER_SETTING} in options is not UTF-8");
            return Err(refuse(stream, "22021", &text, "").await);
        }
    };
    if asked > minor || !unsupported.is_empty() {
        let mut out = BytesMut::new();
        startup::put_negotiate_version(&mut out, minor, &unsupported);
        send(&mut stream, &out).await?;
    }
    Ok(Accepted::Session(Box::new(Arrival {
        stream,
        params,
        replication,
        cluster,
        minor,
        end_point,
        buffered,
        mock_secret: Zeroizing::new(config.mock_secret),
    })))
}

/// One read of at most `room` bytes, appended to `buf`; 0 at the end.
pub(super) async fn read_more(
    stream: &mut Stream,
    buf: &mut BytesMut,
    room: usize,
) -> io::Result<usize> {
    let room = room.min(READ);
    buf.reserve(room);
    stream.read_buf(&mut buf.limit(room)).await
}

async fn send(stream: &mut Stream, bytes: &[u8]) -> Result<(), HandshakeError> {
    write(stream, bytes).await.map_err(HandshakeError::Io)
}

pub(super) async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn refuse(
    mut stream: Stream,
    code: &'static str,
    message: &str,
    hint: &str,
) -> HandshakeError {
    let error = ErrorMessage::fatal(code, message).hint(hint);
    say_goodbye(&mut stream, &error).await;
    HandshakeError::Refused {
        code,
        message: message.to_owned(),
    }
}

/// Writes a last error. What has arrived meanwhile is taken off the socket, up to a limit and without
/// waiting: closing over unread bytes sends a reset, which can overtake the error.
pub(super) async fn say_goodbye(stream: &mut Stream, error: &ErrorMessage<'_>) {
    let mut out = BytesMut::new();
    put_error(&mut out, error);
    if write(stream, &out).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    let mut scrap = [0; READ];
    for _ in 0..GOODBYE_READS {
        match stream.read(&mut scrap).now_or_never() {
            Some(Ok(1..)) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::script::{config, frame, in_time, pipe, put_all, startup_packet};
    use crate::transport::ServerTls;
    use crate::transport::tls;
    use crate::wire::pg::backend::ErrorFields;
    use crate::wire::pg::startup::{PROTOCOL_3_0, put_cancel_request, put_ssl_request};

    const GSSENC: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];

    fn ssl_request() -> BytesMut {
        let mut out = BytesMut::new();
        put_ssl_request(&mut out);
        out
    }

    async fn byte(stream: &mut Stream) -> u8 {
        stream.read_u8().await.expect("an answer")
    }

    async fn end(stream: &mut Stream) {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("closed");
        assert_eq!(rest, b"", "nothing more");
    }

    async fn open_tls(stream: Stream) -> Stream {
        let opened = tls::connect(stream, "localhost", ServerTls::Require, None).await;
        opened.expect("a handshake")
    }

    /// Sends all of `bytes` at once and returns the error that comes back.
    async fn refusal(tls: ListenTls, bytes: &[u8]) -> ErrorFields {
        let config = config(tls);
        let (near, mut far) = pipe();
        let client = async {
            put_all(&mut far, bytes).await;
            let (tag, body) = frame(&mut far).await;
            assert_eq!(tag, b'E');
            end(&mut far).await;
            ErrorFields::parse(&body)
        };
        let (result, told) = in_time(async { tokio::join!(accept(near, &config), client) }).await;
        let Err(HandshakeError::Refused { code, message }) = result else {
            panic!("{result:?}");
        };
        assert_eq!((code, &message), (&*told.code, &told.message));
        assert_eq!(told.severity, "FATAL");
        told
    }

    async fn arrival(config: &HandshakeConfig, near: Stream) -> Arrival {
        match accept(near, config).await {
            Ok(Accepted::Session(arrival)) => *arrival,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn case_10_a_start_up_byte_by_byte() {
        let config = config(ListenTls::Prefer);
        let (near, mut far) = pipe();
        let body = b"user\0app\0options\0-c slackwater.cluster=shop -c a=b\0\0";
        let client = async {
            for byte in startup_packet(PROTOCOL_3_0, body) {
                put_all(&mut far, &[byte]).await;
                tokio::task::yield_now().await;
            }
        };
        let (arrival, ()) = in_time(async { tokio::join!(arrival(&config, near), client) }).await;
        assert_eq!(arrival.user(), b"app");
        assert_eq!(arrival.database(), b"app");
        assert_eq!(arrival.cluster.as_deref(), Some("shop"));
        assert_eq!(arrival.params.get("options"), Some(b"-c a=b".as_slice()));
        assert!(!arrival.stream.is_tls());
    }

    #[tokio::test]
    async fn case_10_tls_then_a_session_with_bytes_behind() {
        for (tls, gss_first) in [
            (ListenTls::Prefer, false),
            (ListenTls::Prefer, true),
            (ListenTls::Require, false),
        ] {
            let config = config(tls);
            let (near, mut far) = pipe();
            let client = async {
                if gss_first {
                    put_all(&mut far, GSSENC).await;
                    assert_eq!(byte(&mut far).await, b'N');
                }
                put_all(&mut far, &ssl_request()).await;
                assert_eq!(byte(&mut far).await, b'S');
                let mut far = open_tls(far).await;
                let mut bytes = startup_packet(PROTOCOL_3_0, b"user\0app\0database\0shop\0\0");
                bytes.extend_from_slice(b"pipelined");
                put_all(&mut far, &bytes).await;
                far
            };
            let (arrival, _far) =
                in_time(async { tokio::join!(arrival(&config, near), client) }).await;
            assert!(arrival.stream.is_tls());
            assert_eq!(arrival.stream.server_name(), Some("localhost"));
            assert_eq!(arrival.database(), b"shop");
            assert_eq!(&arrival.buffered[..], b"pipelined");
        }
    }

    #[tokio::test]
    async fn direct_tls_is_taken_or_refused_at_once() {
        let prefer = config(ListenTls::Prefer);
        let (near, far) = pipe();
        let client = async {
            let mut far = open_tls(far).await;
            put_all(&mut far, &startup_packet(PROTOCOL_3_0, b"user\0app\0\0")).await;
            far
        };
        let (arrival, _far) = in_time(async { tokio::join!(arrival(&prefer, near), client) }).await;
        assert!(arrival.stream.is_tls());
        let off = config(ListenTls::Off);
        let (near, far) = pipe();
        let client = tls::connect(far, "localhost", ServerTls::Require, None);
        let (result, client) = in_time(async { tokio::join!(accept(near, &off), client) }).await;
        assert!(matches!(result, Err(HandshakeError::Refused { .. })));
        let text = client.expect_err("no TLS here").to_string();
        assert!(text.contains("HandshakeFailure"), "{text}");
    }

    #[tokio::test]
    async fn case_14_cve_2021_3935_clear_bytes_behind_a_request_are_refused() {
        for tls in [ListenTls::Off, ListenTls::Prefer, ListenTls::Require] {
            for (request, words) in [(&ssl_request()[..], "SSL"), (GSSENC, "GSSAPI")] {
                let mut bytes = request.to_vec();
                bytes.extend(startup_packet(PROTOCOL_3_0, b"user\0app\0\0"));
                let told = refusal(tls, &bytes).await;
                assert_eq!(told.code, "08P01");
                assert!(told.message.contains("unencrypted data after"), "{told:?}");
                assert!(told.message.contains(words), "{told:?}");
            }
        }
    }

    #[tokio::test]
    async fn case_15_each_request_is_answered_once() {
        for requests in [[&ssl_request()[..], &ssl_request()[..]], [GSSENC, GSSENC]] {
            let config = config(ListenTls::Off);
            let (near, mut far) = pipe();
            let client = async {
                put_all(&mut far, requests[0]).await;
                assert_eq!(byte(&mut far).await, b'N');
                put_all(&mut far, requests[1]).await;
                frame(&mut far).await
            };
            let (result, told) =
                in_time(async { tokio::join!(accept(near, &config), client) }).await;
            assert!(matches!(result, Err(HandshakeError::Refused { .. })));
            assert_eq!(ErrorFields::parse(&told.1).code, "08P01");
        }
        for request in [&ssl_request()[..], GSSENC] {
            let config = config(ListenTls::Prefer);
            let (near, mut far) = pipe();
            let client = async {
                put_all(&mut far, &ssl_request()).await;
                assert_eq!(byte(&mut far).await, b'S');
                let mut far = open_tls(far).await;
                put_all(&mut far, request).await;
                frame(&mut far).await
            };
            let (result, told) =
                in_time(async { tokio::join!(accept(near, &config), client) }).await;
            assert!(matches!(result, Err(HandshakeError::Refused { .. })));
            assert_eq!(ErrorFields::parse(&told.1).code, "08P01", "inside TLS");
        }
    }

    #[tokio::test]
    async fn what_is_refused_and_how() {
        let start = |body: &[u8]| startup_packet(PROTOCOL_3_0, body);
        let mut long = start(&[b'a'; 9_993]);
        assert_eq!(long.len(), 10_001);
        long.resize(70_000, b'a');
        for (bytes, code, words) in [
            (long, "08P01", "invalid length of startup packet"),
            (
                b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                "08P01",
                "invalid length",
            ),
            (vec![0; 64], "08P01", "invalid length"),
            (start(b"\0"), "28000", "no PostgreSQL user name"),
            (start(b"user\0u"), "08P01", "terminator"),
            (
                startup_packet(2 << 16, b"user\0u\0\0"),
                "0A000",
                "unsupported frontend protocol 2.0",
            ),
            (
                start(b"user\0u\0replication\0maybe\0\0"),
                "22023",
                "\"maybe\"",
            ),
            (
                start(b"user\0u\0options\0-c slackwater.cluster=\xff\0\0"),
                "22021",
                "UTF-8",
            ),
        ] {
            let told = refusal(ListenTls::Prefer, &bytes).await;
            assert_eq!(told.code, code, "{told:?}");
            assert!(told.message.contains(words), "{told:?}");
        }
        let told = refusal(ListenTls::Require, &start(b"user\0u\0\0")).await;
        assert_eq!(told.code, "28000");
        assert!(told.message.contains("requires TLS"), "{told:?}");
    }

    #[tokio::test]
    async fn nothing_that_is_printed_tells_a_secret() {
        let mut config = config(ListenTls::Off);
        config.mock_secret = [173; 32];
        let (near, mut far) = pipe();
        let mut bytes = startup_packet(PROTOCOL_3_0, b"user\0app\0\0");
        bytes.extend_from_slice(b"p\0\0\0\x0bsecret\0");
        put_all(&mut far, &bytes).await;
        let accepted = in_time(accept(near, &config)).await;
        let (near, mut far) = pipe();
        let mut cancel = BytesMut::new();
        put_cancel_request(&mut cancel, 42, &[173; 32]);
        put_all(&mut far, &cancel).await;
        let cancelled = in_time(accept(near, &config)).await;
        let packet = startup::parse(&cancel);
        let printed = format!("{config:?} {accepted:?} {cancelled:?} {packet:?}");
        assert!(
            printed.contains("duplex") && printed.contains("42"),
            "{printed}"
        );
        assert!(
            !printed.contains("173") && !printed.contains("secret"),
            "{printed}"
        );
        assert!(!printed.contains("\\xad"), "{printed}");
    }

    #[tokio::test]
    async fn a_cancel_needs_no_tls() {
        let config = config(ListenTls::Require);
        let (near, mut far) = pipe();
        let mut cancel = BytesMut::new();
        put_cancel_request(&mut cancel, 42, &[7; 32]);
        put_all(&mut far, &cancel).await;
        let accepted = in_time(accept(near, &config)).await;
        let Ok(Accepted::Cancel {
            process: 42,
            secret,
            stream,
        }) = accepted
        else {
            panic!("a cancel was sent: {accepted:?}");
        };
        assert_eq!(secret, [7; 32]);
        let closed = AsyncReadExt::read_u8(&mut far);
        let mut closed = std::pin::pin!(closed);
        assert!(
            futures_util::poll!(&mut closed).is_pending(),
            "open until it is settled"
        );
        drop(stream);
        in_time(closed).await.expect_err("closed without an answer");
    }

    #[tokio::test]
    async fn leaving_early_is_no_fault_and_leaving_midway_is_one() {
        let config = config(ListenTls::Off);
        let (near, far) = pipe();
        drop(far);
        assert!(matches!(accept(near, &config).await, Ok(Accepted::Closed)));
        let (near, mut far) = pipe();
        let client = async {
            put_all(&mut far, &ssl_request()).await;
            assert_eq!(byte(&mut far).await, b'N');
            drop(far);
        };
        let (accepted, ()) = in_time(async { tokio::join!(accept(near, &config), client) }).await;
        assert!(matches!(accepted, Ok(Accepted::Closed)));
        let (near, mut far) = pipe();
        put_all(&mut far, &ssl_request()[..5]).await;
        drop(far);
        let accepted = in_time(accept(near, &config)).await;
        assert!(matches!(accepted, Err(HandshakeError::Io(_))));
    }

    #[tokio::test]
    async fn a_unix_socket_needs_no_tls() {
        let config = config(ListenTls::Require);
        let (near, far) = tokio::net::UnixStream::pair().expect("a pair");
        let mut far = Stream::unix(far);
        let client = async {
            put_all(&mut far, &ssl_request()).await;
            assert_eq!(byte(&mut far).await, b'N');
            put_all(&mut far, &startup_packet(PROTOCOL_3_0, b"user\0app\0\0")).await;
        };
        let near = Stream::unix(near);
        let (arrival, ()) = in_time(async { tokio::join!(arrival(&config, near), client) }).await;
        assert_eq!(arrival.user(), b"app");
    }
}
