//! The switch to a standby, whatever the engine: the moment that clients feel.
//!
//! The order is what keeps it safe. The old primary is stopped cleanly, the end of its log is read after that, the
//! standby has to have all of it, the old data directory is fenced, the intent is on disk: only then the standby
//! is promoted. Up to there every failure starts the old primary again; from there on the only ways are forward, or back
//! once it is proven that the standby never became a primary.

use super::super::{CutOver, Instance, ProviderError, ServerIdentity, ServerSession};
use super::files::{Home, Intent, Promotion};
use super::process::{Process, log_length, log_tail};
use super::proof::PromotionTimes;
use super::slot::{self, Maker, Standby};
use super::switch::{Before, LaunchError, NotReady};
use super::{LocalProvider, State, Switch, UNTHROTTLED_AFTER_START, blocking, engine, fence};
use crate::backend::Capacity;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often those that hold up a stop are told to end.
const END_AGAIN: Duration = Duration::from_millis(500);

/// Why a promotion that was decided did not end with a primary.
pub(super) enum Stuck {
    /// It is proven that the standby never became one: the old primary may be started again.
    NeverPromoted(String),
    /// Nobody can know: only the same way forward is left.
    Unknown(String),
}

/// A promoted server that answered and wrote.
pub(super) struct Proven {
    pub(super) process: Process,
    pub(super) capacity: Capacity,
    pub(super) identity: ServerIdentity,
    pub(super) promotion: Duration,
}

/// What a switch to a standby asks of an engine.
pub(super) trait Succession: Sync {
    type Maker: Maker;
    /// What is known of a primary that takes no more writes, just before its stop.
    type Drained: Send;

    fn maker(&self) -> &Arc<Self::Maker>;

    /// Whether the standby still receives what the primary writes.
    fn follows(&self, standby: &mut Standby) -> impl Future<Output = bool> + Send;

    /// The last that is done before the stop, while it can be taken back: after it the standby has everything.
    fn drain(
        &self,
        provider: &LocalProvider,
        from: &Instance,
        standby: &mut Standby,
    ) -> impl Future<Output = Result<Self::Drained, String>> + Send;

    /// Takes it back.
    fn undrain(&self, provider: &LocalProvider, from: &Instance)
    -> impl Future<Output = ()> + Send;

    /// Ends those that a stop waits for.
    fn hurry(&self, old: &Process);

    /// That nothing can be lost by promoting this standby: what is written down before it is done. Fences the old data
    /// directory beside that. `drained` is there if the old primary was stopped by this switch.
    fn prove(
        &self,
        provider: &LocalProvider,
        ready: &mut Standby,
        drained: Option<Self::Drained>,
    ) -> impl Future<Output = Result<Promotion, String>> + Send;

    /// Starts the server in `home`, as a standby if it is fenced.
    fn spawn_standby(&self, home: Home, capacity: Capacity) -> Result<Process, ProviderError>;

    /// Waits until the standby may be promoted (with a session: it may), promotes it, and has it write.
    fn become_primary(
        &self,
        provider: &LocalProvider,
        process: Process,
        session: Option<Box<dyn ServerSession>>,
        promotion: &Promotion,
        deadline: Instant,
    ) -> impl Future<Output = Result<Proven, NotReady>> + Send;

    /// A standby ended in the midst of its promotion: as long as it is proven that it never became a primary it is to
    /// start as a standby again, so that this stays so.
    fn ended_midway(&self, provider: &LocalProvider, home: Home)
    -> impl Future<Output = ()> + Send;

    /// Whether the stopped server in `home` never took a write.
    fn never_promoted(
        &self,
        provider: &LocalProvider,
        home: Home,
    ) -> impl Future<Output = Result<bool, String>> + Send;

    /// A standby that was found and promoted serves: its configuration may have been copied while it ran.
    fn refresh(&self, process: &Process);
}

impl LocalProvider {
    pub(super) async fn switch_to_standby<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        from: &Instance,
        to: Capacity,
    ) -> CutOver {
        let kept = |reason: String| CutOver::KeptOld {
            instance: from.clone(),
            reason,
        };
        if to == Capacity(0) {
            return kept(ProviderError::Paused.to_string());
        }
        match self.data_dir.intent() {
            Ok(Some(intent)) if intent.pending(self.data_dir.primary()).is_some() => {
                return self.go_on(own, state, &intent).await;
            }
            Ok(_) => {}
            Err(error) => return kept(error.to_string()),
        }
        let maker = Arc::clone(own.maker());
        let begun = Instant::now();
        let old = match self.before(state, from).await {
            Ok(Before::Newer(instance)) => return self.ended_before(state, instance, to),
            Ok(Before::Gone) => None,
            Ok(Before::Old(process)) => Some(process),
            Err(reason) => return CutOver::Lost { reason },
        };
        let Ok(mut standby) = maker.slot().standby.try_lock() else {
            let reason = "a standby is being made: ask again".to_owned();
            return match old {
                Some(_) => kept(reason),
                None => self.back(own, state, from.capacity, reason).await,
            };
        };
        let mut ready = standby
            .take()
            .filter(|s| s.capacity == to && s.home != self.data_dir.primary());
        let drained = match old {
            Some(old) => match self.stop_old(own, state, from, to, &old, &mut ready).await {
                Ok(drained) => Some(drained),
                Err(ended) => return ended,
            },
            None => None,
        };
        let stop = begun.elapsed();
        let Some(mut ready) = ready else {
            let reason = format!("no standby with capacity {to} is ready");
            return self.back(own, state, from.capacity, reason).await;
        };
        let begun = Instant::now();
        let promotion = match own.prove(self, &mut ready, drained).await {
            Ok(promotion) => promotion,
            Err(reason) => return self.back(own, state, from.capacity, reason).await,
        };
        let intent = Intent {
            from: from.capacity,
            to,
            promotion: Some(promotion.clone()),
        };
        if let Err(error) = self.write_intent(intent.clone()).await {
            // It may be on disk all the same; `back` takes it off again first.
            return self
                .back(own, state, from.capacity, error.to_string())
                .await;
        }
        let proof = begun.elapsed();
        match self.promote(own, &intent, &promotion, Some(ready)).await {
            Ok(proven) => {
                let times = PromotionTimes {
                    stop,
                    proof,
                    promotion: proven.promotion,
                };
                tracing::info!(from = %from.capacity, %to, %times, "the standby took over");
                self.shown.lock().promotion = Some(times);
                drop(standby);
                let instance = self.took_over(own, state, promotion.home, from.capacity, proven);
                self.told(instance, to)
            }
            Err(stuck) => {
                drop(standby);
                self.stuck(own, state, &intent, stuck).await
            }
        }
    }

    /// Stops the old primary, if its standby is there.
    async fn stop_old<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        from: &Instance,
        to: Capacity,
        old: &Process,
        ready: &mut Option<Standby>,
    ) -> Result<S::Drained, CutOver> {
        let kept = |reason: String| CutOver::KeptOld {
            instance: from.clone(),
            reason,
        };
        // The last moment to find out without harm that it does not follow any more.
        let mut following = None;
        if let Some(standby) = ready
            && own.follows(&mut *standby).await
        {
            following = Some(standby);
        }
        let Some(standby) = following else {
            if self.is_stopping().unwrap_or(false) {
                return Err(self.stop_hangs(own, state, from, old).await);
            }
            return Err(kept(format!(
                "no standby with capacity {to} is ready: ask again"
            )));
        };
        self.note_intent(Intent::new(from.capacity, to))
            .await
            .map_err(|error| kept(error.to_string()))?;
        let drained = match own.drain(self, from, standby).await {
            Ok(drained) => drained,
            Err(reason) => {
                own.undrain(self, from).await;
                return Err(kept(reason));
            }
        };
        self.unthrottle(state);
        if let Err(error) = engine::stop(&self.data_dir, *old) {
            own.undrain(self, from).await;
            return Err(kept(error.to_string()));
        }
        if old.gone_within(self.config.standby.stop).await {
            return Ok(drained);
        }
        Err(self.stop_hangs(own, state, from, old).await)
    }

    /// An earlier call decided to promote and did not hear how that ended.
    async fn go_on<S: Succession>(&self, own: &S, state: &mut State, intent: &Intent) -> CutOver {
        match self.forward(own, state, intent).await {
            Ok(instance) => self.told(instance, intent.to),
            Err(stuck) => self.stuck(own, state, intent, stuck).await,
        }
    }

    fn told(&self, instance: Instance, to: Capacity) -> CutOver {
        if instance.capacity == to {
            return CutOver::Completed(instance);
        }
        let reason = format!(
            "the new server does not start with capacity {to} after its promotion: see {}",
            self.data_dir.log().display()
        );
        CutOver::KeptOld { instance, reason }
    }

    async fn stuck<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        intent: &Intent,
        stuck: Stuck,
    ) -> CutOver {
        match stuck {
            Stuck::NeverPromoted(why) => self.back(own, state, intent.from, why).await,
            Stuck::Unknown(reason) => CutOver::Lost { reason },
        }
    }

    /// Finishes a promotion that is on disk as decided, whoever decided it.
    async fn forward<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        intent: &Intent,
    ) -> Result<Instance, Stuck> {
        let primary = self.data_dir.primary();
        let Some(promotion) = intent.pending(primary) else {
            return Err(Stuck::Unknown("nothing was to be promoted".to_owned()));
        };
        let mut standby = own.maker().slot().standby.lock().await;
        *standby = None;
        self.see_that_the_old_is_fenced(primary, promotion)
            .map_err(Stuck::Unknown)?;
        let home = promotion.home;
        blocking(&self.data_dir, move |d| fence::copy_configuration(d, home))
            .await
            .map_err(|e| Stuck::Unknown(e.to_string()))?;
        let proven = self.promote(own, intent, promotion, None).await?;
        drop(standby);
        own.refresh(&proven.process);
        Ok(self.took_over(own, state, home, intent.from, proven))
    }

    /// The old primary has to be as it was when the promotion was decided.
    fn see_that_the_old_is_fenced(&self, old: Home, promotion: &Promotion) -> Result<(), String> {
        let data = self.data_dir.data_of(old);
        if !fence::is_fenced(&self.data_dir, &data) {
            return Err(format!(
                "{} may have been promoted, and {} is gone from {}: somebody may have started the old \
                 server as a primary. Compare both, and remove {} if the old one is to serve",
                self.data_dir.data_of(promotion.home).display(),
                fence::signal(self.data_dir.engine()),
                data.display(),
                self.data_dir.path().join("switch.json").display()
            ));
        }
        Ok(())
    }

    /// The stop is left to end, without those that it waits for; then the old server comes back.
    async fn stop_hangs<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        from: &Instance,
        old: &Process,
    ) -> CutOver {
        let deadline = Instant::now() + self.patience.stop;
        // One whose receiver reads nothing only ends when it is told again.
        loop {
            own.hurry(old);
            if old.gone_within(END_AGAIN).await {
                break;
            }
            if Instant::now() >= deadline {
                return CutOver::Lost {
                    reason: self.still_stopping(old),
                };
            }
        }
        let reason = format!(
            "the old server had not stopped after {} s (stop_timeout): often a standby or backup that does not take \
             its data; it was started again",
            self.config.standby.stop.as_secs_f32()
        );
        self.back(own, state, from.capacity, reason).await
    }

    /// The old server has stopped and nothing was promoted: it is started again, as it was.
    async fn back<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        capacity: Capacity,
        reason: String,
    ) -> CutOver {
        let undone = Intent::new(capacity, capacity);
        if let Err(error) = self.give_up_promotion(undone).await {
            return CutOver::Lost {
                reason: format!("{reason}; and {error}"),
            };
        }
        tracing::error!(
            reason,
            "the standby can't take over: starting the old server again"
        );
        let deadline = Instant::now() + self.patience.start;
        match self.launch(state, capacity, deadline).await {
            Ok((instance, _)) => {
                self.settled(state, capacity);
                self.follow_soon(own.maker(), state, capacity);
                CutOver::KeptOld { instance, reason }
            }
            Err(LaunchError::Alive(again) | LaunchError::Ended(again)) => CutOver::Lost {
                reason: format!("{reason}; and the old server does not start: {again}"),
            },
            Err(LaunchError::NotTried(error)) => CutOver::Lost {
                reason: format!("{reason}; and {error}"),
            },
        }
    }

    /// Finishes a promotion that an earlier proxy decided, and answers its server; or takes it back, in `intent`
    /// too, where it is proven that it never happened.
    pub(super) async fn finish_promotion<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        intent: &mut Option<Intent>,
    ) -> Result<Option<Instance>, ProviderError> {
        let Some(begun) = intent.clone() else {
            return Ok(None);
        };
        if begun.pending(self.data_dir.primary()).is_none() {
            return Ok(None);
        }
        tracing::warn!(from = %begun.from, to = %begun.to, "a switch to a standby was interrupted: finishing it");
        match self.forward(own, state, &begun).await {
            Ok(instance) => Ok(Some(instance)),
            Err(Stuck::Unknown(why)) => Err(ProviderError::Server(why)),
            Err(Stuck::NeverPromoted(why)) => {
                tracing::error!(
                    why,
                    "the standby never became a primary: going back to the old server"
                );
                let undone = Intent::new(begun.from, begun.to);
                self.give_up_promotion(undone.clone()).await?;
                *intent = Some(undone);
                Ok(None)
            }
        }
    }

    /// Nothing was promoted, and nothing will be. Durable when this returns; only then may the old server
    /// start. A standby that ended in the midst of its promotion may have let go of its fence.
    pub(super) async fn give_up_promotion(&self, undone: Intent) -> Result<(), ProviderError> {
        blocking(&self.data_dir, move |d| {
            let other = d.primary().other();
            if d.holds_data(other) {
                fence::fence(d, &d.data_of(other))?;
            }
            d.write_intent(&undone)
        })
        .await
    }

    /// Whatever is in the other home can only start as a standby: else one of the two was promoted, or
    /// started, by somebody else.
    pub(super) fn see_that_the_other_is_fenced(&self) -> Result<(), ProviderError> {
        let home = self.data_dir.primary().other();
        let other = self.data_dir.data_of(home);
        if !self.data_dir.holds_data(home) || fence::is_fenced(&self.data_dir, &other) {
            return Ok(());
        }
        Err(ProviderError::Server(format!(
            "{} has no {}: somebody promoted it, and it may have what {} has not. Nothing is started; move \
             away the one that is not to serve, and see `primary` in {}",
            other.display(),
            fence::signal(self.data_dir.engine()),
            self.data_dir.data().display(),
            self.data_dir.path().join("server.json").display()
        )))
    }

    /// Has a standby made in the background, once the sessions are back.
    pub(super) fn follow_soon<M: Maker>(
        &self,
        maker: &Arc<M>,
        state: &mut State,
        capacity: Capacity,
    ) {
        if self.config.switch != Switch::Standby {
            return;
        }
        if let Some(following) = state.following.take() {
            following.abort();
        }
        let maker = Arc::clone(maker);
        state.following = Some(tokio::spawn(async move {
            tokio::time::sleep(UNTHROTTLED_AFTER_START).await;
            let primary = maker.data_dir().endpoint();
            if let Err(error) = slot::ready_if_none(&*maker, &primary, capacity).await {
                tracing::warn!(%error, "no standby yet: the next change of capacity makes one");
            }
        }));
    }

    /// Promotes the standby of a decided promotion, starting it if need be: with the new capacity, then with
    /// the old one.
    async fn promote<S: Succession>(
        &self,
        own: &S,
        intent: &Intent,
        promotion: &Promotion,
        ready: Option<Standby>,
    ) -> Result<Proven, Stuck> {
        let home = promotion.home;
        let unknown = |e: ProviderError| Stuck::Unknown(e.to_string());
        let find = || engine::find(&self.data_dir, home).map_err(unknown);
        let patience = match ready {
            Some(_) => self.patience.start,
            None => self.patience.recovery,
        };
        let (mut running, mut session) = match ready {
            Some(ready) => (Some(ready.process), Some(ready.session)),
            None => (find()?, None),
        };
        if running.is_none() {
            // An earlier proxy's may have ended in the midst of it.
            own.ended_midway(self, home).await;
        }
        let log = self.data_dir.log_of(home);
        let mut why = String::new();
        for capacity in [intent.to, intent.to, intent.from] {
            let deadline = Instant::now() + patience;
            let read_from = log_length(&log);
            let process = match running.take() {
                Some(process) => process,
                None => match own.spawn_standby(home, capacity) {
                    Ok(process) => process,
                    Err(error) => {
                        why = error.to_string();
                        continue;
                    }
                },
            };
            let promoted = own.become_primary(self, process, session.take(), promotion, deadline);
            match promoted.await {
                Ok(done) => return Ok(done),
                Err(NotReady::Late(why)) => return Err(Stuck::Unknown(why)),
                Err(NotReady::Ended) => {
                    why = log_tail(&log, read_from);
                    tracing::error!(why, "the standby ended while it was promoted");
                    // Somebody's start may have been quicker.
                    running = find()?;
                    if running.is_none() {
                        own.ended_midway(self, home).await;
                    }
                }
            }
        }
        let why = format!(
            "the standby does not start ({why}; whole log: {})",
            log.display()
        );
        if let Some(running) = running {
            return Err(Stuck::Unknown(format!(
                "{why}; and process {} runs there",
                running.pid()
            )));
        }
        match own.never_promoted(self, home).await {
            Ok(true) => Err(Stuck::NeverPromoted(why)),
            Ok(false) => Err(Stuck::Unknown(format!("{why}; it may have been a primary"))),
            Err(error) => Err(Stuck::Unknown(format!("{why}; {error}"))),
        }
    }

    /// The promoted server is the primary from now on; the last one follows it before long.
    fn took_over<S: Succession>(
        &self,
        own: &S,
        state: &mut State,
        home: Home,
        before: Capacity,
        proven: Proven,
    ) -> Instance {
        self.data_dir.set_primary(home);
        let instance = self.now_running(state, proven.process, proven.capacity, proven.identity);
        self.throttle(state, instance.capacity, UNTHROTTLED_AFTER_START);
        let data_dir = Arc::clone(&self.data_dir);
        state.tidying = Some(tokio::task::spawn_blocking(move || {
            // While the intent is there, it tells who the primary is.
            if let Err(error) = data_dir.remove_intent() {
                tracing::warn!(%error, "the finished change of capacity can't be put away");
            }
        }));
        self.follow_soon(own.maker(), state, before);
        instance
    }
}
