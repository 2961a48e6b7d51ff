//! Packets: a length of three bytes, a sequence number, a payload. A payload of [`MAX_PAYLOAD`] bytes says
//! that the next packet continues it, so that what ends on that border ends with an empty packet.

use crate::wire::frame::FrameError;
use bytes::{BufMut, BytesMut};

/// Bytes of a packet's header: the length and the sequence number.
pub const HEADER_LEN: usize = 4;

/// Longest payload of one packet; what is that long goes on in the next one.
pub const MAX_PAYLOAD: usize = 0xff_ffff;

/// A payload that can't be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The payload ended before its fields did.
    #[error("packet ends early")]
    Truncated,
    /// A length-encoded number begins with a byte that begins none.
    #[error("invalid length-encoded number")]
    LengthEncoding,
    /// A packet of another kind was due.
    #[error("packet of an unexpected kind")]
    Kind,
}

/// The header of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub len: usize,
    /// Sequence number; each command begins again at 0.
    pub seq: u8,
}

impl Header {
    /// Reads a header; `None` while fewer than [`HEADER_LEN`] bytes are there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, seq] = bytes.first_chunk::<HEADER_LEN>()?;
        Some(Self {
            len: usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16,
            seq,
        })
    }

    /// Bytes of the whole packet.
    pub const fn frame_len(self) -> usize {
        HEADER_LEN + self.len
    }

    /// The next packet goes on with the same payload.
    pub const fn is_continued(self) -> bool {
        self.len == MAX_PAYLOAD
    }

    /// The header's bytes. The length must be at most [`MAX_PAYLOAD`].
    pub fn bytes(self) -> [u8; HEADER_LEN] {
        let [a, b, c, ..] = u32::try_from(self.len).unwrap_or(u32::MAX).to_le_bytes();
        [a, b, c, self.seq]
    }
}

impl crate::wire::frame::Header for Header {
    const LEN: usize = HEADER_LEN;

    fn cut(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        Ok(Self::parse(bytes))
    }

    fn whole_len(self) -> usize {
        self.frame_len()
    }
}

/// A checked cursor over a payload.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
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
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], PacketError> {
        let (head, tail) = self
            .rest
            .split_at_checked(n)
            .ok_or(PacketError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketError> {
        let (head, tail) = self
            .rest
            .split_first_chunk()
            .ok_or(PacketError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, PacketError> {
        self.array().map(|[b]| b)
    }

    /// A number of two bytes.
    pub fn u16(&mut self) -> Result<u16, PacketError> {
        self.array().map(u16::from_le_bytes)
    }

    /// A number of three bytes.
    pub fn u24(&mut self) -> Result<u32, PacketError> {
        self.array()
            .map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }

    /// A number of four bytes.
    pub fn u32(&mut self) -> Result<u32, PacketError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A number of eight bytes.
    pub fn u64(&mut self) -> Result<u64, PacketError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length-encoded number.
    pub fn lenenc(&mut self) -> Result<u64, PacketError> {
        match self.u8()? {
            small @ 0..=250 => Ok(u64::from(small)),
            0xfc => self.u16().map(u64::from),
            0xfd => self.u24().map(u64::from),
            0xfe => self.u64(),
            _ => Err(PacketError::LengthEncoding),
        }
    }

    /// A length-encoded string.
    pub fn lenenc_bytes(&mut self) -> Result<&'a [u8], PacketError> {
        let len = self.lenenc()?;
        self.bytes(usize::try_from(len).map_err(|_| PacketError::Truncated)?)
    }

    /// A value of a text row: a length-encoded string, or NULL.
    pub fn text_value(&mut self) -> Result<Option<&'a [u8]>, PacketError> {
        if let Some((0xfb, tail)) = self.rest.split_first() {
            self.rest = tail;
            return Ok(None);
        }
        self.lenenc_bytes().map(Some)
    }

    /// A string up to its NUL, which is taken too.
    pub fn cstr(&mut self) -> Result<&'a [u8], PacketError> {
        let end = memchr::memchr(0, self.rest).ok_or(PacketError::Truncated)?;
        let (head, tail) = self.rest.split_at(end);
        self.rest = tail.get(1..).unwrap_or_default();
        Ok(head)
    }

    /// A string up to its NUL, or to the end of the payload.
    pub fn cstr_or_rest(&mut self) -> &'a [u8] {
        self.cstr()
            .unwrap_or_else(|_| std::mem::take(&mut self.rest))
    }
}

/// Appends a string and its NUL. A NUL inside ends the string early.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    let text = memchr::memchr(0, text).map_or(text, |end| &text[..end]);
    out.put_slice(text);
    out.put_u8(0);
}

/// Appends one payload as as many packets as it needs; returns the sequence number that comes next.
pub fn put_packet(out: &mut BytesMut, seq: u8, payload: &[u8]) -> u8 {
    let mut seq = seq;
    let mut rest = payload;
    loop {
        let (head, tail) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let header = Header {
            len: head.len(),
            seq,
        };
        out.put_slice(&header.bytes());
        out.put_slice(head);
        seq = seq.wrapping_add(1);
        rest = tail;
        if !header.is_continued() {
            return seq;
        }
    }
}

/// Appends one packet whose payload, below [`MAX_PAYLOAD`] bytes, `payload` writes.
pub fn put(out: &mut BytesMut, seq: u8, payload: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_slice(&[0; HEADER_LEN]);
    payload(out);
    let header = Header {
        len: out.len() - at - HEADER_LEN,
        seq,
    };
    debug_assert!(header.len < MAX_PAYLOAD, "no small packet");
    if let Some(slot) = out.get_mut(at..at + HEADER_LEN) {
        slot.copy_from_slice(&header.bytes());
    }
}

/// Appends a length-encoded number.
pub fn put_lenenc(out: &mut BytesMut, n: u64) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each arm's range fits what is written"
    )]
    match n {
        0..=250 => out.put_u8(n as u8),
        251..=0xffff => {
            out.put_u8(0xfc);
            out.put_u16_le(n as u16);
        }
        0x1_0000..=0xff_ffff => {
            out.put_u8(0xfd);
            out.put_uint_le(n, 3);
        }
        _ => {
            out.put_u8(0xfe);
            out.put_u64_le(n);
        }
    }
}

/// Appends a length-encoded string.
pub fn put_lenenc_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_lenenc(out, bytes.len() as u64);
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_01_what_ends_on_the_border_ends_with_an_empty_packet() {
        for (len, packets) in [
            (0, 1),
            (1, 1),
            (MAX_PAYLOAD - 1, 1),
            (MAX_PAYLOAD, 2),
            (MAX_PAYLOAD + 1, 2),
            (2 * MAX_PAYLOAD, 3),
        ] {
            let mut out = BytesMut::new();
            let next = put_packet(&mut out, 254, &vec![7; len]);
            assert_eq!(next, 254_u8.wrapping_add(packets));
            let (mut rest, mut count, mut sum) = (&out[..], 0, 0);
            while let Some(header) = Header::parse(rest) {
                assert_eq!(header.seq, 254_u8.wrapping_add(count));
                rest = &rest[header.frame_len()..];
                count += 1;
                sum += header.len;
                assert_eq!(header.is_continued(), !rest.is_empty());
            }
            assert_eq!((count, sum), (packets, len));
        }
    }

    proptest! {
        #[test]
        fn numbers_and_strings_are_read_as_they_were_written(n in any::<u64>(), shift in 0_u32..64, text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = BytesMut::new();
            put_lenenc(&mut out, n >> shift);
            put_lenenc_bytes(&mut out, &text);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.lenenc(), Ok(n >> shift));
            prop_assert_eq!(reader.lenenc_bytes(), Ok(&text[..]));
            prop_assert!(reader.is_empty());
            // Cut anywhere, it ends early.
            for end in 0..out.len() {
                let mut reader = Reader::new(&out[..end]);
                prop_assert!(reader.lenenc().and_then(|_| reader.lenenc_bytes()).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_within_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while reader.text_value().is_ok() && !reader.is_empty() {}
            let mut reader = Reader::new(&bytes);
            while reader.cstr().is_ok() {}
            prop_assert!(reader.rest().len() <= bytes.len());
        }
    }
}
