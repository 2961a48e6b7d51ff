//! `switch = "standby"`: everything that the old server had is on the new one, and what sessions see of the switch.
//! Who is killed when is in `standby_kills`.

use crate::support::ledger::Ledger;
use crate::support::postgres::ADMIN;
use crate::support::proxy::{Options, Proxy};
use crate::support::servers::on_a_whole;
use crate::support::wire::{Client, Target};
use crate::support::{EVENT, SOON, sized, skipped, wait_until};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn admin(proxy: &Proxy) -> Target {
    Target::new(proxy.port(), ADMIN, "app")
}

/// The superuser, straight to the server in this home.
fn direct(proxy: &Proxy, home: usize) -> Target {
    let text = std::fs::read(proxy.data_dir().join("server.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let port = file[["port", "second_port"][home]].as_u64().unwrap();
    Target::new(port as u16, ADMIN, "app")
}

#[test]
fn safety_19_a_switch_keeps_sessions_and_data_and_fences_the_old_server() {
    let proxy = Proxy::standby(&Options::default());
    let mut client = proxy.client("witness");
    client.run("create table t (n int)");
    client.run("set work_mem = '7MB'");
    for n in 1..=3 {
        let old = client.value("select current_setting('port')");
        client.run(&format!("insert into t values ({n})"));
        proxy.scale_by_command();
        assert_ne!(client.value("select current_setting('port')"), old);
        assert_eq!(client.value("select count(*) from t"), n.to_string());
        assert_eq!(client.value("show work_mem"), "7MB");
    }
    // After three switches the first home is the standby.
    wait_until("the old server follows", SOON, || {
        let Ok(mut old) = Client::connect(&direct(&proxy, 0)) else {
            return false;
        };
        old.value("select pg_is_in_recovery()") == "t" && old.value("select count(*) from t") == "3"
    });
    assert!(proxy.homes()[0].join("standby.signal").exists());
    assert!(!proxy.homes()[1].join("standby.signal").exists());
    let status = proxy.command(&["status", "shop"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for fact in ["standby", "standby_disk", "standby_made_in", "last_switch"] {
        assert!(status.contains(fact), "{status}");
    }
}

#[test]
fn safety_19_a_stop_that_hangs_on_a_receiver_of_the_log_rolls_back() {
    let options = Options {
        provider: "stop_timeout = \"1s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::standby(&options);
    let ledger = Ledger::start(&admin(&proxy), &proxy.app(), 3);
    // It takes the log and never says that it has it: the stop waits for it.
    let receiver = Target::new(direct(&proxy, 0).port, ADMIN, "app").with("replication", "true");
    let mut receiver = Client::connect(&receiver).expect("a receiver may log in");
    let position = Client::connect(&direct(&proxy, 0))
        .unwrap()
        .value("select pg_current_wal_flush_lsn()");
    receiver
        .start(&format!("START_REPLICATION PHYSICAL {position}"))
        .unwrap();
    receiver.until(b'W').unwrap();
    let before = ledger.written();
    let id = proxy.admin().start_event(&json!({}));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "failed", "{event:#}");
    let reason = event["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("had not stopped after 1 s"), "{reason}");
    wait_until("clients go on", SOON, || ledger.written() > before + 50);
    assert_eq!(proxy.admin().capacity(), 2);
    drop(receiver);
    wait_until("who logged in ahead to the standby has left", SOON, || {
        let Ok(mut standby) = Client::connect(&direct(&proxy, 1)) else {
            return true;
        };
        standby.value("select count(*) from pg_stat_activity where usename = 'app'") == "0"
    });
    // Nothing is left of it: the next one works.
    proxy.scale_by_command();
    ledger.stop().must_be_right(&admin(&proxy));
}

#[test]
fn safety_19_sessions_log_in_ahead_and_their_clients_see_nothing_of_it() {
    let options = Options {
        environment: vec![("SLACKWATER_LOG".to_owned(), "debug".to_owned())],
        ..Options::default()
    };
    let proxy = Proxy::standby(&options);
    let ledger = Ledger::start(&admin(&proxy), &proxy.app(), 3);
    let mut plain = proxy.client("plain");
    let mut full = proxy.client("full");
    full.run("set work_mem = '7MB'");
    full.run("prepare q as select 7");
    let asked = "select current_setting('transaction_read_only'), pg_is_in_recovery()";
    let look = |client: &mut Client| {
        client.start(asked).unwrap();
        let messages = client.until_ready().unwrap();
        for message in messages {
            let standby = message.tag == b'S' && message.body.starts_with(b"in_hot_standby\0");
            assert!(!standby, "{}", message.label());
            if message.tag == b'D' {
                assert!(
                    message.body.ends_with(b"off\0\0\0\x01f"),
                    "{}",
                    message.label()
                );
            }
        }
    };
    for _ in 0..sized(3, 10) {
        let id = proxy.admin().start_event(&json!({}));
        while proxy.admin().outcome(id).is_none() {
            look(&mut plain);
            look(&mut full);
        }
        assert_eq!(proxy.admin().outcome(id).as_deref(), Some("completed"));
        look(&mut plain);
        assert_eq!(full.value("show work_mem"), "7MB");
        assert_eq!(full.value("execute q"), "7");
    }
    ledger.stop().must_be_right(&admin(&proxy));
    let ahead = proxy.log().matches("where it had logged in ahead").count();
    assert!(ahead > 0, "nobody logged in ahead");
    assert!(
        !proxy.log().contains("a log-in ahead is of no use"),
        "{}",
        proxy.log()
    );
}

/// What was found of a log-in ahead holds only as long as nothing has changed that a log-in brings.
#[test]
fn safety_19_what_is_set_for_a_role_behind_a_log_in_ahead_stays_out_of_its_session() {
    let options = Options {
        environment: vec![("SLACKWATER_LOG".to_owned(), "debug".to_owned())],
        scaling: "max_hold = \"10s\"".to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::standby(&options);
    let mut owner = Client::connect(&direct(&proxy, 0)).unwrap();
    let mut client = proxy.client("plain");
    let mut slow = proxy.client("slow");
    let before = client.value("show work_mem");
    // It is not in the way, and the hold waits for it.
    owner.run("select pg_advisory_lock(19)");
    slow.start("select pg_advisory_xact_lock(19)").unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let works = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            client.value("select 1");
        }
        client
    });
    let id = proxy.admin().reach("settle", &json!({}));
    owner.run("alter role app set work_mem = '77MB'");
    owner.run("alter database app set app.tenant = 'theirs'");
    assert_eq!(proxy.admin().event(id)["step"], "settle");
    owner.run("select pg_advisory_unlock(19)");
    slow.until_ready().unwrap();
    assert_eq!(proxy.admin().finished(id, EVENT)["outcome"], "completed");
    over.store(true, Ordering::Relaxed);
    let mut client = works.join().unwrap();
    let tenant = "select coalesce(current_setting('app.tenant', true), '')";
    assert_eq!(client.value("show work_mem"), before);
    assert_eq!(client.value(tenant), "");
    let mut fresh = proxy.client("fresh");
    assert_eq!(fresh.value("show work_mem"), "77MB");
    assert_eq!(fresh.value(tenant), "theirs");
    let log = proxy.log();
    assert!(log.contains("where it had logged in ahead"), "{log}");
    // And what was set before it is there in both.
    for _ in 0..2 {
        fresh.value("select 1");
        proxy.scale_by_command();
        assert_eq!(fresh.value("show work_mem"), "77MB");
        assert_eq!(client.value("show work_mem"), before);
    }
}

/// What such a function does on a standby need not be what it does on a primary.
#[test]
fn safety_19_nobody_logs_in_ahead_where_log_ins_run_a_function() {
    let options = Options {
        environment: vec![("SLACKWATER_LOG".to_owned(), "debug".to_owned())],
        ..Options::default()
    };
    let proxy = Proxy::standby(&options);
    let mut owner = Client::connect(&admin(&proxy)).unwrap();
    if owner.value("select current_setting('server_version_num')::int < 170000") == "t" {
        skipped("this server has no event triggers at log-ins");
        return;
    }
    for sql in [
        "create table greeted (n int)",
        "grant all on greeted to public",
        "create function greet() returns event_trigger language plpgsql as \
         $$begin if not pg_is_in_recovery() then insert into greeted values (1); end if; end$$",
        "create event trigger greet on login execute function greet()",
    ] {
        owner.run(sql);
    }
    let ledger = Ledger::start(&admin(&proxy), &proxy.app(), 3);
    let written = ledger.written();
    wait_until("the ledger goes on", SOON, || {
        ledger.written() > written + 50
    });
    let before: u64 = owner.value("select count(*) from greeted").parse().unwrap();
    proxy.scale_by_command();
    ledger.stop().must_be_right(&admin(&proxy));
    let after: u64 = owner.value("select count(*) from greeted").parse().unwrap();
    assert!(
        after >= before + 4,
        "each log-in was greeted: {before}, {after}"
    );
    let log = proxy.log();
    assert!(log.contains("log-ins run a function"), "{log}");
    assert!(!log.contains("where it had logged in ahead"), "{log}");
}

/// What this file shows on the installed version, on another one.
fn standbys_of(version: u32) {
    let switches = ["safety_19_", "ms4_much_state_goes_through_standby"];
    // (In short the sessions' state goes through one version only.)
    on_a_whole(version, &switches[..sized(1, 2)], &["i3_ms5_"]);
}

#[test]
fn i3_ms5_standbys_of_13() {
    standbys_of(13);
}

#[test]
fn i3_ms5_standbys_of_14() {
    standbys_of(14);
}

#[test]
fn i3_ms5_standbys_of_16() {
    standbys_of(16);
}

#[test]
fn i3_ms5_standbys_of_17() {
    standbys_of(17);
}

#[test]
fn i3_ms5_standbys_of_18() {
    standbys_of(18);
}
