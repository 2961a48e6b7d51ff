//! What happens at the door whatever the engine: who is let in at all, as whom, and how long he waits.

use super::admission::Admission;
use super::shared::Shared;
use crate::observe::error_kind::ErrorKind;
use crate::transport::proxy_header::{self, Network};
use crate::transport::socket::Newcomer;
use crate::transport::stream::Stream;
use bytes::BytesMut;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Wait between attempts to log in to a server that is away or full.
pub(super) const RETRY: Duration = Duration::from_millis(50);

pub(super) fn matches_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => pattern == host,
    }
}

/// The connection with its client as the other end, where a load balancer made it. None: there is no header.
pub(super) async fn behind_balancer(
    stream: Stream,
    networks: &[Network],
    deadline: Instant,
) -> Option<Stream> {
    let client = stream.peer();
    match tokio::time::timeout_at(deadline, proxy_header::take(stream, networks)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "a load balancer did not say whom it connects");
            None
        }
        Err(_) => {
            tracing::debug!(%client, "a load balancer did not say in time whom it connects");
            None
        }
    }
}

/// Turns an accepted connection away whose address is shut out, with `words`, before anything is spent on it. A load
/// balancer's address is nobody's: whom it connects is not known yet.
pub(super) fn at_the_door(
    newcomer: Newcomer,
    (admission, shared): (&Admission, &Shared),
    proxied: &[Network],
    words: impl FnOnce(IpAddr) -> BytesMut,
) -> Option<Newcomer> {
    let known = newcomer.address();
    let one = known.filter(|&a| !proxied.iter().any(|network| network.contains(a)));
    let Some(address) = one.filter(|&address| admission.shuts_out(address)) else {
        return Some(newcomer);
    };
    shared.count_error(ErrorKind::Limit);
    newcomer.turn_away(&words(address));
    None
}

/// Whether the server's answer about a user, asked for at `asked`, took more than it left to the user.
pub(super) fn server_was_slow(asked: Instant, deadline: Instant) -> bool {
    asked.elapsed() > deadline.duration_since(Instant::now())
}

/// Ends when the client has left.
pub(super) async fn gone(client: &Stream) {
    while !client.peer_gone() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Up to a tenth less than the limit, so that clients that came together don't leave together.
pub(super) fn spread_age(age: Duration, random: u32) -> Duration {
    age.saturating_sub(age.mul_f64(f64::from(random) / f64::from(u32::MAX) / 10.0))
}
