//! What the server owes an answer to.

/// One message whose reply is owed, or that matters for what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Owed {
    Query,
    Parse,
    ParseUnnamed,
    Bind,
    Close,
    CloseUnnamed,
    DescribeStatement,
    DescribePortal,
    Execute,
    Sync,
    FunctionCall,
    /// CopyData, however many: owes nothing, is read by a COPY that starts before it.
    CopyData,
    /// CopyDone or CopyFail: owes nothing, ends a COPY that starts before it is read.
    CopyEnd,
    /// Not the client's: see [`super::absent`].
    Ours(Ours),
}

/// A message of Slackwater's own before one of the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    /// PREPARE in front of a Query's text.
    Prepare,
    /// Parse of a statement with a name.
    Parse,
    /// Describe of a statement whose rows the client was told to have this shape.
    Describe,
}

impl Owed {
    /// Outside COPY the server ignores it.
    pub(super) const fn is_copy(self) -> bool {
        matches!(self, Self::CopyData | Self::CopyEnd)
    }

    /// The server closes an implicit transaction with it, or reports the one that stays open.
    pub(super) const fn ends_batch(self) -> bool {
        matches!(self, Self::Query | Self::Sync | Self::FunctionCall)
    }
}
