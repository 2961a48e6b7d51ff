//! What a switch to a standby can't do is refused by name while the old server serves, and nobody is held: safety rule
//! 20. And what goes wrong later, but before the decision, leads back: rule 23.

use crate::standby::admin;
use crate::support::direct::Direct;
use crate::support::ledger::Ledger;
use crate::support::postgres::{give_away, server_binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Client;
use crate::support::{EVENT, skipped, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// An event fails for this reason; the event.
fn refused(proxy: &Proxy, why: &str) -> Value {
    let id = proxy.admin().start_event(&json!({}));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "failed", "{event:#}");
    let reason = event["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(why), "{reason}");
    event
}

/// The same, and nobody was held.
fn refused_at_once(proxy: &Proxy, why: &str) {
    let event = refused(proxy, why);
    assert_eq!(event["held_total_ms"], 0, "{event:#}");
}

#[test]
fn safety_20_what_would_vanish_is_named_and_nobody_is_held() {
    let proxy = Proxy::standby(&Options::default());
    let mut client = Client::connect(&admin(&proxy)).unwrap();
    client.run("create unlogged table basket (n int)");
    refused_at_once(&proxy, "database app: public.basket");
    client.run("drop table basket");
    client.run("select pg_create_logical_replication_slot('feed', 'pgoutput')");
    refused_at_once(&proxy, "feed (logical)");
    client.run("select pg_drop_replication_slot('feed')");
    let dir = tempfile::tempdir().unwrap();
    give_away(dir.path());
    let place = dir.path().display();
    client.run(&format!("create tablespace elsewhere location '{place}'"));
    refused_at_once(&proxy, "can't be copied on the same host: elsewhere");
    client.run("drop tablespace elsewhere");
    proxy.scale_by_command();
}

#[test]
fn safety_20_a_log_that_no_standby_could_follow_is_named_and_nobody_is_held() {
    let mut proxy = Proxy::local(&Options::default());
    let mut client = Client::connect(&admin(&proxy)).unwrap();
    client.run("alter system set wal_level = 'minimal'");
    client.run("alter system set max_wal_senders = 0");
    proxy.scale_by_command();
    assert_eq!(client.value("show wal_level"), "minimal");
    proxy.reconfigure("switch = \"restart\"", "switch = \"standby\"");
    refused_at_once(&proxy, "wal_level is minimal");
    let mut client = Client::connect(&admin(&proxy)).unwrap();
    assert_eq!(client.value("show wal_level"), "minimal");
}

fn on_a_disk_of(size: &str) -> Option<Options> {
    if !nix::unistd::geteuid().is_root() {
        skipped("a small file system can be mounted by root only");
        return None;
    }
    Some(Options {
        disk: Some(size.to_owned()),
        ..Options::default()
    })
}

#[test]
fn safety_20_a_full_disk_is_seen_before_the_stop() {
    let Some(options) = on_a_disk_of("400m") else {
        return;
    };
    let proxy = Proxy::local(&options);
    let mut client = proxy.client("stays");
    let started = "select pg_postmaster_start_time()";
    let before = client.value(started);
    let filler = proxy.data_dir().join("filler");
    let disk = nix::sys::statvfs::statvfs(proxy.data_dir()).unwrap();
    let free = disk.blocks_available() * disk.fragment_size();
    let bytes = free - (40 << 20);
    fs::write(&filler, vec![1; usize::try_from(bytes).unwrap()]).unwrap();
    refused_at_once(&proxy, "free on the disk of data_dir");
    assert_eq!(client.value(started), before, "it was not stopped");
    fs::remove_file(&filler).unwrap();
    proxy.scale_by_command();
    assert_ne!(client.value(started), before);
}

#[test]
fn safety_20_a_disk_without_room_for_a_standby_is_named() {
    let Some(options) = on_a_disk_of("200m") else {
        return;
    };
    let proxy = Proxy::standby(&options);
    let mut client = proxy.client("stays");
    refused_at_once(&proxy, "a standby needs");
    client.run("select 1");
    proxy.resize_disk("3g");
    proxy.scale_by_command();
    client.run("select 1");
}

/// What goes wrong between the stop of the old server and the decision leads back to it, and held requests wait for
/// that: the decision can't be written, the end of the log not be read, the old data directory not be fenced.
#[test]
fn safety_23_what_fails_before_the_decision_leads_back_to_the_old_server() {
    let programs = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(server_binaries()).unwrap().flatten() {
        symlink(entry.path(), programs.path().join(entry.file_name())).unwrap();
    }
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let proxy = Proxy::standby(&Options {
        binaries: Some(programs.path().to_owned()),
        ..Options::default()
    });
    proxy.admin().wait_standby();
    let over_proxy = admin(&proxy);
    let ledger = Ledger::start(&over_proxy, &proxy.app(), 3);
    let direct = Direct::start(&over_proxy, proxy.data_dir());
    let go_on = || {
        let written = ledger.written();
        wait_until("the ledger goes on", EVENT, || {
            ledger.written() > written + 50
        });
    };
    let primary = proxy.settled_primary();
    // A directory can't be written to, run, or removed as a file is, whatever account it is tried by.
    for (obstacle, why) in [
        (proxy.data_dir().join("switch.tmp"), "switch.json"),
        (programs.path().join("pg_controldata"), "pg_controldata"),
        (
            proxy.primary_data().join("standby.signal"),
            "standby.signal",
        ),
    ] {
        go_on();
        let mut in_the_way = proxy.client("in the way");
        in_the_way.run("begin");
        let id = proxy.admin().reach("wait", &json!({}));
        let program = fs::read_link(&obstacle).ok();
        let _ = fs::remove_file(&obstacle);
        fs::create_dir(&obstacle).unwrap();
        in_the_way.run("commit");
        let event = proxy.admin().finished(id, EVENT);
        assert_eq!(event["outcome"], "failed", "{event:#}");
        let reason = event["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(why), "{reason}");
        fs::remove_dir(&obstacle).unwrap();
        if let Some(program) = program {
            symlink(program, &obstacle).unwrap();
        }
        go_on();
        assert_eq!(proxy.settled_primary(), primary);
    }
    proxy.scale_by_command();
    assert_ne!(proxy.settled_primary(), primary);
    ledger.stop().must_be_right(&over_proxy);
    direct.must_be_right(&over_proxy);
}
