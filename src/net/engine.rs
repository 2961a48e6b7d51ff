//! What a session needs of one engine beside its protocol: the state to carry, and the talks with servers.

use super::end::End;
use super::protocol::Protocol;
use super::relay::Fatal;
use super::session::Session;
use super::state::{OpenError, Opened, ProbeFailure, Probed, Profile, Ready};
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::Link;
use crate::backend::registry::Handle;
use crate::session::Portable;
use crate::session::blocker::Blocker;
use crate::transport::stream::Stream;
use bytes::BytesMut;
use std::fmt;
use std::time::{Duration, Instant as StdInstant};
use tokio::time::Instant;

/// One engine. A value of it is one session's protocol and what its client was told.
pub(super) trait Engine: Protocol + Sized {
    /// What of a login never changes: the client's own packet, the credential.
    type Login: fmt::Debug + Send + Sync;
    /// A session's portable state.
    type Snapshot: Portable;
    /// What the wire knows and a probe has to.
    type Asked: Send;
    /// What a server told of a session.
    type Probe: Send;
    /// What of a session only the wire has shown, and a new server connection needs as well.
    type Seen: Send + Default;
    /// What a new server connection says.
    type Greeting: Send;

    // ---- what passed

    /// A fresh login: nothing was run, but nothing was asked either.
    fn begin(&mut self, profile: &Profile<Self>);

    /// Something was sent since the last clean probe.
    fn is_dirty(&self) -> bool;

    /// The client has asked for a stream of replication, or has one.
    fn replication(&self, profile: &Profile<Self>) -> Option<&'static str>;

    /// What the client of a stream would miss for good.
    fn lasting(&self) -> Option<Blocker>;

    /// The stream of replication as a blocker.
    fn replication_blocker(&self, detail: String, since: StdInstant) -> Blocker;

    /// What the wire alone knows to be in the way.
    fn wire_blocker(&self, now: StdInstant) -> Option<Blocker>;

    /// A probe that failed.
    fn unknown(&self, reason: String) -> Blocker;

    /// A state that could not be put onto a fresh connection.
    fn not_restorable(&self, reason: String, since: StdInstant) -> Blocker;

    /// The client's program, as it is known by now.
    fn application(&self) -> Option<String>;

    // ---- probes

    /// A probe is about to be made.
    fn asking(&mut self, profile: &Profile<Self>) -> Self::Asked;

    /// A probe was made: what is in the way.
    fn probed(&mut self, probe: &Self::Probe) -> Vec<Blocker>;

    /// The state that a probe found, and how long its client may be silent.
    fn state_of(&mut self, probe: Self::Probe) -> (Self::Snapshot, Option<Duration>);

    /// What only the wire has shown.
    fn seen(&self) -> Self::Seen;

    /// Whole messages of the server that came while Slackwater spoke with it.
    fn pass_on(&mut self, frames: &[u8], out: &mut BytesMut);

    // ---- server connections

    /// The client was greeted in the words of this login.
    fn greeted(&mut self, greeting: &Self::Greeting);

    /// The session has another server connection: what its client is told of that.
    fn installed(&mut self, greeting: Self::Greeting, out: &mut BytesMut);

    /// The session's server connection was `before` and is `now`.
    fn moved(
        &mut self,
        profile: &Profile<Self>,
        handle: &Handle,
        before: Option<&Link>,
        now: Option<&Link>,
    );

    /// The session is over.
    fn over(&self, profile: &Profile<Self>, last: Option<&Link>);

    // ---- lost servers

    /// Nothing but a transaction is lost that can't have committed, and the client can be told.
    fn may_lose_transaction(&self, snapshot: &Self::Snapshot) -> bool;

    /// The server is lost with its transaction, and the session goes on without: what is owed is answered.
    fn lose_transaction(&mut self, snapshot: &Self::Snapshot, out: &mut BytesMut);

    /// The client has ended its lost transaction.
    fn end_lost(&mut self) -> Option<Self::Snapshot>;

    /// Why a session ends whose server was lost.
    fn how_lost(&self, snapshot: Option<&Self::Snapshot>) -> End;

    /// What a server's last words say of it.
    fn meaning(fatal: &Fatal) -> Meaning;

    /// A server that closes without a word at rest may have meant this session.
    const SILENT_CLOSE_MAY_BE_MEANT: bool;

    /// Clients read nothing that they did not ask for: a session that ends at rest says why with the next request.
    const SPEAKS_WHEN_ASKED: bool;

    /// What the client of a session that ends reads. `holds_request`: it has asked for something that no server saw.
    fn put_end(&self, end: &End, holds_request: bool, out: &mut BytesMut);

    // ---- talks with servers

    /// Asks the server what the session holds. Dropping it half-way breaks the connection.
    fn probe(
        stream: &mut Stream,
        profile: &Profile<Self>,
        asked: Self::Asked,
        previous: Option<&Self::Snapshot>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Probed<Self>, ProbeFailure>> + Send;

    /// Logs in as the session's user.
    fn log_in(
        profile: &Profile<Self>,
        lease: Lease,
        deadline: Instant,
    ) -> impl Future<Output = Result<Ready<Self>, OpenError>> + Send;

    /// Warms the caches of a server connection that no session has yet.
    fn warm(
        ready: &mut Ready<Self>,
        profile: &Profile<Self>,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), OpenError>> + Send;

    /// A log-in to a server that takes no writes yet is as good as one when it does: nothing runs at log-ins.
    fn may_be_ahead(
        ready: &mut Ready<Self>,
        profile: &Profile<Self>,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), OpenError>> + Send;

    /// Restores a session onto a connection that is ready, and verifies it.
    fn carry(
        ready: Ready<Self>,
        profile: &Profile<Self>,
        snapshot: &Self::Snapshot,
        seen: Self::Seen,
        deadline: Instant,
    ) -> impl Future<Output = Result<Opened<Self>, OpenError>> + Send;

    /// The server process that a session was attached to still takes log-ins.
    fn takes_logins(
        profile: &Profile<Self>,
        serving: &Serving,
    ) -> impl Future<Output = bool> + Send;

    /// The client's next frame is for the session's task.
    fn kept(session: &mut Session<Self>) -> impl Future<Output = Result<(), End>> + Send;

    /// Identity, as far as a rehearsal depends on it.
    fn identity(login: &Self::Login, put: &mut dyn FnMut(&[u8]));
}

/// What a server's last words say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// They are for this session.
    Meant,
    /// The server goes down, unless it still takes log-ins.
    Shutdown,
    /// It has crashed.
    Crash,
}
