//! From an accepted socket to a client that has proven who it is: greeting, cluster, verifier, proof. One deadline covers all
//! of it.

use super::super::admission::{Pass, Refused, Standing};
use super::super::door::{RETRY, gone, server_was_slow};
use super::authentication::{AuthError, Challenge, authenticate};
use super::errors;
use super::handshake::{Accepted, Arrival, HandshakeConfig, HandshakeError, accept, turn_away};
use crate::auth::mysql::{Credential, Secret, Verifier};
use crate::backend::mysql::exec::{ExecError, Outcome};
use crate::backend::mysql::offer::Offer;
use crate::backend::mysql::verifiers::{Known, Passwords, Verifiers};
use crate::net::authentication::ClientCertificate;
use crate::transport::client_certificate;
use crate::transport::stream::Stream;
use crate::wire::mysql::auth::ErrorPacket;
use crate::wire::mysql::handshake::Family;
use crate::wire::mysql::packet::put;
use bytes::BytesMut;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::time::Instant;

/// Thousands of rounds of a password's stored form before one was seen.
const THOUSANDS: u32 = 5;

/// What a log-in asks of a cluster.
pub trait Accounts: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;

    /// Its servers are told where clients are, and choose accounts by that.
    fn tells_address(&self) -> bool;

    /// Runs a statement of the service account.
    fn ask(&self, sql: &str) -> impl Future<Output = Result<Outcome, ExecError>> + Send;

    /// A server could not be reached: somebody should look.
    fn report_trouble(&self);
}

/// One cluster behind a listener.
#[derive(Debug)]
pub struct Entry<C> {
    /// The cluster.
    pub cluster: C,
    /// Which descendant its servers are.
    pub family: Family,
    /// Serves clients that name none.
    pub default: bool,
    /// Host names (lower case) by which clients name it in TLS; `*.` matches one label.
    pub hostnames: Vec<String>,
    /// What clients' proof is checked against.
    pub verifiers: Verifiers,
    /// Passwords that were proven.
    pub passwords: Passwords,
    /// What their certificates must be.
    pub client_certificate: ClientCertificate,
    /// Thousands of rounds of the last stored form that was seen; zero: none yet.
    pub thousands: AtomicU32,
}

/// A client that has proven who it is.
#[derive(Debug)]
pub struct LoggedIn {
    /// It, and what it asked for. It waits for [`Arrival::welcome`] or [`Arrival::refuse`].
    pub arrival: Box<Arrival>,
    /// Logs in to servers.
    pub credential: Credential,
    /// What it counts towards for as long as it is there.
    pub standing: Standing,
    /// Which of the entries it means.
    pub entry: usize,
}

/// Why there is nobody. The client was told, where it could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotLoggedIn {
    /// It left.
    Gone,
    /// Its own doing.
    Client,
    /// A server could not be asked.
    Server,
}

/// The cluster that a client means: named in front of its user, else by host name, else the default.
fn choose<C: Accounts>(entries: &[Entry<C>], arrival: &mut Arrival) -> Option<usize> {
    let named = arrival.take_cluster(|name| entries.iter().any(|e| e.cluster.name() == name));
    if let Some(name) = named {
        return entries.iter().position(|e| e.cluster.name() == name);
    }
    let host = arrival.stream().server_name().map(str::to_lowercase);
    let by_host = host.and_then(|host| {
        entries.iter().position(|e| {
            e.hostnames
                .iter()
                .any(|h| super::super::door::matches_host(h, &host))
        })
    });
    by_host.or_else(|| entries.iter().position(|e| e.default))
}

/// Refuses a connection that was not listened to at all.
pub async fn refuse_entry(stream: Stream, refused: Refused) {
    tracing::debug!(client = %stream.peer(), %refused, "a connection was turned away");
    let address = stream.peer_address().map(|address| address.ip());
    let error = match refused {
        Refused::Failures => {
            errors::host_is_blocked(&address.map_or_else(String::new, |a| a.to_string()))
        }
        Refused::Full => errors::turned_away(),
    };
    turn_away(stream, &error).await;
}

/// All that a connection from a shut out address reads, in place of a greeting.
pub fn words_for_the_shut_out(address: IpAddr) -> BytesMut {
    let mut out = BytesMut::new();
    let error = errors::host_is_blocked(&address.to_string());
    put(&mut out, 0, |out| error.put(out));
    out
}

/// Takes an accepted socket up to a client that has proven who it is.
pub async fn log_in<C: Accounts>(
    stream: Stream,
    mut pass: Pass,
    deadline: Instant,
    offer: &Offer,
    connection_id: u32,
    entries: &[Entry<C>],
    config: &HandshakeConfig,
) -> Result<LoggedIn, NotLoggedIn> {
    let work = tokio::time::timeout_at(deadline, accept(stream, offer, connection_id, config));
    let accepted = tokio::select! {
        done = work => done,
        () = pass.told_to_go() => {
            tracing::debug!("a client's log-in was slow, and others needed its place");
            pass.failed();
            return Err(NotLoggedIn::Client);
        }
    };
    let mut arrival = match accepted {
        Ok(Ok(Accepted::Session(arrival))) => arrival,
        Ok(Ok(Accepted::Closed)) => return Err(NotLoggedIn::Gone),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no session came about");
            if matches!(error, HandshakeError::Io(_)) {
                return Err(NotLoggedIn::Gone);
            }
            pass.failed();
            return Err(NotLoggedIn::Client);
        }
        Err(_) => {
            tracing::debug!("a client did not answer the greeting in time");
            pass.failed();
            return Err(NotLoggedIn::Client);
        }
    };
    let Some(at) = choose(entries, &mut arrival) else {
        let text =
            "no cluster is the default here: name one in front of the user, as in \"cluster/user\"";
        return refused(arrival, errors::no_server(text), NotLoggedIn::Client).await;
    };
    let entry = entries.get(at).ok_or(NotLoggedIn::Client)?;
    if !certificate_is_good(&arrival, entry.client_certificate) {
        let (user, host) = (arrival.user().to_vec(), arrival.host());
        tracing::info!("a client was not let in: its certificate is not what is demanded");
        pass.failed();
        let error = errors::access_denied(&user, &host, !arrival.response.auth.is_empty());
        return refused(arrival, error, NotLoggedIn::Client).await;
    }
    pass.is_our_turn(true);
    let asked = Instant::now();
    let known = match find(&arrival, entry, deadline).await {
        Ok(known) => known,
        Err(None) => return Err(NotLoggedIn::Gone),
        Err(Some(error)) => {
            tracing::warn!(cluster = %entry.cluster.name(), %error, "verifiers can't be read");
            let text = "the database server is not available: the proxy could not ask it for the user's verifier";
            return refused(arrival, errors::no_server(text), NotLoggedIn::Server).await;
        }
    };
    let slow = server_was_slow(asked, deadline);
    pass.is_our_turn(false);
    let challenge = Challenge {
        plugin: offer.plugin,
        decoy_thousands: decoy(entry, known.as_ref()),
        secret: known.and_then(|known| known.secret),
        passwords: &entry.passwords,
        rsa: &config.rsa,
    };
    let work = tokio::time::timeout_at(deadline, authenticate(&mut arrival, challenge));
    let done = tokio::select! {
        done = work => done.ok(),
        () = pass.told_to_go() => None,
    };
    match done {
        Some(Ok(credential)) => Ok(LoggedIn {
            arrival,
            credential,
            standing: pass.succeeded(),
            entry: at,
        }),
        Some(Err(error)) => {
            tracing::info!(%error, "a client was not let in");
            if matches!(error, AuthError::Io(_) | AuthError::Closed) {
                return Err(NotLoggedIn::Gone);
            }
            pass.failed();
            Err(NotLoggedIn::Client)
        }
        None if slow => {
            let text = "no database server could be reached within login_timeout";
            refused(arrival, errors::no_server(text), NotLoggedIn::Server).await
        }
        None => {
            pass.failed();
            refused(arrival, errors::too_slow(), NotLoggedIn::Client).await
        }
    }
}

async fn refused<T>(
    arrival: Box<Arrival>,
    error: ErrorPacket,
    why: NotLoggedIn,
) -> Result<T, NotLoggedIn> {
    arrival.refuse(&error).await;
    Err(why)
}

/// What takes as long for a user who is unknown. A users file has passwords, which take nothing.
pub(super) fn decoy<C>(entry: &Entry<C>, known: Option<&Known>) -> u32 {
    if let Some(Some(Secret::Verifier(Verifier::Sha2(stored)))) = known.map(|k| &k.secret) {
        entry.thousands.store(stored.thousands(), Ordering::Relaxed);
    }
    let seen = entry.thousands.load(Ordering::Relaxed);
    match &entry.verifiers {
        Verifiers::File(_) => seen,
        Verifiers::Server(_) if seen == 0 => THOUSANDS,
        Verifiers::Server(_) => seen,
    }
}

fn certificate_is_good(arrival: &Arrival, demand: ClientCertificate) -> bool {
    let stream = arrival.stream();
    match demand {
        ClientCertificate::Off => true,
        ClientCertificate::VerifyCa => stream.peer_certificate().is_some(),
        ClientCertificate::VerifyFull => client_certificate::common_name(stream)
            .is_some_and(|name| name.as_bytes() == arrival.user()),
    }
}

/// What the client's proof is checked against. A server that is away is waited for until shortly before the deadline, so
/// that its client can still be told. `Err(None)`: the client left.
pub(super) async fn find<C: Accounts>(
    arrival: &Arrival,
    entry: &Entry<C>,
    deadline: Instant,
) -> Result<Option<Known>, Option<ExecError>> {
    let user = String::from_utf8_lossy(arrival.user()).into_owned();
    let cluster = &entry.cluster;
    let address = arrival.stream().peer_address();
    let told = address.filter(|_| cluster.tells_address());
    let told = told.map(|address| address.ip());
    loop {
        let ask = async |sql: &str| cluster.ask(sql).await;
        let error = tokio::select! {
            found = entry.verifiers.find(entry.family, &user, told, ask) => match found {
                Ok(known) => return Ok(known),
                Err(error) => error,
            },
            () = tokio::time::sleep_until(deadline) => ExecError::Timeout,
            () = gone(arrival.stream()) => return Err(None),
        };
        if !error.may_pass() || Instant::now() + RETRY >= deadline {
            return Err(Some(error));
        }
        cluster.report_trouble();
        tokio::time::sleep(RETRY).await;
    }
}
