//! What has passed since a session was last found clean, as far as it matters when its server is lost: whether
//! all of it belongs to one transaction, which is rolled back with the server, and whether that may have
//! committed.

use super::hints::Hints;

/// Kept by the machine; begins and ends with the probe.
#[derive(Debug)]
pub struct Since {
    /// Something was done that no rollback undoes, or nobody can tell.
    spoiled: bool,
    /// BEGIN was the first that was completed, and its transaction is still open.
    inside: bool,
    /// ROLLBACK was completed: of all of it, or to a savepoint. The next ReadyForQuery tells.
    maybe_over: bool,
    /// What is in flight may end the transaction, or has.
    may_end: bool,
    /// Parse of the unnamed statement.
    unnamed: Parsed,
    /// Parse of named statements. Older ones have their texts in the snapshot.
    named: Parsed,
}

/// Statements that were sent by Parse. A Bind, and a portal's Execute, may come in later batches, so none of this ends
/// with a ReadyForQuery.
#[derive(Debug, Default)]
struct Parsed {
    /// One was sent.
    seen: bool,
    /// One may end a transaction.
    may_end: bool,
    /// One was bound.
    bound: bool,
}

impl Parsed {
    fn may_end(&self) -> bool {
        self.bound && self.may_end
    }
}

impl Default for Since {
    fn default() -> Self {
        Self {
            spoiled: true,
            inside: false,
            maybe_over: false,
            may_end: false,
            unnamed: Parsed::default(),
            named: Parsed::default(),
        }
    }
}

impl Since {
    /// The session was found clean: nothing has passed since.
    pub(super) fn clean(&mut self) {
        *self = Self {
            spoiled: false,
            ..Self::default()
        };
    }

    pub(super) fn spoil(&mut self) {
        self.spoiled = true;
    }

    /// Tags of completed commands are of interest.
    pub(super) fn wants_tags(&self) -> bool {
        !self.spoiled
    }

    /// A text was sent. `whole`: all of it was looked at.
    pub(super) fn text(&mut self, hints: &Hints, whole: bool) {
        let seen = whole && !hints.cut;
        self.may_end |= hints.may_end || !seen;
        self.spoiled |= hints.lasting || !hints.watches.is_empty() || !seen;
    }

    /// The same, for a statement with a name or without.
    pub(super) fn parsed(&mut self, hints: &Hints, whole: bool, named: bool) {
        self.text(hints, whole);
        let parsed = if named {
            &mut self.named
        } else {
            &mut self.unnamed
        };
        parsed.seen = true;
        parsed.may_end |= hints.may_end || hints.cut || !whole;
        // A statement with a name outlasts the transaction.
        self.spoiled |= named;
    }

    pub(super) fn bound(&mut self, statement: &[u8]) {
        if !statement.is_empty() {
            self.named.bound = true;
            return;
        }
        self.unnamed.bound = true;
        if !self.unnamed.seen {
            self.spoiled = true;
            self.unnamed.may_end = true;
        }
    }

    /// A command was completed.
    pub(super) fn completed(&mut self, tag: &[u8]) {
        let tag = tag.split(|b| *b == 0).next().unwrap_or_default();
        if !self.inside {
            self.inside = matches!(tag, b"BEGIN" | b"START TRANSACTION");
            self.spoiled |= !self.inside;
        } else if self.maybe_over || matches!(tag, b"COMMIT" | b"PREPARE TRANSACTION") {
            self.spoiled = true;
        } else if tag == b"ROLLBACK" {
            self.maybe_over = true;
        }
    }

    /// Something other than a completed command came of a request.
    pub(super) fn disturbed(&mut self) {
        self.spoiled |= !self.inside || self.maybe_over;
    }

    /// ReadyForQuery; `quiet`: nothing else is in flight.
    pub(super) fn ready(&mut self, idle: bool, quiet: bool) {
        self.inside &= !idle;
        self.maybe_over = false;
        self.may_end &= !quiet;
    }

    /// A transaction was begun, and everything that was completed since the session was found clean is part of
    /// it: losing it leaves the session as it was then. (Texts are hints only: what a function does behind its
    /// name, such as taking a lock for the session, is gone with the server.)
    pub fn is_one_transaction(&self) -> bool {
        self.inside && !self.spoiled
    }

    /// A transaction is open for certain, whatever the last ReadyForQuery said.
    pub(super) fn is_inside(&self) -> bool {
        self.inside
    }

    /// What is in flight may end the transaction, the statements of the snapshot aside.
    pub(super) fn may_end(&self) -> bool {
        self.may_end || self.named.may_end() || self.unnamed.may_end()
    }

    /// Named statements were used.
    pub(super) fn used_named(&self) -> bool {
        self.named.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::pg::hints::scan;

    /// Replays tags; `I`, `T` and `E` stand for ReadyForQuery, `!` for an error. Whether a server that is lost
    /// then takes nothing but a transaction with it.
    fn one_transaction(tags: &[&str]) -> bool {
        let mut since = Since::default();
        since.clean();
        for tag in tags {
            match *tag {
                "I" => since.ready(true, true),
                "T" | "E" => since.ready(false, true),
                "!" => since.disturbed(),
                tag => since.completed(&[tag.as_bytes(), b"\0"].concat()),
            }
        }
        since.is_one_transaction()
    }

    #[test]
    fn only_what_is_all_one_transaction_is_one() {
        for tags in [
            &["BEGIN", "T"][..],
            &["START TRANSACTION", "INSERT 0 1", "T", "!", "E"],
            &[
                "BEGIN",
                "T",
                "SAVEPOINT",
                "T",
                "ROLLBACK",
                "T",
                "SELECT 1",
                "T",
            ],
            &["BEGIN", "T", "SET", "T", "ROLLBACK", "I", "BEGIN", "T"],
        ] {
            assert!(one_transaction(tags), "{tags:?}");
        }
        for tags in [
            &[][..],
            &["SET", "BEGIN", "T"],
            &["!", "I", "BEGIN", "T"],
            &["SELECT 1", "I", "BEGIN", "T"],
            &["BEGIN", "T", "COMMIT", "T"],
            &["BEGIN", "PREPARE TRANSACTION", "I", "BEGIN", "T"],
            // Behind a ROLLBACK in one message nobody knows what belongs to what.
            &["BEGIN", "ROLLBACK", "SET", "I", "BEGIN", "T"],
            &["BEGIN", "T", "ROLLBACK", "!", "I", "BEGIN", "T"],
            &["BEGIN", "T", "ROLLBACK", "I"],
        ] {
            assert!(!one_transaction(tags), "{tags:?}");
        }
    }

    #[test]
    fn what_was_parsed_ahead_may_end_the_transaction_when_it_is_executed() {
        for name in ["", "c"] {
            let mut since = Since::default();
            since.clean();
            since.completed(b"BEGIN\0");
            since.parsed(&scan(b"insert into t values (1)"), true, !name.is_empty());
            since.bound(name.as_bytes());
            since.ready(false, true);
            assert!(!since.may_end(), "{name}");
            since.parsed(&scan(b"commit"), true, !name.is_empty());
            since.ready(false, true);
            since.bound(name.as_bytes());
            assert!(since.may_end(), "{name}");
            // The portal may be executed in the next batch.
            since.ready(false, true);
            assert!(since.may_end(), "{name}");
        }
    }

    #[test]
    fn texts_that_outlast_a_transaction_or_may_end_it() {
        for (text, lasting, may_end) in [
            ("insert into t values ('commit; end')", false, false),
            (
                "insert into t values (1) on conflict do nothing",
                false,
                false,
            ),
            ("select pg_advisory_xact_lock(1)", false, false),
            ("select pg_try_advisory_lock(1)", true, false),
            ("DO $$ begin perform 1; end $$", true, true),
            ("call p()", true, false),
            ("prepare p as select 1", true, true),
            ("execute p", true, true),
            ("deallocate all", true, false),
            ("select dblink_connect('a', 'b')", true, false),
            ("commit", false, true),
            ("/* x */ END", false, true),
            ("select case when a then 1 end from t", false, true),
            ("rollback to a", false, true),
            ("abort", false, true),
        ] {
            let hints = scan(text.as_bytes());
            assert_eq!((hints.lasting, hints.may_end), (lasting, may_end), "{text}");
        }
    }
}
