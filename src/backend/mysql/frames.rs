//! Whole payloads from and to the other end, for log-ins and for statements of Slackwater's own. Not for the relay: here
//! payloads are held whole, up to a limit.

use crate::wire::mysql::packet::{HEADER_LEN, Header, MAX_PAYLOAD, put_packet};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroize;

/// Longest payload that is held whole, in bytes.
pub const PAYLOAD_MAX: usize = 16 * 1024 * 1024;

/// Bytes asked for by one read.
const READ: usize = 4096;

/// A socket that is read payload by payload. What was read ahead is kept over calls, so that a read that is given up
/// loses nothing.
#[derive(Debug)]
pub struct Packets<S> {
    stream: S,
    ahead: BytesMut,
    /// The sequence number that is due next.
    sequence: u8,
    limit: usize,
    /// Numbers are not looked at: replies to several commands come one behind the other.
    any_order: bool,
    /// Chunks of a payload whose rest has not come yet.
    joined: BytesMut,
    /// They were too many, and the rest is thrown away as well.
    long: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Packets<S> {
    /// Reads from `stream`, at the beginning of an exchange; payloads are at most `limit` bytes long.
    pub fn new(stream: S, limit: usize) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
            sequence: 0,
            limit,
            any_order: false,
            joined: BytesMut::new(),
            long: false,
        }
    }

    /// Goes on in the middle of an exchange: with what was read ahead, at this sequence number.
    pub fn resumed(stream: S, limit: usize, ahead: BytesMut, sequence: u8) -> Self {
        Self {
            ahead,
            sequence,
            ..Self::new(stream, limit)
        }
    }

    /// Reads the replies to commands that are written in one go with [`Self::write`].
    pub fn replies(stream: S, limit: usize) -> Self {
        Self {
            any_order: true,
            ..Self::new(stream, limit)
        }
    }

    /// The stream and what was read ahead of the last payload.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.ahead)
    }

    /// The stream.
    pub const fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream, to write to or to close.
    pub const fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Something was read ahead of the last payload.
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The sequence number that is due next.
    pub const fn sequence(&self) -> u8 {
        self.sequence
    }

    /// Goes on with an exchange that was begun elsewhere.
    pub const fn set_sequence(&mut self, sequence: u8) {
        self.sequence = sequence;
    }

    /// The next payload. Safe to drop and to call again.
    pub async fn next(&mut self) -> io::Result<Bytes> {
        match self.take(false).await? {
            Some(payload) => Ok(payload),
            None => Err(invalid("a packet that is too long")),
        }
    }

    /// The same, but a payload that is longer than the limit is read to its end and thrown away: `None`.
    pub async fn next_unless_long(&mut self) -> io::Result<Option<Bytes>> {
        self.take(true).await
    }

    async fn take(&mut self, skips: bool) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(header) = Header::parse(&self.ahead) {
                let so_far = self.joined.len() + header.len;
                if so_far > self.limit && !skips {
                    let text = format!("a packet of {so_far} bytes, or longer");
                    return Err(invalid(&text));
                }
                if so_far > self.limit {
                    self.long = true;
                    self.joined = BytesMut::new();
                }
                if header.seq != self.sequence && !self.any_order {
                    return Err(invalid("packets out of order"));
                }
                if self.ahead.len() >= header.frame_len() {
                    self.sequence = self.sequence.wrapping_add(1);
                    let mut packet = self.ahead.split_to(header.frame_len());
                    packet.advance(HEADER_LEN);
                    let more = header.is_continued();
                    if self.long {
                        self.long = more;
                        if more {
                            continue;
                        }
                        return Ok(None);
                    }
                    if more || !self.joined.is_empty() {
                        self.joined.put_slice(&packet);
                    }
                    if more {
                        continue;
                    }
                    if self.joined.is_empty() {
                        return Ok(Some(packet.freeze()));
                    }
                    return Ok(Some(self.joined.split().freeze()));
                }
            }
            self.ahead.reserve(READ);
            let room = (&mut self.ahead).limit(READ);
            if self.stream.read_buf(&mut { room }).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Writes one payload. It may be a password, and is wiped.
    pub async fn send(&mut self, payload: impl FnOnce(&mut BytesMut)) -> io::Result<()> {
        let mut out = BytesMut::new();
        out.put_bytes(0, HEADER_LEN);
        payload(&mut out);
        let header = Header {
            len: out.len() - HEADER_LEN,
            seq: self.sequence,
        };
        if header.len < MAX_PAYLOAD {
            if let Some(slot) = out.get_mut(..HEADER_LEN) {
                slot.copy_from_slice(&header.bytes());
            }
            self.sequence = self.sequence.wrapping_add(1);
        } else {
            let whole = out.split_off(HEADER_LEN);
            out.clear();
            self.sequence = put_packet(&mut out, self.sequence, &whole);
        }
        let sent = self.write(&out).await;
        out.as_mut().zeroize();
        sent
    }

    /// Writes whole packets.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the other end sent {text}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn case_01_continued_payloads_are_joined_and_limits_kept() {
        for length in [0, 1, MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 5] {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let mut sender = Packets::new(near, PAYLOAD_MAX);
            let mut reader = Packets::new(far, 2 * PAYLOAD_MAX);
            let (sent, read) =
                tokio::join!(sender.send(|out| out.put_bytes(7, length)), reader.next());
            sent.expect("sent");
            let read = read.expect("read");
            assert_eq!(read.len(), length);
            assert_eq!(reader.sequence(), sender.sequence());
            assert!(!reader.is_ahead());
        }
    }

    #[tokio::test]
    async fn what_is_too_long_can_be_thrown_away_and_what_follows_is_read() {
        for length in [256, 5000, MAX_PAYLOAD, MAX_PAYLOAD + 5, 3 * MAX_PAYLOAD] {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let mut sender = Packets::new(near, PAYLOAD_MAX);
            let mut reader = Packets::replies(far, 255);
            let send = async {
                sender.send(|out| out.put_bytes(7, length)).await?;
                sender.send(|out| out.put_bytes(8, 255)).await
            };
            let read = async {
                let long = reader.next_unless_long().await?;
                Ok::<_, io::Error>((long, reader.next_unless_long().await?))
            };
            let (sent, read) = tokio::join!(send, read);
            sent.expect("sent");
            let (long, next) = read.expect("read");
            assert!(long.is_none());
            assert_eq!(next.map(|n| n.len()), Some(255));
            assert!(!reader.is_ahead());
        }
    }

    #[tokio::test]
    async fn what_is_too_long_or_out_of_order_is_refused() {
        for (bytes, text) in [
            (&[0, 1, 0, 0][..], "256 bytes"),
            (&[1, 0, 0, 1, 7], "out of order"),
        ] {
            let (mut near, far) = tokio::io::duplex(1024);
            near.write_all(bytes).await.expect("written");
            let error = Packets::new(far, 255).next().await.expect_err("refused");
            assert!(error.to_string().contains(text), "{error}");
        }
        let (near, far) = tokio::io::duplex(1024);
        drop(near);
        assert!(Packets::new(far, 255).next().await.is_err());
    }
}
