//! The unnamed prepared statement: no catalog shows it, it survives Sync, and it dies with its
//! connection. So its last Parse is kept here and sent again after a move.

use std::collections::VecDeque;

/// Longest Parse body that is kept; a longer one is the blocker `unnamed_statement`.
pub const MAX_KEPT: usize = 64 * 1024;

/// Tracks the unnamed statement by what was sent and what the server said to it.
#[derive(Debug, Default)]
pub struct Unnamed {
    current: Current,
    /// Parse messages whose answer is still owed, in order.
    pending: VecDeque<Kept>,
    /// A buffer to use again.
    spare: Vec<u8>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Current {
    #[default]
    None,
    Kept(Vec<u8>),
    TooLarge,
}

#[derive(Debug)]
enum Kept {
    Body(Vec<u8>),
    TooLarge,
}

impl Unnamed {
    /// A Parse of the unnamed statement was sent. `None`: its body is longer than [`MAX_KEPT`].
    pub fn sent(&mut self, body: Option<&[u8]>) {
        self.pending.push_back(match body {
            Some(body) => {
                let mut kept = std::mem::take(&mut self.spare);
                kept.clear();
                kept.extend_from_slice(body);
                Kept::Body(kept)
            }
            None => Kept::TooLarge,
        });
    }

    /// The server answered the oldest pending Parse with ParseComplete.
    pub fn confirmed(&mut self) {
        if let Some(kept) = self.pending.pop_front() {
            self.replace(match kept {
                Kept::Body(body) => Current::Kept(body),
                Kept::TooLarge => Current::TooLarge,
            });
        }
    }

    /// The server tried the oldest pending Parse and refused it: the old statement is gone, too.
    pub fn failed(&mut self) {
        self.skipped();
        self.dropped();
    }

    /// The server skipped the oldest pending Parse after an earlier error: nothing changed.
    pub fn skipped(&mut self) {
        if let Some(Kept::Body(body)) = self.pending.pop_front() {
            self.spare = body;
        }
    }

    /// A simple Query or a Close destroyed the statement.
    pub fn dropped(&mut self) {
        if self.current != Current::None {
            self.replace(Current::None);
        }
    }

    /// The server is gone: what was not answered may have been read or not.
    pub fn lost(&mut self) {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.dropped();
        }
    }

    /// The Parse body to send again on a new connection.
    pub fn to_restore(&self) -> Option<&[u8]> {
        match &self.current {
            Current::Kept(body) => Some(body),
            Current::None | Current::TooLarge => None,
        }
    }

    /// The statement exists and is too large to keep.
    pub fn is_too_large(&self) -> bool {
        self.current == Current::TooLarge
    }

    fn replace(&mut self, with: Current) {
        if let Current::Kept(old) = std::mem::replace(&mut self.current, with) {
            self.spare = old;
        }
        if self.spare.capacity() > 4096 {
            self.spare = Vec::new();
        }
    }
}
