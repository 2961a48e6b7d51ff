//! What OK packets tell of a session besides their flags, and what of that the client may read.

use crate::wire::mysql::packet::{Reader, put_lenenc_bytes};
use crate::wire::mysql::reply::{change, changes};
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// Longest text of a transaction's characteristics that is kept.
const MAX_CHARACTERISTICS: usize = 4096;

/// The variable that is switched on for Slackwater's own use.
pub const TRACKING_VARIABLE: &str = "session_track_transaction_info";

/// What servers are told after a login, and after each reset.
pub const TRACKING_SQL: &str = "SET SESSION session_track_transaction_info='CHARACTERISTICS'";

/// What the client wants to be told of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Wanted {
    /// Nothing.
    #[default]
    Off,
    /// The state.
    State,
    /// The state, and the statements that make it.
    Characteristics,
}

impl Wanted {
    /// The variable's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::State => "STATE",
            Self::Characteristics => "CHARACTERISTICS",
        }
    }

    /// Reads the variable's value.
    pub fn parse(value: &[u8]) -> Option<Self> {
        [Self::Off, Self::State, Self::Characteristics]
            .into_iter()
            .find(|w| w.as_str().as_bytes().eq_ignore_ascii_case(value))
    }
}

/// What was told last.
#[derive(Debug, Default)]
pub struct Tracked {
    /// The current database, empty when there is none; `None`: it is not known.
    pub database: Option<Arc<[u8]>>,
    /// The statements that make the transaction, or the next one, again.
    pub characteristics: Bytes,
    /// They were longer than what is kept.
    pub too_long: bool,
    /// LOCK TABLES is in effect.
    pub tables_locked: bool,
    /// Counts what changed the meaning of texts.
    pub era: u32,
    /// What the client wants to read.
    pub wanted: Wanted,
    /// A command of the client's own changed [`TRACKING_VARIABLE`]: it is to be set again.
    pub overruled: bool,
}

impl Tracked {
    /// Takes what an OK packet told. `own`: Slackwater's own command was answered.
    pub fn take(&mut self, block: &[u8], own: bool) {
        for (kind, content) in changes(block) {
            let mut reader = Reader::new(content);
            match kind {
                change::VARIABLE => {
                    while let (Ok(name), Ok(value)) = (reader.lenenc_bytes(), reader.lenenc_bytes())
                    {
                        self.variable(name, value, own);
                    }
                }
                change::SCHEMA => {
                    if let Ok(name) = reader.lenenc_bytes()
                        && self.database.as_deref() != Some(name)
                    {
                        self.database = Some(name.into());
                    }
                }
                change::TRX_CHARACTERISTICS => {
                    if let Ok(text) = reader.lenenc_bytes() {
                        self.too_long = text.len() > MAX_CHARACTERISTICS;
                        if *self.characteristics != *text {
                            let kept = text.get(..MAX_CHARACTERISTICS).unwrap_or(text);
                            self.characteristics = Bytes::copy_from_slice(kept);
                        }
                    }
                }
                change::TRX_STATE => {
                    if let Ok(letters) = reader.lenenc_bytes() {
                        self.tables_locked = letters.last() == Some(&b'L');
                    }
                }
                _ => {}
            }
        }
    }

    fn variable(&mut self, name: &[u8], value: &[u8], own: bool) {
        if name.starts_with(b"character_set_")
            || name.starts_with(b"collation_")
            || name == b"sql_mode"
        {
            self.era = self.era.wrapping_add(1);
        }
        if name == TRACKING_VARIABLE.as_bytes() && !own {
            self.wanted = Wanted::parse(value).unwrap_or(self.wanted);
            self.overruled = self.wanted != Wanted::Characteristics;
        }
    }

    /// No transaction is open: what began one is over, also where nobody said so. (MariaDB does not tell of a transaction that
    /// it has rolled back by itself.) What is left is for the next one.
    pub fn forget_transaction(&mut self) {
        let text = &self.characteristics;
        let begins = |word: &[u8]| memchr::memmem::find(text, word).is_some();
        if !text.is_empty() && (begins(b"START TRANSACTION") || begins(b"XA START")) {
            self.characteristics = Bytes::new();
            self.too_long = false;
        }
    }

    /// The session is as after a login.
    pub fn reset(&mut self, database: Option<Arc<[u8]>>) {
        *self = Self {
            database,
            era: self.era.wrapping_add(1),
            ..Self::default()
        };
    }

    /// Writes what of a block the client may read.
    pub fn put_filtered(&self, out: &mut BytesMut, block: &[u8]) {
        for (kind, content) in changes(block) {
            let hidden = match kind {
                change::TRX_STATE => self.wanted < Wanted::State,
                change::TRX_CHARACTERISTICS => self.wanted < Wanted::Characteristics,
                // It would lead the client past Slackwater.
                change::VARIABLE => is_redirect(content),
                _ => false,
            };
            if !hidden {
                out.put_u8(kind);
                put_lenenc_bytes(out, content);
            }
        }
    }
}

fn is_redirect(content: &[u8]) -> bool {
    Reader::new(content).lenenc_bytes() == Ok(b"redirect_url")
}

/// Something in the block is not for every client.
pub(super) fn hides_something(block: &[u8]) -> bool {
    changes(block).any(|(kind, content)| match kind {
        change::TRX_STATE | change::TRX_CHARACTERISTICS => true,
        change::VARIABLE => is_redirect(content),
        _ => false,
    })
}
