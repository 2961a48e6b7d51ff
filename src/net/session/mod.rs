//! The task of one client connection: asks the relay why it stopped, and decides what follows.
//!
//! A session is attached (it has a server connection) or detached (its state is a snapshot). It attaches
//! on the client's next request and detaches at its safe points: for a scale event, to give way to
//! others, when parked. Everything here happens between requests; while a request runs, only the relay
//! works.

mod again;
mod attach;
mod leave;
mod lost;
mod replication;

use super::ahead::Ahead;
use super::end::End;
use super::engine::Engine;
use super::protocol::Refusal;
use super::relay::{Leg, Mode, Relay, Stop};
use super::state::{self, OpenError, Opened, Profile, Ready};
use crate::backend::gate::Phase;
use crate::backend::link::Link;
use crate::backend::registry::{Ask, Handle, Registered};
use crate::observe::MoveOutcome;
use crate::session::blocker::Blocker;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// How long a server may take for a login, restore and verification together.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// One session, logged in.
pub(super) struct Session<E: Engine> {
    relay: Relay<E>,
    profile: Arc<Profile<E>>,
    registered: Registered,
    link: Option<Link>,
    /// Valid while the machine is not dirty.
    snapshot: Option<Arc<E::Snapshot>>,
    /// What the last probe found.
    found: Vec<Blocker>,
    /// Why the last rehearsal or move failed.
    refused: Option<Blocker>,
    probed_at: Option<Instant>,
    phase: Phase,
    /// Tells one hold from the next.
    held_since: Option<Instant>,
    /// Found blocked in the present phase of the gate: not held.
    exempt: bool,
    /// A probe is wanted at the next safe point.
    want_probe: bool,
    /// Ends at rest, for this reason.
    ending: Option<End>,
    cancelling: Option<JoinHandle<()>>,
    /// A cancel that found nothing waits until what has arrived was looked at.
    cancel_waits: bool,
    /// The second end of a move, while it is made ready beside the session's work.
    next: Option<oneshot::Receiver<Result<Ready<E>, OpenError>>>,
    /// The same, once it is: taken at the next safe point.
    ready: Option<Result<Ready<E>, OpenError>>,
    /// Since when it is.
    ready_since: Option<Instant>,
    /// A log-in ahead to the server that is to take over.
    ahead: Option<Ahead<E>>,
    /// When the login of the present server connection began.
    logged_in: Instant,
    /// The same, of a move's second end.
    next_began: Instant,
    /// Whether the session may be parked is being found out.
    trial: Option<leave::Trial<E::Snapshot>>,
    /// A replication connection that is to end for an event, as soon as it can.
    giving_way: bool,
}

impl<E: Engine> Session<E> {
    /// A session with its first server connection.
    pub(super) fn new(
        client: Leg,
        front: E,
        profile: Arc<Profile<E>>,
        registered: Registered,
        opened: Opened<E>,
    ) -> Self {
        let mut relay = Relay::new(client, front);
        relay.linger = profile.cluster.diagnostics_wait;
        let registered_at = Instant::from_std(registered.handle.identity.connected_at);
        let mut session = Self {
            relay,
            profile,
            registered,
            link: None,
            snapshot: None,
            found: Vec::new(),
            refused: None,
            probed_at: None,
            phase: Phase::Open,
            held_since: None,
            exempt: false,
            want_probe: false,
            ending: None,
            cancelling: None,
            cancel_waits: false,
            next: None,
            ready: None,
            ready_since: None,
            ahead: None,
            logged_in: registered_at,
            next_began: registered_at,
            trial: None,
            giving_way: false,
        };
        session.relay.front.greeted(&opened.greeting);
        session.install(opened);
        session.relay.front.begin(&session.profile);
        if session.is_replication() {
            session.publish();
        }
        session
    }

    /// Serves the client to the end. What is logged is logged in `span`, which the relay's work is outside
    /// of: entering it is not free.
    pub(super) async fn run(mut self: Box<Self>, span: Span) {
        let mut next = Box::pin(self.attend()).instrument(span.clone()).await;
        let end = loop {
            if let Err(end) = next {
                break end;
            }
            // A client that logs in again as another user has another handle.
            let (relay, handle) = (&mut self.relay, &self.registered.handle);
            let stop = poll_fn(|cx| relay.poll(cx, handle, Instant::now().into_std())).await;
            // Whatever is asked of one session, the others of its thread get their turn.
            tokio::task::coop::consume_budget().await;
            next = Box::pin(self.on_stop(stop)).instrument(span.clone()).await;
        };
        Box::pin(self.finish(end)).instrument(span).await;
    }

    async fn on_stop(&mut self, stop: Stop) -> Result<(), End> {
        self.count();
        match stop {
            Stop::Asked => Ok(()),
            Stop::NeedServer if self.relay.front.is_alone() => self.answer_lost(),
            Stop::NeedServer => Box::pin(self.attach()).await,
            Stop::SafePoint | Stop::Rested => Box::pin(self.safe_point()).await,
            Stop::ClientGone => Err(End::ClientGone),
            Stop::ClientGarbage(_) | Stop::ClientUnknown(_) => Err(End::from_client(&stop)),
            Stop::Kept => Box::pin(E::kept(self)).await,
            Stop::ServerGarbage(error) => Err(End::ServerGarbage(error)),
            Stop::ServerFatal(fatal) => Box::pin(self.server_fatal(*fatal)).await,
            Stop::ServerGone => Box::pin(self.server_gone()).await,
        }?;
        Box::pin(self.attend()).await
    }

    fn handle(&self) -> &Handle {
        &self.registered.handle
    }

    fn count(&mut self) {
        let counts = self.relay.take_counts();
        let metrics = &self.profile.shared.metrics;
        metrics.bytes_to_server.inc_by(counts.from_client);
        metrics.bytes_to_client.inc_by(counts.from_server);
        metrics.queries.inc_by(counts.requests);
        metrics.transactions.inc_by(counts.transactions);
    }

    // ---- what others ask --------------------------------------------------------------------

    async fn attend(&mut self) -> Result<(), End> {
        if !self.handle().is_asked() {
            return Ok(());
        }
        if self.handle().take(Ask::Gate) {
            self.look_at_gate();
        }
        if self.handle().take(Ask::Cancel) {
            let finds_nothing = !self.relay.front.is_in_flight() && !self.relay.holds_request();
            if finds_nothing && !self.cancel_waits {
                // It may be meant for what the client sent while the session was busy with a probe.
                (self.cancel_waits, self.relay.look_first) = (true, true);
                self.handle().ask(Ask::Cancel);
            } else {
                self.cancel_waits = false;
                self.cancel()?;
            }
        }
        if self.handle().take(Ask::Kill) {
            return Err(End::Killed);
        }
        if self.handle().take(Ask::Stop) || self.handle().take(Ask::ExpireHard) {
            return Err(self.ending.take().unwrap_or(End::Drained));
        }
        if self.handle().take(Ask::Force) && self.must_leave() {
            return Err(End::Forced);
        }
        for (ask, end) in [(Ask::Expire, End::Expired), (Ask::Drain, End::Drained)] {
            if self.handle().take(ask) {
                self.ending.get_or_insert(end);
            }
        }
        if self.is_replication() {
            self.attend_replication()?;
        }
        if self.ending.is_some() {
            self.relay.want_rest = true;
            if self.is_resting() {
                return Err(self.ending.take().unwrap_or(End::Drained));
            }
        }
        if self.handle().take(Ask::IdleTimeout) && self.is_resting() {
            return Err(End::IdleTimeout);
        }
        if self.handle().take(Ask::Probe) {
            self.asked_to_probe().await?;
        }
        if self.handle().take(Ask::Move) {
            self.asked_to_move();
        }
        if self.handle().take(Ask::StayHere) {
            self.stay_unless_soon();
        }
        if self.handle().take(Ask::Park) && self.may_be_asked() {
            self.park().await?;
        }
        if self.handle().take(Ask::Report) {
            self.publish();
        }
        Ok(())
    }

    /// The client waits for nothing.
    fn is_resting(&self) -> bool {
        self.relay.at_safe_point()
            || (!self.relay.is_attached() && !self.relay.holds_request())
            || (self.relay.front.is_streaming() && !self.relay.is_mid_frame())
    }

    /// At a safe point, and a probe destroys nothing that the client may still ask for.
    fn may_be_asked(&self) -> bool {
        self.relay.at_safe_point() && !self.relay.lingers(Instant::now().into_std())
    }

    fn look_at_gate(&mut self) {
        let view = self.profile.cluster.gate.view();
        if !view.expects {
            self.ahead = None;
        }
        if view.phase != self.phase || view.held_since != self.held_since {
            self.phase = view.phase;
            self.held_since = view.held_since;
            self.exempt = self.is_replication();
            if !matches!(self.phase, Phase::Rolling { .. }) {
                self.stay();
            }
        }
        self.set_mode();
    }

    fn set_mode(&mut self) {
        let lock_step = match self.phase {
            Phase::Held => !self.exempt,
            Phase::Rolling { .. } => self.may_move_over(),
            Phase::Open => false,
        };
        let lock_step = (lock_step || self.want_probe) && self.relay.is_attached();
        self.relay.mode = if lock_step {
            Mode::LockStep
        } else {
            Mode::Flow
        };
    }

    /// To be left at the next safe point: the other end is ready.
    fn may_move_over(&self) -> bool {
        self.ready.is_some() && self.must_leave() && !self.exempt
    }

    /// Attached to an instance that is to be left.
    fn must_leave(&self) -> bool {
        let Some(mine) = self.link.as_ref().and_then(Link::serving) else {
            return false;
        };
        match self.profile.cluster.gate.view().phase {
            Phase::Held => true,
            Phase::Rolling { leave_before } => mine.generation < leave_before,
            Phase::Open => false,
        }
    }

    async fn asked_to_probe(&mut self) -> Result<(), End> {
        if self.may_be_asked() {
            self.probe().await?;
            self.rehearse_ahead();
        } else if self.relay.is_attached() {
            self.want_probe = true;
            self.set_mode();
        }
        Ok(())
    }

    fn cancel(&mut self) -> Result<(), End> {
        if !self.relay.is_attached() {
            if self.relay.holds_request() && !self.relay.front.is_alone() {
                self.relay
                    .refuse_held(Refusal::Canceled)
                    .map_err(|stop| End::from_client(&stop))?;
            }
            self.handle().take_cancels().settled();
            return Ok(());
        }
        let Some(link) = self.link.as_ref() else {
            return Ok(());
        };
        if self.relay.at_safe_point() && self.relay.holds_request() {
            // Held although attached: it was about to be detached.
            self.relay
                .refuse_held(Refusal::Canceled)
                .map_err(|stop| End::from_client(&stop))?;
        }
        let waiting = self.handle().take_cancels();
        let before = self.cancelling.take();
        if !self.relay.front.is_in_flight() {
            // Nothing to cancel; but an earlier one may still be on its way.
            if let Some(before) = before {
                self.cancelling = Some(tokio::spawn(async move {
                    let _ended = before.await;
                    waiting.settled();
                }));
            } else {
                waiting.settled();
            }
            return Ok(());
        }
        let work = link.cancel(self.profile.cluster.socket);
        self.cancelling = Some(tokio::spawn(async move {
            if let Some(before) = before {
                let _ended = before.await;
            }
            work.await;
            waiting.settled();
        }));
        Ok(())
    }

    /// The server connection is not touched by Slackwater while a cancel may still hit it.
    async fn settle_cancel(&mut self) {
        if let Some(cancelling) = self.cancelling.take() {
            let _ended = cancelling.await;
        }
    }

    // ---- for people -------------------------------------------------------------------------

    fn publish(&mut self) {
        let now = Instant::now().into_std();
        let front = &self.relay.front;
        let mut blockers = Vec::new();
        let gives_way = self.is_replication() && self.gives_way();
        if self.is_replication() {
            blockers = self.replication_blockers();
        } else if self.relay.is_attached() {
            let wire = front.wire_blocker(now);
            let kind = wire.as_ref().map(|b| b.kind);
            blockers.extend(wire);
            blockers.extend(
                self.found
                    .iter()
                    .chain(&self.refused)
                    .filter(|b| Some(b.kind) != kind)
                    .cloned(),
            );
        }
        let movable = if !self.relay.is_attached() {
            Some(true)
        } else if !blockers.is_empty() {
            Some(false)
        } else if front.is_dirty() || self.probed_at.is_none() || self.relay.holds_request() {
            None
        } else {
            Some(true)
        };
        let generation = self
            .link
            .as_ref()
            .and_then(Link::serving)
            .map(|s| s.generation);
        let application = front.application();
        let probed_at = self.probed_at.map(Instant::into_std);
        let number = self.profile.cluster.registry.report_number();
        self.handle().with_report(|report| {
            report.blockers = blockers;
            report.gives_way = gives_way;
            report.movable = movable;
            report.generation = generation;
            report.probed_at = probed_at;
            report.answers = number;
            if let Some(application) = application {
                report.application = application;
            }
        });
    }

    // ---- the end ----------------------------------------------------------------------------

    async fn finish(mut self: Box<Self>, end: End) {
        let handle = Arc::clone(&self.registered.handle);
        if matches!(end, End::Forced | End::GaveWay) {
            self.profile.metrics.session_move(MoveOutcome::Terminated);
        }
        if matches!(end, End::Forced) {
            self.deliver_last(&handle).await;
        }
        end.log(&handle.identity);
        self.count();
        if end.kind().is_some() {
            self.profile.shared.count_error(end.side());
        }
        let front = &self.relay.front;
        front.over(&self.profile, self.link.as_ref());
        // A stream ends by itself when it is told goodbye.
        let in_flight = (front.is_in_flight() || !front.is_quiet()) && !front.is_streaming();
        let mid_frame = self.relay.is_mid_frame();
        let holds_request = self.relay.holds_request();
        if let Some(mut link) = self.link.take() {
            if let Some(leg) = self.relay.detach() {
                link.give_back(leg.into_parts().0);
            }
            if in_flight && !end.server_is_gone() {
                link.abort(self.profile.cluster.socket);
            } else {
                drop(link);
            }
        }
        handle.take_cancels().settled();
        drop(self.registered);
        // Behind half a message an error would be read as its rest: the close has to tell.
        if end.client_is_gone() || mid_frame {
            return;
        }
        if E::SPEAKS_WHEN_ASKED && !in_flight && !holds_request {
            let Relay { front, client, .. } = self.relay;
            return state::say_when_asked(client, &front, &end).await;
        }
        let (front, out) = self.relay.front_and_out();
        front.put_end(&end, holds_request, out);
        state::say_goodbye(self.relay.into_client()).await;
    }

    /// Before a forced end: what runs is cancelled, and its reply, a COMMIT's included, still delivered.
    async fn deliver_last(&mut self, handle: &Handle) {
        if !self.relay.front.is_in_flight() {
            return;
        }
        if self.relay.front.is_streaming() {
            if !self.relay.is_mid_frame() {
                return;
            }
            self.relay.want_gap = true;
        } else if self.cancel().is_err() {
            return;
        }
        self.relay.mode = Mode::LockStep;
        let deadline = Instant::now() + FORCE_MAX;
        let relay = &mut self.relay;
        let work = poll_fn(|cx| {
            loop {
                match relay.poll(cx, handle, Instant::now().into_std()) {
                    Poll::Ready(Stop::Asked) => handle.forget_asked(),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending if relay.front.is_in_flight() => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(()),
                }
            }
        });
        if tokio::time::timeout_at(deadline, work).await.is_err() {
            tracing::warn!("a forced session's statement did not end within {FORCE_MAX:?}");
        }
    }
}

/// How long a forced session's running statement may take to be cancelled.
const FORCE_MAX: Duration = Duration::from_secs(5);
