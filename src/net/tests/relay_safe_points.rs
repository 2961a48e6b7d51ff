//! Safe points: where they are, and one request at a time to come to them.

use super::*;

#[test]
fn safety_03_lock_step_stops_at_the_next_request() {
    let mut bench = Bench::new(1 << 16);
    assert_eq!(bench.forwards("Q:1"), "Q");
    bench.lock_step();
    assert_eq!(bench.forwards("Q:2 Q:3"), "");
    assert!(bench.replies("C Z:T").is_none());
    assert_eq!(
        tags(&drain(&mut bench.server)),
        "Q",
        "a transaction goes on"
    );
    assert!(matches!(bench.replies("C Z:I"), Some(Stop::SafePoint)));
    assert!(drain(&mut bench.server).is_empty());
    assert!(bench.relay.holds_request());
    bench.relay.mode = Mode::Flow;
    assert!(bench.turn().is_none());
    assert_eq!(tags(&drain(&mut bench.server)), "Q", "once");
    assert!(bench.replies("C Z:I").is_none());
}

#[test]
fn lock_step_lets_a_batch_come_to_its_sync() {
    let mut bench = Bench::new(1 << 16);
    assert_eq!(bench.forwards("P B"), "P B");
    bench.lock_step();
    assert_eq!(bench.forwards("E H E"), "E H E");
    assert!(bench.replies("1 2 C C").is_none());
    assert_eq!(bench.forwards("S P B"), "S");
    assert_eq!(bench.forwards("E S"), "");
    assert!(matches!(bench.replies("Z:I"), Some(Stop::SafePoint)));
}

#[test]
fn lock_step_lets_copy_come_to_its_end() {
    let mut bench = Bench::new(1 << 16);
    bench.relay.mode = Mode::Flow;
    assert_eq!(bench.forwards("Q:copy"), "Q");
    bench.lock_step();
    assert_eq!(bench.forwards("d:early"), "", "it may be no COPY");
    assert!(bench.replies("G").is_none());
    assert_eq!(bench.forwards("d:x c Q:next"), "d d c");
    assert!(matches!(bench.replies("C Z:I"), Some(Stop::SafePoint)));
    // The same under Execute, with a Sync that the COPY swallows.
    let mut bench = Bench::new(1 << 16);
    assert_eq!(bench.forwards("B E S"), "B E S");
    bench.lock_step();
    assert!(bench.replies("2 G").is_none());
    assert_eq!(bench.forwards("d:x c S S"), "d c S");
    assert!(matches!(bench.replies("C Z:I"), Some(Stop::SafePoint)));
}

#[test]
fn lock_step_lets_skipping_come_to_its_sync() {
    let mut bench = Bench::new(1 << 16);
    assert_eq!(bench.forwards("P"), "P");
    bench.lock_step();
    assert!(bench.server_sends(&frame(b'E', ERROR)).is_none());
    assert_eq!(bench.forwards("Q:skipped B S Q:next"), "Q B S");
    drain(&mut bench.client);
    assert!(matches!(bench.replies("Z:I"), Some(Stop::SafePoint)));
}

#[test]
fn safety_01_a_partial_frame_is_no_safe_point() {
    let mut bench = Bench::new(1 << 16);
    let copy = frame(b'd', &[1; 100]);
    bench.forwards("Q:copy");
    assert!(bench.replies("G").is_none());
    assert!(bench.client_sends(&copy[..50]).is_none());
    assert!(bench.server_sends(&frame(b'E', ERROR)).is_none());
    drain(&mut bench.client);
    bench.lock_step();
    assert!(bench.replies("Z:I").is_none(), "half a frame was sent");
    assert!(matches!(
        bench.client_sends(&copy[50..]),
        Some(Stop::SafePoint)
    ));
}
