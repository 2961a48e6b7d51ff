//! Positions in PostgreSQL's write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub(super) struct Lsn(pub(super) u64);

impl FromStr for Lsn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (high, low) = text.trim().split_once('/').ok_or(())?;
        let part = |text: &str| u32::from_str_radix(text, 16).map_err(|_| ());
        Ok(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_ordered_and_wrong_ones_refused() {
        let at = |text: &str| text.parse::<Lsn>();
        assert!(at("0/FFFFFFFF").unwrap() < at("1/0").unwrap());
        assert_eq!(at("1/A0000028").unwrap().to_string(), "1/A0000028");
        for wrong in ["", "1", "1/", "/1", "1/1/1", "g/1", "1/100000000"] {
            assert_eq!(at(wrong), Err(()), "{wrong}");
        }
    }
}
