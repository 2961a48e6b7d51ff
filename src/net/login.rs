//! From an accepted socket to a client that has proven who it is, on a thread for logins: hand-shake, cluster, verifier,
//! proof. One deadline covers this and its first server connection.

use super::admission::{Admission, Pass, Refused, Standing};
use super::authentication::{
    AuthError, Challenge, ClientCertificate, Method, authenticate, check_certificate,
};
use super::door::{self, RETRY, behind_balancer, gone, matches_host, server_was_slow};
use super::handshake::{Accepted, Arrival, HandshakeConfig, HandshakeError, accept, say_goodbye};
use super::proven::Proven;
use super::shared::{NoPlace, Place, Shared};
use crate::auth::{Credential, Secret};
use crate::backend::cluster::Cluster;
use crate::backend::exec::ExecError;
use crate::backend::verifiers::Verifiers;
use crate::observe::error_kind::ErrorKind;
use crate::transport::socket::Newcomer;
use crate::transport::stream::Stream;
use crate::wire::pg::backend::{ErrorMessage, put_error};
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// How long the client of a CancelRequest is kept waiting for its close.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// Why a client whose log-in's time the server used up is not let in.
pub(super) const TOO_LATE: &str = "no server could be reached within login_timeout";

pub(super) const WHERE_TO_LOOK: &str =
    "The proxy's log says why; `slackwater status` shows the cluster.";

/// One cluster behind a listener.
#[derive(Debug)]
pub struct Entry {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Serves clients that name none.
    pub default: bool,
    /// Host names (lower case) by which clients name it in TLS; `*.` matches one label.
    pub hostnames: Vec<String>,
    /// How clients are asked.
    pub method: Method,
    /// What their proof is checked against.
    pub verifiers: Verifiers,
    /// What their certificates must be.
    pub client_certificate: ClientCertificate,
}

/// What the logins of the process share.
#[derive(Debug)]
pub struct Entrance {
    /// Sessions of the process.
    pub shared: Arc<Shared>,
    /// Clusters by name, in the order of the configuration.
    pub entries: Vec<Entry>,
    /// Who may begin a login.
    pub admission: Arc<Admission>,
}

impl Entrance {
    /// The cluster that a client means: named in `options`, else by host name, else the default.
    fn entry(&self, arrival: &Arrival) -> Result<&Entry, String> {
        if let Some(name) = &arrival.cluster {
            return self
                .entries
                .iter()
                .find(|e| *e.cluster.name == **name)
                .ok_or_else(|| format!("there is no cluster \"{name}\" here"));
        }
        if let Some(host) = arrival.stream.server_name().map(str::to_lowercase)
            && let Some(entry) = self
                .entries
                .iter()
                .find(|e| e.hostnames.iter().any(|h| matches_host(h, &host)))
        {
            return Ok(entry);
        }
        self.entries.iter().find(|e| e.default).ok_or_else(|| {
            "no cluster is the default here: name one with options=-c slackwater.cluster=NAME"
                .to_owned()
        })
    }
}

/// What a client that has proven who it is counts towards.
pub(super) struct Held {
    _place: Place,
    _standing: Standing,
}

/// One accepted socket up to its client's proof. None: there is nothing more to do for it.
pub async fn log_in(
    stream: Stream,
    entrance: Arc<Entrance>,
    config: Arc<HandshakeConfig>,
) -> Option<Box<Proven>> {
    let deadline = Instant::now() + entrance.shared.limits.login_timeout;
    let stream = behind_balancer(stream, &config.proxied, deadline).await?;
    let peer = stream.peer_address().map(|address| address.ip());
    // A connection that waits for its turn is its socket and little else.
    let pass = match entrance.admission.enter(peer, deadline).await {
        Ok(pass) => pass,
        Err(refused) => {
            entrance.shared.count_error(ErrorKind::Limit);
            Box::pin(turn_away(stream, refused)).await;
            return None;
        }
    };
    Box::pin(arrive(stream, pass, deadline, entrance, config)).await
}

/// Turns an accepted connection away whose address is shut out, before anything is spent on it.
pub fn at_the_door(
    newcomer: Newcomer,
    entrance: &Entrance,
    config: &HandshakeConfig,
) -> Option<Newcomer> {
    let who = (&*entrance.admission, &*entrance.shared);
    door::at_the_door(newcomer, who, &config.proxied, |_| {
        let mut out = BytesMut::new();
        let (text, hint) = words_for(Refused::Failures);
        put_error(&mut out, &ErrorMessage::fatal("53300", &text).hint(hint));
        out
    })
}

/// Refuses a connection that was not listened to at all.
async fn turn_away(mut stream: Stream, refused: Refused) {
    tracing::debug!(client = %stream.peer(), %refused, "a connection was turned away");
    let (text, hint) = words_for(refused);
    let error = ErrorMessage::fatal("53300", &text).hint(hint);
    say_goodbye(&mut stream, &error).await;
}

fn words_for(refused: Refused) -> (String, &'static str) {
    let hint = match refused {
        Refused::Failures => {
            "Try again later; the proxy's max_login_failures_per_address is reached."
        }
        Refused::Full => "Try again; the proxy's max_logins or max_logins_per_address is reached.",
    };
    (refused.to_string(), hint)
}

/// A socket up to its session. None: there is nothing more to do for it.
async fn arrive(
    stream: Stream,
    mut pass: Pass,
    deadline: Instant,
    entrance: Arc<Entrance>,
    config: Arc<HandshakeConfig>,
) -> Option<Box<Proven>> {
    let work = tokio::time::timeout_at(deadline, accept(stream, &config));
    let accepted = tokio::select! {
        done = work => done,
        () = pass.told_to_go() => {
            tracing::debug!("a client's start-up was slow, and others needed its place");
            pass.failed();
            return None;
        }
    };
    let accepted = match accepted {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no session came about");
            if !matches!(error, HandshakeError::Io(_)) {
                pass.failed();
            }
            return None;
        }
        Err(_) => {
            tracing::debug!("a client did not complete its start-up in time");
            pass.failed();
            return None;
        }
    };
    match accepted {
        Accepted::Closed => None,
        Accepted::Cancel {
            process,
            secret,
            stream,
        } => {
            drop(pass);
            if let Some(handle) = entrance.shared.find_key(process, &secret) {
                // Closed only when it is settled: who cancels may send the next query after that.
                let settled = handle.ask_cancel();
                drop(tokio::time::timeout(CANCEL_WAIT, settled).await);
            }
            drop(stream);
            None
        }
        Accepted::Session(arrival) => {
            let span = tracing::info_span!(
                "session",
                client = %arrival.stream.peer(),
                user = %String::from_utf8_lossy(arrival.user()),
                database = %String::from_utf8_lossy(arrival.database()),
            );
            Box::pin(admit(arrival, pass, entrance, deadline))
                .instrument(span)
                .await
        }
    }
}

/// A client after its start-up packet.
async fn admit(
    mut arrival: Box<Arrival>,
    mut pass: Pass,
    entrance: Arc<Entrance>,
    deadline: Instant,
) -> Option<Box<Proven>> {
    let shared = Arc::clone(&entrance.shared);
    let entry = match entrance.entry(&arrival) {
        Ok(entry) => entry,
        Err(text) => {
            let error = ErrorMessage::fatal("3D000", &text);
            refuse(&mut arrival.stream, &error).await;
            return None;
        }
    };
    // Before anything is asked of a server: who has no certificate costs nothing.
    let checked = check_certificate(&mut arrival, entry.client_certificate);
    let checked = tokio::time::timeout_at(deadline, checked).await.ok()?;
    if let Err(error) = checked {
        tracing::info!(%error, "a client was not let in");
        shared.count_error(ErrorKind::Client);
        pass.failed();
        return None;
    }
    pass.is_our_turn(true);
    let asked = Instant::now();
    let secret = match find_secret(&arrival, entry, deadline).await {
        Ok(secret) => secret,
        Err(Refusal::ClientGone) => return None,
        Err(Refusal::Because(error)) => {
            tracing::warn!(cluster = %entry.cluster.name, %error, "verifiers can't be read");
            shared.count_error(ErrorKind::Server);
            let error = ErrorMessage::fatal("57P03", "the database system is not available")
                .detail("The proxy could not ask the server for the user's verifier.");
            refuse(&mut arrival.stream, &error).await;
            return None;
        }
    };
    let slow = server_was_slow(asked, deadline);
    pass.is_our_turn(false);
    let challenge = Challenge {
        method: entry.method,
        secret,
    };
    let credential = match prove(&mut arrival, challenge, &mut pass, deadline, slow).await {
        Proof::Given(credential) => credential,
        Proof::NoTime => {
            tracing::info!("the server's answer about a user came too late for its log-in");
            shared.count_error(ErrorKind::Server);
            return None;
        }
        Proof::NotGiven => {
            shared.count_error(ErrorKind::Client);
            return None;
        }
        Proof::Failed => {
            shared.count_error(ErrorKind::Client);
            pass.failed();
            return None;
        }
    };
    let standing = pass.succeeded();
    let hold = take_place(&mut arrival.stream, &shared, standing).await?;
    Some(Box::new(Proven {
        arrival,
        credential,
        cluster: Arc::clone(&entry.cluster),
        shared,
        hold,
        deadline,
        span: Span::current(),
    }))
}

/// Gives a client that has proven who it is a place under `max_clients`. None: it was told that there is none.
async fn take_place(stream: &mut Stream, shared: &Arc<Shared>, standing: Standing) -> Option<Held> {
    let error = match shared.admit() {
        Ok(place) => {
            return Some(Held {
                _place: place,
                _standing: standing,
            });
        }
        Err(NoPlace::Draining) => {
            ErrorMessage::fatal("57P03", "the database system is shutting down")
        }
        Err(NoPlace::Full) => ErrorMessage::fatal("53300", "sorry, too many clients already")
            .hint("max_clients of the proxy is reached."),
    };
    refuse(stream, &error).await;
    None
}

/// What the client's proof is checked against. A server that is away is waited for until shortly before
/// the deadline, so that its client can still be told.
async fn find_secret(
    arrival: &Arrival,
    entry: &Entry,
    deadline: Instant,
) -> Result<Option<Secret>, Refusal<ExecError>> {
    let user = String::from_utf8_lossy(arrival.user()).into_owned();
    loop {
        let error = tokio::select! {
            found = entry.verifiers.find(&entry.cluster, &user) => match found {
                Ok(secret) => return Ok(secret),
                Err(error) => error,
            },
            () = tokio::time::sleep_until(deadline) => ExecError::Timeout,
            () = gone(&arrival.stream) => return Err(Refusal::ClientGone),
        };
        if !error.may_pass() || Instant::now() + RETRY >= deadline {
            return Err(Refusal::Because(Box::new(error)));
        }
        entry.cluster.report_trouble();
        tokio::time::sleep(RETRY).await;
    }
}

/// Why a client is not let in.
pub(super) enum Refusal<E> {
    ClientGone,
    Because(Box<E>),
}

/// What came of asking a client for its proof.
enum Proof {
    Given(Credential),
    /// It left instead.
    NotGiven,
    /// Not in time, because the server's answer about the user took most of it.
    NoTime,
    Failed,
}

/// Authenticates the client, which was told if it failed.
async fn prove(
    arrival: &mut Arrival,
    challenge: Challenge,
    pass: &mut Pass,
    deadline: Instant,
    server_was_slow: bool,
) -> Proof {
    let work = tokio::time::timeout_at(deadline, authenticate(arrival, challenge));
    let done = tokio::select! {
        done = work => done.ok(),
        () = pass.told_to_go() => None,
    };
    match done {
        Some(Ok(credential)) => Proof::Given(credential),
        Some(Err(error)) => {
            tracing::info!(%error, "a client was not let in");
            match error {
                AuthError::Io(_) | AuthError::Closed => Proof::NotGiven,
                AuthError::Failed { .. }
                | AuthError::Certificate { .. }
                | AuthError::Refused { .. } => Proof::Failed,
            }
        }
        None if server_was_slow => {
            let error = ErrorMessage::fatal("57P03", TOO_LATE).hint(WHERE_TO_LOOK);
            refuse(&mut arrival.stream, &error).await;
            Proof::NoTime
        }
        None => {
            let error = ErrorMessage::fatal("57014", "canceling authentication due to timeout");
            refuse(&mut arrival.stream, &error).await;
            Proof::Failed
        }
    }
}

pub(super) async fn refuse(stream: &mut Stream, error: &ErrorMessage<'_>) {
    let mut out = BytesMut::new();
    put_error(&mut out, error);
    // A client that has left needs no answer.
    drop(stream.write_all(&out).await);
    drop(stream.shutdown().await);
}
