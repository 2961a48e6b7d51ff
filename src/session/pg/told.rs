//! What rows a client was told that its named prepared statements have. Decoders are made of that, so a
//! statement that is made again elsewhere and has other rows by now must not answer with them.

use super::restore::row_shape;
use super::snapshot::Snapshot;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Most statements that are remembered of one session.
const MAX: usize = 1000;

/// Shapes of rows ([`row_shape`]) by statement, and the questions that are still to be answered.
#[derive(Debug, Default, Clone)]
pub struct Told {
    shapes: HashMap<Box<[u8]>, u64>,
    /// Describe messages without an answer yet, in order; `None` for the unnamed statement.
    pending: VecDeque<Option<Box<[u8]>>>,
}

impl Told {
    /// A Describe of this statement was sent.
    pub fn asked(&mut self, name: &[u8]) {
        self.pending
            .push_back((!name.is_empty()).then(|| name.into()));
    }

    /// The answer to the oldest Describe is looked at.
    pub fn wants(&self) -> bool {
        matches!(self.pending.front(), Some(Some(_)))
    }

    /// RowDescription or NoData came for the oldest Describe; `whole`: the body is not cut.
    pub fn answered(&mut self, (tag, body): (u8, &[u8]), whole: bool) {
        let Some(Some(name)) = self.pending.pop_front() else {
            return;
        };
        if whole && (self.shapes.len() < MAX || self.shapes.contains_key(&name)) {
            self.shapes.insert(name, row_shape(tag, body));
        } else {
            self.shapes.remove(&name);
        }
    }

    /// The oldest Describe gets no answer: there was an error.
    pub fn unanswered(&mut self) {
        self.pending.pop_front();
    }

    /// A Parse or a Close of this statement was sent: what was told is of no use any more.
    pub fn replaced(&mut self, name: &[u8]) {
        if !self.shapes.is_empty() {
            self.shapes.remove(name);
        }
    }

    /// What the client was told of this statement.
    pub(super) fn shape(&self, name: &[u8]) -> Option<u64> {
        self.shapes.get(name).copied()
    }

    /// No answer comes any more.
    pub fn lost(&mut self) {
        self.pending.clear();
    }

    /// Statements of `snapshot` whose rows are not what the client was told, when made again.
    pub fn changed(&self, snapshot: &Snapshot, made: &BTreeMap<Box<str>, u64>) -> Vec<Box<str>> {
        let prepared = &snapshot.state().prepared;
        // SQL EXECUTE tells the rows each time.
        let by_protocol = prepared.iter().filter(|p| !p.from_sql);
        let differs = |name: &str| {
            let (told, now) = (self.shapes.get(name.as_bytes()), made.get(name));
            told.zip(now).is_some_and(|(told, now)| told != now) && snapshot.is_original(name)
        };
        by_protocol
            .filter(|p| differs(&p.name))
            .map(|p| p.name.clone())
            .collect()
    }
}
