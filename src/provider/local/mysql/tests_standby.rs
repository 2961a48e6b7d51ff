//! Real servers: a standby of MySQL or MariaDB takes over, and everything that can go wrong with that.

use super::super::super::{CutOver, SwitchKind};
use super::super::engine::{self, Part};
use super::super::files::Intent;
use super::super::slot;
use super::super::succession::Succession;
use super::super::tests::{completed, place::Place, polled, say, until};
use super::super::{LocalConfig, LocalProvider, fence};
use super::replication::ACCOUNT;
use super::tests::{Kind, ask, kinds, switched, value};
use super::*;
use nix::sys::signal::Signal;
use std::time::Duration;

fn config(kind: &Kind, place: &Place) -> LocalConfig {
    LocalConfig {
        switch: Switch::Standby,
        ..kind.config(place)
    }
}

/// What the server in `home` says, if one answers.
async fn at(provider: &LocalProvider, home: Home, sql: &str) -> Option<String> {
    let endpoint = provider.data_dir.endpoint_of(home);
    let rows = provider.query.query(&endpoint, sql).await.ok()?;
    rows.into_iter().flatten().flatten().next()
}

/// Exactly one of both homes can take a write.
async fn one_writer(provider: &LocalProvider) {
    let mut writers = 0;
    for home in [Home::First, Home::Second] {
        if at(provider, home, "SELECT @@GLOBAL.read_only")
            .await
            .as_deref()
            == Some("0")
        {
            assert_eq!(home, provider.data_dir.primary());
            writers += 1;
        }
    }
    assert_eq!(writers, 1);
}

async fn table(provider: &LocalProvider) {
    ask(provider, "CREATE DATABASE shop").await;
    ask(
        provider,
        "CREATE TABLE shop.t (id INT AUTO_INCREMENT PRIMARY KEY, n INT)",
    )
    .await;
}

async fn write(provider: &LocalProvider, n: u32) {
    ask(provider, &format!("INSERT INTO shop.t (n) VALUES ({n})")).await;
}

/// How many rows there are, and how many numbers.
async fn written(provider: &LocalProvider) -> String {
    value(
        provider,
        "SELECT CONCAT(COUNT(*), ' ', COUNT(DISTINCT n)) FROM shop.t",
    )
    .await
}

async fn next_proxy(kind: &Kind, provider: LocalProvider, config: &LocalConfig) -> LocalProvider {
    drop(provider);
    until("the directory is free", || DataDir::open(config).is_ok()).await;
    kind.provider_with(config.clone())
}

fn server(provider: &LocalProvider) -> Process {
    find(&provider.data_dir.data()).expect("a server runs")
}

#[tokio::test]
async fn safety_21_a_standby_takes_over_there_and_back() {
    for kind in kinds() {
        let place = Place::new();
        let config = config(&kind, &place);
        let provider = kind.provider_with(config.clone());
        let mut now = provider.start(Capacity(1)).await.unwrap();
        table(&provider).await;
        for (n, to) in [(1, 4), (2, 1), (3, 1), (4, 2)] {
            write(&provider, n).await;
            let change = provider.prepare(&now, Capacity(to)).await.unwrap();
            assert_eq!(change, SwitchKind::Barrier);
            write(&provider, n).await;
            let old = provider.data_dir.primary();
            let next = completed(provider.cut_over(&now, Capacity(to)).await);
            assert_eq!(next.capacity, Capacity(to));
            assert_ne!(next.endpoint, now.endpoint);
            assert_ne!(next.identity.started_at, now.identity.started_at);
            assert_eq!(
                next.identity.system_identifier,
                now.identity.system_identifier
            );
            assert!(fence::is_standby(&provider.data_dir, old));
            assert!(!fence::is_standby(&provider.data_dir, old.other()));
            assert_eq!(written(&provider).await, format!("{} {n}", 2 * n));
            say(&format!(
                "{kind:?}: {}",
                provider.shown.lock().promotion.unwrap()
            ));
            now = next;
        }
        one_writer(&provider).await;
        provider.state.lock().await.tidy().await;
        assert_eq!(provider.data_dir.intent().unwrap(), None);
        let facts: Vec<_> = provider.facts().into_iter().map(|f| f.name).collect();
        for name in ["standby", "standby_disk", "standby_made_in", "last_switch"] {
            assert!(facts.iter().any(|f| f == name), "{facts:?}");
        }
        let provider = next_proxy(&kind, provider, &config).await;
        assert_eq!(provider.start(Capacity(8)).await.unwrap(), now);
        one_writer(&provider).await;
    }
}

/// The future is dropped at every place at which it waits, as if the proxy ended there, and the next proxy
/// finds what there is.
#[tokio::test]
async fn safety_25_mysql_a_proxy_that_ends_in_any_step_leaves_one_writer_with_everything() {
    // One kind: each has some twenty switches.
    let kind = kinds().remove(0);
    let place = Place::new();
    let config = config(&kind, &place);
    let mut provider = kind.provider_with(config.clone());
    let mut now = provider.start(Capacity(1)).await.unwrap();
    table(&provider).await;
    let (mut undone, mut finished) = (0, 0);
    let mut polls = 1;
    for n in 1.. {
        let to = Capacity(if now.capacity == Capacity(1) { 2 } else { 1 });
        provider.prepare(&now, to).await.unwrap();
        write(&provider, n).await;
        let done = polled(provider.cut_over(&now, to), polls).await;
        provider = next_proxy(&kind, provider, &config).await;
        let next = provider.start(Capacity(8)).await.unwrap();
        one_writer(&provider).await;
        assert_eq!(
            written(&provider).await,
            format!("{n} {n}"),
            "after {polls} polls"
        );
        if next.capacity == to {
            finished += 1;
        } else {
            assert_eq!(next.capacity, now.capacity);
            undone += 1;
        }
        now = next;
        if done.is_some() {
            break;
        }
        polls += if polls < 12 { 2 } else { 9 };
    }
    say(&format!(
        "{undone} undone, {finished} finished, {polls} polls"
    ));
    assert!(undone > 0 && finished > 0);
}

#[tokio::test]
async fn safety_22_mysql_a_standby_behind_the_end_of_the_log_is_never_promoted() {
    for kind in kinds() {
        let place = Place::new();
        let mut provider = kind.provider_with(config(&kind, &place));
        let now = provider.start(Capacity(1)).await.unwrap();
        table(&provider).await;
        provider.prepare(&now, Capacity(2)).await.unwrap();
        // The standby receives and does not replay: not even its stop is begun.
        let stop = match kind.engine {
            Engine::Mysql => "STOP REPLICA SQL_THREAD",
            _ => "STOP SLAVE SQL_THREAD",
        };
        let standby = provider.data_dir.endpoint_of(Home::Second);
        provider.ask(&standby, stop).await.unwrap();
        write(&provider, 1).await;
        provider.patience.replay = Duration::from_millis(200);
        let pid = server(&provider).pid();
        let CutOver::KeptOld { instance, reason } = provider.cut_over(&now, Capacity(2)).await
        else {
            panic!("promoted")
        };
        assert!(reason.contains("ask again"), "{reason}");
        assert_eq!(
            (instance.capacity, server(&provider).pid()),
            (Capacity(1), pid)
        );
        write(&provider, 2).await;
        assert_eq!(written(&provider).await, "2 2");

        // A server that crashes is started again where it was, whatever its standby has.
        let crash = async |provider: &LocalProvider| {
            let server = server(provider);
            server.signal(Signal::SIGKILL).unwrap();
            until("it is gone", || !server.alive()).await;
        };
        crash(&provider).await;
        let again = provider.start(Capacity(1)).await.unwrap();
        assert_eq!(provider.data_dir.primary(), Home::First);
        assert_eq!(written(&provider).await, "2 2");
        provider.patience.replay = Duration::from_secs(10);
        provider.prepare(&again, Capacity(2)).await.unwrap();
        crash(&provider).await;
        let CutOver::KeptOld { reason, .. } = provider.cut_over(&again, Capacity(2)).await else {
            panic!("promoted")
        };
        assert!(reason.contains("ended by itself"), "{reason}");
        assert_eq!(written(&provider).await, "2 2");
        one_writer(&provider).await;
    }
}

/// Somebody who may write past `read_only`, in the moment between the drain and the stop.
#[tokio::test]
async fn safety_21_what_is_written_after_the_drain_is_never_lost() {
    for kind in kinds() {
        let place = Place::new();
        let provider = kind.provider_with(config(&kind, &place));
        let now = provider.start(Capacity(1)).await.unwrap();
        table(&provider).await;
        provider.prepare(&now, Capacity(2)).await.unwrap();
        let Part::Mysql(my) = &provider.part else {
            panic!("another engine")
        };
        let mut kept = my.slot.standby.lock().await;
        let mut standby = kept.take().unwrap();
        let drained = my.drain(&provider, &now, &mut standby).await.unwrap();
        assert_eq!(value(&provider, "SELECT @@GLOBAL.read_only").await, "1");
        for sql in my.read_only(false) {
            ask(&provider, sql).await;
        }
        write(&provider, 1).await;
        let old = server(&provider);
        engine::stop(&provider.data_dir, old).unwrap();
        assert!(old.gone_within(Duration::from_mins(1)).await);
        let error = my
            .prove(&provider, &mut standby, Some(drained))
            .await
            .unwrap_err();
        assert!(error.contains("somebody wrote until its stop"), "{error}");
        drop(kept);
        provider.start(Capacity(1)).await.unwrap();
        assert_eq!(written(&provider).await, "1 1");
        one_writer(&provider).await;
    }
}

#[tokio::test]
async fn safety_20_mysql_what_a_standby_would_not_have_is_refused_by_name() {
    for kind in kinds() {
        let place = Place::new();
        let provider = kind.provider_with(config(&kind, &place));
        let now = provider.start(Capacity(1)).await.unwrap();
        table(&provider).await;
        let refused = async |why: &[&str]| {
            let error = provider
                .prepare(&now, Capacity(2))
                .await
                .unwrap_err()
                .to_string();
            for why in why {
                assert!(error.contains(why), "{kind:?}: {error}");
            }
            assert_eq!(provider.start(Capacity(1)).await.unwrap(), now);
        };
        ask(&provider, "CREATE TABLE shop.m (n INT) ENGINE=MEMORY").await;
        ask(&provider, "INSERT INTO shop.m VALUES (1)").await;
        refused(&["MEMORY", "`shop`.`m`"]).await;
        ask(&provider, "DROP TABLE shop.m").await;
        ask(&provider, "CREATE TABLE shop.old (n INT) ENGINE=MyISAM").await;
        refused(&["outside InnoDB", "`shop`.`old` (MyISAM)"]).await;
        ask(&provider, "DROP TABLE shop.old").await;
        ask(&provider, "SET GLOBAL binlog_format = STATEMENT").await;
        refused(&["binlog_format is STATEMENT"]).await;
        ask(&provider, "SET GLOBAL binlog_format = ROW").await;
        ask(
            &provider,
            "XA START 'x'; INSERT INTO shop.t (n) VALUES (0); XA END 'x'; XA PREPARE 'x'",
        )
        .await;
        refused(&["XA transaction x is prepared"]).await;
        ask(&provider, "XA COMMIT 'x'").await;
        let own = provider.data_dir.data().join("my.cnf");
        fs::write(&own, "[mysqld]\n").unwrap();
        refused(&["my.cnf is not Slackwater's"]).await;
        fs::remove_file(&own).unwrap();
        // Read by both at each start.
        let my_cnf = provider.data_dir.path().join("my.cnf");
        let before = fs::read_to_string(&my_cnf).unwrap();
        for (line, why) in [
            (
                "replicate-ignore-db = shop",
                "leave changes out on the standby: shop",
            ),
            ("slave-skip-errors = 1062", "pass over differences"),
        ] {
            let line = match kind.engine {
                Engine::Mysql => line.replace("slave-", "replica-"),
                _ => line.to_owned(),
            };
            fs::write(&my_cnf, format!("{before}{line}\n")).unwrap();
            refused(&[why]).await;
            slot::stop(&provider.data_dir, Home::Second).await.unwrap();
        }
        fs::write(&my_cnf, before).unwrap();
        // Made past the log when a standby was there already: found by comparison, and copied.
        provider.prepare(&now, Capacity(2)).await.unwrap();
        ask(
            &provider,
            "SET SESSION sql_log_bin = 0; CREATE TABLE shop.past (n INT)",
        )
        .await;
        ask(
            &provider,
            "SET SESSION sql_log_bin = 0; INSERT INTO shop.past VALUES (7)",
        )
        .await;
        let next = switched(&provider, &now, 2).await;
        assert_eq!(value(&provider, "SELECT n FROM shop.past").await, "7");
        assert_eq!(next.capacity, Capacity(2));
        assert_eq!(written(&provider).await, "1 1");
    }
}

/// Events run on the primary alone, and each has the state there that it had on the last one.
#[tokio::test]
async fn safety_21_events_run_on_the_primary_alone() {
    for kind in kinds() {
        let place = Place::new();
        let provider = kind.provider_with(config(&kind, &place));
        let mut now = provider.start(Capacity(1)).await.unwrap();
        table(&provider).await;
        ask(&provider, "SET GLOBAL event_scheduler = ON").await;
        ask(&provider, "CREATE USER owner@'%'").await;
        let event = |name: &str, state: &str| {
            format!(
                "CREATE DEFINER = owner@'%' EVENT shop.{name} ON SCHEDULE EVERY 1 DAY {state} DO DO 1"
            )
        };
        ask(&provider, &event("copied", "ENABLE")).await;
        provider.prepare(&now, Capacity(2)).await.unwrap();
        ask(&provider, &event("runs", "ENABLE")).await;
        ask(&provider, &event("rests", "DISABLE")).await;
        let states = "SELECT GROUP_CONCAT(CONCAT(EVENT_NAME, ' ', STATUS, ' ', DEFINER) ORDER BY 1) \
                      FROM information_schema.EVENTS WHERE EVENT_SCHEMA = 'shop'";
        let wanted = "copied ENABLED owner@%,rests DISABLED owner@%,runs ENABLED owner@%";
        for to in [2, 1, 4] {
            now = switched(&provider, &now, to).await;
            assert_eq!(value(&provider, states).await, wanted, "{kind:?}");
            assert_eq!(
                value(&provider, "SELECT @@GLOBAL.event_scheduler").await,
                "ON"
            );
            provider.prepare(&now, now.capacity).await.unwrap();
            let other = provider.data_dir.primary().other();
            let there = at(&provider, other, "SELECT @@GLOBAL.event_scheduler").await;
            assert_eq!(there.as_deref(), Some("OFF"));
        }
    }
}

#[tokio::test]
async fn a_server_that_was_started_without_a_log_is_restarted_once() {
    let kind = kinds().remove(0);
    let place = Place::new();
    let provider = kind.provider(&place);
    let first = provider.start(Capacity(1)).await.unwrap();
    table(&provider).await;
    write(&provider, 1).await;
    let config = config(&kind, &place);
    let provider = next_proxy(&kind, provider, &config).await;
    let now = provider.start(Capacity(1)).await.unwrap();
    assert_eq!(now, first, "it is adopted");
    let now = switched(&provider, &now, 2).await;
    assert_eq!(provider.data_dir.primary(), Home::First, "restarted");
    write(&provider, 2).await;
    switched(&provider, &now, 1).await;
    assert_eq!(provider.data_dir.primary(), Home::Second, "switched");
    assert_eq!(written(&provider).await, "2 2");
    let account = format!("SHOW GRANTS FOR {ACCOUNT}");
    assert!(
        value(&provider, &account)
            .await
            .contains("REPLICATION SLAVE")
    );
}

/// Decided and not done, decided and done without anybody knowing: back where that is proven to be harmless, else forward.
#[tokio::test]
async fn safety_23_mysql_a_standby_that_cannot_be_promoted_leads_back_or_forward() {
    let kind = kinds().remove(0);
    let place = Place::new();
    let config = config(&kind, &place);
    let provider = kind.provider_with(config.clone());
    let now = provider.start(Capacity(1)).await.unwrap();
    table(&provider).await;
    write(&provider, 1).await;
    let decide = async |provider: &LocalProvider, now: &super::super::super::Instance| {
        provider.prepare(now, Capacity(2)).await.unwrap();
        let Part::Mysql(my) = &provider.part else {
            panic!("another engine")
        };
        let mut kept = my.slot.standby.lock().await;
        let mut standby = kept.take().unwrap();
        let drained = my.drain(provider, now, &mut standby).await.unwrap();
        let old = server(provider);
        engine::stop(&provider.data_dir, old).unwrap();
        assert!(old.gone_within(Duration::from_mins(1)).await);
        let promotion = my
            .prove(provider, &mut standby, Some(drained))
            .await
            .unwrap();
        let intent = Intent {
            promotion: Some(promotion),
            ..Intent::new(Capacity(1), Capacity(2))
        };
        provider.write_intent(intent).await.unwrap();
        drop(standby);
        drop(kept);
        slot::stop(&provider.data_dir, Home::Second).await.unwrap();
    };
    decide(&provider, &now).await;
    // Its data directory has lost what every start needs.
    let system = provider.data_dir.data_of(Home::Second).join("ibdata1");
    fs::rename(&system, system.with_extension("away")).unwrap();
    let back = provider.start(Capacity(8)).await.unwrap();
    assert_eq!(
        (back.capacity, provider.data_dir.primary()),
        (Capacity(1), Home::First)
    );
    assert_eq!(written(&provider).await, "1 1");
    one_writer(&provider).await;
    assert_eq!(provider.data_dir.intent().unwrap(), None);

    decide(&provider, &back).await;
    let Part::Mysql(my) = &provider.part else {
        panic!("another engine")
    };
    let error = slot::ready(&**my, &back.endpoint, Capacity(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("was to be promoted"), "{error}");
    let forward = provider.start(Capacity(8)).await.unwrap();
    assert_eq!(
        (forward.capacity, provider.data_dir.primary()),
        (Capacity(2), Home::Second)
    );
    assert_eq!(written(&provider).await, "1 1");
    one_writer(&provider).await;
    // The old one, started by hand as nobody should, has its fence; taken away, nothing is started at all.
    until("the intent is put away", || {
        provider.data_dir.intent().unwrap().is_none()
    })
    .await;
    let provider = next_proxy(&kind, provider, &config).await;
    fence::unfence(&provider.data_dir, &provider.data_dir.data_of(Home::First)).unwrap();
    let error = provider.start(Capacity(1)).await.unwrap_err().to_string();
    assert!(error.contains("has no my.cnf"), "{error}");
}

/// How the server in `home` writes to its disk.
async fn flushes(provider: &LocalProvider, home: Home) -> String {
    let sql = "SELECT CONCAT(@@GLOBAL.innodb_flush_log_at_trx_commit, ' ', @@GLOBAL.sync_binlog)";
    at(provider, home, sql).await.unwrap()
}

#[tokio::test]
async fn safety_21_a_standby_that_did_not_wait_for_its_disk_does_before_it_is_promoted() {
    for kind in kinds() {
        let place = Place::new();
        let config = config(&kind, &place);
        let own = "[mysqld]\ninnodb_flush_log_at_trx_commit = 1\nsync_binlog = 3\n";
        let provider = kind.provider_with(config.clone());
        fs::write(my_cnf(&provider.data_dir), own).unwrap();
        let now = provider.start(Capacity(1)).await.unwrap();
        table(&provider).await;
        provider.prepare(&now, Capacity(2)).await.unwrap();
        assert_eq!(flushes(&provider, Home::First).await, "1 3");
        assert_eq!(flushes(&provider, Home::Second).await, "2 100");
        // The next proxy finds it so, and knows how it was.
        let provider = next_proxy(&kind, provider, &config).await;
        let now = provider.start(Capacity(8)).await.unwrap_or(now);
        provider.prepare(&now, Capacity(2)).await.unwrap();
        assert_eq!(flushes(&provider, Home::Second).await, "2 100");
        let now = completed(provider.cut_over(&now, Capacity(2)).await);
        assert_eq!(provider.data_dir.primary(), Home::Second);
        assert_eq!(flushes(&provider, Home::Second).await, "1 3");
        let note = |home| provider.data_dir.data_of(home).join("slackwater.relaxed");
        assert!(!note(Home::Second).exists());

        // The one that was relaxed when the machine ended is no good any more.
        provider.prepare(&now, Capacity(1)).await.unwrap();
        let made = || provider.part.slot().told().made.unwrap().1;
        assert_eq!(made(), "from the data directory that was there");
        let text = fs::read_to_string(note(Home::First)).unwrap();
        let (_, values) = text.split_once(' ').unwrap();
        let standby = find(&provider.data_dir.data_of(Home::First)).expect("a standby runs");
        standby.signal(Signal::SIGKILL).unwrap();
        until("it is gone", || !standby.alive()).await;
        fs::write(note(Home::First), format!("another-boot {values}")).unwrap();
        provider.prepare(&now, Capacity(1)).await.unwrap();
        assert_eq!(made(), "by a copy of the data");
        assert_eq!(flushes(&provider, Home::First).await, "2 100");
    }
}

#[tokio::test]
async fn a_standby_that_does_not_stop_is_killed_and_follows_again() {
    let kind = kinds().remove(0);
    let place = Place::new();
    let provider = kind.provider_with(config(&kind, &place));
    let now = provider.start(Capacity(1)).await.unwrap();
    table(&provider).await;
    provider.prepare(&now, Capacity(2)).await.unwrap();
    let standby = find(&provider.data_dir.data_of(Home::Second)).expect("a standby runs");
    standby.signal(Signal::SIGSTOP).unwrap();
    let patience = Duration::from_millis(100);
    slot::stop_within(&provider.data_dir, Home::Second, patience)
        .await
        .unwrap();
    assert!(!standby.alive());
    write(&provider, 1).await;
    provider.prepare(&now, Capacity(2)).await.unwrap();
    completed(provider.cut_over(&now, Capacity(2)).await);
    assert_eq!(written(&provider).await, "1 1");
}
