//! Tests of MySQL and MariaDB against real servers. Each starts its own server and its own proxy on ports of their own,
//! in directories that go away with them. The files named `ms*` follow the "must show" list.
//!
//! `SLACKWATER_TEST_MYSQL` names the server: `mariadb` (as installed), `mariadb-11.8`, `mysql-9.7`.
//! `SLACKWATER_TEST_FULL=1` runs the long variants.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::duration_suboptimal_units,
    clippy::result_large_err,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod cases;
mod cases_moves;
mod diagnostics;
mod differential;
mod fault_kills;
mod faults;
mod ms1_scale;
mod ms1_stall;
mod ms2_state;
mod ms3_blockers;
mod ms4_versions;
mod ms6_drivers;
mod proxy_header;
mod safety;
mod standby;
mod static_two;
mod support;
mod zstd;
