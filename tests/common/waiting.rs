//! Waiting for what should happen soon, and how long the tests are to be.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::time::Duration;
use tokio::time::Instant;

/// Whether the long variants were asked for.
pub(crate) fn full() -> bool {
    std::env::var_os("SLACKWATER_TEST_FULL").is_some_and(|v| v == "1")
}

/// `short`, or `long` when the long variants were asked for.
pub(crate) fn sized<T>(short: T, long: T) -> T {
    if full() { long } else { short }
}

/// Asks `ready` again and again until it gives a value. Panics with `what` after `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// [`wait_for`] a condition.
pub(crate) fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    wait_for(what, limit, || ready().then_some(()));
}

/// Says that a test can't be run here, and why.
pub(crate) fn skipped(why: &str) {
    let text = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// Long enough for anything that should take a moment, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Long enough for a scale event that has nothing in its way, on a busy machine.
pub(crate) const EVENT: Duration = Duration::from_secs(60);
