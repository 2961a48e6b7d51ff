//! The sessions of one cluster as others see them: flags that ask a session to do something, and what
//! it last told of itself. A session's task owns its truth; nothing here is on the path of a frame.

use super::gate::Lease;
use crate::session::blocker::Blocker;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Asks a session's task to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Ask {
    /// Look at the gate again.
    Gate = 1,
    /// Probe now if at rest and not probed since it last ran something; rehearse the snapshot.
    Probe = 1 << 1,
    /// Give the server connection up if at rest and without blocker.
    Park = 1 << 2,
    /// Cancel what runs, or what is held.
    Cancel = 1 << 3,
    /// The age limit is reached: end at rest.
    Expire = 1 << 4,
    /// The grace after the age limit is over: end now.
    ExpireHard = 1 << 5,
    /// The client was silent for its `idle_session_timeout`.
    IdleTimeout = 1 << 6,
    /// The scale event is forced: end, if still attached to the old generation.
    Force = 1 << 7,
    /// Slackwater drains: end at rest.
    Drain = 1 << 8,
    /// Slackwater stops: end now.
    Stop = 1 << 9,
    /// Publish blockers for people to read.
    Report = 1 << 10,
    /// Move to the instance that serves: a lease for the second end is offered.
    Move = 1 << 11,
    /// Give a move that was begun up: it took too long to come to a safe point.
    StayHere = 1 << 12,
    /// End, as a replication connection that is to give way to an event: nobody else is left.
    GiveWay = 1 << 13,
    /// Another client has killed the session (MySQL's KILL).
    Kill = 1 << 14,
}

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Works, or may.
    Active,
    /// Attached and at rest.
    AtRest,
    /// Waits for a server connection with a request in hand.
    Held,
    /// Detached, nothing to do.
    Parked,
}

impl State {
    /// Every state, for metrics.
    pub const ALL: [Self; 4] = [Self::Active, Self::AtRest, Self::Held, Self::Parked];

    /// The name in the admin API and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::AtRest => "at_rest",
            Self::Held => "held",
            Self::Parked => "parked",
        }
    }

    const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Active,
            1 => Self::AtRest,
            2 => Self::Held,
            _ => Self::Parked,
        }
    }
}

/// Who a session is; fixed at login.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Number of the session, unique in this process.
    pub id: u64,
    /// User name.
    pub user: String,
    /// Database name.
    pub database: String,
    /// Client's address.
    pub client_address: String,
    /// When the client logged in.
    pub connected_at: Instant,
    /// How much older than the limit the session may get: spreads the closings.
    pub age_limit: Option<Duration>,
}

/// What a session last told of itself.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// `application_name`.
    pub application: String,
    /// Why it can't be detached.
    pub blockers: Vec<Blocker>,
    /// It can't, but is to be ended rather than waited for ([`Ask::GiveWay`]).
    pub gives_way: bool,
    /// `None`: not probed since it last ran something.
    pub movable: Option<bool>,
    /// When it was last probed.
    pub probed_at: Option<Instant>,
    /// Generation that it is attached to.
    pub generation: Option<u64>,
    /// `idle_session_timeout` as last seen.
    pub idle_session_timeout: Option<Duration>,
    /// Number of the [`Ask::Report`] that this answers.
    pub answers: u64,
}

/// One session as others see it.
#[derive(Debug)]
pub struct Handle {
    /// Who it is.
    pub identity: Identity,
    asked: AtomicU32,
    waker: AtomicWaker,
    state: AtomicU8,
    /// Milliseconds since the registry began; when the session came to rest. 0: it is not.
    rest_since: AtomicU64,
    /// Milliseconds since the registry began; the client's last request.
    last_request: AtomicU64,
    /// Process number told to the client.
    pub process: AtomicI32,
    /// The number that the server has for its present connection; 0: there is none. (MySQL and MariaDB.)
    pub connection: AtomicU32,
    report: Mutex<Report>,
    offer: Mutex<Option<Lease>>,
    cancels: Mutex<Vec<oneshot::Sender<()>>>,
    probed_rest: AtomicU64,
    moving: AtomicBool,
    epoch: Instant,
}

impl Handle {
    /// Asks, and wakes the session's task.
    pub fn ask(&self, what: Ask) {
        self.asked.fetch_or(what as u32, Ordering::Release);
        self.waker.wake();
    }

    /// Has the task woken by the next [`Self::ask`].
    pub fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// Something was asked; one load, for the hot path.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) != 0
    }

    /// Takes one thing that was asked, if it was.
    pub fn take(&self, what: Ask) -> bool {
        let bit = what as u32;
        self.asked.load(Ordering::Acquire) & bit != 0
            && self.asked.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Forgets everything that was asked: the session ends.
    pub fn forget_asked(&self) {
        self.asked.store(0, Ordering::Release);
    }

    /// Asks for a cancel; the receiver hears when it is settled.
    pub fn ask_cancel(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.cancels.lock().push(sender);
        self.ask(Ask::Cancel);
        receiver
    }

    /// Those who asked for a cancel so far: what is done now is for them, and for nobody who asks later.
    pub fn take_cancels(&self) -> Cancels {
        Cancels(std::mem::take(&mut *self.cancels.lock()))
    }

    /// What was asked of `before`, which this one stands for from now on.
    pub fn take_over(&self, before: &Self) {
        let asked = before.asked.swap(0, Ordering::AcqRel);
        self.asked.fetch_or(asked, Ordering::AcqRel);
        self.cancels.lock().append(&mut before.cancels.lock());
        let process = before.process.load(Ordering::Relaxed);
        self.process.store(process, Ordering::Relaxed);
    }

    /// Offers the second end of a move.
    pub fn offer(&self, lease: Lease) {
        *self.offer.lock() = Some(lease);
        self.ask(Ask::Move);
    }

    /// The second end of a move is there to be taken.
    pub fn has_offer(&self) -> bool {
        self.offer.lock().is_some()
    }

    /// Takes the offer: by the session that moves now, or back by who made it.
    pub fn take_offer(&self) -> Option<Lease> {
        self.offer.lock().take()
    }

    /// The second end of a move is being made, or waits for a safe point.
    pub fn is_moving(&self) -> bool {
        self.moving.load(Ordering::Acquire)
    }

    /// The session's task tells that.
    pub fn set_moving(&self, moving: bool) {
        self.moving.store(moving, Ordering::Release);
    }

    /// True once per rest: it is time to look at a session that came to rest.
    pub fn first_look(&self) -> bool {
        let rest = self.rest_since.load(Ordering::Relaxed);
        rest != 0 && self.probed_rest.swap(rest, Ordering::Relaxed) != rest
    }

    /// Where the session is.
    pub fn state(&self) -> State {
        State::from_u8(self.state.load(Ordering::Relaxed))
    }

    /// The session's task tells where it is.
    pub fn set_state(&self, state: State, now: Instant) {
        let rest = if state == State::AtRest {
            self.millis(now).max(1)
        } else {
            0
        };
        self.rest_since.store(rest, Ordering::Relaxed);
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// The client sent something.
    pub fn touch(&self, now: Instant) {
        self.last_request.store(self.millis(now), Ordering::Relaxed);
    }

    /// How long the session is at rest; `None` when it is not.
    pub fn resting(&self, now: Instant) -> Option<Duration> {
        match self.rest_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_millis(
                self.millis(now).saturating_sub(since),
            )),
        }
    }

    /// How long ago the client's last request was.
    pub fn silent(&self, now: Instant) -> Duration {
        let last = self.last_request.load(Ordering::Relaxed);
        Duration::from_millis(self.millis(now).saturating_sub(last))
    }

    /// What the session last told.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Looks at what the session last told, without copying it.
    pub fn with_report<T>(&self, look: impl FnOnce(&mut Report) -> T) -> T {
        look(&mut self.report.lock())
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Clients that wait for their cancel. Dropped, they are told the same.
#[derive(Debug)]
pub struct Cancels(Vec<oneshot::Sender<()>>);

impl Cancels {
    /// The cancel has hit what it was to hit, or there was nothing.
    pub fn settled(self) {
        for waiter in self.0 {
            // A cancelling client that left needs no answer.
            let _left = waiter.send(());
        }
    }
}

/// The sessions of one cluster.
#[derive(Debug)]
pub struct Registry {
    sessions: Mutex<HashMap<u64, Arc<Handle>>>,
    reports: AtomicU64,
    epoch: Instant,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            reports: AtomicU64::new(0),
            epoch: tokio::time::Instant::now().into_std(),
        }
    }
}

impl Registry {
    /// Adds a session; it stays until its [`Registered`] is dropped.
    pub fn add(self: &Arc<Self>, identity: Identity, application: String) -> Registered {
        let now = identity.connected_at;
        let handle = Arc::new(Handle {
            asked: AtomicU32::new(Ask::Gate as u32),
            waker: AtomicWaker::new(),
            state: AtomicU8::new(State::Active as u8),
            rest_since: AtomicU64::new(0),
            last_request: AtomicU64::new(0),
            process: AtomicI32::new(0),
            connection: AtomicU32::new(0),
            report: Mutex::new(Report {
                application,
                ..Report::default()
            }),
            offer: Mutex::new(None),
            cancels: Mutex::default(),
            probed_rest: AtomicU64::new(0),
            moving: AtomicBool::new(false),
            epoch: self.epoch,
            identity,
        });
        handle.touch(now);
        self.sessions
            .lock()
            .insert(handle.identity.id, Arc::clone(&handle));
        Registered {
            registry: Arc::clone(self),
            handle,
        }
    }

    /// The session of this number.
    pub fn get(&self, id: u64) -> Option<Arc<Handle>> {
        self.sessions.lock().get(&id).cloned()
    }

    /// Every session now.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        self.sessions.lock().values().cloned().collect()
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.lock().len()
    }

    /// No session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has every session look at the gate.
    pub fn wake_all(&self) {
        self.ask_all(Ask::Gate);
    }

    /// Asks every session.
    pub fn ask_all(&self, what: Ask) {
        for handle in self.sessions.lock().values() {
            handle.ask(what);
        }
    }

    /// Asks every session to publish its blockers; the number to find in [`Report::answers`].
    pub fn ask_reports(&self) -> u64 {
        let number = self.reports.fetch_add(1, Ordering::AcqRel) + 1;
        self.ask_all(Ask::Report);
        number
    }

    /// Attached sessions that an event ends rather than waits for.
    pub fn giving_way(&self) -> Vec<Arc<Handle>> {
        let mut all = self.all();
        all.retain(|h| h.with_report(|r| r.gives_way && r.generation.is_some()));
        all
    }

    /// The number of the last [`Self::ask_reports`].
    pub fn report_number(&self) -> u64 {
        self.reports.load(Ordering::Acquire)
    }

    /// Sessions that rest longest first, each with its rest.
    pub fn resting(&self, now: Instant) -> Vec<(Duration, Arc<Handle>)> {
        let mut resting: Vec<_> = self
            .sessions
            .lock()
            .values()
            .filter_map(|h| h.resting(now).map(|rest| (rest, Arc::clone(h))))
            .collect();
        resting.sort_by_key(|(rest, _)| std::cmp::Reverse(*rest));
        resting
    }
}

/// A session's place in the registry.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    /// The session.
    pub handle: Arc<Handle>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // An event that waits for its move would wait for ever.
        self.handle.set_moving(false);
        drop(self.handle.take_offer());
        let mut sessions = self.registry.sessions.lock();
        let id = self.handle.identity.id;
        // One that logs in again has another handle by then.
        if sessions
            .get(&id)
            .is_some_and(|h| Arc::ptr_eq(h, &self.handle))
        {
            sessions.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn session(registry: &Arc<Registry>, id: u64, now: Instant) -> Registered {
        let identity = Identity {
            id,
            user: "u".to_owned(),
            database: "d".to_owned(),
            client_address: String::new(),
            connected_at: now,
            age_limit: None,
        };
        registry.add(identity, "app".to_owned())
    }

    #[test]
    fn a_cancel_is_settled_only_by_what_was_done_for_it() {
        let registry = Arc::new(Registry::default());
        let session = session(&registry, 1, registry.epoch);
        let mut first = session.handle.ask_cancel();
        assert!(session.handle.take(Ask::Cancel) && !session.handle.take(Ask::Cancel));
        let waiting = session.handle.take_cancels();
        let mut second = session.handle.ask_cancel();
        waiting.settled();
        assert!((&mut first).now_or_never().is_some());
        assert!((&mut second).now_or_never().is_none(), "asked later");
        assert!(session.handle.take(Ask::Cancel), "and is still to be done");
        session.handle.take_cancels().settled();
        assert!(second.now_or_never().is_some());
    }

    #[test]
    fn a_session_that_ended_is_not_moving() {
        let registry = Arc::new(Registry::default());
        let session = session(&registry, 1, registry.epoch);
        let handle = Arc::clone(&session.handle);
        handle.set_moving(true);
        drop(session);
        assert!(!handle.is_moving() && !handle.has_offer());
    }

    #[test]
    fn asks_are_kept_apart_until_taken() {
        let registry = Arc::new(Registry::default());
        let session = session(&registry, 1, registry.epoch);
        let handle = &session.handle;
        assert!(handle.take(Ask::Gate), "a new session looks at the gate");
        assert!(!handle.is_asked());
        handle.ask(Ask::Probe);
        registry.ask_all(Ask::Park);
        assert!(!handle.take(Ask::Move));
        assert!(handle.take(Ask::Park) && handle.is_asked());
        assert!(handle.take(Ask::Probe) && !handle.is_asked());
        let number = registry.ask_reports();
        assert_eq!(registry.report_number(), number);
        assert!(handle.is_asked());
        handle.forget_asked();
        assert!(!handle.take(Ask::Report));
    }

    #[test]
    fn who_rests_longest_comes_first() {
        let registry = Arc::new(Registry::default());
        let start = registry.epoch;
        let at = |ms| start + Duration::from_millis(ms);
        let sessions: Vec<_> = (0..4).map(|id| session(&registry, id, start)).collect();
        for (id, ms) in [(0, 30), (1, 10), (2, 20)] {
            sessions[id].handle.set_state(State::AtRest, at(ms));
        }
        let order = |now| -> Vec<u64> {
            let resting = registry.resting(now);
            resting.iter().map(|(_, h)| h.identity.id).collect()
        };
        assert_eq!(order(at(100)), [1, 2, 0]);
        sessions[1].handle.set_state(State::Active, at(40));
        assert_eq!(order(at(100)), [2, 0]);
        assert!(sessions[2].handle.first_look() && !sessions[2].handle.first_look());
        sessions[2].handle.set_state(State::AtRest, at(50));
        assert!(sessions[2].handle.first_look(), "another rest");
        drop(sessions);
        assert!(registry.is_empty());
    }
}
