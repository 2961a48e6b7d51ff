//! What a PostgreSQL session owes, holds and can be restored from.

pub mod findings;
pub mod hints;
pub mod probe;
pub mod restore;
pub mod snapshot;
