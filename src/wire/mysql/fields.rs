//! What packets before the command phase are made of: the header, and fields of little-endian integers and strings.

use bytes::{BufMut, BytesMut};

/// Bytes of a packet's header: three of length, one of sequence.
pub const HEADER_LEN: usize = 4;

/// A packet with this length is continued by the next one.
pub const MAX_CHUNK: usize = 0xff_ffff;

/// The payload ended before its fields did, or a field can't be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed packet")]
pub struct Malformed;

/// The header of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: usize,
    /// Its place in the exchange, which wraps.
    pub sequence: u8,
}

impl Header {
    /// Reads a header; `None` while fewer than [`HEADER_LEN`] bytes are there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, sequence] = bytes.first_chunk::<HEADER_LEN>()?;
        let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        Some(Self { length, sequence })
    }

    /// Bytes of the whole packet.
    pub const fn packet_len(self) -> usize {
        HEADER_LEN + self.length
    }
}

/// A checked cursor over a payload.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads `payload` from its start.
    pub const fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// What was not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Everything was read.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(Malformed)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    /// A 16-bit integer.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// A 32-bit integer.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// A length-encoded integer.
    pub fn lenenc(&mut self) -> Result<u64, Malformed> {
        match self.u8()? {
            byte @ ..=0xfa => Ok(u64::from(byte)),
            0xfc => self.u16().map(u64::from),
            0xfd => {
                let [a, b, c] = self.array()?;
                Ok(u64::from(u32::from_le_bytes([a, b, c, 0])))
            }
            0xfe => self.array().map(u64::from_le_bytes),
            0xfb | 0xff => Err(Malformed),
        }
    }

    /// A string behind its length-encoded length. A length beyond the payload allocates nothing.
    pub fn lenenc_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.lenenc()?).map_err(|_| Malformed)?;
        self.bytes(length)
    }

    /// A string up to its NUL, which is taken too.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        let end = memchr::memchr(0, self.rest).ok_or(Malformed)?;
        let (head, tail) = self.rest.split_at(end);
        self.rest = tail.get(1..).unwrap_or_default();
        Ok(head)
    }

    /// A string up to its NUL or the end of the payload.
    pub fn cstr_or_rest(&mut self) -> &'a [u8] {
        self.cstr()
            .unwrap_or_else(|_| std::mem::take(&mut self.rest))
    }
}

/// Appends one packet, which `payload` writes; a payload of 16 MiB and more is cut to several. `sequence` is
/// the first one's, and afterwards the next one to be used.
pub fn put_packet(out: &mut BytesMut, sequence: &mut u8, payload: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_bytes(0, HEADER_LEN);
    payload(out);
    let length = out.len() - at - HEADER_LEN;
    if length < MAX_CHUNK {
        put_header(out, at, length, sequence);
        return;
    }
    let whole = out.split_off(at);
    let whole = whole.get(HEADER_LEN..).unwrap_or_default();
    let mut chunks = whole.chunks(MAX_CHUNK);
    loop {
        // A full chunk is followed by another one, be it empty.
        let chunk = chunks.next().unwrap_or_default();
        let at = out.len();
        out.put_bytes(0, HEADER_LEN);
        out.put_slice(chunk);
        put_header(out, at, chunk.len(), sequence);
        if chunk.len() < MAX_CHUNK {
            return;
        }
    }
}

fn put_header(out: &mut BytesMut, at: usize, length: usize, sequence: &mut u8) {
    let [a, b, c, ..] = length.to_le_bytes();
    if let Some(slot) = out.get_mut(at..at + HEADER_LEN) {
        slot.copy_from_slice(&[a, b, c, *sequence]);
    }
    *sequence = sequence.wrapping_add(1);
}

/// Appends a length-encoded integer.
pub fn put_lenenc(out: &mut BytesMut, value: u64) {
    match value {
        0..=0xfa => out.put_uint_le(value, 1),
        0xfb..=0xffff => {
            out.put_u8(0xfc);
            out.put_uint_le(value, 2);
        }
        0x1_0000..=0xff_ffff => {
            out.put_u8(0xfd);
            out.put_uint_le(value, 3);
        }
        _ => {
            out.put_u8(0xfe);
            out.put_u64_le(value);
        }
    }
}

/// Appends a string behind its length-encoded length.
pub fn put_lenenc_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_lenenc(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Appends a string and its NUL. A NUL inside ends the string early.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    let text = memchr::memchr(0, text).map_or(text, |end| &text[..end]);
    out.put_slice(text);
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_01_a_full_packet_is_followed_by_an_empty_one() {
        for (length, chunks) in [
            (0, vec![0]),
            (5, vec![5]),
            (MAX_CHUNK - 1, vec![MAX_CHUNK - 1]),
            (MAX_CHUNK, vec![MAX_CHUNK, 0]),
            (MAX_CHUNK + 1, vec![MAX_CHUNK, 1]),
            (2 * MAX_CHUNK, vec![MAX_CHUNK, MAX_CHUNK, 0]),
        ] {
            let mut out = BytesMut::from(&b"before"[..]);
            let mut sequence = 255;
            put_packet(&mut out, &mut sequence, |out| out.put_bytes(7, length));
            let mut rest = &out[6..];
            let mut expected = 255_u8;
            for chunk in chunks {
                let header = Header::parse(rest).expect("a header");
                assert_eq!((header.length, header.sequence), (chunk, expected));
                assert!(
                    rest[HEADER_LEN..header.packet_len()]
                        .iter()
                        .all(|b| *b == 7)
                );
                rest = &rest[header.packet_len()..];
                expected = expected.wrapping_add(1);
            }
            assert!(rest.is_empty());
            assert_eq!(sequence, expected);
        }
    }

    proptest! {
        #[test]
        fn integers_read_back(value: u64) {
            let mut out = BytesMut::new();
            put_lenenc(&mut out, value);
            let mut fields = Fields::new(&out);
            prop_assert_eq!(fields.lenenc(), Ok(value));
            prop_assert!(fields.is_empty());
        }

        #[test]
        fn nothing_is_read_past_the_end(bytes: Vec<u8>) {
            let mut fields = Fields::new(&bytes);
            while fields.lenenc_bytes().is_ok() && !fields.is_empty() {}
            let mut fields = Fields::new(&bytes);
            while fields.cstr().is_ok() {}
            prop_assert!(fields.rest().len() <= bytes.len());
        }
    }
}
