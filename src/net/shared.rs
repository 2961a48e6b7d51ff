//! What every session of the process shares: cancel keys, limits, counters.

use crate::backend::registry::Handle;
use crate::observe::{ErrorKind, Metrics, Side};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use zeroize::Zeroizing;

/// Limits of the client side.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most clients that have proven who they are.
    pub max_clients: usize,
    /// From the first byte to ReadyForQuery.
    pub login_timeout: Duration,
    /// Age at which a session ends at rest.
    pub max_connection_age: Option<Duration>,
    /// After that, until it ends anyway.
    pub max_connection_age_grace: Duration,
}

/// What every session of the process shares.
#[derive(Debug)]
pub struct Shared {
    /// Where to count.
    pub metrics: Metrics,
    /// Limits.
    pub limits: Limits,
    /// New clients are refused.
    pub draining: AtomicBool,
    clients: AtomicUsize,
    next_session: AtomicU64,
    keys: Mutex<HashMap<i32, Vec<Key>>>,
}

/// One session's cancel key. Two clusters may have told the same process number.
struct Key {
    secret: Zeroizing<Box<[u8]>>,
    session: u64,
    handle: Weak<Handle>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key of session {}", self.session)
    }
}

impl Shared {
    /// Nobody is there yet.
    pub fn new(metrics: Metrics, limits: Limits) -> Self {
        Self {
            metrics,
            limits,
            draining: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            next_session: AtomicU64::new(1),
            keys: Mutex::default(),
        }
    }

    /// A session, or a login, ended because of this.
    pub fn count_error(&self, kind: ErrorKind) {
        let side = match kind {
            ErrorKind::Server => Side::Server,
            ErrorKind::Provider => Side::Control,
            ErrorKind::Client | ErrorKind::Proxy | ErrorKind::Limit => Side::Client,
        };
        self.metrics.error(side, kind);
    }

    /// A number for a new session.
    pub fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// Clients that have proven who they are.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// A place for one more client, if there is one.
    pub fn admit(self: &Arc<Self>) -> Result<Place, NoPlace> {
        let before = self.clients.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(self));
        // Asked after the place is taken: a drain that begins now sees it.
        let refused = if self.draining.load(Ordering::Acquire) {
            NoPlace::Draining
        } else if before < self.limits.max_clients {
            return Ok(place);
        } else {
            NoPlace::Full
        };
        self.count_error(ErrorKind::Limit);
        Err(refused)
    }

    /// Remembers a session's cancel key as long as the returned guard lives.
    pub fn add_key(
        self: &Arc<Self>,
        process: i32,
        secret: &[u8],
        handle: &Arc<Handle>,
    ) -> KeyGuard {
        let session = handle.identity.id;
        self.keys.lock().entry(process).or_default().push(Key {
            secret: Zeroizing::new(secret.into()),
            session,
            handle: Arc::downgrade(handle),
        });
        KeyGuard {
            shared: Arc::clone(self),
            process,
            session,
        }
    }

    /// The session of a whole cancel key. How long it takes tells nothing of a secret but its length.
    pub fn find_key(&self, process: i32, secret: &[u8]) -> Option<Arc<Handle>> {
        let keys = self.keys.lock();
        let same = |key: &&Key| {
            aws_lc_rs::constant_time::verify_slices_are_equal(&key.secret, secret).is_ok()
        };
        keys.get(&process)?.iter().find(same)?.handle.upgrade()
    }
}

/// Why there is no place for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The proxy lets nobody in any more.
    Draining,
    /// `max_clients` are there.
    Full,
}

/// One client's place under `max_clients`.
#[derive(Debug)]
pub struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A cancel key's life.
#[derive(Debug)]
pub struct KeyGuard {
    shared: Arc<Shared>,
    process: i32,
    session: u64,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let mut keys = self.shared.keys.lock();
        if let Entry::Occupied(mut entry) = keys.entry(self.process) {
            entry.get_mut().retain(|key| key.session != self.session);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}
