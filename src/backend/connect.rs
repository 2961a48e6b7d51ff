//! Logs in to a server on a client's behalf, or as the service account.

use super::Endpoint;
use super::frames::Frames;
use crate::auth::Credential;
use crate::auth::md5;
use crate::auth::scram::{Binding, ClientExchange, ClientSigned, NONCE_BYTES};
use crate::transport::proxy_header::{self, Route};
use crate::transport::stream::Stream;
use crate::transport::{Address, ServerTls, SocketConfig, socket, tls};
use crate::wire::pg::backend::ErrorFields;
use crate::wire::pg::frame::{Reader, put, put_cstr};
use crate::wire::pg::startup::{
    MAX_CANCEL_SECRET, NEWEST_MINOR, PROTOCOL_3_0, StartupParams, put_cancel_request,
    put_ssl_request, put_startup,
};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use zeroize::Zeroize;

/// A login that is wanted.
#[derive(Debug, Clone)]
pub struct Login<'a> {
    /// Which server.
    pub endpoint: &'a Endpoint,
    /// Keepalive of the connection.
    pub socket: &'a SocketConfig,
    /// The whole start-up packet.
    pub params: &'a StartupParams,
    /// Proves who logs in; none where the server is expected to ask for nothing.
    pub credential: Option<&'a Credential>,
    /// Which client it is for; none: nobody, or one without addresses. Only servers that are told (`server_proxy_protocol`)
    /// learn of it.
    pub client: Option<Route>,
    /// When to give up.
    pub deadline: Instant,
}

/// A server connection, logged in and idle.
pub struct Connected {
    /// The socket.
    pub stream: Stream,
    /// What the server reported, in its order.
    pub params: Vec<(Bytes, Bytes)>,
    /// NoticeResponse messages, as they came.
    pub notices: BytesMut,
    /// The server process.
    pub process: i32,
    /// Its cancel key; empty when the server told none.
    pub secret: Bytes,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connected to server process {}", self.process)
    }
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server said no, in its own words.
    #[error("the server refused the login: {} ({})", .fields.message, .fields.code)]
    Server {
        /// What decisions need of it.
        fields: Box<ErrorFields>,
        /// The body of its ErrorResponse, for the client.
        body: Bytes,
    },
    /// No connection, or it broke.
    #[error("can't connect to the server at {address}: {source}")]
    Io {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// TLS was wanted and could not be had.
    #[error("TLS with the server at {address}: {reason}")]
    Tls {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The server asked for what Slackwater can't give.
    #[error("{0}")]
    Auth(String),
    /// The server took too long.
    #[error("the server at {address} did not complete the login in time")]
    Timeout {
        /// Where.
        address: String,
    },
}

impl ConnectError {
    /// The same, told with what may be behind it when the server was sent a PROXY header.
    fn after_header(self) -> Self {
        match self {
            Self::Io { address, source } if proxy_header::may_be_refusal(source.kind()) => {
                let source = io::Error::new(source.kind(), proxy_header::doubt(source));
                Self::Io { address, source }
            }
            Self::Tls { address, reason } => Self::Tls {
                address,
                reason: proxy_header::doubt(reason),
            },
            other => other,
        }
    }

    /// The server is away, starting or full: waiting may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Server { fields, .. } => match fields.code.as_str() {
                // Starting up, shutting down, in recovery; a fast shutdown ends new backends so.
                "57P03" | "57P01" | "57P02" => true,
                // Full. The limit of a role or a database is told by these routines and will not pass.
                "53300" => !matches!(
                    fields.routine.as_str(),
                    "InitializeSessionUserId" | "CheckMyDatabase"
                ),
                _ => false,
            },
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
            ),
            Self::Timeout { .. } => true,
            Self::Tls { .. } | Self::Auth(_) => false,
        }
    }
}

/// Logs in.
pub async fn connect(login: &Login<'_>) -> Result<Connected, ConnectError> {
    let timeout = || ConnectError::Timeout {
        address: login.endpoint.address.to_string(),
    };
    let done = Box::pin(tokio::time::timeout_at(login.deadline, log_in(login)));
    let done = done.await.map_err(|_| timeout())?;
    done.map_err(|error| match login.socket.proxy_protocol {
        Some(_) => error.after_header(),
        None => error,
    })
}

/// Sends a CancelRequest and waits until the server has dealt with it, which it tells by closing.
pub async fn cancel(
    endpoint: &Endpoint,
    socket: &SocketConfig,
    client: Option<Route>,
    (process, secret): (i32, &[u8]),
    deadline: Instant,
) -> Result<(), ConnectError> {
    let work = async {
        let mut stream = open(endpoint, socket, client, deadline).await?;
        let mut out = BytesMut::new();
        put_cancel_request(&mut out, process, secret);
        let io = |source| io_error(endpoint, source);
        stream.write_all(&out).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        let mut end = [0; 64];
        while stream.read(&mut end).await.map_err(io)? > 0 {}
        Ok(())
    };
    tokio::time::timeout_at(deadline, work)
        .await
        .map_err(|_| ConnectError::Timeout {
            address: endpoint.address.to_string(),
        })?
}

impl Connected {
    /// Says good-bye and waits a moment for the server to be gone.
    pub async fn end(self) {
        close(self.stream).await;
    }
}

/// Bytes of notices that are kept of one login.
const NOTICES_MAX: usize = 64 * 1024;

/// How long a server may take to close after Terminate.
const CLOSE_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// Terminates a server connection; returns when the server has closed it, so that its backend is gone.
pub async fn close(mut stream: Stream) {
    let work = async {
        let mut out = BytesMut::new();
        put(&mut out, b'X', |_| {});
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        let mut rest = vec![0; 4096];
        while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
    };
    if tokio::time::timeout(CLOSE_MAX, work).await.is_err() {
        tracing::warn!("a server connection was not closed by the server within {CLOSE_MAX:?}");
    }
}

/// Opens the socket, with TLS where it is wanted.
async fn open(
    endpoint: &Endpoint,
    socket: &SocketConfig,
    client: Option<Route>,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let io = |source| io_error(endpoint, source);
    let mut stream = socket::dial(&endpoint.address, socket, client, deadline)
        .await
        .map_err(io)?;
    let Address::Tcp { host, .. } = &endpoint.address else {
        return Ok(stream);
    };
    if endpoint.tls == ServerTls::Disable {
        return Ok(stream);
    }
    let mut out = BytesMut::new();
    put_ssl_request(&mut out);
    stream.write_all(&out).await.map_err(io)?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(io)?;
    let tls_error = |reason: String| ConnectError::Tls {
        address: endpoint.address.to_string(),
        reason,
    };
    match answer {
        [b'S'] => tls::connect(stream, host, endpoint.tls, endpoint.tls_ca.as_deref())
            .await
            .map_err(|error| tls_error(error.to_string())),
        [b'N'] if endpoint.tls == ServerTls::Prefer => Ok(stream),
        [b'N'] => Err(tls_error(
            "the server does not support TLS, but server_tls demands it".into(),
        )),
        _ => Err(tls_error(
            "the server answered the SSLRequest with an unknown byte".into(),
        )),
    }
}

async fn log_in(login: &Login<'_>) -> Result<Connected, ConnectError> {
    let io = |source| io_error(login.endpoint, source);
    let (endpoint, socket) = (login.endpoint, login.socket);
    let mut stream = open(endpoint, socket, login.client, login.deadline).await?;
    let mut out = BytesMut::new();
    put_startup(&mut out, NEWEST_MINOR, login.params);
    let end_point = tls::server_end_point(&stream);
    let mut frames = Frames::new(&mut stream);
    frames.send(&out).await.map_err(io)?;
    let mut exchange = Sasl::None;
    let mut negotiated = false;
    let mut params = Vec::new();
    let mut notices = BytesMut::new();
    let mut process = 0;
    let mut secret = Bytes::new();
    let mut ready = false;
    // What comes at any time may come right behind ReadyForQuery.
    while !ready || frames.is_ahead() {
        let message = frames.next().await.map_err(io)?;
        if ready && !message.is_asynchronous() {
            let text = "the server spoke before it was asked";
            return Err(ConnectError::Auth(text.to_owned()));
        }
        match message.tag {
            b'R' => {
                let end_point = end_point.as_deref();
                let answer = authenticate(login, end_point, &message.body, &mut exchange)?;
                if let Some(mut answer) = answer {
                    let sent = frames.send(&answer).await;
                    // It may be a password.
                    answer.as_mut().zeroize();
                    sent.map_err(io)?;
                }
            }
            b'E' => {
                let fields = Box::new(ErrorFields::parse(&message.body));
                return Err(ConnectError::Server {
                    fields,
                    body: message.body,
                });
            }
            b'S' => {
                let mut reader = Reader::new(&message.body);
                if let (Ok(name), Ok(value)) = (reader.cstr(), reader.cstr()) {
                    params.push((message.body.slice_ref(name), message.body.slice_ref(value)));
                }
            }
            b'K' => {
                let mut reader = Reader::new(&message.body);
                process = reader.i32().unwrap_or(0);
                let told = reader.rest();
                if told.len() > MAX_CANCEL_SECRET {
                    let text = "the server told a cancel key that is longer than 256 bytes";
                    return Err(ConnectError::Auth(text.into()));
                }
                // A copy: a slice would keep the whole read buffer for as long as the session lasts.
                secret = Bytes::copy_from_slice(told);
            }
            b'v' => {
                negotiate(&message.body, negotiated).map_err(ConnectError::Auth)?;
                negotiated = true;
            }
            b'Z' => ready = true,
            b'N' if notices.len() + message.body.len() <= NOTICES_MAX => {
                put(&mut notices, b'N', |out| out.put_slice(&message.body));
            }
            // Nobody listens yet.
            b'N' | b'A' => {}
            tag => {
                let text = format!("the server sent message '{}' during login", char::from(tag));
                return Err(ConnectError::Auth(text));
            }
        }
    }
    Ok(Connected {
        stream,
        params,
        notices,
        process,
        secret,
    })
}

/// Takes a server's NegotiateProtocolVersion: an older one than 3.2 is as good, since only the length of
/// cancel keys differs.
fn negotiate(body: &[u8], again: bool) -> Result<(), String> {
    let mut reader = Reader::new(body);
    let (Ok(version), Ok(options)) = (reader.i32(), reader.i32()) else {
        return Err("the server's NegotiateProtocolVersion is cut".into());
    };
    let newest = PROTOCOL_3_0 | i32::from(NEWEST_MINOR);
    // PostgreSQL before 18 tells the minor version alone.
    let known = (PROTOCOL_3_0..=newest).contains(&version) || (0..=2).contains(&version);
    if again || !known || options != 0 {
        return Err("the server negotiates for what was not asked of it".into());
    }
    Ok(())
}

/// Where a SCRAM exchange with the server stands.
enum Sasl {
    None,
    Started(Box<ClientExchange>),
    Signed(Box<ClientSigned>),
}

/// Answers one Authentication message.
fn authenticate(
    login: &Login<'_>,
    end_point: Option<&[u8]>,
    body: &[u8],
    exchange: &mut Sasl,
) -> Result<Option<BytesMut>, ConnectError> {
    let fail = |text: &str| ConnectError::Auth(text.to_owned());
    let mut reader = Reader::new(body);
    let kind = reader
        .i32()
        .map_err(|_| fail("the server's authentication request is cut"))?;
    let user = login.params.get("user").unwrap_or_default();
    let mut out = BytesMut::new();
    match kind {
        // In the middle of an exchange the server has proven nothing yet.
        0 if !matches!(exchange, Sasl::None) => {
            return Err(fail(
                "the server let Slackwater in before it had proven that it holds the user's verifier",
            ));
        }
        0 => return Ok(None),
        3 => match login.credential {
            Some(Credential::Password(password)) => {
                put(&mut out, b'p', |out| put_cstr(out, password.as_bytes()));
            }
            _ => {
                return Err(fail(
                    "the server asks for a cleartext password, which Slackwater does not have: \
                     use scram-sha-256 in its pg_hba.conf",
                ));
            }
        },
        5 => {
            let salt = reader
                .bytes(4)
                .map_err(|_| fail("the server's md5 salt is cut"))?;
            let salt = <[u8; 4]>::try_from(salt).unwrap_or_default();
            let answer = match login.credential {
                Some(Credential::Md5Hash(hash)) => md5::response(hash.as_str(), salt),
                Some(Credential::Password(password)) => {
                    md5::response(&md5::hash(user, password.as_bytes()), salt)
                }
                _ => {
                    return Err(fail(
                        "the server asks for md5, but the client logged in with SCRAM: \
                         use scram-sha-256 in the server's pg_hba.conf",
                    ));
                }
            };
            put(&mut out, b'p', |out| put_cstr(out, answer.as_bytes()));
        }
        10 => {
            let credential = login.credential.ok_or_else(|| {
                fail("the server asks for a password, and none is configured for this account")
            })?;
            let started = start_scram(credential, reader.rest(), end_point)?;
            let first = started.first();
            let mechanism = started.mechanism();
            *exchange = Sasl::Started(Box::new(started));
            put(&mut out, b'p', |out| {
                put_cstr(out, mechanism.as_bytes());
                out.put_i32(i32::try_from(first.len()).unwrap_or(i32::MAX));
                out.put_slice(&first);
            });
        }
        11 => {
            let Sasl::Started(started) = std::mem::replace(exchange, Sasl::None) else {
                return Err(fail("the server's SASL messages are out of order"));
            };
            let (signed, last) = started
                .server_first(reader.rest())
                .map_err(|e| fail(&e.to_string()))?;
            *exchange = Sasl::Signed(Box::new(signed));
            put(&mut out, b'p', |out| out.put_slice(&last));
        }
        12 => {
            let Sasl::Signed(signed) = std::mem::replace(exchange, Sasl::None) else {
                return Err(fail("the server's SASL messages are out of order"));
            };
            signed
                .server_final(reader.rest())
                .map_err(|e| fail(&e.to_string()))?;
            return Ok(None);
        }
        other => {
            return Err(fail(&format!(
                "the server asks for authentication method {other}, which Slackwater can't do for a \
                 client: use scram-sha-256 or md5 in its pg_hba.conf"
            )));
        }
    }
    Ok(Some(out))
}

/// Takes the best of the server's offer of SASL mechanisms.
fn start_scram(
    credential: &Credential,
    offer: &[u8],
    end_point: Option<&[u8]>,
) -> Result<ClientExchange, ConnectError> {
    let fail = |text: &str| ConnectError::Auth(text.to_owned());
    let binding = Binding::choose(offer, end_point).ok_or_else(|| {
        fail("the server offers no SASL mechanism that is spoken here: SCRAM-SHA-256 is")
    })?;
    let mut nonce = [0; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| fail("no randomness"))?;
    let exchange = ClientExchange::new(credential, &nonce).map_err(|e| fail(&e.to_string()))?;
    Ok(exchange.binding(binding))
}

fn io_error(endpoint: &Endpoint, source: io::Error) -> ConnectError {
    ConnectError::Io {
        address: endpoint.address.to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pg::backend::{ErrorMessage, put_backend_key_data, put_error, put_ready};
    use std::time::Duration;
    use tokio::net::TcpListener;
    use zeroize::Zeroizing;

    /// What comes of a login to a server that answers the start-up packet with `answer`, and the packet.
    async fn against(answer: &[u8]) -> (Result<Connected, ConnectError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let endpoint = Endpoint {
            address: Address::Tcp {
                host: address.ip().to_string(),
                port: address.port(),
            },
            tls: ServerTls::Disable,
            tls_ca: None,
        };
        let socket = SocketConfig {
            keepalive: Duration::ZERO,
            tcp_user_timeout: Duration::ZERO,
            proxy_protocol: None,
        };
        let params = StartupParams(vec![(b"user".as_slice().into(), b"app".as_slice().into())]);
        let credential = Credential::Password(Zeroizing::new("pencil".to_owned()));
        let login = Login {
            endpoint: &endpoint,
            socket: &socket,
            params: &params,
            credential: Some(&credential),
            client: None,
            deadline: Instant::now() + Duration::from_secs(20),
        };
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut packet = vec![0; 4];
            stream.read_exact(&mut packet).await.expect("a length");
            let length = u32::from_be_bytes(packet[..4].try_into().expect("four bytes"));
            packet.resize(length as usize, 0);
            stream.read_exact(&mut packet[4..]).await.expect("a packet");
            stream.write_all(answer).await.expect("written");
            (packet, stream)
        };
        let (result, (packet, _stream)) = tokio::join!(connect(&login), server);
        (result, packet)
    }

    fn raw(tag: u8, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, tag, |out| out.put_slice(body));
        out
    }

    fn welcome(key: Option<&[u8]>) -> BytesMut {
        let mut out = raw(b'R', &[0; 4]);
        if let Some(key) = key {
            put_backend_key_data(&mut out, 7, key);
        }
        put_ready(&mut out, b'I');
        out
    }

    #[tokio::test]
    async fn case_08_keys_of_every_length_are_kept_and_longer_ones_refused() {
        for length in [4, 5, 32, 256] {
            let key = vec![9; length];
            let (result, packet) = against(&welcome(Some(&key))).await;
            let connected = result.expect("logged in");
            assert_eq!((connected.process, &connected.secret[..]), (7, &key[..]));
            assert_eq!(packet[4..8], [0, 3, 0, 2], "protocol 3.2 is asked for");
        }
        let (result, _) = against(&welcome(Some(&[9; 257]))).await;
        let text = result.expect_err("too long").to_string();
        assert!(text.contains("256"), "{text}");
    }

    #[tokio::test]
    async fn case_09_a_server_without_a_cancel_key_is_taken() {
        let (result, _) = against(&welcome(None)).await;
        let connected = result.expect("logged in");
        assert_eq!((connected.process, connected.secret.len()), (0, 0));
    }

    #[tokio::test]
    async fn an_older_server_negotiates_down_and_nothing_else_is_negotiated() {
        let whole = |version: [u8; 4], options: u8| {
            let mut body = version.to_vec();
            body.extend_from_slice(&[0, 0, 0, options]);
            raw(b'v', &body)
        };
        // PostgreSQL 18, and the minor version alone of the ones before.
        for version in [[0, 3, 0, 0], [0, 3, 0, 2], [0, 0, 0, 0]] {
            let answer = [&whole(version, 0)[..], &welcome(Some(&[1; 4]))].concat();
            assert!(against(&answer).await.0.is_ok(), "{version:?}");
        }
        let twice = [whole([0, 3, 0, 0], 0), whole([0, 3, 0, 0], 0)].concat();
        for answer in [
            twice,
            whole([0, 3, 0, 3], 0).to_vec(),
            whole([0, 4, 0, 0], 0).to_vec(),
            whole([0, 3, 0, 0], 1).to_vec(),
            raw(b'v', b"cut").to_vec(),
        ] {
            let answer = [&answer[..], &welcome(None)].concat();
            let (result, _) = against(&answer).await;
            assert!(matches!(result, Err(ConnectError::Auth(_))), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_proves_nothing_is_not_believed() {
        let challenge = raw(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let early = [&challenge[..], &welcome(Some(&[1; 4]))].concat();
        let (result, _) = against(&early).await;
        let text = result.expect_err("no proof").to_string();
        assert!(text.contains("before it had proven"), "{text}");
        let (result, _) = against(&raw(b'R', b"\0\0\0\x0aOAUTHBEARER\0\0")).await;
        let text = result.expect_err("not spoken here").to_string();
        assert!(text.contains("SCRAM-SHA-256 is"), "{text}");
    }

    #[tokio::test]
    async fn cve_2026_6666_an_error_without_sqlstate_is_an_error_like_any() {
        for body in [&b"SFATAL\0Mno code\0\0"[..], b"Mno end", b"\0", b""] {
            let (result, _) = against(&raw(b'E', body)).await;
            let error = result.expect_err("refused");
            assert!(!error.may_pass(), "{body:?}");
            let ConnectError::Server { fields, body: told } = error else {
                panic!("{error}");
            };
            assert_eq!((&*fields.code, &told[..]), ("", body));
        }
        let mut full = BytesMut::new();
        put_error(&mut full, &ErrorMessage::fatal("53300", "full"));
        assert!(against(&full).await.0.is_err_and(|e| e.may_pass()));
    }
}
