//! What a MySQL or MariaDB session owes, holds and can be restored from.

mod client;
pub mod grammar;
pub mod hints;
pub mod kill;
mod lexical;
pub mod machine;
pub mod mask;
pub mod refuse;
mod replies;
pub mod statements;
pub mod tracker;

#[cfg(test)]
mod tests;
