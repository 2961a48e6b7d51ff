//! MySQL's compressed protocol (zlib), as a layer over a connection: packets of seven bytes of header, which have nothing
//! to do with the packets that they carry. Buffers are there only while something is under way.

use super::stream::Stream;
use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a header: three of length, one of sequence, three of length once inflated.
const HEADER: usize = 7;

/// Shorter ones are not worth the work, as servers find too.
const WORTH_IT: usize = 50;

/// Most bytes that go into one packet here.
const CHUNK: usize = 32 * 1024;

/// Bytes asked for by one read.
const READ: usize = 8 * 1024;

/// What servers compress with by default.
const LEVEL: Compression = Compression::new(6);

/// A connection whose other end compresses.
pub struct Compressed {
    inner: Stream,
    /// As it came.
    raw: BytesMut,
    /// Inflated, and not read yet.
    plain: BytesMut,
    /// Deflated, and not written yet.
    out: BytesMut,
    /// Sequence number of the next packet that is written: it goes on from the other end's last.
    sequence: u8,
    deflate: Compress,
    inflate: Decompress,
}

impl fmt::Debug for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compressed {:?}", self.inner)
    }
}

impl Compressed {
    /// `raw` was read already.
    pub(super) fn new(inner: Stream, raw: BytesMut) -> Self {
        Self {
            inner,
            raw,
            plain: BytesMut::new(),
            out: BytesMut::new(),
            sequence: 0,
            deflate: Compress::new(LEVEL, true),
            inflate: Decompress::new(true),
        }
    }

    pub(super) const fn inner(&self) -> &Stream {
        &self.inner
    }

    /// A read finds something without the socket.
    pub(super) fn has_more(&self) -> bool {
        !self.plain.is_empty()
            || matches!(header(&self.raw), Some((length, ..)) if self.raw.len() >= HEADER + length)
    }

    /// Inflates the next packet, if it is there whole.
    fn next(&mut self) -> io::Result<bool> {
        let Some((length, sequence, inflated)) = header(&self.raw) else {
            return Ok(false);
        };
        if self.raw.len() < HEADER + length {
            return Ok(false);
        }
        self.raw.advance(HEADER);
        let body = self.raw.split_to(length);
        self.sequence = sequence.wrapping_add(1);
        if inflated == 0 {
            self.plain = body;
            return Ok(true);
        }
        // At most 16 MiB, of who has logged in; the packet must hold exactly what it says.
        self.inflate.reset(true);
        let mut out = Vec::with_capacity(inflated);
        let status = self
            .inflate
            .decompress_vec(&body, &mut out, FlushDecompress::Finish)
            .map_err(invalid)?;
        if status != Status::StreamEnd || out.len() != inflated {
            return Err(invalid(
                "a compressed packet that holds something else than it says",
            ));
        }
        self.plain = out.as_slice().into();
        Ok(true)
    }

    /// Makes one packet of `bytes`.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut packed = Vec::new();
        if bytes.len() >= WORTH_IT {
            self.deflate.reset();
            packed.reserve(bytes.len());
            let status = self
                .deflate
                .compress_vec(bytes, &mut packed, FlushCompress::Finish)
                .map_err(io::Error::other)?;
            // What does not become shorter goes as it is.
            if status != Status::StreamEnd {
                packed.clear();
            }
        }
        let (body, inflated) = if packed.is_empty() || packed.len() >= bytes.len() {
            (bytes, 0)
        } else {
            (packed.as_slice(), bytes.len())
        };
        self.out.reserve(HEADER + body.len());
        self.out.put_uint_le(body.len() as u64, 3);
        self.out.put_u8(self.sequence);
        self.out.put_uint_le(inflated as u64, 3);
        self.out.put_slice(body);
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    /// Writes what is deflated.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.out))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.out.advance(written),
            }
        }
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

/// Length, sequence number, and length once inflated.
fn header(raw: &[u8]) -> Option<(usize, u8, usize)> {
    let (length, rest) = raw.split_first_chunk::<3>()?;
    let (sequence, rest) = rest.split_first()?;
    let number = |[a, b, c]: [u8; 3]| usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
    Some((number(*length), *sequence, number(*rest.first_chunk()?)))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for Compressed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.plain.is_empty() {
            if this.next()? {
                continue;
            }
            let mut scrap = [0; READ];
            let mut read = ReadBuf::new(&mut scrap);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(if this.raw.is_empty() {
                    Ok(())
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                });
            }
            this.raw.put_slice(read.filled());
        }
        let length = this.plain.len().min(buf.remaining());
        buf.put_slice(&this.plain.split_to(length));
        if this.plain.is_empty() {
            this.plain = BytesMut::new();
            if this.raw.is_empty() {
                this.raw = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Compressed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // One packet at a time is kept, however slow the other end is.
        ready!(this.poll_drain(cx))?;
        let Some(chunk) = buf
            .get(..buf.len().min(CHUNK))
            .filter(|chunk| !chunk.is_empty())
        else {
            return Poll::Ready(Ok(0));
        };
        this.put(chunk)?;
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(chunk.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Stream, Stream) {
        let (near, far) = tokio::io::duplex(1000);
        let wrap = |end| Stream::duplex(end).compressed(BytesMut::new());
        (wrap(near), wrap(far))
    }

    async fn across(writes: &[Vec<u8>]) -> Vec<u8> {
        let (mut near, mut far) = pair();
        let send = async {
            for bytes in writes {
                near.write_all(bytes).await.expect("written");
                near.flush().await.expect("flushed");
            }
            near.shutdown().await.expect("closed");
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut got), send);
        read.expect("read");
        got
    }

    #[tokio::test]
    async fn whatever_is_written_is_read() {
        let random: Vec<u8> = (0..100_000_u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
            .collect();
        let writes = [vec![7; 300_000], b"short".to_vec(), random, vec![0; 50]];
        assert_eq!(across(&writes).await, writes.concat());
    }

    #[tokio::test]
    async fn packets_are_as_the_protocol_has_them() {
        let (near, mut raw) = tokio::io::duplex(100_000);
        let mut near = Stream::duplex(near).compressed(BytesMut::new());
        // Stored: a COM_QUERY of five bytes.
        raw.write_all(&[5, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1])
            .await
            .expect("written");
        let mut got = [0; 5];
        near.read_exact(&mut got).await.expect("read");
        assert_eq!(got, [1, 0, 0, 0, 1]);
        near.write_all(b"short").await.expect("written");
        near.write_all(&[7; 1000]).await.expect("written");
        near.flush().await.expect("flushed");
        let mut head = [0; 12];
        raw.read_exact(&mut head).await.expect("read");
        assert_eq!(head, *b"\x05\0\0\x0a\0\0\0short", "the sequence goes on");
        let mut head = [0; 7];
        raw.read_exact(&mut head).await.expect("read");
        assert_eq!((head[3], &head[4..]), (11, &[0xe8, 3, 0][..]));
        assert!(head[0] < 100, "compressed");
    }

    #[tokio::test]
    async fn what_lies_is_refused() {
        for bytes in [
            // Says 100 bytes, and is no zlib.
            &[4, 0, 0, 0, 100, 0, 0, 1, 2, 3, 4][..],
            // zlib of nothing that says 100 bytes.
            &[8, 0, 0, 0, 100, 0, 0, 0x78, 0x9c, 3, 0, 0, 0, 0, 1],
            // Cut.
            &[8, 0, 0, 0, 100],
        ] {
            let (near, mut raw) = tokio::io::duplex(1000);
            let mut near = Stream::duplex(near).compressed(BytesMut::new());
            raw.write_all(bytes).await.expect("written");
            drop(raw);
            assert!(near.read_u8().await.is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_cuts_come_together(writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 1..8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let got = runtime.block_on(across(&writes));
            prop_assert_eq!(got, writes.concat());
        }
    }
}
