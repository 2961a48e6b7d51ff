//! When and how a cluster changes its capacity.

pub mod coordinator;
pub mod event;
pub mod plan;
