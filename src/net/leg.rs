//! One socket of a session, and what is in transit on its side.

use super::relay::Stop;
use crate::transport::stream::Stream;
use bytes::BytesMut;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once, and at most kept of a client that is held.
pub(super) const READ_MAX: usize = 64 * 1024;

/// One socket and what is in transit on its side.
#[derive(Debug)]
pub struct Leg {
    pub(super) stream: Stream,
    /// Read, but not cut into frames yet, or held.
    pub(super) carry: BytesMut,
    /// Bytes of a frame's body that are still to stream through.
    pub(super) remaining: usize,
    /// To be written.
    pub(super) out: BytesMut,
    pub(super) needs_flush: bool,
    /// FIN seen.
    pub(super) eof: bool,
}

impl Leg {
    /// A leg whose `carry` was already read.
    pub fn new(stream: Stream, carry: BytesMut) -> Self {
        Self {
            stream,
            // An empty one may still own a login's buffer.
            carry: if carry.is_empty() {
                BytesMut::new()
            } else {
                carry
            },
            remaining: 0,
            out: BytesMut::new(),
            needs_flush: false,
            eof: false,
        }
    }

    /// Nothing half-way in either direction.
    pub(super) fn is_clean(&self) -> bool {
        self.remaining == 0 && self.out.is_empty() && !self.needs_flush
    }

    /// The socket, and bytes read ahead of it.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.carry)
    }

    /// The socket, and what its peer is still to read.
    pub fn into_goodbye(self) -> (Stream, BytesMut) {
        (self.stream, self.out)
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    pub(super) fn poll_flush_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            bytes::Buf::advance(&mut self.out, n);
            self.needs_flush = true;
        }
        if self.out.capacity() > 0 {
            self.out = BytesMut::new();
        }
        if self.needs_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what can be written now; the rest is kept.
    pub(super) fn write_through(
        &mut self,
        cx: &mut Context<'_>,
        mut data: &[u8],
    ) -> io::Result<()> {
        if self.out.is_empty() {
            while !data.is_empty() {
                match Pin::new(&mut self.stream).poll_write(cx, data) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => data = data.get(n..).unwrap_or_default(),
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
            self.needs_flush = true;
        }
        self.out.extend_from_slice(data);
        match self.poll_flush_out(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// The same for a client. `leaving`: it has said good-bye, and need not be there to read any more.
    pub(super) fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        leaving: bool,
    ) -> Result<(), Stop> {
        match self.write_through(cx, data) {
            Ok(()) => Ok(()),
            Err(_) if leaving => {
                self.out = BytesMut::new();
                Ok(())
            }
            Err(_) => Err(Stop::ClientGone),
        }
    }

    /// Reads behind what is carried; the number of bytes in `buffer`.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let kept = self.carry.len();
        let Some((head, space)) = buffer.split_at_mut_checked(kept) else {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        let space_len = space.len().min(READ_MAX);
        let mut read = ReadBuf::new(&mut space[..space_len]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        let n = read.filled().len();
        if n == 0 {
            self.eof = true;
            return Poll::Ready(Ok(0));
        }
        head.copy_from_slice(&self.carry);
        Poll::Ready(Ok(kept + n))
    }

    pub(super) fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            if self.carry.capacity() > 0 {
                self.carry = BytesMut::new();
            }
        } else {
            self.carry.clear();
            self.carry.extend_from_slice(rest);
        }
    }
}
