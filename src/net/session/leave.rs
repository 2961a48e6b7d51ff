//! How a session leaves its server connection at a safe point: probed, then detached or moved over.

use super::super::ahead::Ahead;
use super::super::end::End;
use super::super::engine::Engine;
use super::super::state::{self, OpenError, Profile, Ready};
use super::{OPEN_MAX, Session};
use crate::backend::gate::{Lease, Phase};
use crate::backend::registry::{Ask, State};
use crate::observe::MoveOutcome;
use crate::session::Portable;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

/// How long the second end of a move waits, ready, for a safe point, while others want their turn.
const READY_MAX: Duration = Duration::from_secs(1);

/// How long a probe may take before the server counts as lost. A server that only hangs for a while, as a
/// machine does that is moved, keeps its sessions: a client's request would wait for it as well.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// A snapshot on trial: whether the session could be restored from it now.
#[derive(Debug)]
pub(super) struct Trial<S> {
    snapshot: Arc<S>,
    /// `None`: it could not be tried.
    outcome: oneshot::Receiver<Option<Result<(), String>>>,
}

/// With too few connections for one to spare there is nothing to rehearse on.
const REHEARSALS_FROM: usize = 3;

/// Whether the session could be restored now. The server is asked whether anything about log-ins has changed
/// since this session logged in; when nothing has, a state that a fresh login has by itself needs no rehearsal.
async fn may_return<E: Engine>(
    profile: Arc<Profile<E>>,
    snapshot: Arc<E::Snapshot>,
    seen: E::Seen,
    logged_in: Instant,
) -> Option<Result<(), String>> {
    let cluster = &profile.cluster;
    cluster.read_access().await;
    let same = cluster.access_changed() < logged_in;
    let rehearsable = cluster.gate.limit() >= REHEARSALS_FROM;
    if same && (snapshot.is_plain() || !rehearsable) {
        return Some(snapshot.not_restorable().map_or(Ok(()), Err));
    }
    state::rehearse_outline(profile, snapshot, seen).await
}

impl<E: Engine> Session<E> {
    /// A lease for the second end of a move was offered, or that end is ready.
    pub(super) fn asked_to_move(&mut self) {
        if let Some(made) = self.next.as_mut().and_then(|next| next.try_recv().ok()) {
            self.next = None;
            self.ready = Some(made);
            self.ready_since = Some(Instant::now());
        }
        match self.handle().take_offer() {
            Some(lease) if lease.is_ahead() => {
                let there = |ahead: &Ahead<E>| ahead.is_to(lease.serving());
                if !self.is_replication() && !self.ahead.as_ref().is_some_and(there) {
                    let (profile, handle) = (Arc::clone(&self.profile), &self.registered.handle);
                    let deadline = Instant::now() + OPEN_MAX;
                    self.ahead = Some(Ahead::begin(profile, Arc::clone(handle), lease, deadline));
                }
            }
            Some(lease) if self.next.is_none() && self.ready.is_none() && self.must_leave() => {
                self.make_ready(lease);
            }
            _ => {}
        }
        self.set_mode();
    }

    pub(super) fn make_ready(&mut self, lease: Lease) {
        self.exempt = false;
        let profile = Arc::clone(&self.profile);
        let handle = Arc::clone(&self.registered.handle);
        self.next_began = Instant::now();
        handle.set_moving(true);
        let (made, next) = oneshot::channel();
        self.next = Some(next);
        tokio::spawn(async move {
            let deadline = Instant::now() + OPEN_MAX;
            let ready = state::make_ready(profile, lease, deadline).await;
            // Nobody waits for it any more: it is let go.
            drop(made.send(ready));
            handle.ask(Ask::Move);
        });
    }

    /// The same, unless the second end is still being made, or was made just now: a busy server takes
    /// its time, and giving up then would never end.
    pub(super) fn stay_unless_soon(&mut self) {
        if self
            .ready_since
            .is_some_and(|since| since.elapsed() > READY_MAX)
        {
            self.stay();
        }
    }

    /// Gives the second end of a move up; the server is told in the background.
    pub(super) fn stay(&mut self) {
        (self.next, self.ready, self.ready_since) = (None, None, None);
        self.handle().set_moving(false);
        self.set_mode();
    }

    pub(super) async fn safe_point(&mut self) -> Result<(), End> {
        if let Some(end) = self.ending.take() {
            return Err(end);
        }
        self.give_way()?;
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
    pub(super) async fn probe(&mut self) -> Result<(), End> {
        self.want_probe = false;
        self.settle_cancel().await;
        if !self.relay.front.is_dirty()
            && self.probed_at.is_some()
            && !self.profile.is_stale(self.probed_at)
        {
            return Ok(());
        }
        // Only asked again because others changed something: what is known of it stays true.
        let proven = self.is_proven();
        let asked = self.relay.front.asking(&self.profile);
        let deadline = Instant::now() + PROBE_MAX;
        let Some(stream) = self.relay.server_stream() else {
            return Ok(());
        };
        let previous = self.snapshot.as_deref();
        let outcome = E::probe(stream, &self.profile, asked, previous, deadline).await;
        let (front, out) = self.relay.front_and_out();
        match outcome {
            Ok(probed) => {
                self.found = front.probed(&probed.probe);
                front.pass_on(&probed.for_client, out);
                self.probed_at = Some(Instant::now());
                let (snapshot, silence) = front.state_of(probed.probe);
                self.snapshot = Some(Arc::new(snapshot));
                self.handle()
                    .with_report(|report| report.idle_session_timeout = silence);
            }
            Err(state::ProbeFailure::Refused {
                reason, for_client, ..
            }) => {
                front.pass_on(&for_client, out);
                self.probed_at = Some(Instant::now());
                self.found = vec![front.unknown(reason)];
                self.snapshot = None;
            }
            Err(state::ProbeFailure::Broken(_)) if proven => return self.server_gone().await,
            Err(state::ProbeFailure::Broken(error)) => return Err(End::ServerLost(error)),
        }
        self.publish();
        Ok(())
    }

    pub(super) async fn detach_for_event(&mut self) -> Result<(), End> {
        self.probe().await?;
        if self.found.is_empty() {
            let rehearsed = self.rehearse().await;
            self.note_refusal(rehearsed);
        }
        if self.is_blocked() {
            self.exempt = true;
            self.profile.cluster.note_blocked();
            return Ok(());
        }
        self.detach();
        Ok(())
    }

    /// Gives the server connection up, once it is proven that the session can have another one: its password
    /// may have been changed since, or its right to connect. The proof is made beside the session's work.
    pub(super) async fn park(&mut self) -> Result<(), End> {
        self.probe().await?;
        if !self.found.is_empty() || !self.relay.at_safe_point() {
            return Ok(());
        }
        let Some(snapshot) = self.snapshot.clone() else {
            return Ok(());
        };
        if let Some(trial) = &mut self.trial {
            match trial.outcome.try_recv() {
                Err(TryRecvError::Empty) => return Ok(()),
                Ok(outcome) if Arc::ptr_eq(&trial.snapshot, &snapshot) => {
                    self.trial = None;
                    if let Some(outcome) = outcome {
                        let may = outcome.is_ok();
                        self.note_refusal(outcome);
                        if may {
                            self.detach();
                        }
                    }
                    return Ok(());
                }
                // The session has worked meanwhile.
                Ok(_) | Err(TryRecvError::Closed) => {}
            }
        }
        let (tell, outcome) = oneshot::channel();
        self.trial = Some(Trial {
            snapshot: Arc::clone(&snapshot),
            outcome,
        });
        let profile = Arc::clone(&self.profile);
        let handle = Arc::clone(&self.registered.handle);
        let (seen, logged_in) = (self.relay.front.seen(), self.logged_in);
        tokio::spawn(async move {
            let proven = may_return(profile, snapshot, seen, logged_in).await;
            // A session that has ended needs no answer.
            drop(tell.send(proven));
            handle.ask(Ask::Park);
        });
        Ok(())
    }

    /// Takes the server connection off; the session's state is in its snapshot.
    pub(super) fn detach(&mut self) {
        let Some(leg) = self.relay.detach() else {
            return;
        };
        if let Some(link) = self.link.take() {
            let (profile, handle) = (&self.profile, &self.registered.handle);
            self.relay.front.moved(profile, handle, Some(&link), None);
            // Terminated and awaited in the background, then the lease goes back.
            link.leave(leg.into_parts().0);
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
    pub(super) async fn rehearse(&self) -> Result<(), String> {
        let Some(snapshot) = self.snapshot.clone() else {
            return Err("the session's state is not known".to_owned());
        };
        state::rehearse(Arc::clone(&self.profile), snapshot, self.relay.front.seen()).await
    }

    /// The same, ahead of a hold and beside the session's own work: its outcome is there when the session is
    /// asked again, and no hold is begun for a session that can't be restored.
    pub(super) fn rehearse_ahead(&mut self) {
        let Some(snapshot) = self.snapshot.clone() else {
            return;
        };
        if !self.found.is_empty() || !self.profile.cluster.rehearsals_wanted() {
            return;
        }
        if let Some(outcome) = state::rehearsed(&self.profile, &snapshot) {
            self.note_refusal(outcome);
        } else {
            let profile = Arc::clone(&self.profile);
            tokio::spawn(state::rehearse(profile, snapshot, self.relay.front.seen()));
        }
    }

    /// What a rehearsal, or a move, came to; told to others where it is news.
    fn note_refusal(&mut self, outcome: Result<(), String>) {
        let known = self.refused.as_ref().map(|b| b.detail.as_str());
        if known == outcome.as_ref().err().map(String::as_str) {
            return;
        }
        self.refused = outcome.err().map(|reason| {
            let since = Instant::now().into_std();
            self.relay.front.not_restorable(reason, since)
        });
        self.publish();
    }

    /// Moves to the instance that serves while the old server connection stays usable.
    pub(super) async fn move_over(&mut self) -> Result<(), End> {
        self.ready_since = None;
        let Some(ready) = self.ready.take() else {
            return Ok(());
        };
        let moved = self.try_move(ready).await;
        self.handle().set_moving(false);
        self.note_refusal(moved?);
        if self.is_blocked() {
            self.exempt = true;
            self.profile.cluster.note_blocked();
            self.publish();
        }
        Ok(())
    }

    pub(super) fn is_blocked(&self) -> bool {
        !self.found.is_empty() || self.refused.is_some()
    }

    pub(super) async fn try_move(
        &mut self,
        ready: Result<Ready<E>, OpenError>,
    ) -> Result<Result<(), String>, End> {
        let ready = match ready {
            Ok(ready) => ready,
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.probe().await?;
        let Some(snapshot) = self.snapshot.clone() else {
            return Ok(Ok(()));
        };
        if !self.found.is_empty() {
            return Ok(Ok(()));
        }
        let deadline = Instant::now() + OPEN_MAX;
        let seen = self.relay.front.seen();
        match E::carry(ready, &self.profile, &snapshot, seen, deadline).await {
            Ok(opened) => {
                let old = self.relay.detach().map(|leg| leg.into_parts().0);
                if let (Some(mut link), Some(stream)) = (self.link.take(), old) {
                    link.give_back(stream);
                    self.moved(Some(&link), &opened.link);
                }
                self.install(opened);
                self.logged_in = self.next_began;
                self.profile.metrics.session_move(MoveOutcome::Moved);
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}
