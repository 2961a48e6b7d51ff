//! The harness, tried straight on PostgreSQL: it must find what it is there to find.

use crate::support::ledger::Ledger;
use crate::support::pgbench::{self, Load};
use crate::support::postgres::Postgres;
use crate::support::script::{self, Direct};
use crate::support::wire::Client;
use crate::support::{SOON, wait_until};

#[test]
fn ledger_accepts_a_server_that_keeps_its_word() {
    let server = Postgres::start(&[]);
    let ledger = Ledger::start(&server.admin(), &server.app(), 6);
    wait_until("rows are written", SOON, || ledger.written() > 500);
    let told = ledger.stop();
    told.must_be_right(&server.admin());
}

#[test]
fn ledger_finds_what_was_lost_and_what_was_doubled() {
    let server = Postgres::start(&[]);
    let ledger = Ledger::start(&server.admin(), &server.app(), 3);
    let mut client = Client::connect(&server.admin()).unwrap();
    wait_until("each client has written", SOON, || {
        client.value("select count(distinct client) from ledger where n = 3") == "3"
    });
    let told = ledger.stop();
    server.run(&["delete from ledger where client = 1 and n = 3"]);
    server.run(&["insert into ledger select * from ledger where client = 2 and n = 2"]);
    server.run(&["insert into ledger values (3, 1000000)"]);
    let mut faults = told.faults(&server.admin());
    faults.sort();
    assert_eq!(
        faults,
        [
            "client 1: 3 was acknowledged and is lost",
            "client 2: 2 is there 2 times",
            "client 3: 1000000 is there and its client was told that it failed",
        ]
    );
}

#[test]
fn ledger_knows_what_it_was_never_told() {
    let server = Postgres::start(&[]);
    let ledger = Ledger::start(&server.admin(), &server.app(), 6);
    for _ in 0..5 {
        let before = ledger.written();
        wait_until("rows are written", SOON, || ledger.written() > before + 100);
        server
            .run(&["select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'"]);
    }
    let before = ledger.written();
    wait_until("clients come back", SOON, || {
        ledger.written() > before + 100
    });
    let told = ledger.stop();
    assert!(!told.errors.is_empty(), "ended connections are errors");
    assert!(
        told.faults(&server.admin()).is_empty(),
        "{:?}",
        told.faults(&server.admin())
    );
}

#[test]
fn pgbench_counts_and_complains() {
    let mut server = Postgres::start(&[]);
    pgbench::fill(&server);
    let load = Load::start(server.port(), "prepared", 4);
    assert!(load.stop() > 0);
    let load = Load::start(server.port(), "simple", 4);
    wait_until("the load is there", SOON, || {
        let mut client = Client::connect(&server.admin()).unwrap();
        client.value("select count(*) from pg_stat_activity where application_name = 'pgbench'")
            == "4"
    });
    server.stop();
    wait_until("the load notices", SOON, || load.is_over());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| load.stop()));
    assert!(outcome.is_err(), "a lost server is an error");
}

#[test]
fn a_script_fails_on_another_answer() {
    let server = Postgres::start(&[]);
    let mut client = Client::connect(&server.app()).unwrap();
    let heard = script::run("Q \"select 1\"\n> T D C Z(I)", &mut client, &mut Direct);
    assert_eq!(heard.len(), 4);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        script::run("Q \"selec 1\"\n> T D C Z(I)", &mut client, &mut Direct)
    }));
    let said = outcome.expect_err("must fail");
    let text = said.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.contains("E(42601)"), "{text}");
}
