//! What a promoted server has to answer before it serves.

use super::super::{QueryError, Rows, ServerIdentity};
use super::files::LogEnd;
use super::{control, settings};
use crate::backend::{Capacity, started_us};
use std::fmt;
use std::time::Duration;

/// How long parts of a switch to a standby took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromotionTimes {
    /// From the signal to the end of the old primary.
    pub stop: Duration,
    /// From its end to the proof that the standby has everything, and the intent on disk.
    pub proof: Duration,
    /// From the signal to its first write.
    pub promotion: Duration,
}

impl fmt::Display for PromotionTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        write!(
            f,
            "{:.1} + {:.1} + {:.1} ms",
            ms(self.stop),
            ms(self.proof),
            ms(self.promotion)
        )
    }
}

/// Who answers, on which timeline, and that it can write: the message lands in its log, and nowhere else.
pub(super) const PROOF_SQL: &str = concat!(
    "SELECT \
    (SELECT c.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() c), \
    ",
    started_us!(),
    "::pg_catalog.text, \
    pg_catalog.current_setting('server_version_num'), \
    pg_catalog.current_setting('cluster_name'), \
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8), \
    pg_catalog.pg_logical_emit_message(true, 'slackwater', 'serves')::pg_catalog.text"
);

/// Compares who wrote with what was decided.
pub(super) fn compare(rows: &Rows, end: LogEnd) -> Result<(ServerIdentity, Capacity), QueryError> {
    let other = |why: &str| QueryError::Other(format!("its answer after its promotion: {why}"));
    let Some(
        [
            Some(system),
            Some(started),
            Some(version),
            Some(name),
            Some(timeline),
            Some(_written),
        ],
    ) = rows.first().map(Vec::as_slice)
    else {
        return Err(other("it can't be read"));
    };
    if control::system_identifier(system) != Some(end.system_identifier) {
        return Err(other("it is of another system"));
    }
    let timeline = u32::from_str_radix(timeline, 16).map_err(|_| other("no timeline"))?;
    if timeline <= end.timeline {
        return Err(other("it is on the old timeline: it was not promoted"));
    }
    let capacity =
        settings::capacity_of(name).ok_or_else(|| other("it was not started by slackwater"))?;
    let identity = ServerIdentity {
        system_identifier: system.clone(),
        started_at: started.clone(),
        server_version_num: version.parse().map_err(|_| other("no version"))?,
        in_recovery: false,
    };
    Ok((identity, capacity))
}

#[cfg(test)]
mod tests {
    use super::super::super::lsn::Lsn;
    use super::*;

    #[test]
    fn only_the_promoted_server_itself_serves() {
        let end = LogEnd {
            system_identifier: 7,
            checkpoint: Lsn(1),
            timeline: 10,
        };
        let row = |values: [&str; 6]| vec![values.map(|v| Some(v.to_owned())).to_vec()];
        let good = ["7", "1", "150004", "slackwater:4", "0000000B", "0/1"];
        let (identity, capacity) = compare(&row(good), end).unwrap();
        assert_eq!((identity.started_at.as_str(), capacity), ("1", Capacity(4)));
        assert!(!identity.in_recovery);
        for (at, value, why) in [
            (0, "8", "another system"),
            (2, "x", "no version"),
            (3, "main", "not started by slackwater"),
            (4, "0000000A", "old timeline"),
            (4, "", "no timeline"),
        ] {
            let mut bad = good;
            bad[at] = value;
            let error = compare(&row(bad), end).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(compare(&Vec::new(), end).is_err());
    }
}
