//! What framing has in common, whatever the protocol.

/// A frame that can't be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length that no frame can have.
    #[error("invalid message length {0}")]
    Length(i32),
    /// The body ended before its fields did.
    #[error("message ends early")]
    Truncated,
}

/// The header of one frame: what tells where the next one begins.
pub trait Header: Copy {
    /// Bytes of a header.
    const LEN: usize;

    /// Reads a header; `None` while fewer than [`Self::LEN`] bytes are there.
    fn cut(bytes: &[u8]) -> Result<Option<Self>, FrameError>;

    /// Bytes of the whole frame.
    fn whole_len(self) -> usize;
}
