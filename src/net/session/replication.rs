//! A session that is a WAL sender's client. It is never moved: a stream can't be put onto another server
//! connection. An event waits for it or, where the cluster is told so, ends it when nobody else is left.

use super::super::end::End;
use super::super::engine::Engine;
use super::Session;
use crate::backend::registry::Ask;
use crate::session::blocker::Blocker;

impl<E: Engine> Session<E> {
    pub(super) fn is_replication(&self) -> bool {
        self.relay.front.replication(&self.profile).is_some()
    }

    /// What others ask of sessions, as far as it means something to this one.
    pub(super) fn attend_replication(&mut self) -> Result<(), End> {
        // It can't be probed, moved, or parked.
        let asks = [Ask::Probe, Ask::Move, Ask::Park];
        let asked = asks.map(|ask| self.handle().take(ask));
        if asked.contains(&true) {
            drop(self.handle().take_offer());
            self.publish();
        }
        if self.handle().take(Ask::GiveWay) {
            self.giving_way = true;
            self.give_way()?;
        }
        if self.ending.is_some() && self.relay.front.is_streaming() {
            self.relay.want_gap = true;
        }
        Ok(())
    }

    /// Ends for an event, if it still is to and can; between two messages, so that its client can be told.
    pub(super) fn give_way(&mut self) -> Result<(), End> {
        if !std::mem::take(&mut self.giving_way) || !self.must_leave() || !self.gives_way() {
            return Ok(());
        }
        if !self.relay.is_mid_frame() {
            return Err(End::GaveWay);
        }
        self.giving_way = true;
        self.relay.want_gap = true;
        Ok(())
    }

    /// An event may end it: its client connects again and goes on from where it was.
    pub(super) fn gives_way(&self) -> bool {
        let machine = &self.relay.front;
        self.profile.cluster.ends_replication
            && (machine.is_streaming() || machine.at_rest())
            && self.relay.front.lasting().is_none()
    }

    pub(super) fn replication_blockers(&self) -> Vec<Blocker> {
        let front = &self.relay.front;
        let kind = front.replication(&self.profile).unwrap_or_default();
        let streams = if front.is_streaming() {
            ", streaming"
        } else {
            ""
        };
        let since = self.handle().identity.connected_at;
        let blocker = front.replication_blocker(format!("{kind}{streams}"), since);
        let mut blockers = vec![blocker];
        blockers.extend(front.lasting());
        blockers
    }
}
