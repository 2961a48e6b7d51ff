//! Named reasons why a session can't be detached now.

use std::time::Instant;

/// What kind of reason. The texts are part of the outer contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockerKind {
    /// A transaction is open, or failed and not yet rolled back.
    Transaction,
    /// A statement runs, or replies to sent messages are still owed.
    Statement,
    /// COPY in either direction.
    Copy,
    /// Session-level advisory locks.
    AdvisoryLock,
    /// Temporary objects of any kind.
    TempTable,
    /// LISTEN.
    Listen,
    /// A cursor WITH HOLD.
    HoldCursor,
    /// State of a replication origin or stream.
    Replication,
    /// A temporary replication slot.
    ReplicationSlot,
    /// A running `pg_backup_start`.
    Backup,
    /// An unnamed prepared statement too large to keep.
    UnnamedStatement,
    /// The state was seen, but could not be put onto a fresh connection.
    NotRestorable,
    /// The protocol took a turn after which nobody can say what is owed.
    Ambiguous,
    /// The server could not be asked.
    Unknown,
    /// MySQL: locks of `GET_LOCK` and its kin.
    UserLock,
    /// MySQL: LOCK TABLES.
    TableLock,
    /// MySQL: FLUSH TABLES WITH READ LOCK, backup stages and locks, LOCK INSTANCE.
    GlobalLock,
    /// MySQL: an open HANDLER.
    Handler,
    /// MySQL: an XA transaction.
    Xa,
    /// MySQL: an open cursor of a prepared statement.
    Cursor,
    /// MySQL: parameters that were sent ahead of their statement.
    LongData,
    /// MySQL: state that is there, but whose content nobody can tell.
    UnnamedState,
}

impl BlockerKind {
    /// Every kind, for metrics.
    pub const ALL: [Self; 22] = [
        Self::Transaction,
        Self::Statement,
        Self::Copy,
        Self::AdvisoryLock,
        Self::TempTable,
        Self::Listen,
        Self::HoldCursor,
        Self::Replication,
        Self::ReplicationSlot,
        Self::Backup,
        Self::UnnamedStatement,
        Self::NotRestorable,
        Self::Ambiguous,
        Self::Unknown,
        Self::UserLock,
        Self::TableLock,
        Self::GlobalLock,
        Self::Handler,
        Self::Xa,
        Self::Cursor,
        Self::LongData,
        Self::UnnamedState,
    ];

    /// The name in the admin API, the metrics and the logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Statement => "statement",
            Self::Copy => "copy",
            Self::AdvisoryLock => "advisory_lock",
            Self::TempTable => "temp_table",
            Self::Listen => "listen",
            Self::HoldCursor => "hold_cursor",
            Self::Replication => "replication",
            Self::ReplicationSlot => "replication_slot",
            Self::Backup => "backup",
            Self::UnnamedStatement => "unnamed_statement",
            Self::NotRestorable => "not_restorable",
            Self::Ambiguous => "ambiguous",
            Self::Unknown => "unknown",
            Self::UserLock => "user_lock",
            Self::TableLock => "table_lock",
            Self::GlobalLock => "global_lock",
            Self::Handler => "handler",
            Self::Xa => "xa",
            Self::Cursor => "cursor",
            Self::LongData => "long_data",
            Self::UnnamedState => "unnamed_state",
        }
    }

    /// Ends by itself when the running work ends, so that a short hold may wait for it.
    pub const fn is_passing(self) -> bool {
        matches!(
            self,
            Self::Transaction
                | Self::Statement
                | Self::Copy
                | Self::Xa
                | Self::Cursor
                | Self::LongData
        )
    }
}

/// One reason, as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// What kind.
    pub kind: BlockerKind,
    /// The lock, the table, the channel, the reason.
    pub detail: String,
    /// The statement that is taken to have caused it: masked and shortened.
    pub statement: String,
    /// Since when.
    pub since: Instant,
}
