//! Ports for local servers.

use super::data_dir::random;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::ops::RangeInclusive;

/// Ports are looked for from here up to where the system takes the ports of outgoing connections from:
/// one of those could take the server's port in the moment in which it is restarted.
const FIRST_PORT: u16 = 20_000;

/// Ports that the system gives to outgoing connections.
pub(super) fn outgoing_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().filter_map(|n| n.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32_768..=60_999,
    }
}

/// A free port below those for outgoing connections, else above them, else any.
pub(super) fn free_port(outgoing: RangeInclusive<u16>) -> io::Result<u16> {
    let low: Vec<u16> = (FIRST_PORT..*outgoing.start()).collect();
    let high: Vec<u16> = (*outgoing.end()..u16::MAX).skip(1).collect();
    let seed = random(2)?
        .into_iter()
        .fold(0usize, |n, b| n << 8 | usize::from(b));
    for ports in [low, high] {
        for n in 0..ports.len() {
            let port = ports[(seed + n) % ports.len()];
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
    }
    TcpListener::bind(("127.0.0.1", 0))?
        .local_addr()
        .map(|a| a.port())
}
