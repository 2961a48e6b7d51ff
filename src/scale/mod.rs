//! When and how a cluster changes its capacity.
