//! The system's clock jumps: only monotonic clocks decide, so nobody is to notice. The proxy runs under `libfaketime`,
//! which moves the system's time and leaves the monotonic clock alone.

use crate::support::ledger::Ledger;
use crate::support::postgres::Postgres;
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{EVENT, SOON, skipped, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// For programs with several threads.
fn library() -> Option<PathBuf> {
    let name = "faketime/libfaketimeMT.so.1";
    let below = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut places = below.map(|entry| entry.path().join(name));
    places.find(|place| place.exists())
}

/// Moves the proxy's time; returns when it is seen in what it logs.
fn jump(proxy: &Proxy, file: &Path, to: &str) {
    let day = || {
        let log = proxy.log();
        let mut times = log.lines().rev().filter_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(line["timestamp"].as_str()?[..10].to_owned())
        });
        times.next()
    };
    let before = day().expect("it logs the time");
    fs::write(file, to).unwrap();
    wait_until("the clock has jumped", SOON, || {
        // A client that is refused is logged.
        let nobody = Target::new(proxy.port(), ("nobody", "x"), "app");
        assert!(Client::connect(&nobody).is_err());
        day().is_some_and(|now| now != before)
    });
}

#[test]
fn fault_a_clock_that_jumps_by_a_day_changes_nothing() {
    let Some(library) = library() else {
        skipped("libfaketime is not installed (run `make setup`)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("time");
    fs::write(&file, "+0").unwrap();
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let server = Postgres::start(&[]);
    let options = Options {
        sessions: "snapshot_after = \"200ms\"\npark_after = \"1s\"".to_owned(),
        environment: vec![
            set("SLACKWATER_LOG", "debug"),
            set("LD_PRELOAD", library.to_str().unwrap()),
            set("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            set("FAKETIME_NO_CACHE", "1"),
            set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            set("NO_FAKE_STAT", "1"),
        ],
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let admin = proxy.admin();
    let ledger = Ledger::start(&server.admin(), &proxy.app(), 3);
    let (mut rests, mut waits, mut open) = (
        proxy.client("rests"),
        proxy.client("waits"),
        proxy.client("open"),
    );
    rests.run("set app.tenant = 'mine'");
    let parked = || {
        admin
            .session("rests")
            .is_some_and(|s| s["state"] == "parked")
    };
    // One day on is as old as a connection may become.
    for (first, second) in [("+1d", "-1d"), ("+0", "+1d")] {
        wait_until("one is parked", SOON, parked);
        admin.act("hold");
        waits.start("select 'answered'").unwrap();
        wait_until("the others wait", SOON, || {
            admin.sessions_count("held") == 4
        });
        jump(&proxy, &file, first);
        assert!(parked(), "it stays parked");
        assert_eq!(admin.cluster()["state"], "holding", "the hold goes on");
        assert_eq!(admin.sessions_count("held"), 4);
        admin.act("release");
        assert_eq!(waits.finish().unwrap()[0][0].as_deref(), Some("answered"));
        assert_eq!(rests.value("show app.tenant"), "mine");
        // And an event that has five minutes to find its moment.
        open.run("begin");
        let id = admin.start_event(&json!({}));
        jump(&proxy, &file, second);
        assert_eq!(admin.outcome(id), None, "it goes on waiting");
        open.run("commit");
        assert_eq!(admin.finished(id, EVENT)["outcome"], "completed");
        assert_eq!(rests.value("show app.tenant"), "mine");
    }
    ledger.stop().must_be_right(&server.admin());
}
