//! MySQL's compressed protocol, as a layer over a connection: packets of seven bytes of header, which carry other
//! packets. Buffers are there only while something is under way.
//!
//! Servers of either family set the number of the next packet that they carry to that of the next compressed one whenever
//! they have read something or have written a result. Drivers rely on it (mysql_async) or look away; so it is done here.

use super::codec::Algorithm;
use super::stream::Stream;
use bytes::{Buf, BufMut, BytesMut};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a header: three of length, one of sequence, three of length once inflated.
const HEADER: usize = 7;

/// Shorter ones are not worth the work, as servers find too.
const WORTH_IT: usize = 50;

/// Bytes that go into one packet here, unless what it carries is a longer one.
const CHUNK: usize = 32 * 1024;

/// Most bytes that a packet can say it has.
const LONGEST: usize = 0xff_ffff;

/// Bytes asked for by one read.
const READ: usize = 8 * 1024;

/// A connection whose other end compresses.
pub struct Compressed {
    inner: Stream,
    /// As it came.
    raw: BytesMut,
    /// Inflated, and not read yet.
    plain: BytesMut,
    /// The beginning of a packet whose rest was not written yet. Servers spread what they carry over two packets at
    /// most, and there are clients that read no third one (Connector/Python).
    held: BytesMut,
    /// Deflated, and not written yet.
    out: BytesMut,
    /// Sequence number of the next packet that is written: it goes on from the other end's last.
    sequence: u8,
    /// The same of the next packet that is carried, unless it is to be made equal to the other.
    carried: u8,
    makes_equal: bool,
    algorithm: Algorithm,
}

impl fmt::Debug for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compressed {:?}", self.inner)
    }
}

impl Compressed {
    /// `raw` was read already.
    pub(super) fn new(inner: Stream, algorithm: Algorithm, raw: BytesMut) -> Self {
        Self {
            inner,
            raw,
            plain: BytesMut::new(),
            held: BytesMut::new(),
            out: BytesMut::new(),
            sequence: 0,
            carried: 0,
            makes_equal: true,
            algorithm,
        }
    }

    pub(super) const fn inner(&self) -> &Stream {
        &self.inner
    }

    pub(super) const fn inner_mut(&mut self) -> &mut Stream {
        &mut self.inner
    }

    /// What was written last ends a result.
    pub(super) fn end_of_result(&mut self) {
        self.makes_equal = true;
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
        self.makes_equal = true;
        if inflated == 0 {
            self.plain = body;
            return Ok(true);
        }
        // At most 16 MiB, of who has logged in.
        let out = self.algorithm.unpack(&body, inflated)?;
        self.plain = out.as_slice().into();
        Ok(true)
    }

    /// Takes what is written: packets that are whole become compressed ones.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.held.is_empty() {
            let whole = self.put_whole(bytes)?;
            self.held
                .extend_from_slice(bytes.get(whole..).unwrap_or_default());
            return Ok(());
        }
        self.held.extend_from_slice(bytes);
        if first_whole(&self.held) == 0 {
            return Ok(());
        }
        let mut held = std::mem::take(&mut self.held);
        let whole = self.put_whole(&held)?;
        if whole < held.len() {
            held.advance(whole);
            self.held = held;
        }
        Ok(())
    }

    /// Puts the whole packets at the beginning of `bytes`; how long they are.
    fn put_whole(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        loop {
            let rest = bytes.get(done..).unwrap_or_default();
            let mut run = first_whole(rest);
            if run == 0 {
                return Ok(done);
            }
            loop {
                let more = first_whole(rest.get(run..).unwrap_or_default());
                if more == 0 || run + more > CHUNK {
                    break;
                }
                run += more;
            }
            self.put_run(rest.get(..run).unwrap_or_default())?;
            done += run;
        }
    }

    /// Puts whole packets, numbered as they are to be.
    fn put_run(&mut self, run: &[u8]) -> io::Result<()> {
        if std::mem::take(&mut self.makes_equal) {
            self.carried = self.sequence;
        }
        let mut copy: Option<Vec<u8>> = None;
        let mut at = 0;
        while let Some(number) = run.get(at + 3) {
            if *number != self.carried {
                let copy = copy.get_or_insert_with(|| run.to_vec());
                if let Some(number) = copy.get_mut(at + 3) {
                    *number = self.carried;
                }
            }
            self.carried = self.carried.wrapping_add(1);
            match first_whole(run.get(at..).unwrap_or_default()) {
                0 => break,
                length => at += length,
            }
        }
        self.put_all(copy.as_deref().unwrap_or(run))
    }

    fn put_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(LONGEST).try_for_each(|bytes| self.put(bytes))
    }

    /// Makes one packet of `bytes`.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let packed = if bytes.len() >= WORTH_IT {
            self.algorithm.pack(bytes)?
        } else {
            None
        };
        // What does not become shorter goes as it is.
        let (body, inflated) = match &packed {
            Some(packed) if packed.len() < bytes.len() => (packed.as_slice(), bytes.len()),
            _ => (bytes, 0),
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

/// The length of the carried packet that `bytes` begin with; 0: it is not whole.
fn first_whole(bytes: &[u8]) -> usize {
    match bytes.first_chunk() {
        Some(&[a, b, c, _]) => {
            let length = 4 + u32::from_le_bytes([a, b, c, 0]) as usize;
            if bytes.len() >= length { length } else { 0 }
        }
        None => 0,
    }
}

/// Length, sequence number, and length once inflated.
fn header(raw: &[u8]) -> Option<(usize, u8, usize)> {
    let (length, rest) = raw.split_first_chunk::<3>()?;
    let (sequence, rest) = rest.split_first()?;
    let number = |[a, b, c]: [u8; 3]| usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
    Some((number(*length), *sequence, number(*rest.first_chunk()?)))
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
        // What was written once is all that is kept, however slow the other end is.
        ready!(this.poll_drain(cx))?;
        this.take(buf)?;
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Nobody knows its rest any more.
        let cut = std::mem::take(&mut this.held);
        this.put_all(&cut)?;
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::ZstdLevel;
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const ZLIB: Algorithm = Algorithm::Zlib;

    fn both() -> [Algorithm; 2] {
        [
            ZLIB,
            Algorithm::Zstd(ZstdLevel::new(3).expect("a usual one")),
        ]
    }

    fn pair(algorithm: Algorithm) -> (Stream, Stream) {
        let (near, far) = tokio::io::duplex(1000);
        let wrap = |end| Stream::duplex(end).compressed(algorithm, BytesMut::new());
        (wrap(near), wrap(far))
    }

    /// Packets with these bodies, numbered as they will be.
    fn numbered(bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let packets = bodies.iter().zip(0_u8..);
        let packets = packets.map(|(body, number)| {
            let length = u32::try_from(body.len()).expect("short");
            let head = (length | u32::from(number) << 24).to_le_bytes();
            [&head, body.as_slice()].concat()
        });
        packets.collect()
    }

    async fn across(algorithm: Algorithm, writes: &[Vec<u8>]) -> Vec<u8> {
        let (mut near, mut far) = pair(algorithm);
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
        let writes = numbered(&writes);
        for algorithm in both() {
            assert_eq!(across(algorithm, &writes).await, writes.concat());
        }
    }

    #[tokio::test]
    async fn packets_are_as_the_protocol_has_them() {
        let (near, mut raw) = tokio::io::duplex(100_000);
        let mut near = Stream::duplex(near).compressed(ZLIB, BytesMut::new());
        // Stored: a COM_QUERY of five bytes.
        raw.write_all(&[5, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1])
            .await
            .expect("written");
        let mut got = [0; 5];
        near.read_exact(&mut got).await.expect("read");
        assert_eq!(got, [1, 0, 0, 0, 1]);
        near.write_all(b"\x05\0\0\x01short").await.expect("written");
        near.write_all(&packet(1000)).await.expect("written");
        near.flush().await.expect("flushed");
        let mut head = [0; 16];
        raw.read_exact(&mut head).await.expect("read");
        assert_eq!(
            head, *b"\x09\0\0\x0a\0\0\0\x05\0\0\x0ashort",
            "the sequence goes on"
        );
        let mut head = [0; 7];
        raw.read_exact(&mut head).await.expect("read");
        assert_eq!((head[3], &head[4..]), (11, &[0xec, 3, 0][..]));
        assert!(head[0] < 100, "compressed");
    }

    /// A packet to be carried, with so long a body.
    fn packet(length: usize) -> Vec<u8> {
        let mut packet = u32::try_from(length).expect("short").to_le_bytes().to_vec();
        packet.resize(4 + length, 7);
        packet
    }

    #[tokio::test]
    async fn carried_packets_are_numbered_as_servers_do() {
        let (near, mut raw) = tokio::io::duplex(100_000);
        let mut near = Stream::duplex(near).compressed(ZLIB, BytesMut::new());
        // A command that took three compressed packets, and one packet that they carried.
        raw.write_all(&[5, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1])
            .await
            .expect("written");
        near.read_exact(&mut [0; 5]).await.expect("read");
        // Two results of two packets, as a server numbers them without compression.
        near.write_all(b"\x01\0\0\x01a\x01\0\0\x02b")
            .await
            .expect("written");
        near.end_of_result();
        near.write_all(b"\x01\0\0\x03c").await.expect("written");
        near.write_all(b"\x01\0\0\x04d").await.expect("written");
        near.flush().await.expect("flushed");
        let mut got = [0; 7 + 10 + 7 + 5 + 7 + 5];
        raw.read_exact(&mut got).await.expect("read");
        assert_eq!(
            got,
            *b"\x0a\0\0\x03\0\0\0\x01\0\0\x03a\x01\0\0\x04b\
               \x05\0\0\x04\0\0\0\x01\0\0\x04c\
               \x05\0\0\x05\0\0\0\x01\0\0\x05d"
        );
    }

    /// Connector/Python reads one compressed packet more where what it carries is not whole, and never two.
    #[tokio::test]
    async fn what_is_carried_spans_two_packets_at_most() {
        let (near, mut raw) = tokio::io::duplex(1 << 20);
        let mut near = Stream::duplex(near).compressed(ZLIB, BytesMut::new());
        let lengths = [1, 100_000, 0, 5, 40_000, LONGEST, 0, 20_000, 20_000, 3];
        let all: Vec<u8> = lengths.iter().flat_map(|&n| packet(n)).collect();
        let send = async {
            for bytes in all.chunks(65_536) {
                near.write_all(bytes).await.expect("written");
                near.flush().await.expect("flushed");
            }
        };
        let read = async {
            let (mut got, mut ends) = (Vec::new(), Vec::new());
            while got.len() < all.len() {
                let mut head = [0; HEADER];
                raw.read_exact(&mut head).await.expect("read");
                let (length, _, inflated) = header(&head).expect("whole");
                let mut body = vec![0; length];
                raw.read_exact(&mut body).await.expect("read");
                if inflated == 0 {
                    got.extend_from_slice(&body);
                } else {
                    got.extend(ZLIB.unpack(&body, inflated).expect("zlib"));
                }
                ends.push(got.len());
            }
            (got, ends)
        };
        let ((), (got, ends)) = tokio::join!(send, read);
        assert_eq!(got.len(), all.len());
        let bodies = |bytes: &[u8]| memchr::memchr_iter(7, bytes).count();
        assert!(bodies(&got) >= lengths.iter().sum());
        let mut from = 0;
        for length in lengths {
            let to = from + 4 + length;
            let cuts = ends.iter().filter(|end| (from + 1..to).contains(end));
            let cuts: Vec<_> = cuts.collect();
            assert!(
                cuts.len() <= 1 && cuts.iter().all(|end| **end >= from + 4),
                "{length}"
            );
            from = to;
        }
        assert!(
            ends.len() > 3 && ends.len() < 10,
            "small ones go together: {ends:?}"
        );
    }

    #[tokio::test]
    async fn what_lies_is_refused() {
        let garbage = [
            // Says 100 bytes, and is no zlib.
            &[4, 0, 0, 0, 100, 0, 0, 1, 2, 3, 4][..],
            // zlib of nothing that says 100 bytes.
            &[8, 0, 0, 0, 100, 0, 0, 0x78, 0x9c, 3, 0, 0, 0, 0, 1],
            // zstd of nothing that says 100 bytes, and zstd of 128 KiB that says so.
            &[
                9, 0, 0, 0, 100, 0, 0, 0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0,
            ],
            &[
                10, 0, 0, 0, 100, 0, 0, 0x28, 0xb5, 0x2f, 0xfd, 0, 0x88, 3, 0, 16, 7,
            ],
            // Cut.
            &[8, 0, 0, 0, 100],
        ];
        for (bytes, algorithm) in garbage.iter().flat_map(|g| both().map(|a| (g, a))) {
            let (near, mut raw) = tokio::io::duplex(1000);
            let mut near = Stream::duplex(near).compressed(algorithm, BytesMut::new());
            raw.write_all(bytes).await.expect("written");
            drop(raw);
            assert!(near.read_u8().await.is_err(), "{bytes:?} {algorithm:?}");
        }
    }

    proptest! {
        #[test]
        fn any_cuts_come_together(writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 1..8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let writes = numbered(&writes);
            for algorithm in both() {
                let got = runtime.block_on(across(algorithm, &writes));
                prop_assert_eq!(got, writes.concat());
            }
        }
    }
}
