//! What is asked of a login ahead once its server serves: who answers, and whether anything has changed that a login
//! would have brought. It costs the server a fraction of a check.

use super::probe::ServerFacts;

/// One row of text: process, start of the server, whether it recovers, and one value that stands for who the session is
/// and for all that roles and databases set.
pub const ARRIVAL_SQL: &str = concat!(
    "SELECT pg_catalog.pg_backend_pid(), ",
    started_us!(),
    ", \
pg_catalog.pg_is_in_recovery(), \
pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(',', pg_catalog.quote_ident(current_user), \
pg_catalog.quote_ident(session_user), pg_catalog.quote_ident(pg_catalog.current_setting('role')), \
(SELECT pg_catalog.string_agg(s::pg_catalog.text, ',' ORDER BY s::pg_catalog.text) FROM pg_catalog.pg_db_role_setting s)), 'UTF8')), 'hex')"
);

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Who answers.
    pub server: ServerFacts,
    /// Another value when something has changed.
    pub digest: Box<str>,
}

impl Arrival {
    /// Reads the row.
    pub fn parse(row: &[Option<&[u8]>]) -> Option<Self> {
        let text = |at: usize| std::str::from_utf8((*row.get(at)?)?).ok();
        Some(Self {
            server: ServerFacts {
                pid: text(0)?.parse().ok()?,
                started_us: text(1)?.parse().ok()?,
                in_recovery: text(2)? != "f",
            },
            digest: text(3).filter(|digest| !digest.is_empty())?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_lacks_something_tells_nothing() {
        let row = [&b"12"[..], b"1700000000000000", b"f", b"ab"].map(Some);
        let arrival = Arrival::parse(&row).unwrap();
        assert!(!arrival.server.in_recovery);
        assert_eq!((arrival.server.pid, &*arrival.digest), (12, "ab"));
        for at in 0..row.len() {
            let mut lacks = row;
            lacks[at] = None;
            assert_eq!(Arrival::parse(&lacks), None, "{at}");
            lacks[at] = Some(b"");
            assert_eq!(Arrival::parse(&lacks).is_some(), at == 2, "{at}");
            assert_eq!(Arrival::parse(&row[..at]), None);
        }
        let recovers = [&b"12"[..], b"1", b"t", b"ab"].map(Some);
        assert!(Arrival::parse(&recovers).unwrap().server.in_recovery);
    }
}
