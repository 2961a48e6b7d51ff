//! MySQL and MariaDB as a session sees them.

use super::super::end::End;
use super::super::engine::{Engine, Meaning};
use super::super::relay::Fatal;
use super::super::session::Session;
use super::super::state::{OpenError, Opened, ProbeFailure, Probed, Profile, Ready};
use super::front::{Connections, Mysql};
use super::handshake::HandshakeConfig;
use super::serve::Entrance;
use super::{blame, end, state};
use crate::auth::mysql::Credential;
use crate::backend::cluster::Cluster;
use crate::backend::gate::{Lease, Serving};
use crate::backend::link::Link;
use crate::backend::mysql::connect::Request;
use crate::backend::registry::{Ask, Handle};
use crate::session::blocker::{Blocker, BlockerKind};
use crate::session::mysql::grammar::Grammar;
use crate::session::mysql::kill::{Kill, Target};
use crate::session::mysql::machine::Held;
use crate::session::mysql::probe::{Known, Probe};
use crate::session::mysql::snapshot::{Baseline, Snapshot};
use crate::transport::stream::Stream;
use crate::wire::mysql::reply::Status;
use bytes::BytesMut;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant as StdInstant};
use tokio::time::Instant;

/// What of a login never changes, until the client asks for another user.
#[derive(Debug)]
pub(in crate::net) struct Login {
    /// Where it came in, to log in again as another user.
    pub(super) entrance: Arc<Entrance>,
    /// Which of the clusters there.
    pub(super) entry: usize,
    /// How it came in.
    pub(super) config: Arc<HandshakeConfig>,
    /// What servers are asked for, and what proves the right to it.
    pub(in crate::net) who: Arc<(Request, Credential)>,
}

/// What a new server connection is.
pub(in crate::net) struct Greeting {
    /// How replies are built.
    pub(super) grammar: Grammar,
    /// The server's version, such as 101119.
    pub(super) version: u32,
    /// What a fresh login of this kind holds there.
    pub(super) baseline: Arc<Baseline>,
    /// Which kind of login it is.
    pub(super) kind: [u8; 32],
    /// This login was the one that was looked at.
    pub(super) looked: bool,
    /// Status flags of the login, or of what came of the restore.
    pub(super) status: Status,
    /// Numbers of prepared statements there by those that the client knows.
    pub(super) ids: BTreeMap<u32, u32>,
    /// PREPAREs in text form that were sent to it.
    pub(super) text_prepares: u64,
    /// What the login found there, if it had to look.
    pub(super) checked: Option<Box<Probe>>,
    /// It was made before its server served.
    pub(super) is_ahead: bool,
}

impl Greeting {
    /// A fresh login, as its client is told of it.
    pub(in crate::net) fn status(&self) -> u16 {
        self.status.0
    }
}

/// What the session's last login was given by its server.
#[derive(Debug, Default)]
pub(in crate::net) struct Former {
    pub(super) kind: [u8; 32],
    pub(super) baseline: Arc<Baseline>,
}

/// What the wire knows and a probe has to.
pub(in crate::net) struct Asked {
    pub(super) held: Held,
    pub(super) grammar: Grammar,
    pub(super) version: u32,
    pub(super) baseline: Arc<Baseline>,
    /// What the last probe found of variables.
    pub(super) known: Option<Known>,
    /// There may be variables that no digest tells of.
    pub(super) in_full: bool,
    /// The number of the server connection.
    pub(super) connection: u32,
}

impl Connections for Cluster {
    fn kill(&self, kill: Kill, user: &str) -> Target {
        let Some(handle) = self.registry.get(kill.target) else {
            return Target::Unknown;
        };
        let real = handle.connection.load(Ordering::Acquire);
        if real != 0 {
            return Target::Real(u64::from(real));
        }
        // Only a server knows who may end another's statements.
        if handle.identity.user != user {
            return Target::Foreign;
        }
        if kill.query_only {
            drop(handle.ask_cancel());
        } else {
            handle.ask(Ask::Kill);
        }
        Target::Done
    }
}

impl Engine for Mysql {
    type Login = Login;
    type Snapshot = Snapshot;
    type Asked = Asked;
    type Probe = Probe;
    type Seen = Former;
    type Greeting = Greeting;

    fn begin(&mut self, _profile: &Profile<Self>) {}

    fn is_dirty(&self) -> bool {
        self.machine.is_dirty()
    }

    fn replication(&self, _profile: &Profile<Self>) -> Option<&'static str> {
        self.machine
            .is_streaming()
            .then_some("a replication connection")
    }

    fn lasting(&self) -> Option<Blocker> {
        None
    }

    fn replication_blocker(&self, detail: String, since: StdInstant) -> Blocker {
        let mut blocker = blame::blame(&self.machine, BlockerKind::Replication, detail, &[]);
        blocker.since = since;
        blocker
    }

    fn wire_blocker(&self, now: StdInstant) -> Option<Blocker> {
        blame::wire_blocker(&self.machine, now)
    }

    fn unknown(&self, reason: String) -> Blocker {
        blame::blame(&self.machine, BlockerKind::Unknown, reason, &[])
    }

    fn not_restorable(&self, reason: String, since: StdInstant) -> Blocker {
        let mut blocker = blame::blame(&self.machine, BlockerKind::NotRestorable, reason, &[]);
        blocker.since = since;
        blocker
    }

    fn application(&self) -> Option<String> {
        None
    }

    fn asking(&mut self, profile: &Profile<Self>) -> Asked {
        let digest = self.baseline.digest.as_ref();
        Asked {
            in_full: !digest.is_some_and(|d| profile.cluster.has_variables(d.listed)),
            held: self.machine.held(),
            grammar: self.machine.grammar(),
            version: self.version,
            baseline: Arc::clone(&self.baseline),
            known: self.known.clone(),
            connection: self.connection,
        }
    }

    fn probed(&mut self, probe: &Probe) -> Vec<Blocker> {
        self.machine.answered(&probe.answer);
        self.machine.set_ansi_quotes(probe.ansi_quotes);
        self.machine.proven(probe.proven);
        self.known.clone_from(&probe.known);
        let found = blame::blockers(&probe.findings, &self.machine);
        if found.is_empty() {
            self.machine.probed_clean();
        } else {
            self.machine.probed_blocked();
        }
        found
    }

    fn state_of(&mut self, probe: Probe) -> (Snapshot, Option<Duration>) {
        let seconds = probe.variables.get("wait_timeout");
        let seconds = seconds.and_then(|v| v.text.as_deref()?.parse().ok());
        let silence = seconds.filter(|s| *s > 0).map(Duration::from_secs);
        (probe.snapshot, silence)
    }

    fn seen(&self) -> Former {
        Former {
            kind: self.kind,
            baseline: Arc::clone(&self.baseline),
        }
    }

    fn pass_on(&mut self, _frames: &[u8], _out: &mut BytesMut) {}

    fn greeted(&mut self, _greeting: &Greeting) {}

    fn installed(&mut self, greeting: Greeting, _out: &mut BytesMut) {
        self.machine
            .moved(greeting.status, &greeting.ids, greeting.text_prepares);
        self.version = greeting.version;
        self.baseline = greeting.baseline;
        self.kind = greeting.kind;
        self.known = None;
    }

    fn moved(
        &mut self,
        _profile: &Profile<Self>,
        handle: &Handle,
        _before: Option<&Link>,
        now: Option<&Link>,
    ) {
        let number = now.map_or(0, Link::number);
        self.connection = u32::try_from(number).unwrap_or(0);
        handle.connection.store(self.connection, Ordering::Release);
    }

    fn over(&self, _profile: &Profile<Self>, _last: Option<&Link>) {}

    fn may_lose_transaction(&self, _snapshot: &Snapshot) -> bool {
        false
    }

    fn lose_transaction(&mut self, _snapshot: &Snapshot, _out: &mut BytesMut) {}

    fn end_lost(&mut self) -> Option<Snapshot> {
        None
    }

    fn how_lost(&self, _snapshot: Option<&Snapshot>) -> End {
        let machine = &self.machine;
        if machine.is_streaming() {
            End::StreamLost
        } else if machine.is_in_flight() || !machine.is_quiet() {
            End::OutcomeUnknown
        } else if machine.status().in_transaction() {
            End::TransactionLost
        } else {
            End::StateLost
        }
    }

    fn meaning(fatal: &Fatal) -> Meaning {
        match fatal.code.as_str() {
            // Server shutdown; killed, which a shutdown does as well.
            "1053" | "1927" | "3169" => Meaning::Shutdown,
            _ => Meaning::Meant,
        }
    }

    const SILENT_CLOSE_MAY_BE_MEANT: bool = true;

    const SPEAKS_WHEN_ASKED: bool = true;

    fn put_end(&self, end: &End, holds_request: bool, out: &mut BytesMut) {
        end::put_end(end, self.error_number(holds_request), out);
    }

    async fn probe(
        stream: &mut Stream,
        profile: &Profile<Self>,
        asked: Asked,
        _previous: Option<&Snapshot>,
        deadline: Instant,
    ) -> Result<Probed<Self>, ProbeFailure> {
        state::probe(stream, profile, asked, deadline).await
    }

    async fn log_in(
        profile: &Profile<Self>,
        lease: Lease,
        deadline: Instant,
    ) -> Result<Ready<Self>, OpenError> {
        state::log_in(profile, lease, deadline).await
    }

    async fn warm(
        _ready: &mut Ready<Self>,
        _profile: &Profile<Self>,
        _deadline: Instant,
    ) -> Result<(), OpenError> {
        // What a login asks has filled the server's caches.
        Ok(())
    }

    async fn may_be_ahead(
        ready: &mut Ready<Self>,
        _profile: &Profile<Self>,
        deadline: Instant,
    ) -> Result<(), OpenError> {
        // Whether `init_connect` runs something the provider has asked before it named who is to take over.
        state::check_ahead(ready, deadline).await
    }

    async fn carry(
        ready: Ready<Self>,
        profile: &Profile<Self>,
        snapshot: &Snapshot,
        former: Former,
        deadline: Instant,
    ) -> Result<Opened<Self>, OpenError> {
        state::carry(ready, profile, snapshot, &former, deadline).await
    }

    async fn takes_logins(profile: &Profile<Self>, serving: &Serving) -> bool {
        state::takes_logins(profile, serving).await
    }

    async fn kept(session: &mut Session<Self>) -> Result<(), End> {
        session.change_user().await
    }

    fn identity(login: &Login, put: &mut dyn FnMut(&[u8])) {
        let (request, _) = &*login.who;
        put(&request.user);
        put(request.database.as_deref().unwrap_or_default());
        put(&request.capabilities.0.to_be_bytes());
        put(&[request.charset]);
    }
}
