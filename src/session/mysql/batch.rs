//! Reads the replies to several commands that were sent in one write.

use super::grammar::Grammar;
use crate::wire::mysql::packet::Reader;
use crate::wire::mysql::reply::{Column, EOF, ERR, ErrPacket, OK, OkPacket, PrepareOk, text_row};

/// What kind of reply a command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// OK or one result in text form.
    Query,
    /// That of a PREPARE.
    Prepare,
}

/// What a packet was.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// Nothing that matters.
    More,
    /// The next column of a result.
    Column(Column<'a>),
    /// A row.
    Row(Vec<Option<&'a [u8]>>),
    /// A command is done that has no rows.
    Done(OkPacket<'a>, &'a [u8]),
    /// A result is complete.
    End,
    /// A statement is prepared.
    Prepared(PrepareOk),
    /// A command failed.
    Failed(ErrPacket<'a>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Columns(u64),
    ColumnsEnd,
    Rows,
    /// Packets of a prepared statement's descriptions that are left.
    Skip(u32),
}

/// The commands, and where in their replies the server is.
#[derive(Debug)]
pub(super) struct Batch {
    grammar: Grammar,
    expects: Vec<Expect>,
    at: usize,
    phase: Phase,
}

impl Batch {
    pub(super) fn new(grammar: Grammar, expects: Vec<Expect>) -> Self {
        Self {
            grammar,
            expects,
            at: 0,
            phase: Phase::Start,
        }
    }

    /// Everything is answered.
    pub(super) fn is_over(&self) -> bool {
        self.at >= self.expects.len()
    }

    /// The next packet is a row, or the end of rows.
    pub(super) fn is_in_rows(&self) -> bool {
        self.phase == Phase::Rows
    }

    /// Takes the payload of one packet; which command it belongs to, and what it is. `None`: it can't be.
    pub(super) fn on_packet<'a>(&mut self, payload: &'a [u8]) -> Option<(usize, Event<'a>)> {
        let at = self.at;
        let expect = *self.expects.get(at)?;
        let first = *payload.first()?;
        let event = match (self.phase, first) {
            (Phase::Start | Phase::Rows, ERR) => {
                self.next();
                Event::Failed(ErrPacket::parse(payload).ok()?)
            }
            (Phase::Start, OK) if expect == Expect::Prepare => {
                let prepared = PrepareOk::parse(payload).ok()?;
                let end = |n: u16| {
                    let eof = u32::from(n > 0 && !self.grammar.deprecate_eof);
                    u32::from(n) + eof
                };
                match end(prepared.params) + end(prepared.columns) {
                    0 => self.next(),
                    n => self.phase = Phase::Skip(n),
                }
                Event::Prepared(prepared)
            }
            (Phase::Skip(left), _) => {
                if left > 1 {
                    self.phase = Phase::Skip(left - 1);
                } else {
                    self.next();
                }
                Event::More
            }
            (Phase::Start, OK) => {
                self.next();
                Event::Done(OkPacket::parse(payload, true).ok()?, payload)
            }
            // SET_OPTION.
            (Phase::Start, EOF) if payload.len() < 9 => {
                self.next();
                Event::End
            }
            (Phase::Start, _) => {
                let mut reader = Reader::new(payload);
                let columns = reader.lenenc().ok()?;
                if self.grammar.cache_metadata && reader.u8() == Ok(0) {
                    return None;
                }
                self.phase = Phase::Columns(columns);
                Event::More
            }
            (Phase::Columns(left), _) => {
                self.phase = match (left, self.grammar.deprecate_eof) {
                    (2.., _) => Phase::Columns(left - 1),
                    (_, true) => Phase::Rows,
                    (_, false) => Phase::ColumnsEnd,
                };
                Event::Column(Column::parse(payload, self.grammar.extended_metadata).ok()?)
            }
            (Phase::ColumnsEnd, EOF) => {
                self.phase = Phase::Rows;
                Event::More
            }
            (Phase::Rows, EOF) if self.grammar.ends_rows(payload.len()) => {
                self.next();
                Event::End
            }
            (Phase::Rows, _) => Event::Row(text_row(payload).ok()?),
            _ => return None,
        };
        Some((at, event))
    }

    fn next(&mut self) {
        self.at += 1;
        self.phase = Phase::Start;
    }
}
