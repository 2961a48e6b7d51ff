//! The switch to a standby of MySQL or MariaDB.
//!
//! Its primary is drained before the stop: it takes no more writes, the standby has all transactions that are in its log, and
//! where that log ends is noted. After the stop its files have to show that it ended cleanly and just there. So nothing that
//! anybody was told as committed is missing, whoever could still write past `read_only`.

use super::super::super::{Instance, ProviderError, QueryError, ServerSession};
use super::super::fence;
use super::super::files::{BinlogEnd, End, Home, Promotion};
use super::super::process::{POLL, Process};
use super::super::slot::{self, Standby};
use super::super::succession::{Proven, Succession};
use super::super::switch::NotReady;
use super::super::{LocalProvider, blocking};
use super::accounts::literal;
use super::replication::{ACCOUNT, BINLOG, Seen, ask, first, new_password};
use super::{Mysql, Role, binlog, events};
use crate::backend::{Capacity, Engine};
use std::sync::Arc;
use tokio::time::Instant;

/// `SET GLOBAL read_only` waits for commits and for locks of tables. The server gives up long before [`ask`] does: what it
/// did after nobody waited for it any more would come behind what takes it back.
const DRAIN_LOCKS: &str = "SET SESSION lock_wait_timeout = 1";

/// A primary that takes no more writes.
pub(in super::super) struct Drained {
    /// Its present file of the binary log.
    file: String,
    /// Where that ends.
    position: u64,
    end: BinlogEnd,
}

/// How far a promotion got.
enum Step {
    Done(Seen),
    /// It never became a primary and has not everything: whoever has is the old one.
    Lacks,
}

impl Mysql {
    pub(super) fn read_only(&self, on: bool) -> Vec<&'static str> {
        match (self.engine, on) {
            (Engine::Mysql, true) => vec!["SET GLOBAL super_read_only = ON"],
            (Engine::Mysql, false) => {
                vec![
                    "SET GLOBAL super_read_only = OFF",
                    "SET GLOBAL read_only = OFF",
                ]
            }
            (_, true) => vec!["SET GLOBAL read_only = ON"],
            (_, false) => vec!["SET GLOBAL read_only = OFF"],
        }
    }

    async fn drain_primary(
        &self,
        provider: &LocalProvider,
        from: &Instance,
        standby: &mut Standby,
    ) -> Result<Drained, String> {
        let told = |e: QueryError| format!("the old server, before its stop: {e}");
        let mut session = self.query.session(&from.endpoint).await.map_err(told)?;
        let session = &mut *session;
        ask(session, DRAIN_LOCKS).await.map_err(told)?;
        for sql in self.read_only(true) {
            ask(session, sql).await.map_err(told)?;
        }
        let drained = self.read_drained(session).await.map_err(told)?;
        if let Some(row) = ask(session, "XA RECOVER").await.map_err(told)?.first() {
            let name = row.get(3).cloned().flatten().unwrap_or_default();
            return Err(format!("the XA transaction {name} is prepared"));
        }
        let deadline = Instant::now() + provider.patience.replay;
        loop {
            let seen = self.look(&mut *standby.session).await;
            let seen = seen.map_err(|e| format!("the standby does not answer: {e}"))?;
            let has = self
                .has(&mut *standby.session, &seen.gtids, &drained.end.gtids)
                .await;
            if has.map_err(|e| format!("the standby does not answer: {e}"))? {
                break;
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "the standby has {} only, and the old server {}",
                    seen.gtids.as_str(),
                    drained.end.gtids.as_str()
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        // It has all. MySQL's stop would wait ten seconds for those who read its log.
        let stop = format!("STOP {} IO_THREAD", self.replica());
        let stopped = ask(&mut *standby.session, &stop).await;
        stopped.map_err(|e| format!("the standby: {e}"))?;
        let home = standby.home;
        let firm = self.firm(&mut *standby.session, home).await;
        firm.map_err(|e| format!("the standby, before it is promoted: {e}"))?;
        let readers = ask(
            session,
            "SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%'",
        );
        for id in readers.await.map_err(told)?.into_iter().flatten().flatten() {
            // It may have ended by itself.
            let _ = ask(session, &format!("KILL {id}")).await;
        }
        Ok(drained)
    }

    async fn read_drained(&self, session: &mut dyn ServerSession) -> Result<Drained, QueryError> {
        let unreadable = || QueryError::Other("where its binary log ends can't be read".to_owned());
        let status = self.log_status(session).await?;
        let position = status.position.parse().map_err(|_| unreadable())?;
        let scheduler = ask(session, "SELECT @@GLOBAL.event_scheduler").await?;
        Ok(Drained {
            file: status.file,
            position,
            end: BinlogEnd {
                gtids: self.gtids_of(session).await?,
                events: events::running(session).await?,
                event_scheduler: matches!(first(&scheduler), Some("ON" | "1")),
            },
        })
    }

    /// One attempt to have a standby be the primary, or to see that it is.
    async fn step(
        &self,
        provider: &LocalProvider,
        session: &mut dyn ServerSession,
        home: Home,
        end: &BinlogEnd,
        proven: &mut bool,
    ) -> Result<Step, QueryError> {
        let seen = self.look(session).await?;
        if !*proven {
            let fenced = fence::is_standby(&provider.data_dir, home);
            *proven = self.has(session, &seen.gtids, &end.gtids).await?;
            if !*proven && fenced && seen.read_only {
                return Ok(Step::Lacks);
            }
            if !*proven {
                return Err(QueryError::Other(format!(
                    "it has {} only, and the old server had {}",
                    seen.gtids.as_str(),
                    end.gtids.as_str()
                )));
            }
        }
        let replica = self.replica();
        for sql in [format!("STOP {replica}"), format!("RESET {replica} ALL")] {
            ask(session, &sql).await?;
        }
        // It was before this was decided.
        self.firm(session, home).await?;
        // From here on it may have taken a write.
        blocking(&provider.data_dir, move |d| {
            fence::unfence(d, &d.data_of(home))
        })
        .await
        .map_err(|e| QueryError::Other(e.to_string()))?;
        for sql in self.read_only(false) {
            ask(session, sql).await?;
        }
        self.write(session, end).await?;
        events::restore(session, &end.events, end.event_scheduler).await?;
        Ok(Step::Done(self.look(session).await?))
    }

    /// The first write, which has to be in its log, beyond all that was there.
    async fn write(
        &self,
        session: &mut dyn ServerSession,
        end: &BinlogEnd,
    ) -> Result<(), QueryError> {
        let password =
            new_password().map_err(|e| QueryError::Other(format!("no random number: {e}")))?;
        let sql = format!("ALTER USER {ACCOUNT} IDENTIFIED BY {}", literal(&password));
        ask(session, &sql).await?;
        let now = self.gtids_of(session).await?;
        let more = self.has(session, &now, &end.gtids).await?
            && !self.has(session, &end.gtids, &now).await?;
        if more {
            return Ok(());
        }
        Err(QueryError::Other(format!(
            "its first write is not in its log: it has {}, and the old server had {}",
            now.as_str(),
            end.gtids.as_str()
        )))
    }
}

impl Succession for Arc<Mysql> {
    type Maker = Mysql;
    type Drained = Drained;

    fn maker(&self) -> &Self {
        self
    }

    async fn follows(&self, standby: &mut Standby) -> bool {
        let seen = self.look(&mut *standby.session).await;
        seen.is_ok_and(|seen| {
            seen.streaming && seen.read_only && seen.identity.started_at == standby.started_at
        })
    }

    async fn drain(
        &self,
        provider: &LocalProvider,
        from: &Instance,
        standby: &mut Standby,
    ) -> Result<Drained, String> {
        self.drain_primary(provider, from, standby).await
    }

    async fn undrain(&self, _provider: &LocalProvider, from: &Instance) {
        if self.standby.is_none() {
            return;
        }
        let taken_back = async {
            let mut session = self.query.session(&from.endpoint).await?;
            for sql in self.read_only(false) {
                ask(&mut *session, sql).await?;
            }
            Ok::<_, QueryError>(())
        };
        if let Err(error) = taken_back.await {
            tracing::error!(%error, "the server may still be read-only: SET GLOBAL read_only = OFF");
        }
    }

    fn hurry(&self, _old: &Process) {}

    async fn prove(
        &self,
        provider: &LocalProvider,
        ready: &mut Standby,
        drained: Option<Drained>,
    ) -> Result<Promotion, String> {
        let Some(Drained {
            file,
            position,
            end,
        }) = drained
        else {
            return Err("the old server ended by itself".to_owned());
        };
        let home = ready.home;
        let fencing = blocking(&provider.data_dir, move |d| {
            let data = d.data();
            binlog::ends_at(&data, &format!("{BINLOG}.index"), &file, position)
                .map_err(ProviderError::Server)?;
            fence::copy_configuration(d, home)?;
            fence::fence(d, &data)
        });
        let (fenced, seen) = tokio::join!(fencing, self.look(&mut *ready.session));
        fenced.map_err(|e| e.to_string())?;
        let seen = seen.map_err(|e| format!("the standby does not answer: {e}"))?;
        if !seen.read_only || seen.identity.started_at != ready.started_at {
            return Err("the standby was restarted or promoted by somebody else".to_owned());
        }
        let has = self.has(&mut *ready.session, &seen.gtids, &end.gtids).await;
        if !has.map_err(|e| format!("the standby does not answer: {e}"))? {
            return Err("the standby has not everything".to_owned());
        }
        Ok(Promotion {
            home,
            end: End::Binlog(end),
        })
    }

    fn spawn_standby(&self, home: Home, capacity: Capacity) -> Result<Process, ProviderError> {
        self.spawn(home, capacity, Role::Standby)
    }

    async fn become_primary(
        &self,
        provider: &LocalProvider,
        process: Process,
        mut session: Option<Box<dyn ServerSession>>,
        promotion: &Promotion,
        deadline: Instant,
    ) -> Result<Proven, NotReady> {
        let End::Binlog(end) = &promotion.end else {
            return Err(NotReady::Late("the intent is of another engine".to_owned()));
        };
        let home = promotion.home;
        let begun = Instant::now();
        let mut proven = session.is_some();
        loop {
            if session.is_none() {
                session = self.session(home).await.ok();
            }
            let answer = match &mut session {
                Some(session) => {
                    self.step(provider, &mut **session, home, end, &mut proven)
                        .await
                }
                None => Err(QueryError::Starting),
            };
            match answer {
                Ok(Step::Done(seen)) => {
                    let capacity = seen.capacity.ok_or_else(|| {
                        NotReady::Late("it was not started by slackwater".to_owned())
                    })?;
                    return Ok(Proven {
                        process,
                        capacity,
                        identity: seen.identity,
                        promotion: begun.elapsed(),
                    });
                }
                Ok(Step::Lacks) => {
                    slot::stop(&provider.data_dir, home)
                        .await
                        .map_err(|e| NotReady::Late(e.to_string()))?;
                    return Err(NotReady::Ended);
                }
                Err(error @ (QueryError::Auth(_) | QueryError::Other(_))) => {
                    return Err(NotReady::Late(format!(
                        "process {} runs, but: {error}",
                        process.pid()
                    )));
                }
                // Not up yet, or it ends.
                Err(_) => session = None,
            }
            provider.still_worth_waiting(home, process, deadline, "it is still being promoted")?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its fence is taken down by the promotion alone.
    async fn ended_midway(&self, _provider: &LocalProvider, _home: Home) {}

    async fn never_promoted(&self, provider: &LocalProvider, home: Home) -> Result<bool, String> {
        Ok(fence::is_standby(&provider.data_dir, home))
    }

    fn refresh(&self, _process: &Process) {}
}
