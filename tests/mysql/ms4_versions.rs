//! The short tests on MariaDB 11.8 and MySQL 9.7.

use crate::support::server::{Kind, on_another_server};
use crate::support::sized;

/// What is run there: names of tests contain one of these. Those of lost servers, and of much load, only in the
/// long variant.
fn short() -> &'static [&'static str] {
    sized(
        &[
            "ms2_",
            "ms3_",
            "case_",
            "safety_18",
            "fault_a_server_that_is_away",
        ],
        &["ms1_standby_", "ms2_", "ms3_", "case_", "safety_"],
    )
}

#[test]
fn ms4_the_short_tests_pass_on_mariadb_11_8() {
    on_another_server(Kind::MariaDb118, short());
}

#[test]
fn ms4_the_short_tests_pass_on_mysql_9_7() {
    on_another_server(Kind::MySql97, short());
}
