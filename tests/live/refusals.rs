//! What a switch to a standby can't do is refused by name while the old server serves, and nobody is held: safety rule
//! 20. And what goes wrong later, but before the decision, leads back: rule 23.

use crate::standby::admin;
use crate::support::postgres::give_away;
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Client;
use crate::support::{EVENT, skipped};
use serde_json::{Value, json};
use std::fs;

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
