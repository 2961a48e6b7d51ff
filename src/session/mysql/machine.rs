//! The at-rest machine: an ordered queue of the commands whose replies are owed.
//!
//! Contract: every packet that goes to the server is told to [`Machine::on_client`] first, in order;
//! every packet from the server to [`Machine::on_server`] before it goes to the client. Both say what is sent
//! in its place, if not itself: numbers of statements are the session's own, and what servers tell of transactions
//! is for Slackwater, unless the client asked for it. No packet is added or left out towards the
//! client, so sequence numbers stay what they are.
//!
//! [`Machine::at_rest`] is true only when nothing is owed in either direction, no transaction can be open, and
//! the server has said so: an ERR packet says nothing of transactions, and some commands have no reply. Then
//! [`Machine::needs_status`] asks for a command of Slackwater's own ([`Machine::put_ask`]), whose reply stays
//! here. What can't be decided is *ambiguous*, for good.

use super::grammar::Grammar;
pub use super::held::Held;
use super::hints::{Hint, PrepareOp};
use super::statements::{Preparing, Setting, Statements, TextStatements};
use super::tracker::{TRACKING_SQL, Tracked, Wanted};
use crate::session::recent::Recent;
use crate::wire::mysql::command;
use crate::wire::mysql::packet::Header;
use crate::wire::mysql::reply::{OkPacket, Status};
use bytes::BytesMut;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// A command whose reply is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A question of Slackwater's own: it switches tracking on, once more, so that all is told anew.
    Own,
    /// OK, EOF or ERR.
    Simple,
    /// The same, and it closes a statement's cursor.
    Reset,
    SetOption,
    /// Results in text form.
    Query,
    /// Results in binary form.
    Execute,
    Prepare,
    Fetch,
    FieldList,
    /// One packet of any content.
    Statistics,
    ResetConnection,
    ChangeUser,
    /// A stream of replication.
    Stream,
}

/// What is to be remembered until a reply is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) kind: Kind,
    /// The statement's number towards the client; of SET_OPTION its argument.
    pub(super) argument: u32,
    /// Its text has operations in [`Machine::ops`].
    pub(super) has_ops: bool,
    /// What its text may have done that counts from the reply on.
    pub(super) hint: Hint,
    /// Tables that it creates, temporary ones too.
    pub(super) creates: u32,
    /// It shows what the command before it left, and leaves that as it was.
    pub(super) shows: bool,
}

/// Where in the front command's reply the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Start,
    /// So many descriptions of columns or parameters are to come.
    Definitions(u64, Then),
    DefinitionsEnd(Then),
    Rows,
    /// Behind the request for a local file: its result.
    File,
}

/// What comes behind descriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Rows,
    /// Of a statement that is prepared: those of its columns.
    Columns(u16),
    Nothing,
}

/// What a client's text does to prepared statements; applied when it is known to have worked.
#[derive(Debug)]
pub(super) enum TextOp {
    Make(Box<[u8]>, Option<Arc<[u8]>>),
    Drop(Box<[u8]>),
}

/// What a text will come to when it is answered.
#[derive(Debug)]
pub(super) struct TextOps {
    pub(super) ops: Vec<TextOp>,
    pub(super) wanted: Option<Wanted>,
}

/// What a client's packet means for the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFrame {
    /// Send it on.
    Forward,
    /// Send it on with `len` bytes of `bytes` in place of those at `at` (the header counts).
    Patch {
        /// Where.
        at: usize,
        /// How many.
        len: usize,
        /// What.
        bytes: [u8; 4],
    },
    /// Send [`Machine::replacement`] in place of its first `instead_of` bytes (the header counts), then the rest.
    Replace {
        /// How many bytes.
        instead_of: usize,
    },
    /// A KILL: find out about its target, then ask [`Machine::kill`].
    Kill(super::kill::Kill),
    /// COM_CHANGE_USER: not noted yet. Its answer depends on a greeting that was Slackwater's, so it is
    /// not simply sent on: see [`Machine::changed_user`] and [`Machine::relay_change_user`].
    ChangeUser,
    /// COM_QUIT: the client leaves.
    Terminate,
}

/// What a server's packet means for the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFrame {
    /// Send it on.
    Forward,
    /// Send it on with these bytes in place of those at `at` (the header counts).
    Patch {
        /// Where.
        at: usize,
        /// What.
        bytes: [u8; 4],
    },
    /// Send [`Machine::replacement`] in place of its first `instead_of` bytes (the header counts), then the rest.
    Replace {
        /// How many bytes.
        instead_of: usize,
    },
    /// The answer to a command of Slackwater's own: not for the client.
    Drop,
    /// Nobody asked: the server ends the connection, and says why in an ERR packet.
    Unasked,
}

/// The machine of one session.
#[derive(Debug)]
pub struct Machine {
    pub(super) grammar: Grammar,
    pub(super) owed: VecDeque<Owed>,
    pub(super) phase: Phase,
    pub(super) status: Status,
    /// `status` is what the server would say now.
    pub(super) known: bool,
    /// A command without a reply was sent behind the last one that has one.
    pub(super) unfenced: bool,
    /// Something ended with EOF, which tells no changes.
    pub(super) untold: bool,
    /// Tracking has to be switched on again.
    pub(super) untracked: bool,
    /// The next packet from this side goes on with the last one.
    pub(super) client_more: bool,
    pub(super) server_more: bool,
    /// The packet that goes on is one of Slackwater's own.
    pub(super) dropping: bool,
    /// The client sends a local file.
    pub(super) file: bool,
    pub(super) ambiguous: Option<&'static str>,
    pub(super) dirty: bool,
    pub(super) busy_since: Option<Instant>,
    pub(super) preparing: VecDeque<Preparing>,
    pub(super) ops: VecDeque<TextOps>,
    pub(super) replacement: BytesMut,
    /// What of a block of changes is left for the client.
    pub(super) left: BytesMut,
    /// sql_mode has ANSI_QUOTES, as far as a probe told (MySQL's flags don't).
    pub(super) ansi_quotes: Option<bool>,
    /// The client's choice of multi-statements.
    pub(super) multi_statements: bool,
    /// Tables that the client's own texts created on this server connection.
    pub(super) creates: u64,
    pub(super) last: LastReply,
    pub(super) password_changed: bool,
    /// What texts may have done, and no probe has shown since.
    pub(super) sticky: Hint,
    /// A text could not be read to its end: what it prepared is unknown.
    pub(super) unknown_prepare: bool,
    /// Statements of the binary protocol.
    pub statements: Statements,
    /// Statements in text form.
    pub texts: TextStatements,
    /// What OK packets told.
    pub tracked: Tracked,
    /// What blockers are blamed on.
    pub recent: Recent,
    /// A result was complete, and another one of the same command follows.
    pub more_results: bool,
    /// Commands of the client that were answered.
    pub requests: u64,
    /// Those of them that left no transaction open.
    pub transactions: u64,
}

/// What the client could still ask of its last command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LastReply {
    pub(super) warnings: bool,
    pub(super) changed_rows: bool,
    pub(super) failed: bool,
    pub(super) found_rows: bool,
}

impl Machine {
    /// The machine of a session that has logged in, its tracking switched on; `status` is that of the server's
    /// last OK.
    pub fn new(grammar: Grammar, database: &[u8], status: Status) -> Self {
        Self {
            grammar,
            owed: VecDeque::new(),
            phase: Phase::Start,
            status,
            known: true,
            unfenced: false,
            untold: false,
            untracked: false,
            client_more: false,
            server_more: false,
            dropping: false,
            file: false,
            ambiguous: None,
            dirty: false,
            busy_since: None,
            preparing: VecDeque::new(),
            ops: VecDeque::new(),
            replacement: BytesMut::new(),
            left: BytesMut::new(),
            ansi_quotes: None,
            multi_statements: grammar.multi_statements,
            creates: 0,
            last: LastReply::default(),
            password_changed: false,
            sticky: Hint::default(),
            unknown_prepare: false,
            statements: Statements::default(),
            texts: TextStatements::default(),
            tracked: Tracked {
                database: Some(database.into()),
                ..Tracked::default()
            },
            recent: Recent::default(),
            more_results: false,
            requests: 0,
            transactions: 0,
        }
    }

    /// What the session's replies are built by.
    pub fn grammar(&self) -> Grammar {
        self.grammar
    }

    /// What [`ClientFrame::Replace`] and [`ServerFrame::Replace`] speak of.
    pub fn replacement(&self) -> &[u8] {
        &self.replacement
    }

    /// Nothing is owed in either direction, nothing can be open, and the server has said so. (The relay
    /// adds: no partial packet, nothing undelivered, no KILL in flight.)
    pub fn at_rest(&self) -> bool {
        self.is_quiet() && self.ambiguous.is_none() && !self.is_unsure() && !self.is_open()
    }

    /// No reply is owed and no packet goes on. The end of a request in lock-step.
    pub fn is_quiet(&self) -> bool {
        self.owed.is_empty() && !self.client_more && !self.server_more && !self.file
    }

    /// The server's status is not known for sure.
    pub(super) fn is_unsure(&self) -> bool {
        !self.known
            || self.unfenced
            || self.untracked
            || (self.untold
                && (self.tracked.tables_locked || !self.tracked.characteristics.is_empty()))
    }

    /// A transaction, a cursor or the like is open, as far as it is known.
    fn is_open(&self) -> bool {
        (self.known && self.status.in_transaction())
            || self.tracked.tables_locked
            || self.statements.has_cursor()
            || self.statements.has_long_data()
    }

    /// Nothing is owed, but whether the session is at rest only the server can tell: send [`Self::put_ask`], or a
    /// probe, and tell [`Self::answered`] its first answer.
    pub fn needs_status(&self) -> bool {
        self.is_quiet()
            && self.ambiguous.is_none()
            && self.is_unsure()
            && (self.untracked || !self.is_open() || self.untold)
    }

    /// Tracking was reset by a command of the client's: send [`Self::put_ask`] at once.
    pub fn needs_tracking(&self) -> bool {
        self.untracked && self.owed.is_empty() && !self.client_more && !self.file
    }

    /// Appends a command of Slackwater's own, whose answer is [`ServerFrame::Drop`]ped. Only when
    /// [`Self::needs_status`] or [`Self::needs_tracking`].
    pub fn put_ask(&mut self, out: &mut BytesMut) {
        self.untracked = false;
        command::put_query(out, TRACKING_SQL);
        self.owe(Kind::Own, 0);
    }

    /// The answer to a `DO 0` that somebody else sent at a moment when nothing was owed: an OK packet's payload.
    pub fn answered(&mut self, payload: &[u8]) {
        match OkPacket::parse(payload, true) {
            Ok(ok) => {
                self.unfenced = false;
                self.note_ok(&ok, true);
            }
            Err(_) => self.known = false,
        }
    }

    /// A fresh server connection carries the session: a login's own status, nothing sent yet.
    pub fn begin(&mut self, status: Status) {
        self.status = status;
        self.known = true;
        self.unfenced = false;
        self.untold = false;
        self.untracked = false;
        self.dirty = true;
        self.creates = 0;
        self.last = LastReply::default();
        self.tracked.tables_locked = false;
    }

    /// A restore put the session onto another server connection: its status, the numbers of statements there by
    /// those that the client knows, and how many PREPAREs in text form the restore sent.
    pub fn moved(&mut self, status: Status, ids: &BTreeMap<u32, u32>, text_prepares: u64) {
        self.begin(status);
        self.statements.moved(ids);
        self.texts.sent = text_prepares;
    }

    /// In lock-step: the next packet belongs to a request that has begun, or none is under way.
    pub fn may_send_in_lock_step(&self) -> bool {
        self.ambiguous.is_some()
            || self.client_more
            || self.file
            || self.is_streaming()
            || self.in_dialogue()
            || self.owed.is_empty()
    }

    fn in_dialogue(&self) -> bool {
        self.owed
            .front()
            .is_some_and(|o| o.kind == Kind::ChangeUser)
    }

    /// A request that the server could still act upon is in flight: a KILL QUERY has something to hit.
    pub fn is_in_flight(&self) -> bool {
        !self.owed.is_empty() || self.client_more || self.file
    }

    /// The server works on what was sent, and would do so to the end if the client said good-bye now.
    pub fn is_running(&self) -> bool {
        !self.owed.is_empty() && !self.client_more && !self.file
    }

    /// A stream of replication runs.
    pub fn is_streaming(&self) -> bool {
        self.owed.front().is_some_and(|o| o.kind == Kind::Stream)
    }

    /// The flags that the server gave last.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Why nobody can say what is owed, if so.
    pub fn why_ambiguous(&self) -> Option<&'static str> {
        self.ambiguous
    }

    pub(super) fn ambiguous(&mut self, why: &'static str) {
        self.ambiguous.get_or_insert(why);
    }

    /// Something was sent since [`Self::probed_clean`].
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The server was asked and everything that it holds is in the snapshot.
    pub fn probed_clean(&mut self) {
        self.dirty = false;
        self.recent.clear();
    }

    /// The server was asked and holds a blocker; the recent statements stay, to be blamed.
    pub fn probed_blocked(&mut self) {
        self.dirty = false;
    }

    /// A probe asked for all of these, so that hints of them count no more.
    pub fn proven(&mut self, hints: Hint) {
        self.sticky = Hint(self.sticky.0 & !hints.0);
    }

    /// A probe told whether double quotes are those of identifiers.
    pub fn set_ansi_quotes(&mut self, ansi_quotes: bool) {
        self.ansi_quotes = Some(ansi_quotes);
    }

    /// When the present request, or the transaction around it, began.
    pub fn busy_since(&self) -> Option<Instant> {
        self.busy_since
    }

    /// The last reply had warnings, an error, changed rows or counted rows, which the client may still ask for and
    /// a move loses: wait a moment.
    pub fn diagnostics_pending(&self) -> bool {
        self.last != LastReply::default()
    }

    /// A password was changed, perhaps the session's own: what is kept to log in again may be stale.
    pub fn is_secret_stale(&self) -> bool {
        self.password_changed
    }

    /// What a statement that is prepared now is prepared under.
    pub(super) fn setting(&self) -> Setting {
        Setting {
            database: self.tracked.database.clone(),
            era: self.tracked.era,
        }
    }

    pub(super) fn owe(&mut self, kind: Kind, argument: u32) {
        self.unfenced = false;
        self.owed.push_back(Owed {
            kind,
            argument,
            has_ops: false,
            hint: Hint::default(),
            creates: 0,
            shows: false,
        });
    }

    pub(super) fn begin_packet(&mut self, header: Header) {
        self.client_more = header.is_continued();
    }

    /// The session is as after a login; the database may be another.
    pub(super) fn wipe(&mut self, database: Option<Arc<[u8]>>) {
        self.statements.clear();
        self.texts.clear();
        self.tracked.reset(database);
        self.sticky = Hint::default();
        self.unknown_prepare = false;
        self.ansi_quotes = None;
        self.creates = 0;
        self.untold = false;
        self.untracked = true;
        self.last = LastReply::default();
        self.dirty = true;
    }

    /// COM_CHANGE_USER was carried out by somebody else, who has logged the session in: it is as after a login to
    /// this database, tracking included.
    pub fn changed_user(&mut self, database: &[u8], status: Status) {
        self.wipe(Some(database.into()));
        self.begin(status);
        self.multi_statements = self.grammar.multi_statements;
        self.password_changed = false;
    }

    /// COM_CHANGE_USER is sent on after all, and so are the packets of its dialogue.
    pub fn relay_change_user(&mut self, header: Header, now: Instant) {
        self.note_busy(now);
        self.owe(Kind::ChangeUser, 0);
        self.begin_packet(header);
    }

    pub(super) fn note_busy(&mut self, now: Instant) {
        if self.busy_since.is_none() || self.at_rest() {
            self.busy_since = Some(now);
        }
        self.dirty = true;
    }
}

/// Makes what a text does to prepared statements independent of the text.
pub(super) fn keep_ops(ops: Vec<PrepareOp>, text: &[u8]) -> Vec<TextOp> {
    ops.into_iter()
        .map(|op| match op {
            PrepareOp::Make { name, statement } => {
                TextOp::Make(name, statement.and_then(|r| text.get(r)).map(Arc::from))
            }
            PrepareOp::Drop { name } => TextOp::Drop(name),
        })
        .collect()
}
