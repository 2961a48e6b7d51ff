//! What a MySQL or MariaDB session owes, holds and can be restored from.

mod answers;
pub mod arrival;
mod batch;
mod client;
pub mod findings;
pub mod grammar;
pub mod held;
pub mod hints;
mod judge;
pub mod kill;
mod lexical;
pub mod machine;
pub mod mask;
mod order;
pub mod probe;
mod probe_sql;
pub mod refuse;
mod replies;
pub mod restore;
pub mod side;
pub mod snapshot;
pub mod statements;
pub mod tracker;
mod values;

#[cfg(test)]
mod tests;
