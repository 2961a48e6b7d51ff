//! The machine against what PostgreSQL does: scripts of frames with what must be known after each line,
//! and a model of the server under random traffic.

mod model;
mod script;
