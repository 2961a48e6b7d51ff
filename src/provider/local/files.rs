//! What is remembered on disk beside the servers' own data: where the servers are, and what was begun.

use super::super::gtid::Gtids;
use super::super::lsn::Lsn;
use super::mysql::Event;
use super::settings::Floors;
use crate::backend::{Capacity, Engine};

/// One of the two places for a server: a data directory, a port and a log. A standby is made in the one
/// that the primary has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Home {
    #[default]
    First,
    Second,
}

impl Home {
    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// The name of its data directory.
    pub(super) fn directory(self, engine: Engine) -> &'static str {
        match (self, engine.speaks_mysql()) {
            (Self::First, false) => "pgdata",
            (Self::Second, false) => "pgdata.2",
            (Self::First, true) => "data",
            (Self::Second, true) => "data.2",
        }
    }
}

/// A change of capacity that was prepared and did not end yet.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Intent {
    pub(super) from: Capacity,
    pub(super) to: Capacity,
    /// There from just before a standby is promoted: from then on there is no way but forward. Without it
    /// nothing was promoted, and the old primary may be started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) promotion: Option<Promotion>,
}

impl Intent {
    /// A change that is begun, with nothing promoted.
    pub(super) fn new(from: Capacity, to: Capacity) -> Self {
        Self {
            from,
            to,
            promotion: None,
        }
    }

    /// The promotion that was decided and is not known to have ended, with the primary in `primary`.
    pub(super) fn pending(&self, primary: Home) -> Option<&Promotion> {
        self.promotion.as_ref().filter(|p| p.home != primary)
    }
}

/// What was decided: which standby is promoted, and where the log of the old primary ends.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Promotion {
    /// Where the standby is.
    pub(super) home: Home,
    #[serde(flatten)]
    pub(super) end: End,
}

/// The end of the old primary's log, as it was proven to have been received.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum End {
    Log(LogEnd),
    Binlog(BinlogEnd),
}

/// Of PostgreSQL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct LogEnd {
    /// Of both servers.
    pub(super) system_identifier: u64,
    /// The old primary's shutdown checkpoint, the last record of its log.
    pub(super) checkpoint: Lsn,
    /// The old primary's timeline; the standby's is a later one once it is promoted.
    pub(super) timeline: u32,
}

/// Of MySQL's or MariaDB's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct BinlogEnd {
    /// All transactions of the old primary.
    pub(super) gtids: Gtids,
    /// The events that are to run. (A standby's copies of them are switched off.)
    pub(super) events: Vec<Event>,
    /// Whether the old primary's event scheduler was on.
    pub(super) event_scheduler: bool,
}

/// What is remembered of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct ServerFile {
    pub(super) port: u16,
    /// Of the second home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) second_port: Option<u16>,
    /// Which home has the primary.
    #[serde(default)]
    pub(super) primary: Home,
    /// Least values that a standby may have.
    #[serde(default)]
    pub(super) floors: Floors,
}

impl ServerFile {
    pub(super) fn port(&self, home: Home) -> Option<u16> {
        match home {
            Home::First => Some(self.port),
            Home::Second => self.second_port,
        }
    }

    pub(super) fn set_port(&mut self, home: Home, port: u16) {
        match home {
            Home::First => self.port = port,
            Home::Second => self.second_port = Some(port),
        }
    }
}
