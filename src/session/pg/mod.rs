//! What a PostgreSQL session owes, holds and can be restored from.

/// When the server started, in microseconds since 1970: an expression of type bigint. No two starts of a server, and no two
/// copies of its data, have the same.
macro_rules! started_us {
    () => {
        "(EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000::pg_catalog.numeric)::pg_catalog.int8"
    };
}
pub(crate) use started_us;

/// The same, asked alone.
pub const STARTED_AT_SQL: &str = concat!("SELECT ", started_us!(), "::pg_catalog.text");

pub mod aborted;
pub mod absent;
pub mod arrival;
mod copy_error;
mod copying;
mod exit;
mod extended;
pub mod findings;
pub mod hints;
mod lexical;
pub mod machine;
pub mod made;
pub mod mask;
pub mod mend;
mod owed;
pub mod probe;
mod probe_sql;
pub mod restore;
pub mod since;
pub mod snapshot;
pub mod told;
pub mod unnamed;
pub mod walsender;
pub mod watched;

#[cfg(test)]
mod tests;

pub use super::recent;
pub use probe_sql::CATALOG_NAMES_SQL;
