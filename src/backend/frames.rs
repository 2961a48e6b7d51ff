//! Whole messages from and to a server, for log-ins and for statements of Slackwater's own. Not for
//! the relay: here bodies are held whole, up to a limit.

use crate::transport::stream::Stream;
use crate::wire::pg::frame::{FrameError, HEADER_LEN, Header};
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest message that is held whole, in bytes.
pub const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its type.
    pub tag: u8,
    /// Its body.
    pub body: Bytes,
}

impl Message {
    /// The server may send it at any time.
    pub fn is_asynchronous(&self) -> bool {
        matches!(self.tag, b'N' | b'A' | b'S')
    }
}

/// A server's socket that is read message by message. What was read ahead is kept over calls, so that
/// a read that is given up loses nothing.
#[derive(Debug)]
pub struct Frames<'a> {
    stream: &'a mut Stream,
    ahead: BytesMut,
}

impl<'a> Frames<'a> {
    /// Reads from `stream`.
    pub fn new(stream: &'a mut Stream) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
        }
    }

    /// Something was read ahead of the last message.
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The next message. Safe to drop and to call again.
    pub async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(header) = Header::parse(&self.ahead).map_err(invalid)? {
                if header.body > MESSAGE_MAX {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("the server sent a message of {} bytes", header.body),
                    ));
                }
                if self.ahead.len() >= header.frame_len() {
                    let mut frame = self.ahead.split_to(header.frame_len());
                    frame.advance(HEADER_LEN);
                    return Ok(Message {
                        tag: header.tag,
                        body: frame.freeze(),
                    });
                }
            }
            self.ahead.reserve(4096);
            if self.stream.read_buf(&mut self.ahead).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Writes all of `bytes`.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
