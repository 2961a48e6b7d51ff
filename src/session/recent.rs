//! The last few statements of a session since it was last found clean: what a blocker is blamed on.

use std::collections::VecDeque;
use std::time::Instant;

/// Bytes kept of a statement.
pub const STATEMENT_HEAD: usize = 160;

/// Statements kept.
const STATEMENTS: usize = 8;

/// A ring of statement beginnings.
#[derive(Debug, Default)]
pub struct Recent {
    ring: VecDeque<Statement>,
}

/// One statement as it was sent.
#[derive(Debug, Clone)]
pub struct Statement {
    /// When it was sent.
    pub at: Instant,
    /// The first [`STATEMENT_HEAD`] bytes of its text, or the name of a prepared statement.
    pub text: Vec<u8>,
    /// `text` is the name of a prepared statement.
    pub is_name: bool,
}

impl Recent {
    /// Notes a statement; the oldest one makes room.
    pub fn note(&mut self, at: Instant, text: &[u8], is_name: bool) {
        let mut statement = if self.ring.len() >= STATEMENTS {
            self.ring
                .pop_front()
                .unwrap_or_else(|| Statement::empty(at))
        } else {
            Statement::empty(at)
        };
        statement.at = at;
        statement.is_name = is_name;
        statement.text.clear();
        statement
            .text
            .extend_from_slice(text.get(..STATEMENT_HEAD).unwrap_or(text));
        self.ring.push_back(statement);
    }

    /// The newest one.
    pub fn last(&self) -> Option<&Statement> {
        self.ring.back()
    }

    /// The newest one whose text has one of `words` in it (lower case), else the newest one.
    pub fn suspect(&self, words: &[&str]) -> Option<&Statement> {
        self.ring
            .iter()
            .rev()
            .find(|s| {
                let text = String::from_utf8_lossy(&s.text).to_lowercase();
                words.iter().any(|w| text.contains(w))
            })
            .or_else(|| self.last())
    }

    /// Forgets all, memory included.
    pub fn clear(&mut self) {
        self.ring = VecDeque::new();
    }
}

impl Statement {
    fn empty(at: Instant) -> Self {
        Self {
            at,
            text: Vec::new(),
            is_name: false,
        }
    }
}
