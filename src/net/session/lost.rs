//! What becomes of a session whose server is lost: it goes on from its snapshot where that is proven to be all
//! of it, loses no more than its transaction where all that was done since is part of that, and is ended
//! with the truth otherwise.

use super::super::end::End;
use super::super::engine::{Engine, Meaning};
use super::super::relay::Fatal;
use super::super::state;
use super::Session;
use std::sync::Arc;
use tokio::time::Instant;

impl<E: Engine> Session<E> {
    /// The state is proven fresh: nothing was sent since a probe that found nothing in the way.
    pub(super) fn is_proven(&self) -> bool {
        self.relay.at_safe_point()
            && !self.relay.front.is_dirty()
            && self.found.is_empty()
            && self.snapshot.is_some()
    }

    /// Nothing but a transaction is lost that can't have committed, and the client can be told.
    fn may_lose_transaction(&self) -> bool {
        let front = &self.relay.front;
        self.found.is_empty()
            && !self.relay.leaving
            && !self.relay.is_mid_frame()
            && self
                .snapshot
                .as_ref()
                .is_some_and(|snapshot| front.may_lose_transaction(snapshot))
    }

    pub(super) async fn server_gone(&mut self) -> Result<(), End> {
        let heard = Instant::now();
        if self.relay.leaving && self.relay.front.is_quiet() {
            // It has run what was sent, and has read the good-bye.
            return Err(End::ClientGone);
        }
        if E::SILENT_CLOSE_MAY_BE_MEANT
            && !self.relay.front.is_in_flight()
            && state::still_serves(&self.profile, self.link.as_ref(), heard).await
        {
            return Err(End::ServerClosed);
        }
        // The next one is there before anybody asks for it.
        self.profile.cluster.report_trouble();
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
            let (front, out) = self.relay.front_and_out();
            front.lose_transaction(&snapshot, out);
            self.publish();
            return Ok(());
        }
        Err(self.relay.front.how_lost(self.snapshot.as_deref()))
    }

    pub(super) async fn server_fatal(&mut self, fatal: Fatal) -> Result<(), End> {
        let meaning = E::meaning(&fatal);
        if meaning != Meaning::Meant && (self.is_proven() || self.may_lose_transaction()) {
            let heard = Instant::now();
            let crashed = meaning == Meaning::Crash;
            if crashed || !state::still_serves(&self.profile, self.link.as_ref(), heard).await {
                return self.server_gone().await;
            }
        }
        Err(End::ServerSaid(Box::new(fatal)))
    }

    /// The client of a lost transaction has sent something.
    pub(super) fn answer_lost(&mut self) -> Result<(), End> {
        let over = self.relay.answer_alone();
        if over.map_err(|stop| End::from_client(&stop))?
            && let Some(snapshot) = self.relay.front.end_lost()
        {
            self.snapshot = Some(Arc::new(snapshot));
        }
        Ok(())
    }
}
