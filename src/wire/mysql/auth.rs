//! The packets of an authentication exchange, COM_CHANGE_USER, and what ends a log-in: OK or ERR.

use super::capabilities::Capabilities;
use super::packet::{PacketError, Reader, put_cstr, put_lenenc, put_lenenc_bytes};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;
use zeroize::Zeroizing;

/// First byte of an OK packet.
pub const OK: u8 = 0x00;
/// First byte of an AuthMoreData packet.
pub const MORE_DATA: u8 = 0x01;
/// First byte of an AuthSwitchRequest packet.
pub const SWITCH: u8 = 0xfe;
/// First byte of an ERR packet.
pub const ERR: u8 = 0xff;
/// First byte of COM_CHANGE_USER.
pub const CHANGE_USER: u8 = 0x11;

/// Appends the payload of an AuthSwitchRequest: `plugin` is to be used, with `data` for it.
pub fn put_switch(out: &mut BytesMut, plugin: &[u8], data: &[u8]) {
    out.put_u8(SWITCH);
    put_cstr(out, plugin);
    out.put_slice(data);
}

/// Reads an AuthSwitchRequest: the plugin, and the data for it. Without a name it is the one of servers before 4.1,
/// which nobody should answer.
pub fn parse_switch(payload: &[u8]) -> Result<(&[u8], &[u8]), PacketError> {
    let mut fields = Reader::new(payload);
    if fields.u8()? != SWITCH || fields.is_empty() {
        return Err(PacketError::Kind);
    }
    let plugin = fields.cstr()?;
    Ok((plugin, fields.rest()))
}

/// Appends the payload of an AuthMoreData.
pub fn put_more_data(out: &mut BytesMut, data: &[u8]) {
    out.put_u8(MORE_DATA);
    out.put_slice(data);
}

/// What a server says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorPacket {
    /// The engine's number.
    pub code: u16,
    /// SQLSTATE; none in an error before the log-in has begun.
    pub state: Option<[u8; 5]>,
    /// What is wrong.
    pub message: String,
}

impl ErrorPacket {
    /// An error of Slackwater's own.
    pub fn new(code: u16, state: [u8; 5], message: impl Into<String>) -> Self {
        Self {
            code,
            state: Some(state),
            message: message.into(),
        }
    }

    /// Reads the payload of an ERR.
    pub fn parse(payload: &[u8]) -> Result<Self, PacketError> {
        let mut fields = Reader::new(payload);
        if fields.u8()? != ERR {
            return Err(PacketError::Kind);
        }
        let code = fields.u16()?;
        let rest = fields.rest();
        let state = match rest.split_first() {
            Some((b'#', rest)) => rest.first_chunk().copied(),
            _ => None,
        };
        let message = if state.is_some() {
            rest.get(6..)
        } else {
            Some(rest)
        };
        Ok(Self {
            code,
            state,
            message: String::from_utf8_lossy(message.unwrap_or_default()).into_owned(),
        })
    }

    /// Appends the payload.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u8(ERR);
        out.put_u16_le(self.code);
        if let Some(state) = &self.state {
            out.put_u8(b'#');
            out.put_slice(state);
        }
        out.put_slice(self.message.as_bytes());
    }
}

impl fmt::Display for ErrorPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.code)?;
        match self
            .state
            .as_ref()
            .and_then(|s| std::str::from_utf8(s).ok())
        {
            Some(state) => write!(f, ", {state})"),
            None => f.write_str(")"),
        }
    }
}

/// The OK packet that ends a log-in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoginOk {
    /// Status flags.
    pub status: u16,
    /// Warnings.
    pub warnings: u16,
    /// The message; MariaDB proves there who it is.
    pub info: Vec<u8>,
}

/// Status flag: a block of session state follows the message.
const STATE_CHANGED: u16 = 0x4000;

impl LoginOk {
    /// Reads the payload; a block of session state behind it is left.
    pub fn parse(payload: &[u8]) -> Result<Self, PacketError> {
        let mut fields = Reader::new(payload);
        if fields.u8()? != OK {
            return Err(PacketError::Kind);
        }
        fields.lenenc()?;
        fields.lenenc()?;
        let status = fields.u16()?;
        let warnings = fields.u16()?;
        let info = if fields.is_empty() {
            &[]
        } else {
            fields.lenenc_bytes()?
        };
        Ok(Self {
            status: status & !STATE_CHANGED,
            warnings,
            info: info.to_vec(),
        })
    }

    /// Appends the payload.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_slice(&[OK, 0, 0]);
        out.put_u16_le(self.status & !STATE_CHANGED);
        out.put_u16_le(self.warnings);
        if !self.info.is_empty() {
            put_lenenc_bytes(out, &self.info);
        }
    }
}

/// COM_CHANGE_USER: another user on the same connection.
#[derive(Clone, PartialEq, Eq)]
pub struct ChangeUser {
    /// The user's name.
    pub user: Bytes,
    /// What answers the challenge of the greeting, which is rarely used: the server asks anew.
    pub auth: Zeroizing<Vec<u8>>,
    /// The database; empty: none.
    pub database: Bytes,
    /// Collation, whole.
    pub charset: Option<u16>,
    /// The plugin that `auth` is for.
    pub plugin: Option<Bytes>,
    /// Connection attributes as they were sent, without the length in front.
    pub attributes: Bytes,
}

impl fmt::Debug for ChangeUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeUser")
            .field("user", &self.user)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl ChangeUser {
    /// Reads the payload; `capabilities` are those of the connection.
    pub fn parse(payload: &[u8], capabilities: Capabilities) -> Result<Self, PacketError> {
        let mut fields = Reader::new(payload);
        if fields.u8()? != CHANGE_USER {
            return Err(PacketError::Kind);
        }
        let user = Bytes::copy_from_slice(fields.cstr()?);
        let auth = if capabilities.contains(Capabilities::SECURE_CONNECTION) {
            let length = fields.u8()?;
            fields.bytes(usize::from(length))?
        } else {
            fields.cstr()?
        };
        let auth = Zeroizing::new(auth.to_vec());
        let database = Bytes::copy_from_slice(fields.cstr_or_rest());
        let charset = if fields.is_empty() {
            None
        } else {
            Some(fields.u16()?)
        };
        let plugin = (capabilities.contains(Capabilities::PLUGIN_AUTH) && !fields.is_empty())
            .then(|| Bytes::copy_from_slice(fields.cstr_or_rest()));
        let attributes = if capabilities.contains(Capabilities::CONNECT_ATTRS) && !fields.is_empty()
        {
            Bytes::copy_from_slice(fields.lenenc_bytes()?)
        } else {
            Bytes::new()
        };
        Ok(Self {
            user,
            auth,
            database,
            charset,
            plugin,
            attributes,
        })
    }

    /// Appends the payload for a connection with these capabilities.
    pub fn put(&self, out: &mut BytesMut, capabilities: Capabilities) {
        out.put_u8(CHANGE_USER);
        put_cstr(out, &self.user);
        if capabilities.contains(Capabilities::SECURE_CONNECTION) {
            let auth = self.auth.get(..250).unwrap_or(&self.auth);
            put_lenenc(out, auth.len() as u64);
            out.put_slice(auth);
        } else {
            put_cstr(out, &self.auth);
        }
        put_cstr(out, &self.database);
        let Some(charset) = self.charset else {
            return;
        };
        out.put_u16_le(charset);
        if capabilities.contains(Capabilities::PLUGIN_AUTH) {
            put_cstr(out, self.plugin.as_deref().unwrap_or_default());
            if capabilities.contains(Capabilities::CONNECT_ATTRS) {
                put_lenenc_bytes(out, &self.attributes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Capabilities = Capabilities(u64::MAX);

    #[test]
    fn switches_and_errors_read_back() {
        let mut out = BytesMut::new();
        put_switch(&mut out, b"client_ed25519", b"nonce\0");
        assert_eq!(
            parse_switch(&out),
            Ok((&b"client_ed25519"[..], &b"nonce\0"[..]))
        );
        assert!(parse_switch(&[SWITCH]).is_err());
        for error in [
            ErrorPacket::new(1045, *b"28000", "Access denied"),
            ErrorPacket {
                code: 1040,
                state: None,
                message: "Too many connections".to_owned(),
            },
        ] {
            out.clear();
            error.put(&mut out);
            assert_eq!(ErrorPacket::parse(&out), Ok(error));
        }
        // As seen of a server before the log-in has begun.
        let seen = ErrorPacket::parse(b"\xff\x10\x04Too many connections").expect("read");
        assert_eq!(seen.to_string(), "Too many connections (1040)");
        assert_eq!(
            ErrorPacket::parse(b"\xff\x10\x04#x").expect("read").message,
            "#x"
        );
        assert!(ErrorPacket::parse(b"\xff\x10").is_err());
    }

    #[test]
    fn the_last_ok() {
        let told = LoginOk {
            status: 2,
            warnings: 1,
            info: b"\x01proof".to_vec(),
        };
        let mut out = BytesMut::new();
        told.put(&mut out);
        assert_eq!(LoginOk::parse(&out), Ok(told));
        assert_eq!(
            LoginOk::parse(&[0, 0, 0, 2, 0x40, 0, 0, 0, 1, 9])
                .expect("read")
                .status,
            2
        );
        assert!(LoginOk::parse(&[0, 0, 0, 2, 0]).is_err());
    }

    #[test]
    fn change_user_reads_back() {
        let sent = ChangeUser {
            user: Bytes::from_static(b"app"),
            auth: Zeroizing::new(vec![1, 0, 2]),
            database: Bytes::from_static(b"shop"),
            charset: Some(255),
            plugin: Some(Bytes::from_static(b"mysql_native_password")),
            attributes: Bytes::from_static(b"\x01a\x01b"),
        };
        let mut out = BytesMut::new();
        sent.put(&mut out, ALL);
        assert_eq!(ChangeUser::parse(&out, ALL), Ok(sent.clone()));
        let short = ChangeUser::parse(b"\x11app\0\0\0", ALL).expect("an old client's");
        assert_eq!((short.charset, short.plugin), (None, None));
        assert!(!format!("{sent:?}").contains("auth"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(first in prop::sample::select(vec![OK, MORE_DATA, SWITCH, ERR, CHANGE_USER]), bytes: Vec<u8>, capabilities: u64) {
            let mut payload = vec![first];
            payload.extend_from_slice(&bytes);
            let _ = parse_switch(&payload);
            drop(LoginOk::parse(&payload));
            drop(ErrorPacket::parse(&payload));
            drop(ChangeUser::parse(&payload, Capabilities(capabilities)));
        }
    }
}
