//! The packets before authentication: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
//!
//! The text of the `options` parameter has its own file, [`super::options`].

use super::frame::{Reader, put_cstr, put_sized};
use super::options;
use bytes::{BufMut, BytesMut};
use std::fmt;

/// Longest start-up packet that is read, in bytes (`MAX_STARTUP_PACKET_LENGTH` in PostgreSQL).
/// The length field is counted in.
pub const MAX_STARTUP: usize = 10_000;

/// Protocol version 3.0.
pub const PROTOCOL_3_0: i32 = 3 << 16;

/// Newest minor version of protocol 3 that is spoken, on both legs: 3.2, which makes cancel keys longer.
pub const NEWEST_MINOR: u16 = 2;

/// Longest secret of a cancel key, in bytes (protocol 3.2; 3.0 has 4).
pub const MAX_CANCEL_SECRET: usize = 256;

/// The setting inside `options` that names the cluster.
pub const CLUSTER_SETTING: &str = "slackwater.cluster";

/// The major version that marks requests which are no StartupMessage.
const REQUEST_MAJOR: i32 = 1234;
const CANCEL_REQUEST: i32 = (REQUEST_MAJOR << 16) + 5678;
const SSL_REQUEST: i32 = (REQUEST_MAJOR << 16) + 5679;
const GSSENC_REQUEST: i32 = (REQUEST_MAJOR << 16) + 5680;

/// Length and version fields.
const HEADER: usize = 8;
/// Shortest secret of a cancel key, in bytes.
const MIN_CANCEL_SECRET: usize = 4;

/// A string of the wire, which need not be UTF-8.
type WireText = Box<[u8]>;

/// The parameters of a StartupMessage in the order that the client sent them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartupParams(pub Vec<(WireText, WireText)>);

impl StartupParams {
    /// The last value given for `name`, as PostgreSQL takes it.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0
            .iter()
            .rev()
            .find(|(n, _)| &**n == name.as_bytes())
            .map(|(_, v)| &**v)
    }

    /// Takes `slackwater.cluster` out of `options` and returns the value that was given last. Every other
    /// byte of `options` stays as it was; an `options` of which nothing remains is dropped.
    pub fn take_cluster(&mut self) -> Option<Vec<u8>> {
        let mut cluster = None;
        self.0.retain_mut(|(name, value)| {
            if &**name != b"options" {
                return true;
            }
            let Some((rest, last)) = options::take(value, CLUSTER_SETTING) else {
                return true;
            };
            cluster = Some(last);
            *value = rest.into_boxed_slice();
            !value.iter().all(|b| options::is_space(*b))
        });
        cluster
    }
}

/// What a client may send first.
#[derive(Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// It wants TLS.
    Ssl,
    /// It wants GSSAPI encryption.
    GssEnc,
    /// It wants another connection's statement cancelled.
    Cancel {
        /// Process number from BackendKeyData.
        process: i32,
        /// Secret from BackendKeyData, 4 to 256 bytes.
        secret: Vec<u8>,
    },
    /// It wants a session.
    Startup(Startup),
}

impl fmt::Debug for FirstPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssl => f.write_str("Ssl"),
            Self::GssEnc => f.write_str("GssEnc"),
            Self::Cancel { process, .. } => write!(f, "Cancel of process {process}"),
            Self::Startup(startup) => startup.fmt(f),
        }
    }
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Startup {
    /// Minor version of protocol 3 that the client asks for.
    pub minor: u16,
    /// The parameters, without protocol options.
    pub params: StartupParams,
    /// Names of the protocol options (`_pq_.*`), none of which is known here.
    pub unsupported: Vec<Box<[u8]>>,
}

/// Why a first packet is refused. The words are PostgreSQL's own where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Too short, too long, or not PostgreSQL at all.
    #[error("invalid length of startup packet")]
    Length,
    /// A cancel key of an impossible size.
    #[error("invalid length of cancel request packet")]
    CancelLength,
    /// Not protocol 3.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Version {
        /// Major version that the client asked for.
        major: u16,
        /// Minor version that the client asked for.
        minor: u16,
    },
    /// The parameters don't fill the packet exactly.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// `user` is missing or empty.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

impl StartupError {
    /// SQLSTATE, as PostgreSQL gives it.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Length | Self::CancelLength | Self::Layout => "08P01",
            Self::Version { .. } => "0A000",
            Self::NoUser => "28000",
        }
    }
}

/// Reads the first packet at the start of `bytes`, and how many bytes it takes; `None` while it is not
/// there in full. A length that can't be is refused as soon as its four bytes are there.
pub fn parse(bytes: &[u8]) -> Result<Option<(FirstPacket, usize)>, StartupError> {
    let Some(length) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(i32::from_be_bytes(*length))
        .ok()
        .filter(|n| (HEADER..=MAX_STARTUP).contains(n))
        .ok_or(StartupError::Length)?;
    let Some(packet) = bytes.get(..length) else {
        return Ok(None);
    };
    let mut reader = Reader::new(packet.get(4..).unwrap_or_default());
    let version = reader.i32().map_err(|_| StartupError::Length)?;
    let packet = match version {
        SSL_REQUEST => FirstPacket::Ssl,
        GSSENC_REQUEST => FirstPacket::GssEnc,
        CANCEL_REQUEST => parse_cancel(reader)?,
        _ => FirstPacket::Startup(parse_startup(version, reader.rest())?),
    };
    Ok(Some((packet, length)))
}

fn parse_cancel(mut reader: Reader<'_>) -> Result<FirstPacket, StartupError> {
    let process = reader.i32().map_err(|_| StartupError::CancelLength)?;
    let secret = reader.rest();
    if !(MIN_CANCEL_SECRET..=MAX_CANCEL_SECRET).contains(&secret.len()) {
        return Err(StartupError::CancelLength);
    }
    Ok(FirstPacket::Cancel {
        process,
        secret: secret.to_vec(),
    })
}

fn parse_startup(version: i32, body: &[u8]) -> Result<Startup, StartupError> {
    let [a, b, c, d] = version.to_be_bytes();
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    if major != 3 {
        return Err(StartupError::Version { major, minor });
    }
    let mut out = Startup {
        minor,
        ..Startup::default()
    };
    let mut reader = Reader::new(body);
    loop {
        let name = reader.cstr().map_err(|_| StartupError::Layout)?;
        if name.is_empty() {
            break;
        }
        let value = reader.cstr().map_err(|_| StartupError::Layout)?;
        if name.starts_with(b"_pq_.") {
            out.unsupported.push(name.into());
        } else {
            out.params.0.push((name.into(), value.into()));
        }
    }
    if !reader.rest().is_empty() {
        return Err(StartupError::Layout);
    }
    if out.params.get("user").is_none_or(<[u8]>::is_empty) {
        return Err(StartupError::NoUser);
    }
    Ok(out)
}

/// What a start-up asks for with its `replication` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// An ordinary session.
    No,
    /// A WAL sender of the whole server, in no database.
    Physical,
    /// A WAL sender in a database, where it can decode changes and run SQL.
    Logical,
    /// Neither a boolean nor `database`.
    Invalid,
}

/// Reads the `replication` parameter as PostgreSQL does: `database`, or a boolean of which a prefix is enough.
pub fn replication(params: &StartupParams) -> Replication {
    let Some(value) = params.get("replication") else {
        return Replication::No;
    };
    let word = value.to_ascii_lowercase();
    let prefix_of = |whole: &[u8], least| word.len() >= least && whole.starts_with(&word);
    let truth = prefix_of(b"true", 1) || prefix_of(b"yes", 1) || word == b"on" || word == b"1";
    let falsehood =
        prefix_of(b"false", 1) || prefix_of(b"no", 1) || prefix_of(b"off", 2) || word == b"0";
    if value == b"database" {
        Replication::Logical
    } else if truth {
        Replication::Physical
    } else if falsehood {
        Replication::No
    } else {
        Replication::Invalid
    }
}

/// Appends a StartupMessage of protocol 3.`minor`.
pub fn put_startup(out: &mut BytesMut, minor: u16, params: &StartupParams) {
    put_sized(out, |out| {
        out.put_i32(PROTOCOL_3_0 | i32::from(minor));
        for (name, value) in &params.0 {
            put_cstr(out, name);
            put_cstr(out, value);
        }
        out.put_u8(0);
    });
}

/// Appends an SSLRequest.
pub fn put_ssl_request(out: &mut BytesMut) {
    put_sized(out, |out| out.put_i32(SSL_REQUEST));
}

/// Appends a CancelRequest.
pub fn put_cancel_request(out: &mut BytesMut, process: i32, secret: &[u8]) {
    put_sized(out, |out| {
        out.put_i32(CANCEL_REQUEST);
        out.put_i32(process);
        out.put_slice(secret);
    });
}

/// Appends a NegotiateProtocolVersion: 3.`minor` is spoken, and these protocol options are not known.
pub fn put_negotiate_version(out: &mut BytesMut, minor: u16, unsupported: &[Box<[u8]>]) {
    super::frame::put(out, b'v', |out| {
        out.put_i32(PROTOCOL_3_0 | i32::from(minor));
        out.put_i32(i32::try_from(unsupported.len()).unwrap_or(i32::MAX));
        for name in unsupported {
            put_cstr(out, name);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(version: i32, body: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_sized(&mut out, |out| {
            out.put_i32(version);
            out.put_slice(body);
        });
        out.to_vec()
    }

    fn params(pairs: &[(&str, &str)]) -> StartupParams {
        StartupParams(
            pairs
                .iter()
                .map(|(n, v)| (n.as_bytes().into(), v.as_bytes().into()))
                .collect(),
        )
    }

    fn refused(bytes: &[u8]) -> (String, &'static str) {
        let error = parse(bytes).expect_err("must be refused");
        (error.to_string(), error.code())
    }

    #[test]
    fn requests() {
        let mut out = BytesMut::new();
        put_ssl_request(&mut out);
        assert_eq!(&out[..], &[0, 0, 0, 8, 4, 210, 22, 47]);
        assert_eq!(parse(&out), Ok(Some((FirstPacket::Ssl, 8))));
        let gss = packet(GSSENC_REQUEST, b"");
        assert_eq!(parse(&gss), Ok(Some((FirstPacket::GssEnc, 8))));
        for n in [4, 32, 256] {
            let mut out = BytesMut::new();
            put_cancel_request(&mut out, -7, &vec![9; n]);
            let cancel = FirstPacket::Cancel {
                process: -7,
                secret: vec![9; n],
            };
            assert_eq!(parse(&out), Ok(Some((cancel, 12 + n))));
        }
        for n in [0, 3, 257] {
            let mut out = BytesMut::new();
            put_cancel_request(&mut out, 1, &vec![9; n]);
            assert_eq!(parse(&out), Err(StartupError::CancelLength));
        }
    }

    #[test]
    fn case_12_startup_keeps_order_and_odd_bytes() {
        let body = b"user\0b\xff\0database\0\0_pq_.x\0y\0options\0-c a=b\0user\0last\0\0";
        let mut bytes = packet(3 << 16 | 2, body);
        let length = bytes.len();
        bytes.extend_from_slice(b"next");
        let Ok(Some((FirstPacket::Startup(startup), used))) = parse(&bytes) else {
            panic!("a StartupMessage");
        };
        assert_eq!((startup.minor, used), (2, length));
        assert_eq!(startup.unsupported, [b"_pq_.x".as_slice().into()]);
        assert_eq!(startup.params.get("user"), Some(b"last".as_slice()));
        assert_eq!(startup.params.get("database"), Some(b"".as_slice()));
        assert_eq!(startup.params.0.len(), 4);
        for cut in 0..length {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        let mut again = BytesMut::new();
        put_startup(&mut again, 0, &startup.params);
        assert_eq!(
            again[8..].to_vec(),
            b"user\0b\xff\0database\0\0options\0-c a=b\0user\0last\0\0"
        );
    }

    #[test]
    fn case_12_refusals_in_the_servers_words() {
        let layout = (
            "invalid startup packet layout: expected terminator as last byte".to_owned(),
            "08P01",
        );
        for body in [
            b"".as_slice(),
            b"user\0x\0",
            b"user\0x",
            b"user\0x\0\0\0",
            b"user\0x\0name\0\0x",
        ] {
            assert_eq!(refused(&packet(PROTOCOL_3_0, body)), layout, "{body:?}");
        }
        let no_user = (
            "no PostgreSQL user name specified in startup packet".to_owned(),
            "28000",
        );
        assert_eq!(refused(&packet(PROTOCOL_3_0, b"\0")), no_user);
        assert_eq!(refused(&packet(PROTOCOL_3_0, b"user\0\0\0")), no_user);
        let version = refused(&packet(2 << 16, &[0; 288]));
        assert_eq!(version.1, "0A000");
        assert!(version.0.contains("2.0"), "{version:?}");
        let length = ("invalid length of startup packet".to_owned(), "08P01");
        for bytes in [
            b"\0\0\0\0".as_slice(),
            b"\0\0\0\x07",
            b"\xff\xff\xff\xff",
            b"\0\0\x27\x11",
            b"GET / HTTP/1.1",
        ] {
            assert_eq!(refused(bytes), length, "{bytes:?}");
        }
        assert_eq!(parse(b"\0\0\x27\x10"), Ok(None), "10,000 is allowed");
    }

    #[test]
    fn replication_values() {
        for (value, expected) in [
            ("true", Replication::Physical),
            ("T", Replication::Physical),
            ("on", Replication::Physical),
            ("database", Replication::Logical),
            ("1", Replication::Physical),
            ("false", Replication::No),
            ("of", Replication::No),
            ("0", Replication::No),
            ("o", Replication::Invalid),
            ("", Replication::Invalid),
            ("Database", Replication::Invalid),
        ] {
            let params = params(&[("replication", value)]);
            assert_eq!(replication(&params), expected, "{value:?}");
        }
        assert_eq!(replication(&params(&[("user", "x")])), Replication::No);
    }

    #[test]
    fn the_cluster_leaves_no_trace() {
        let mut got = params(&[
            ("user", "u"),
            (
                "options",
                r"-c a=x\ y  -c slackwater.cluster=shop -c  b=\\1 ",
            ),
        ]);
        assert_eq!(got.take_cluster(), Some(b"shop".to_vec()));
        assert_eq!(
            got,
            params(&[("user", "u"), ("options", r"-c a=x\ y  -c  b=\\1 ")])
        );
        let mut got = params(&[("options", " --slackwater.cluster=a "), ("user", "u")]);
        assert_eq!(got.take_cluster(), Some(b"a".to_vec()));
        assert_eq!(got, params(&[("user", "u")]));
        let mut got = params(&[("user", "u"), ("options", "")]);
        assert_eq!(got.take_cluster(), None);
        assert_eq!(got, params(&[("user", "u"), ("options", "")]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&packet(PROTOCOL_3_0, &bytes));
            let _ = parse(&packet(CANCEL_REQUEST, &bytes));
        }

        #[test]
        fn what_is_written_is_read(values in proptest::collection::vec("[^\0]{0,20}", 1..9)) {
            let mut sent = params(&[("user", "u")]);
            for (i, value) in values.iter().enumerate() {
                sent.0.push((format!("name{i}").into_bytes().into(), value.as_bytes().into()));
            }
            let mut out = BytesMut::new();
            put_startup(&mut out, 0, &sent);
            let Ok(Some((FirstPacket::Startup(got), used))) = parse(&out) else {
                panic!("a StartupMessage");
            };
            prop_assert_eq!(used, out.len());
            prop_assert_eq!(got.params, sent);
        }
    }
}
