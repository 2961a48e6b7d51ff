//! Ports that tests on this machine do not take from each other.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that no other test on this machine uses, held by a lock file as long as this lives. Below the range from which
/// Slackwater takes ports for local servers (20,000 and more), and below that of outgoing connections: neither knows the
/// locks.
#[derive(Debug)]
pub(crate) struct Port {
    /// The number.
    pub(crate) number: u16,
    _lock: Flock<File>,
}

impl Port {
    /// Takes a free port.
    pub(crate) fn take() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let dir = std::env::temp_dir().join("slackwater-test-ports");
        fs::create_dir_all(&dir).unwrap();
        for _ in 0..10_000 {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let [.., high, low] = std::process::id().to_be_bytes();
            let seed = u16::from_be_bytes([high, low])
                .wrapping_mul(61)
                .wrapping_add(step);
            let number = 10_000 + seed % 10_000;
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(dir.join(number.to_string()))
                .unwrap();
            let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                continue;
            };
            if std::net::TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!("no free port");
    }
}
