//! The packets of a log-in up to the client's first answer: greeting, SSLRequest, HandshakeResponse.

use super::capabilities::Capabilities;
use super::packet::{PacketError, Reader, put_cstr, put_lenenc, put_lenenc_bytes};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// Longest packet that is taken before a client is known, in bytes of its payload.
pub const MAX_LOGIN_PACKET: usize = 64 * 1024;

/// Bytes of a server's random challenge.
pub const NONCE_LEN: usize = 20;

/// The same with the NUL behind it, as greetings count.
const NONCE_AND_NUL: u8 = 21;

/// A server's random challenge, without NUL bytes.
pub type Nonce = [u8; NONCE_LEN];

/// Version of the protocol.
const PROTOCOL: u8 = 10;

/// Flags, packet size, character set, reserved bytes: what SSLRequest consists of and HandshakeResponse begins with.
const REQUEST_HEAD: usize = 32;

/// What MariaDB puts before its version, so that old replicas take it for one that they know.
const MARIADB_PREFIX: &[u8] = b"5.5.5-";

/// Which of the two descendants a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// MySQL.
    MySql,
    /// MariaDB.
    MariaDb,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MySql => "MySQL",
            Self::MariaDb => "MariaDB",
        })
    }
}

/// A server's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Which server.
    pub family: Family,
    /// Major, minor, patch.
    pub number: (u16, u16, u16),
    /// The whole text of the greeting.
    pub text: Bytes,
}

impl Version {
    /// Reads the text of a greeting; numbers that are not there are zero. `mariadb`: the server's flags say that
    /// it is one.
    pub fn parse(text: &[u8], mariadb: bool) -> Self {
        let family = if mariadb || memchr::memmem::find(text, b"MariaDB").is_some() {
            Family::MariaDb
        } else {
            Family::MySql
        };
        let plain = match text.strip_prefix(MARIADB_PREFIX) {
            Some(rest) if family == Family::MariaDb => rest,
            _ => text,
        };
        let mut numbers = plain.splitn(3, |b| *b == b'.').map(|part| {
            part.iter()
                .take_while(|b| b.is_ascii_digit())
                .fold(0_u16, |n, b| {
                    n.saturating_mul(10).saturating_add(u16::from(b - b'0'))
                })
        });
        let mut next = || numbers.next().unwrap_or_default();
        Self {
            family,
            number: (next(), next(), next()),
            text: Bytes::copy_from_slice(text),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.number;
        write!(f, "{} {major}.{minor}.{patch}", self.family)
    }
}

/// The first packet of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Its version, as text.
    pub version: Bytes,
    /// The number of the connection.
    pub connection_id: u32,
    /// The challenge.
    pub nonce: Nonce,
    /// What the server can do.
    pub capabilities: Capabilities,
    /// Its default collation, the low byte.
    pub charset: u8,
    /// Status flags.
    pub status: u16,
    /// The authentication plugin that the challenge is for.
    pub plugin: Bytes,
}

impl fmt::Debug for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Greeting")
            .field("version", &self.version)
            .field("connection_id", &self.connection_id)
            .field("capabilities", &self.capabilities)
            .field("plugin", &self.plugin)
            .finish_non_exhaustive()
    }
}

impl Greeting {
    /// Reads the payload of a greeting.
    pub fn parse(payload: &[u8]) -> Result<Self, PacketError> {
        let mut fields = Reader::new(payload);
        if fields.u8()? != PROTOCOL {
            return Err(PacketError::Kind);
        }
        let version = Bytes::copy_from_slice(fields.cstr()?);
        let connection_id = fields.u32()?;
        let first = fields.bytes(8)?;
        fields.u8()?;
        let low = fields.u16()?;
        let charset = fields.u8()?;
        let status = fields.u16()?;
        let high = fields.u16()?;
        let length = usize::from(fields.u8()?);
        let reserved = fields.bytes(10)?;
        let lower = u32::from(low) | u32::from(high) << 16;
        let is_mariadb = !Capabilities::from_halves(lower, 0).contains(Capabilities::LONG_PASSWORD);
        let extended = match reserved.last_chunk() {
            Some(extended) if is_mariadb => u32::from_le_bytes(*extended),
            _ => 0,
        };
        let capabilities = Capabilities::from_halves(lower, extended);
        let second = fields.bytes(length.saturating_sub(8).max(NONCE_LEN - 8 + 1))?;
        let mut nonce = [0; NONCE_LEN];
        for (slot, byte) in nonce.iter_mut().zip(first.iter().chain(second)) {
            *slot = *byte;
        }
        let plugin = if capabilities.contains(Capabilities::PLUGIN_AUTH) {
            Bytes::copy_from_slice(fields.cstr_or_rest())
        } else {
            Bytes::new()
        };
        Ok(Self {
            version,
            connection_id,
            nonce,
            capabilities,
            charset,
            status,
            plugin,
        })
    }

    /// Appends the payload.
    pub fn put(&self, out: &mut BytesMut) {
        let lower = self.capabilities.lower();
        let [a, b, c, d] = lower.to_le_bytes();
        let (first, second) = self.nonce.split_at(8);
        out.put_u8(PROTOCOL);
        put_cstr(out, &self.version);
        out.put_u32_le(self.connection_id);
        out.put_slice(first);
        out.put_u8(0);
        out.put_slice(&[a, b]);
        out.put_u8(self.charset);
        out.put_u16_le(self.status);
        out.put_slice(&[c, d]);
        out.put_u8(if self.capabilities.contains(Capabilities::PLUGIN_AUTH) {
            NONCE_AND_NUL
        } else {
            0
        });
        out.put_bytes(0, 6);
        if self.capabilities.contains(Capabilities::LONG_PASSWORD) {
            out.put_bytes(0, 4);
        } else {
            out.put_u32_le(self.capabilities.extended());
        }
        out.put_slice(second);
        out.put_u8(0);
        if self.capabilities.contains(Capabilities::PLUGIN_AUTH) {
            put_cstr(out, &self.plugin);
        }
    }
}

/// What a client may send first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// It wants TLS; the same head comes again behind it.
    Ssl,
    /// It wants a session.
    Response(Box<HandshakeResponse>),
}

/// A client's answer to the greeting.
#[derive(Clone, PartialEq, Eq)]
pub struct HandshakeResponse {
    /// What it asks for.
    pub capabilities: Capabilities,
    /// Longest packet that it takes, by its own account.
    pub max_packet: u32,
    /// Collation, the low byte of its number.
    pub charset: u8,
    /// The user's name; in the client's character set.
    pub user: Bytes,
    /// What answers the challenge.
    pub auth: Zeroizing<Vec<u8>>,
    /// The database.
    pub database: Option<Bytes>,
    /// The plugin that `auth` is for.
    pub plugin: Option<Bytes>,
    /// Connection attributes as they were sent, without the length in front; see [`attributes`].
    pub attributes: Bytes,
    /// The level of compression with zstd.
    pub zstd_level: Option<u8>,
}

impl fmt::Debug for HandshakeResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeResponse")
            .field("capabilities", &self.capabilities)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("plugin", &self.plugin)
            .finish_non_exhaustive()
    }
}

/// Why a client's first packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// It ends early, or is older than version 4.1.
    #[error("Bad handshake")]
    Handshake,
}

impl From<PacketError> for ResponseError {
    fn from(_: PacketError) -> Self {
        Self::Handshake
    }
}

/// Reads a client's first packet; what it does not know is left.
pub fn parse_first(payload: &[u8]) -> Result<FirstPacket, ResponseError> {
    let mut fields = Reader::new(payload);
    let lower = fields.u32()?;
    let mut capabilities = Capabilities::from_halves(lower, 0);
    if !capabilities.contains(Capabilities::PROTOCOL_41) {
        return Err(ResponseError::Handshake);
    }
    let max_packet = fields.u32()?;
    let charset = fields.u8()?;
    let reserved = fields.bytes(23)?;
    if let Some(extended) = reserved.last_chunk()
        && !capabilities.contains(Capabilities::LONG_PASSWORD)
    {
        capabilities = Capabilities::from_halves(lower, u32::from_le_bytes(*extended));
    }
    if fields.is_empty() {
        return if capabilities.contains(Capabilities::SSL) {
            Ok(FirstPacket::Ssl)
        } else {
            Err(ResponseError::Handshake)
        };
    }
    let user = Bytes::copy_from_slice(fields.cstr()?);
    let auth = if capabilities.contains(Capabilities::PLUGIN_AUTH_LENENC) {
        fields.lenenc_bytes()?
    } else if capabilities.contains(Capabilities::SECURE_CONNECTION) {
        let length = fields.u8()?;
        fields.bytes(usize::from(length))?
    } else {
        fields.cstr_or_rest()
    };
    let auth = Zeroizing::new(auth.to_vec());
    let database = capabilities
        .contains(Capabilities::CONNECT_WITH_DB)
        .then(|| Bytes::copy_from_slice(fields.cstr_or_rest()))
        .filter(|name| !name.is_empty());
    let plugin = capabilities
        .contains(Capabilities::PLUGIN_AUTH)
        .then(|| Bytes::copy_from_slice(fields.cstr_or_rest()));
    let attributes = if capabilities.contains(Capabilities::CONNECT_ATTRS) && !fields.is_empty() {
        Bytes::copy_from_slice(fields.lenenc_bytes()?)
    } else {
        Bytes::new()
    };
    let zstd_level = if capabilities.contains(Capabilities::ZSTD_COMPRESSION) {
        fields.u8().ok()
    } else {
        None
    };
    Ok(FirstPacket::Response(Box::new(HandshakeResponse {
        capabilities,
        max_packet,
        charset,
        user,
        auth,
        database,
        plugin,
        attributes,
        zstd_level,
    })))
}

impl HandshakeResponse {
    /// Appends the payload of an SSLRequest.
    pub fn put_ssl_request(&self, out: &mut BytesMut) {
        let ssl = Capabilities::SSL;
        self.put_head(out, self.capabilities | ssl);
    }

    /// Appends the payload. Its fields decide the flags that say which of them are there.
    pub fn put(&self, out: &mut BytesMut) {
        let mut capabilities =
            self.capabilities | Capabilities::PROTOCOL_41 | Capabilities::SECURE_CONNECTION;
        for (flag, there) in [
            (Capabilities::CONNECT_WITH_DB, self.database.is_some()),
            (Capabilities::PLUGIN_AUTH, self.plugin.is_some()),
            (Capabilities::CONNECT_ATTRS, !self.attributes.is_empty()),
            (Capabilities::ZSTD_COMPRESSION, self.zstd_level.is_some()),
        ] {
            capabilities = capabilities.without(flag);
            if there {
                capabilities = capabilities | flag;
            }
        }
        // One byte of length holds no more.
        if self.auth.len() <= 250 {
            capabilities = capabilities.without(Capabilities::PLUGIN_AUTH_LENENC);
        }
        self.put_head(out, capabilities);
        put_cstr(out, &self.user);
        if capabilities.contains(Capabilities::PLUGIN_AUTH_LENENC) {
            put_lenenc(out, self.auth.len() as u64);
        } else {
            out.put_u8(u8::try_from(self.auth.len()).unwrap_or(u8::MAX));
        }
        out.put_slice(&self.auth);
        if let Some(database) = &self.database {
            put_cstr(out, database);
        }
        if let Some(plugin) = &self.plugin {
            put_cstr(out, plugin);
        }
        if !self.attributes.is_empty() {
            put_lenenc_bytes(out, &self.attributes);
        }
        if let Some(level) = self.zstd_level {
            out.put_u8(level);
        }
    }

    fn put_head(&self, out: &mut BytesMut, capabilities: Capabilities) {
        let at = out.len();
        out.put_u32_le(capabilities.lower());
        out.put_u32_le(self.max_packet);
        out.put_u8(self.charset);
        out.put_bytes(0, 19);
        if capabilities.contains(Capabilities::LONG_PASSWORD) {
            out.put_bytes(0, 4);
        } else {
            out.put_u32_le(capabilities.extended());
        }
        debug_assert_eq!(out.len() - at, REQUEST_HEAD);
    }
}

impl Drop for HandshakeResponse {
    fn drop(&mut self) {
        self.auth.zeroize();
    }
}

/// Connection attributes, name and value, in their order; ends at the first that can't be read.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut fields = Reader::new(bytes);
    std::iter::from_fn(move || {
        let name = fields.lenenc_bytes().ok()?;
        Some((name, fields.lenenc_bytes().ok()?))
    })
}

/// Appends one connection attribute.
pub fn put_attribute(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put_lenenc_bytes(out, name);
    put_lenenc_bytes(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn greeting(capabilities: Capabilities) -> Greeting {
        Greeting {
            version: Bytes::from_static(b"5.5.5-10.11.19-MariaDB"),
            connection_id: 4_000_000_000,
            nonce: *b"0123456789abcdefghij",
            capabilities,
            charset: 45,
            status: 2,
            plugin: Bytes::from_static(b"mysql_native_password"),
        }
    }

    fn response() -> HandshakeResponse {
        let mut attributes = BytesMut::new();
        put_attribute(&mut attributes, b"_client_name", b"test");
        put_attribute(&mut attributes, b"\xff", b"");
        HandshakeResponse {
            capabilities: Capabilities::PROTOCOL_41
                | Capabilities::SECURE_CONNECTION
                | Capabilities::CONNECT_WITH_DB
                | Capabilities::PLUGIN_AUTH
                | Capabilities::CONNECT_ATTRS
                | Capabilities::MARIADB_STMT_BULK,
            max_packet: 1 << 24,
            charset: 255,
            user: Bytes::from_static(b"app"),
            auth: Zeroizing::new(vec![0, 1, 2]),
            database: Some(Bytes::from_static(b"shop")),
            plugin: Some(Bytes::from_static(b"caching_sha2_password")),
            attributes: attributes.freeze(),
            zstd_level: None,
        }
    }

    #[test]
    fn greetings_of_both_families_read_back() {
        for capabilities in [
            Capabilities::from_halves(0x81ff_f7fe, 0x1d),
            Capabilities::from_halves(0xdfff_ffff, 0),
            Capabilities::from_halves(0x0000_f7ff, 0),
        ] {
            let mut told = greeting(capabilities);
            if !capabilities.contains(Capabilities::PLUGIN_AUTH) {
                told.plugin = Bytes::new();
            }
            let mut out = BytesMut::new();
            told.put(&mut out);
            assert_eq!(Greeting::parse(&out), Ok(told));
            for end in 0..out.len() - 1 - greeting(capabilities).plugin.len() {
                drop(Greeting::parse(&out[..end]));
            }
            assert!(Greeting::parse(&out[..40]).is_err());
        }
    }

    #[test]
    fn versions_as_servers_tell_them() {
        for (text, flag, family, number) in [
            (
                "5.5.5-10.11.19-MariaDB-deb12",
                true,
                Family::MariaDb,
                (10, 11, 19),
            ),
            ("11.8.6-MariaDB", true, Family::MariaDb, (11, 8, 6)),
            ("9.7.4", false, Family::MySql, (9, 7, 4)),
            ("8.0.36-28.1", false, Family::MySql, (8, 0, 36)),
            ("5.5.5-m3", false, Family::MySql, (5, 5, 5)),
            ("99999999.x", false, Family::MySql, (u16::MAX, 0, 0)),
            ("", false, Family::MySql, (0, 0, 0)),
        ] {
            let version = Version::parse(text.as_bytes(), flag);
            assert_eq!((version.family, version.number), (family, number), "{text}");
        }
    }

    #[test]
    fn a_response_reads_back_in_every_form() {
        for change in 0..6 {
            let mut sent = response();
            match change {
                1 => sent.auth = Zeroizing::new(vec![7; 300]),
                2 => sent.database = None,
                3 => sent.attributes = Bytes::new(),
                4 => {
                    sent.capabilities = sent.capabilities | Capabilities::LONG_PASSWORD;
                    sent.capabilities = sent.capabilities.without(Capabilities::MARIADB_STMT_BULK);
                }
                5 => sent.zstd_level = Some(3),
                _ => {}
            }
            sent.capabilities = sent.capabilities | Capabilities::PLUGIN_AUTH_LENENC;
            let mut out = BytesMut::new();
            sent.put(&mut out);
            let Ok(FirstPacket::Response(read)) = parse_first(&out) else {
                panic!("not read: {change}");
            };
            let mut expected = sent.clone();
            expected.capabilities = read.capabilities;
            assert_eq!(*read, expected);
            let extended = |r: &HandshakeResponse| r.capabilities.extended();
            assert_eq!(extended(&read), extended(&sent), "{change}");
            out.clear();
            sent.put_ssl_request(&mut out);
            assert_eq!(parse_first(&out), Ok(FirstPacket::Ssl));
        }
        let sent = response();
        let told: Vec<_> = attributes(&sent.attributes).collect();
        assert_eq!(told, [(&b"_client_name"[..], &b"test"[..]), (b"\xff", b"")]);
    }

    #[test]
    fn the_answer_behind_one_byte_of_length_or_up_to_a_nul() {
        let head = |capabilities: Capabilities, rest: &[u8]| {
            let mut out = BytesMut::new();
            out.put_u32_le(capabilities.lower());
            out.put_bytes(0, 28);
            out.put_slice(rest);
            out
        };
        let plain = Capabilities::PROTOCOL_41 | Capabilities::LONG_PASSWORD;
        let read = |bytes: &[u8]| match parse_first(bytes) {
            Ok(FirstPacket::Response(read)) => Some((read.user.to_vec(), read.auth.to_vec())),
            _ => None,
        };
        let one = head(plain | Capabilities::SECURE_CONNECTION, b"u\0\x02ab");
        assert_eq!(read(&one), Some((b"u".to_vec(), b"ab".to_vec())));
        let nul = head(plain, b"u\0ab\0");
        assert_eq!(read(&nul), Some((b"u".to_vec(), b"ab".to_vec())));
        // More than is there, before 4.1, no TLS asked for.
        let cut = head(plain | Capabilities::SECURE_CONNECTION, b"u\0\xffab");
        let old = head(Capabilities::LONG_PASSWORD, b"u\0\0");
        let short = head(plain, b"");
        for bytes in [cut, old, short] {
            assert_eq!(parse_first(&bytes), Err(ResponseError::Handshake));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(head: [u8; 4], bytes: Vec<u8>) {
            let mut payload = head.to_vec();
            payload.extend_from_slice(&bytes);
            drop(Greeting::parse(&payload));
            if let Ok(FirstPacket::Response(read)) = parse_first(&payload) {
                let told: usize = attributes(&read.attributes).map(|(n, v)| n.len() + v.len()).sum();
                prop_assert!(told <= payload.len());
            }
        }
    }
}
