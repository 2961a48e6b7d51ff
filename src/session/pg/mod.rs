//! What a PostgreSQL session owes, holds and can be restored from.

pub mod findings;
pub mod hints;
pub mod machine;
pub mod probe;
pub mod recent;
pub mod restore;
pub mod snapshot;
pub mod unnamed;
pub mod watched;
