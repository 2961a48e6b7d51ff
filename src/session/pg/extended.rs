//! What the machine makes of the extended protocol's messages that name a statement or a portal.

use super::machine::{Machine, Owed};
use crate::wire::pg::frame::{Header, Reader};
use std::time::Instant;

impl Machine {
    pub(super) fn parse_sent(&mut self, header: Header, head: &[u8], now: Instant) {
        let mut reader = Reader::new(head);
        // A name that is longer than what is looked at is a name.
        let name = reader.cstr().unwrap_or(head);
        let text = reader.cstr().unwrap_or_else(|_| reader.rest());
        self.recent.note(now, text, false);
        let hints = self.watched.on_text(Some(name), text);
        self.since
            .parsed(&hints, head.len() == header.body, !name.is_empty());
        if name.is_empty() {
            self.note_prepare(text);
            self.unnamed
                .sent((head.len() == header.body).then_some(head));
            self.extended(Owed::ParseUnnamed);
        } else {
            self.told.replaced(name);
            self.made.parses(&String::from_utf8_lossy(name));
            self.extended(Owed::Parse);
        }
    }

    pub(super) fn bind_sent(&mut self, head: &[u8], now: Instant) {
        let mut reader = Reader::new(head);
        if reader.cstr().is_ok()
            && let Ok(name) = reader.cstr()
        {
            if !name.is_empty() {
                self.recent.note(now, name, true);
            }
            self.watched.on_bind(name, head);
            self.since.bound(name);
        }
        self.extended(Owed::Bind);
    }

    pub(super) fn close_sent(&mut self, head: &[u8]) {
        let owed = match head {
            [b'S', 0, ..] => Owed::CloseUnnamed,
            [b'S', name @ ..] => {
                self.since.spoil();
                self.told.replaced(cstr(name));
                Owed::Close
            }
            _ => Owed::Close,
        };
        self.extended(owed);
    }

    pub(super) fn describe_sent(&mut self, head: &[u8]) {
        let owed = match head {
            [b'S', name @ ..] => {
                self.told.asked(cstr(name));
                Owed::DescribeStatement
            }
            _ => Owed::DescribePortal,
        };
        self.extended(owed);
    }
}

/// A string up to its NUL.
fn cstr(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}
