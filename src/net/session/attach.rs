//! How a session gets a server connection for a request that its client has sent.

use super::super::ahead::Ahead;
use super::super::end::End;
use super::super::engine::Engine;
use super::super::protocol::Refusal;
use super::super::relay::{Leg, Stop};
use super::super::state::{self, OpenError, Opened};
use super::{OPEN_MAX, Session};
use crate::backend::link::Link;
use crate::backend::registry::{Ask, State};
use crate::observe::MoveOutcome;
use bytes::BytesMut;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// Wait between attempts to reach a server that is away.
const RETRY: Duration = Duration::from_millis(20);

/// How often a waiting session looks at the time.
const TICK: Duration = Duration::from_millis(500);

impl<E: Engine> Session<E> {
    /// Gets a server connection for a request that the client has sent.
    pub(super) async fn attach(&mut self) -> Result<(), End> {
        self.handle()
            .set_state(State::Held, Instant::now().into_std());
        self.publish();
        let since = Instant::now();
        let mut last = None;
        let cluster = Arc::clone(&self.profile.cluster);
        let mut coming = Some(cluster.line.come());
        loop {
            let gate = Arc::clone(&cluster.gate);
            let lease = match self.held(gate.lease(), since, last.as_ref()).await? {
                Held::Done(lease) => lease,
                Held::NothingLeft => break,
            };
            let ahead = self.ahead.take_if(|ahead| ahead.is_to(lease.serving()));
            let ahead = ahead.and_then(Ahead::take);
            // Only with a snapshot to compare with it proves who it is.
            let ahead = ahead.filter(|_| self.snapshot.is_some());
            let was_ahead = ahead.is_some();
            let profile = Arc::clone(&self.profile);
            let snapshot = self.snapshot.clone();
            let seen = self.relay.front.seen();
            let began = Instant::now();
            let work = tokio::spawn(async move {
                let deadline = Instant::now() + OPEN_MAX;
                state::open(&profile, lease, ahead, snapshot.as_deref(), seen, deadline).await
            });
            let opened = match self.held(work, since, last.as_ref()).await? {
                Held::Done(Ok(opened)) => opened,
                Held::Done(Err(_)) => return Err(End::Internal("attaching failed")),
                Held::NothingLeft => break,
            };
            match opened {
                Ok(opened) => {
                    if was_ahead {
                        tracing::debug!("the session goes on where it had logged in ahead");
                    }
                    coming = None;
                    match self.held(cluster.line.wait(), since, None).await? {
                        Held::Done(()) => {}
                        Held::NothingLeft => break,
                    }
                    if self.relay.client_gone() {
                        return Err(End::ClientGone);
                    }
                    self.moved(None, &opened.link);
                    self.install(opened);
                    self.logged_in = began;
                    self.profile
                        .metrics
                        .wait_seconds
                        .observe(since.elapsed().as_secs_f64());
                    self.profile.metrics.session_move(MoveOutcome::Moved);
                    return Ok(());
                }
                // It says nothing about a fresh log-in.
                Err(error) if was_ahead => {
                    tracing::debug!(%error, "a log-in ahead is of no use");
                    continue;
                }
                Err(error) if error.may_pass() => {
                    cluster.report_trouble();
                    last = Some(error);
                }
                Err(error) if error.is_place_taken() => last = Some(error),
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
        drop(coming);
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
                    Poll::Ready(stop) => return Poll::Ready(Err(End::from_client(&stop))),
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
                let reason = last.map_or_else(
                    || "no server serves this cluster now".to_owned(),
                    ToString::to_string,
                );
                self.relay
                    .refuse_held(Refusal::Outage(&reason))
                    .map_err(|stop| End::from_client(&stop))?;
            }
            if !self.relay.holds_request() && !self.relay.is_discarding() {
                return Ok(Held::NothingLeft);
            }
        }
    }

    /// What can be asked of a session that waits for a server.
    pub(super) fn attend_held(&mut self) -> Result<(), End> {
        if self.handle().take(Ask::Cancel) {
            self.cancel()?;
        }
        if self.handle().take(Ask::Kill) {
            return Err(End::Killed);
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
    pub(super) fn out_of_patience(&self, since: Instant, last: Option<&OpenError>) -> bool {
        let cluster = &self.profile.cluster;
        let away_since = cluster.gate.outage_since().or_else(|| last.map(|_| since));
        away_since.is_some_and(|away| {
            away.elapsed() > cluster.max_outage && since.elapsed() > cluster.max_outage
        })
    }

    /// Others are told which server connection the session has.
    pub(super) fn moved(&mut self, before: Option<&Link>, now: &Link) {
        let (profile, handle) = (&self.profile, &self.registered.handle);
        self.relay.front.moved(profile, handle, before, Some(now));
    }

    pub(super) fn install(&mut self, opened: Opened<E>) {
        let Opened {
            mut link,
            greeting,
            for_client,
        } = opened;
        let Some(stream) = link.lend() else { return };
        let (front, out) = self.relay.front_and_out();
        front.installed(greeting, out);
        front.pass_on(&for_client, out);
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
}

/// How a wait ended.
enum Held<T> {
    /// With its result.
    Done(T),
    /// The client wants nothing any more: its request was refused.
    NothingLeft,
}
