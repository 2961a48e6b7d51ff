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
    /// A Parse of the unnamed statement was sent, so that its text was seen.
    unnamed_seen: bool,
    /// Named statements were bound: their texts are in the snapshot.
    named_bound: bool,
    /// Or were sent since, and one of these may end a transaction.
    named_may_end: bool,
}

impl Default for Since {
    fn default() -> Self {
        Self {
            spoiled: true,
            inside: false,
            maybe_over: false,
            may_end: false,
            unnamed_seen: false,
            named_bound: false,
            named_may_end: false,
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

    /// A text was sent, for a statement with a name or not. `whole`: all of it was looked at.
    pub(super) fn text(&mut self, hints: &Hints, whole: bool, named: bool) {
        let seen = whole && !hints.cut;
        self.may_end |= hints.may_end || !seen;
        self.named_may_end |= named && (hints.may_end || !seen);
        self.spoiled |= hints.lasting || !hints.watches.is_empty() || !seen;
    }

    pub(super) fn unnamed_parsed(&mut self) {
        self.unnamed_seen = true;
    }

    pub(super) fn bound(&mut self, statement: &[u8]) {
        if !statement.is_empty() {
            self.named_bound = true;
        } else if !self.unnamed_seen {
            self.spoiled = true;
            self.may_end = true;
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

    /// What is in flight may end the transaction, its named statements aside.
    pub(super) fn may_end(&self) -> bool {
        self.may_end || (self.named_bound && self.named_may_end)
    }

    /// Named statements were used.
    pub(super) fn used_named(&self) -> bool {
        self.named_bound
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
            ("execute p", true, false),
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
