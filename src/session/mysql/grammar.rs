//! What of the agreed capabilities decides how replies are built.

use super::lexical::Modes;
pub use crate::wire::mysql::handshake::Family;
use crate::wire::mysql::reply::{EOF, Status};

/// Capabilities of one session, equal on both legs but for session tracking, which the server's leg always has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grammar {
    /// The server's family.
    pub family: Family,
    /// Rows end with an OK packet, not with EOF.
    pub deprecate_eof: bool,
    /// The client asked for session tracking.
    pub client_tracks: bool,
    /// The client may send several statements in one text.
    pub multi_statements: bool,
    /// MariaDB: descriptions of columns may be left out.
    pub cache_metadata: bool,
    /// MariaDB: descriptions of columns have a part more.
    pub extended_metadata: bool,
}

impl Grammar {
    /// A packet of this length that begins with [`EOF`] ends rows, and is no row.
    pub const fn ends_rows(self, len: usize) -> bool {
        if self.deprecate_eof {
            len < crate::wire::mysql::packet::MAX_PAYLOAD
        } else {
            len < 9
        }
    }

    /// The same, its first byte looked at as well.
    pub const fn is_end(self, first: u8, len: usize) -> bool {
        first == EOF && self.ends_rows(len)
    }

    /// How texts are read by what the server last said.
    pub(super) const fn modes(self, status: Status, ansi_quotes: Option<bool>) -> Modes {
        Modes {
            ansi_quotes: match self.family {
                Family::MariaDb => Some(status.has(Status::ANSI_QUOTES)),
                Family::MySql => ansi_quotes,
            },
            no_backslash_escapes: status.has(Status::NO_BACKSLASH_ESCAPES),
        }
    }
}
