//! Every kind of message: notifications at any time, large objects, messages of unknown type from either side,
//! what a server may say between the messages of its start-up, names of every kind.

use crate::support::middle::{Middle, as_it_is};
use crate::support::postgres::{APP, Postgres, binaries};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Message, Target, cstr, message, parse};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;
use std::io::Read as _;
use std::process::Command;

fn labels(messages: &[Message]) -> Vec<String> {
    messages.iter().map(Message::label).collect()
}

/// The process number and the payload of a notification.
fn notification(message: &Message) -> (i32, String) {
    assert_eq!(message.label(), "A");
    let process = i32::from_be_bytes(message.body[..4].try_into().unwrap());
    let mut texts = message.body[4..].split(|b| *b == 0);
    let payload = texts.nth(1).unwrap_or_default();
    (process, String::from_utf8(payload.to_vec()).unwrap())
}

#[test]
fn case_37_an_idle_listener_hears_at_once_and_a_busy_one_at_its_end() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut notifier = proxy.client("notifier");
    // After a move its server process has another number than its client was told.
    proxy.admin().swap();
    assert_ne!(notifier.server_process(), notifier.process);
    let mut through = proxy.client("listener");
    let mut direct = Client::connect(&server.app()).unwrap();
    for listener in [&mut through, &mut direct] {
        listener.run("listen chan");
    }
    notifier.run("notify chan, 'one'");
    let told = (notifier.process, "one".to_owned());
    assert_eq!(notification(&through.receive().unwrap()), told);
    assert_eq!(notification(&direct.receive().unwrap()).1, "one");
    // In a transaction: when it has ended, and not before.
    let mut heard = Vec::new();
    for listener in [&mut through, &mut direct] {
        listener.run("begin");
        notifier.run("notify chan, 'two'");
        listener.start("select 1").unwrap();
        let during = listener.until_ready().unwrap();
        assert_eq!(labels(&during), ["T", "D", "C", "Z(T)"]);
        listener.start("commit").unwrap();
        let mut end = labels(&listener.until_ready().unwrap());
        if !end.contains(&"A".to_owned()) {
            end.push(listener.receive().unwrap().label());
        }
        heard.push(end);
        listener.run("unlisten *");
    }
    assert_eq!(heard[0], heard[1]);
    through.run("listen chan");
    // A listener of its own channel hears what it says itself, in the same answer.
    through.start("notify chan, 'mine'").unwrap();
    let heard = through.until(b'A').unwrap();
    assert_eq!(
        notification(heard.last().unwrap()),
        (through.process, "mine".to_owned())
    );
}

#[test]
fn case_37_no_notification_is_lost_beside_probes() {
    const COUNT: usize = 3000;
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut listener = proxy.client("listener");
    listener.run("listen chan");
    let mut notifier = Client::connect(&server.app()).unwrap();
    let notifying = std::thread::spawn(move || {
        for n in 0..COUNT {
            notifier.run(&format!("notify chan, '{n}'"));
        }
    });
    let admin = proxy.admin();
    let events = std::thread::spawn(move || {
        for _ in 0..3 {
            let id = admin.start_event(&json!({ "timeout_seconds": 1 }));
            assert_eq!(admin.finished(id, EVENT)["outcome"], "rolled_back");
        }
    });
    let mut next = 0;
    while next < COUNT {
        // Its own work makes the next probe ask again.
        listener.start("select 1").unwrap();
        for heard in listener.until_ready().unwrap() {
            if heard.label() == "A" {
                assert_eq!(notification(&heard).1, next.to_string());
                next += 1;
            }
        }
    }
    notifying.join().unwrap();
    events.join().unwrap();
    listener.run("select 1");
}

#[test]
fn case_37_what_a_server_says_to_an_idle_client_arrives_at_once() {
    let server = Postgres::start(&[]);
    let middle = Middle::before(server.port(), as_it_is);
    let proxy = Proxy::behind(&middle, &Options::default());
    let mut client = proxy.client("idle");
    client.run("select 1");
    let notice = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0");
    let status = message(b'S', b"application_name\0changed\0");
    let notify = message(b'A', &[&7_i32.to_be_bytes()[..], b"chan\0\0"].concat());
    middle.say("idle", &[&notice[..], &status, &notify].concat());
    for label in ["N", "S", "A"] {
        assert_eq!(client.receive().unwrap().label(), label);
    }
    assert_eq!(client.parameter("application_name"), Some("changed"));
    wait_until("others are told, too", SOON, || {
        proxy.admin().session("changed").is_some()
    });
    client.run("select 1");
    proxy.admin().swap();
    // The server that it is on now says otherwise than the client was told.
    assert_eq!(client.value("show application_name"), "idle");
    assert_eq!(client.parameter("application_name"), Some("idle"));
}

#[test]
fn case_40_large_objects_by_function_calls() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    std::fs::write(&from, &bytes).unwrap();
    let psql = |commands: &str| {
        let connect = format!("host=127.0.0.1 port={} user=app dbname=app", proxy.port());
        let output = Command::new(binaries().join("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &connect])
            .args(["-c", commands])
            .env("PGPASSWORD", APP.1)
            .output()
            .unwrap();
        assert!(output.status.success(), "{commands}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let admin = proxy.admin();
    let events = std::thread::spawn(move || {
        for _ in 0..3 {
            admin.swap();
        }
    });
    let mut client = proxy.client("counts");
    for _ in 0..5 {
        psql(&format!("\\lo_import {}", from.display()));
        let oid = client.value("select max(oid) from pg_largeobject_metadata");
        psql(&format!("\\lo_export {oid} {}", to.display()));
        assert!(std::fs::read(&to).unwrap() == bytes);
        psql(&format!("\\lo_unlink {oid}"));
    }
    events.join().unwrap();
    assert_eq!(
        client.value("select count(*) from pg_largeobject_metadata"),
        "0"
    );
}

/// What comes back for `bytes`, up to the close.
fn answer(client: &mut Client, bytes: &[u8]) -> Vec<u8> {
    client.send(bytes).unwrap();
    let mut out = Vec::new();
    let _reset = client.writer().read_to_end(&mut out);
    out
}

#[test]
fn case_40_messages_of_unknown_type_get_the_servers_answer() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let good = message(b'Q', &cstr("select 1"));
    for tag in [b'y', b'R', 0, 255, b'p', b'q'] {
        let unknown = message(tag, b"what is this");
        for bytes in [
            unknown.clone(),
            [&good[..], &unknown].concat(),
            [&parse("", "select 1"), &unknown[..]].concat(),
        ] {
            let direct = answer(&mut Client::connect(&server.app()).unwrap(), &bytes);
            let through = answer(&mut proxy.client("odd"), &bytes);
            assert!(direct.windows(6).any(|w| w == b"C08P01"), "{direct:?}");
            assert_eq!(
                String::from_utf8_lossy(&through),
                String::from_utf8_lossy(&direct),
                "type {tag}"
            );
        }
    }
    // A session without a server connection gets one to be told.
    let mut client = proxy.client("parked");
    client.run("select 1");
    proxy.admin().act("hold");
    wait_until("it is detached", SOON, || {
        proxy.admin().sessions_count("parked") == 1
    });
    proxy.admin().act("release");
    let told = answer(&mut client, &message(b'y', b""));
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("invalid frontend message type 121"), "{told}");
}

#[test]
fn case_40_messages_of_unknown_type_from_the_server_pass_and_block() {
    let server = Postgres::start(&[]);
    let middle = Middle::before(server.port(), as_it_is);
    let proxy = Proxy::behind(&middle, &Options::default());
    let mut client = proxy.client("odd");
    client.run("select 1");
    middle.say("odd", &message(b'y', b"new"));
    let odd = client.receive().unwrap();
    assert_eq!((odd.tag, &odd.body[..]), (b'y', &b"new"[..]));
    client.run("select 1");
    let id = proxy.admin().start_event(&json!({ "timeout_seconds": 1 }));
    let event = proxy.admin().finished(id, EVENT);
    assert_eq!(event["outcome"], "rolled_back", "{event:#}");
    assert_eq!(event["waiting_for"][0]["kind"], "ambiguous", "{event:#}");
    client.run("select 1");
}

#[test]
fn case_40_a_server_may_say_more_between_its_start_up_messages() {
    let server = Postgres::start(&[]);
    let middle = Middle::before(server.port(), |tag, body, out| {
        if matches!(tag, b'R' | b'K') {
            out.extend(message(
                b'N',
                b"SNOTICE\0VNOTICE\0C00000\0Mmind the gap\0\0",
            ));
            out.extend(message(
                b'A',
                &[&7_i32.to_be_bytes()[..], b"chan\0\0"].concat(),
            ));
            out.extend(message(b'S', b"extra.setting\0on\0"));
        }
        as_it_is(tag, body, out);
        if tag == b'Z' {
            out.extend(message(b'S', b"behind.ready\0on\0"));
        }
    });
    let proxy = Proxy::behind(&middle, &Options::default());
    let mut client = proxy.client("polite");
    assert_eq!(client.parameter("extra.setting"), Some("on"));
    assert_eq!(client.parameter("behind.ready"), Some("on"));
    assert_eq!(
        client.notices.len(),
        5,
        "as often as the server said so: {:?}",
        client.notices
    );
    client.run("set work_mem = '5MB'");
    proxy.admin().swap();
    assert_eq!(client.value("show work_mem"), "5MB");
}

#[test]
fn case_40_errors_without_sqlstate_pass_and_harm_nobody() {
    let server = Postgres::start(&[]);
    let middle = Middle::before(server.port(), |tag, body, out| {
        if tag != b'E' {
            return as_it_is(tag, body, out);
        }
        let fields = body
            .split(|b| *b == 0)
            .filter(|f| !f.is_empty() && f[0] != b'C');
        let mut left: Vec<u8> = fields.flat_map(|f| [f, b"\0"].concat()).collect();
        left.push(0);
        as_it_is(tag, &left, out);
    });
    let proxy = Proxy::behind(&middle, &Options::default());
    let mut client = proxy.client("odd");
    let error = client.query("select 1/0").unwrap_err().server();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("", "division by zero")
    );
    proxy.admin().swap();
    client.run("select 1");
    let target = Target::new(proxy.port(), APP, "nowhere");
    let error = Client::connect(&target).unwrap_err().server();
    assert_eq!(
        (error.code.as_str(), error.severity.as_str()),
        ("", "FATAL")
    );
    // FATAL at rest, without a code: meant for this session.
    let process = client.server_process();
    server.run(&[&format!("select pg_terminate_backend({process})")]);
    let error = client.finish().unwrap_err().server();
    assert_eq!(error.severity, "FATAL");
}

#[test]
fn case_40_application_names_and_search_paths_of_every_kind() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut admin = Client::connect(&server.admin()).unwrap();
    for name in ["", "naïve ☃ app", "quote ' and \" and \\", &"n".repeat(100)] {
        let mut direct = Client::connect(&server.named(name)).unwrap();
        let mut client = Client::connect(&proxy.named(name)).unwrap();
        let sql = "select current_setting('application_name')";
        let wanted = direct.value(sql);
        assert_eq!(client.value(sql), wanted);
        assert_eq!(
            client.parameter("application_name"),
            direct.parameter("application_name")
        );
        proxy.admin().swap();
        assert_eq!(client.value(sql), wanted, "{name:?}");
        let shown = admin.value(
            "select count(distinct application_name) from pg_stat_activity where usename = 'app'",
        );
        assert_eq!(shown, "1");
    }
    for path in [
        "public",
        "\"$user\", public",
        "\"Odd, Name\", \"quo\"\"ted\", plain",
        "a b",
        "'one, element', two",
        "\"über\"",
    ] {
        let mut client = proxy.client("path");
        let set = if path == "a b" {
            "set search_path = 'a b'".to_owned()
        } else {
            format!("set search_path = {path}")
        };
        client.run(&set);
        let before = client
            .query("select current_setting('search_path'), current_schemas(true)::text")
            .unwrap();
        proxy.admin().swap();
        let after = client
            .query("select current_setting('search_path'), current_schemas(true)::text")
            .unwrap();
        assert_eq!(after, before, "{path}");
    }
}
