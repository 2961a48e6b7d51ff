//! A client's log-in: greeting, TLS and its first answer here, the proof in [`super::authentication`].
//!
//! Nothing that a stranger sends makes more memory than it sent, and packets have a fixed limit. There is no clock in
//! here: the caller puts one deadline around the whole log-in, and dropping these futures is safe, since the connection
//! goes with them. A refusal is written to the client before it is returned.

use super::errors;
use crate::auth::mysql::rsa::PrivateKey;
use crate::backend::mysql::connect::Request;
use crate::backend::mysql::frames::Packets;
use crate::backend::mysql::offer::Offer;
use crate::transport::ListenTls;
use crate::transport::codec::{Algorithm, ZstdLevel};
use crate::transport::proxy_header::Network;
use crate::transport::stream::Stream;
use crate::transport::tls::Certificates;
use crate::wire::mysql::auth::{ErrorPacket, LoginOk};
use crate::wire::mysql::capabilities::Capabilities;
use crate::wire::mysql::handshake::{
    Family, FirstPacket, HandshakeResponse, MAX_LOGIN_PACKET, NONCE_LEN, Nonce, attributes,
    parse_first,
};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

/// Reads after a refusal, for what the client had sent already.
const GOODBYE_READS: usize = 64;

/// What a listener's log-ins share.
pub struct HandshakeConfig {
    /// Whether TLS is there and whether it must be used. A Unix socket needs none.
    pub tls: ListenTls,
    /// Load balancers, which say whom they connect.
    pub proxied: Vec<Network>,
    /// What clients are shown.
    pub certificates: Arc<Certificates>,
    /// What is checked for users that don't exist is made from it.
    pub mock_secret: [u8; 32],
    /// Clients without TLS encrypt passwords with it.
    pub rsa: Arc<PrivateKey>,
}

impl fmt::Debug for HandshakeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandshakeConfig with tls {:?}", self.tls)
    }
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Accepted {
    /// A client that wants a session; nothing is known of it yet but its words.
    Session(Box<Arrival>),
    /// It left before it said anything, as health checks do.
    Closed,
}

/// A client after its first answer.
pub struct Arrival {
    /// Its connection.
    pub(super) packets: Packets<Stream>,
    /// The number that it was greeted with.
    pub connection_id: u32,
    /// What it was granted.
    pub capabilities: Capabilities,
    /// What it asked for.
    pub response: HandshakeResponse,
    /// The challenge that it was greeted with.
    pub(super) nonce: Nonce,
    /// SHA-256 of the certificate that it was shown.
    pub(super) fingerprint: Option<[u8; 32]>,
    /// What the last OK proves to it.
    pub(super) proof: Vec<u8>,
    /// What follows the last OK is compressed so.
    compression: Option<Algorithm>,
    pub(super) mock_secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is buffered may be a password.
        f.debug_struct("Arrival")
            .field("peer", &self.stream().peer())
            .field("connection_id", &self.connection_id)
            .field("response", &self.response)
            .finish_non_exhaustive()
    }
}

impl Arrival {
    /// A client that logs in once more on its connection (COM_CHANGE_USER): it is asked for its proof with a challenge of
    /// its own.
    pub(super) fn again(
        stream: Stream,
        buffered: BytesMut,
        (connection_id, request): (u32, &Request),
        nonce: Nonce,
        mock_secret: [u8; 32],
    ) -> Box<Self> {
        Box::new(Self {
            packets: Packets::resumed(stream, MAX_LOGIN_PACKET, buffered, 1),
            connection_id,
            capabilities: request.capabilities,
            response: HandshakeResponse {
                capabilities: request.capabilities,
                max_packet: request.max_packet,
                charset: request.charset,
                user: request.user.clone(),
                auth: Zeroizing::default(),
                database: request.database.clone(),
                // None that there is.
                plugin: Some(Bytes::new()),
                attributes: request.attributes.clone(),
                zstd_level: None,
            },
            nonce,
            fingerprint: None,
            proof: Vec::new(),
            // The layer is there already.
            compression: None,
            mock_secret: Zeroizing::new(mock_secret),
        })
    }

    /// How what follows its log-in is compressed.
    pub const fn compression(&self) -> Option<Algorithm> {
        self.compression
    }

    /// Its connection.
    pub const fn stream(&self) -> &Stream {
        self.packets.stream()
    }

    pub(super) const fn stream_mut(&mut self) -> &mut Stream {
        self.packets.stream_mut()
    }

    /// The user's name as it was sent.
    pub fn user(&self) -> &[u8] {
        &self.response.user
    }

    /// The database's name.
    pub fn database(&self) -> Option<&[u8]> {
        self.response.database.as_deref()
    }

    /// The host as errors name it.
    pub fn host(&self) -> String {
        host_of(self.stream())
    }

    /// The program, as its attributes name it.
    pub fn application(&self) -> Option<String> {
        let told = attributes(&self.response.attributes).find(|(name, _)| name == b"program_name");
        told.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    /// Takes `cluster/` off the user's name, where it names a cluster by `is_cluster`. A user whose own name has a slash
    /// is meant otherwise.
    pub fn take_cluster(&mut self, is_cluster: impl FnOnce(&str) -> bool) -> Option<String> {
        let user = &self.response.user;
        let at = memchr::memchr(b'/', user)?;
        let (cluster, rest) = user.split_at(at);
        let cluster = std::str::from_utf8(cluster)
            .ok()
            .filter(|name| is_cluster(name))?;
        let cluster = cluster.to_owned();
        self.response.user = Bytes::copy_from_slice(rest.get(1..).unwrap_or_default());
        Some(cluster)
    }

    /// Ends the log-in with the OK of a session that has these status flags; the connection, and what the client has sent
    /// behind its log-in. It is compressed from then on if that was agreed on.
    pub async fn welcome(mut self, status: u16, warnings: u16) -> io::Result<(Stream, BytesMut)> {
        let ok = LoginOk {
            status,
            warnings,
            info: std::mem::take(&mut self.proof),
        };
        self.packets.send(|out| ok.put(out)).await?;
        let (stream, buffered) = self.packets.into_parts();
        if let Some(algorithm) = self.compression {
            return Ok((stream.compressed(algorithm, buffered), BytesMut::new()));
        }
        Ok((stream, buffered))
    }

    /// Ends the log-in with an error.
    pub async fn refuse(mut self, error: &ErrorPacket) {
        say_goodbye(&mut self.packets, error).await;
    }

    /// Ends the log-in with a server's own ERR packet.
    pub async fn refuse_with(mut self, payload: &[u8]) {
        drop(
            self.packets
                .send(|out| out.extend_from_slice(payload))
                .await,
        );
        drain(&mut self.packets).await;
    }
}

fn host_of(stream: &Stream) -> String {
    match stream.peer_address() {
        Some(address) => address.ip().to_canonical().to_string(),
        None => "localhost".to_owned(),
    }
}

/// Why there is no session. The client was told, where it could be.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke, or ended inside a packet.
    #[error("the client's connection was lost during its log-in")]
    Io(#[source] io::Error),
    /// No TLS came about; the source says whose fault it is.
    #[error("no TLS with the client")]
    Tls(#[source] io::Error),
    /// The client was told this and hung up on.
    #[error("refused the client's log-in: {0}")]
    Refused(ErrorPacket),
}

/// Greets a new connection with this number and offer, and takes it up to its first answer. On an error the client was
/// told what is wrong with it, and the connection is gone.
pub async fn accept(
    stream: Stream,
    offer: &Offer,
    connection_id: u32,
    config: &HandshakeConfig,
) -> Result<Accepted, HandshakeError> {
    let nonce = nonce().map_err(HandshakeError::Io)?;
    let tls = config.tls != ListenTls::Off && !stream.is_private();
    let mut extra = Capabilities::COMPRESS;
    if offer.family() == Family::MySql {
        // MariaDB has no such flag.
        extra = extra | Capabilities::ZSTD_COMPRESSION;
    }
    if tls {
        extra = extra | Capabilities::SSL;
    }
    let greeting = offer.greeting(connection_id, nonce, extra);
    let offered = greeting.capabilities;
    let mut packets = Packets::new(stream, MAX_LOGIN_PACKET);
    packets
        .send(|out| greeting.put(out))
        .await
        .map_err(HandshakeError::Io)?;
    let mut fingerprint = None;
    let mut response = match first_packet(&mut packets).await {
        Ok(response) => response,
        Err(HandshakeError::Io(_)) if !packets.is_ahead() => return Ok(Accepted::Closed),
        Err(error) => return Err(error),
    };
    if matches!(response, FirstPacket::Ssl) {
        if !tls {
            return Err(refuse(packets, errors::bad_handshake()).await);
        }
        let sequence = packets.sequence();
        // What came along is the beginning of the client's TLS, or else not the client's own: it is never read in clear.
        let (stream, begun) = packets.into_parts();
        let secured = config.certificates.accept_mysql(stream, &begun).await;
        let secured = secured.map_err(HandshakeError::Tls)?;
        fingerprint = Some(secured.fingerprint);
        packets = Packets::new(secured.stream, MAX_LOGIN_PACKET);
        packets.set_sequence(sequence);
        response = first_packet(&mut packets).await?;
    }
    let FirstPacket::Response(mut response) = response else {
        return Err(refuse(packets, errors::bad_handshake()).await);
    };
    if config.tls == ListenTls::Require && !packets.stream().is_private() {
        return Err(refuse(packets, errors::insecure_transport()).await);
    }
    let capabilities = response.capabilities & offered;
    if !capabilities.contains(Capabilities::SECURE_CONNECTION) {
        return Err(refuse(packets, errors::old_client()).await);
    }
    response.capabilities = capabilities;
    let compression = match agreed_compression(capabilities, response.zstd_level) {
        Ok(compression) => compression,
        Err(error) => return Err(refuse(packets, error).await),
    };
    Ok(Accepted::Session(Box::new(Arrival {
        packets,
        connection_id,
        capabilities,
        response: *response,
        nonce,
        fingerprint,
        proof: Vec::new(),
        compression,
        mock_secret: Zeroizing::new(config.mock_secret),
    })))
}

/// How what follows the log-in is compressed: zlib where a client has both, as servers choose.
fn agreed_compression(
    granted: Capabilities,
    level: Option<u8>,
) -> Result<Option<Algorithm>, ErrorPacket> {
    if granted.contains(Capabilities::COMPRESS) {
        return Ok(Some(Algorithm::Zlib));
    }
    if !granted.contains(Capabilities::ZSTD_COMPRESSION) {
        return Ok(None);
    }
    let level = level.and_then(ZstdLevel::new);
    let level = level.ok_or_else(errors::wrong_compression_level)?;
    Ok(Some(Algorithm::Zstd(level)))
}

async fn first_packet(packets: &mut Packets<Stream>) -> Result<FirstPacket, HandshakeError> {
    match packets.next().await {
        Ok(payload) => {
            if let Ok(packet) = parse_first(&payload) {
                return Ok(packet);
            }
        }
        // Too long, or out of order.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
        Err(error) => return Err(HandshakeError::Io(error)),
    }
    let error = errors::bad_handshake();
    say_goodbye(packets, &error).await;
    Err(HandshakeError::Refused(error))
}

/// A challenge: printable, since some clients take what is blank or NUL for its end.
pub(super) fn nonce() -> io::Result<Nonce> {
    let mut out = [0; NONCE_LEN];
    fill(&mut out)?;
    for byte in &mut out {
        // 64 different ones: 120 bits.
        *byte = b'?' + (*byte & 0x3f);
    }
    Ok(out)
}

/// Random bytes.
pub(super) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| io::Error::other("the system gave no random bytes"))
}

async fn refuse(mut packets: Packets<Stream>, error: ErrorPacket) -> HandshakeError {
    say_goodbye(&mut packets, &error).await;
    HandshakeError::Refused(error)
}

/// Refuses a connection that was not listened to at all.
pub async fn turn_away(stream: Stream, error: &ErrorPacket) {
    let mut packets = Packets::new(stream, MAX_LOGIN_PACKET);
    say_goodbye(&mut packets, error).await;
}

/// Writes a last error.
pub(super) async fn say_goodbye(packets: &mut Packets<Stream>, error: &ErrorPacket) {
    if packets.send(|out| error.put(out)).await.is_ok() {
        drain(packets).await;
    }
}

/// Closes. What has arrived meanwhile is taken off the socket, up to a limit and without waiting: closing over unread bytes
/// sends a reset, which can overtake the error.
async fn drain(packets: &mut Packets<Stream>) {
    let stream = packets.stream_mut();
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scrap = [0; 1024];
    for _ in 0..GOODBYE_READS {
        match stream.read(&mut scrap).now_or_never() {
            Some(Ok(1..)) => {}
            _ => return,
        }
    }
}
