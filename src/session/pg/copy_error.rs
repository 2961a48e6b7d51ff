//! How far a COPY had read when it failed, as far as its error tells: a Sync that it has read is never
//! answered, one that it left is.

use crate::wire::pg::frame::Reader;

/// What an error tells about the Syncs that its COPY had read before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadBefore {
    /// All of them: it failed because of CopyFail.
    All,
    /// Those before the first data: it failed in a line.
    Early,
    /// Nothing: it may have failed before it read anything.
    Unknown,
}

impl ReadBefore {
    /// Looks at the body of an ErrorResponse.
    pub(super) fn error(body: &[u8]) -> Self {
        let (mut code, mut routine, mut place): (&[u8], &[u8], &[u8]) = (b"", b"", b"");
        let mut reader = Reader::new(body);
        while let (Ok(field @ 1..), Ok(text)) = (reader.u8(), reader.cstr()) {
            match field {
                b'C' => code = text,
                b'R' => routine = text,
                b'W' => place = text,
                _ => {}
            }
        }
        // The outermost place comes last. Line 0: nothing was read yet. (A translated text tells nothing.)
        let place = place.rsplit(|b| *b == b'\n').next().unwrap_or_default();
        let has = |words: &[u8]| memchr::memmem::find(place, words).is_some();
        if code == b"57014" && routine == b"CopyGetData" {
            Self::All
        } else if place.starts_with(b"COPY ") && has(b", line ") && !has(b", line 0") {
            Self::Early
        } else {
            Self::Unknown
        }
    }

    /// Of the Syncs inside the COPY, those that it may have left unread.
    pub(super) const fn unread(self, (before, behind): (u32, u32)) -> u32 {
        match self {
            Self::All => 0,
            Self::Early => behind,
            Self::Unknown => before + behind,
        }
    }
}
