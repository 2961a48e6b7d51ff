//! The algorithms of MySQL's compressed protocol, for whole packets. What compresses belongs to the thread and not to
//! the connection: it takes hundreds of KiB, and most clients idle.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::cell::RefCell;
use std::io;
use zstd::bulk::{Compressor, Decompressor};

/// What servers compress with by default.
const ZLIB_LEVEL: Compression = Compression::new(6);

/// The highest level of zstd that is used, whatever a client asks for. Above it a packet of 16 MiB, which is compressed in
/// one piece, takes seconds and hundreds of MiB; this one takes as long as zlib.
const MAX_ZSTD_LEVEL: u8 = 9;

/// Packets up to this length are compressed with zstd by what the thread keeps, whose size follows from the largest one.
const KEPT_ZSTD: usize = 128 * 1024;

/// How compressed packets are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// zlib.
    Zlib,
    /// zstd, which MySQL knows since 8.0.18 and MariaDB does not.
    Zstd(ZstdLevel),
}

/// A level of zstd as clients may ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// What a client asks for; none where servers would refuse it.
    pub fn new(level: u8) -> Option<Self> {
        (1..=22).contains(&level).then_some(Self(level))
    }

    fn used(self) -> i32 {
        self.0.min(MAX_ZSTD_LEVEL).into()
    }
}

/// What one thread works with; each is made when it is first needed.
#[derive(Default)]
struct Tools {
    deflate: Option<Compress>,
    inflate: Option<Decompress>,
    /// With the level that it is set to.
    zstd: Option<(Compressor<'static>, i32)>,
    unzstd: Option<Decompressor<'static>>,
}

thread_local! {
    static TOOLS: RefCell<Tools> = RefCell::default();
}

impl Algorithm {
    /// `bytes` compressed; they may have become longer. None: that can't be told in one piece.
    pub fn pack(self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        TOOLS.with_borrow_mut(|tools| match self {
            Self::Zlib => tools.deflate(bytes),
            Self::Zstd(level) => tools.zstd(bytes, level.used()).map(Some),
        })
    }

    /// What `body` was made of, which must be exactly `length` bytes. No more than that is allocated for it.
    pub fn unpack(self, body: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let out = TOOLS.with_borrow_mut(|tools| match self {
            Self::Zlib => tools.inflate(body, length),
            Self::Zstd(_) => tools.unzstd(body, length),
        })?;
        if out.len() != length {
            return Err(lies());
        }
        Ok(out)
    }
}

impl Tools {
    fn deflate(&mut self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let deflate = self
            .deflate
            .get_or_insert_with(|| Compress::new(ZLIB_LEVEL, true));
        deflate.reset();
        let mut out = Vec::with_capacity(bytes.len());
        let status = deflate
            .compress_vec(bytes, &mut out, FlushCompress::Finish)
            .map_err(io::Error::other)?;
        Ok((status == Status::StreamEnd).then_some(out))
    }

    fn inflate(&mut self, body: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let inflate = self.inflate.get_or_insert_with(|| Decompress::new(true));
        inflate.reset(true);
        let mut out = Vec::with_capacity(length);
        let status = inflate
            .decompress_vec(body, &mut out, FlushDecompress::Finish)
            .map_err(invalid)?;
        if status != Status::StreamEnd {
            return Err(lies());
        }
        Ok(out)
    }

    fn zstd(&mut self, bytes: &[u8], level: i32) -> io::Result<Vec<u8>> {
        if bytes.len() > KEPT_ZSTD {
            return zstd::bulk::compress(bytes, level);
        }
        let (compressor, set) = match &mut self.zstd {
            Some(kept) => kept,
            none => none.insert((Compressor::new(level)?, level)),
        };
        if *set != level {
            compressor.set_compression_level(level)?;
            *set = level;
        }
        compressor.compress(bytes)
    }

    fn unzstd(&mut self, body: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let decompressor = match &mut self.unzstd {
            Some(kept) => kept,
            none => none.insert(Decompressor::new()?),
        };
        // In one piece: nothing is allocated by what a frame says of its window.
        decompressor.decompress(body, length).map_err(invalid)
    }
}

fn lies() -> io::Error {
    invalid("a compressed packet that holds something else than it says")
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> impl Iterator<Item = Algorithm> {
        let levels = (0..=u8::MAX).filter_map(ZstdLevel::new);
        std::iter::once(Algorithm::Zlib).chain(levels.map(Algorithm::Zstd))
    }

    #[test]
    fn levels_are_those_of_servers() {
        let levels: Vec<_> = (0..=u8::MAX).filter_map(ZstdLevel::new).collect();
        assert_eq!(levels.len(), 22);
        assert!(levels.iter().all(|l| (1..=9).contains(&l.used())));
        assert_eq!(levels[2].used(), 3);
    }

    #[test]
    fn what_is_packed_is_unpacked_by_each_level() {
        let words: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| n.to_string().into_bytes())
            .collect();
        for algorithm in all() {
            for bytes in [&words[..100], &words[..40_000], &words] {
                let packed = algorithm.pack(bytes).expect("packed").expect("whole");
                assert!(packed.len() < bytes.len(), "{algorithm:?}");
                let unpacked = algorithm.unpack(&packed, bytes.len());
                assert!(unpacked.expect("unpacked") == bytes, "{algorithm:?}");
                for lie in [bytes.len() - 1, bytes.len() + 1, 0] {
                    let unpacked = algorithm.unpack(&packed, lie);
                    let kind = unpacked.expect_err("a lie").kind();
                    assert_eq!(kind, io::ErrorKind::InvalidData, "{algorithm:?} {lie}");
                }
            }
        }
    }

    #[test]
    fn a_frame_that_says_it_is_huge_allocates_nothing() {
        let zstd = Algorithm::Zstd(ZstdLevel(3));
        // One segment of 2^62 bytes; a window of 2^41; a window of 128 MiB in which a byte is repeated 128 KiB times.
        let mut segment = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        segment.extend_from_slice(&(1_u64 << 62).to_le_bytes());
        segment.extend_from_slice(&[1, 0, 0]);
        let window = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0];
        let run = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x88, 3, 0, 16, b'x'];
        for frame in [segment, window, run] {
            let unpacked = zstd.unpack(&frame, 100);
            assert_eq!(
                unpacked.expect_err("too long").kind(),
                io::ErrorKind::InvalidData,
                "{frame:?}"
            );
        }
        // Several frames are one packet, as far as zstd is concerned.
        let one = zstd.pack(&[7; 60]).expect("packed").expect("whole");
        let two = [&one[..], &one].concat();
        assert_eq!(zstd.unpack(&two, 120).expect("unpacked"), [7; 120]);
        assert!(zstd.unpack(&two, 60).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(begin in prop::sample::select(vec![&b""[..], b"\x78\x9c", b"\x28\xb5\x2f\xfd"]), rest: Vec<u8>, length in 0_usize..100_000) {
            let body = [begin, &rest].concat();
            for algorithm in [Algorithm::Zlib, Algorithm::Zstd(ZstdLevel(3))] {
                if let Ok(unpacked) = algorithm.unpack(&body, length) {
                    prop_assert_eq!(unpacked.len(), length);
                }
            }
        }

        #[test]
        fn damage_is_no_panic(bytes in proptest::collection::vec(0_u8..4, 50..3000), at: prop::sample::Index, by: u8) {
            for algorithm in [Algorithm::Zlib, Algorithm::Zstd(ZstdLevel(3))] {
                let mut packed = algorithm.pack(&bytes).expect("packed").expect("whole");
                let at = at.index(packed.len());
                packed[at] ^= by;
                drop(algorithm.unpack(&packed, bytes.len()));
                packed.truncate(at);
                prop_assert!(algorithm.unpack(&packed, bytes.len()).is_err());
            }
        }
    }
}
