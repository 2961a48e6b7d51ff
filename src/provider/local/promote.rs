//! The switch to a standby: the moment that clients feel.
//!
//! The order is what keeps it safe. The old primary is stopped cleanly, its last record is read from its
//! control file, the standby has to have replayed that record, the old data directory is fenced, the intent is on
//! disk: only then the standby is promoted. Up to there every failure starts the old primary again; from there on
//! the only ways are forward, or back once it is proven that the standby never became a primary.

use super::super::lsn::Lsn;
use super::super::{CutOver, Instance, ProviderError, QueryError, ServerIdentity, ServerSession};
use super::control::{Control, Ending};
use super::engine::Postgres;
use super::fence;
use super::files::{Home, Intent, Promotion};
use super::follower::{Seen, Standby, look};
use super::postmaster::{self, PidFile, Status};
use super::process::{POLL, Process, log_length, log_tail};
use super::proof::{PROOF_SQL, PromotionTimes, compare};
use super::switch::{Before, LaunchError, NotReady};
use super::{LocalProvider, State, UNTHROTTLED_AFTER_START, blocking};
use crate::backend::Capacity;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often senders of the log that hold up a stop are told to end.
const END_AGAIN: Duration = Duration::from_millis(500);

/// Why a promotion that was decided did not end with a primary.
pub(super) enum Stuck {
    /// It is proven that the standby never became one: the old primary may be started again.
    NeverPromoted(String),
    /// Nobody can know: only the same way forward is left.
    Unknown(String),
}

/// A promoted server that answered and wrote.
struct Proven {
    process: Process,
    capacity: Capacity,
    identity: ServerIdentity,
    promotion: Duration,
}

/// A server on its way from standby to primary.
struct Candidate {
    process: Process,
    session: Option<Box<dyn ServerSession>>,
    /// It is proven to have everything.
    proven: bool,
    deadline: Instant,
}

enum Answer {
    Standby(Seen),
    Primary(ServerIdentity, Capacity),
}

impl LocalProvider {
    pub(super) async fn switch_to_standby(
        &self,
        pg: &Postgres,
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
                return self.go_on(pg, state, intent).await;
            }
            Ok(_) => {}
            Err(error) => return kept(error.to_string()),
        }
        let follower = Arc::clone(&pg.follower);
        let begun = Instant::now();
        let old = match self.before(state, from).await {
            Ok(Before::Newer(instance)) => return self.ended_before(state, instance, to),
            Ok(Before::Gone) => None,
            Ok(Before::Old(process)) => Some(process),
            Err(reason) => return CutOver::Lost { reason },
        };
        let Ok(mut standby) = follower.standby.try_lock() else {
            let reason = "a standby is being made: ask again".to_owned();
            return match old {
                Some(_) => kept(reason),
                None => self.back(pg, state, from.capacity, reason).await,
            };
        };
        let mut ready = standby
            .take()
            .filter(|s| s.capacity == to && s.home != self.data_dir.primary());
        if let Some(old) = old
            && let Err(ended) = self.stop_old(pg, state, from, to, &old, &mut ready).await
        {
            return ended;
        }
        let stop = begun.elapsed();
        let Some(mut ready) = ready else {
            let reason = format!("no standby with capacity {to} is ready");
            return self.back(pg, state, from.capacity, reason).await;
        };
        let begun = Instant::now();
        let promotion = match self.prove(pg, &mut ready).await {
            Ok(promotion) => promotion,
            Err(reason) => return self.back(pg, state, from.capacity, reason).await,
        };
        let intent = Intent {
            from: from.capacity,
            to,
            promotion: Some(promotion),
        };
        if let Err(error) = self.write_intent(intent).await {
            // It may be on disk all the same; `back` takes it off again first.
            return self.back(pg, state, from.capacity, error.to_string()).await;
        }
        let proof = begun.elapsed();
        match self.promote(pg, intent, promotion, Some(ready)).await {
            Ok(proven) => {
                let times = PromotionTimes {
                    stop,
                    proof,
                    promotion: proven.promotion,
                };
                tracing::info!(from = %from.capacity, %to, %times, "the standby took over");
                self.shown.lock().promotion = Some(times);
                drop(standby);
                let instance = self.took_over(pg, state, promotion.home, from.capacity, proven);
                self.told(instance, to)
            }
            Err(stuck) => {
                drop(standby);
                self.stuck(pg, state, intent, stuck).await
            }
        }
    }

    /// Stops the old primary, if its standby is there.
    async fn stop_old(
        &self,
        pg: &Postgres,
        state: &mut State,
        from: &Instance,
        to: Capacity,
        old: &Process,
        ready: &mut Option<Standby>,
    ) -> Result<(), CutOver> {
        let kept = |reason: String| CutOver::KeptOld {
            instance: from.clone(),
            reason,
        };
        // The last moment to find out without harm that it does not follow any more.
        let follows = match ready {
            Some(standby) => {
                let seen = look(&mut *standby.session).await;
                seen.is_ok_and(|seen| seen.streaming && seen.in_recovery)
            }
            None => false,
        };
        if !follows {
            let stopping = PidFile::read(&self.data_dir.data())
                .is_ok_and(|f| f.is_some_and(|f| f.status == Status::Stopping));
            if stopping {
                return Err(self.stop_hangs(pg, state, from, old).await);
            }
            return Err(kept(format!(
                "no standby with capacity {to} is ready: ask again"
            )));
        }
        let intent = Intent {
            from: from.capacity,
            to,
            promotion: None,
        };
        self.note_intent(intent)
            .await
            .map_err(|error| kept(error.to_string()))?;
        self.unthrottle(state);
        old.stop_fast().map_err(|error| kept(error.to_string()))?;
        if old.gone_within(self.config.standby.stop).await {
            return Ok(());
        }
        Err(self.stop_hangs(pg, state, from, old).await)
    }

    /// An earlier call decided to promote and did not hear how that ended.
    async fn go_on(&self, pg: &Postgres, state: &mut State, intent: Intent) -> CutOver {
        match self.forward(pg, state, intent).await {
            Ok(instance) => self.told(instance, intent.to),
            Err(stuck) => self.stuck(pg, state, intent, stuck).await,
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

    async fn stuck(
        &self,
        pg: &Postgres,
        state: &mut State,
        intent: Intent,
        stuck: Stuck,
    ) -> CutOver {
        match stuck {
            Stuck::NeverPromoted(why) => self.back(pg, state, intent.from, why).await,
            Stuck::Unknown(reason) => CutOver::Lost { reason },
        }
    }

    /// Finishes a promotion that is on disk as decided, whoever decided it.
    pub(super) async fn forward(
        &self,
        pg: &Postgres,
        state: &mut State,
        intent: Intent,
    ) -> Result<Instance, Stuck> {
        let primary = self.data_dir.primary();
        let Some(promotion) = intent.pending(primary) else {
            return Err(Stuck::Unknown("nothing was to be promoted".to_owned()));
        };
        let mut standby = pg.follower.standby.lock().await;
        *standby = None;
        self.see_that_the_old_is_fenced(primary, promotion)
            .map_err(Stuck::Unknown)?;
        let home = promotion.home;
        blocking(&self.data_dir, move |d| fence::copy_configuration(d, home))
            .await
            .map_err(|e| Stuck::Unknown(e.to_string()))?;
        let proven = self.promote(pg, intent, promotion, None).await?;
        drop(standby);
        if let Err(error) = proven.process.reload() {
            tracing::warn!(%error, "its configuration files may be older than the old server's");
        }
        Ok(self.took_over(pg, state, home, intent.from, proven))
    }

    /// The old primary has to be as it was when the promotion was decided.
    fn see_that_the_old_is_fenced(&self, old: Home, promotion: Promotion) -> Result<(), String> {
        let pgdata = self.data_dir.data_of(old);
        if !fence::is_fenced(&pgdata) {
            return Err(format!(
                "{} may have been promoted, and standby.signal is gone from {}: somebody may have started the old \
                 server as a primary. Compare both, and remove {} if the old one is to serve",
                self.data_dir.data_of(promotion.home).display(),
                pgdata.display(),
                self.data_dir.path().join("switch.json").display()
            ));
        }
        Ok(())
    }

    /// The stop is left to end, without those that it waits for; then the old server comes back.
    async fn stop_hangs(
        &self,
        pg: &Postgres,
        state: &mut State,
        from: &Instance,
        old: &Process,
    ) -> CutOver {
        let deadline = Instant::now() + self.patience.stop;
        // One whose receiver reads nothing only ends when it is told again.
        loop {
            old.end_senders();
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
        self.back(pg, state, from.capacity, reason).await
    }

    /// The old server has stopped and nothing was promoted: it is started again, as it was.
    async fn back(
        &self,
        pg: &Postgres,
        state: &mut State,
        capacity: Capacity,
        reason: String,
    ) -> CutOver {
        let undone = Intent {
            from: capacity,
            to: capacity,
            promotion: None,
        };
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
                self.follow_soon(pg, state, capacity);
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

    /// That nothing can be lost by promoting this standby: what is written down before it is done. Fences
    /// the old data directory beside that.
    pub(super) async fn prove(
        &self,
        pg: &Postgres,
        ready: &mut Standby,
    ) -> Result<Promotion, String> {
        let old = self.data_dir.primary();
        let (home, process) = (ready.home, ready.process);
        let fencing = blocking(&self.data_dir, move |d| {
            let pgdata = d.data();
            if let Some(what) = fence::vanishing(&pgdata)? {
                return Err(ProviderError::Server(format!(
                    "{what} was made in the meantime and would not be on the new server"
                )));
            }
            if fence::copy_configuration(d, home)? {
                process.reload()?;
            }
            fence::fence(d, &pgdata)
        });
        let (control, fenced, seen) = tokio::join!(
            Control::read(&pg.install, &self.data_dir, old),
            fencing,
            look(&mut *ready.session)
        );
        let control = control.map_err(|e| e.to_string())?;
        fenced.map_err(|e| e.to_string())?;
        if control.ending != Ending::Clean {
            return Err("the old server did not stop cleanly".to_owned());
        }
        let mut seen = seen;
        let deadline = Instant::now() + self.patience.replay;
        loop {
            let now = match seen {
                Ok(now) => now,
                Err(error) => return Err(format!("the standby does not answer: {error}")),
            };
            if !now.in_recovery || now.started_at != ready.started_at {
                return Err("the standby was restarted or promoted by somebody else".to_owned());
            }
            if now.system_identifier != control.system_identifier {
                return Err("the standby is of another system".to_owned());
            }
            if now.replayed > control.checkpoint {
                break;
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "the standby has replayed the log up to {} only, and the old server's shutdown checkpoint is at {}",
                    now.replayed, control.checkpoint
                ));
            }
            tokio::time::sleep(POLL).await;
            seen = look(&mut *ready.session).await;
        }
        Ok(Promotion {
            home: ready.home,
            system_identifier: control.system_identifier,
            checkpoint: control.checkpoint,
            timeline: control.timeline,
        })
    }

    /// Promotes the standby of a decided promotion, starting it if need be: with the new capacity, then with
    /// the old one.
    async fn promote(
        &self,
        pg: &Postgres,
        intent: Intent,
        promotion: Promotion,
        ready: Option<Standby>,
    ) -> Result<Proven, Stuck> {
        let home = promotion.home;
        let unknown = |e: ProviderError| Stuck::Unknown(e.to_string());
        let find = || {
            postmaster::find(&self.data_dir.data_of(home))
                .map(|found| found.map(|(process, _)| process))
                .map_err(unknown)
        };
        let patience = match ready {
            Some(_) => self.patience.start,
            None => self.patience.recovery,
        };
        let (mut running, mut session) = match ready {
            Some(ready) => (Some(ready.process), Some(ready.session)),
            None => (find()?, None),
        };
        let log = self.data_dir.log_of(home);
        let mut why = String::new();
        for capacity in [intent.to, intent.to, intent.from] {
            let deadline = Instant::now() + patience;
            let read_from = log_length(&log);
            let process = match running.take() {
                Some(process) => process,
                None => match pg.follower.spawn(home, capacity) {
                    Ok(process) => process,
                    Err(error) => {
                        why = error.to_string();
                        continue;
                    }
                },
            };
            let mut candidate = Candidate {
                process,
                proven: session.is_some(),
                session: session.take(),
                deadline,
            };
            match self.become_primary(pg, &mut candidate, promotion).await {
                Ok(done) => return Ok(done),
                Err(NotReady::Late(why)) => return Err(Stuck::Unknown(why)),
                Err(NotReady::Ended) => {
                    why = log_tail(&log, read_from);
                    tracing::error!(why, "the standby ended while it was promoted");
                    // Somebody's start may have been quicker.
                    running = find()?;
                    if running.is_none() {
                        self.fence_again(pg, home).await;
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
        match Control::read(&pg.install, &self.data_dir, home).await {
            Ok(control) if control.ending == Ending::InRecovery => Err(Stuck::NeverPromoted(why)),
            Ok(_) => Err(Stuck::Unknown(format!("{why}; it may have been a primary"))),
            Err(error) => Err(Stuck::Unknown(format!("{why}; {error}"))),
        }
    }

    /// A standby that ended in the midst of its promotion may have let go of its fence. As long as it is proven
    /// that it never became a primary it is to start as a standby again, so that this stays so.
    async fn fence_again(&self, pg: &Postgres, home: Home) {
        let control = Control::read(&pg.install, &self.data_dir, home).await;
        if !control.is_ok_and(|c| c.ending == Ending::InRecovery) {
            return;
        }
        let fenced = blocking(&self.data_dir, move |d| fence::fence(d, &d.data_of(home)));
        if let Err(error) = fenced.await {
            tracing::warn!(%error, "the standby can't be fenced again");
        }
    }

    /// Waits until the standby may be promoted, tells it, waits until it is, and has it write.
    async fn become_primary(
        &self,
        pg: &Postgres,
        candidate: &mut Candidate,
        promotion: Promotion,
    ) -> Result<Proven, NotReady> {
        let home = promotion.home;
        let late = |e: ProviderError| NotReady::Late(e.to_string());
        let begun = Instant::now();
        let mut told = false;
        let mut replayed = Lsn::default();
        loop {
            if candidate.proven && !told {
                candidate
                    .process
                    .promote(&self.data_dir, home)
                    .map_err(late)?;
                told = true;
            }
            match self.answer(pg, candidate, promotion).await {
                Ok(Answer::Primary(identity, capacity)) => {
                    return Ok(Proven {
                        process: candidate.process,
                        capacity,
                        identity,
                        promotion: begun.elapsed(),
                    });
                }
                Ok(Answer::Standby(seen)) => {
                    replayed = seen.replayed;
                    candidate.proven |= seen.replayed > promotion.checkpoint
                        && seen.system_identifier == promotion.system_identifier;
                    if candidate.proven && !told {
                        continue;
                    }
                }
                Err(error @ (QueryError::Auth(_) | QueryError::Other(_))) => {
                    return Err(NotReady::Late(format!(
                        "process {} runs, but: {error}",
                        candidate.process.pid()
                    )));
                }
                // Not up yet, or it ends.
                Err(_) => candidate.session = None,
            }
            let what = if told {
                "it is still being promoted".to_owned()
            } else {
                format!(
                    "it has replayed the log up to {replayed}, and the old server's shutdown checkpoint is at {}",
                    promotion.checkpoint
                )
            };
            self.still_worth_waiting(home, candidate.process, candidate.deadline, &what)?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks once. A server that is a primary proves it by a write.
    async fn answer(
        &self,
        pg: &Postgres,
        candidate: &mut Candidate,
        promotion: Promotion,
    ) -> Result<Answer, QueryError> {
        let session = match &mut candidate.session {
            Some(session) => session,
            none => none.insert(pg.follower.session(promotion.home).await?),
        };
        let seen = look(&mut **session).await?;
        if seen.in_recovery {
            return Ok(Answer::Standby(seen));
        }
        let rows = session.query(PROOF_SQL).await?;
        let (identity, capacity) = compare(&rows, promotion)?;
        Ok(Answer::Primary(identity, capacity))
    }

    /// The promoted server is the primary from now on; the last one follows it before long.
    fn took_over(
        &self,
        pg: &Postgres,
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
            let tidy = || {
                // In this order: while the intent is there, it tells who the primary is.
                data_dir.keep_file()?;
                data_dir.remove_intent()
            };
            if let Err(error) = tidy() {
                tracing::warn!(%error, "the finished change of capacity can't be put away");
            }
        }));
        self.follow_soon(pg, state, before);
        instance
    }
}
