//! A session whose client logs in again as another user, on the same connection.

use super::super::end::End;
use super::super::engine::Engine;
use super::super::relay::Leg;
use super::super::state::{Opened, Profile};
use super::Session;
use crate::backend::registry::Identity;
use crate::transport::stream::Stream;
use bytes::BytesMut;
use std::future::poll_fn;
use std::sync::Arc;
use tokio::time::Instant;

impl<E: Engine> Session<E> {
    pub(in crate::net) fn profile(&self) -> &Arc<Profile<E>> {
        &self.profile
    }

    /// What was read of the client and not looked at.
    pub(in crate::net) fn client_carry(&mut self) -> &mut BytesMut {
        &mut self.relay.client.carry
    }

    /// Reads more of the client.
    pub(in crate::net) async fn read_client(&mut self, deadline: Instant) -> Result<(), End> {
        let relay = &mut self.relay;
        let work = poll_fn(|cx| relay.poll_more(cx));
        match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::ClientGone),
        }
    }

    /// The client's connection, which [`Self::become_user`] brings back.
    pub(in crate::net) fn take_client(&mut self) -> Leg {
        let (nobody, _) = tokio::io::duplex(1);
        let nobody = Leg::new(Stream::duplex(nobody), BytesMut::new());
        std::mem::replace(&mut self.relay.client, nobody)
    }

    /// Ends the present server connection; returns when the server has seen that.
    pub(in crate::net) async fn leave_for_good(&mut self) {
        self.settle_cancel().await;
        self.stay();
        let leg = self.relay.detach();
        if let (Some(mut link), Some(leg)) = (self.link.take(), leg) {
            link.give_back(leg.into_parts().0);
            let (profile, handle) = (&self.profile, &self.registered.handle);
            self.relay.front.moved(profile, handle, Some(&link), None);
            link.end().await;
        }
        self.snapshot = None;
        self.found.clear();
        self.refused = None;
        self.probed_at = None;
        self.trial = None;
        // What was made for another user is no good for this one.
        self.ahead = None;
    }

    /// The session is this user's from now on.
    pub(in crate::net) fn become_user(
        &mut self,
        front: E,
        profile: Arc<Profile<E>>,
        client: Leg,
        opened: Opened<E>,
    ) {
        let before = Arc::clone(&self.registered.handle);
        let identity = Identity {
            user: profile.user.clone(),
            database: profile.database.clone(),
            ..before.identity.clone()
        };
        let application = before.with_report(|report| report.application.clone());
        let registry = &profile.cluster.registry;
        self.registered = registry.add(identity, application);
        let handle = &self.registered.handle;
        handle.take_over(&before);
        self.profile = profile;
        self.relay.client = client;
        self.relay.front = front;
        self.moved(None, &opened.link);
        self.install(opened);
        self.logged_in = Instant::now();
    }
}
