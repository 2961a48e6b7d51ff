//! The promotion of PostgreSQL's standby: what proves that it has everything, and the promotion itself.
//!
//! The old primary's last record is read from its control file, the standby has to have replayed that record; the
//! rest of the order is in `succession`.

use super::super::lsn::Lsn;
use super::super::{Instance, ProviderError, QueryError, ServerIdentity, ServerSession};
use super::control::{Control, Ending};
use super::engine::Postgres;
use super::fence;
use super::files::{End, Home, LogEnd, Promotion};
use super::follower::{Follower, Seen, look};
use super::process::{POLL, Process};
use super::proof::{PROOF_SQL, compare};
use super::slot::Standby;
use super::succession::{Proven, Succession};
use super::switch::NotReady;
use super::{LocalProvider, blocking};
use crate::backend::Capacity;
use std::sync::Arc;
use tokio::time::Instant;

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

impl Succession for Postgres {
    type Maker = Follower;
    type Drained = ();

    fn maker(&self) -> &Arc<Follower> {
        &self.follower
    }

    async fn follows(&self, standby: &mut Standby) -> bool {
        let seen = look(&mut *standby.session).await;
        seen.is_ok_and(|seen| seen.streaming && seen.in_recovery)
    }

    /// A clean stop waits until the standby has all of the log.
    async fn drain(
        &self,
        _provider: &LocalProvider,
        _from: &Instance,
        _standby: &mut Standby,
    ) -> Result<(), String> {
        Ok(())
    }

    async fn undrain(&self, _provider: &LocalProvider, _from: &Instance) {}

    fn hurry(&self, old: &Process) {
        old.end_senders();
    }

    async fn prove(
        &self,
        provider: &LocalProvider,
        ready: &mut Standby,
        _drained: Option<()>,
    ) -> Result<Promotion, String> {
        provider.prove(self, ready).await
    }

    fn spawn_standby(&self, home: Home, capacity: Capacity) -> Result<Process, ProviderError> {
        self.follower.spawn(home, capacity)
    }

    async fn become_primary(
        &self,
        provider: &LocalProvider,
        process: Process,
        session: Option<Box<dyn ServerSession>>,
        promotion: &Promotion,
        deadline: Instant,
    ) -> Result<Proven, NotReady> {
        let End::Log(end) = promotion.end else {
            return Err(NotReady::Late("the intent is of another engine".to_owned()));
        };
        let mut candidate = Candidate {
            process,
            proven: session.is_some(),
            session,
            deadline,
        };
        provider
            .become_primary(self, &mut candidate, promotion.home, end)
            .await
    }

    /// It may have let go of its fence.
    async fn ended_midway(&self, provider: &LocalProvider, home: Home) {
        if !matches!(self.never_promoted(provider, home).await, Ok(true)) {
            return;
        }
        let fenced = blocking(&provider.data_dir, move |d| {
            fence::fence(d, &d.data_of(home))
        });
        if let Err(error) = fenced.await {
            tracing::warn!(%error, "the standby can't be fenced again");
        }
    }

    async fn never_promoted(&self, provider: &LocalProvider, home: Home) -> Result<bool, String> {
        Control::read(&self.install, &provider.data_dir, home)
            .await
            .map(|control| control.ending == Ending::InRecovery)
            .map_err(|error| error.to_string())
    }

    fn refresh(&self, process: &Process) {
        if let Err(error) = process.reload() {
            tracing::warn!(%error, "its configuration files may be older than the old server's");
        }
    }
}

impl LocalProvider {
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
            end: End::Log(LogEnd {
                system_identifier: control.system_identifier,
                checkpoint: control.checkpoint,
                timeline: control.timeline,
            }),
        })
    }

    /// Waits until the standby may be promoted, tells it, waits until it is, and has it write.
    async fn become_primary(
        &self,
        pg: &Postgres,
        candidate: &mut Candidate,
        home: Home,
        end: LogEnd,
    ) -> Result<Proven, NotReady> {
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
            match self.answer(pg, candidate, home, end).await {
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
                    candidate.proven |= seen.replayed > end.checkpoint
                        && seen.system_identifier == end.system_identifier;
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
                    end.checkpoint
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
        home: Home,
        end: LogEnd,
    ) -> Result<Answer, QueryError> {
        let session = match &mut candidate.session {
            Some(session) => session,
            none => none.insert(pg.follower.session(home).await?),
        };
        let seen = look(&mut **session).await?;
        if seen.in_recovery {
            return Ok(Answer::Standby(seen));
        }
        let rows = session.query(PROOF_SQL).await?;
        let (identity, capacity) = compare(&rows, end)?;
        Ok(Answer::Primary(identity, capacity))
    }
}
