//! The restart of a local server: the moment that clients feel. Nothing in here sleeps longer than one
//! poll, and nothing is asked that `check` could have asked before.

use super::super::{CutOver, Identified, Instance, ProviderError, QueryError};
use super::engine;
use super::files::{Home, Intent};
use super::postmaster;
use super::process::{POLL, Process, log_length, log_tail};
use super::{LocalProvider, State, UNTHROTTLED_AFTER_START, blocking, settings};
use crate::backend::Capacity;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the parts of a restart took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchTimes {
    /// From the signal to the end of the old process.
    pub stop: Duration,
    /// From its end to the moment at which the new one says that it is ready.
    pub start: Duration,
    /// From then to the first answer to a query.
    pub first_query: Duration,
}

impl fmt::Display for SwitchTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        write!(
            f,
            "{:.1} + {:.1} + {:.1} ms",
            ms(self.stop),
            ms(self.start),
            ms(self.first_query)
        )
    }
}

/// Why a started server does not serve.
pub(super) enum LaunchError {
    /// Its process ended, with the last lines of its log.
    Ended(String),
    /// Its process lives, but does not answer.
    Alive(String),
    /// It was not even started.
    NotTried(ProviderError),
}

/// Why a process is not ready.
pub(super) enum NotReady {
    /// It ended.
    Ended,
    /// It lives but gives no answer, with what it gave instead.
    Late(String),
}

/// What runs when a cut-over begins.
pub(super) enum Before {
    /// The server to be stopped.
    Old(Process),
    /// Nothing.
    Gone,
    /// A server that was started after the old one.
    Newer(Instance),
}

impl LocalProvider {
    pub(super) async fn switch(&self, state: &mut State, from: &Instance, to: Capacity) -> CutOver {
        if to == Capacity(0) {
            let reason = ProviderError::Paused.to_string();
            return CutOver::KeptOld {
                instance: from.clone(),
                reason,
            };
        }
        let begun = Instant::now();
        match self.before(state, from).await {
            Ok(Before::Newer(instance)) => return self.ended_before(state, instance, to),
            Ok(Before::Gone) => {}
            Ok(Before::Old(process)) => {
                let intent = Intent::new(from.capacity, to);
                if let Err(error) = self.note_intent(intent).await {
                    return CutOver::KeptOld {
                        instance: from.clone(),
                        reason: error.to_string(),
                    };
                }
                self.unthrottle(state);
                if let Err(error) = engine::stop(&self.data_dir, process) {
                    return CutOver::KeptOld {
                        instance: from.clone(),
                        reason: error.to_string(),
                    };
                }
                if !process.gone_within(self.patience.stop).await {
                    return CutOver::Lost {
                        reason: self.still_stopping(&process),
                    };
                }
            }
            Err(reason) => return CutOver::Lost { reason },
        }
        let stop = begun.elapsed();
        let why = match self
            .launch(state, to, Instant::now() + self.patience.start)
            .await
        {
            Ok((instance, (start, first_query))) => {
                let times = SwitchTimes {
                    stop,
                    start,
                    first_query,
                };
                tracing::info!(from = %from.capacity, %to, %times, "the server was restarted");
                self.shown.lock().times = Some(times);
                self.settled(state, to);
                return CutOver::Completed(instance);
            }
            Err(LaunchError::Alive(reason)) => return CutOver::Lost { reason },
            Err(LaunchError::Ended(why)) => why,
            Err(LaunchError::NotTried(error)) => error.to_string(),
        };
        tracing::error!(%to, why, "the server did not start: trying the old settings");
        let deadline = Instant::now() + self.patience.start;
        match self.launch(state, from.capacity, deadline).await {
            Ok((instance, _)) => {
                self.settled(state, from.capacity);
                let reason = format!("the server does not start with capacity {to}: {why}");
                CutOver::KeptOld { instance, reason }
            }
            Err(LaunchError::Alive(again) | LaunchError::Ended(again)) => CutOver::Lost {
                reason: format!(
                    "the server starts neither with capacity {to} ({why}) nor with {} as before ({again})",
                    from.capacity
                ),
            },
            Err(LaunchError::NotTried(error)) => CutOver::Lost {
                reason: error.to_string(),
            },
        }
    }

    /// Starts a server and waits for its first answer; also returns how long the start and that answer took.
    pub(super) async fn launch(
        &self,
        state: &mut State,
        capacity: Capacity,
        deadline: Instant,
    ) -> Result<(Instance, (Duration, Duration)), LaunchError> {
        let home = self.data_dir.primary();
        let log = self.data_dir.log_of(home);
        let begun = Instant::now();
        self.unfence().await.map_err(LaunchError::NotTried)?;
        let mut leftover_since = None;
        loop {
            let read_from = log_length(&log);
            let process = self.spawn(capacity).map_err(LaunchError::NotTried)?;
            state.running = Some(super::Running::new(process));
            let up = self.up(process, deadline).await;
            let start = begun.elapsed();
            let answer = match up {
                Ok(()) => self.ready(process, deadline).await,
                Err(not_ready) => Err(not_ready),
            };
            match answer {
                Ok(found) => {
                    let first_query = begun.elapsed().saturating_sub(start);
                    let instance = self.now_running(state, process, capacity, found.identity);
                    return Ok((instance, (start, first_query)));
                }
                Err(NotReady::Late(why)) => return Err(LaunchError::Alive(why)),
                Err(NotReady::Ended) => {
                    let tail = log_tail(&log, read_from);
                    if !self.part.is_leftover(&tail) || Instant::now() >= deadline {
                        return Err(LaunchError::Ended(format!(
                            "it ended at once: {tail} (whole log: {})",
                            log.display()
                        )));
                    }
                    let since = *leftover_since.get_or_insert_with(Instant::now);
                    let data = self.data_dir.data_of(home);
                    postmaster::end_leftovers(&data, since.elapsed());
                    tokio::time::sleep(POLL * 20).await;
                }
            }
        }
    }

    /// Waits until the process says that it is up.
    async fn up(&self, process: Process, deadline: Instant) -> Result<(), NotReady> {
        let home = self.data_dir.primary();
        loop {
            if self
                .is_up(process)
                .map_err(|e| NotReady::Late(e.to_string()))?
            {
                return Ok(());
            }
            self.still_worth_waiting(home, process, deadline, "is still starting")?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for the answer to a query.
    pub(super) async fn ready(
        &self,
        process: Process,
        deadline: Instant,
    ) -> Result<Identified, NotReady> {
        let endpoint = self.data_dir.endpoint();
        loop {
            match self.who(&endpoint).await {
                Ok(found) if found.identity.in_recovery => {
                    return Err(NotReady::Late(
                        ProviderError::InRecovery(endpoint.address.to_string()).to_string(),
                    ));
                }
                Ok(found) => return Ok(found),
                Err(error @ (QueryError::Auth(_) | QueryError::Other(_))) => {
                    let why = format!("process {} runs, but: {error}", process.pid());
                    return Err(NotReady::Late(why));
                }
                Err(error) => {
                    let home = self.data_dir.primary();
                    self.still_worth_waiting(home, process, deadline, &error.to_string())?;
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }

    pub(super) fn still_worth_waiting(
        &self,
        home: Home,
        process: Process,
        deadline: Instant,
        what: &str,
    ) -> Result<(), NotReady> {
        if !process.alive() {
            return Err(NotReady::Ended);
        }
        if Instant::now() < deadline {
            return Ok(());
        }
        Err(NotReady::Late(format!(
            "process {} gives no answer in time: {what}; see {}",
            process.pid(),
            self.data_dir.log_of(home).display()
        )))
    }

    /// Finds out where things stand, without a question where memory suffices.
    pub(super) async fn before(
        &self,
        state: &mut State,
        from: &Instance,
    ) -> Result<Before, String> {
        let running = state.running.take().filter(|r| r.process.alive());
        let (process, started_at) = match running {
            Some(running) => (running.process, running.started_at.clone()),
            None => match engine::find(&self.data_dir, self.data_dir.primary())
                .map_err(|e| e.to_string())?
            {
                Some(process) => (process, None),
                None => return Ok(Before::Gone),
            },
        };
        state.running = Some(super::Running {
            process,
            started_at: started_at.clone(),
        });
        if started_at.as_ref() == Some(&from.identity.started_at) {
            return Ok(Before::Old(process));
        }
        if self.is_stopping().map_err(|e| e.to_string())? {
            return Ok(Before::Old(process));
        }
        match self
            .ready(process, Instant::now() + self.patience.start)
            .await
        {
            Ok(found) if found.identity.started_at == from.identity.started_at => {
                Ok(Before::Old(process))
            }
            Ok(found) => {
                let capacity = settings::capacity_of(&found.cluster_name).ok_or_else(|| {
                    format!("process {} was not started by slackwater", process.pid())
                })?;
                let instance = self.now_running(state, process, capacity, found.identity);
                Ok(Before::Newer(instance))
            }
            Err(NotReady::Ended) => Ok(Before::Gone),
            Err(NotReady::Late(why)) => Err(why),
        }
    }

    /// This very change ended before: it is only told again.
    pub(super) fn ended_before(
        &self,
        state: &mut State,
        instance: Instance,
        to: Capacity,
    ) -> CutOver {
        self.settled(state, instance.capacity);
        if instance.capacity == to {
            return CutOver::Completed(instance);
        }
        let reason = format!(
            "the server was restarted with capacity {} in the meantime: ask again",
            instance.capacity
        );
        CutOver::KeptOld { instance, reason }
    }

    /// The intent on disk, usually written by Prepare.
    pub(super) async fn note_intent(&self, intent: Intent) -> Result<(), ProviderError> {
        if matches!(self.data_dir.intent(), Ok(Some(there)) if there == intent) {
            return Ok(());
        }
        self.write_intent(intent).await
    }

    pub(super) async fn write_intent(&self, intent: Intent) -> Result<(), ProviderError> {
        blocking(&self.data_dir, move |d| d.write_intent(&intent)).await
    }

    /// A server serves again: its quota begins soon, the intent goes.
    pub(super) fn settled(&self, state: &mut State, capacity: Capacity) {
        self.throttle(state, capacity, UNTHROTTLED_AFTER_START);
        let data_dir = Arc::clone(&self.data_dir);
        state.tidying = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = data_dir.remove_intent() {
                tracing::warn!(%error, "can't remove the finished change of capacity");
            }
        }));
    }

    pub(super) fn still_stopping(&self, process: &Process) -> String {
        format!(
            "process {} has not stopped after {} s and is left to it (killing it would cost a recovery): often a \
             standby or backup that does not take its data; see {}",
            process.pid(),
            self.patience.stop.as_secs(),
            self.data_dir.log().display()
        )
    }
}
