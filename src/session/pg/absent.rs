//! Prepared statements of the protocol that the server refused when they were to be made again: under another
//! search_path or role than they were made under, say, or without their table. PostgreSQL itself looks at such a
//! text when the statement is bound, so that is when they are made: by a Parse of Slackwater's own before the
//! client's message, whose answer the client does not see unless it is an error.

use super::hints;
use super::machine::{Machine, Ours, Owed, ServerFrame};
use super::probe::put_parse;
use super::restore::row_shape;
use super::snapshot::{Prepared, Snapshot};
use crate::wire::pg::frame::{Header, Reader, put};
use bytes::{BufMut, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Most parameters of such a statement: their description has to be read at once.
pub const PARAMETERS_MAX: usize = 1000;

/// Bytes of a statement's name that count (`NAMEDATALEN` less one).
pub(super) const NAME_MAX: usize = 63;

/// What the server connection lacks, and what is under way.
#[derive(Debug, Default)]
pub struct Absent {
    statements: BTreeMap<Box<str>, Statement>,
    /// Parse messages of Slackwater's own without an answer, in order.
    making: VecDeque<Box<str>>,
    /// Describe messages of Slackwater's own, in order: the rows that the client was told.
    shapes: VecDeque<u64>,
    /// The client's Close messages without an answer, in order: which of these statements they take away.
    closing: VecDeque<Option<Box<str>>>,
    /// What the Query under way deallocates.
    deallocating: Option<Box<str>>,
    /// A text under way may take all away.
    waits: bool,
}

#[derive(Debug)]
struct Statement {
    prepared: Prepared,
    /// Its Parse, or its Close, was sent and is not refused: what follows means what is then there.
    sent: bool,
}

impl Absent {
    /// There is nothing of it.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// What a new server connection lacks.
    pub fn begin(&mut self, statements: Vec<Prepared>) {
        let absent = |prepared| Statement {
            prepared,
            sent: false,
        };
        let named = statements.into_iter().map(|p| (p.name.clone(), absent(p)));
        *self = Self {
            statements: named.collect(),
            ..Self::default()
        };
    }

    /// A snapshot of what the server has, with what the client takes it to have.
    pub fn with(&mut self, mut snapshot: Snapshot) -> Snapshot {
        self.statements.retain(|name, statement| {
            let there = snapshot.state().prepared.iter().any(|p| p.name == *name);
            if !there {
                snapshot = snapshot.with_statement(statement.prepared.clone());
            }
            !there
        });
        snapshot
    }

    /// A statement of the client's was completed.
    pub(super) fn completed(&mut self, tag: &[u8]) {
        match tag {
            b"DISCARD ALL\0" | b"DEALLOCATE ALL\0" => self.statements.clear(),
            b"DEALLOCATE\0" => {
                if let Some(name) = self.deallocating.take() {
                    self.statements.remove(&name);
                }
            }
            _ => {}
        }
    }

    /// Nothing is under way.
    pub(super) fn quiet(&mut self) {
        self.deallocating = None;
        self.waits = false;
    }

    /// A Close was answered.
    pub(super) fn closed(&mut self) {
        if let Some(Some(name)) = self.closing.pop_front() {
            self.statements.remove(&name);
        }
    }

    /// The oldest message of this kind was refused or skipped.
    pub(super) fn unanswered(&mut self, owed: Owed) {
        let name = match owed {
            Owed::Ours(Ours::Parse) => self.making.pop_front(),
            Owed::Close => self.closing.pop_front().flatten(),
            Owed::Ours(Ours::Describe) => {
                self.shapes.pop_front();
                None
            }
            _ => None,
        };
        if let Some(statement) = name.and_then(|name| self.statements.get_mut(&name)) {
            statement.sent = false;
        }
    }

    /// No answer comes any more.
    pub(super) fn lost(&mut self) {
        let statements = std::mem::take(&mut self.statements);
        self.begin(statements.into_values().map(|s| s.prepared).collect());
    }
}

impl Machine {
    /// What has to be sent before this frame of the client, or in place of its first so many bytes, which is returned.
    /// `utf8`: that is the client's encoding, as it is that of the texts that are kept.
    pub fn put_absent(
        &mut self,
        header: Header,
        head: &[u8],
        utf8: bool,
        out: &mut BytesMut,
    ) -> usize {
        if self.absent.is_empty() || self.skipping || self.copy_in || self.absent.waits {
            return 0;
        }
        let mut reader = Reader::new(head);
        match (header.tag, head) {
            (b'B', _) if reader.cstr().is_ok() => self.make(reader.cstr().ok(), utf8, out),
            (b'P', _) => self.make(reader.cstr().ok(), utf8, out),
            (b'D', [b'S', name @ ..]) => self.make(Reader::new(name).cstr().ok(), utf8, out),
            (b'C', _) => {
                let name = head
                    .strip_prefix(b"S")
                    .and_then(|n| Reader::new(n).cstr().ok());
                let name = name.and_then(cut);
                let statement = name.and_then(|name| self.absent.statements.get_mut(name));
                let closes = statement.filter(|s| !s.sent).map(|statement| {
                    statement.sent = true;
                    statement.prepared.name.clone()
                });
                if head.first() != Some(&b'S') || name != Some("") {
                    self.absent.closing.push_back(closes);
                }
            }
            (b'Q', _) => return self.put_deallocate(header, head, out),
            _ => {}
        }
        0
    }

    fn make(&mut self, name: Option<&[u8]>, utf8: bool, out: &mut BytesMut) {
        let Some(name) = name.and_then(cut) else {
            return;
        };
        let Some(statement) = self.absent.statements.get_mut(name) else {
            return;
        };
        let prepared = &statement.prepared;
        // Under other settings than it was made under its constants would mean something else: then it is not there.
        if statement.sent
            || self.made.under(name).is_some()
            || !(utf8 || prepared.text.is_ascii() && name.is_ascii())
        {
            return;
        }
        put_parse(out, name, &prepared.text, &prepared.types);
        statement.sent = true;
        self.absent.making.push_back(name.into());
        self.extended(Owed::Ours(Ours::Parse));
        if let Some(shape) = self.told.shape(name.as_bytes()) {
            put(out, b'D', |out| {
                out.put_u8(b'S');
                out.put_slice(name.as_bytes());
                out.put_u8(0);
            });
            self.absent.shapes.push_back(shape);
            self.extended(Owed::Ours(Ours::Describe));
        }
    }

    /// DEALLOCATE, unlike Close, wants the statement to be there.
    fn put_deallocate(&mut self, header: Header, head: &[u8], out: &mut BytesMut) -> usize {
        let text = Reader::new(head).cstr().unwrap_or(head);
        let name = hints::deallocated(text);
        if hints::first_keyword(text).eq_ignore_ascii_case(b"discard")
            || name.as_deref() == Some("all")
        {
            self.absent.waits = true;
            return 0;
        }
        let Some(name) = name.filter(|name| self.absent.statements.contains_key(name)) else {
            return 0;
        };
        // Behind others nobody knows which completion is whose.
        if head.len() != header.body || !self.is_quiet() {
            return 0;
        }
        put(out, b'Q', |out| {
            let quoted = name.replace('"', "\"\"");
            out.put_slice(format!("PREPARE \"{quoted}\" AS SELECT 1; ").as_bytes());
            out.put_slice(text);
            out.put_u8(0);
        });
        self.owed.push_back(Owed::Ours(Ours::Prepare));
        self.absent.deallocating = Some(name);
        header.frame_len()
    }

    /// The server's frame is the answer to a message of Slackwater's own.
    pub(super) fn on_ours(
        &mut self,
        ours: Ours,
        header: Header,
        head: &[u8],
    ) -> Option<ServerFrame> {
        match (header.tag, ours) {
            (b'1', Ours::Parse) => {
                if let Some(name) = self.absent.making.pop_front() {
                    self.absent.statements.remove(&name);
                }
            }
            (b'C', Ours::Prepare) => {}
            // Its Query has failed.
            (b'E', Ours::Prepare) => {
                self.owed.pop_front();
                return None;
            }
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

/// A name as far as it counts.
fn cut(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name.get(..NAME_MAX).unwrap_or(name)).ok()
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
        machine.put_absent(header, head, true, &mut out);
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

    /// A Query's completions come; how many the client sees.
    fn done(machine: &mut Machine, tags: &[&str]) -> usize {
        let mut seen = 0;
        for tag in tags {
            let tag = [tag.as_bytes(), b"\0"].concat();
            let header = Header {
                tag: b'C',
                body: tag.len(),
            };
            let head = machine.server_head(header);
            seen += usize::from(machine.on_server(header, &tag[..head]) != ServerFrame::Drop);
        }
        assert_eq!(come(machine, b"Z"), "Z");
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
        assert_eq!(send(&mut machine, b'C', b"Sclosed\0"), "");
        assert_eq!(send(&mut machine, b'C', b"Pclosed\0"), "");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"33Z"), "33Z");
        assert_eq!(send(&mut machine, b'Q', b"deallocate deallocated\0"), "Q");
        assert_eq!(done(&mut machine, &["PREPARE", "DEALLOCATE"]), 1);
        for name in ["closed", "deallocated"] {
            let bind = [b"\0", name.as_bytes(), &[0; 7]].concat();
            assert_eq!(send(&mut machine, b'B', &bind), "", "{name}");
        }
        let snapshot = machine.absent.with(nothing());
        assert_eq!(*snapshot.state().prepared, [prepared("kept")]);
        // Something else has its name by now.
        let taken = Prepared {
            from_sql: true,
            ..prepared("kept")
        };
        let snapshot = machine.absent.with(nothing().with_statement(taken.clone()));
        assert_eq!(*snapshot.state().prepared, [taken]);
        assert!(machine.absent.is_empty());
    }

    #[test]
    fn what_the_client_failed_to_take_away_is_made() {
        let mut machine = lacking(&["s"]);
        assert_eq!(send(&mut machine, b'Q', b"deallocate s\0"), "Q");
        assert_eq!(come(&mut machine, b"EZ"), "EZ");
        // Skipped behind an error.
        send(&mut machine, b'P', b"bad\0x\0\0\0");
        assert_eq!(send(&mut machine, b'C', b"Ss\0"), "");
        assert_eq!(send(&mut machine, b'B', BIND), "", "it would be gone");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"EZ"), "EZ");
        assert_eq!(send(&mut machine, b'B', BIND), "P");
    }

    #[test]
    fn a_name_is_used_again() {
        let mut machine = lacking(&["s", "t"]);
        send(&mut machine, b'C', b"Ss\0");
        assert_eq!(send(&mut machine, b'P', b"s\0x\0\0\0"), "");
        assert_eq!(send(&mut machine, b'D', b"Ss\0"), "");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"31tnZ"), "31tnZ");
        // Without a Close it is an error, which is the server's to tell.
        assert_eq!(send(&mut machine, b'P', b"t\0x\0\0\0"), "P");
        send(&mut machine, b'S', b"");
        assert_eq!(come(&mut machine, b"1EZ"), "EZ");
        let mut machine = lacking(&["s"]);
        send(&mut machine, b'Q', b"discard all\0");
        assert_eq!(send(&mut machine, b'P', b"s\0x\0\0\0"), "");
        send(&mut machine, b'S', b"");
        assert_eq!(done(&mut machine, &["DISCARD ALL"]), 1);
        assert!(machine.absent.is_empty());
    }

    #[test]
    fn under_other_settings_a_statement_is_not_made() {
        let mut machine = lacking(&["s"]);
        let told = |name: &[u8]| (name == b"DateStyle").then_some(&b"ISO, MDY"[..]);
        machine.made.changed(b"DateStyle", b"ISO, DMY", told);
        assert_eq!(send(&mut machine, b'B', BIND), "");
        machine.made.changed(b"DateStyle", b"ISO, MDY", told);
        assert_eq!(send(&mut machine, b'B', BIND), "P");
    }

    #[test]
    fn texts_are_sent_in_the_encoding_that_they_are_kept_in() {
        let mut machine = lacking(&[]);
        let other = Prepared {
            text: "select 'é'".into(),
            ..prepared("s")
        };
        machine.absent.begin(vec![other, prepared(&"n".repeat(63))]);
        let header = Header {
            tag: b'B',
            body: BIND.len(),
        };
        let mut out = BytesMut::new();
        machine.put_absent(header, BIND, false, &mut out);
        assert!(out.is_empty());
        // A name is cut as the server does.
        let long = [b"\0", "n".repeat(70).as_bytes(), &[0; 7]].concat();
        assert_eq!(send(&mut machine, b'B', &long), "P");
    }
}
