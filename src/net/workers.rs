//! The threads that serve clients: each runs a runtime of its own, and a session stays on the thread
//! that it began on.
//!
//! Nothing on a request's path crosses threads, so nothing is woken by futex, and one `epoll_wait` hears
//! of many sessions. Sessions meet only in thread-safe types (registry, gate, metrics). Clients log in on
//! other threads, and go over to their session's with their proof.

use parking_lot::Mutex;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// How long a thread waits at its end for blocking work that was begun.
const BLOCKING_MAX: Duration = Duration::from_secs(1);

/// Threads that serve clients. Dropped, they end: what still runs on them is dropped with them.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Worker>,
    choosing: Mutex<()>,
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
    /// Starts the threads that serve clients: `count` of them; 0: half as many as there are processors for this process, at
    /// least one.
    ///
    /// A thread that hears of many sessions at once spends less on each, and clients and servers often
    /// run on the same machine: with a thread for each of two processors a transaction cost a third more,
    /// at the same throughput.
    pub fn for_sessions(count: usize) -> io::Result<Self> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get) / 2,
            count => count,
        };
        Self::start("clients", count.max(1))
    }

    /// Starts the threads on which clients log in, as many as serve them: all may come again at once. Who has proven nothing
    /// yet, and there may be thousands, never stands between a session and its thread.
    pub fn for_logins(sessions: &Self) -> io::Result<Self> {
        Self::start("logins", sessions.threads.len())
    }

    fn start(name: &str, count: usize) -> io::Result<Self> {
        let mut workers = Self {
            threads: Vec::with_capacity(count),
            choosing: Mutex::default(),
            stop: CancellationToken::new(),
        };
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stop = workers.stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{number}"))
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
        // One after the other: two that came at the same time would choose the same.
        let _choosing = self.choosing.lock();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::mpsc;
    use std::thread::ThreadId;
    use tokio::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn clients_spread_and_each_stays_where_it_began() {
        let workers = Workers::start("test", 2).expect("threads");
        let (tell, told) = mpsc::channel::<(ThreadId, ThreadId)>();
        let end = CancellationToken::new();
        for _ in 0..6 {
            let (tell, end) = (tell.clone(), end.clone());
            workers.spawn(move || async move {
                let began = std::thread::current().id();
                end.cancelled().await;
                tokio::task::yield_now().await;
                tell.send((began, std::thread::current().id()))
                    .expect("is heard");
            });
        }
        let loads: Vec<usize> = workers
            .threads
            .iter()
            .map(|w| w.load.load(Ordering::Relaxed))
            .collect();
        assert_eq!(loads, [3, 3]);
        end.cancel();
        let mut seen = HashSet::new();
        for _ in 0..6 {
            let (began, ended) = told.recv_timeout(LONG).expect("every client is served");
            assert_eq!(began, ended);
            seen.insert(began);
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_client_that_left_is_no_load() {
        let workers = Workers::start("test", 1).expect("a thread");
        let (tell, told) = mpsc::channel();
        workers.spawn(move || async move { tell.send(()).expect("is heard") });
        told.recv_timeout(LONG).expect("it is served");
        let until = Instant::now() + LONG;
        while workers.threads[0].load.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < until, "the load goes");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_end_does_not_wait_for_clients() {
        let workers = Workers::for_sessions(0).expect("threads");
        let (tell, told) = mpsc::channel::<()>();
        workers.spawn(move || async move {
            let _tell = tell;
            std::future::pending::<()>().await;
        });
        drop(workers);
        assert_eq!(
            told.recv_timeout(LONG),
            Err(mpsc::RecvTimeoutError::Disconnected)
        );
    }
}
