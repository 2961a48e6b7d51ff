//! The threads that serve clients: each runs a runtime of its own, and a session stays on the thread
//! that it began on.
//!
//! Nothing on a request's path crosses threads, so nothing is woken by futex, and one `epoll_wait` hears
//! of many sessions. Sessions meet only in thread-safe types (registry, gate, metrics).

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Event-loop turns of ready tasks between two looks at the sockets.
const EVENT_INTERVAL: u32 = 61;

/// How long a thread waits at its end for blocking work that was begun.
const BLOCKING_MAX: Duration = Duration::from_secs(1);

/// Threads that serve clients. Dropped, they end: what still runs on them is dropped with them.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Worker>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Clients that it serves.
    load: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// One client's share of its thread's load.
#[derive(Debug)]
struct Share(Arc<AtomicUsize>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// One thread per processor that this process may use.
    pub fn start() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let count = std::env::var("SW_W")
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(count);
        let mut workers = Self {
            threads: Vec::with_capacity(count),
            stop: CancellationToken::new(),
        };
        for number in 0..count {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(
                    std::env::var("SW_EI")
                        .ok()
                        .and_then(|v| v.parse().ok())
                        .unwrap_or(EVENT_INTERVAL),
                )
                .build()?;
            let handle = runtime.handle().clone();
            let stop = workers.stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("clients-{number}"))
                .spawn(move || {
                    runtime.block_on(stop.cancelled());
                    runtime.shutdown_timeout(BLOCKING_MAX);
                })?;
            workers.threads.push(Worker {
                runtime: handle,
                load: Arc::default(),
                thread: Some(thread),
            });
        }
        Ok(workers)
    }

    /// Serves one client on the thread that has the fewest. `serve` begins on that thread, so that what
    /// it opens belongs to that thread's runtime.
    pub fn spawn<F>(&self, serve: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let least = self
            .threads
            .iter()
            .min_by_key(|w| w.load.load(Ordering::Relaxed));
        let Some(worker) = least else { return };
        worker.load.fetch_add(1, Ordering::Relaxed);
        let share = Share(Arc::clone(&worker.load));
        worker.runtime.spawn(async move {
            let _share = share;
            serve().await;
        });
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for worker in &mut self.threads {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a thread that serves clients had panicked");
            }
        }
    }
}
