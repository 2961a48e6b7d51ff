//! Frames: one tag byte, a length that counts itself, a body. Reading and writing them.

pub use crate::wire::frame::FrameError;
use bytes::{BufMut, BytesMut};

/// Bytes of a frame's header: the tag and the length.
pub const HEADER_LEN: usize = 5;

/// Longest message body that PostgreSQL takes (`PQ_LARGE_MESSAGE_LIMIT`, 1 GiB - 1).
pub const MAX_BODY: usize = 0x3fff_ffff;

/// The header of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Message type.
    pub tag: u8,
    /// Bytes of the body, the length field not counted.
    pub body: usize,
}

impl Header {
    /// Reads a header; `None` while fewer than [`HEADER_LEN`] bytes are there.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes([a, b, c, d]);
        let body = usize::try_from(length)
            .ok()
            .and_then(|n| n.checked_sub(4))
            .filter(|n| *n <= MAX_BODY)
            .ok_or(FrameError::Length(length))?;
        Ok(Some(Self { tag, body }))
    }

    /// Bytes of the whole frame.
    pub const fn frame_len(self) -> usize {
        HEADER_LEN + self.body
    }
}

impl crate::wire::frame::Header for Header {
    const LEN: usize = HEADER_LEN;

    fn cut(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        Self::parse(bytes)
    }

    fn whole_len(self) -> usize {
        self.frame_len()
    }
}

/// A checked cursor over a message body.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `body` from its start.
    pub const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// What was not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], FrameError> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(FrameError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, FrameError> {
        let (head, tail) = self.rest.split_first().ok_or(FrameError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    /// A 16-bit integer.
    pub fn i16(&mut self) -> Result<i16, FrameError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.rest = tail;
        Ok(i16::from_be_bytes(*head))
    }

    /// A 32-bit integer.
    pub fn i32(&mut self) -> Result<i32, FrameError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.rest = tail;
        Ok(i32::from_be_bytes(*head))
    }

    /// A string up to its NUL, which is taken too.
    pub fn cstr(&mut self) -> Result<&'a [u8], FrameError> {
        let end = memchr::memchr(0, self.rest).ok_or(FrameError::Truncated)?;
        let (head, tail) = self.rest.split_at(end);
        self.rest = tail.get(1..).unwrap_or_default();
        Ok(head)
    }
}

/// Appends one frame to `out`; `body` writes its body.
pub fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_sized(out, body);
}

/// Appends a message without a tag (start-up packets): length, then body.
pub fn put_sized(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_i32(0);
    body(out);
    let len = i32::try_from(out.len() - at).unwrap_or(i32::MAX);
    if let Some(slot) = out.get_mut(at..at + 4) {
        slot.copy_from_slice(&len.to_be_bytes());
    }
}

/// Appends a string and its NUL. A NUL inside ends the string early.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    let text = memchr::memchr(0, text).map_or(text, |end| &text[..end]);
    out.put_slice(text);
    out.put_u8(0);
}
