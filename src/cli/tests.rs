//! What is typed, what is printed, and the exit code.

use super::*;
use crate::api::tests::{Fake, cluster_view, event_view, session_view, start};
use crate::api::{
    BlockerView, ControlError, ErrorCode, EventState, EventView, FactView, ReloadReport,
    WaitingView,
};
use crate::observe::EventOutcome;
use std::sync::Arc;

fn parsed(line: &str) -> Result<Command, String> {
    Cli::try_parse_from(line.split(' '))
        .map(|cli| cli.command)
        .map_err(|e| e.to_string())
}

/// Runs a client command against `fake`; answers exit code (or failure) and output.
fn ask(fake: &Arc<Fake>, line: &str, terminal: bool) -> (Result<u8, Failure>, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(start(Arc::clone(fake), None));
    let line = format!("slackwater {line} --admin http://{address}");
    let Command::Client(command) = parsed(&line).unwrap() else {
        panic!("{line}")
    };
    let mut out = Vec::new();
    let result = commands::run(&command, &mut out, terminal);
    (result, String::from_utf8(out).unwrap())
}

fn waiting(session: u64) -> WaitingView {
    WaitingView {
        session,
        blocker: BlockerView {
            kind: "transaction".to_owned(),
            detail: String::new(),
            statement: Some("UPDATE t\nSET a = ?".to_owned()),
            age_seconds: 133,
        },
    }
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    for (line, words) in [
        ("slackwater", "Usage"),
        ("slackwater scale shop", "CAPACITY"),
        ("slackwater scale shop four", "invalid digit"),
        (
            "slackwater scale shop 4 --force --rollback",
            "cannot be used with",
        ),
        ("slackwater scale shop 4 --timeout 100ms", "1s to 24h"),
        ("slackwater hold shop --for 5", "is not a duration"),
        ("slackwater hold shop --for 0", "1s to 24h"),
        ("slackwater dev --admin-port 0", "0 is not in"),
        ("slackwater dev --mysql-port 0", "0 is not in"),
        ("slackwater serve --colour", "unexpected argument"),
    ] {
        let error = parsed(line).unwrap_err();
        assert!(error.contains(words), "{line}: {error}");
    }
    for line in [
        "slackwater scale shop 4 --timeout 5m --force --wait --json",
        "slackwater events shop --follow",
        "slackwater check",
    ] {
        parsed(line).unwrap();
    }
}

#[test]
fn status_shows_clusters_in_columns() {
    let fake = Arc::new(Fake::default());
    let (result, out) = ask(&fake, "status", false);
    assert_eq!(result.unwrap(), 0);
    assert_eq!(
        out,
        "CLUSTER  STATE    ACU  RANGE  CLIENTS  ACTIVE  AT REST  HELD  PARKED  SERVER CONNECTIONS  GENERATION  EVENT\n\
         shop     running  2    2-8    12       2       9        0     1       11                  3           -\n"
    );
    let (_, out) = ask(&fake, "status shop", false);
    assert_eq!(
        out,
        "cluster:            shop (postgres)\n\
         state:              running\n\
         capacity:           2 ACU, of 2, 4, 8\n\
         generation:         3\n\
         clients:            12\n\
         sessions:           2 active, 9 at rest, 0 held, 1 parked\n\
         server connections: 11\n\
         used:               120 ACU seconds\n\
         \n\
         FACT       VALUE  NOTE\n\
         cpu_limit  none   no cgroup can be written\n"
    );
    let (_, out) = ask(&fake, "status shop --json", false);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json, serde_json::json!(cluster_view()));
    let (result, _) = ask(&fake, "status nope", false);
    let failure = result.unwrap_err();
    assert_eq!(
        (failure.exit, failure.code.as_str()),
        (1, "unknown_cluster")
    );
    assert_eq!(ask(&fake, "status a/b", false).0.unwrap_err().exit, 2);
}

#[test]
fn sessions_and_events_are_readable() {
    let fake = Arc::new(Fake::default());
    let (_, out) = ask(&fake, "sessions shop", false);
    assert_eq!(
        out,
        "ID  USER  DATABASE  APPLICATION  CLIENT          STATE    SERVER    MOVABLE  AGE    BLOCKER        FOR    DETAIL  STATEMENT\n\
         7   app   shop      psql         10.0.0.9:40000  at_rest  attached  no       1h06m  advisory_lock  2m13s  42      SELECT pg_advisory_lock(?)\n"
    );
    let (_, out) = ask(&fake, "events shop", false);
    assert_eq!(
        out,
        "ID  FROM  TO  OUTCOME    AGO  TOOK   HELD  ATTEMPTS  MOVED  BLOCKED  REASON\n\
         5   2     4   completed  3s   812ms  21ms  1         11     0        -\n"
    );
    assert_eq!(render::sessions(&[]), "no sessions\n");
    assert_eq!(render::events(&[]), "no scale events\n");
    assert_eq!(render::clusters(&[]), "no clusters\n");
}

#[test]
fn what_clients_call_themselves_can_not_steer_the_terminal() {
    let mut session = session_view();
    session.application = "\x1b[2Jevil\u{202e}\u{9b}".to_owned();
    session.blockers[0].statement = Some("SELECT\n\t1".to_owned());
    let mut second = session.blockers[0].clone();
    second.kind = "listen".to_owned();
    session.blockers.push(second);
    let out = render::sessions(&[session]);
    assert!(
        out.contains("?[2Jevil??") && out.contains("SELECT  1"),
        "{out}"
    );
    assert!(out.chars().all(|c| c == '\n' || !c.is_control()));
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("   ") && last.contains("listen"), "{out}");
}

#[test]
fn ages_and_lengths() {
    for (seconds, text) in [
        (0, "0s"),
        (59, "59s"),
        (133, "2m13s"),
        (3600, "1h00m"),
        (90_000, "1d01h"),
    ] {
        assert_eq!(render::age(seconds), text);
    }
    for (ms, text) in [
        (0, "0ms"),
        (999, "999ms"),
        (1450, "1.4s"),
        (61_000, "1m01s"),
    ] {
        assert_eq!(render::millis(ms), text);
    }
}

#[test]
fn ends_of_events_are_told_in_a_sentence_and_an_exit_code() {
    let end = |outcome, change: fn(&mut EventView)| {
        let mut event = event_view(EventState::Done, Some(outcome));
        change(&mut event);
        (watch::exit_code(&event), render::event_end("shop", &event))
    };
    for ((exit, text), expected_exit, expected) in [
        (
            end(EventOutcome::Completed, |_| {}),
            0,
            "completed: shop 2 -> 4 ACU, 11 sessions moved, held 21ms, took 812ms",
        ),
        (
            end(EventOutcome::Forced, |e| {
                (e.sessions_blocked, e.attempt) = (1, 3);
            }),
            0,
            "forced in 3 attempts: shop 2 -> 4 ACU, 11 sessions moved, held 21ms, took 812ms, 1 session ended",
        ),
        (
            end(EventOutcome::RolledBack, |e| {
                e.sessions_blocked = 2;
                e.reason = Some("no scaling point in 300s".to_owned());
            }),
            3,
            "rolled back: shop stays at 2 ACU, 2 sessions in the way, took 812ms: no scaling point in 300s",
        ),
        (
            end(EventOutcome::Failed, |e| {
                e.reason = Some("the server didn't start".to_owned());
            }),
            4,
            "failed: shop 2 -> 4 ACU: the server didn't start",
        ),
        (
            end(EventOutcome::None, |_| {}),
            0,
            "nothing to do: shop is at 4 ACU",
        ),
    ] {
        assert_eq!((exit, text.as_str()), (expected_exit, expected));
    }
}

#[test]
fn scale_follows_the_event_and_ends_with_its_exit_code() {
    let fake = Arc::new(Fake::default());
    let (result, out) = ask(&fake, "scale shop 4", false);
    assert_eq!(result.unwrap(), 0);
    assert_eq!(
        out,
        "event 5 started: shop 2 -> 4 ACU; see it with: slackwater events shop\n"
    );

    let mut settle = event_view(EventState::Running, None);
    settle.step = Some("settle".to_owned());
    settle.waiting_for = vec![waiting(7), waiting(9)];
    let mut ended = event_view(EventState::Done, Some(EventOutcome::RolledBack));
    ended.sessions_blocked = 2;
    let progress = || vec![settle.clone(), settle.clone(), ended.clone()];
    *fake.progress.lock() = progress();
    let (result, out) = ask(&fake, "scale shop 4 --wait --timeout 5m --rollback", false);
    assert_eq!(result.unwrap(), 3);
    assert_eq!(
        out,
        "shop 2 -> 4 ACU: probe\n\
         shop 2 -> 4 ACU: settle, waiting for session 7 (transaction), session 9 (transaction)\n\
         rolled back: shop stays at 2 ACU, 2 sessions in the way, took 812ms\n"
    );
    assert!(
        fake.calls
            .lock()
            .last()
            .unwrap()
            .contains("timeout: Some(300s), on_timeout: Some(Rollback)")
    );

    *fake.progress.lock() = progress();
    let (result, out) = ask(&fake, "scale shop 4 --wait --json", true);
    assert_eq!(result.unwrap(), 3);
    assert_eq!(serde_json::from_str::<EventView>(&out).unwrap(), ended);

    *fake.progress.lock() = progress();
    let (result, out) = ask(&fake, "scale shop 4", true);
    assert_eq!(result.unwrap(), 3);
    let live = "shop  2 -> 4 ACU   settle   attempt 1   3s of 5m00s   held 21ms   then roll back\n\
                waiting for 2 sessions:\n\
                SESSION  BLOCKER      FOR    DETAIL  STATEMENT\n\
                7        transaction  2m13s  -       UPDATE t SET a = ?\n\
                9        transaction  2m13s  -       UPDATE t SET a = ?\n";
    assert!(
        out.contains(&format!("\x1b[?7l\x1b[1A\r\x1b[J{live}\x1b[?7h")),
        "{out:?}"
    );
    assert!(
        out.ends_with(
            "\x1b[5A\r\x1b[Jrolled back: shop stays at 2 ACU, 2 sessions in the way, took 812ms\n"
        ),
        "{out:?}"
    );

    *fake.refusal.lock() = Some(ControlError::new(
        ErrorCode::EventRunning,
        "event 4 is running",
    ));
    let failure = ask(&fake, "scale shop 4", false).0.unwrap_err();
    assert_eq!(
        (failure.exit, failure.message.as_str()),
        (1, "event 4 is running")
    );
}

#[test]
fn the_live_view_shows_at_most_ten_rows() {
    let mut event = event_view(EventState::Running, None);
    event.waiting_for = (0..25).map(waiting).collect();
    let picture = render::event_live("shop", &event);
    assert_eq!(picture.lines().count(), 14, "{picture}");
    assert!(picture.ends_with("and 15 more\n"));
    assert!(render::event_step("shop", &event).ends_with(" and 15 more"));
}

#[test]
fn a_line_names_only_who_stays_in_the_way() {
    let mut event = event_view(EventState::Running, None);
    event.attempt = 2;
    event.waiting_for = vec![waiting(7), waiting(9)];
    event.waiting_for[0].blocker.age_seconds = 0;
    let line = "shop 2 -> 4 ACU: probe, attempt 2, waiting for session 9 (transaction)";
    assert_eq!(render::event_step("shop", &event), line);
    event.waiting_for[1].blocker.age_seconds = 0;
    let line = "shop 2 -> 4 ACU: probe, attempt 2";
    assert_eq!(render::event_step("shop", &event), line);
}

#[test]
fn the_other_commands() {
    let fake = Arc::new(Fake::default());
    let (result, out) = ask(&fake, "hold shop --for 5m", false);
    assert_eq!(
        (result.unwrap(), out.as_str()),
        (0, "shop: running, 2 ACU, 0 held\n")
    );
    assert_eq!(ask(&fake, "release shop", false).0.unwrap(), 0);
    let (_, out) = ask(&fake, "reload", false);
    assert_eq!(
        out,
        "changed: limits.max_clients\nnot changed, needs a new start: listen.postgres\ncertificates were read again\n"
    );
    assert_eq!(
        render::reload(&ReloadReport::default()),
        "the configuration is the same\n"
    );
    assert!(ask(&fake, "drain", false).1.starts_with("draining: "));
    assert_eq!(
        ask(&fake, "pause shop", false).0.unwrap_err().code,
        "not_supported"
    );
    assert_eq!(
        ask(&fake, "resume shop", false).0.unwrap_err().code,
        "not_supported"
    );
    assert_eq!(
        *fake.calls.lock(),
        ["hold shop Some(300s)", "release shop", "reload", "drain"]
    );
}

#[test]
fn a_proxy_that_is_not_there_and_one_that_is_something_else() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let fail = |line: String| {
        let Command::Client(command) = parsed(&line).unwrap() else {
            panic!("{line}")
        };
        commands::run(&command, &mut Vec::new(), false).unwrap_err()
    };
    let failure = fail(format!("slackwater status --admin http://{address}"));
    assert_eq!(failure.exit, 1);
    assert!(
        failure.message.contains("is the proxy running"),
        "{}",
        failure.message
    );
    let failure = fail("slackwater status --admin https://db.example.com".to_owned());
    assert_eq!(failure.exit, 2);
    let failure = fail("slackwater status --token-file /nonexistent".to_owned());
    assert!(
        failure.message.contains("--token-file /nonexistent"),
        "{}",
        failure.message
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let failure = check::run(&dir.path().join("none.toml"), false, &mut Closed).unwrap_err();
    assert_eq!(failure.exit, 0);
}

#[test]
fn facts_with_control_characters() {
    let mut cluster = cluster_view();
    cluster.facts.push(FactView {
        name: "a".to_owned(),
        value: "b\x07".to_owned(),
        note: String::new(),
    });
    assert!(render::cluster(&cluster).contains("b?"));
}

const CHECKED: &str = r#"
state_dir = "state"
[listen.postgres]
address = ["127.0.0.1:5433"]
[tls]
certificate = "server.crt"
private_key = "server.key"
[clusters.shop]
engine = "postgres"
default = true
[clusters.shop.auth]
service_user = "slackwater"
[clusters.shop.provider]
kind = "static"
endpoints = [{ capacity = 2, address = "10.0.0.5:5432" }]
"#;

#[test]
fn check_tries_what_can_be_tried() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let certificate =
        || rcgen::generate_simple_self_signed(vec!["db.example.com".to_owned()]).unwrap();
    let (good, other) = (certificate(), certificate());
    file("server.crt", &good.cert.pem());
    file("server.key", &good.signing_key.serialize_pem());
    file("proxy.toml", CHECKED);
    let path = dir.path().join("proxy.toml");
    let check = |json| {
        let mut out = Vec::new();
        let exit = check::run(&path, json, &mut out).unwrap();
        (exit, String::from_utf8(out).unwrap())
    };
    let (exit, out) = check(false);
    assert_eq!(exit, 0, "{out}");
    for words in [
        "listen: postgres on 127.0.0.1:5433",
        "server.crt loads (1 in the chain), and the key fits",
        "state, which will be made",
        "clusters.shop: postgres, default, 2 ACU, verifiers from the server",
        "2 ACU at 10.0.0.5:5432, not contacted",
        "pg_hba.conf see Slackwater's address",
        "proxy.toml can be used",
    ] {
        assert!(out.contains(words), "{words}\n{out}");
    }

    let tells = "kind = \"static\"\nserver_proxy_protocol = \"v2\"";
    file("proxy.toml", &CHECKED.replace("kind = \"static\"", tells));
    let (exit, out) = check(false);
    assert!(
        exit == 0 && out.contains("begin with a PROXY header") && !out.contains("pg_hba.conf"),
        "{out}"
    );
    file("proxy.toml", CHECKED);

    file("server.key", &other.signing_key.serialize_pem());
    let (exit, out) = check(false);
    assert_eq!(exit, 2);
    assert!(
        out.contains("tls.private_key: ") && out.contains("doesn't fit the certificate"),
        "{out}"
    );
    file("server.crt", "nothing");
    let (exit, out) = check(true);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (exit, &answer["ok"], &answer["problems"][0]["key"]),
        (2, &false.into(), &"tls.certificate".into())
    );

    file("state", "a file");
    file("server.crt", &good.cert.pem());
    file("server.key", &good.signing_key.serialize_pem());
    assert!(check(false).1.contains("state is not a directory"));

    file("proxy.toml", &CHECKED.replace("default", "defalt"));
    let (exit, out) = check(false);
    assert_eq!(exit, 2);
    assert!(
        out.contains("proxy.toml:10: clusters.shop.defalt: unknown key"),
        "{out}"
    );
    let (_, out) = check(true);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(
        answer["problems"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["line"] == 10),
        "{out}"
    );
}
