//! A transaction that was lost with its server while the session itself was not: the client is answered here
//! as PostgreSQL answers in a failed transaction, until it ends that.
//!
//! Nobody may take a lost transaction for a committed one: as long as the client has read no error of it, its
//! COMMIT is answered with one, instead of the tag ROLLBACK, which many clients do not look at.

use super::exit::{self, Exit, Text};
use super::machine::{Machine, Owed, Status};
use super::snapshot::{Prepared, Snapshot};
use super::unnamed::Unnamed;
use crate::wire::pg::backend::{ErrorMessage, put_error, put_ready};
use crate::wire::pg::frame::{Header, Reader, put, put_cstr};
use bytes::{BufMut, BytesMut};
use std::collections::HashMap;
use std::collections::VecDeque;

const ABORTED: &str =
    "current transaction is aborted, commands ignored until end of transaction block";
const LOST: ErrorMessage<'_> = ErrorMessage::error(
    "57P02",
    "the server was lost: the transaction was rolled back",
)
.hint("Repeat the transaction.");
const DETAIL: &str = "The server was lost, and the transaction with it.";

/// Most portals of statements that end the transaction.
const PORTALS: usize = 100;

/// What follows from a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It was answered, or needs no answer.
    Answered,
    /// It was answered, and the transaction is over: what follows is for a server.
    Over,
    /// The transaction is over; this frame is for a server already.
    Forward,
    /// No such message exists.
    Unknown,
}

/// One lost transaction.
#[derive(Debug)]
pub struct Aborted {
    /// The client has read an error in this transaction.
    told: bool,
    /// Up to the next Sync nothing is looked at.
    skipping: bool,
    /// The transaction is over, the batch that ended it is not.
    ended: bool,
    portals: HashMap<Box<[u8]>, Exit>,
    snapshot: Snapshot,
    unnamed: Unnamed,
}

impl Machine {
    /// Everything that was completed since `snapshot` was taken is part of one transaction that is still open,
    /// and nothing that is in flight can have ended it: lost with its server, it leaves the session as it was.
    pub fn may_lose_transaction(&self, snapshot: &Snapshot) -> bool {
        let plain = |text: &str| {
            let hints = super::hints::scan(text.as_bytes());
            !hints.cut && !hints.lasting && hints.watches.is_empty()
        };
        self.since.is_one_transaction()
            && !self.may_have_ended(Some(snapshot))
            && self.ambiguous_for_good().is_none()
            && self.swallowed == (0, 0)
            && self.doubtful == 0
            && (!self.since.used_named()
                || snapshot.state().prepared.iter().all(|p| plain(&p.text)))
    }

    /// A transaction was open, and nothing in flight can have ended it: it was rolled back with the server.
    pub fn was_rolled_back(&self, snapshot: Option<&Snapshot>) -> bool {
        (self.status != Status::Idle || self.since.is_inside()) && !self.may_have_ended(snapshot)
    }

    fn may_have_ended(&self, snapshot: Option<&Snapshot>) -> bool {
        let ends = |text: &str| {
            let hints = super::hints::scan(text.as_bytes());
            hints.cut || hints.may_end
        };
        let known = snapshot.is_some_and(|s| !s.state().prepared.iter().any(|p| ends(&p.text)));
        (self.is_in_flight() || !self.is_quiet())
            && (self.since.may_end() || (self.since.used_named() && !known))
    }

    /// The server is lost with its transaction, and the session goes on without: what is owed is answered.
    pub fn lose_transaction(&mut self, snapshot: Snapshot, out: &mut BytesMut) -> Aborted {
        self.unnamed.lost();
        self.told.lost();
        self.absent.lost();
        self.made.lost();
        let mut aborted = Aborted {
            told: self.status == Status::Failed,
            skipping: self.skipping,
            ended: false,
            portals: HashMap::new(),
            snapshot,
            unnamed: std::mem::take(&mut self.unnamed),
        };
        aborted.answer_owed(&self.owed, out);
        self.owed.clear();
        self.status = Status::Idle;
        (self.batch_open, self.skipping) = (false, false);
        (self.copy_in, self.copy_out) = (false, false);
        self.busy_since = None;
        self.probed_clean();
        aborted
    }

    /// The lost transaction is over.
    pub fn end_lost(&mut self, aborted: Aborted) -> Snapshot {
        self.unnamed = aborted.unnamed;
        aborted.snapshot
    }
}

impl Aborted {
    fn answer_owed(&mut self, owed: &VecDeque<Owed>, out: &mut BytesMut) {
        let mut first = true;
        for owed in owed.iter().filter(|o| !o.is_copy()) {
            let (whole, sync) = (
                matches!(owed, Owed::Query | Owed::FunctionCall),
                *owed == Owed::Sync,
            );
            if first {
                put_error(out, &LOST);
                self.told = true;
            } else if !self.skipping && !sync {
                self.refuse(out);
            }
            first = false;
            self.skipping = !whole && !sync;
            if whole || sync {
                put_ready(out, b'E');
            }
        }
    }

    /// Takes one frame of the client; `head` is the beginning of its body.
    pub fn on_frame(&mut self, header: Header, head: &[u8], out: &mut BytesMut) -> Next {
        match header.tag {
            b'S' => {
                self.skipping = false;
                put_ready(out, if self.ended { b'I' } else { b'E' });
                return if self.ended {
                    Next::Over
                } else {
                    Next::Answered
                };
            }
            b'd' | b'c' | b'f' | b'H' => return Next::Answered,
            b'Q' | b'P' | b'B' | b'C' | b'D' | b'E' | b'F' if self.skipping => {
                return Next::Answered;
            }
            b'Q' | b'P' | b'B' | b'C' | b'D' | b'E' | b'F' if self.ended => return Next::Forward,
            b'Q' => return self.query(header, head, out),
            b'F' => {
                self.refuse(out);
                put_ready(out, b'E');
                return Next::Answered;
            }
            b'P' => self.parse(header, head, out),
            b'B' => self.bind(head, out),
            b'D' => self.describe(head, out),
            b'E' => self.execute(head, out),
            b'C' => self.close(head, out),
            _ => return Next::Unknown,
        }
        .unwrap_or_else(|()| self.skipping = true);
        Next::Answered
    }

    fn refuse(&mut self, out: &mut BytesMut) {
        self.told = true;
        put_error(out, &ErrorMessage::error("25P02", ABORTED).detail(DETAIL));
    }

    fn fail(&mut self, code: &str, message: &str, out: &mut BytesMut) -> Result<(), ()> {
        self.told = true;
        put_error(out, &ErrorMessage::error(code, message).detail(DETAIL));
        Err(())
    }

    fn query(&mut self, header: Header, head: &[u8], out: &mut BytesMut) -> Next {
        let text = Reader::new(head).cstr().unwrap_or(head);
        let read = if head.len() == header.body {
            exit::read(text)
        } else {
            Text::Other
        };
        if read == Text::Exit(Exit::Rollback, false) {
            // A server that knows of no transaction takes it with a warning, and goes on to the rest.
            return Next::Forward;
        }
        self.unnamed.dropped();
        match read {
            Text::Exit(exit, true) => {
                // Its error was written.
                let _refused = self.run(&exit, out);
            }
            Text::Empty => put(out, b'I', |_| {}),
            Text::Exit(_, false) | Text::Other => self.refuse(out),
        }
        put_ready(out, if self.ended { b'I' } else { b'E' });
        if self.ended {
            Next::Over
        } else {
            Next::Answered
        }
    }

    /// Runs a statement that ends the transaction.
    fn run(&mut self, exit: &Exit, out: &mut BytesMut) -> Result<(), ()> {
        match exit {
            Exit::Commit if !self.told => {
                put_error(out, &LOST);
                self.told = true;
                self.ended = true;
                return Err(());
            }
            Exit::Commit | Exit::Rollback => {
                put(out, b'C', |out| put_cstr(out, b"ROLLBACK"));
                self.ended = true;
            }
            Exit::RollbackTo(name) => {
                let name = String::from_utf8_lossy(name);
                let text = format!("savepoint \"{name}\" does not exist");
                return self.fail("3B001", &text, out);
            }
            // What the next transaction would be like went with the server.
            Exit::Chain => return self.fail("25P02", ABORTED, out),
        }
        Ok(())
    }

    fn parse(&mut self, header: Header, head: &[u8], out: &mut BytesMut) -> Result<(), ()> {
        let mut reader = Reader::new(head);
        let name = reader.cstr().unwrap_or_default();
        let text = reader.cstr().unwrap_or_default();
        let whole = head.len() == header.body;
        let taken = whole && matches!(exit::read(text), Text::Exit(_, true));
        if name.is_empty() {
            self.unnamed.sent(Some(head));
            if taken {
                self.unnamed.confirmed();
            } else {
                self.unnamed.failed();
            }
        } else if taken && self.named(name).is_some() {
            let name = String::from_utf8_lossy(name);
            let text = format!("prepared statement \"{name}\" already exists");
            return self.fail("42P05", &text, out);
        }
        if !taken {
            self.refuse(out);
            return Err(());
        }
        if !name.is_empty() {
            self.snapshot = self.snapshot.with_statement(Prepared {
                name: String::from_utf8_lossy(name).into(),
                text: String::from_utf8_lossy(text).into(),
                types: Box::default(),
                from_sql: false,
            });
        }
        put(out, b'1', |_| {});
        Ok(())
    }

    fn named(&self, name: &[u8]) -> Option<Text> {
        let mut prepared = self.snapshot.state().prepared.iter();
        let found = prepared.find(|p| p.name.as_bytes() == name)?;
        Some(exit::read(found.text.as_bytes()))
    }

    /// What a statement of this name would do.
    fn statement(&mut self, name: &[u8], out: &mut BytesMut) -> Result<Exit, ()> {
        let found = if name.is_empty() {
            self.unnamed.to_restore().map(|body| {
                let mut reader = Reader::new(body);
                let _name = reader.cstr();
                exit::read(reader.cstr().unwrap_or_default())
            })
        } else {
            self.named(name)
        };
        match found {
            Some(Text::Exit(exit, true)) => Ok(exit),
            Some(_) => {
                self.refuse(out);
                Err(())
            }
            None if name.is_empty() => {
                self.fail("26000", "unnamed prepared statement does not exist", out)?;
                Err(())
            }
            None => {
                let name = String::from_utf8_lossy(name);
                let text = format!("prepared statement \"{name}\" does not exist");
                self.fail("26000", &text, out)?;
                Err(())
            }
        }
    }

    fn portal(&mut self, name: &[u8], out: &mut BytesMut) -> Result<Exit, ()> {
        if let Some(exit) = self.portals.get(name) {
            return Ok(exit.clone());
        }
        let name = String::from_utf8_lossy(name);
        let text = format!("portal \"{name}\" does not exist");
        self.fail("34000", &text, out)?;
        Err(())
    }

    fn bind(&mut self, head: &[u8], out: &mut BytesMut) -> Result<(), ()> {
        let mut reader = Reader::new(head);
        let portal = reader.cstr().unwrap_or_default();
        let exit = self.statement(reader.cstr().unwrap_or_default(), out)?;
        if self.portals.len() >= PORTALS {
            self.portals.clear();
        }
        self.portals.insert(portal.into(), exit);
        put(out, b'2', |_| {});
        Ok(())
    }

    fn describe(&mut self, head: &[u8], out: &mut BytesMut) -> Result<(), ()> {
        let (kind, name) = split_kind(head);
        if kind == b'S' {
            self.statement(name, out)?;
            put(out, b't', |out| out.put_i16(0));
        } else {
            self.portal(name, out)?;
        }
        put(out, b'n', |_| {});
        Ok(())
    }

    fn execute(&mut self, head: &[u8], out: &mut BytesMut) -> Result<(), ()> {
        let exit = self.portal(Reader::new(head).cstr().unwrap_or_default(), out)?;
        self.run(&exit, out)
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "one of several that may be refused"
    )]
    fn close(&mut self, head: &[u8], out: &mut BytesMut) -> Result<(), ()> {
        match split_kind(head) {
            (b'S', b"") => self.unnamed.dropped(),
            (b'S', name) => self.snapshot = self.snapshot.without_statement(name),
            (_, name) => drop(self.portals.remove(name)),
        }
        put(out, b'3', |_| {});
        Ok(())
    }
}

/// `S` or `P`, and the name behind it.
fn split_kind(head: &[u8]) -> (u8, &[u8]) {
    let mut reader = Reader::new(head);
    let kind = reader.u8().unwrap_or_default();
    (kind, reader.cstr().unwrap_or_default())
}
