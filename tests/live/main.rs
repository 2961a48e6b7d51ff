//! Tests against real servers. Each starts its own PostgreSQL and its own proxy on ports of their own, in
//! directories that go away with them. The files named `ms*` follow the "must show" list of the first
//! vertical slice; `edges` has what safety demands beyond it; `harness` proves that the harness itself finds losses, doubles and differences.
//!
//! `SLACKWATER_TEST_FULL=1` runs the long variants: 50 events instead of 5, 1,000 idle sessions, a
//! transaction of 60 s.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::large_futures,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::return_self_not_must_use,
    clippy::duration_suboptimal_units,
    clippy::type_complexity,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod cases;
mod cases_faults;
mod clock;
mod differential;
mod edges;
mod fault_kills;
mod fault_network;
mod fault_parked;
mod fault_poolers;
mod fault_rules;
mod front;
mod front_abuse;
mod harness;
mod logins;
mod ms10_rest;
mod ms11_messages;
mod ms1_dev;
mod ms2_scale;
mod ms3_stall;
mod ms4_state;
mod ms5_blockers;
mod ms6_long_transaction;
mod ms7_idle;
mod ms8_drivers;
mod mysql_servers;
mod operation;
mod protocol;
mod proxy_header;
mod refusals;
mod rehearsal;
mod replication;
mod restored;
mod safety;
mod standby;
mod standby_kills;
mod static_two;
mod strangers;
mod support;
