//! PostgreSQL on the client's side of a session.

mod ahead;
mod blame;
mod carry;
mod end;
mod engine;
mod front;
mod state;

pub(super) use end::server_words;
pub(super) use engine::{Login as PgLogin, Seen as PgSeen, process_of};
pub use front::{Pg, ProcessNames};
