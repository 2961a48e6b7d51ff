//! Logs in to a server on a client's behalf, or as the service account.

use super::exec::{self, ExecError};
use super::frames::{PAYLOAD_MAX, Packets};
use super::offer::Offer;
use crate::auth::mysql::Credential;
use crate::auth::mysql::client::{ClientError, ClientExchange};
use crate::auth::mysql::proof::{self, Proof};
use crate::backend::Endpoint;
use crate::transport::proxy_header::{self, Route};
use crate::transport::stream::Stream;
use crate::transport::tls::Protocol;
use crate::transport::{Address, ServerTls, SocketConfig, socket, tls};
use crate::wire::mysql::auth::{ERR, ErrorPacket, LoginOk, MORE_DATA, OK, SWITCH, parse_switch};
use crate::wire::mysql::capabilities::Capabilities;
use crate::wire::mysql::handshake::{Greeting, HandshakeResponse, Version};
use crate::wire::mysql::packet::PacketError;
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Messages that an exchange of authentication may take.
const EXCHANGE_MAX: usize = 16;

/// How long a server may take to close after COM_QUIT.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// COM_QUIT, whole.
const QUIT: [u8; 5] = [1, 0, 0, 0, 1];

/// What is asked for at a log-in; kept with a session, whose every server connection is asked for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The user's name, in the client's character set.
    pub user: Bytes,
    /// The database.
    pub database: Option<Bytes>,
    /// What the client was granted. TLS, compression, session tracking and the flags of the log-in itself are decided
    /// here; all others are asked for as they are.
    pub capabilities: Capabilities,
    /// Longest packet that the client takes.
    pub max_packet: u32,
    /// Collation, the low byte of its number.
    pub charset: u8,
    /// Connection attributes, as they were sent.
    pub attributes: Bytes,
}

impl Request {
    /// The log-in of an account of Slackwater's own.
    pub fn own(user: &[u8], database: Option<&[u8]>) -> Self {
        let mut attributes = BytesMut::new();
        crate::wire::mysql::handshake::put_attribute(
            &mut attributes,
            b"program_name",
            b"slackwater",
        );
        Self {
            user: Bytes::copy_from_slice(user),
            database: database.map(Bytes::copy_from_slice),
            capabilities: Capabilities::LONG_FLAG
                | Capabilities::TRANSACTIONS
                | Capabilities::MULTI_RESULTS
                | Capabilities::DEPRECATE_EOF,
            max_packet: 1 << 24,
            // utf8mb4_general_ci, which all versions have.
            charset: 45,
            attributes: attributes.freeze(),
        }
    }
}

/// A log-in that is wanted.
#[derive(Debug, Clone)]
pub struct Login<'a> {
    /// Which server.
    pub endpoint: &'a Endpoint,
    /// Keepalive of the connection.
    pub socket: &'a SocketConfig,
    /// What is asked for.
    pub request: &'a Request,
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
    /// The number of the connection, as the server counts.
    pub connection_id: u32,
    /// The server's version.
    pub version: Version,
    /// What was agreed on.
    pub capabilities: Capabilities,
    /// Status flags of the last OK.
    pub status: u16,
    /// What this server would have clients greeted with.
    pub offer: Offer,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connected to {} as {}", self.version, self.connection_id)
    }
}

/// Why a log-in failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server said no, in its own words.
    #[error("the server refused the login: {error}")]
    Server {
        /// What decisions need of it.
        error: Box<ErrorPacket>,
        /// The payload of its ERR, for the client.
        payload: Bytes,
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
    /// It can't do what the client was promised.
    #[error("the server at {address} lacks what the client was promised: {lacks}")]
    Capabilities {
        /// Where.
        address: String,
        /// What.
        lacks: Capabilities,
    },
    /// The server took too long.
    #[error("the server at {address} did not complete the login in time")]
    Timeout {
        /// Where.
        address: String,
    },
}

impl From<ClientError> for ConnectError {
    fn from(error: ClientError) -> Self {
        Self::Auth(error.to_string())
    }
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

    /// The server is away, starting, stopping or full: waiting may help. The limits of one user (1203, 1226) and the
    /// server's refusal of a host (1129, 1130) will not pass.
    pub fn may_pass(&self) -> bool {
        match self {
            // Too many connections; shutting down; killed; offline mode; aborted while it was being made.
            Self::Server { error, .. } => {
                matches!(
                    error.code,
                    1040 | 1053 | 1079 | 1152 | 1184 | 1927 | 3032 | 3168
                )
            }
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
            Self::Tls { .. } | Self::Auth(_) | Self::Capabilities { .. } => false,
        }
    }

    /// The payload of the server's own ERR, for the client.
    pub fn server_words(&self) -> Option<&Bytes> {
        match self {
            Self::Server { payload, .. } => Some(payload),
            _ => None,
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

/// What is to be ended on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// What runs.
    Query,
    /// The connection.
    Connection,
}

/// Ends what runs on another connection of the same user, or that connection; returns when the server has taken note.
/// That it is gone already is fine.
pub async fn kill(login: &Login<'_>, connection_id: u32, what: Kill) -> Result<(), ExecError> {
    let request = Request::own(&login.request.user, None);
    let login = Login {
        request: &request,
        ..login.clone()
    };
    let word = match what {
        Kill::Query => "QUERY",
        Kill::Connection => "CONNECTION",
    };
    let sql = format!("KILL {word} {connection_id}");
    match exec::connect_and_query(&login, &sql).await {
        // No such thread.
        Err(ExecError::Server(error)) if error.code == 1094 => Ok(()),
        done => done.map(drop),
    }
}

impl Connected {
    /// Says good-bye and waits a moment for the server to be gone.
    pub async fn end(self) {
        close(self.stream).await;
    }
}

/// Ends a server connection; returns when the server has closed it, so that its session is gone.
pub async fn close(mut stream: Stream) {
    let work = async {
        if stream.write_all(&QUIT).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        let mut rest = vec![0; 4096];
        while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
    };
    if tokio::time::timeout(CLOSE_MAX, work).await.is_err() {
        tracing::warn!("a server connection was not closed by the server within {CLOSE_MAX:?}");
    }
}

async fn log_in(login: &Login<'_>) -> Result<Connected, ConnectError> {
    let endpoint = login.endpoint;
    let io = |source| ConnectError::Io {
        address: endpoint.address.to_string(),
        source,
    };
    let malformed =
        |_: PacketError| ConnectError::Auth("the server does not speak MySQL's protocol".into());
    let (socket, client) = (login.socket, login.client);
    let stream = socket::dial(&endpoint.address, socket, client, login.deadline).await;
    let mut packets = Packets::new(stream.map_err(io)?, PAYLOAD_MAX);
    let first = packets.next().await.map_err(io)?;
    if first.first() == Some(&ERR) {
        return Err(refusal(&first));
    }
    let greeting = Greeting::parse(&first).map_err(malformed)?;
    let mut response = answer_to(login, &greeting)?;
    if wants_tls(endpoint, &greeting)? {
        response.capabilities = response.capabilities | Capabilities::SSL;
        send(&mut packets, login, |out| response.put_ssl_request(out))
            .await
            .map_err(io)?;
        packets = encrypt(packets, endpoint).await?;
    }
    let private = packets.stream().is_private();
    let (plugin, nonce) = (&greeting.plugin, &greeting.nonce);
    let (mut exchange, answer) = ClientExchange::begin(login.credential, private, plugin, nonce);
    response.auth = answer;
    response.plugin = Some(Bytes::from_static(exchange.plugin().name().as_bytes()));
    send(&mut packets, login, |out| response.put(out))
        .await
        .map_err(io)?;
    for _ in 0..EXCHANGE_MAX {
        let payload = answer_of(&mut packets, login).await.map_err(io)?;
        let answer = match payload.first() {
            Some(&OK) => {
                let ok = LoginOk::parse(&payload).map_err(malformed)?;
                check_proof(&exchange, &ok, &greeting, packets.stream())?;
                if packets.is_ahead() {
                    let text = "the server spoke before it was asked";
                    return Err(ConnectError::Auth(text.to_owned()));
                }
                let offer = Offer::learn(&greeting);
                return Ok(Connected {
                    stream: packets.into_parts().0,
                    connection_id: greeting.connection_id,
                    version: offer.version.clone(),
                    capabilities: response.capabilities,
                    status: ok.status,
                    offer,
                });
            }
            Some(&ERR) => return Err(refusal(&payload)),
            Some(&SWITCH) => {
                let (plugin, data) = parse_switch(&payload).map_err(malformed)?;
                Some(exchange.switch(plugin, data)?)
            }
            Some(&MORE_DATA) => exchange.more(payload.get(1..).unwrap_or_default())?,
            _ => return Err(malformed(PacketError::Kind)),
        };
        if let Some(answer) = answer {
            packets
                .send(|out| out.put_slice(&answer))
                .await
                .map_err(io)?;
        }
    }
    let text = "the server's authentication has no end";
    Err(ConnectError::Auth(text.to_owned()))
}

/// Sends a packet. To a server that has hung up, and has said why if that was a PROXY header.
async fn send(
    packets: &mut Packets<Stream>,
    login: &Login<'_>,
    payload: impl FnOnce(&mut BytesMut),
) -> io::Result<()> {
    match packets.send(payload).await {
        Err(error) if login.socket.proxy_protocol.is_some() => {
            Err(answer_of(packets, login).await.err().unwrap_or(error))
        }
        sent => sent,
    }
}

/// The next packet. What a server says to a PROXY header that it does not take it says behind its greeting, before it has
/// read an answer to that.
async fn answer_of(packets: &mut Packets<Stream>, login: &Login<'_>) -> io::Result<Bytes> {
    let error = match packets.next().await {
        Err(error)
            if login.socket.proxy_protocol.is_some()
                && error.kind() == io::ErrorKind::InvalidData =>
        {
            error
        }
        done => return done,
    };
    packets.set_sequence(1);
    let said = packets.next().await?;
    match ErrorPacket::parse(&said) {
        Ok(words) => Err(io::Error::new(error.kind(), words.to_string())),
        Err(_) => Err(error),
    }
}

fn refusal(payload: &Bytes) -> ConnectError {
    match ErrorPacket::parse(payload) {
        Ok(mut error) => {
            let mut payload = payload.clone();
            if error.state.is_none() {
                // Said before its greeting, where errors have none. The client is past that, and expects one.
                let too_many = error.code == 1040;
                error.state = Some(if too_many { *b"08004" } else { *b"HY000" });
                let mut out = BytesMut::new();
                error.put(&mut out);
                payload = out.freeze();
            }
            ConnectError::Server {
                error: Box::new(error),
                payload,
            }
        }
        Err(_) => ConnectError::Auth("the server refused the login without a reason".into()),
    }
}

/// What the greeting is answered with, but for the proof.
fn answer_to(login: &Login<'_>, greeting: &Greeting) -> Result<HandshakeResponse, ConnectError> {
    let request = login.request;
    let offered = greeting.capabilities;
    let needed = (request.capabilities & Capabilities::STRUCTURE)
        | Capabilities::PROTOCOL_41
        | Capabilities::SECURE_CONNECTION
        | Capabilities::PLUGIN_AUTH;
    if !offered.contains(needed) {
        return Err(ConnectError::Capabilities {
            address: login.endpoint.address.to_string(),
            lacks: needed.without(offered),
        });
    }
    let own = Capabilities::SESSION_TRACK
        | Capabilities::CONNECT_ATTRS
        | Capabilities::CONNECT_WITH_DB
        | Capabilities::PLUGIN_AUTH_LENENC;
    // MariaDB's own flags are read only where this one is clear, and MySQL has no other use for it.
    let wanted = (request.capabilities | own | needed)
        .without(Capabilities::SSL | Capabilities::COMPRESS | Capabilities::ZSTD_COMPRESSION);
    let mut capabilities = wanted & offered;
    if offered.contains(Capabilities::LONG_PASSWORD) {
        capabilities = capabilities | Capabilities::LONG_PASSWORD;
    }
    let attributes = if capabilities.contains(Capabilities::CONNECT_ATTRS) {
        request.attributes.clone()
    } else {
        Bytes::new()
    };
    for (flag, there) in [
        (Capabilities::CONNECT_ATTRS, !attributes.is_empty()),
        (Capabilities::CONNECT_WITH_DB, request.database.is_some()),
    ] {
        if !there {
            capabilities = capabilities.without(flag);
        }
    }
    Ok(HandshakeResponse {
        capabilities,
        max_packet: request.max_packet,
        charset: request.charset,
        user: request.user.clone(),
        auth: Zeroizing::default(),
        database: request.database.clone(),
        plugin: None,
        attributes,
        zstd_level: None,
    })
}

fn wants_tls(endpoint: &Endpoint, greeting: &Greeting) -> Result<bool, ConnectError> {
    let is_tcp = matches!(endpoint.address, Address::Tcp { .. });
    if !is_tcp || endpoint.tls == ServerTls::Disable {
        return Ok(false);
    }
    let offered = greeting.capabilities.contains(Capabilities::SSL);
    if !offered && endpoint.tls != ServerTls::Prefer {
        return Err(ConnectError::Tls {
            address: endpoint.address.to_string(),
            reason: "the server does not support TLS, but server_tls demands it".into(),
        });
    }
    Ok(offered)
}

/// Goes on inside TLS. What a server says in clear behind its greeting may be another's.
async fn encrypt(
    packets: Packets<Stream>,
    endpoint: &Endpoint,
) -> Result<Packets<Stream>, ConnectError> {
    let tls_error = |reason: String| ConnectError::Tls {
        address: endpoint.address.to_string(),
        reason,
    };
    let sequence = packets.sequence();
    let (stream, ahead) = packets.into_parts();
    if !ahead.is_empty() {
        return Err(tls_error("the server spoke before TLS had begun".into()));
    }
    let host = match &endpoint.address {
        Address::Tcp { host, .. } => host.as_str(),
        Address::Unix(_) => "",
    };
    let (mode, ca) = (endpoint.tls, endpoint.tls_ca.as_deref());
    let stream = tls::connect_for(Protocol::MySql, stream, host, mode, ca).await;
    let stream = stream.map_err(|error| tls_error(error.to_string()))?;
    let mut packets = Packets::new(stream, PAYLOAD_MAX);
    packets.set_sequence(sequence);
    Ok(packets)
}

/// A MariaDB server whose certificate nobody signed proves it by the password. One that proves another's is not
/// believed, whatever `server_tls` says.
fn check_proof(
    exchange: &ClientExchange<'_>,
    ok: &LoginOk,
    greeting: &Greeting,
    stream: &Stream,
) -> Result<(), ConnectError> {
    let Some(certificate) = stream.peer_certificate() else {
        return Ok(());
    };
    let fingerprint = proof::fingerprint(certificate);
    match exchange.check_proof(&ok.info, &greeting.nonce, &fingerprint) {
        Proof::None | Proof::Good => Ok(()),
        Proof::Bad => Err(ConnectError::Auth(
            "the server's proof is for another certificate: somebody may sit between".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_38_an_error_from_before_the_greeting_gets_the_state_that_clients_expect_behind_it() {
        for (code, state) in [(1040_u16, b"08004"), (1129, b"HY000")] {
            let early = ErrorPacket {
                code,
                state: None,
                message: "Too many connections".into(),
            };
            let mut said = BytesMut::new();
            early.put(&mut said);
            let refused = refusal(&said.freeze());
            let words = refused.server_words().expect("the server's own");
            let told = ErrorPacket::parse(words).expect("an error");
            assert_eq!(told.state.as_ref(), Some(state));
            assert_eq!((told.code, told.message), (code, early.message));
        }
    }
}
