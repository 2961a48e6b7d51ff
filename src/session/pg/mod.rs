//! What a PostgreSQL session owes, holds and can be restored from.

pub mod findings;
pub mod hints;
mod lexical;
pub mod mask;
pub mod probe;
mod probe_sql;
pub mod restore;
pub mod snapshot;

pub use probe_sql::CATALOG_NAMES_SQL;
