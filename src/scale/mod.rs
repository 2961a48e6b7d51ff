//! When and how a cluster changes its capacity.

mod ahead;
mod barrier;
pub mod coordinator;
pub mod event;
pub mod plan;
mod rolling;
pub mod run;
#[cfg(test)]
mod tests;
