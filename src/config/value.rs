//! The written forms of durations, byte sizes and addresses.

use crate::transport::Address;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path of a Unix socket in bytes (`sun_path` less its NUL).
const MAX_UNIX_PATH: usize = 107;

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const BYTE_UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `"250ms"`, `"300s"`, `"5m"`, `"24h"`, `"7d"` or `"0"`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is not a duration; write a whole number and ms, s, m, h or d, such as \"300s\", or \"0\""
        )
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let (_, factor) = DURATION_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(wrong)?;
    number
        .checked_mul(*factor)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is too long"))
}

/// Writes a duration the way that [`parse_duration`] reads it, in the largest unit that fits exactly.
pub fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0".to_owned();
    }
    // 60s reads better than 1m, and 24h better than 1d.
    let odd = |unit: &str, count: u64| count == 1 && (unit == "m" || unit == "d");
    let (unit, factor) = DURATION_UNITS
        .iter()
        .rev()
        .find(|(unit, factor)| ms.is_multiple_of(*factor) && !odd(unit, ms / factor))
        .unwrap_or(&DURATION_UNITS[0]);
    format!("{}{unit}", ms / factor)
}

/// Reads `"256MiB"`: a whole number and B, KiB, MiB, GiB or TiB.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        let mut message = format!(
            "{text:?} is not a size; write a whole number and B, KiB, MiB, GiB or TiB, such as \"256MiB\""
        );
        if text.ends_with("MB") || text.ends_with("GB") || text.ends_with("KB") {
            let _ = write!(
                message,
                " (the i is part of the unit: 1 MiB is 1,048,576 bytes)"
            );
        }
        message
    };
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let (_, factor) = BYTE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(wrong)?;
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// Reads `"host:port"`, `"[::1]:port"` or `"unix:/path"`; a relative path is taken from `base`.
pub fn parse_address(text: &str, base: &Path) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.contains('\0') {
            return Err(format!(
                "{text:?} names no socket; write \"unix:/path/to/socket\""
            ));
        }
        let path: PathBuf = base.join(path);
        let len = path.as_os_str().len();
        if len > MAX_UNIX_PATH {
            return Err(format!(
                "the path of a Unix socket has at most {MAX_UNIX_PATH} bytes, {} has {len}",
                path.display()
            ));
        }
        return Ok(Address::Unix(path));
    }
    let wrong = || {
        format!("{text:?} is not an address; write \"host:port\", \"[::1]:port\" or \"unix:/path\"")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(inner)) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
        Some(_) => return Err(wrong()),
        None if host.contains(':') => {
            return Err(format!(
                "{text:?}: an IPv6 address is written in brackets, \"[::1]:5432\""
            ));
        }
        None => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Address::Tcp {
            host: host.to_owned(),
            port,
        }),
        _ => Err(format!("{text:?}: the port is a number from 1 to 65535")),
    }
}

/// True for addresses that only this machine can reach.
pub fn is_loopback(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp { host, .. } => {
            host.eq_ignore_ascii_case("localhost")
                || host
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
        }
    }
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0", 0),
            ("250ms", 250),
            ("300s", 300_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 minutes",
            "5M",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in [
            "0", "250ms", "300s", "5m", "24h", "1s", "60s", "90s", "7d", "1001ms",
        ] {
            let shown = show_duration(parse_duration(text).unwrap());
            assert_eq!(
                parse_duration(&shown),
                parse_duration(text),
                "{text} {shown}"
            );
        }
        assert_eq!(show_duration(Duration::from_mins(1)), "60s");
        assert_eq!(show_duration(Duration::from_hours(24)), "24h");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert!(parse_bytes("256MB").unwrap_err().contains("MiB"));
        for text in ["", "256", "MiB", "1.5GiB", "99999999999TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let base = Path::new("/etc/slackwater");
        let shown = |text| parse_address(text, base).map(|a| a.to_string());
        for (text, expected) in [
            ("0.0.0.0:5432", "0.0.0.0:5432"),
            ("db.example.com:1", "db.example.com:1"),
            ("[::1]:5432", "[::1]:5432"),
            ("unix:/run/pg/.s.PGSQL.5432", "unix:/run/pg/.s.PGSQL.5432"),
            ("unix:sock", "unix:/etc/slackwater/sock"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected));
        }
        for (text, words) in [
            ("localhost", "host:port"),
            (":5432", "host:port"),
            ("::1:5432", "brackets"),
            ("[::1:5432", "host:port"),
            ("[nonsense]:5432", "host:port"),
            ("a b:5432", "host:port"),
            ("host:0", "1 to 65535"),
            ("host:65536", "1 to 65535"),
            ("host:", "1 to 65535"),
            ("unix:", "names no socket"),
        ] {
            let error = parse_address(text, base).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(
            parse_address(&long, base)
                .unwrap_err()
                .contains("at most 107 bytes")
        );
    }
}
