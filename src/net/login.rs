//! From an accepted socket to a session: hand-shake, cluster, verifier and proof on a thread for logins, the first server
//! connection on the session's. One deadline covers all of it.

use super::admission::{Admission, Pass, Refused, Standing};
use super::authentication::{
    AuthError, Challenge, ClientCertificate, Method, authenticate, check_certificate,
};
use super::door::{self, RETRY, behind_balancer, gone, matches_host, server_was_slow, spread_age};
use super::handshake::{Accepted, Arrival, HandshakeConfig, HandshakeError, accept, say_goodbye};
use super::pg::{Pg, PgLogin, PgSeen, process_of, server_words};
use super::relay::Leg;
use super::session::Session;
use super::shared::{KeyGuard, Place, Shared};
use super::state::{self, OpenError, Opened, Profile};
use crate::auth::{Credential, Secret};
use crate::backend::cluster::Cluster;
use crate::backend::exec::ExecError;
use crate::backend::registry::Identity;
use crate::backend::verifiers::Verifiers;
use crate::observe::error_kind::ErrorKind;
use crate::transport::socket::Newcomer;
use crate::transport::stream::Stream;
use crate::wire::pg::backend::{
    ErrorMessage, put_backend_key_data, put_error, put_parameter_status, put_ready,
};
use crate::wire::pg::frame::put;
use crate::wire::pg::options::settings;
use crate::wire::pg::startup::Replication;
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tracing::{Instrument, Span};
use zeroize::Zeroizing;

/// How long the client of a CancelRequest is kept waiting for its close.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// Bytes of a cancel key's secret since protocol 3.2; as many as PostgreSQL's own.
const CANCEL_SECRET: usize = 32;

/// Bytes of it before.
const CANCEL_SECRET_3_0: usize = 4;

/// Why a client whose log-in's time the server used up is not let in.
const TOO_LATE: &str = "no server could be reached within login_timeout";

const WHERE_TO_LOOK: &str = "The proxy's log says why; `slackwater status` shows the cluster.";

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

/// A client that has proven who it is and has its place; it waits for its first server.
pub struct Proven {
    arrival: Box<Arrival>,
    credential: Credential,
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    hold: Held,
    deadline: Instant,
    span: Span,
}

/// A client that has logged in, and what it holds for as long as it is there.
struct Begun {
    session: Box<Session<Pg>>,
    _key: KeyGuard,
    _hold: Held,
}

/// What a client that has proven who it is counts towards.
struct Held {
    _place: Place,
    _standing: Standing,
}

/// One accepted socket up to its client's proof. None: there is nothing more to do for it.
pub async fn log_in(
    stream: Stream,
    entrance: Arc<Entrance>,
    config: Arc<HandshakeConfig>,
) -> Option<Proven> {
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

impl Proven {
    /// Serves the client to its end, on the calling thread.
    pub async fn serve(mut self) {
        if let Err(error) = self.arrival.stream.move_here() {
            tracing::warn!(%error, "a client's socket can't be used");
            return;
        }
        // Everything that only the login needs is dropped before the session begins: most clients idle.
        let span = self.span.clone();
        let begun = Box::pin(self.begin().instrument(span.clone())).await;
        if let Some(begun) = begun {
            begun.session.run(span).await;
        }
    }

    async fn begin(self) -> Option<Begun> {
        let (session, key) = first_server(
            self.arrival,
            self.credential,
            self.cluster,
            self.shared,
            self.deadline,
        )
        .await?;
        Some(Begun {
            session,
            _key: key,
            _hold: self.hold,
        })
    }
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
) -> Option<Proven> {
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
) -> Option<Proven> {
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
    Some(Proven {
        arrival,
        credential,
        cluster: Arc::clone(&entry.cluster),
        shared,
        hold,
        deadline,
        span: Span::current(),
    })
}

/// Gives a client that has proven who it is a place under `max_clients`. None: it was told that there is none.
async fn take_place(stream: &mut Stream, shared: &Arc<Shared>, standing: Standing) -> Option<Held> {
    let place = shared.admit();
    // Asked after the place is taken: a drain that begins now sees it.
    let error = if shared.draining.load(Ordering::Acquire) {
        ErrorMessage::fatal("57P03", "the database system is shutting down")
    } else if let Some(place) = place {
        return Some(Held {
            _place: place,
            _standing: standing,
        });
    } else {
        ErrorMessage::fatal("53300", "sorry, too many clients already")
            .hint("max_clients of the proxy is reached.")
    };
    shared.count_error(ErrorKind::Limit);
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

/// Gets the session its first server connection. None: the client left, or was told why not.
async fn first_server(
    arrival: Box<Arrival>,
    credential: Credential,
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    deadline: Instant,
) -> Option<(Box<Session<Pg>>, KeyGuard)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let limits = shared.limits;
    let mut secret = Zeroizing::new([0; CANCEL_SECRET]);
    let mut spread = [0; 4];
    aws_lc_rs::rand::fill(&mut *secret).ok()?;
    aws_lc_rs::rand::fill(&mut spread).ok()?;
    let secret = match arrival.minor {
        ..2 => secret.get(..CANCEL_SECRET_3_0)?,
        2.. => secret.as_slice(),
    };
    let identity = Identity {
        id: shared.next_session(),
        user: text(arrival.user()),
        database: text(arrival.database()),
        client_address: arrival.stream.peer(),
        connected_at: Instant::now().into_std(),
        age_limit: limits
            .max_connection_age
            .map(|age| spread_age(age, u32::from_ne_bytes(spread))),
    };
    let application = arrival
        .params
        .get("application_name")
        .map(text)
        .unwrap_or_default();
    let registered = cluster.registry.add(identity, application);
    let profile = Arc::new(Profile {
        cluster: Arc::clone(&cluster),
        shared: Arc::clone(&shared),
        user: registered.handle.identity.user.clone(),
        database: registered.handle.identity.database.clone(),
        client: arrival.stream.route(),
        metrics: shared.metrics.cluster(&cluster.name),
        login: PgLogin {
            params: arrival.params.clone(),
            replication: arrival.replication,
            credential,
            server_version_num: AtomicU32::new(0),
        },
    });
    cluster.learn_names(&profile.database, custom_names(&arrival));
    let mut stream = arrival.stream;
    let mut opened = match open(&profile, &stream, deadline).await {
        Ok(opened) => opened,
        Err(Refusal::ClientGone) => return None,
        Err(Refusal::Because(error)) => {
            tracing::info!(%error, "no server connection for a new session");
            shared.count_error(ErrorKind::Server);
            refuse_login(&mut stream, &error, &cluster).await;
            return None;
        }
    };
    let told = cluster.tell_process(process_of(Some(&opened.link)));
    registered.handle.process.store(told, Ordering::Relaxed);
    let key = shared.add_key(told, secret, &registered.handle);
    let mut out = BytesMut::new();
    for (name, value) in &opened.greeting.params {
        put_parameter_status(&mut out, name, value);
    }
    put_backend_key_data(&mut out, told, secret);
    out.extend_from_slice(&std::mem::take(&mut opened.for_client));
    put_ready(&mut out, b'I');
    if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
        cluster.forget_process(told, process_of(Some(&opened.link)));
        return None;
    }
    if profile.login.replication == Replication::No {
        scan_names(&cluster, &profile.database);
    }
    let client = Leg::new(stream, arrival.buffered);
    let front = Pg::new(Arc::clone(&cluster) as _, told);
    let session = Session::new(client, front, profile, registered, opened);
    Some((Box::new(session), key))
}

enum Refusal<E> {
    ClientGone,
    Because(Box<E>),
}

/// A server that is away, starting or full is waited for until the deadline; then its own words are told.
async fn open(
    profile: &Arc<Profile<Pg>>,
    client: &Stream,
    deadline: Instant,
) -> Result<Opened<Pg>, Refusal<OpenError>> {
    let mut last = OpenError::Timeout;
    loop {
        let lease = tokio::select! {
            lease = profile.cluster.gate.lease() => lease,
            () = tokio::time::sleep_until(deadline) => return Err(Refusal::Because(Box::new(last))),
            () = gone(client) => return Err(Refusal::ClientGone),
        };
        match state::open(profile, lease, None, None, PgSeen::default(), deadline).await {
            Ok(opened) => return Ok(opened),
            Err(error) if !error.may_pass() => return Err(Refusal::Because(Box::new(error))),
            // Of two reasons the server's own words are the better ones.
            Err(error) => {
                profile.cluster.report_trouble();
                if server_words(&error).is_some() || server_words(&last).is_none() {
                    last = error;
                }
            }
        }
        if Instant::now() + RETRY >= deadline {
            return Err(Refusal::Because(Box::new(last)));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Looks for custom setting names in a database that is seen for the first time.
fn scan_names(cluster: &Arc<Cluster>, database: &str) {
    if !cluster.is_first_in(database) {
        return;
    }
    let (cluster, database) = (Arc::clone(cluster), database.to_owned());
    tokio::spawn(async move {
        if let Err(error) = cluster.scan_names(&database).await {
            tracing::warn!(%database, %error, "names of custom settings could not be looked for: name them in custom_settings");
        }
    });
}

/// Custom settings in the start-up packet.
fn custom_names(arrival: &Arrival) -> Vec<String> {
    let direct = arrival.params.0.iter().map(|(name, _)| name.to_vec());
    let options = arrival.params.get("options").unwrap_or_default();
    let in_options = settings(options).into_iter().map(|setting| setting.name);
    direct
        .chain(in_options)
        .filter_map(|name| String::from_utf8(name).ok())
        .filter(|name| name.contains('.'))
        .map(|name| name.to_lowercase())
        .collect()
}

async fn refuse_login(stream: &mut Stream, error: &OpenError, cluster: &Cluster) {
    if let Some(words) = server_words(error) {
        let mut out = BytesMut::new();
        put(&mut out, b'E', |out| out.put_slice(words));
        drop(stream.write_all(&out).await);
        drop(stream.shutdown().await);
        return;
    }
    if matches!(error, OpenError::Timeout) && cluster.gate.is_full() {
        let limit = cluster.gate.limit();
        let text =
            format!("sorry, too many clients already: all {limit} server connections are taken");
        let error = ErrorMessage::fatal("53300", &text)
            .hint("max_server_connections of the proxy's cluster is reached.");
        return refuse(stream, &error).await;
    }
    let text = match error {
        OpenError::Timeout => TOO_LATE,
        error if error.may_pass() => "the server can't be reached",
        _ => "the proxy can't log in to the server for this user",
    };
    let code = if error.may_pass() { "57P03" } else { "08001" };
    let message = ErrorMessage::fatal(code, text).hint(WHERE_TO_LOOK);
    refuse(stream, &message).await;
}

async fn refuse(stream: &mut Stream, error: &ErrorMessage<'_>) {
    let mut out = BytesMut::new();
    put_error(&mut out, error);
    // A client that has left needs no answer.
    drop(stream.write_all(&out).await);
    drop(stream.shutdown().await);
}
