//! Which account a server means: names have hosts, and the most specific host that fits wins, be it an anonymous user's.

use super::Verifier;
use std::net::IpAddr;

/// One account.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's name; empty: anybody.
    pub user: String,
    /// Where it may come from.
    pub host: String,
    /// What checks its password; none where nothing can.
    pub verifier: Option<Verifier>,
    /// The plugin's name, for logs.
    pub plugin: String,
    /// It may not log in now.
    pub locked: bool,
    /// Its password has expired.
    pub expired: bool,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'{}'@'{}' with {}", self.user, self.host, self.plugin)
    }
}

/// Where a server sees a client come from: the proxy, or who the proxy says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The host in `USER()`: a name, or an address where names are not looked up.
    pub host: String,
    /// The address.
    pub ip: Option<IpAddr>,
}

/// How specific a host is, most specific first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// No wildcard.
    Exact,
    /// A network, by how many bits are not fixed.
    Network(u32),
    /// A pattern, by how much of it is not fixed.
    Pattern(usize),
    /// Everywhere.
    Any,
    /// Everywhere, but less so.
    Empty,
}

/// The account of this user that a server chooses.
pub fn choose<'a>(accounts: &'a [Account], user: &str, seen: &Seen) -> Option<&'a Account> {
    accounts
        .iter()
        .filter(|a| (a.user == user || a.user.is_empty()) && fits(&a.host, seen))
        .min_by_key(|a| (rank(&a.host), a.user.is_empty()))
}

fn rank(host: &str) -> Rank {
    if host.is_empty() {
        return Rank::Empty;
    }
    if host == "%" {
        return Rank::Any;
    }
    if let Some((_, bits)) = network(host) {
        return Rank::Network(128 - bits);
    }
    match host.find(['%', '_']) {
        Some(at) => Rank::Pattern(usize::MAX - at),
        None => Rank::Exact,
    }
}

fn fits(host: &str, seen: &Seen) -> bool {
    if host.is_empty() || host == "%" {
        return true;
    }
    if let Some((address, bits)) = network(host) {
        return seen.ip.is_some_and(|ip| in_network(ip, address, bits));
    }
    let ip = seen.ip.map(|ip| ip.to_canonical().to_string());
    like(host.as_bytes(), seen.host.as_bytes())
        || ip.is_some_and(|ip| like(host.as_bytes(), ip.as_bytes()))
}

/// `address/netmask` or `address/bits`.
fn network(host: &str) -> Option<(IpAddr, u32)> {
    let (address, mask) = host.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let bits = match mask.parse::<u32>() {
        Ok(bits) => bits,
        Err(_) => match mask.parse::<IpAddr>().ok()? {
            IpAddr::V4(mask) => u32::from(mask).leading_ones(),
            IpAddr::V6(mask) => u128::from(mask).leading_ones(),
        },
    };
    (bits <= width).then_some((address, bits))
}

fn in_network(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (ip.to_canonical(), network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(ip) & mask == u32::from(network) & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            u128::from(ip) & mask == u128::from(network) & mask
        }
        _ => false,
    }
}

/// LIKE, whatever the case of letters.
fn like(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on when what followed the last `%` does not fit: behind it, one letter further.
    let (mut p, mut t) = (0, 0);
    let mut back = None;
    while t < text.len() {
        let (wanted, width) = match (pattern.get(p), pattern.get(p + 1)) {
            (Some(b'%'), _) => {
                back = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some(b'_'), _) => (None, 1),
            (Some(b'\\'), Some(letter)) => (Some(*letter), 2),
            (Some(letter), _) => (Some(*letter), 1),
            (None, _) => (Some(0), 0),
        };
        let same = width > 0
            && wanted.is_none_or(|w| text.get(t).is_some_and(|b| b.eq_ignore_ascii_case(&w)));
        if same {
            (p, t) = (p + width, t + 1);
        } else if let Some((after, from)) = back {
            back = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|b| *b == b'%'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn account(user: &str, host: &str) -> Account {
        Account {
            user: user.to_owned(),
            host: host.to_owned(),
            verifier: None,
            plugin: String::new(),
            locked: false,
            expired: false,
        }
    }

    fn chosen(hosts: &[&str], host: &str, ip: &str) -> Option<String> {
        let accounts = hosts.iter().map(|h| match h.strip_prefix('@') {
            Some(host) => account("", host),
            None => account("app", h),
        });
        let seen = Seen {
            host: host.to_owned(),
            ip: ip.parse().ok(),
        };
        let accounts: Vec<_> = accounts.collect();
        choose(&accounts, "app", &seen).map(|a| format!("{}@{}", a.user, a.host))
    }

    #[test]
    fn the_most_specific_host_wins() {
        let all = [
            "%",
            "10.%",
            "10.1.%",
            "10.1.2.3",
            "10.1.0.0/255.255.0.0",
            "db.local",
            "",
        ];
        for (host, ip, expected) in [
            ("10.1.2.3", "10.1.2.3", Some("app@10.1.2.3")),
            ("10.1.9.9", "10.1.9.9", Some("app@10.1.0.0/255.255.0.0")),
            ("10.9.9.9", "10.9.9.9", Some("app@10.%")),
            ("DB.local", "10.9.9.9", Some("app@db.local")),
            ("elsewhere", "192.168.0.1", Some("app@%")),
        ] {
            assert_eq!(chosen(&all, host, ip).as_deref(), expected, "{host}");
        }
        assert_eq!(chosen(&["10.%"], "x", "11.0.0.1"), None);
        assert_eq!(
            chosen(&["localhost"], "localhost", "").as_deref(),
            Some("app@localhost")
        );
        assert_eq!(
            chosen(&["10.%", "10.1.%"], "", "10.1.0.1").as_deref(),
            Some("app@10.1.%")
        );
        assert_eq!(
            chosen(&["fe80::/16"], "", "fe80::1").as_deref(),
            Some("app@fe80::/16")
        );
        assert_eq!(chosen(&["::/0", "10.0.0.0/33"], "", "10.0.0.1"), None);
    }

    #[test]
    fn an_anonymous_user_of_a_closer_host_wins_as_it_does_on_the_server() {
        let seen = ("localhost", "127.0.0.1");
        assert_eq!(
            chosen(&["%", "@localhost"], seen.0, seen.1).as_deref(),
            Some("@localhost")
        );
        assert_eq!(
            chosen(&["@%", "%"], seen.0, seen.1).as_deref(),
            Some("app@%")
        );
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("a%c", "abbbc", true),
            ("a%c", "abbb", false),
            ("%.example.com", "db.example.com", true),
            ("%.example.com", "example.com", false),
            ("a_c", "abc", true),
            ("a\\_c", "abc", false),
            ("a\\_c", "a_c", true),
            ("%%", "", true),
            ("", "", true),
            ("", "x", false),
            ("%a%b", "xaxb", true),
        ] {
            assert_eq!(
                like(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    proptest! {
        #[test]
        fn patterns_end(pattern in "[%_a\\\\]{0,12}", text in "[a_]{0,30}") {
            like(pattern.as_bytes(), text.as_bytes());
        }
    }
}
