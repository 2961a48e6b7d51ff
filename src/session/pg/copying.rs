//! COPY as the machine follows it: from the client, and in both directions at once (replication).

use super::machine::{INSIDE_COPY, Machine, Owed};
use crate::wire::pg::frame::Header;

impl Machine {
    /// A client's frame while the server reads COPY data.
    pub(super) fn in_copy(&mut self, header: Header) {
        match header.tag {
            b'd' => self.copy_data = true,
            b'c' => self.copy_in = false,
            b'f' if !self.copy_both => self.copy_in = false,
            // With a body it is an error if the COPY has failed by then.
            b'H' if !self.copy_both && header.body == 0 => {}
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
