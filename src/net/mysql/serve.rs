//! From an accepted socket to a session of MySQL or MariaDB: admission and log-in on a thread for logins, the first server
//! connection on the session's.

use super::super::admission::{Admission, Standing};
use super::super::door::{self, RETRY, behind_balancer, gone, spread_age};
use super::super::leg::Leg;
use super::super::session::Session;
use super::super::shared::{NoPlace, Place, Shared};
use super::super::state::{self, OpenError, Opened, Profile};
use super::end::server_words;
use super::engine::{Former, Login};
use super::errors;
use super::front::Mysql;
use super::handshake::{Arrival, HandshakeConfig, turn_away};
use super::login::{self, Accounts, LoggedIn, NotLoggedIn, refuse_entry};
use crate::auth::mysql::Credential;
use crate::backend::cluster::Cluster;
use crate::backend::mysql::connect::Request;
use crate::backend::mysql::exec::{ExecError, Outcome};
use crate::backend::mysql::offer::Offer;
use crate::backend::registry::Identity;
use crate::observe::error_kind::ErrorKind;
use crate::session::mysql::machine::Machine;
use crate::transport::socket::Newcomer;
use crate::transport::stream::Stream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// One cluster behind a listener.
pub type Entry = login::Entry<Arc<Cluster>>;

/// What the logins of the process share.
#[derive(Debug)]
pub struct Entrance {
    /// Sessions of the process.
    pub shared: Arc<Shared>,
    /// Clusters in the order of the configuration.
    pub entries: Vec<Entry>,
    /// Who may begin a login.
    pub admission: Arc<Admission>,
}

impl Accounts for Arc<Cluster> {
    fn name(&self) -> &str {
        &self.name
    }

    fn tells_address(&self) -> bool {
        self.socket.proxy_protocol.is_some()
    }

    async fn ask(&self, sql: &str) -> Result<Outcome, ExecError> {
        self.service.query_mysql(&self.gate, sql).await
    }

    fn report_trouble(&self) {
        Cluster::report_trouble(self);
    }
}

impl Entrance {
    /// What clients are greeted with: they name their cluster only later, so it is what all clusters have, in the words
    /// of the default one.
    fn offer(&self) -> Option<Offer> {
        let default = self.entries.iter().find(|e| e.default);
        let first = default.or_else(|| self.entries.first())?.cluster.offer()?;
        let others = self.entries.iter().filter_map(|e| e.cluster.offer());
        Some(others.fold(first, |all, one| all.and(&one)))
    }

    async fn find_offer(&self, deadline: Instant) -> Option<Offer> {
        loop {
            if let Some(offer) = self.offer() {
                return Some(offer);
            }
            if Instant::now() + RETRY >= deadline {
                return None;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// A client that has proven who it is and has its place; it waits for its first server.
pub struct Proven {
    client: LoggedIn,
    id: u64,
    place: Place,
    entrance: Arc<Entrance>,
    config: Arc<HandshakeConfig>,
    deadline: Instant,
    span: Span,
}

/// A client that has logged in, and what it holds for as long as it is there.
struct Begun {
    session: Box<Session<Mysql>>,
    _place: Place,
    _standing: Standing,
}

/// Turns an accepted connection away whose address is shut out, before anything is spent on it.
pub fn at_the_door(
    newcomer: Newcomer,
    entrance: &Entrance,
    config: &HandshakeConfig,
) -> Option<Newcomer> {
    let who = (&*entrance.admission, &*entrance.shared);
    let words = login::words_for_the_shut_out;
    door::at_the_door(newcomer, who, &config.proxied, words)
}

/// One accepted socket up to its client's proof. None: there is nothing more to do for it.
pub async fn log_in(
    stream: Stream,
    entrance: Arc<Entrance>,
    config: Arc<HandshakeConfig>,
) -> Option<Box<Proven>> {
    let deadline = Instant::now() + entrance.shared.limits.login_timeout;
    let stream = behind_balancer(stream, &config.proxied, deadline).await?;
    Box::pin(arrive(stream, deadline, entrance, config)).await
}

impl Proven {
    /// Serves the client to its end, on the calling thread.
    pub async fn serve(mut self: Box<Self>) {
        if let Err(error) = self.client.arrival.stream_mut().move_here() {
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
        let LoggedIn {
            arrival,
            credential,
            standing,
            entry,
        } = self.client;
        let way = (self.entrance, entry, self.config);
        let session = first_server(arrival, credential, self.id, way, self.deadline).await?;
        Some(Begun {
            session: Box::new(session),
            _place: self.place,
            _standing: standing,
        })
    }
}

async fn arrive(
    stream: Stream,
    deadline: Instant,
    entrance: Arc<Entrance>,
    config: Arc<HandshakeConfig>,
) -> Option<Box<Proven>> {
    let shared = &entrance.shared;
    let peer = stream.peer_address().map(|address| address.ip());
    // A connection that waits for its turn is its socket and little else.
    let pass = match entrance.admission.enter(peer, deadline).await {
        Ok(pass) => pass,
        Err(refused) => {
            shared.count_error(ErrorKind::Limit);
            refuse_entry(stream, refused).await;
            return None;
        }
    };
    let Some(offer) = entrance.find_offer(deadline).await else {
        let text = "the database server is not available: the proxy has not seen one yet";
        shared.count_error(ErrorKind::Server);
        turn_away(stream, &errors::no_server(text)).await;
        return None;
    };
    let id = shared.next_session();
    // The number that clients name it by has 32 bits.
    let number = u32::try_from(id & u64::from(u32::MAX)).unwrap_or(0);
    let entries = &entrance.entries;
    let done = login::log_in(stream, pass, deadline, &offer, number, entries, &config).await;
    match done {
        Ok(client) => {
            let span = tracing::info_span!(
                "session",
                client = %client.arrival.stream().peer(),
                user = %String::from_utf8_lossy(client.arrival.user()),
                database = %String::from_utf8_lossy(client.arrival.database().unwrap_or_default()),
            );
            let refusal = match shared.admit() {
                Ok(place) => {
                    return Some(Box::new(Proven {
                        client,
                        id: u64::from(number),
                        place,
                        entrance,
                        config,
                        deadline,
                        span,
                    }));
                }
                Err(NoPlace::Draining) => errors::shutting_down(),
                Err(NoPlace::Full) => errors::too_many_connections(),
            };
            client.arrival.refuse(&refusal).await;
            None
        }
        Err(why) => {
            match why {
                NotLoggedIn::Gone => {}
                NotLoggedIn::Client => shared.count_error(ErrorKind::Client),
                NotLoggedIn::Server => shared.count_error(ErrorKind::Server),
            }
            None
        }
    }
}

/// Gets the session its first server connection. None: the client left, or was told why not.
async fn first_server(
    arrival: Box<Arrival>,
    credential: Credential,
    id: u64,
    (entrance, at, config): (Arc<Entrance>, usize, Arc<HandshakeConfig>),
    deadline: Instant,
) -> Option<Session<Mysql>> {
    let entry = entrance.entries.get(at)?;
    let shared = &entrance.shared;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut spread = [0; 4];
    aws_lc_rs::rand::fill(&mut spread).ok()?;
    let limits = shared.limits;
    let identity = Identity {
        id,
        user: text(arrival.user()),
        database: text(arrival.database().unwrap_or_default()),
        client_address: arrival.stream().peer(),
        connected_at: Instant::now().into_std(),
        age_limit: limits
            .max_connection_age
            .map(|age| spread_age(age, u32::from_ne_bytes(spread))),
    };
    let cluster = Arc::clone(&entry.cluster);
    let application = arrival.application().unwrap_or_default();
    let registered = cluster.registry.add(identity, application);
    let request = Request {
        user: arrival.response.user.clone(),
        database: arrival.response.database.clone(),
        capabilities: arrival.capabilities,
        max_packet: arrival.response.max_packet,
        charset: arrival.response.charset,
        attributes: arrival.response.attributes.clone(),
    };
    let profile = Arc::new(Profile {
        cluster: Arc::clone(&cluster),
        shared: Arc::clone(shared),
        login: Login {
            entrance: Arc::clone(&entrance),
            entry: at,
            config,
            who: Arc::new((request, credential)),
        },
        metrics: shared.metrics.cluster(&cluster.name),
        user: registered.handle.identity.user.clone(),
        database: registered.handle.identity.database.clone(),
        client: arrival.stream().route(),
    });
    let opened = match open(&profile, arrival.stream(), deadline).await {
        Ok(opened) => opened,
        Err(None) => return None,
        Err(Some(error)) => {
            tracing::info!(%error, "no server connection for a new session");
            shared.count_error(ErrorKind::Server);
            refuse_login(arrival, &error, &cluster).await;
            return None;
        }
    };
    let number = i32::try_from(id).unwrap_or(0);
    registered.handle.process.store(number, Ordering::Relaxed);
    let greeting = &opened.greeting;
    let machine = Machine::new(
        greeting.grammar,
        arrival.database().unwrap_or_default(),
        greeting.status,
    );
    let user = profile.user.clone();
    let names = Arc::clone(&cluster);
    let (stream, buffered) = arrival.welcome(greeting.status(), 0).await.ok()?;
    let mut front = Mysql::new(machine, names, &user);
    {
        use super::super::engine::Engine;
        front.moved(&profile, &registered.handle, None, Some(&opened.link));
    }
    let client = Leg::new(stream, buffered);
    Some(Session::new(client, front, profile, registered, opened))
}

/// A server that is away, starting or full is waited for until the deadline; then its own words are told. `Err(None)`: the
/// client left.
pub(super) async fn open(
    profile: &Arc<Profile<Mysql>>,
    client: &Stream,
    deadline: Instant,
) -> Result<Opened<Mysql>, Option<OpenError>> {
    let mut last = OpenError::Timeout;
    loop {
        let lease = tokio::select! {
            lease = profile.cluster.gate.lease() => lease,
            () = tokio::time::sleep_until(deadline) => return Err(Some(last)),
            () = gone(client) => return Err(None),
        };
        match state::open(profile, lease, None, None, Former::default(), deadline).await {
            Ok(opened) => return Ok(opened),
            Err(error) if !error.may_pass() => return Err(Some(error)),
            // Of two reasons the server's own words are the better ones.
            Err(error) => {
                profile.cluster.report_trouble();
                if server_words(&error).is_some() || server_words(&last).is_none() {
                    last = error;
                }
            }
        }
        if Instant::now() + RETRY >= deadline {
            return Err(Some(last));
        }
        tokio::time::sleep(RETRY).await;
    }
}

pub(super) async fn refuse_login(arrival: Box<Arrival>, error: &OpenError, cluster: &Cluster) {
    if let Some(words) = server_words(error) {
        arrival.refuse_with(words).await;
        return;
    }
    if matches!(error, OpenError::Timeout) && cluster.gate.is_full() {
        arrival.refuse(&errors::too_many_connections()).await;
        return;
    }
    let text = match error {
        OpenError::Timeout => "no database server could be reached within login_timeout",
        error if error.may_pass() => "the database server can't be reached",
        _ => "the proxy can't log in to the database server for this user",
    };
    arrival.refuse(&errors::no_server(text)).await;
}
