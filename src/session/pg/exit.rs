//! Statements that end a transaction, read from their texts: those that a failed transaction takes.

use super::lexical::{is, skip_space, word_at};

/// What a statement does to a transaction that has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// ROLLBACK, ABORT.
    Rollback,
    /// COMMIT, END, PREPARE TRANSACTION: the answer is ROLLBACK.
    Commit,
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo(Box<[u8]>),
    /// AND CHAIN: the next transaction begins with it.
    Chain,
}

/// A text as a failed transaction sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Text {
    /// It has no statement.
    Empty,
    /// It begins with a statement that is taken; `alone`: and has no other.
    Exit(Exit, bool),
    /// It is refused.
    Other,
}

/// Reads a text's first statement.
pub(super) fn read(text: &[u8]) -> Text {
    let mut at = skip_space(text, 0);
    while text.get(at) == Some(&b';') {
        at = skip_space(text, at + 1);
    }
    if at >= text.len() {
        return Text::Empty;
    }
    let mut words = Words { text, at };
    let first = words.next();
    let commit = is(first, b"commit") || is(first, b"end");
    let exit = if commit || is(first, b"rollback") || is(first, b"abort") {
        if !words.take(b"work") {
            words.take(b"transaction");
        }
        if words.take(b"and") {
            let plain = words.take(b"no");
            if !words.take(b"chain") {
                return Text::Other;
            }
            match (plain, commit) {
                (false, _) => Exit::Chain,
                (true, true) => Exit::Commit,
                (true, false) => Exit::Rollback,
            }
        } else if is(first, b"rollback") && words.take(b"to") {
            words.take(b"savepoint");
            Exit::RollbackTo(words.name())
        } else if commit {
            Exit::Commit
        } else {
            Exit::Rollback
        }
    } else if is(first, b"prepare") && words.take(b"transaction") {
        // Its name may be written in many ways: what follows is not looked at, but for a second statement.
        let rest = text.get(words.at..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b';');
        words.at += end.unwrap_or(rest.len());
        Exit::Commit
    } else {
        return Text::Other;
    };
    match text.get(words.at) {
        None => Text::Exit(exit, true),
        Some(b';') => Text::Exit(exit, skip_ends(text, words.at) >= text.len()),
        Some(_) => Text::Other,
    }
}

fn skip_ends(text: &[u8], mut at: usize) -> usize {
    while text.get(at) == Some(&b';') {
        at = skip_space(text, at + 1);
    }
    at
}

struct Words<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> &'a [u8] {
        let word = word_at(self.text, self.at);
        self.at = skip_space(self.text, self.at + word.len());
        word
    }

    fn take(&mut self, wanted: &[u8]) -> bool {
        let word = word_at(self.text, self.at);
        if !is(word, wanted) {
            return false;
        }
        self.next();
        true
    }

    /// An identifier, as it is shown in messages.
    fn name(&mut self) -> Box<[u8]> {
        if self.text.get(self.at) != Some(&b'"') {
            return self.next().to_ascii_lowercase().into();
        }
        let rest = self.text.get(self.at + 1..).unwrap_or_default();
        let len = rest.iter().position(|b| *b == b'"').unwrap_or(rest.len());
        self.at = skip_space(self.text, self.at + len + 2);
        rest.get(..len).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statements_that_a_failed_transaction_takes() {
        let exit = |exit| Text::Exit(exit, true);
        for (text, wanted) in [
            ("rollback", exit(Exit::Rollback)),
            (" /* x */ ROLLBACK WORK ; ", exit(Exit::Rollback)),
            (";abort transaction -- y", exit(Exit::Rollback)),
            ("commit", exit(Exit::Commit)),
            ("END AND NO CHAIN;;", exit(Exit::Commit)),
            ("rollback and chain", exit(Exit::Chain)),
            ("commit work and chain", exit(Exit::Chain)),
            ("prepare transaction 'x'", exit(Exit::Commit)),
            (
                "rollback to a",
                exit(Exit::RollbackTo(b"a".as_slice().into())),
            ),
            (
                "rollback transaction to savepoint \"B c\";",
                exit(Exit::RollbackTo(b"B c".as_slice().into())),
            ),
            ("rollback; select 1", Text::Exit(Exit::Rollback, false)),
            ("commit;begin", Text::Exit(Exit::Commit, false)),
            ("", Text::Empty),
            ("; -- nothing", Text::Empty),
            ("select 1; rollback", Text::Other),
            ("rollback prepared 'x'", Text::Other),
            ("commit prepared 'x'", Text::Other),
            ("prepare transactions as select 1", Text::Other),
            ("release a", Text::Other),
            ("committed", Text::Other),
            ("rollback and", Text::Other),
        ] {
            assert_eq!(read(text.as_bytes()), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(parts in proptest::collection::vec(prop::sample::select(vec![
            "rollback", "commit", " ", ";", "to", "\"", "--", "/*", "and", "chain", "a", "prepare", "transaction", "'",
        ]), 0..12)) {
            read(parts.concat().as_bytes());
        }
    }
}
