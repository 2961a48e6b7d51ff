//! The starting line after a barrier: held sessions get their new server connections first, and go on
//! together. Else those that come first keep the server busy, and the last one waits for all of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long sessions that are ready wait for the others.
const LINE_MAX: Duration = Duration::from_millis(250);

/// How often it is looked whether all are ready.
const LOOK: Duration = Duration::from_millis(1);

/// The starting line of one cluster; open but for the moments after a barrier.
#[derive(Debug)]
pub struct Line {
    open: watch::Sender<bool>,
    /// Sessions that have a request in hand and no server connection yet.
    coming: AtomicUsize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            open: watch::Sender::new(true),
            coming: AtomicUsize::new(0),
        }
    }
}

impl Line {
    /// Sessions that become ready wait from now on.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Opens when all that come are ready (`in_line` of them have no server connection to wait for), or
    /// after a quarter of a second.
    pub async fn open(&self, in_line: impl Fn() -> usize) {
        let until = Instant::now() + LINE_MAX;
        loop {
            let coming = self.coming.load(Ordering::Acquire);
            if coming <= in_line() || Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.open.send_replace(true);
    }

    /// A session comes.
    pub fn come(&self) -> Coming<'_> {
        self.coming.fetch_add(1, Ordering::AcqRel);
        Coming(self)
    }

    /// Waits, ready, for the others.
    pub async fn wait(&self) {
        let mut open = self.open.subscribe();
        // The sender lives as long as the cluster.
        let _open = open.wait_for(|open| *open).await;
    }
}

/// Counts one session until it is ready, or gives up.
#[derive(Debug)]
pub struct Coming<'a>(&'a Line);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn those_that_are_ready_wait_for_the_rest() {
        let line = Line::default();
        assert!(line.wait().now_or_never().is_some(), "open at first");
        line.close();
        let last = line.come();
        let opening = line.open(|| 0);
        tokio::pin!(opening);
        assert!((&mut opening).now_or_never().is_none());
        assert!(line.wait().now_or_never().is_none());
        drop(last);
        opening.await;
        assert!(line.wait().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_that_never_comes() {
        let line = Line::default();
        line.close();
        let _never = line.come();
        let began = Instant::now();
        line.open(|| 0).await;
        assert!(began.elapsed() >= LINE_MAX);
        assert!(line.wait().now_or_never().is_some());
    }
}
