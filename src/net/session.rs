//! The task of one client connection: asks the relay why it stopped, and decides what follows.
//!
//! A session is attached (it has a server connection) or detached (its state is a snapshot). It attaches
//! on the client's next request and detaches at its safe points: for a scale event, to give way to
//! others, when parked. Everything here happens between requests; while a request runs, only the relay
//! works.

use super::end::End;
use super::relay::{Fatal, Leg, Mode, Relay, Stop};
use super::state::{self, OpenError, Opened, Profile, Ready};
use crate::backend::gate::Phase;
use crate::backend::link::Link;
use crate::backend::registry::{Ask, Handle, Registered, State};
use crate::observe::MoveOutcome;
use crate::session::blocker::Blocker;
use crate::session::pg::machine::Status;
use crate::session::pg::snapshot::Snapshot;
use crate::wire::pg::backend::ErrorMessage;
use bytes::BytesMut;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a probe may take before the state counts as unknown.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// How long a server may take for a login, restore and verification together.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// Wait between attempts to reach a server that is away.
const RETRY: Duration = Duration::from_millis(20);

/// How often a waiting session looks at the time.
const TICK: Duration = Duration::from_millis(500);

/// What PostgreSQL says to a cancelled statement.
const CANCELLED: &str = "canceling statement due to user request";

/// One session, logged in.
pub(super) struct Session {
    relay: Relay,
    profile: Arc<Profile>,
    registered: Registered,
    link: Option<Link>,
    /// Valid while the machine is not dirty.
    snapshot: Option<Arc<Snapshot>>,
    /// What the last probe found.
    found: Vec<Blocker>,
    /// Why the last rehearsal or move failed.
    refused: Option<Blocker>,
    probed_at: Option<Instant>,
    phase: Phase,
    /// Found blocked in the present phase of the gate: not held.
    exempt: bool,
    /// A probe is wanted at the next safe point.
    want_probe: bool,
    /// Ends at rest, for this reason.
    ending: Option<End>,
    cancelling: Option<JoinHandle<()>>,
    /// The second end of a move, made ready while the session works.
    next: Option<JoinHandle<Result<Ready, OpenError>>>,
    told: i32,
}

impl Session {
    /// A session with its first server connection, whose client was told `told`.
    pub(super) fn new(
        client: Leg,
        profile: Arc<Profile>,
        registered: Registered,
        opened: Opened,
        told: i32,
    ) -> Self {
        let relay = Relay::new(client, Arc::clone(&profile.cluster) as _);
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
            exempt: false,
            want_probe: false,
            ending: None,
            cancelling: None,
            next: None,
            told,
        };
        session.relay.adopt_parameters(&opened.params);
        session.install(opened);
        session.relay.machine.begin();
        session
    }

    /// Serves the client to the end.
    pub(super) async fn run(mut self) {
        let end = Box::pin(self.serve()).await;
        Box::pin(self.finish(end)).await;
    }

    async fn serve(&mut self) -> End {
        let handle = Arc::clone(&self.registered.handle);
        loop {
            // Whatever is asked of one session, the others get their turn.
            tokio::task::coop::consume_budget().await;
            if let Err(end) = Box::pin(self.attend()).await {
                return end;
            }
            let relay = &mut self.relay;
            let stop = poll_fn(|cx| relay.poll(cx, &handle, Instant::now().into_std())).await;
            self.count();
            let done = match stop {
                Stop::Asked => Ok(()),
                Stop::NeedServer => Box::pin(self.attach()).await,
                Stop::SafePoint | Stop::Rested => Box::pin(self.safe_point()).await,
                Stop::ClientGone => Err(End::ClientGone),
                Stop::ClientGarbage(error) => Err(End::ClientGarbage(error)),
                Stop::ServerGarbage(error) => Err(End::ServerGarbage(error)),
                Stop::ServerFatal(fatal) => Box::pin(self.server_fatal(*fatal)).await,
                Stop::ServerGone => self.server_gone(),
            };
            if let Err(end) = done {
                return end;
            }
            // Whatever is decided here, the other sessions of this thread have their turn.
            tokio::task::coop::consume_budget().await;
        }
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
            self.cancel()?;
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
            self.stay();
        }
        if self.handle().take(Ask::Park) && self.relay.at_safe_point() {
            self.park().await?;
        }
        if self.handle().take(Ask::Report) {
            self.publish();
        }
        Ok(())
    }

    /// A lease for the second end of a move was offered, or that end is ready.
    fn asked_to_move(&mut self) {
        let Some(lease) = self.handle().take_offer() else {
            return self.set_mode();
        };
        if self.next.is_some() || !self.must_leave() {
            return;
        }
        self.exempt = false;
        let profile = Arc::clone(&self.profile);
        let handle = Arc::clone(&self.registered.handle);
        handle.set_moving(true);
        self.next = Some(tokio::spawn(async move {
            let deadline = Instant::now() + OPEN_MAX;
            let ready = state::make_ready(profile, lease, deadline).await;
            handle.ask(Ask::Move);
            ready
        }));
    }

    /// Gives the second end of a move up; the server is told in the background.
    fn stay(&mut self) {
        self.next = None;
        self.handle().set_moving(false);
        self.set_mode();
    }

    /// The client waits for nothing.
    fn is_resting(&self) -> bool {
        self.relay.at_safe_point() || (!self.relay.is_attached() && !self.relay.holds_request())
    }

    fn look_at_gate(&mut self) {
        let view = self.profile.cluster.gate.view();
        if view.phase != self.phase {
            self.phase = view.phase;
            self.exempt = false;
            self.refused = None;
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
        self.next.as_ref().is_some_and(JoinHandle::is_finished)
            && self.must_leave()
            && !self.exempt
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
        if self.relay.at_safe_point() {
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
            if self.relay.holds_request() {
                let error = ErrorMessage::error("57014", CANCELLED);
                self.relay.refuse_held(&error).map_err(End::from_client)?;
            }
            self.handle().cancel_settled();
            return Ok(());
        }
        let Some(link) = self.link.as_ref() else {
            return Ok(());
        };
        let running = self.cancelling.as_ref().is_some_and(|c| !c.is_finished());
        if self.relay.at_safe_point() && self.relay.holds_request() {
            // Held although attached: it was about to be detached.
            let error = ErrorMessage::error("57014", CANCELLED);
            self.relay.refuse_held(&error).map_err(End::from_client)?;
        }
        if !self.relay.machine.is_in_flight() || running {
            self.handle().cancel_settled();
            return Ok(());
        }
        let Some(serving) = link.serving().cloned() else {
            return Ok(());
        };
        let work = Link::cancel(
            serving,
            self.profile.cluster.socket,
            link.process,
            link.secret.clone(),
        );
        let handle = Arc::clone(&self.registered.handle);
        self.cancelling = Some(tokio::spawn(async move {
            work.await;
            handle.cancel_settled();
        }));
        Ok(())
    }

    /// The server connection is not touched by Slackwater while a cancel may still hit it.
    async fn settle_cancel(&mut self) {
        if let Some(cancelling) = self.cancelling.take() {
            let _ended = cancelling.await;
        }
    }

    // ---- safe points ------------------------------------------------------------------------

    async fn safe_point(&mut self) -> Result<(), End> {
        if let Some(end) = self.ending.take() {
            return Err(end);
        }
        match self.phase {
            Phase::Held if !self.exempt => self.detach_for_event().await?,
            Phase::Rolling { .. } if self.may_move_over() => self.move_over().await?,
            _ => {
                if self.want_probe {
                    self.probe().await?;
                    self.rehearse_ahead();
                }
            }
        }
        self.set_mode();
        Ok(())
    }

    /// Asks the server what the session holds, unless that is known. A failure is a blocker.
    async fn probe(&mut self) -> Result<(), End> {
        self.want_probe = false;
        self.settle_cancel().await;
        let machine = &mut self.relay.machine;
        if !machine.is_dirty() && self.probed_at.is_some() && !self.profile.is_stale(self.probed_at)
        {
            return Ok(());
        }
        let (cluster, database) = (&self.profile.cluster, &self.profile.database);
        cluster.learn_names(database, machine.watched.new_names());
        let deadline = Instant::now() + PROBE_MAX;
        let Some(stream) = self.relay.server_stream() else {
            return Ok(());
        };
        let outcome = state::probe(stream, &self.profile, self.snapshot.as_deref(), deadline).await;
        self.probed_at = Some(Instant::now());
        let machine = &mut self.relay.machine;
        match outcome {
            Ok(probed) => {
                self.found = state::blockers(&probed.probe, machine);
                if self.found.is_empty() {
                    machine.probed_clean();
                } else {
                    machine.probed_blocked();
                }
                self.snapshot = Some(Arc::new(probed.probe.snapshot));
                self.profile
                    .note_idle_timeout(self.handle(), probed.probe.idle_session_timeout_ms);
                self.relay
                    .tell(|out| out.extend_from_slice(&probed.for_client));
            }
            Err(state::ProbeFailure::Refused(reason)) => {
                self.found = vec![state::unknown(machine, reason)];
                self.snapshot = None;
            }
            Err(state::ProbeFailure::Broken(error)) => return Err(End::ServerLost(error)),
        }
        self.publish();
        Ok(())
    }

    async fn detach_for_event(&mut self) -> Result<(), End> {
        self.probe().await?;
        if self.found.is_empty()
            && let Err(reason) = self.rehearse().await
        {
            let since = Instant::now().into_std();
            self.refused = Some(state::not_restorable(&self.relay.machine, reason, since));
            self.publish();
        }
        if self.is_blocked() {
            self.exempt = true;
            self.profile.cluster.note_blocked();
            return Ok(());
        }
        self.detach();
        Ok(())
    }

    async fn park(&mut self) -> Result<(), End> {
        self.probe().await?;
        if self.found.is_empty() && self.relay.at_safe_point() {
            self.detach();
        }
        Ok(())
    }

    /// Takes the server connection off; the session's state is in its snapshot.
    fn detach(&mut self) {
        let Some(leg) = self.relay.detach() else {
            return;
        };
        if let Some(mut link) = self.link.take() {
            link.give_back(leg.into_parts().0);
            // Let go: terminated and awaited in the background, then the lease goes back.
            drop(link);
        }
        let state = if self.relay.holds_request() {
            State::Held
        } else {
            State::Parked
        };
        self.handle().set_state(state, Instant::now().into_std());
        self.relay.forget_told_state();
        self.publish();
    }

    /// Proves on the old server that the snapshot can be put onto a fresh connection.
    async fn rehearse(&self) -> Result<(), String> {
        let Some(snapshot) = self.snapshot.clone() else {
            return Err("the session's state is not known".to_owned());
        };
        state::rehearse(Arc::clone(&self.profile), snapshot, self.unnamed()).await
    }

    /// The same, ahead of a hold and beside the session's own work.
    fn rehearse_ahead(&self) {
        if self.found.is_empty()
            && let Some(snapshot) = self.snapshot.clone()
            && self.profile.cluster.rehearsals_wanted()
        {
            tokio::spawn(state::rehearse(
                Arc::clone(&self.profile),
                snapshot,
                self.unnamed(),
            ));
        }
    }

    fn unnamed(&self) -> Option<Vec<u8>> {
        self.relay.machine.unnamed.to_restore().map(<[u8]>::to_vec)
    }

    /// Moves to the instance that serves while the old server connection stays usable.
    async fn move_over(&mut self) -> Result<(), End> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        let moved = self.try_move(next).await;
        self.handle().set_moving(false);
        if let Err(reason) = moved? {
            let since = Instant::now().into_std();
            self.refused = Some(state::not_restorable(&self.relay.machine, reason, since));
        }
        if self.is_blocked() {
            self.exempt = true;
            self.profile.cluster.note_blocked();
            self.publish();
        }
        Ok(())
    }

    fn is_blocked(&self) -> bool {
        !self.found.is_empty() || self.refused.is_some()
    }

    async fn try_move(
        &mut self,
        next: JoinHandle<Result<Ready, OpenError>>,
    ) -> Result<Result<(), String>, End> {
        let ready = match next.await {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => return Ok(Err(error.to_string())),
            Err(_) => return Ok(Err("the new server connection could not be made".to_owned())),
        };
        self.probe().await?;
        let Some(snapshot) = self.snapshot.clone() else {
            return Ok(Ok(()));
        };
        if !self.found.is_empty() {
            return Ok(Ok(()));
        }
        let deadline = Instant::now() + OPEN_MAX;
        let unnamed = self.unnamed();
        match state::carry(ready, &self.profile, &snapshot, unnamed, deadline).await {
            Ok(opened) => {
                let old = self.relay.detach().map(|leg| leg.into_parts().0);
                if let (Some(mut link), Some(stream)) = (self.link.take(), old) {
                    link.give_back(stream);
                    let cluster = &self.profile.cluster;
                    cluster.moved_process(self.told, link.process, opened.link.process);
                }
                self.install(opened);
                self.profile.metrics.session_move(MoveOutcome::Moved);
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    // ---- attach -----------------------------------------------------------------------------

    /// Gets a server connection for a request that the client has sent.
    async fn attach(&mut self) -> Result<(), End> {
        self.handle()
            .set_state(State::Held, Instant::now().into_std());
        self.publish();
        let since = Instant::now();
        let mut last = None;
        loop {
            let gate = Arc::clone(&self.profile.cluster.gate);
            let lease = match self.held(gate.lease(), since, last.as_ref()).await? {
                Held::Done(lease) => lease,
                Held::NothingLeft => break,
            };
            let profile = Arc::clone(&self.profile);
            let snapshot = self.snapshot.clone();
            let unnamed = self.unnamed();
            let work = tokio::spawn(async move {
                let deadline = Instant::now() + OPEN_MAX;
                state::open(&profile, lease, snapshot.as_deref(), unnamed, deadline).await
            });
            let opened = match self.held(work, since, last.as_ref()).await? {
                Held::Done(Ok(opened)) => opened,
                Held::Done(Err(_)) => return Err(End::Internal("attaching failed")),
                Held::NothingLeft => break,
            };
            match opened {
                Ok(opened) => {
                    if self.relay.client_gone() {
                        return Err(End::ClientGone);
                    }
                    self.profile
                        .cluster
                        .moved_process(self.told, 0, opened.link.process);
                    self.install(opened);
                    self.profile
                        .metrics
                        .wait_seconds
                        .observe(since.elapsed().as_secs_f64());
                    self.profile.metrics.session_move(MoveOutcome::Moved);
                    return Ok(());
                }
                Err(error) if error.may_pass() => {
                    self.profile.cluster.report_trouble();
                    last = Some(error);
                }
                Err(error) => {
                    self.profile.metrics.session_move(MoveOutcome::Failed);
                    return Err(End::NotRestored(error));
                }
            }
            match self
                .held(tokio::time::sleep(RETRY), since, last.as_ref())
                .await?
            {
                Held::Done(()) => {}
                Held::NothingLeft => break,
            }
        }
        self.handle()
            .set_state(State::Parked, Instant::now().into_std());
        self.publish();
        Ok(())
    }

    /// Waits for `work` while the client is watched, its cancel answered, and its patience kept.
    async fn held<T>(
        &mut self,
        work: impl Future<Output = T>,
        since: Instant,
        last: Option<&OpenError>,
    ) -> Result<Held<T>, End> {
        let mut work = pin!(work);
        let handle = Arc::clone(&self.registered.handle);
        loop {
            let relay = &mut self.relay;
            let mut tick = pin!(tokio::time::sleep(TICK));
            let next = poll_fn(|cx| {
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(Some(done)));
                }
                match relay.poll_held(cx, &handle) {
                    Poll::Ready(Stop::Asked) => return Poll::Ready(Ok(None)),
                    Poll::Ready(stop) => return Poll::Ready(Err(End::from_client(stop))),
                    Poll::Pending => {}
                }
                tick.as_mut().poll(cx).map(|()| Ok(None))
            })
            .await?;
            if let Some(done) = next {
                return Ok(Held::Done(done));
            }
            self.attend_held()?;
            if self.out_of_patience(since, last) {
                let error = End::outage(last);
                self.relay
                    .refuse_held(&error.message())
                    .map_err(End::from_client)?;
            }
            if !self.relay.holds_request() && !self.relay.is_discarding() {
                return Ok(Held::NothingLeft);
            }
        }
    }

    /// What can be asked of a session that waits for a server.
    fn attend_held(&mut self) -> Result<(), End> {
        if self.handle().take(Ask::Cancel) {
            self.cancel()?;
        }
        if self.handle().take(Ask::Stop) || self.handle().take(Ask::ExpireHard) {
            return Err(self.ending.take().unwrap_or(End::Drained));
        }
        for (ask, end) in [(Ask::Expire, End::Expired), (Ask::Drain, End::Drained)] {
            if self.handle().take(ask) {
                self.ending.get_or_insert(end);
            }
        }
        if self.handle().take(Ask::Gate) {
            self.look_at_gate();
        }
        for ask in [
            Ask::Force,
            Ask::Probe,
            Ask::Move,
            Ask::Park,
            Ask::IdleTimeout,
        ] {
            self.handle().take(ask);
        }
        if self.handle().take(Ask::Report) {
            self.publish();
        }
        Ok(())
    }

    /// The server is away for longer than held requests are to wait.
    fn out_of_patience(&self, since: Instant, last: Option<&OpenError>) -> bool {
        let cluster = &self.profile.cluster;
        let away_since = cluster.gate.outage_since().or_else(|| last.map(|_| since));
        away_since.is_some_and(|away| {
            away.elapsed() > cluster.max_outage && since.elapsed() > cluster.max_outage
        })
    }

    fn install(&mut self, opened: Opened) {
        let Opened {
            mut link,
            params,
            for_client,
            ..
        } = opened;
        let Some(stream) = link.lend() else { return };
        self.relay
            .tell_parameters(params.iter().map(|(n, v)| (&**n, &**v)));
        self.relay.tell(|out| out.extend_from_slice(&for_client));
        self.relay.attach(Leg::new(stream, BytesMut::new()));
        self.link = Some(link.for_session());
        self.relay.forget_told_state();
        self.handle()
            .set_state(State::Active, Instant::now().into_std());
        // The gate may have changed since the lease was granted.
        self.handle().ask(Ask::Gate);
        self.set_mode();
        self.publish();
    }

    // ---- a server that is lost --------------------------------------------------------------

    /// The state is proven fresh: nothing was sent since a probe that found nothing in the way.
    fn is_proven(&self) -> bool {
        self.relay.at_safe_point()
            && !self.relay.machine.is_dirty()
            && self.found.is_empty()
            && self.snapshot.is_some()
    }

    fn server_gone(&mut self) -> Result<(), End> {
        if self.is_proven() {
            tracing::info!("the server was lost at rest; the session goes on from its snapshot");
            self.detach();
            return Ok(());
        }
        Err(self.lost())
    }

    fn lost(&self) -> End {
        let machine = &self.relay.machine;
        if machine.is_in_flight() || !machine.is_quiet() {
            End::OutcomeUnknown
        } else if machine.status() == Status::Idle {
            End::StateLost
        } else {
            End::TransactionLost
        }
    }

    async fn server_fatal(&mut self, fatal: Fatal) -> Result<(), End> {
        let shutdown = matches!(fatal.fields.code.as_str(), "57P01" | "57P02");
        if shutdown && self.is_proven() {
            let crashed = fatal.fields.code == "57P02";
            if crashed || !state::still_serves(&self.profile, self.link.as_ref()).await {
                return self.server_gone();
            }
        }
        Err(End::ServerSaid(Box::new(fatal)))
    }

    // ---- for people -------------------------------------------------------------------------

    fn publish(&mut self) {
        let now = Instant::now().into_std();
        let machine = &self.relay.machine;
        let mut blockers = Vec::new();
        if self.relay.is_attached() {
            let wire = state::wire_blocker(machine, now);
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
        } else if machine.is_dirty() || self.probed_at.is_none() {
            None
        } else {
            Some(true)
        };
        let generation = self
            .link
            .as_ref()
            .and_then(Link::serving)
            .map(|s| s.generation);
        let application = self.relay.parameter(b"application_name");
        let probed_at = self.probed_at.map(Instant::into_std);
        let number = self.profile.cluster.registry.report_number();
        self.handle().with_report(|report| {
            report.blockers = blockers;
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

    async fn finish(mut self, end: End) {
        let handle = Arc::clone(&self.registered.handle);
        if matches!(end, End::Forced) {
            self.deliver_last(&handle).await;
        }
        end.log(&handle.identity);
        self.count();
        if end.kind().is_some() {
            self.profile.shared.count_error(end.side());
        }
        let real = self.link.as_ref().map_or(0, |l| l.process);
        self.profile.cluster.forget_process(self.told, real);
        let in_flight = self.relay.machine.is_in_flight() || !self.relay.machine.is_quiet();
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
        handle.cancel_settled();
        drop(self.registered);
        if !end.client_is_gone() {
            self.relay.tell(|out| end.put(out));
            state::say_goodbye(self.relay.into_client()).await;
        }
    }

    /// Before a forced end: what runs is cancelled, and its reply, a COMMIT's included, still delivered.
    async fn deliver_last(&mut self, handle: &Handle) {
        if !self.relay.machine.is_in_flight() {
            return;
        }
        if self.cancel().is_err() {
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
                    Poll::Pending if relay.machine.is_in_flight() => return Poll::Pending,
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

/// How a wait ended.
enum Held<T> {
    /// With its result.
    Done(T),
    /// The client wants nothing any more: its request was refused.
    NothingLeft,
}
