//! A client that has proven who it is, on its session's thread: its first server connection, then its session.

use super::door::{RETRY, gone, spread_age};
use super::handshake::Arrival;
use super::login::{Held, Refusal, TOO_LATE, WHERE_TO_LOOK, refuse};
use super::pg::{Pg, PgLogin, PgSeen, process_of, server_words};
use super::relay::Leg;
use super::session::Session;
use super::shared::{KeyGuard, Shared};
use super::state::{self, OpenError, Opened, Profile};
use crate::auth::Credential;
use crate::backend::cluster::Cluster;
use crate::backend::registry::Identity;
use crate::observe::error_kind::ErrorKind;
use crate::transport::stream::Stream;
use crate::wire::pg::backend::{
    ErrorMessage, put_backend_key_data, put_parameter_status, put_ready,
};
use crate::wire::pg::frame::put;
use crate::wire::pg::options::settings;
use crate::wire::pg::startup::Replication;
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tracing::{Instrument, Span};
use zeroize::Zeroizing;

/// Bytes of a cancel key's secret since protocol 3.2; as many as PostgreSQL's own.
const CANCEL_SECRET: usize = 32;

/// Bytes of it before.
const CANCEL_SECRET_3_0: usize = 4;

/// A client that has proven who it is and has its place; it waits for its first server.
pub struct Proven {
    pub(super) arrival: Box<Arrival>,
    pub(super) credential: Credential,
    pub(super) cluster: Arc<Cluster>,
    pub(super) shared: Arc<Shared>,
    pub(super) hold: Held,
    pub(super) deadline: Instant,
    pub(super) span: Span,
}

/// A client that has logged in, and what it holds for as long as it is there.
struct Begun {
    session: Box<Session<Pg>>,
    _key: KeyGuard,
    _hold: Held,
}

impl Proven {
    /// Serves the client to its end, on the calling thread.
    pub async fn serve(mut self: Box<Self>) {
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

    async fn begin(self: Box<Self>) -> Option<Begun> {
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
