//! What the machine makes of messages inside COPY FROM STDIN, and of those that are sent around one.

use super::machine::{INSIDE_COPY, Machine, Owed};
use crate::wire::pg::frame::Header;

impl Machine {
    /// A client's frame while the server reads COPY data; true when that is all it means.
    pub(super) fn in_copy(&mut self, header: Header) -> bool {
        match header.tag {
            // With a body it is an error if the COPY has failed by then.
            b'H' if header.body == 0 => {}
            b'd' => self.copy_data = true,
            b'S' => self.swallow_sync(),
            b'c' | b'f' => self.copy_in = false,
            _ => {
                self.copy_in = false;
                self.ambiguous(INSIDE_COPY);
            }
        }
        true
    }

    pub(super) fn swallow_sync(&mut self) {
        let (before, behind) = &mut self.swallowed;
        *(if self.copy_data { behind } else { before }) += 1;
    }

    /// CopyInResponse: what was already sent behind the COPY is read by the COPY.
    pub(super) fn copy_in_begins(&mut self) {
        let Some(copy @ (Owed::Query | Owed::Execute)) = self.owed.pop_front() else {
            return self.ambiguous("CopyInResponse without a statement");
        };
        self.copy_in = true;
        self.copy_data = false;
        self.swallowed = (0, 0);
        while let Some(next) = self.owed.pop_front() {
            match next {
                Owed::Sync => self.swallow_sync(),
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
}
