//! The at-rest machine: an ordered queue of the replies that are owed for what was sent.
//!
//! Contract: every frame that goes to the server is told to [`Machine::on_client`] first, in order;
//! every frame from the server to [`Machine::on_server`] before it goes to the client. The machine
//! changes no byte of a frame that is sent on; what it has sent before one ([`Machine::put_absent`]) is
//! answered to nobody. [`Machine::at_rest`] is true only when nothing is owed in either direction
//! and no transaction, implicit ones included, can be open. What can't be decided is *ambiguous*, for
//! good. (PostgreSQL: protocol flow, <https://www.postgresql.org/docs/current/protocol-flow.html>;
//! the skipping and COPY rules are those of `PostgresMain` and `CopyGetData`.)

use super::absent::Absent;
use super::copy_error::ReadBefore;
use super::hints::{self, SCAN_LIMIT};
use super::made::Made;
pub(super) use super::owed::{Ours, Owed};
use super::recent::Recent;
use super::since::Since;
use super::told::Told;
use super::unnamed::{MAX_KEPT, Unnamed};
use super::walsender::Walsender;
use super::watched::Watched;
use crate::session::blocker::BlockerKind;
use crate::wire::pg::backend::ErrorFields;
use crate::wire::pg::frame::{Header, Reader};
use std::collections::VecDeque;
use std::time::Instant;

/// Bytes of a body that are looked at; the rest streams through.
pub const HEAD_MAX: usize = 16 * 1024;

/// The server ends the session (before 14: the COPY) when a COPY reads this; a COPY that has failed by
/// then leaves it to be run.
pub(super) const INSIDE_COPY: &str = "a message inside COPY that is no part of it";

/// Transaction status of the last ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `I`.
    Idle,
    /// `T`.
    Transaction,
    /// `E`.
    Failed,
}

/// What a client's frame means for the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFrame {
    /// Send it on.
    Forward,
    /// Terminate: the client leaves.
    Terminate,
}

/// What a server's frame means for the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFrame {
    /// Send it on.
    Forward,
    /// Not for the client.
    Drop,
    /// The statement that runs next has other rows than its client was told, and nobody can stop it.
    OtherRows,
    /// ParameterStatus: note it, send it on.
    ParameterStatus,
    /// NotificationResponse: translate its process number, send it on.
    Notification,
    /// ReadyForQuery: a request is complete.
    Ready,
    /// ErrorResponse that may end the connection: look at it.
    Error,
}

/// The machine of one session on its present server connection.
#[derive(Debug)]
pub struct Machine {
    pub(super) owed: VecDeque<Owed>,
    pub(super) status: Status,
    /// An extended message was sent since the last Sync or Query: an implicit transaction may be open.
    pub(super) batch_open: bool,
    /// The server discards everything up to a Sync that was not sent yet.
    pub(super) skipping: bool,
    /// The server reads COPY data.
    pub(super) copy_in: bool,
    /// The server sends COPY data.
    pub(super) copy_out: bool,
    /// COPY began in both directions: a stream of replication.
    pub(super) copy_both: bool,
    /// The running COPY IN was sent data.
    pub(super) copy_data: bool,
    /// Syncs that the running COPY IN swallows: sent before its first data, and behind that.
    pub(super) swallowed: (u32, u32),
    /// Syncs inside a COPY that failed: it has read them or, if it failed before, they are answered.
    /// At most so many ReadyForQuery may come; the first other reply tells that none does.
    pub(super) doubtful: u32,
    ambiguous: Option<&'static str>,
    /// Something was sent since the last clean probe.
    pub(super) dirty: bool,
    /// When the present work, or transaction, began.
    pub(super) busy_since: Option<Instant>,
    /// Kept to be sent again after a move.
    pub unnamed: Unnamed,
    /// What has passed since the last clean probe.
    pub since: Since,
    /// Rows that named statements were said to have.
    pub told: Told,
    /// What named statements were made under.
    pub made: Made,
    /// Named statements that the server connection lacks.
    pub absent: Absent,
    /// What blockers are blamed on.
    pub recent: Recent,
    /// What texts gave away.
    pub watched: Watched,
    /// There on a replication connection only: what its commands left behind.
    pub walsender: Option<Box<Walsender>>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            owed: VecDeque::new(),
            status: Status::Idle,
            batch_open: false,
            skipping: false,
            copy_in: false,
            copy_out: false,
            copy_both: false,
            copy_data: false,
            swallowed: (0, 0),
            doubtful: 0,
            ambiguous: None,
            dirty: false,
            busy_since: None,
            unnamed: Unnamed::default(),
            since: Since::default(),
            told: Told::default(),
            made: Made::default(),
            absent: Absent::default(),
            recent: Recent::default(),
            watched: Watched::default(),
            walsender: None,
        }
    }
}

impl Machine {
    /// Bytes of the body that [`Self::on_client`] wants to see at once.
    pub fn client_head(header: Header) -> usize {
        match header.tag {
            b'Q' | b'P' => header.body.min(SCAN_LIMIT.max(MAX_KEPT)),
            b'B' | b'C' | b'D' | b'E' => header.body.min(HEAD_MAX),
            b'F' => header.body.min(size_of::<u32>()),
            _ => 0,
        }
    }

    /// The server ignores such a frame wherever it is not part of a COPY or a batch.
    pub fn means_nothing(header: Header) -> bool {
        matches!(
            (header.tag, header.body),
            (b'd' | b'c' | b'f', _) | (b'H', 0)
        )
    }

    /// Bytes of the body that [`Self::on_server`] and the relay want to see at once.
    pub fn server_head(&self, header: Header) -> usize {
        match header.tag {
            b'Z' | b'S' | b'A' | b'E' => header.body.min(HEAD_MAX),
            b'C' if self.since.wants_tags()
                || self.watched.has_settings()
                || !self.absent.is_empty()
                || !self.made.is_simple() =>
            {
                header.body.min(HEAD_MAX)
            }
            b'1' | b't' | b'T' | b'n' if matches!(self.owed.front(), Some(Owed::Ours(_))) => {
                header.body.min(HEAD_MAX)
            }
            b'T' if self.told.wants() && self.owed.front() == Some(&Owed::DescribeStatement) => {
                header.body.min(HEAD_MAX)
            }
            _ => 0,
        }
    }

    /// A frame is about to be sent to the server; `head` is the beginning of its body.
    pub fn on_client(&mut self, header: Header, head: &[u8], now: Instant) -> ClientFrame {
        if header.tag == b'X' {
            return ClientFrame::Terminate;
        }
        if self.busy_since.is_none() || self.at_rest() {
            self.busy_since = Some(now);
        }
        self.dirty = true;
        if self.skipping {
            match header.tag {
                b'S' => {
                    self.skipping = false;
                    self.batch_open = false;
                    self.owed.push_back(Owed::Sync);
                }
                _ if Self::means_nothing(header) => {}
                _ if self.doubtful > 0 => {
                    self.ambiguous("a message behind a COPY that failed with a Sync inside it");
                }
                _ => {}
            }
            return ClientFrame::Forward;
        }
        if self.copy_in {
            self.in_copy(header);
            return ClientFrame::Forward;
        }
        match header.tag {
            b'Q' => {
                let text = Reader::new(head).cstr().unwrap_or(head);
                self.recent.note(now, text, false);
                let hints = self.watched.on_text(None, text);
                self.note_prepare(text);
                self.since.text(&hints, head.len() == header.body);
                if let Some(walsender) = &mut self.walsender {
                    walsender.on_command(text);
                }
                self.batch_open = false;
                self.owed.push_back(Owed::Query);
            }
            b'F' => {
                self.since.spoil();
                self.watched.on_function(head);
                self.batch_open = false;
                self.owed.push_back(Owed::FunctionCall);
            }
            b'S' => {
                self.batch_open = false;
                self.owed.push_back(Owed::Sync);
            }
            b'P' => self.parse_sent(header, head, now),
            b'B' => self.bind_sent(head, now),
            b'C' => self.close_sent(head),
            b'D' => self.describe_sent(head),
            b'E' => self.extended(Owed::Execute),
            // Outside COPY the server ignores these.
            b'c' | b'f' | b'd' if self.owed.is_empty() => {}
            b'c' | b'f' => self.owed.push_back(Owed::CopyEnd),
            b'd' if self.owed.back() == Some(&Owed::CopyData) => {}
            b'd' => self.owed.push_back(Owed::CopyData),
            // Flush owes nothing; with a body it is an error that no reply is told from.
            b'H' if header.body == 0 => {}
            _ => self.ambiguous("a message of unknown type was sent"),
        }
        ClientFrame::Forward
    }

    /// SQL PREPARE makes a statement as Parse does.
    pub(super) fn note_prepare(&mut self, text: &[u8]) {
        if !self.made.is_simple()
            && let Some(name) = hints::prepared(text)
        {
            self.made.makes(&name);
        }
    }

    /// Nothing was sent behind the statement whose completion has come, but the end of its batch.
    fn is_last_statement(&self) -> bool {
        matches!(
            (self.owed.len(), self.owed.get(1)),
            (1, _) | (2, Some(Owed::Sync))
        )
    }

    /// A frame came from the server; `head` is the beginning of its body.
    pub fn on_server(&mut self, header: Header, head: &[u8]) -> ServerFrame {
        match header.tag {
            b'N' => return ServerFrame::Forward,
            b'D' | b'd' if !self.owed.is_empty() => return ServerFrame::Forward,
            b'S' => return ServerFrame::ParameterStatus,
            b'A' => return ServerFrame::Notification,
            _ => self.drop_copy(),
        }
        if self.doubtful > 0 && !matches!(header.tag, b'Z' | b'E') {
            self.doubtful = 0;
        }
        if let Some(Owed::Ours(ours)) = self.owed.front()
            && let Some(answer) = self.on_ours(*ours, header, head)
        {
            return answer;
        }
        match header.tag {
            b'Z' => return self.ready(head),
            b'C' => {
                if self.since.wants_tags() {
                    self.since.completed(head);
                }
                if head == b"DISCARD ALL\0" && self.is_last_statement() {
                    self.watched.discarded();
                }
                self.absent.completed(head);
                self.made.completed(head);
                self.complete();
            }
            b'1' => match self.owed.pop_front() {
                Some(Owed::Parse) => self.made.parsed(),
                Some(Owed::ParseUnnamed) => self.unnamed.confirmed(),
                _ => self.ambiguous("ParseComplete without Parse"),
            },
            b'2' => self.settle(Owed::Bind),
            b'3' => match self.owed.pop_front() {
                Some(Owed::Close) => self.absent.closed(),
                Some(Owed::CloseUnnamed) => self.unnamed.dropped(),
                _ => self.ambiguous("CloseComplete without Close"),
            },
            b'T' | b'n' => match self.owed.front() {
                Some(Owed::DescribeStatement) => {
                    self.owed.pop_front();
                    self.told
                        .answered((header.tag, head), head.len() == header.body);
                }
                Some(Owed::DescribePortal) => {
                    self.owed.pop_front();
                }
                Some(Owed::Query) => {}
                _ => self.ambiguous("a row description that nobody asked for"),
            },
            b't' => {
                if self.owed.front() != Some(&Owed::DescribeStatement) {
                    self.ambiguous("a parameter description that nobody asked for");
                }
            }
            b'I' | b's' => match self.owed.front() {
                Some(Owed::Execute) => {
                    if header.tag == b's' {
                        self.since.disturbed();
                    }
                    self.owed.pop_front();
                }
                Some(Owed::Query) => {}
                _ => self.ambiguous("a completion that nobody asked for"),
            },
            b'E' => {
                self.error(head);
                return ServerFrame::Error;
            }
            b'G' | b'W' => self.copy_in_begins(header.tag == b'W'),
            b'H' => match self.owed.front() {
                Some(Owed::Query | Owed::Execute) => self.copy_out = true,
                _ => self.ambiguous("CopyOutResponse without a statement"),
            },
            b'c' if self.copy_out => self.copy_out = false,
            b'V' => {
                if self.owed.front() != Some(&Owed::FunctionCall) {
                    self.ambiguous("FunctionCallResponse without FunctionCall");
                }
            }
            _ => self.ambiguous("the server sent a message of unknown type"),
        }
        ServerFrame::Forward
    }

    /// Nothing is owed in either direction, nothing can be open. (The relay adds: no partial frame,
    /// nothing undelivered, no cancel in flight.)
    pub fn at_rest(&self) -> bool {
        self.status == Status::Idle && self.is_quiet() && self.ambiguous.is_none()
    }

    /// No reply is owed and no batch is open; the status may be any. The end of a request in lock-step.
    pub fn is_quiet(&self) -> bool {
        self.owed.is_empty()
            && !self.batch_open
            && !self.skipping
            && !self.copy_in
            && self.doubtful == 0
    }

    /// A fresh login: nothing was run, but nothing was asked either.
    pub fn begin(&mut self) {
        self.dirty = true;
    }

    /// In lock-step: the next frame belongs to a request that has begun, or none is under way.
    pub fn may_send_in_lock_step(&self) -> bool {
        self.ambiguous.is_some()
            || self.copy_in
            || self.batch_open
            || self.skipping
            || self.owed.is_empty()
    }

    /// A request that the server could still act upon is in flight: a cancel has something to hit.
    pub fn is_in_flight(&self) -> bool {
        !self.owed.is_empty() || self.copy_in || self.copy_out
    }

    /// The server works on what was sent, and would do so to the end if the client said good-bye now.
    pub fn is_running(&self) -> bool {
        !self.owed.is_empty() && !self.copy_in
    }

    /// COPY runs in both directions: a stream of replication.
    pub fn is_streaming(&self) -> bool {
        self.copy_both
    }

    /// Transaction status of the last ReadyForQuery.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Why nobody can say what is owed, if so: for good, or until the next reply tells.
    pub fn why_ambiguous(&self) -> Option<&'static str> {
        self.ambiguous.or((self.doubtful > 0)
            .then_some("COPY failed with a Sync inside it; the next request will tell"))
    }

    /// The same, if it is for good.
    pub(super) fn ambiguous_for_good(&self) -> Option<&'static str> {
        self.ambiguous
    }

    /// Something was sent since [`Self::probed_clean`].
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The server was asked and everything that it holds is in the snapshot.
    pub fn probed_clean(&mut self) {
        self.dirty = false;
        self.since.clean();
        self.recent.clear();
    }

    /// The server was asked and holds a blocker; the recent statements stay, to be blamed.
    pub fn probed_blocked(&mut self) {
        self.dirty = false;
        self.since.spoil();
    }

    /// When the present request, or the transaction around it, began.
    pub fn busy_since(&self) -> Option<Instant> {
        self.busy_since
    }

    /// What the wire alone knows to stand in the way, the most telling first.
    pub fn wire_blocker(&self) -> Option<BlockerKind> {
        if self.why_ambiguous().is_some() {
            Some(BlockerKind::Ambiguous)
        } else if self.status != Status::Idle {
            Some(BlockerKind::Transaction)
        } else if self.copy_in || self.copy_out {
            Some(BlockerKind::Copy)
        } else if !self.is_quiet() {
            Some(if self.owed.is_empty() {
                BlockerKind::Transaction
            } else {
                BlockerKind::Statement
            })
        } else if self.unnamed.is_too_large() {
            Some(BlockerKind::UnnamedStatement)
        } else {
            None
        }
    }

    pub(super) fn extended(&mut self, owed: Owed) {
        self.batch_open = true;
        self.owed.push_back(owed);
    }

    fn complete(&mut self) {
        self.copy_ends();
        self.swallowed = (0, 0);
        match self.owed.front() {
            Some(Owed::Execute) => {
                self.owed.pop_front();
                self.drop_copy();
            }
            Some(Owed::Query) => {}
            _ => self.ambiguous("CommandComplete without a statement"),
        }
    }

    fn ready(&mut self, head: &[u8]) -> ServerFrame {
        if self.doubtful > 0 && self.owed.front() != Some(&Owed::Sync) {
            // The COPY failed before it read this Sync, which has ended the skipping.
            self.doubtful -= 1;
            if self.skipping {
                self.skipping = false;
                self.batch_open = false;
            }
        } else {
            match self.owed.pop_front() {
                Some(Owed::Query) => self.unnamed.dropped(),
                Some(Owed::Sync | Owed::FunctionCall) => {}
                _ => self.ambiguous("ReadyForQuery that nobody asked for"),
            }
        }
        self.copy_ends();
        self.drop_copy();
        self.status = match head.first() {
            Some(b'I') => Status::Idle,
            Some(b'T') => Status::Transaction,
            Some(b'E') => Status::Failed,
            _ => {
                self.ambiguous("ReadyForQuery with an unknown status");
                self.status
            }
        };
        let (idle, quiet) = (self.status == Status::Idle, self.is_quiet());
        self.since.ready(idle, quiet);
        if quiet {
            self.absent.quiet();
            self.made.quiet();
        }
        if idle && quiet {
            self.busy_since = None;
            if self.owed.capacity() > 1024 {
                self.owed = VecDeque::new();
            }
        }
        ServerFrame::Ready
    }

    fn error(&mut self, head: &[u8]) {
        if self.since.wants_tags() && !ErrorFields::parse(head).is_fatal() {
            self.since.disturbed();
        }
        if self.doubtful > 0 && self.owed.front().is_some_and(|o| *o != Owed::Sync) {
            self.doubtful = 0;
        }
        let swallowed = std::mem::take(&mut self.swallowed);
        if swallowed != (0, 0) {
            self.doubtful = ReadBefore::error(head).unread(swallowed);
        }
        self.copy_ends();
        match self.owed.front() {
            Some(Owed::Query) if self.doubtful > 0 => {
                // Its ReadyForQuery comes first, with no other reply that could tell it apart.
                self.unnamed.dropped();
                self.owed.pop_front();
                self.owed.push_front(Owed::Sync);
            }
            // Their ReadyForQuery follows.
            Some(Owed::Query | Owed::FunctionCall | Owed::Sync) => {}
            Some(_) => self.skip_to_sync(),
            // The server ends, or it does what it does at no other time.
            None if ErrorFields::parse(head).is_fatal() => {}
            None => self.ambiguous("an error that no request is known for"),
        }
    }

    /// The server skips everything that was sent, up to the next Sync.
    fn skip_to_sync(&mut self) {
        let mut first = true;
        while let Some(&owed) = self.owed.front() {
            match owed {
                Owed::Sync => return,
                Owed::ParseUnnamed if first => self.unnamed.failed(),
                Owed::ParseUnnamed => self.unnamed.skipped(),
                Owed::DescribeStatement => self.told.unanswered(),
                Owed::Close | Owed::Ours(_) => self.absent.unanswered(owed),
                Owed::Parse => self.made.not_parsed(),
                _ => {}
            }
            if !first && !owed.is_copy() && self.doubtful > 0 {
                self.ambiguous("a message behind a COPY that failed with a Sync inside it");
            }
            first = false;
            self.owed.pop_front();
        }
        self.skipping = true;
    }

    fn settle(&mut self, expected: Owed) {
        if self.owed.pop_front() != Some(expected) {
            self.ambiguous("a reply out of order");
        }
    }

    pub(super) fn ambiguous(&mut self, why: &'static str) {
        self.ambiguous.get_or_insert(why);
    }
}

#[cfg(fuzzing)]
#[path = "shape.rs"]
mod shape;
