//! Prepared statements of the protocol that the server refused when they were to be made again: under another
//! search_path or role than they were made under, say, or without their table. PostgreSQL itself looks at such a
//! text when the statement is bound, so that is when they are made: by a Parse of Slackwater's own before the
//! client's message, whose answer the client does not see unless it is an error.

use super::machine::{Machine, Ours, Owed, ServerFrame};
use super::probe::{put_close, put_parse};
use super::restore::row_shape;
use super::snapshot::{Prepared, Snapshot};
use crate::wire::pg::frame::{Header, Reader, put};
use bytes::{BufMut, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Most parameters of such a statement: their description has to be read at once.
pub const PARAMETERS_MAX: usize = 1000;

/// What the server connection lacks, and what is under way.
#[derive(Debug, Default)]
pub struct Absent {
    statements: BTreeMap<Box<str>, Statement>,
    /// Parse messages without an answer, in order.
    making: VecDeque<(Box<str>, Made)>,
    /// Close messages without an answer, in order; true: the client makes another statement of this name.
    closing: VecDeque<(Box<str>, bool)>,
    /// Describe messages without an answer, in order: the rows that the client was told.
    shapes: VecDeque<u64>,
}

#[derive(Debug)]
struct Statement {
    prepared: Prepared,
    /// Parse was sent, and is not refused; or the client's own, of another statement in its place.
    sent: bool,
    /// The server has an empty statement of this name, for the client to take away.
    stands_in: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Itself,
    StandIn,
}

impl Absent {
    /// There is nothing of it.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.making.is_empty()
    }

    /// What a new server connection lacks.
    pub fn begin(&mut self, statements: Vec<Prepared>) {
        let absent = |prepared: Prepared| Statement {
            prepared,
            sent: false,
            stands_in: false,
        };
        let named = statements.into_iter().map(|p| (p.name.clone(), absent(p)));
        self.statements = named.collect();
        self.forget_answers();
    }

    fn forget_answers(&mut self) {
        self.making.clear();
        self.closing.clear();
        self.shapes.clear();
    }

    /// All prepared statements are gone.
    pub(super) fn clear(&mut self) {
        self.statements.clear();
    }

    /// A snapshot of what the server has, with what the client takes it to have.
    pub fn with(&mut self, mut snapshot: Snapshot) -> Snapshot {
        self.statements.retain(|name, statement| {
            let there = snapshot.state().prepared.iter().any(|p| p.name == *name);
            if there && !statement.stands_in || !there && statement.stands_in {
                // It was made, or taken away.
                return false;
            }
            snapshot = snapshot
                .without_statement(name.as_bytes())
                .with_statement(statement.prepared.clone());
            true
        });
        snapshot
    }

    /// Something stands in for this statement, or will.
    fn has_stand_in(&self, name: &str) -> bool {
        let coming = |(n, made): &(Box<str>, Made)| &**n == name && *made == Made::StandIn;
        let statement = self.statements.get(name);
        statement.is_some_and(|s| s.stands_in || self.making.iter().any(coming))
    }

    fn answered(&mut self) {
        let Some((name, made)) = self.making.pop_front() else {
            return;
        };
        match made {
            Made::Itself => drop(self.statements.remove(&name)),
            Made::StandIn => {
                if let Some(statement) = self.statements.get_mut(&name) {
                    statement.stands_in = true;
                }
            }
        }
    }

    fn closed(&mut self) {
        match self.closing.pop_front() {
            Some((name, true)) => drop(self.statements.remove(&name)),
            Some((name, false)) => {
                if let Some(statement) = self.statements.get_mut(&name) {
                    statement.stands_in = false;
                }
            }
            None => {}
        }
    }

    /// The oldest message of this kind was refused or skipped.
    pub(super) fn unanswered(&mut self, ours: Ours) {
        match ours {
            Ours::Close => {
                if let Some((name, true)) = self.closing.pop_front()
                    && let Some(statement) = self.statements.get_mut(&name)
                {
                    statement.sent = false;
                }
                return;
            }
            Ours::Describe => {
                self.shapes.pop_front();
                return;
            }
            Ours::Parse => {}
        }
        if let Some((name, Made::Itself)) = self.making.pop_front()
            && let Some(statement) = self.statements.get_mut(&name)
        {
            statement.sent = false;
        }
    }

    /// No answer comes any more.
    pub(super) fn lost(&mut self) {
        self.forget_answers();
        for statement in self.statements.values_mut() {
            (statement.sent, statement.stands_in) = (false, false);
        }
    }
}

impl Machine {
    /// What has to be sent before this frame of the client.
    pub fn put_absent(&mut self, header: Header, head: &[u8], out: &mut BytesMut) {
        if self.absent.statements.is_empty() || self.skipping || self.copy_in {
            return;
        }
        let mut reader = Reader::new(head);
        let (name, made) = match (header.tag, head) {
            (b'B', _) if reader.cstr().is_ok() => (reader.cstr().ok(), Made::Itself),
            (b'P', _) => {
                let name = reader.cstr().ok();
                if name.is_some_and(|name| self.replaces_stand_in(name, out)) {
                    return;
                }
                (name, Made::Itself)
            }
            (b'D', [b'S', ..]) => (name_behind_kind(head), Made::Itself),
            (b'C', [b'S', ..]) => (name_behind_kind(head), Made::StandIn),
            (b'Q', _) => (None, Made::StandIn),
            _ => return,
        };
        if matches!(header.tag, b'Q' | b'P') {
            // The text is first in a Query, and second in a Parse.
            let text = reader.cstr().unwrap_or(head);
            if let Some(name) = super::hints::deallocated(text) {
                self.make(&name, Made::StandIn, out);
            }
        }
        if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) {
            self.make(name, made, out);
        }
    }

    /// The client took the statement away, and makes another of its name.
    fn replaces_stand_in(&mut self, name: &[u8], out: &mut BytesMut) -> bool {
        let Ok(name) = std::str::from_utf8(name) else {
            return false;
        };
        if !self.absent.has_stand_in(name) {
            return false;
        }
        self.put_close(name, true, out);
        if let Some(statement) = self.absent.statements.get_mut(name) {
            // What follows means the new one.
            statement.sent = true;
        }
        true
    }

    fn put_close(&mut self, name: &str, replaced: bool, out: &mut BytesMut) {
        put_close(out, name);
        self.absent.closing.push_back((name.into(), replaced));
        self.put_ours(Ours::Close);
    }

    fn put_ours(&mut self, ours: Ours) {
        self.batch_open = true;
        self.owed.push_back(Owed::Ours(ours));
    }

    fn make(&mut self, name: &str, made: Made, out: &mut BytesMut) {
        let stands_in = self.absent.has_stand_in(name);
        let Some(statement) = self.absent.statements.get_mut(name) else {
            return;
        };
        if statement.sent || (made == Made::StandIn && stands_in) {
            return;
        }
        let prepared = statement.prepared.clone();
        if made == Made::StandIn {
            put_parse(out, name, "", &[]);
        } else {
            statement.sent = true;
            if stands_in {
                self.put_close(name, false, out);
            }
            put_parse(out, name, &prepared.text, &prepared.types);
        }
        self.put_ours(Ours::Parse);
        self.absent.making.push_back((name.into(), made));
        if made == Made::StandIn {
            return;
        }
        if let Some(shape) = self.told.shape(name.as_bytes()) {
            put(out, b'D', |out| {
                out.put_u8(b'S');
                out.put_slice(name.as_bytes());
                out.put_u8(0);
            });
            self.put_ours(Ours::Describe);
            self.absent.shapes.push_back(shape);
        }
    }

    /// The server's frame is the answer to a message of Slackwater's own.
    pub(super) fn on_ours(
        &mut self,
        ours: Ours,
        header: Header,
        head: &[u8],
    ) -> Option<ServerFrame> {
        match (header.tag, ours) {
            (b'1', Ours::Parse) => self.absent.answered(),
            (b'3', Ours::Close) => self.absent.closed(),
            // The rows follow.
            (b't', Ours::Describe) => return Some(ServerFrame::Drop),
            (b'T' | b'n', Ours::Describe) => {
                let whole = head.len() == header.body;
                let told = self.absent.shapes.pop_front();
                if !whole || told != Some(row_shape(header.tag, head)) {
                    return Some(ServerFrame::OtherRows);
                }
            }
            _ => return None,
        }
        self.owed.pop_front();
        Some(ServerFrame::Drop)
    }
}

fn name_behind_kind(head: &[u8]) -> Option<&[u8]> {
    Reader::new(head.get(1..)?).cstr().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::pg::snapshot::State;
    use tokio::time::Instant;

    fn prepared(name: &str) -> Prepared {
        Prepared {
            name: name.into(),
            text: "select * from t".into(),
            types: [23].into(),
            from_sql: false,
        }
    }

    /// Sends a frame of the client; the types of what goes before it.
    fn send(machine: &mut Machine, tag: u8, head: &[u8]) -> String {
        let header = Header {
            tag,
            body: head.len(),
        };
        let mut out = BytesMut::new();
        machine.put_absent(header, head, &mut out);
        machine.on_client(header, head, Instant::now().into_std());
        let mut tags = String::new();
        while let Ok(Some(header)) = Header::parse(&out) {
            tags.push(char::from(header.tag));
            drop(out.split_to(header.frame_len()));
        }
        tags
    }

    /// Answers come; those that the client sees.
    fn come(machine: &mut Machine, tags: &[u8]) -> String {
        let mut seen = String::new();
        for tag in tags {
            let head: &[u8] = if *tag == b'Z' { b"I" } else { b"" };
            let header = Header {
                tag: *tag,
                body: head.len(),
            };
            if machine.on_server(header, head) != ServerFrame::Drop {
                seen.push(char::from(*tag));
            }
        }
        seen
    }

    fn lacking(names: &[&str]) -> Machine {
        let mut machine = Machine::default();
        let statements = names.iter().map(|name| prepared(name));
        machine.absent.begin(statements.collect());
        machine
    }

    const BIND: &[u8] = b"\0s\0\0\0\0\0\0\0";

    #[test]
    fn a_statement_is_made_before_its_first_use() {
        let mut machine = lacking(&["s"]);
        assert_eq!(send(&mut machine, b'B', b"\0other\0\0\0\0\0\0\0"), "");
        assert_eq!(send(&mut machine, b'B', BIND), "P");
        assert_eq!(send(&mut machine, b'B', BIND), "", "once");
        assert_eq!(send(&mut machine, b'S', b""), "");
        assert_eq!(come(&mut machine, b"2122Z"), "222Z");
        assert!(machine.at_rest() && machine.absent.is_empty());
    }

    #[test]
    fn what_was_refused_or_skipped_is_tried_again() {
        let mut machine = lacking(&["s"]);
        for answers in [&b"EZ"[..], b"2EZ"] {
            if answers.len() == 3 {
                send(&mut machine, b'B', b"\0\0\0\0\0\0\0\0");
            }
            assert_eq!(send(&mut machine, b'B', BIND), "P");
            send(&mut machine, b'S', b"");
            assert_eq!(come(&mut machine, answers).as_bytes(), answers);
            assert!(machine.at_rest() && !machine.absent.is_empty());
        }
        assert_eq!(send(&mut machine, b'P', b"bad\0x\0\0\0"), "");
        assert_eq!(send(&mut machine, b'B', BIND), "P");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"EZ"), "EZ", "never tried");
        assert_eq!(send(&mut machine, b'B', BIND), "P");
    }

    #[test]
    fn rows_that_the_client_was_told_are_compared() {
        let mut machine = lacking(&["s"]);
        machine.told.asked(b"s");
        machine.told.answered((b'n', b""), true);
        assert_eq!(send(&mut machine, b'B', BIND), "PD");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"1tn2Z"), "2Z");
        machine.absent.begin(vec![prepared("s")]);
        assert_eq!(send(&mut machine, b'B', BIND), "PD");
        assert_eq!(come(&mut machine, b"1t"), "");
        let one_column = [&[0, 1][..], b"a\0", &[0; 18]].concat();
        let header = Header {
            tag: b'T',
            body: one_column.len(),
        };
        assert_eq!(
            machine.on_server(header, &one_column),
            ServerFrame::OtherRows
        );
    }

    fn nothing() -> Snapshot {
        Snapshot::new(State {
            login_user: "u".into(),
            session_user: "u".into(),
            current_user: "u".into(),
            role: "none".into(),
            settings: [].into(),
            custom: [].into(),
            prepared: [].into(),
        })
    }

    #[test]
    fn what_the_client_takes_away_stays_away() {
        let mut machine = lacking(&["closed", "deallocated", "kept"]);
        assert_eq!(send(&mut machine, b'C', b"Sclosed\0"), "P");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"13Z"), "3Z");
        assert_eq!(send(&mut machine, b'Q', b"deallocate deallocated\0"), "P");
        assert_eq!(come(&mut machine, b"1CZ"), "CZ");
        let snapshot = machine.absent.with(nothing());
        assert_eq!(*snapshot.state().prepared, [prepared("kept")]);
        // Its name is used again, at once or after an error that skipped that.
        let mut machine = lacking(&["s"]);
        send(&mut machine, b'C', b"Ss\0");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"13Z"), "3Z");
        send(&mut machine, b'B', b"\0\0\0\0\0\0\0\0");
        assert_eq!(send(&mut machine, b'P', b"s\0x\0\0\0"), "C");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"EZ"), "EZ");
        assert_eq!(send(&mut machine, b'P', b"s\0x\0\0\0"), "C");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"31Z"), "1Z");
        assert!(machine.absent.is_empty());
        let mut machine = lacking(&["s"]);
        send(&mut machine, b'C', b"Ss\0");
        assert_eq!(send(&mut machine, b'P', b"s\0x\0\0\0"), "C");
        assert_eq!(send(&mut machine, b'D', b"Ss\0"), "");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"1331tnZ"), "31tnZ");
        assert!(machine.absent.is_empty());
    }

    #[test]
    fn what_the_client_failed_to_take_away_is_made_in_place_of_what_stands_in_for_it() {
        let mut machine = lacking(&["s"]);
        assert_eq!(send(&mut machine, b'Q', b"deallocate s\0"), "P");
        assert_eq!(come(&mut machine, b"1EZ"), "EZ");
        let empty = Prepared {
            text: "".into(),
            types: [].into(),
            ..prepared("s")
        };
        let snapshot = machine.absent.with(nothing().with_statement(empty));
        assert_eq!(*snapshot.state().prepared, [prepared("s")]);
        assert_eq!(send(&mut machine, b'B', BIND), "CP");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"312Z"), "2Z");
    }
}
