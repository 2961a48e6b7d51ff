//! What a client's packets come to: the machine's one side.

use super::grammar::Family;
use super::hints::{Hint, SCAN_LIMIT, scan};
use super::kill::Kill;
use super::machine::{ClientFrame, Kind, Machine, TextOps, keep_ops};
use super::statements::{MAX_KEPT, MAX_PARAMS, Preparing};
use super::tracker::{TRACKING_SQL, TRACKING_VARIABLE, Wanted};
use crate::wire::mysql::command::{self, LAST_STATEMENT, Types};
use crate::wire::mysql::packet::{HEADER_LEN, Header, MAX_PAYLOAD};
use bytes::BufMut;
use std::time::Instant;

/// What a text says that asks for what the statement before it left.
const DIAGNOSTICS: [&[u8]; 7] = [
    b"warnings",
    b"errors",
    b"row_count",
    b"found_rows",
    b"diagnostics",
    b"warning_count",
    b"error_count",
];

/// One of these words is in the text, wherever: it is sent where it means the most.
fn names_diagnostics(text: &[u8]) -> bool {
    text.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_'))
        .any(|word| DIAGNOSTICS.iter().any(|d| d.eq_ignore_ascii_case(word)))
}

/// Bytes of a text that are read.
const TEXT_MAX: usize = 1 + SCAN_LIMIT + 1;

impl Machine {
    /// Bytes of the payload that [`Self::on_client`] wants to see at once; `seen` is what of it is there. Asked again
    /// when more has come.
    pub fn client_head(&self, header: Header, seen: &[u8]) -> usize {
        if self.client_more || self.file || header.len == 0 || self.is_dialogue(header) {
            return 0;
        }
        let Some(first) = seen.first() else { return 1 };
        let wanted = match *first {
            command::QUERY => TEXT_MAX,
            command::STMT_PREPARE if header.len <= MAX_KEPT => header.len,
            command::STMT_PREPARE => TEXT_MAX,
            command::STMT_EXECUTE => self.types_head(seen, command::execute_head),
            command::STMT_BULK_EXECUTE => self.types_head(seen, command::bulk_head),
            command::INIT_DB
            | command::PROCESS_KILL
            | command::STMT_SEND_LONG_DATA
            | command::STMT_CLOSE
            | command::STMT_RESET
            | command::STMT_FETCH
            | command::SET_OPTION => 5,
            _ => 1,
        };
        wanted.min(header.len)
    }

    /// The request names what the last reply left: warnings, errors, counts of rows. Not seen: a stored program or a
    /// statement prepared in text form that asks.
    pub fn looks_back(&self, head: &[u8]) -> bool {
        if !self.diagnostics_pending() {
            return false;
        }
        match head.first() {
            Some(&(command::QUERY | command::STMT_PREPARE)) => {
                names_diagnostics(head.get(1..).unwrap_or_default())
            }
            Some(&command::STMT_EXECUTE) => {
                let id = command::statement_id(head).ok();
                id.and_then(|id| self.statements.get(self.told(id)?))
                    .and_then(|statement| statement.text.as_deref())
                    .is_some_and(names_diagnostics)
            }
            _ => false,
        }
    }

    fn types_head(&self, seen: &[u8], length: impl Fn(u16) -> usize) -> usize {
        let Ok(id) = command::statement_id(seen) else {
            return 5;
        };
        match self.told(id).and_then(|told| self.statements.get(told)) {
            Some(statement) if (1..=MAX_PARAMS).contains(&statement.params) => {
                length(statement.params)
            }
            Some(_) => 5,
            // It is being prepared, so how many parameters it has nobody knows yet.
            None if id == LAST_STATEMENT => length(MAX_PARAMS),
            None => 5,
        }
    }

    fn is_dialogue(&self, header: Header) -> bool {
        header.seq != 0
            && self
                .owed
                .front()
                .is_some_and(|o| o.kind == Kind::ChangeUser)
    }

    /// The statement that a number stands for, by the session's own numbers.
    fn told(&self, id: u32) -> Option<u32> {
        match id {
            LAST_STATEMENT if self.preparing.is_empty() => self.statements.last,
            LAST_STATEMENT => None,
            _ => Some(id),
        }
    }

    /// The same for a reply: then the last statement is the one that was meant.
    fn owed_id(&self, id: u32) -> u32 {
        match self.told(id) {
            Some(told) => told,
            None if id == LAST_STATEMENT && !self.preparing.is_empty() => LAST_STATEMENT,
            None => 0,
        }
    }

    /// A packet is about to be sent to the server; `head` is the beginning of its payload.
    pub fn on_client(&mut self, header: Header, head: &[u8], now: Instant) -> ClientFrame {
        if self.client_more {
            self.begin_packet(header);
            return ClientFrame::Forward;
        }
        if self.file {
            self.begin_packet(header);
            self.file = header.len > 0;
            return ClientFrame::Forward;
        }
        if self.is_dialogue(header) {
            self.begin_packet(header);
            return ClientFrame::Forward;
        }
        let first = head.first().copied().unwrap_or(command::UNKNOWN);
        match first {
            command::QUIT => return ClientFrame::Terminate,
            command::CHANGE_USER => return ClientFrame::ChangeUser,
            command::PROCESS_KILL => {
                let target = command::statement_id(head).unwrap_or_default();
                return ClientFrame::Kill(Kill {
                    target: u64::from(target),
                    query_only: false,
                });
            }
            _ => {}
        }
        if first == command::QUERY {
            return self.query(header, head, now);
        }
        self.note_busy(now);
        self.begin_packet(header);
        self.command(header, head, first, now)
    }

    /// A command that is no text and is sent on.
    fn command(&mut self, header: Header, head: &[u8], first: u8, now: Instant) -> ClientFrame {
        let id = command::statement_id(head).unwrap_or_default();
        match first {
            command::STMT_PREPARE => self.prepare(header, head, now),
            command::STMT_EXECUTE => return self.execute(header, head, now, false),
            command::STMT_BULK_EXECUTE if self.grammar.family == Family::MariaDb => {
                return self.execute(header, head, now, true);
            }
            command::STMT_FETCH => {
                self.owe(Kind::Fetch, self.owed_id(id));
                return self.patch_id(id);
            }
            command::STMT_RESET => {
                let told = self.told(id).unwrap_or_default();
                self.statements.set_long_data(told, false);
                self.owe(Kind::Reset, self.owed_id(id));
                return self.patch_id(id);
            }
            command::STMT_SEND_LONG_DATA => {
                let verdict = self.patch_id(id);
                match self.told(id) {
                    Some(told) => self.statements.set_long_data(told, true),
                    None => self.ambiguous("a parameter was sent ahead of its statement's number"),
                }
                self.unfenced = true;
                return verdict;
            }
            command::STMT_CLOSE => {
                let verdict = self.patch_id(id);
                self.statements.close(self.told(id).unwrap_or_default());
                self.unfenced = true;
                return verdict;
            }
            command::SET_OPTION => {
                let option = head.get(1..3).and_then(|b| b.try_into().ok());
                let option = option.map_or(u16::MAX, u16::from_le_bytes);
                self.owe(Kind::SetOption, u32::from(option));
            }
            command::RESET_CONNECTION => {
                self.owe(Kind::ResetConnection, 0);
                return self.track_behind(header);
            }
            command::PROCESS_INFO | command::CREATE_DB | command::DROP_DB => {
                self.owe(Kind::Query, 0);
            }
            command::FIELD_LIST => self.owe(Kind::FieldList, 0),
            command::STATISTICS => self.owe(Kind::Statistics, 0),
            command::BINLOG_DUMP | command::BINLOG_DUMP_GTID => self.owe(Kind::Stream, 0),
            command::INIT_DB
            | command::REFRESH
            | command::SHUTDOWN
            | command::DEBUG
            | command::PING
            | command::REGISTER_SLAVE => self.owe(Kind::Simple, 0),
            // What a server would do with others nobody knows. What it answers to none of its commands it does.
            _ => {
                self.owe(Kind::Simple, 0);
                if header.len > 0 {
                    return ClientFrame::Patch {
                        at: HEADER_LEN,
                        len: 1,
                        bytes: [command::UNKNOWN, 0, 0, 0],
                    };
                }
            }
        }
        ClientFrame::Forward
    }

    fn query(&mut self, header: Header, head: &[u8], now: Instant) -> ClientFrame {
        let text = head.get(1..).unwrap_or_default();
        let modes = self.grammar.modes(self.status, self.ansi_quotes);
        let hints = scan(text, modes);
        let whole = header.len == head.len();
        if let Some(kill) = hints.kill.filter(|_| whole) {
            return ClientFrame::Kill(Kill {
                target: kill.target,
                query_only: kill.query_only,
            });
        }
        self.note_busy(now);
        self.begin_packet(header);
        self.recent.note(now, text, false);
        self.note_hints(hints.hint);
        let wanted = hints
            .hint
            .has(Hint::TRACKING)
            .then(|| wanted(text))
            .flatten();
        let ops = keep_ops(hints.ops, text);
        let shows = text
            .get(..4)
            .is_some_and(|w| w.eq_ignore_ascii_case(b"show"))
            && self.diagnostics_pending()
            && names_diagnostics(text);
        self.owe(Kind::Query, 0);
        if let Some(owed) = self.owed.back_mut() {
            owed.shows = shows;
            owed.hint = hints.hint;
            owed.creates = hints.creates;
            owed.has_ops = !ops.is_empty() || wanted.is_some();
            if owed.has_ops {
                self.ops.push_back(TextOps { ops, wanted });
            }
        }
        ClientFrame::Forward
    }

    fn note_hints(&mut self, hint: Hint) {
        self.sticky.add(hint.and(Hint::STICKY));
        self.unknown_prepare |= hint.has(Hint::UNKNOWN_PREPARE);
    }

    fn prepare(&mut self, header: Header, head: &[u8], now: Instant) {
        let text = head.get(1..).unwrap_or_default();
        self.recent.note(now, text, false);
        let modes = self.grammar.modes(self.status, self.ansi_quotes);
        let hints = scan(text, modes);
        self.note_hints(hints.hint);
        let whole = header.len == head.len() && header.len <= MAX_KEPT;
        self.preparing.push_back(Preparing {
            text: whole.then(|| text.into()),
            creates: hints.creates,
            types: None,
        });
        self.owe(Kind::Prepare, 0);
    }

    /// The number that the server knows a statement by. One that it does not know gives the error that it
    /// is to give.
    fn real(&self, id: u32) -> u32 {
        match self.told(id) {
            Some(told) => self
                .statements
                .get(told)
                .and_then(|s| s.real)
                .unwrap_or_default(),
            None if id == LAST_STATEMENT && !self.preparing.is_empty() => LAST_STATEMENT,
            None => 0,
        }
    }

    fn patch_id(&self, id: u32) -> ClientFrame {
        let real = self.real(id);
        if real == id {
            return ClientFrame::Forward;
        }
        ClientFrame::Patch {
            at: HEADER_LEN + 1,
            len: 4,
            bytes: real.to_le_bytes(),
        }
    }

    fn execute(&mut self, header: Header, head: &[u8], now: Instant, bulk: bool) -> ClientFrame {
        let Ok(id) = command::statement_id(head) else {
            // Too short for its fields: the server says so.
            self.owe(Kind::Execute, 0);
            return ClientFrame::Forward;
        };
        let told = self.told(id).unwrap_or_default();
        self.statements.set_long_data(told, false);
        self.owe(Kind::Execute, self.owed_id(id));
        let read = if bulk {
            command::bulk_types
        } else {
            command::execute_types
        };
        let Some(statement) = self.statements.get_mut(told) else {
            if let Some(preparing) = self.preparing.back_mut()
                && id == LAST_STATEMENT
            {
                // How many there are is known when the statement is: what is kept is cut to that then.
                preparing.types = Some(head.into());
            }
            return self.patch_id(id);
        };
        if let Some(owed) = self.owed.back_mut() {
            owed.creates = statement.creates;
        }
        if let Some(text) = &statement.text {
            self.recent.note(now, text, false);
        }
        if statement.params == 0 {
            return self.patch_id(id);
        }
        if statement.params > MAX_PARAMS {
            statement.types_unknown = true;
            return self.patch_id(id);
        }
        match read(head, statement.params) {
            Ok(Types {
                types: Some(types), ..
            }) => {
                if statement.types.as_deref() != Some(types) {
                    statement.types = Some(types.into());
                }
                statement.bound = true;
            }
            Ok(at) if !statement.bound => return self.with_types(header, head, told, at, bulk),
            // The server refuses what is too short.
            _ => {}
        }
        self.patch_id(id)
    }

    /// The first run on another server connection: that was not told the types yet.
    fn with_types(
        &mut self,
        header: Header,
        head: &[u8],
        told: u32,
        at: Types<'_>,
        bulk: bool,
    ) -> ClientFrame {
        let Some(statement) = self.statements.get_mut(told) else {
            return ClientFrame::Forward;
        };
        let types = statement.types.as_deref().unwrap_or_default();
        let len = header.len + types.len();
        let real = statement.real.unwrap_or_default();
        if types.is_empty() || len >= MAX_PAYLOAD {
            // It was never run with types, or they have no room: the server, or its error, has to do.
            let real = if types.is_empty() { real } else { 0 };
            return ClientFrame::Patch {
                at: HEADER_LEN + 1,
                len: 4,
                bytes: real.to_le_bytes(),
            };
        }
        let out = &mut self.replacement;
        out.clear();
        let seq = header.seq;
        out.put_slice(&Header { len, seq }.bytes());
        out.put_slice(head.get(..1).unwrap_or_default());
        out.put_u32_le(real);
        out.put_slice(head.get(5..at.mark_at).unwrap_or_default());
        if bulk {
            let flags = head.get(5..7).and_then(|b| b.try_into().ok());
            let flags = flags.map_or(0, u16::from_le_bytes) | command::BULK_TYPES;
            out.put_u16_le(flags);
        } else {
            out.put_u8(1);
        }
        out.put_slice(types);
        statement.bound = true;
        ClientFrame::Replace {
            instead_of: HEADER_LEN + at.at,
        }
    }

    /// A reset takes tracking with it: it is switched on again right behind.
    fn track_behind(&mut self, header: Header) -> ClientFrame {
        if header.len != 1 {
            return ClientFrame::Forward;
        }
        self.replacement.clear();
        let out = &mut self.replacement;
        out.put_slice(&header.bytes());
        out.put_u8(command::RESET_CONNECTION);
        command::put_query(out, TRACKING_SQL);
        self.owe(Kind::Own, 0);
        ClientFrame::Replace {
            instead_of: header.frame_len(),
        }
    }
}

/// The value that a text gives to [`TRACKING_VARIABLE`].
fn wanted(text: &[u8]) -> Option<Wanted> {
    let lower = text.to_ascii_lowercase();
    let name = TRACKING_VARIABLE.as_bytes();
    let at = memchr::memmem::rfind(&lower, name)? + name.len();
    let rest = lower.get(at..)?;
    let begin = rest.iter().position(|b| {
        !matches!(
            b,
            b' ' | b'\t' | b'\n' | b'\r' | b'=' | b':' | b'`' | b'\'' | b'"'
        )
    })?;
    let rest = rest.get(begin..)?;
    let end = rest
        .iter()
        .position(|b| !b.is_ascii_alphanumeric())
        .unwrap_or(rest.len());
    let word = rest.get(..end)?;
    Some(Wanted::parse(word).unwrap_or(match word {
        b"1" => Wanted::State,
        b"2" => Wanted::Characteristics,
        _ => Wanted::Off,
    }))
}
