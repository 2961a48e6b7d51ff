//! COPY as the machine follows it: from the client, and in both directions at once (replication).

use super::machine::{Machine, Owed};

/// The server ends the session (before 14: the COPY) when a COPY reads this; a COPY that has failed by
/// then leaves it to be run.
const INSIDE_COPY: &str = "a message inside COPY that is no part of it";

impl Machine {
    /// A client's frame while the server reads COPY data.
    pub(super) fn in_copy(&mut self, tag: u8) {
        match tag {
            b'd' => self.copy_data = true,
            b'c' => self.copy_in = false,
            b'f' if !self.copy_both => self.copy_in = false,
            b'H' if !self.copy_both => {}
            b'S' if !self.copy_both => self.swallow_sync(),
            // A stream of replication takes nothing but data and its end.
            _ => {
                self.copy_in = false;
                self.ambiguous(INSIDE_COPY);
            }
        }
    }

    fn swallow_sync(&mut self) {
        let (before, behind) = &mut self.swallowed;
        *(if self.copy_data { behind } else { before }) += 1;
    }

    /// CopyInResponse, or CopyBothResponse: what was already sent behind the COPY is read by the COPY.
    pub(super) fn copy_in_begins(&mut self, both: bool) {
        let Some(copy @ (Owed::Query | Owed::Execute)) = self.owed.pop_front() else {
            return self.ambiguous("COPY without a statement");
        };
        self.copy_in = true;
        self.copy_out = both;
        self.copy_both = both;
        self.copy_data = false;
        self.swallowed = (0, 0);
        while let Some(next) = self.owed.pop_front() {
            match next {
                Owed::Sync if !both => self.swallow_sync(),
                Owed::CopyData => self.copy_data = true,
                Owed::CopyEnd => {
                    self.copy_in = false;
                    break;
                }
                _ => {
                    self.copy_in = false;
                    self.ambiguous(INSIDE_COPY);
                    break;
                }
            }
        }
        // The Sync that was taken for the end of this batch may be one that the COPY swallows.
        if copy == Owed::Execute && !self.owed.iter().any(|o| o.ends_batch()) {
            self.batch_open = true;
        }
        self.owed.push_front(copy);
    }

    /// Outside COPY its messages are ignored by the server.
    pub(super) fn drop_copy(&mut self) {
        while self.owed.front().is_some_and(|o| o.is_copy()) {
            self.owed.pop_front();
        }
    }

    /// No COPY runs any more, in either direction.
    pub(super) fn copy_ends(&mut self) {
        self.copy_in = false;
        self.copy_out = false;
        self.copy_both = false;
    }
}
