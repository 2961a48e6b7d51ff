//! What is held while a session has no server connection, or is to have none.

use super::*;

#[test]
fn a_held_request_is_not_sent_and_its_client_is_watched() {
    let mut bench = Bench::detached();
    let stop = bench.client_sends(&frames("Q:insert"));
    assert!(matches!(stop, Some(Stop::NeedServer)));
    assert!(bench.relay.holds_request() && !bench.relay.client_gone());
    bench.client.write_all(&frames("Q:2")).now_or_never();
    assert!(bench.turn_held().is_none());
    bench.attach();
    bench.relay.mode = Mode::Flow;
    assert!(bench.turn().is_none());
    assert_eq!(
        drain(&mut bench.server),
        frames("Q:insert Q:2"),
        "once, in order"
    );

    let mut bench = Bench::detached();
    bench.client_sends(&frames("Q:insert"));
    bench.client.shutdown().now_or_never();
    assert!(matches!(bench.turn_held(), Some(Stop::ClientGone)));
    assert!(bench.relay.client_gone());
    bench.attach();
    bench.relay.mode = Mode::Flow;
    assert!(matches!(bench.turn(), Some(Stop::ClientGone)), "never sent");
    assert!(drain(&mut bench.server).is_empty());
}

#[test]
fn what_has_arrived_can_be_looked_at_before_a_question_is() {
    let mut bench = Bench::new(1 << 16);
    bench.registered.handle.ask(Ask::Cancel);
    let stop = bench.client_sends(&frames("Q:1"));
    assert!(matches!(stop, Some(Stop::Asked)));
    assert!(drain(&mut bench.server).is_empty(), "not looked at");
    bench.relay.look_first = true;
    assert!(matches!(bench.turn(), Some(Stop::Asked)));
    assert_eq!(drain(&mut bench.server), frames("Q:1"));
    // Nothing has arrived: nothing is waited for.
    bench.relay.look_first = true;
    assert!(matches!(bench.turn(), Some(Stop::Asked)));
    assert!(!bench.relay.look_first, "once");
    assert!(bench.registered.handle.take(Ask::Cancel));
    assert!(bench.turn().is_none());
}

#[test]
fn a_stopped_request_is_not_sent_for_a_client_that_left() {
    let mut bench = Bench::new(1 << 16);
    bench.forwards("Q:1");
    bench.lock_step();
    assert_eq!(bench.forwards("Q:2"), "");
    bench.client.shutdown().now_or_never();
    assert!(matches!(bench.turn(), Some(Stop::ClientGone)));
    assert!(drain(&mut bench.server).is_empty());
}

#[test]
fn a_held_client_may_send_only_so_much() {
    let mut bench = Bench::detached();
    assert!(matches!(
        bench.client_sends(&vec![frames("Q:x"); 20_000].concat()),
        Some(Stop::NeedServer)
    ));
    assert!(bench.turn_held().is_none());
    bench.assert_bounded();
    bench.attach();
    bench.relay.mode = Mode::Flow;
    let mut passed = 0;
    loop {
        assert!(bench.turn().is_none());
        let some = drain(&mut bench.server).len();
        if some == 0 {
            break;
        }
        passed += some;
    }
    assert_eq!(passed, 20_000 * frames("Q:x").len());
}

#[test]
fn a_refused_request_is_dropped_to_its_end() {
    for (held, left) in [
        ("Q:1", ""),
        ("F", ""),
        ("S", ""),
        ("Q:1 Q:2", "Q:2"),
        ("P:1 B E S", ""),
        ("P:1 B E H E S P:2 B E S Q:3", "P:2 B E S Q:3"),
        ("P:1 Q:skipped F S Q:2", "Q:2"),
    ] {
        let all = frames(held);
        // Whatever part of it was there when it was refused.
        for at in 1..=all.len() {
            let mut bench = Bench::detached();
            bench.client.write_all(&all[..at]).now_or_never();
            assert!(bench.turn_held().is_none());
            bench.refuse();
            bench.client.write_all(&all[at..]).now_or_never();
            assert!(bench.turn_held().is_none());
            let seen = drain(&mut bench.client);
            assert_eq!(tags(&seen), "E Z", "{held} at {at}");
            assert!(seen.ends_with(&frames("Z:I")));
            assert!(!bench.relay.is_discarding());
            assert_eq!(bench.relay.holds_request(), !left.is_empty());
            bench.attach();
            bench.relay.mode = Mode::Flow;
            assert!(bench.turn().is_none());
            assert_eq!(drain(&mut bench.server), frames(left), "{held} at {at}");
        }
    }
}

#[test]
fn a_refused_request_may_end_after_a_server_is_there() {
    let mut bench = Bench::detached();
    bench.client_sends(&frames("P:1 B"));
    bench.refuse();
    assert!(bench.turn_held().is_none());
    assert_eq!(tags(&drain(&mut bench.client)), "E");
    bench.attach();
    bench.relay.mode = Mode::Flow;
    assert!(bench.client_sends(&frames("E S Q:2")).is_none());
    assert_eq!(drain(&mut bench.server), frames("Q:2"));
    assert_eq!(drain(&mut bench.client), frames("Z:I"));
    assert!(bench.replies("C Z:I").is_none());
}

#[test]
fn a_detached_client_reads_what_it_is_told() {
    let mut bench = Bench::detached();
    bench.client_sends(&frames("Q:1"));
    bench.refuse();
    assert!(bench.turn().is_none(), "nothing is held any more");
    assert_eq!(tags(&drain(&mut bench.client)), "E Z");
}
