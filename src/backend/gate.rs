//! The gate of one cluster: which instance serves, who may have a server connection of it, and the
//! hold that stops both. One lock, so that "held" and "granted" can never disagree.
//!
//! Invariants: one generation serves at a time; a lease is granted only while the gate is open; a hold
//! always ends, because its guard releases when dropped; leases never exceed the limit, closing
//! connections included (a lease is given back only when the server has seen the end).

use super::Endpoint;
use super::registry::Registry;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Waiters that gave up may stay in line until there are so many.
const LEFT_MAX: usize = 16;

/// The instance that serves, under its generation.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Grows with each instance.
    pub generation: u64,
    /// How to reach it.
    pub endpoint: Arc<Endpoint>,
    /// Start time that the server itself tells: each new connection checks that it still is this one.
    pub started_at: Arc<str>,
}

impl Serving {
    /// The same start of the same server, whatever its generation.
    pub fn is_same_server(&self, other: &Self) -> bool {
        !self.started_at.is_empty()
            && self.started_at == other.started_at
            && self.endpoint == other.endpoint
    }
}

/// What sessions do about the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Server connections are granted.
    Open,
    /// None is granted; sessions at their safe points detach.
    Held,
    /// Granted, and sessions on a generation before this one move at their own safe points.
    Rolling {
        /// Connections of earlier generations are to be left.
        leave_before: u64,
    },
}

/// A consistent look at the gate.
#[derive(Debug, Clone)]
pub struct View {
    /// Changes with each change of the gate.
    pub version: u64,
    /// What sessions do.
    pub phase: Phase,
    /// Who serves; none before the first start and after a failure.
    pub serving: Option<Serving>,
    /// When the present hold began.
    pub held_since: Option<Instant>,
    /// An instance is expected to serve next ([`Gate::expect`]).
    pub expects: bool,
}

/// Who wants a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A session's own server connection.
    Session,
    /// A rehearsal, a move's second end, the service connection: may use the reserve, even in a hold.
    Spare,
    /// A log-in ahead to the instance that is expected: carries no session before another lease takes its place.
    Ahead,
}

/// The gate of one cluster.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    version: AtomicU64,
    waiting: AtomicUsize,
    limit: usize,
    /// Leases kept back from sessions for [`Purpose::Spare`].
    reserve: usize,
    progress: Notify,
    pressure: Notify,
    registry: Arc<Registry>,
}

#[derive(Debug)]
struct State {
    /// Connections of generations before this one are to be left.
    leave_before: Option<u64>,
    serving: Option<Serving>,
    held_since: Option<Instant>,
    sessions: usize,
    /// Those of `sessions` that were left at a safe point and close.
    closing: usize,
    spare: usize,
    ahead: usize,
    /// Who is to serve next, if all goes well. Never granted to a session.
    expected: Option<Serving>,
    outage_since: Option<Instant>,
    waiters: VecDeque<oneshot::Sender<Lease>>,
    last_generation: u64,
}

impl State {
    fn leases(&self) -> usize {
        self.sessions + self.spare + self.ahead
    }

    fn phase(&self) -> Phase {
        match (self.held_since, self.leave_before) {
            (Some(_), _) => Phase::Held,
            (None, Some(leave_before)) => Phase::Rolling { leave_before },
            (None, None) => Phase::Open,
        }
    }
}

impl Gate {
    /// A gate without an instance; `limit` is the most server connections that ever exist;
    /// the sessions of `registry` are woken by each change.
    pub fn new(limit: usize, registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                leave_before: None,
                serving: None,
                held_since: None,
                outage_since: None,
                sessions: 0,
                closing: 0,
                spare: 0,
                ahead: 0,
                expected: None,
                waiters: VecDeque::new(),
                last_generation: 0,
            }),
            version: AtomicU64::new(1),
            waiting: AtomicUsize::new(0),
            limit,
            reserve: if limit >= 3 { 2 } else { 0 },
            progress: Notify::new(),
            pressure: Notify::new(),
            registry,
        })
    }

    /// The number of the present view; one atomic load, for the hot path.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The present view.
    pub fn view(&self) -> View {
        let state = self.state.lock();
        View {
            version: self.version(),
            phase: state.phase(),
            serving: state.serving.clone(),
            held_since: state.held_since,
            expects: state.expected.is_some(),
        }
    }

    /// Sessions that wait for a server connection.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Those of them that have not been granted one yet: who was granted one may not know it yet.
    pub fn queued(&self) -> usize {
        let state = self.state.lock();
        state.waiters.iter().filter(|w| !w.is_closed()).count()
    }

    /// Server connections of sessions, closing ones and log-ins under way counted.
    pub fn session_leases(&self) -> usize {
        self.state.lock().sessions
    }

    /// Those of them that could still write: a session has them, or left them elsewhere than at a safe point.
    pub fn working_leases(&self) -> usize {
        let state = self.state.lock();
        state.sessions - state.closing
    }

    /// All server connections.
    pub fn leases(&self) -> usize {
        self.state.lock().leases()
    }

    /// Wakes who waits for [`Self::progress`].
    pub fn poke(&self) {
        self.progress.notify_one();
    }

    /// The most server connections that ever exist.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Since when no instance serves.
    pub fn outage_since(&self) -> Option<Instant> {
        self.state.lock().outage_since
    }

    /// Wakes when a lease came back, or a session found a blocker.
    pub fn progress(&self) -> impl Future<Output = ()> + '_ {
        self.progress.notified()
    }

    /// Wakes when sessions begin to wait although the gate is open: somebody should give way.
    pub fn pressure(&self) -> impl Future<Output = ()> + '_ {
        self.pressure.notified()
    }

    /// An instance serves, the gate is open, and still no session can be granted a server connection.
    pub fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.serving.is_some()
            && state.held_since.is_none()
            && (state.sessions + self.reserve >= self.limit || state.leases() >= self.limit)
    }

    /// Waits in line for a server connection of the serving instance.
    pub async fn lease(self: &Arc<Self>) -> Lease {
        loop {
            let receiver = {
                let mut state = self.state.lock();
                if state.waiters.is_empty()
                    && let Some(lease) = self.grant(&mut state, Purpose::Session)
                {
                    return lease;
                }
                if state.waiters.len() > 2 * self.waiting() + LEFT_MAX {
                    state.waiters.retain(|waiter| !waiter.is_closed());
                }
                let (sender, receiver) = oneshot::channel();
                state.waiters.push_back(sender);
                receiver
            };
            let waiting = Waiting::new(self);
            self.pressure.notify_one();
            let lease = receiver.await;
            drop(waiting);
            if let Ok(lease) = lease {
                return lease;
            }
        }
    }

    /// A spare server connection, if one is left; granted in a hold, too.
    pub fn try_spare(self: &Arc<Self>) -> Option<Lease> {
        let mut state = self.state.lock();
        self.grant(&mut state, Purpose::Spare)
    }

    /// `who` is to serve next, if all goes well: sessions at work may log in there ahead
    /// ([`Self::try_ahead`]). `None`: nobody is, and who logged in ahead and was not needed leaves.
    pub fn expect(&self, who: Option<(Endpoint, String)>) {
        let mut state = self.state.lock();
        state.expected = who.map(|(endpoint, started_at)| Serving {
            // It has none before it serves.
            generation: 0,
            endpoint: Arc::new(endpoint),
            started_at: Arc::from(started_at),
        });
        drop(state);
        self.changed();
    }

    /// A log-in ahead at the instance that is expected, if one is and a connection is left.
    pub fn try_ahead(self: &Arc<Self>) -> Option<Lease> {
        let mut state = self.state.lock();
        let serving = state.expected.clone()?;
        if state.leases() + self.reserve >= self.limit {
            return None;
        }
        state.ahead += 1;
        drop(state);
        Some(self.new_lease(Purpose::Ahead, serving))
    }

    /// Closes the gate until the guard is dropped or told who serves next. `None`: it is held already.
    pub fn hold(self: &Arc<Self>) -> Option<Hold> {
        let mut state = self.state.lock();
        if state.held_since.is_some() {
            return None;
        }
        let since = Instant::now();
        state.held_since = Some(since);
        drop(state);
        self.changed();
        Some(Hold {
            gate: Arc::clone(self),
            since,
        })
    }

    /// A new instance serves. Its generation is the highest so far, plus one.
    pub fn serve(self: &Arc<Self>, endpoint: Endpoint, started_at: &str) -> u64 {
        let mut state = self.state.lock();
        state.last_generation += 1;
        let generation = state.last_generation;
        state.outage_since = None;
        state.serving = Some(Serving {
            generation,
            endpoint: Arc::new(endpoint),
            started_at: Arc::from(started_at),
        });
        self.serve_waiters(&mut state);
        drop(state);
        self.changed();
        generation
    }

    /// No instance serves: requests wait for the next one.
    pub fn serve_none(&self) {
        let mut state = self.state.lock();
        state.serving = None;
        state.outage_since.get_or_insert_with(Instant::now);
        drop(state);
        self.changed();
    }

    /// Sessions on generations before `leave_before` move at their own safe points; or no longer. A hold
    /// goes on.
    pub fn roll(&self, leave_before: Option<u64>) {
        let mut state = self.state.lock();
        state.leave_before = leave_before;
        drop(state);
        self.changed();
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.registry.wake_all();
    }

    fn grant(self: &Arc<Self>, state: &mut State, purpose: Purpose) -> Option<Lease> {
        let serving = state.serving.clone()?;
        if state.leases() >= self.limit {
            return None;
        }
        match purpose {
            Purpose::Session => {
                if state.held_since.is_some() || state.sessions + self.reserve >= self.limit {
                    return None;
                }
                state.sessions += 1;
            }
            Purpose::Spare => state.spare += 1,
            Purpose::Ahead => state.ahead += 1,
        }
        Some(self.new_lease(purpose, serving))
    }

    fn new_lease(self: &Arc<Self>, purpose: Purpose, serving: Serving) -> Lease {
        Lease {
            gate: Arc::clone(self),
            purpose,
            serving,
            closing: false,
            returned: false,
        }
    }

    fn serve_waiters(self: &Arc<Self>, state: &mut State) {
        while let Some(waiter) = state.waiters.pop_front() {
            if waiter.is_closed() {
                continue;
            }
            let Some(lease) = self.grant(state, Purpose::Session) else {
                state.waiters.push_front(waiter);
                return;
            };
            if let Err(mut lease) = waiter.send(lease) {
                lease.returned = true;
                state.sessions -= 1;
            }
        }
    }

    fn give_back(self: &Arc<Self>, lease: &Lease) {
        let mut state = self.state.lock();
        match lease.purpose {
            Purpose::Session => state.sessions -= 1,
            Purpose::Spare => state.spare -= 1,
            Purpose::Ahead => state.ahead -= 1,
        }
        state.closing -= usize::from(lease.closing);
        self.serve_waiters(&mut state);
        drop(state);
        self.progress.notify_one();
    }

    fn release(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.held_since = None;
        self.serve_waiters(&mut state);
        drop(state);
        self.changed();
    }
}

/// The right to one server connection. Given back when dropped: drop it only when the server has seen
/// the connection's end.
#[derive(Debug)]
pub struct Lease {
    gate: Arc<Gate>,
    purpose: Purpose,
    serving: Serving,
    closing: bool,
    returned: bool,
}

impl Lease {
    /// The instance that served when the lease was granted; or that was expected, for a log-in ahead.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// It is for a log-in ahead.
    pub fn is_ahead(&self) -> bool {
        self.purpose == Purpose::Ahead
    }

    /// The session has left the connection at a safe point: nothing can be written on it any more, it only
    /// has to close.
    pub fn close_soon(&mut self) {
        if self.purpose == Purpose::Session && !self.closing {
            self.closing = true;
            self.gate.state.lock().closing += 1;
            self.gate.progress.notify_one();
        }
    }

    /// Turns a spare lease into a session's own: the second end of a move becomes its only one.
    #[must_use]
    pub fn for_session(mut self) -> Self {
        if self.purpose == Purpose::Spare {
            let mut state = self.gate.state.lock();
            state.spare -= 1;
            state.sessions += 1;
            drop(state);
            self.purpose = Purpose::Session;
        }
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.returned {
            Arc::clone(&self.gate).give_back(self);
        }
    }
}

/// A hold. Dropping it releases: to the old instance, or to the one that [`Gate::serve`] named since.
#[derive(Debug)]
pub struct Hold {
    gate: Arc<Gate>,
    since: Instant,
}

impl Hold {
    /// When it began.
    pub fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.gate.release();
    }
}

/// Counts one waiter for as long as it lives.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.waiting.fetch_add(1, Ordering::Relaxed);
        Self(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::registry::Registry;
    use crate::transport::{Address, ServerTls};
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use std::pin::Pin;

    fn endpoint() -> Endpoint {
        Endpoint {
            address: Address::Unix("/nowhere".into()),
            tls: ServerTls::Disable,
            tls_ca: None,
        }
    }

    fn open_gate(limit: usize) -> Arc<Gate> {
        let gate = Gate::new(limit, Arc::new(Registry::default()));
        gate.serve(endpoint(), "t0");
        gate
    }

    #[test]
    fn what_was_left_at_a_safe_point_counts_for_the_limit_and_for_no_event() {
        let gate = open_gate(5);
        let mut left = gate.lease().now_or_never().expect("free");
        let kept = gate.lease().now_or_never().expect("free");
        left.close_soon();
        left.close_soon();
        assert_eq!((gate.session_leases(), gate.working_leases()), (2, 1));
        assert!(gate.progress().now_or_never().is_some(), "an event hears");
        drop(left);
        assert_eq!((gate.session_leases(), gate.working_leases()), (1, 1));
        drop(kept);
        assert_eq!((gate.session_leases(), gate.working_leases()), (0, 0));
    }

    #[test]
    fn grants_up_to_the_limit_and_keeps_a_reserve() {
        let gate = open_gate(5);
        let held: Vec<_> = (0..3)
            .map(|_| gate.lease().now_or_never().expect("free"))
            .collect();
        assert!(gate.lease().now_or_never().is_none(), "two are kept back");
        let a = gate.try_spare().expect("the reserve");
        let b = gate.try_spare().expect("the reserve");
        assert!(gate.try_spare().is_none(), "never above the limit");
        assert_eq!(gate.leases(), 5);
        drop((a, b, held));
        assert_eq!(gate.leases(), 0);
    }

    #[test]
    fn who_is_expected_is_logged_in_to_ahead_and_serves_nobody() {
        let gate = open_gate(5);
        assert!(gate.try_ahead().is_none(), "nobody is expected");
        let session = gate.lease().now_or_never().expect("free");
        gate.expect(Some((endpoint(), "t1".to_owned())));
        assert!(gate.view().expects);
        let first = gate.try_ahead().expect("one is left");
        let _second = gate.try_ahead().expect("one is left");
        assert!(first.is_ahead() && !session.is_ahead());
        assert!(gate.try_ahead().is_none(), "the reserve is kept back");
        assert_eq!((gate.leases(), gate.session_leases()), (3, 1));
        assert_eq!(
            &*gate
                .lease()
                .now_or_never()
                .expect("free")
                .serving()
                .started_at,
            "t0"
        );
        gate.serve_none();
        assert!(gate.lease().now_or_never().is_none(), "nobody serves");
        let ahead = first.serving().clone();
        assert!(!ahead.is_same_server(session.serving()));
        gate.serve(endpoint(), "t1");
        let next = gate.lease().now_or_never().expect("it serves now");
        assert!(ahead.is_same_server(next.serving()));
        drop((session, first));
        assert_eq!((gate.leases(), gate.session_leases()), (2, 1));
        gate.expect(None);
        assert!(!gate.view().expects && gate.try_ahead().is_none());
    }

    #[test]
    fn waiters_are_served_in_order_and_leavers_cost_nothing() {
        let gate = open_gate(1);
        let first = gate.lease().now_or_never().expect("free");
        let mut second = Box::pin(gate.lease());
        let mut third = Box::pin(gate.lease());
        let mut fourth = Box::pin(gate.lease());
        for waiter in [&mut second, &mut third, &mut fourth] {
            assert!(waiter.now_or_never().is_none());
        }
        assert_eq!(gate.waiting(), 3);
        drop(second);
        drop(first);
        assert!((&mut fourth).now_or_never().is_none(), "third came first");
        let third = third.now_or_never().expect("its turn");
        drop(third);
        assert!(fourth.now_or_never().is_some());
        assert_eq!(gate.waiting(), 0);
    }

    #[test]
    fn a_hold_stops_grants_and_its_end_resumes_them() {
        let gate = open_gate(4);
        let hold = gate.hold().expect("open");
        assert!(gate.hold().is_none(), "one hold at a time");
        let mut waiter = Box::pin(gate.lease());
        assert!((&mut waiter).now_or_never().is_none());
        let spare = gate.try_spare().expect("rehearsals go on");
        drop(spare);
        drop(hold);
        let lease = waiter.now_or_never().expect("released");
        assert_eq!(lease.serving().generation, 1);
    }

    #[test]
    fn after_the_fence_only_a_proven_instance_is_granted() {
        let gate = open_gate(4);
        let hold = gate.hold().expect("open");
        gate.serve_none();
        drop(hold);
        let mut waiter = Box::pin(gate.lease());
        assert!((&mut waiter).now_or_never().is_none(), "nobody serves");
        gate.serve(endpoint(), "t1");
        let lease = waiter.now_or_never().expect("the new one serves");
        assert_eq!(lease.serving().generation, 2);
    }

    #[test]
    fn a_hold_outlives_a_change_of_rolling() {
        let gate = open_gate(4);
        let hold = gate.hold().expect("open");
        gate.roll(None);
        assert!(gate.lease().now_or_never().is_none(), "still held");
        gate.roll(Some(2));
        assert!(gate.lease().now_or_never().is_none(), "still held");
        drop(hold);
        assert!(gate.lease().now_or_never().is_some());
    }

    #[test]
    fn those_who_gave_up_do_not_pile_up() {
        let gate = open_gate(1);
        let _hold = gate.hold().expect("open");
        for _ in 0..100 {
            assert!(gate.lease().now_or_never().is_none());
        }
        assert!(gate.state.lock().waiters.len() <= LEFT_MAX + 1);
    }

    #[test]
    fn an_offer_that_is_replaced_or_left_is_given_back() {
        let registry = Arc::new(Registry::default());
        let gate = Gate::new(5, Arc::clone(&registry));
        gate.serve(endpoint(), "t0");
        let session = registry.add(
            crate::backend::registry::Identity {
                id: 1,
                user: String::new(),
                database: String::new(),
                client_address: String::new(),
                connected_at: Instant::now().into_std(),
                age_limit: None,
            },
            String::new(),
        );
        session.handle.offer(gate.try_spare().expect("a spare"));
        session.handle.offer(gate.try_spare().expect("a spare"));
        assert!(session.handle.has_offer());
        assert_eq!(gate.leases(), 1, "the first came back");
        let taken = session.handle.take_offer().expect("the second");
        assert!(session.handle.take_offer().is_none(), "once");
        let taken = taken.for_session();
        assert_eq!((gate.session_leases(), gate.leases()), (1, 1));
        drop(taken);
        assert_eq!((gate.session_leases(), gate.leases()), (0, 0));
        session.handle.offer(gate.try_spare().expect("a spare"));
        let kept_by_an_event = Arc::clone(&session.handle);
        drop(session);
        assert!(!kept_by_an_event.has_offer());
        assert_eq!(gate.leases(), 0, "the session ended");
    }

    #[derive(Debug, Clone)]
    enum Act {
        /// A session asks for a server connection.
        Ask,
        /// The n-th of those who wait gives up.
        GiveUp(usize),
        /// The n-th lease is given back.
        Return(usize),
        Spare,
        /// The n-th lease becomes a session's own.
        Own(usize),
        Hold,
        Release,
        Serve,
        ServeNone,
        Roll(bool),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => Just(Act::Ask),
            1 => (0_usize..8).prop_map(Act::GiveUp),
            4 => (0_usize..8).prop_map(Act::Return),
            2 => Just(Act::Spare),
            2 => (0_usize..8).prop_map(Act::Own),
            1 => Just(Act::Hold),
            2 => Just(Act::Release),
            1 => Just(Act::Serve),
            1 => Just(Act::ServeNone),
            1 => any::<bool>().prop_map(Act::Roll),
        ]
    }

    type Waiter = Pin<Box<dyn Future<Output = Lease>>>;

    /// Everyone who waits, in order, and every lease that is out.
    #[derive(Default)]
    struct Out {
        waiters: Vec<Waiter>,
        leases: Vec<Lease>,
    }

    impl Out {
        /// Takes what was granted; the first in line comes first.
        fn collect(&mut self) -> Result<(), TestCaseError> {
            let mut waits = false;
            for mut waiter in std::mem::take(&mut self.waiters) {
                if let Some(lease) = (&mut waiter).now_or_never() {
                    prop_assert!(!waits, "somebody was passed over");
                    self.leases.push(lease);
                } else {
                    waits = true;
                    self.waiters.push(waiter);
                }
            }
            Ok(())
        }
    }

    fn apply(gate: &Arc<Gate>, out: &mut Out, hold: &mut Option<Hold>, act: &Act) {
        let Out { waiters, leases } = out;
        let nth = |n: usize, len: usize| (len > 0).then(|| n % len);
        match *act {
            Act::Ask => {
                let gate = Arc::clone(gate);
                waiters.push(Box::pin(async move { gate.lease().await }));
            }
            Act::GiveUp(n) => drop(nth(n, waiters.len()).map(|n| waiters.remove(n))),
            Act::Return(n) => drop(nth(n, leases.len()).map(|n| leases.remove(n))),
            Act::Spare => leases.extend(gate.try_spare()),
            Act::Own(n) => {
                if let Some(n) = nth(n, leases.len()) {
                    let lease = leases.remove(n).for_session();
                    leases.insert(n, lease);
                }
            }
            Act::Hold => *hold = gate.hold().or(hold.take()),
            Act::Release => *hold = None,
            Act::Serve => drop(gate.serve(endpoint(), "t")),
            Act::ServeNone => gate.serve_none(),
            Act::Roll(on) => gate.roll(on.then_some(1)),
        }
    }

    proptest! {
        /// Whatever happens: never above the limit, first come first served, nobody waits while there is
        /// room, nothing is granted in a hold, and all is given back in the end.
        #[test]
        fn the_books_are_right(limit in 1_usize..7, acts in prop::collection::vec(act(), 1..80)) {
            let gate = open_gate(limit);
            let (mut out, mut hold) = (Out::default(), None);
            for act in acts {
                let before = out.leases.len();
                apply(&gate, &mut out, &mut hold, &act);
                out.collect()?;
                prop_assert_eq!(gate.leases(), out.leases.len());
                prop_assert!(gate.leases() <= limit);
                prop_assert_eq!(gate.waiting(), out.waiters.len());
                let sessions = out.leases.iter().filter(|l| l.purpose == Purpose::Session);
                prop_assert_eq!(gate.session_leases(), sessions.count());
                let view = gate.view();
                prop_assert_eq!(view.phase == Phase::Held, hold.is_some());
                prop_assert_eq!(view.held_since.is_some(), hold.is_some());
                if hold.is_some() || view.serving.is_none() {
                    let spare = usize::from(matches!(act, Act::Spare) && view.serving.is_some());
                    prop_assert!(out.leases.len() <= before + spare);
                } else if !out.waiters.is_empty() {
                    prop_assert!(gate.is_full(), "somebody waits although there is room");
                }
            }
            drop(hold);
            gate.serve(endpoint(), "t");
            out.collect()?;
            while !out.waiters.is_empty() {
                prop_assert!(!out.leases.is_empty(), "nobody holds what the others wait for");
                out.leases.remove(0);
                out.collect()?;
            }
            out.leases.clear();
            prop_assert_eq!((gate.leases(), gate.session_leases(), gate.waiting()), (0, 0, 0));
        }
    }

    #[test]
    fn a_waiter_that_left_after_its_grant_gives_it_back() {
        let gate = open_gate(1);
        let first = gate.lease().now_or_never().expect("free");
        let mut second = Box::pin(gate.lease());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert_eq!(gate.session_leases(), 1, "granted to the second");
        drop(second);
        assert_eq!(gate.session_leases(), 0);
    }
}
