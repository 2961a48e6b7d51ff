//! What a PostgreSQL session owes, holds and can be restored from.
