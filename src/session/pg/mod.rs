//! What a PostgreSQL session owes, holds and can be restored from.

pub mod aborted;
pub mod arrival;
mod copy_error;
mod copying;
mod exit;
mod extended;
pub mod findings;
pub mod hints;
mod lexical;
pub mod machine;
pub mod mask;
pub mod mend;
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
