//! What becomes of a session whose server is lost: it goes on from its snapshot where that is proven to be all
//! of it, loses no more than its transaction where all that was done since is part of that, and is ended
//! with the truth otherwise.

use super::super::end::End;
use super::super::relay::Fatal;
use super::super::state;
use super::Session;
use crate::session::pg::machine::Status;
use bytes::BytesMut;
use std::sync::Arc;
use tokio::time::Instant;

impl Session {
    /// The state is proven fresh: nothing was sent since a probe that found nothing in the way.
    pub(super) fn is_proven(&self) -> bool {
        self.relay.at_safe_point()
            && !self.relay.machine.is_dirty()
            && self.found.is_empty()
            && self.snapshot.is_some()
    }

    /// Nothing but a transaction is lost that can't have committed, and the client can be told.
    fn may_lose_transaction(&self) -> bool {
        let machine = &self.relay.machine;
        self.found.is_empty()
            && !self.relay.leaving
            && !self.relay.is_mid_frame()
            && self
                .snapshot
                .as_ref()
                .is_some_and(|snapshot| machine.may_lose_transaction(snapshot))
    }

    pub(super) fn server_gone(&mut self) -> Result<(), End> {
        if self.relay.leaving && self.relay.machine.is_quiet() {
            // It has run what was sent, and has read the good-bye.
            return Err(End::ClientGone);
        }
        if self.is_proven() {
            tracing::info!("the server was lost at rest; the session goes on from its snapshot");
            self.detach();
            return Ok(());
        }
        if self.may_lose_transaction()
            && let Some(snapshot) = self.snapshot.clone()
        {
            tracing::warn!("the server was lost inside a transaction; the session goes on");
            self.detach();
            let mut out = BytesMut::new();
            let machine = &mut self.relay.machine;
            let aborted = machine.lose_transaction((*snapshot).clone(), &mut out);
            self.aborted = Some(Box::new(aborted));
            self.relay.tell(|to| to.extend_from_slice(&out));
            self.publish();
            return Ok(());
        }
        Err(self.lost())
    }

    fn lost(&self) -> End {
        let machine = &self.relay.machine;
        if machine.is_streaming() {
            End::StreamLost
        } else if machine.was_rolled_back(self.snapshot.as_deref()) {
            End::TransactionLost
        } else if machine.is_in_flight() || !machine.is_quiet() {
            End::OutcomeUnknown
        } else if machine.status() == Status::Idle {
            End::StateLost
        } else {
            End::TransactionLost
        }
    }

    pub(super) async fn server_fatal(&mut self, fatal: Fatal) -> Result<(), End> {
        let shutdown = matches!(fatal.fields.code.as_str(), "57P01" | "57P02");
        if shutdown && (self.is_proven() || self.may_lose_transaction()) {
            let crashed = fatal.fields.code == "57P02";
            let heard = Instant::now();
            if crashed || !state::still_serves(&self.profile, self.link.as_ref(), heard).await {
                return self.server_gone();
            }
        }
        Err(End::ServerSaid(Box::new(fatal)))
    }

    /// The client of a lost transaction has sent something.
    pub(super) fn answer_lost(&mut self) -> Result<(), End> {
        let Some(aborted) = &mut self.aborted else {
            return Ok(());
        };
        let over = self.relay.answer_lost(aborted);
        if over.map_err(|stop| End::from_client(&stop))?
            && let Some(aborted) = self.aborted.take()
        {
            let snapshot = self.relay.machine.end_lost(*aborted);
            self.snapshot = Some(Arc::new(snapshot));
        }
        Ok(())
    }
}
