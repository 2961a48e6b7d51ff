//! PostgreSQL as a session sees it.

use super::super::end::End;
use super::super::engine::{Engine, Meaning};
use super::super::relay::Fatal;
use super::super::session::Session;
use super::super::state::{OpenError, Opened, ProbeFailure, Probed, Profile, Ready};
use super::ahead::{self, Checked};
use super::front::{Pg, ProcessNames};
use super::{blame, end, state};
use crate::auth::Credential;
use crate::backend::cluster::Cluster;
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::Link;
use crate::backend::registry::Handle;
use crate::session::blocker::Blocker;
use crate::session::pg::machine::Status;
use crate::session::pg::made::Made;
use crate::session::pg::probe::Probe;
use crate::session::pg::snapshot::{Prepared, Snapshot};
use crate::session::pg::told::Told;
use crate::transport::stream::Stream;
use crate::wire::pg::startup::{Replication, StartupParams};
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as StdInstant};
use tokio::time::Instant;

/// What of a login never changes.
#[derive(Debug)]
pub(in crate::net) struct Login {
    /// The client's start-up packet, as servers get it.
    pub(in crate::net) params: StartupParams,
    /// What of replication the client asked for.
    pub(in crate::net) replication: Replication,
    /// Recovered at the client's login.
    pub(in crate::net) credential: Credential,
    /// As the first server told it.
    pub(in crate::net) server_version_num: AtomicU32,
}

impl Login {
    pub(super) fn version(&self) -> u32 {
        self.server_version_num.load(Ordering::Relaxed)
    }
}

/// What a new server connection is.
pub(in crate::net) struct Greeting {
    /// ParameterStatus, last value of each.
    pub(in crate::net) params: Vec<(Bytes, Bytes)>,
    /// What was found of a log-in ahead.
    pub(super) checked: Option<Box<Checked>>,
    /// Prepared statements that it lacks.
    pub(super) absent: Vec<Prepared>,
}

/// What of a session only the wire has shown, and a new server connection needs as well.
#[derive(Debug, Default)]
pub(in crate::net) struct Seen {
    /// The unnamed statement's Parse.
    pub(super) unnamed: Option<Vec<u8>>,
    /// Rows that named statements were said to have.
    pub(super) told: Told,
    /// What they were made under.
    pub(super) made: Made,
}

impl ProcessNames for Cluster {
    fn told(&self, real: i32) -> i32 {
        self.told_process(real)
    }
}

impl Engine for Pg {
    type Login = Login;
    type Snapshot = Snapshot;
    type Asked = ();
    type Probe = Probe;
    type Seen = Seen;
    type Greeting = Greeting;

    fn begin(&mut self, profile: &Profile<Self>) {
        self.machine.begin();
        if profile.login.replication != Replication::No {
            self.machine.walsender = Some(Box::default());
        }
    }

    fn is_dirty(&self) -> bool {
        self.machine.is_dirty()
    }

    fn replication(&self, profile: &Profile<Self>) -> Option<&'static str> {
        match profile.login.replication {
            Replication::No => None,
            Replication::Logical => Some("a logical replication connection"),
            _ => Some("a physical replication connection"),
        }
    }

    fn lasting(&self) -> Option<Blocker> {
        let machine = &self.machine;
        let (kind, detail) = machine.walsender.as_ref()?.blocker(!machine.at_rest())?;
        Some(blame::lasting(machine, kind, detail))
    }

    fn replication_blocker(&self, detail: String, since: StdInstant) -> Blocker {
        blame::replication(&self.machine, detail, since)
    }

    fn wire_blocker(&self, now: StdInstant) -> Option<Blocker> {
        blame::wire_blocker(&self.machine, now)
    }

    fn unknown(&self, reason: String) -> Blocker {
        blame::unknown(&self.machine, reason)
    }

    fn not_restorable(&self, reason: String, since: StdInstant) -> Blocker {
        blame::not_restorable(&self.machine, reason, since)
    }

    fn application(&self) -> Option<String> {
        self.parameter(b"application_name")
    }

    fn asking(&mut self, profile: &Profile<Self>) {
        let names = self.machine.watched.new_names();
        if !profile.cluster.learn_names(&profile.database, names) {
            self.machine.watched.overflowed();
        }
    }

    fn probed(&mut self, probe: &Probe) -> Vec<Blocker> {
        let found = blame::blockers(probe, &self.machine);
        if found.is_empty() {
            self.machine.probed_clean();
        } else {
            self.machine.probed_blocked();
        }
        found
    }

    fn state_of(&mut self, probe: Probe) -> (Snapshot, Option<Duration>) {
        let silence = probe.idle_session_timeout_ms;
        let silence = (silence > 0).then(|| Duration::from_millis(silence));
        let snapshot = self.machine.absent.with(probe.snapshot);
        self.machine.made.keep(&snapshot);
        (snapshot, silence)
    }

    fn seen(&self) -> Seen {
        Seen {
            unnamed: self.machine.unnamed.to_restore().map(<[u8]>::to_vec),
            told: self.machine.told.clone(),
            made: self.machine.made.clone(),
        }
    }

    fn pass_on(&mut self, frames: &[u8], out: &mut BytesMut) {
        self.put_whole(frames, out);
    }

    fn greeted(&mut self, greeting: &Greeting) {
        self.adopt_parameters(&greeting.params);
    }

    fn installed(&mut self, mut greeting: Greeting, out: &mut BytesMut) {
        self.machine
            .absent
            .begin(std::mem::take(&mut greeting.absent));
        let params = greeting
            .params
            .iter()
            .map(|(name, value)| (&**name, &**value));
        self.tell_parameters(params, out);
    }

    fn moved(
        &mut self,
        profile: &Profile<Self>,
        _handle: &Handle,
        before: Option<&Link>,
        now: Option<&Link>,
    ) {
        let cluster = &profile.cluster;
        if now.is_some() {
            cluster.moved_process(self.told, process_of(before), process_of(now));
        }
    }

    fn over(&self, profile: &Profile<Self>, last: Option<&Link>) {
        let cluster = &profile.cluster;
        cluster.forget_process(self.told, process_of(last));
    }

    fn may_lose_transaction(&self, snapshot: &Snapshot) -> bool {
        self.machine.may_lose_transaction(snapshot)
    }

    fn lose_transaction(&mut self, snapshot: &Snapshot, out: &mut BytesMut) {
        let aborted = self.machine.lose_transaction(snapshot.clone(), out);
        self.aborted = Some(Box::new(aborted));
    }

    fn end_lost(&mut self) -> Option<Snapshot> {
        let aborted = self.aborted.take()?;
        Some(self.machine.end_lost(*aborted))
    }

    fn how_lost(&self, snapshot: Option<&Snapshot>) -> End {
        let machine = &self.machine;
        if machine.is_streaming() {
            End::StreamLost
        } else if machine.was_rolled_back(snapshot) {
            End::TransactionLost
        } else if machine.is_in_flight() || !machine.is_quiet() {
            End::OutcomeUnknown
        } else if machine.status() == Status::Idle {
            End::StateLost
        } else {
            End::TransactionLost
        }
    }

    fn meaning(fatal: &Fatal) -> Meaning {
        match fatal.code.as_str() {
            "57P01" => Meaning::Shutdown,
            "57P02" => Meaning::Crash,
            _ => Meaning::Meant,
        }
    }

    const SILENT_CLOSE_MAY_BE_MEANT: bool = false;

    const SPEAKS_WHEN_ASKED: bool = false;

    fn put_end(&self, end: &End, _holds_request: bool, out: &mut BytesMut) {
        end::put_end(end, out);
    }

    async fn probe(
        stream: &mut Stream,
        profile: &Profile<Self>,
        (): (),
        previous: Option<&Snapshot>,
        deadline: Instant,
    ) -> Result<Probed<Self>, ProbeFailure> {
        state::probe(stream, profile, previous, deadline).await
    }

    async fn log_in(
        profile: &Profile<Self>,
        lease: Lease,
        deadline: Instant,
    ) -> Result<Ready<Self>, OpenError> {
        state::log_in(profile, lease, deadline).await
    }

    async fn warm(
        ready: &mut Ready<Self>,
        profile: &Profile<Self>,
        deadline: Instant,
    ) -> Result<(), OpenError> {
        state::warm(ready, profile, deadline).await
    }

    async fn may_be_ahead(
        ready: &mut Ready<Self>,
        profile: &Profile<Self>,
        deadline: Instant,
    ) -> Result<(), OpenError> {
        state::may_be_ahead(ready, profile, deadline).await?;
        ahead::look(ready, profile, deadline).await
    }

    async fn carry(
        ready: Ready<Self>,
        profile: &Profile<Self>,
        snapshot: &Snapshot,
        seen: Seen,
        deadline: Instant,
    ) -> Result<Opened<Self>, OpenError> {
        state::carry(ready, profile, snapshot, seen, deadline).await
    }

    async fn takes_logins(profile: &Profile<Self>, serving: &Serving) -> bool {
        state::takes_logins(profile, serving).await
    }

    async fn kept(_session: &mut Session<Self>) -> Result<(), End> {
        Err(End::Internal("a frame was kept that no one waits for"))
    }

    fn identity(login: &Login, put: &mut dyn FnMut(&[u8])) {
        for (name, value) in &login.params.0 {
            put(name);
            put(value);
        }
    }
}

/// The server process at the other end; none is 0.
pub(in crate::net) fn process_of(link: Option<&Link>) -> i32 {
    let number = link.map_or(0, Link::number);
    i32::try_from(number).unwrap_or(0)
}
