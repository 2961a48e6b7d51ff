//! What a server answers: OK, EOF, ERR, descriptions of columns, rows in text form; and the same as the
//! proxy itself says it.

use super::packet::{PacketError, Reader, put, put_lenenc, put_lenenc_bytes};
use bytes::{BufMut, BytesMut};

/// First byte of an OK packet.
pub const OK: u8 = 0x00;
/// First byte of the request for a local file.
pub const LOCAL_INFILE: u8 = 0xfb;
/// First byte of an EOF packet, of the OK packet that stands for it, and of an AuthSwitchRequest.
pub const EOF: u8 = 0xfe;
/// First byte of an ERR packet.
pub const ERR: u8 = 0xff;

/// Flags that a server gives with OK and EOF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(pub u16);

impl Status {
    /// A transaction is open.
    pub const IN_TRANS: Self = Self(0x0001);
    /// Autocommit mode.
    pub const AUTOCOMMIT: Self = Self(0x0002);
    /// Another result follows.
    pub const MORE_RESULTS: Self = Self(0x0008);
    /// A cursor was opened: the rows are to be fetched.
    pub const CURSOR_EXISTS: Self = Self(0x0040);
    /// The cursor's last row was sent.
    pub const LAST_ROW_SENT: Self = Self(0x0080);
    /// Backslashes are no escapes in strings.
    pub const NO_BACKSLASH_ESCAPES: Self = Self(0x0200);
    /// The result is that of OUT parameters.
    pub const PS_OUT_PARAMS: Self = Self(0x1000);
    /// The open transaction is read-only.
    pub const IN_TRANS_READONLY: Self = Self(0x2000);
    /// A block of session state changes is in the packet.
    pub const STATE_CHANGED: Self = Self(0x4000);
    /// MariaDB: double quotes are those of identifiers.
    pub const ANSI_QUOTES: Self = Self(0x8000);

    /// All of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// A transaction is open, whatever it may do.
    pub const fn in_transaction(self) -> bool {
        self.0 & (Self::IN_TRANS.0 | Self::IN_TRANS_READONLY.0) != 0
    }
}

/// An OK packet, or the one that ends rows where EOF packets are deprecated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OkPacket<'a> {
    /// [`OK`] or [`EOF`].
    pub first: u8,
    /// Rows that were changed.
    pub affected_rows: u64,
    /// First number that was generated.
    pub last_insert_id: u64,
    /// Flags.
    pub status: Status,
    /// How many warnings there are.
    pub warnings: u16,
    /// Words for people.
    pub info: &'a [u8],
    /// The block of session state changes; see [`changes`].
    pub session: &'a [u8],
}

impl<'a> OkPacket<'a> {
    /// Reads a payload. A connection with session tracking has the block of changes when its flag is set.
    pub fn parse(payload: &'a [u8], session_track: bool) -> Result<Self, PacketError> {
        let mut reader = Reader::new(payload);
        let first = reader.u8()?;
        if !matches!(first, OK | EOF) {
            return Err(PacketError::Kind);
        }
        let mut ok = Self {
            first,
            affected_rows: reader.lenenc()?,
            last_insert_id: reader.lenenc()?,
            status: Status(reader.u16()?),
            warnings: reader.u16()?,
            info: &[],
            session: &[],
        };
        if !reader.is_empty() {
            ok.info = reader.lenenc_bytes()?;
        }
        if session_track && ok.status.has(Status::STATE_CHANGED) && !reader.is_empty() {
            ok.session = reader.lenenc_bytes()?;
        }
        Ok(ok)
    }

    /// Appends the payload. The flag of a block of changes is set by whether there is one.
    pub fn put(&self, out: &mut BytesMut) {
        let flag = Status::STATE_CHANGED.0;
        let status = if self.session.is_empty() {
            self.status.0 & !flag
        } else {
            self.status.0 | flag
        };
        out.put_u8(self.first);
        put_lenenc(out, self.affected_rows);
        put_lenenc(out, self.last_insert_id);
        out.put_u16_le(status);
        out.put_u16_le(self.warnings);
        if !self.info.is_empty() || !self.session.is_empty() {
            put_lenenc_bytes(out, self.info);
        }
        if !self.session.is_empty() {
            put_lenenc_bytes(out, self.session);
        }
    }
}

/// Kinds of session state changes.
pub mod change {
    /// A system variable: name and value.
    pub const VARIABLE: u8 = 0;
    /// The current database.
    pub const SCHEMA: u8 = 1;
    /// Something changed: `1`.
    pub const STATE: u8 = 2;
    /// Numbers of transactions.
    pub const GTIDS: u8 = 3;
    /// Statements that make the transaction, or the next one, again.
    pub const TRX_CHARACTERISTICS: u8 = 4;
    /// Eight letters about the transaction.
    pub const TRX_STATE: u8 = 5;
}

/// The changes in an OK packet's block: kind and content, up to the first that can't be read.
pub fn changes(block: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut reader = Reader::new(block);
    std::iter::from_fn(move || {
        let kind = reader.u8().ok()?;
        Some((kind, reader.lenenc_bytes().ok()?))
    })
}

/// An EOF packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EofPacket {
    /// How many warnings there are.
    pub warnings: u16,
    /// Flags.
    pub status: Status,
}

impl EofPacket {
    /// Reads a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(payload);
        if reader.u8()? != EOF {
            return Err(PacketError::Kind);
        }
        Ok(Self {
            warnings: reader.u16()?,
            status: Status(reader.u16()?),
        })
    }

    /// Appends the payload.
    pub fn put(self, out: &mut BytesMut) {
        out.put_u8(EOF);
        out.put_u16_le(self.warnings);
        out.put_u16_le(self.status.0);
    }
}

/// An ERR packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrPacket<'a> {
    /// The error's number.
    pub code: u16,
    /// SQLSTATE; empty in the first packet of a server that has not heard from its client.
    pub sqlstate: &'a [u8],
    /// Words.
    pub message: &'a [u8],
}

impl<'a> ErrPacket<'a> {
    /// Reads a payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(payload);
        if reader.u8()? != ERR {
            return Err(PacketError::Kind);
        }
        let code = reader.u16()?;
        let mut sqlstate: &[u8] = &[];
        if let Some(b'#') = reader.rest().first()
            && let Some(text) = reader.rest().get(1..6)
        {
            sqlstate = text;
            reader.bytes(6)?;
        }
        Ok(Self {
            code,
            sqlstate,
            message: reader.rest(),
        })
    }

    /// Appends the payload.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u8(ERR);
        out.put_u16_le(self.code);
        if self.sqlstate.len() == 5 {
            out.put_u8(b'#');
            out.put_slice(self.sqlstate);
        }
        out.put_slice(self.message);
    }
}

/// Appends an ERR packet, header included.
pub fn put_err(out: &mut BytesMut, seq: u8, err: &ErrPacket<'_>) {
    put(out, seq, |out| err.put(out));
}

/// Appends an OK packet with nothing in it but flags, header included.
pub fn put_ok(out: &mut BytesMut, seq: u8, status: Status) {
    let ok = OkPacket {
        first: OK,
        affected_rows: 0,
        last_insert_id: 0,
        status,
        warnings: 0,
        info: &[],
        session: &[],
    };
    put(out, seq, |out| ok.put(out));
}

/// Appends an EOF packet, header included.
pub fn put_eof(out: &mut BytesMut, seq: u8, status: Status) {
    let eof = EofPacket {
        warnings: 0,
        status,
    };
    put(out, seq, |out| eof.put(out));
}

/// What a description of a column says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// Name in the result.
    pub name: &'a [u8],
    /// Number of the collation.
    pub charset: u16,
    /// The type's number.
    pub kind: u8,
    /// Flags.
    pub flags: u16,
    /// Digits behind the point.
    pub decimals: u8,
}

impl<'a> Column<'a> {
    /// Type number of DECIMAL.
    pub const NEWDECIMAL: u8 = 246;
    /// Type number of DOUBLE.
    pub const DOUBLE: u8 = 5;
    /// Type number of BIGINT.
    pub const LONGLONG: u8 = 8;
    /// Flag of numbers without a sign.
    pub const UNSIGNED: u16 = 32;

    /// Reads a payload. `extended`: MariaDB's extended metadata were agreed on.
    pub fn parse(payload: &'a [u8], extended: bool) -> Result<Self, PacketError> {
        let mut reader = Reader::new(payload);
        // Catalog, database, table and its original name.
        for _ in 0..4 {
            reader.lenenc_bytes()?;
        }
        let name = reader.lenenc_bytes()?;
        reader.lenenc_bytes()?;
        if extended {
            reader.lenenc_bytes()?;
        }
        reader.lenenc()?;
        let charset = reader.u16()?;
        reader.u32()?;
        Ok(Self {
            name,
            charset,
            kind: reader.u8()?,
            flags: reader.u16()?,
            decimals: reader.u8()?,
        })
    }
}

/// Reads a row in text form.
pub fn text_row(payload: &[u8]) -> Result<Vec<Option<&[u8]>>, PacketError> {
    let mut reader = Reader::new(payload);
    let mut row = Vec::new();
    while !reader.is_empty() {
        row.push(reader.text_value()?);
    }
    Ok(row)
}

/// The answer to a PREPARE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrepareOk {
    /// The statement's number on this connection.
    pub id: u32,
    /// Columns of its result.
    pub columns: u16,
    /// Its parameters.
    pub params: u16,
}

impl PrepareOk {
    /// Bytes that are looked at.
    pub const LEN: usize = 9;

    /// Reads the beginning of a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(payload);
        if reader.u8()? != OK {
            return Err(PacketError::Kind);
        }
        Ok(Self {
            id: reader.u32()?,
            columns: reader.u16()?,
            params: reader.u16()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_are_read_with_and_without_a_state() {
        let bare = b"\xff\x10\x04Too many connections";
        let err = ErrPacket::parse(bare).unwrap();
        assert_eq!((err.code, err.sqlstate), (1040, &b""[..]));
        assert_eq!(err.message, b"Too many connections");
        let mut out = BytesMut::new();
        let err = ErrPacket {
            code: 1047,
            sqlstate: b"08S01",
            message: b"Unknown command",
        };
        put_err(&mut out, 3, &err);
        assert_eq!(out[3], 3);
        assert_eq!(ErrPacket::parse(&out[4..]), Ok(err));
    }

    proptest! {
        #[test]
        fn ok_packets_are_written_as_they_were_read(affected in any::<u64>(), id in any::<u64>(), status in any::<u16>(), warnings in any::<u16>(),
            info in proptest::collection::vec(any::<u8>(), 0..20), session in proptest::collection::vec(any::<u8>(), 0..20)) {
            let ok = OkPacket { first: OK, affected_rows: affected, last_insert_id: id, status: Status(status), warnings, info: &info, session: &session };
            let mut out = BytesMut::new();
            ok.put(&mut out);
            let again = OkPacket::parse(&out, true).unwrap();
            prop_assert_eq!((again.affected_rows, again.last_insert_id, again.warnings, again.info, again.session), (affected, id, warnings, &info[..], &session[..]));
            prop_assert_eq!(again.status.has(Status::STATE_CHANGED), !session.is_empty());
        }

        #[test]
        fn any_payload_is_read_within_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = OkPacket::parse(&bytes, true).map(|ok| changes(ok.session).count());
            let _ = (EofPacket::parse(&bytes), ErrPacket::parse(&bytes), Column::parse(&bytes, true), text_row(&bytes), PrepareOk::parse(&bytes));
        }
    }
}
