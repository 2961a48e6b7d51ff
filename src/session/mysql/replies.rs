//! What a server's packets come to: the machine's other side.

use super::hints::Hint;
use super::machine::{Kind, LastReply, Machine, Owed, Phase, ServerFrame, TextOp, TextOps, Then};
use super::statements::{MAX_PARAMS, Preparing, Statement, TextStatement};
use super::tracker::hides_something;
use crate::wire::mysql::command::{self, LAST_STATEMENT};
use crate::wire::mysql::packet::{HEADER_LEN, Header, Reader, put};
use crate::wire::mysql::reply::{
    EOF, ERR, EofPacket, ErrPacket, LOCAL_INFILE, OK, OkPacket, PrepareOk, Status,
};

/// Bytes of an OK packet that are looked at: of a longer one the flags are read, and it passes as it is.
const OK_MAX: usize = 60 * 1024;

/// Errors of a CREATE TABLE that was carried out as far as the server counts it.
const CARRIED_OUT: [u16; 6] = [1044, 1046, 1049, 1050, 1142, 1146];

impl Machine {
    /// Bytes of the payload that [`Self::on_server`] wants to see at once; `seen` is what of it is there. Asked again
    /// when more has come.
    pub fn server_head(&self, header: Header, seen: &[u8]) -> usize {
        if self.server_more || header.len == 0 {
            return 0;
        }
        let Some(front) = self.owed.front() else {
            return header.len.min(OK_MAX);
        };
        if matches!(self.phase, Phase::Definitions(..)) || front.kind == Kind::Statistics {
            return 0;
        }
        let Some(first) = seen.first() else { return 1 };
        let wanted = match (*first, self.phase) {
            (EOF, Phase::Rows) if self.grammar.ends_rows(header.len) => OK_MAX,
            (ERR, Phase::Rows) => 3,
            (_, Phase::Rows) => 1,
            (OK, Phase::Start) if front.kind == Kind::Prepare => PrepareOk::LEN,
            (OK | EOF, _) => OK_MAX,
            (ERR, _) => 3,
            // A number of columns.
            _ => 10,
        };
        wanted.min(header.len)
    }

    /// A packet came from the server; `head` is the beginning of its payload.
    pub fn on_server(&mut self, header: Header, head: &[u8]) -> ServerFrame {
        if self.server_more {
            self.server_more = header.is_continued();
            return if self.dropping {
                ServerFrame::Drop
            } else {
                ServerFrame::Forward
            };
        }
        let Some(&front) = self.owed.front() else {
            return ServerFrame::Unasked;
        };
        self.server_more = header.is_continued();
        let first = head.first().copied();
        if self.phase == Phase::Rows && !matches!(first, Some(EOF | ERR)) {
            return ServerFrame::Forward;
        }
        self.dropping = matches!(front.kind, Kind::Own);
        if let Phase::Definitions(left, then) = self.phase {
            self.definition(left, then);
            return ServerFrame::Forward;
        }
        if front.kind == Kind::Statistics {
            self.complete();
            return ServerFrame::Forward;
        }
        match (first, self.phase) {
            (Some(ERR), _) => self.failed(front, head),
            (Some(EOF), Phase::Rows) if !self.grammar.ends_rows(header.len) => ServerFrame::Forward,
            (Some(EOF), Phase::Rows) => self.rows_end(header, head, front),
            (Some(EOF), Phase::DefinitionsEnd(then)) => self.definitions_end(head, front, then),
            (Some(OK), Phase::File) => self.result_ok(header, head, front),
            (_, Phase::Start) => self.start(header, head, front, first),
            _ => {
                self.ambiguous("the server's reply took a turn that there is not");
                ServerFrame::Forward
            }
        }
    }

    fn start(
        &mut self,
        header: Header,
        head: &[u8],
        front: Owed,
        first: Option<u8>,
    ) -> ServerFrame {
        match (front.kind, first) {
            (Kind::Own, Some(OK)) => {
                if let Ok(ok) = OkPacket::parse(head, true) {
                    self.note_ok(&ok, true);
                    self.untracked &= front.kind != Kind::Own;
                } else {
                    self.ambiguous("the server's reply can't be read");
                }
                self.owed.pop_front();
                ServerFrame::Drop
            }
            (
                Kind::Query
                | Kind::Execute
                | Kind::Simple
                | Kind::Reset
                | Kind::SetOption
                | Kind::ResetConnection
                | Kind::ChangeUser,
                Some(OK),
            ) => self.result_ok(header, head, front),
            (Kind::Simple | Kind::SetOption, Some(EOF)) => self.eof_or_ok(header, head, front),
            (Kind::Query | Kind::Execute, Some(LOCAL_INFILE)) => {
                self.phase = Phase::File;
                self.file = true;
                if self.owed.len() > 1 || self.client_more {
                    self.ambiguous("commands were sent where the server reads a file");
                }
                ServerFrame::Forward
            }
            (Kind::Query | Kind::Execute, Some(_)) => {
                let mut reader = Reader::new(head);
                let Ok(columns) = reader.lenenc() else {
                    self.ambiguous("the server's reply can't be read");
                    return ServerFrame::Forward;
                };
                let described = !self.grammar.cache_metadata || reader.u8() != Ok(0);
                self.describe(if described { columns } else { 0 }, Then::Rows);
                ServerFrame::Forward
            }
            (Kind::Prepare, Some(OK)) => self.prepared(head),
            (Kind::Fetch | Kind::FieldList, Some(EOF)) if self.grammar.ends_rows(header.len) => {
                self.rows_end(header, head, front)
            }
            (Kind::Fetch | Kind::FieldList, _) => {
                self.phase = Phase::Rows;
                ServerFrame::Forward
            }
            // AuthSwitchRequest and AuthMoreData: the client answers, and what it says is told by its number.
            (Kind::ChangeUser, Some(EOF | 0x01)) => ServerFrame::Forward,
            (Kind::Stream, Some(EOF)) if header.len < 9 => self.rows_end(header, head, front),
            (Kind::Stream, _) => ServerFrame::Forward,
            _ => {
                self.ambiguous("the server's reply took a turn that there is not");
                ServerFrame::Forward
            }
        }
    }

    fn describe(&mut self, count: u64, then: Then) {
        if count > 0 {
            self.phase = Phase::Definitions(count, then);
        } else {
            self.definitions_over(then);
        }
    }

    fn definition(&mut self, left: u64, then: Then) {
        if left > 1 {
            self.phase = Phase::Definitions(left - 1, then);
        } else {
            self.definitions_over(then);
        }
    }

    fn definitions_over(&mut self, then: Then) {
        if self.grammar.deprecate_eof {
            self.behind_definitions(then);
        } else {
            self.phase = Phase::DefinitionsEnd(then);
        }
    }

    fn behind_definitions(&mut self, then: Then) {
        match then {
            Then::Rows => self.phase = Phase::Rows,
            Then::Columns(0) | Then::Nothing => self.complete(),
            Then::Columns(count) => self.describe(u64::from(count), Then::Nothing),
        }
    }

    /// An EOF behind descriptions. With a cursor no rows come until they are fetched.
    fn definitions_end(&mut self, head: &[u8], front: Owed, then: Then) -> ServerFrame {
        let cursor = front.kind == Kind::Execute
            && then == Then::Rows
            && EofPacket::parse(head).is_ok_and(|eof| eof.status.has(Status::CURSOR_EXISTS));
        if cursor {
            self.statements.set_cursor(self.meant(front.argument), true);
            self.complete();
        } else {
            self.behind_definitions(then);
        }
        ServerFrame::Forward
    }

    /// The statement that a reply is about.
    fn meant(&self, argument: u32) -> u32 {
        match argument {
            LAST_STATEMENT => self.statements.last.unwrap_or_default(),
            told => told,
        }
    }

    fn rows_end(&mut self, header: Header, head: &[u8], front: Owed) -> ServerFrame {
        let verdict = self.eof_or_ok(header, head, front);
        let told = self.meant(front.argument);
        match front.kind {
            Kind::Fetch if self.status.has(Status::LAST_ROW_SENT) => {
                self.statements.set_cursor(told, false);
            }
            _ => {}
        }
        verdict
    }

    /// What ends rows and some commands: EOF, or the OK packet in its place.
    fn eof_or_ok(&mut self, header: Header, head: &[u8], front: Owed) -> ServerFrame {
        if self.grammar.deprecate_eof && header.len > 5 {
            return self.result_ok(header, head, front);
        }
        match EofPacket::parse(head) {
            Ok(eof) => {
                self.status = eof.status;
                self.known = true;
                self.untold = true;
                if !front.shows {
                    self.last = LastReply {
                        warnings: eof.warnings > 0,
                        found_rows: front.hint.has(Hint::FOUND_ROWS),
                        ..LastReply::default()
                    };
                }
                self.result_over(front, eof.status);
            }
            Err(_) => self.ambiguous("the server's reply can't be read"),
        }
        ServerFrame::Forward
    }

    /// An OK packet for the client.
    fn result_ok(&mut self, header: Header, head: &[u8], front: Owed) -> ServerFrame {
        let whole = head.len() == header.len;
        let ok = match OkPacket::parse(head, true) {
            Ok(ok) => ok,
            Err(_) => {
                if let (false, Some(ok)) = (whole, flags_of(head)) {
                    // Too long to be read, and to be rewritten.
                    self.tracked.database = None;
                    ok
                } else {
                    self.ambiguous("the server's reply can't be read");
                    return ServerFrame::Forward;
                }
            }
        };
        self.note_ok(&ok, false);
        if !front.shows {
            self.last = LastReply {
                warnings: ok.warnings > 0,
                changed_rows: ok.affected_rows > 0,
                failed: false,
                found_rows: front.hint.has(Hint::FOUND_ROWS),
            };
        }
        let verdict = if whole {
            self.rewritten(header, &ok)
        } else {
            ServerFrame::Forward
        };
        self.result_over(front, ok.status);
        verdict
    }

    /// One of a command's results is complete.
    fn result_over(&mut self, front: Owed, status: Status) {
        self.phase = Phase::Start;
        let several = matches!(front.kind, Kind::Query | Kind::Execute);
        // Each run, and each reset, ends the cursor of the run before.
        if matches!(front.kind, Kind::Execute | Kind::Reset) {
            let open = front.kind == Kind::Execute && status.has(Status::CURSOR_EXISTS);
            self.statements.set_cursor(self.meant(front.argument), open);
        }
        if several && status.has(Status::MORE_RESULTS) {
            self.more_results = true;
        } else {
            self.succeeded(front);
            self.complete();
        }
    }

    /// Flags, and what changed.
    pub(super) fn note_ok(&mut self, ok: &OkPacket<'_>, own: bool) {
        self.status = ok.status;
        self.known = true;
        // What rows that ended with EOF did not tell no other reply makes up for.
        self.untold &= !own;
        if !ok.session.is_empty() {
            self.tracked.take(ok.session, own);
            self.untracked |= std::mem::take(&mut self.tracked.overruled);
        }
        if !ok.status.in_transaction() {
            self.tracked.forget_transaction();
        }
    }

    /// The client did not ask for all that the server tells.
    fn rewritten(&mut self, header: Header, ok: &OkPacket<'_>) -> ServerFrame {
        if !ok.status.has(Status::STATE_CHANGED) {
            return ServerFrame::Forward;
        }
        self.left.clear();
        if self.grammar.client_tracks {
            if !hides_something(ok.session) {
                return ServerFrame::Forward;
            }
            self.tracked.put_filtered(&mut self.left, ok.session);
        }
        let told = OkPacket {
            session: &self.left,
            ..*ok
        };
        self.replacement.clear();
        put(&mut self.replacement, header.seq, |out| told.put(out));
        ServerFrame::Replace {
            instead_of: header.frame_len(),
        }
    }

    /// The command was carried out.
    fn succeeded(&mut self, front: Owed) {
        match front.kind {
            Kind::ResetConnection => {
                let database = self.tracked.database.clone();
                self.wipe(database);
            }
            Kind::ChangeUser => self.wipe(None),
            Kind::SetOption => match front.argument {
                0 => self.multi_statements = true,
                1 => self.multi_statements = false,
                _ => {}
            },
            _ => {}
        }
        self.text_over(front, None);
    }

    /// What a text was to do counts now.
    fn text_over(&mut self, front: Owed, error: Option<u16>) {
        let worked = error.is_none();
        // The server counts what it began to carry out; of others it is not sure that it did.
        if error.is_none_or(|code| CARRIED_OUT.contains(&code)) {
            self.creates += u64::from(front.creates);
        }
        if front.hint.has(Hint::MEANING) {
            self.tracked.era = self.tracked.era.wrapping_add(1);
            self.ansi_quotes = None;
        }
        if front.hint.has(Hint::TRACKING) {
            self.untracked = true;
        }
        self.password_changed |= worked && front.hint.has(Hint::PASSWORD);
        if !front.has_ops {
            return;
        }
        let Some(TextOps { ops, wanted }) = self.ops.pop_front() else {
            return;
        };
        if let (true, Some(wanted)) = (worked, wanted) {
            self.tracked.wanted = wanted;
        }
        let single = ops.len() == 1;
        for op in ops {
            match op {
                TextOp::Make(name, statement) => {
                    self.texts.sent += u64::from(worked || (single && statement.is_some()));
                    if worked {
                        let setting = self.setting();
                        self.texts.put(TextStatement {
                            name,
                            statement,
                            setting,
                        });
                    } else if self.texts.contains(&name) {
                        // What had the name may be gone, or not.
                        self.texts.doubt(&name);
                    }
                }
                TextOp::Drop(name) if worked => self.texts.drop(&name),
                TextOp::Drop(name) => self.texts.doubt(&name),
            }
        }
    }

    fn failed(&mut self, front: Owed, head: &[u8]) -> ServerFrame {
        if matches!(front.kind, Kind::Own) {
            self.owed.pop_front();
            self.phase = Phase::Start;
            self.ambiguous("the server refused a command of Slackwater's own");
            return ServerFrame::Drop;
        }
        // An error says nothing of the transaction.
        self.known = false;
        self.last = LastReply {
            failed: true,
            ..LastReply::default()
        };
        match front.kind {
            Kind::Prepare if self.phase == Phase::Start => {
                self.preparing.pop_front();
                self.statements.last = None;
            }
            Kind::ChangeUser => self.wipe(None),
            Kind::Execute => self
                .statements
                .set_cursor(self.meant(front.argument), false),
            _ => {}
        }
        self.text_over(front, ErrPacket::parse(head).ok().map(|e| e.code));
        self.complete();
        ServerFrame::Forward
    }

    fn prepared(&mut self, head: &[u8]) -> ServerFrame {
        let (Ok(answer), Some(preparing)) = (PrepareOk::parse(head), self.preparing.pop_front())
        else {
            self.ambiguous("the server's reply can't be read");
            return ServerFrame::Forward;
        };
        let Preparing {
            text,
            creates,
            types: early,
        } = preparing;
        // Everything before it is answered, so this is what it was prepared under.
        let setting = self.setting();
        let types = early.and_then(|head| early_types(&head, answer.params));
        let told = self.statements.add(Statement {
            text,
            setting,
            params: answer.params,
            bound: types.is_some(),
            types_unknown: answer.params > MAX_PARAMS,
            types,
            real: Some(answer.id),
            creates,
            cursor: false,
            long_data: false,
        });
        // What was left before it is still there: the statement may be one that asks for it.
        if answer.params > 0 {
            self.describe(u64::from(answer.params), Then::Columns(answer.columns));
        } else {
            self.behind_definitions(Then::Columns(answer.columns));
        }
        if told == answer.id {
            return ServerFrame::Forward;
        }
        ServerFrame::Patch {
            at: HEADER_LEN + 1,
            bytes: told.to_le_bytes(),
        }
    }

    pub(super) fn complete(&mut self) {
        self.phase = Phase::Start;
        self.owed.pop_front();
        self.requests += 1;
        self.transactions += u64::from(self.known && !self.status.in_transaction());
    }
}

/// The types in an EXECUTE that was sent before its statement was known.
fn early_types(head: &[u8], params: u16) -> Option<Box<[u8]>> {
    if params == 0 {
        return None;
    }
    let types = match head.first() {
        Some(&command::STMT_BULK_EXECUTE) => command::bulk_types(head, params),
        _ => command::execute_types(head, params),
    };
    Some(types.ok()?.types?.into())
}

/// The flags of an OK packet whose end is not there.
fn flags_of(head: &[u8]) -> Option<OkPacket<'_>> {
    let mut reader = Reader::new(head);
    Some(OkPacket {
        first: reader.u8().ok()?,
        affected_rows: reader.lenenc().ok()?,
        last_insert_id: reader.lenenc().ok()?,
        status: Status(reader.u16().ok()?),
        warnings: reader.u16().ok()?,
        info: &[],
        session: &[],
    })
}
