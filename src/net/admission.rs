//! Who may begin a login: bounds on connections that have proven nothing yet, of the whole process and of one
//! address, and on the failures of an address.
//!
//! A connection above a bound waits, with its socket and nothing else, for its turn or its deadline. Places go
//! to the address with the fewest logins in progress, and there to the newest. Under a flood of strangers a
//! login that has been slow for a while gives its place to one of an address that has fewer; so strangers
//! can't keep the others out, and many clients behind one address are served all the same. The arithmetic is
//! in `Table`, which gets its time as an argument.

use crate::observe::LoginMetrics;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Addresses without a connection whose failures are remembered.
const MAX_REMEMBERED: usize = 8192;

/// A login that the client has kept waiting this long gives way when others need its place.
const SLOW: Duration = Duration::from_secs(3);

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// Logins in progress.
    pub max_logins: usize,
    /// Of them, of one address.
    pub max_logins_per_address: usize,
    /// Connections that wait for their turn.
    pub max_waiting: usize,
    /// Failed logins of an address within `failure_window`, after which it is refused for the rest of the
    /// window; 0: no limit. An address with a session open is never refused.
    pub max_failures_per_address: u32,
    /// From the first failure that counts.
    pub failure_window: Duration,
}

/// The door of the process.
#[derive(Debug)]
pub struct Admission {
    table: Mutex<Table>,
    metrics: LoginMetrics,
}

/// Why a connection may not begin a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its address failed too often.
    #[error("too many failed logins from this address")]
    Failures,
    /// There was no place before its deadline, or too many wait already.
    #[error("too many connections are logging in")]
    Full,
}

impl Admission {
    /// Nobody is there yet.
    pub fn new(limits: AdmissionLimits, metrics: LoginMetrics) -> Self {
        Self {
            table: Mutex::new(Table::new(limits)),
            metrics,
        }
    }

    /// A connection from `peer` asks to log in; waits for its turn, until `deadline` at most. Without an address
    /// (a Unix socket) nothing is counted.
    pub async fn enter(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        deadline: Instant,
    ) -> Result<Pass, Refused> {
        let Some(peer) = peer else {
            return Ok(Pass::uncounted());
        };
        let entered = self.wait(Group::of(peer), deadline).await;
        let refused = match entered {
            Err(Refused::Failures) => Some(&self.metrics.refused_failures),
            Err(Refused::Full) => Some(&self.metrics.refused_full),
            Ok(_) => None,
        };
        if let Some(counter) = refused {
            counter.inc();
        }
        entered
    }

    /// Whether everybody from `peer` is refused just now; counts one who is.
    pub fn shuts_out(&self, peer: IpAddr) -> bool {
        let out = self
            .table
            .lock()
            .is_shut_out(Group::of(peer), Instant::now());
        if out {
            self.metrics.refused_failures.inc();
        }
        out
    }

    async fn wait(self: &Arc<Self>, group: Group, deadline: Instant) -> Result<Pass, Refused> {
        let (ticket, mut turn) = {
            let mut table = self.table.lock();
            let arrived = table.arrive(group, Instant::now());
            self.tell(&table);
            arrived?
        };
        let counted = Counted {
            admission: Arc::clone(self),
            group,
            ticket,
        };
        loop {
            tokio::select! {
                biased;
                granted = &mut turn => {
                    // A sender that was dropped: its place in the line was given to another.
                    let Granted { ours, told_to_go } = granted.map_err(|_| Refused::Full)?;
                    return Ok(Pass {
                        counted: Some(counted),
                        told_to_go: Some(told_to_go),
                        ours,
                    });
                }
                () = tokio::time::sleep_until(deadline) => return Err(Refused::Full),
                // Somebody may have become slow meanwhile.
                () = tokio::time::sleep(SLOW) => self.settle(),
            }
        }
    }

    /// Gives free places to those who wait.
    fn settle(&self) {
        let mut table = self.table.lock();
        table.settle(Instant::now());
        self.tell(&table);
    }

    fn tell(&self, table: &Table) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.in_progress.set(number(table.active));
        self.metrics.waiting.set(number(table.waiting));
    }
}

/// A place among the logins in progress.
#[derive(Debug)]
pub struct Pass {
    counted: Option<Counted>,
    told_to_go: Option<oneshot::Receiver<()>>,
    ours: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Counted {
    admission: Arc<Admission>,
    group: Group,
    ticket: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.admission.table.lock().leave(self.group, self.ticket);
        self.admission.settle();
    }
}

impl Pass {
    fn uncounted() -> Self {
        Self {
            counted: None,
            told_to_go: None,
            ours: Arc::default(),
        }
    }

    /// Ends when this login must give its place to another.
    pub async fn told_to_go(&mut self) {
        let told = match &mut self.told_to_go {
            Some(receiver) => receiver.await.is_ok(),
            None => false,
        };
        if !told {
            std::future::pending::<()>().await;
        }
        if let Some(counted) = &self.counted {
            counted.admission.metrics.refused_slow.inc();
        }
    }

    /// Whether the login waits for the proxy or a server now, and not for its client: then it is not slow.
    pub fn is_our_turn(&self, ours: bool) {
        self.ours.store(ours, Ordering::Relaxed);
    }

    /// The login failed by its client's doing.
    pub fn failed(self) {
        if let Some(counted) = &self.counted {
            let mut table = counted.admission.table.lock();
            table.failed(counted.group, Instant::now());
        }
    }

    /// The client has proven who it is: its place is free, and its address is in good standing for as long as
    /// the returned guard lives.
    pub fn succeeded(self) -> Standing {
        let counted = self.counted.as_ref();
        let standing = counted.map(|counted| {
            let mut table = counted.admission.table.lock();
            table.succeeded(counted.group);
            (Arc::clone(&counted.admission), counted.group)
        });
        Standing(standing)
    }
}

/// A session of an address.
#[derive(Debug)]
pub struct Standing(Option<(Arc<Admission>, Group)>);

impl Drop for Standing {
    fn drop(&mut self) {
        if let Some((admission, group)) = &self.0 {
            admission.table.lock().session_ended(*group);
        }
    }
}

/// Addresses that are treated as one: an IPv4 address, or the /64 that an IPv6 host chooses its own from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Group(u128);

impl Group {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u128::from(v4.to_ipv6_mapped())),
            IpAddr::V6(v6) => Self(u128::from(v6) >> 64 << 64),
        }
    }
}

/// The counts behind the door.
#[derive(Debug)]
struct Table {
    limits: AdmissionLimits,
    next: u64,
    active: usize,
    waiting: usize,
    /// Addresses with a connection.
    addresses: HashMap<Group, Address>,
    failures: HashMap<Group, Failures>,
}

#[derive(Debug, Default)]
struct Address {
    /// Logins in progress, oldest first.
    active: Vec<Active>,
    /// Newest last.
    waiting: Vec<Waiting>,
    sessions: usize,
}

#[derive(Debug)]
struct Active {
    ticket: u64,
    since: Instant,
    ours: Arc<AtomicBool>,
    go: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    turn: oneshot::Sender<Granted>,
}

/// A place, on its way to who waits for it.
#[derive(Debug)]
struct Granted {
    ours: Arc<AtomicBool>,
    told_to_go: oneshot::Receiver<()>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    first: Instant,
}

impl Table {
    fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            next: 0,
            active: 0,
            waiting: 0,
            addresses: HashMap::new(),
            failures: HashMap::new(),
        }
    }

    /// A connection asks for a place; the receiver gets it, perhaps at once.
    fn arrive(
        &mut self,
        group: Group,
        now: Instant,
    ) -> Result<(u64, oneshot::Receiver<Granted>), Refused> {
        if self.is_shut_out(group, now) {
            return Err(Refused::Failures);
        }
        let own = self.addresses.get(&group).map_or(0, |a| a.active.len());
        let waits =
            self.active >= self.places_for(own) || own >= self.limits.max_logins_per_address;
        if waits && self.waiting >= self.limits.max_waiting && !self.drop_one_that_waits(group) {
            return Err(Refused::Full);
        }
        let ticket = self.next;
        self.next += 1;
        let (turn, turns) = oneshot::channel();
        let address = self.addresses.entry(group).or_default();
        address.waiting.push(Waiting { ticket, turn });
        self.waiting += 1;
        self.settle(now);
        Ok((ticket, turns))
    }

    fn is_shut_out(&self, group: Group, now: Instant) -> bool {
        let limit = self.limits.max_failures_per_address;
        let in_good_standing = || self.addresses.get(&group).is_some_and(|a| a.sessions > 0);
        limit > 0
            && self.failures.get(&group).is_some_and(|f| f.count >= limit)
            && self.is_recent(group, now)
            && !in_good_standing()
    }

    fn is_recent(&self, group: Group, now: Instant) -> bool {
        let window = self.limits.failure_window;
        let failures = self.failures.get(&group);
        failures.is_some_and(|f| now.saturating_duration_since(f.first) < window)
    }

    /// Gives places to those who wait: free ones, and those of slow logins.
    fn settle(&mut self, now: Instant) {
        while self.waiting > 0 {
            let Some(group) = self.next_group() else {
                return;
            };
            let own = self.addresses.get(&group).map_or(0, |a| a.active.len());
            if self.active >= self.places_for(own) && !self.end_a_slow_one(group, now) {
                return;
            }
            self.grant(group, now);
        }
    }

    /// How many places there are for an address that has `own` of them already: a tenth is kept for those that
    /// have none, so that they need not wait until somebody is slow.
    fn places_for(&self, own: usize) -> usize {
        let all = self.limits.max_logins;
        if own == 0 { all } else { all - all / 10 }
    }

    /// The address whose turn it is: the fewest in progress, then the newest.
    fn next_group(&self) -> Option<Group> {
        self.addresses
            .iter()
            .filter(|(_, a)| a.active.len() < self.limits.max_logins_per_address)
            .filter_map(|(group, a)| Some((a.active.len(), a.waiting.last()?.ticket, *group)))
            .min_by_key(|(active, ticket, _)| (*active, std::cmp::Reverse(*ticket)))
            .map(|(_, _, group)| group)
    }

    fn grant(&mut self, group: Group, now: Instant) {
        let Some(address) = self.addresses.get_mut(&group) else {
            return;
        };
        let Some(Waiting { ticket, turn }) = address.waiting.pop() else {
            return;
        };
        self.waiting -= 1;
        let (go, told_to_go) = oneshot::channel();
        let ours = Arc::new(AtomicBool::new(false));
        let granted = Granted {
            ours: Arc::clone(&ours),
            told_to_go,
        };
        // Who has left meanwhile needs no place.
        if turn.send(granted).is_ok() {
            let since = now;
            address.active.push(Active {
                ticket,
                since,
                ours,
                go,
            });
            self.active += 1;
        }
    }

    /// Ends the longest of the slow logins of the address with the most in progress, if that has more than
    /// `group`.
    fn end_a_slow_one(&mut self, group: Group, now: Instant) -> bool {
        let own = self.addresses.get(&group).map_or(0, |a| a.active.len());
        let is_slow = |active: &Active| {
            !active.ours.load(Ordering::Relaxed)
                && now.saturating_duration_since(active.since) >= SLOW
        };
        let greedy = self
            .addresses
            .values_mut()
            .filter(|a| a.active.len() > own && a.active.iter().any(is_slow))
            .max_by_key(|a| a.active.len());
        let Some(address) = greedy else { return false };
        let Some(at) = address.active.iter().position(is_slow) else {
            return false;
        };
        self.active -= 1;
        // One that has just ended by itself hears nothing any more.
        let _heard = address.active.remove(at).go.send(());
        true
    }

    /// Makes room among those who wait: the address with the most loses its oldest, if that has more than
    /// `group`.
    fn drop_one_that_waits(&mut self, group: Group) -> bool {
        let own = self.addresses.get(&group).map_or(0, |a| a.waiting.len());
        let most = self
            .addresses
            .values_mut()
            .max_by_key(|a| a.waiting.len())
            .filter(|a| a.waiting.len() > own);
        let Some(address) = most else { return false };
        drop(address.waiting.remove(0));
        self.waiting -= 1;
        true
    }

    /// A login, or its wait, has ended.
    fn leave(&mut self, group: Group, ticket: u64) {
        let Some(address) = self.addresses.get_mut(&group) else {
            return;
        };
        if let Some(at) = address.active.iter().position(|a| a.ticket == ticket) {
            address.active.remove(at);
            self.active -= 1;
        } else if let Some(at) = address.waiting.iter().position(|w| w.ticket == ticket) {
            address.waiting.remove(at);
            self.waiting -= 1;
        }
        self.forget_empty(group);
    }

    fn failed(&mut self, group: Group, now: Instant) {
        if self.limits.max_failures_per_address == 0 {
            return;
        }
        if !self.is_recent(group, now) {
            self.failures.remove(&group);
        }
        if self.failures.len() >= MAX_REMEMBERED && !self.failures.contains_key(&group) {
            let window = self.limits.failure_window;
            self.failures
                .retain(|_, f| now.saturating_duration_since(f.first) < window);
            if self.failures.len() >= MAX_REMEMBERED {
                return;
            }
        }
        let failures = self.failures.entry(group).or_insert(Failures {
            count: 0,
            first: now,
        });
        failures.count = failures.count.saturating_add(1);
    }

    fn succeeded(&mut self, group: Group) {
        self.addresses.entry(group).or_default().sessions += 1;
        self.failures.remove(&group);
    }

    fn session_ended(&mut self, group: Group) {
        if let Some(address) = self.addresses.get_mut(&group) {
            address.sessions = address.sessions.saturating_sub(1);
        }
        self.forget_empty(group);
    }

    fn forget_empty(&mut self, group: Group) {
        let empty = |a: &Address| a.active.is_empty() && a.waiting.is_empty() && a.sessions == 0;
        if self.addresses.get(&group).is_some_and(empty) {
            self.addresses.remove(&group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AdmissionLimits = AdmissionLimits {
        max_logins: 4,
        max_logins_per_address: 3,
        max_waiting: 6,
        max_failures_per_address: 3,
        failure_window: Duration::from_mins(1),
    };

    fn at(octet: u8) -> Group {
        Group::of(IpAddr::from([10, 0, 0, octet]))
    }

    type Turn = oneshot::Receiver<Granted>;

    /// A connection that arrives; its turn with its ticket.
    fn arrive(table: &mut Table, octet: u8, now: Instant) -> (u64, Turn) {
        table.arrive(at(octet), now).expect("not refused")
    }

    fn is_in(turn: &mut Turn) -> Option<Granted> {
        turn.try_recv().ok()
    }

    fn refusal(table: &mut Table, octet: u8, now: Instant) -> Option<Refused> {
        table.arrive(at(octet), now).err()
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_address() {
        let group = |text: &str| Group::of(text.parse().expect("an address"));
        assert_eq!(group("2001:db8:1:2::1"), group("2001:db8:1:2:ffff::9"));
        assert_ne!(group("2001:db8:1:2::1"), group("2001:db8:1:3::1"));
        assert_eq!(group("::ffff:10.0.0.1"), group("10.0.0.1"));
        assert_ne!(group("10.0.0.1"), group("10.0.0.2"));
    }

    #[test]
    fn places_go_to_who_has_the_fewest_and_then_to_the_newest() {
        let (mut table, now) = (Table::new(LIMITS), Instant::now());
        let mut busy: Vec<_> = (0..5).map(|_| arrive(&mut table, 1, now)).collect();
        let granted: Vec<_> = busy.iter_mut().map(|(_, t)| is_in(t).is_some()).collect();
        assert_eq!(
            granted,
            [true, true, true, false, false],
            "three of an address"
        );
        let (_, mut other) = arrive(&mut table, 2, now);
        assert!(is_in(&mut other).is_some(), "the place that is left");
        let (_, mut first) = arrive(&mut table, 3, now);
        let (_, mut second) = arrive(&mut table, 4, now);
        assert!(is_in(&mut first).is_none() && is_in(&mut second).is_none());
        table.leave(at(1), busy[0].0);
        table.settle(now);
        assert!(
            is_in(&mut second).is_some(),
            "the newest of those that have none"
        );
        assert!(is_in(&mut first).is_none());
        table.leave(at(1), busy[1].0);
        table.settle(now);
        assert!(is_in(&mut first).is_some());
        table.leave(at(1), busy[2].0);
        table.settle(now);
        assert!(
            is_in(&mut busy[4].1).is_some(),
            "then the greedy one's newest"
        );
        assert_eq!((table.active, table.waiting), (4, 1));
    }

    #[test]
    fn slow_logins_give_way_to_who_has_fewer() {
        let (mut table, now) = (Table::new(LIMITS), Instant::now());
        let mut greedy: Vec<_> = (0..3).map(|_| arrive(&mut table, 1, now)).collect();
        let (_, mut one) = arrive(&mut table, 2, now);
        let mut places: Vec<_> = greedy.iter_mut().filter_map(|(_, t)| is_in(t)).collect();
        let mut one = is_in(&mut one).expect("in");
        let (_, mut newcomer) = arrive(&mut table, 3, now);
        assert!(is_in(&mut newcomer).is_none(), "nobody is slow yet");
        // The oldest of them waits for a server, which is not its client's doing.
        places[0].ours.store(true, Ordering::Relaxed);
        table.settle(now + SLOW);
        assert!(is_in(&mut newcomer).is_some());
        assert!(places[0].told_to_go.try_recv().is_err());
        assert!(
            places[1].told_to_go.try_recv().is_ok(),
            "its place is taken"
        );
        assert!(one.told_to_go.try_recv().is_err(), "who has one keeps it");
        // One of an address with as many waits.
        let (_, mut next) = arrive(&mut table, 1, now + SLOW);
        assert!(is_in(&mut next).is_none());
        assert_eq!((table.active, table.waiting), (4, 1));
    }

    #[test]
    fn a_tenth_is_kept_for_addresses_that_have_none() {
        let limits = AdmissionLimits {
            max_logins: 20,
            max_logins_per_address: 20,
            max_waiting: 100,
            ..LIMITS
        };
        let (mut table, now) = (Table::new(limits), Instant::now());
        let mut greedy: Vec<_> = (0..30).map(|_| arrive(&mut table, 1, now)).collect();
        let granted = greedy.iter_mut().filter_map(|(_, t)| is_in(t)).count();
        assert_eq!(granted, 18);
        let mut newcomers: Vec<_> = (2..6).map(|n| arrive(&mut table, n, now)).collect();
        let granted: Vec<_> = newcomers
            .iter_mut()
            .map(|(_, t)| is_in(t).is_some())
            .collect();
        assert_eq!(granted, [true, true, false, false], "at once");
    }

    #[test]
    fn those_who_wait_are_bounded_too() {
        let (mut table, now) = (Table::new(LIMITS), Instant::now());
        let mut turns: Vec<_> = (0..9).map(|_| arrive(&mut table, 1, now)).collect();
        let (_, mut free) = arrive(&mut table, 2, now);
        assert!(is_in(&mut free).is_some(), "a free place needs no waiting");
        assert_eq!((table.active, table.waiting), (4, 6));
        assert_eq!(refusal(&mut table, 1, now), Some(Refused::Full));
        let _newcomer = arrive(&mut table, 3, now);
        assert_eq!(table.waiting, 6);
        let dropped: Vec<_> = turns
            .iter_mut()
            .map(|(_, t)| matches!(t.try_recv(), Err(oneshot::error::TryRecvError::Closed)))
            .collect();
        let first_waiting = dropped.iter().position(|d| *d);
        assert_eq!(first_waiting, Some(3), "the oldest of the greedy one's");
    }

    #[test]
    fn failures_shut_an_address_out_for_a_while() {
        let (mut table, now) = (Table::new(LIMITS), Instant::now());
        for _ in 0..3 {
            assert_eq!(refusal(&mut table, 1, now), None);
            table.failed(at(1), now);
        }
        assert_eq!(refusal(&mut table, 1, now), Some(Refused::Failures));
        assert_eq!(
            refusal(&mut table, 2, now),
            None,
            "others are not concerned"
        );
        let later = now + LIMITS.failure_window;
        assert_eq!(refusal(&mut table, 1, later), None, "the window is over");
        table.failed(at(1), later);
        assert_eq!(table.failures[&at(1)].count, 1, "a new window");
    }

    #[test]
    fn an_address_with_a_session_is_never_shut_out() {
        let (mut table, now) = (Table::new(LIMITS), Instant::now());
        table.succeeded(at(1));
        for _ in 0..9 {
            table.failed(at(1), now);
        }
        assert_eq!(refusal(&mut table, 1, now), None);
        table.session_ended(at(1));
        assert_eq!(refusal(&mut table, 1, now), Some(Refused::Failures));
        table.succeeded(at(1));
        table.session_ended(at(1));
        assert_eq!(
            refusal(&mut table, 1, now),
            None,
            "a success clears its name"
        );
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let (mut table, now) = (Table::new(LIMITS), Instant::now());
        for n in 0..20_000_u32 {
            table.failed(Group(u128::from(n)), now);
        }
        assert_eq!(table.failures.len(), MAX_REMEMBERED);
        let later = now + LIMITS.failure_window;
        table.failed(Group(u128::from(u32::MAX)), later);
        assert_eq!(table.failures.len(), 1, "what is over is forgotten");
        let turns: Vec<_> = (0..8).map(|n| arrive(&mut table, n, now)).collect();
        for (n, (ticket, _)) in (0..).zip(&turns) {
            table.leave(at(n), *ticket);
        }
        table.settle(now);
        assert!(table.addresses.is_empty());
        assert_eq!((table.active, table.waiting), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_that_waits_gets_its_turn_or_is_refused_at_its_deadline() {
        let limits = AdmissionLimits {
            max_logins: 1,
            ..LIMITS
        };
        let metrics = crate::observe::Metrics::new();
        let admission = Arc::new(Admission::new(limits, metrics.logins.clone()));
        let address = |octet| Some(IpAddr::from([10, 0, 0, octet]));
        let soon = || Instant::now() + Duration::from_secs(2);
        let enter = |octet| {
            let admission = Arc::clone(&admission);
            async move { admission.enter(address(octet), soon()).await }
        };
        let first = enter(1).await.expect("in");
        assert_eq!(enter(2).await.err(), Some(Refused::Full), "at its deadline");
        assert_eq!(metrics.logins.in_progress.get(), 1);
        let second = tokio::spawn(enter(2));
        tokio::task::yield_now().await;
        assert_eq!(metrics.logins.waiting.get(), 1);
        let standing = first.succeeded();
        let mut second = second.await.expect("no panic").expect("its turn");
        assert!(
            admission.enter(None, soon()).await.is_ok(),
            "no address, no limit"
        );
        // Slow, and somebody waits who has none: it is told to go.
        let third = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move {
                let late = Instant::now() + Duration::from_mins(1);
                admission.enter(address(3), late).await
            }
        });
        second.told_to_go().await;
        assert!(third.await.expect("no panic").is_ok());
        drop((second, standing));
        assert_eq!(metrics.logins.waiting.get(), 0);
        assert!(admission.table.lock().addresses.is_empty());
    }
}
