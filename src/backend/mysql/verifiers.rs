//! Where verifiers come from: the users file, or the server itself through the service account.

use super::exec::{ExecError, Outcome};
use crate::auth::mysql::accounts::{Account, Seen, choose};
use crate::auth::mysql::{Password, Secret, Verifier, sha2};
use crate::auth::users::Users;
use crate::backend::lookups::Lookups;
use crate::wire::mysql::handshake::Family;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Most verifiers that are kept for the time when the server is away; as many passwords.
const CACHE_MAX: usize = 10_000;

/// Longest name of a user, in bytes: 80 characters of MariaDB's `mysql.global_priv`, with room.
const USER_NAME_MAX: usize = 320;

/// What is known of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What its proof is checked against; none where nothing can check it.
    pub secret: Option<Secret>,
    /// The server's account; none with a users file.
    pub account: Option<Account>,
}

/// A source of verifiers.
#[derive(Debug)]
pub enum Verifiers {
    /// `users_file`.
    File(arc_swap::ArcSwap<Users<Secret>>),
    /// The server's own accounts.
    Server(Box<FromServer>),
}

/// Accounts that were read from the server.
#[derive(Debug, Default)]
pub struct FromServer {
    /// The last ones, used only while the server is away.
    cache: Mutex<HashMap<String, Arc<Accounts>>>,
    /// Clients of one user that come together are one question to the server.
    lookups: Lookups<Arc<Accounts>>,
}

/// What a server said of one user.
#[derive(Debug, Default)]
struct Accounts {
    /// Those with its name, and those of anybody.
    all: Vec<Account>,
    /// Where the server sees the proxy come from, as it has it in `USER()`; none: there is no account.
    proxy: Option<String>,
    /// It looks up names for addresses.
    resolves: bool,
}

impl Verifiers {
    /// From the server.
    pub fn server() -> Self {
        Self::Server(Box::default())
    }

    /// What is known of a user; none where there is none. `ask` runs a statement on the service account's connection to
    /// a server of this family. `told`: where the client is, if the server will be told; else it sees the proxy.
    pub async fn find(
        &self,
        family: Family,
        user: &str,
        told: Option<IpAddr>,
        ask: impl AsyncFnOnce(&str) -> Result<Outcome, ExecError>,
    ) -> Result<Option<Known>, ExecError> {
        let server = match self {
            Self::File(users) => {
                return Ok(users.load().get(user.as_bytes()).map(|secret| Known {
                    secret: Some(secret.clone()),
                    account: None,
                }));
            }
            Self::Server(server) => server,
        };
        // No account has such a name.
        if user.len() > USER_NAME_MAX || user.is_empty() {
            return Ok(None);
        }
        let cache = &server.cache;
        let work = async {
            match ask(&question(family, user)).await {
                Ok(outcome) => {
                    let accounts = Arc::new(answer(family, outcome));
                    remember(&mut cache.lock(), user, &accounts);
                    Ok(accounts)
                }
                Err(error) => match cache.lock().get(user) {
                    Some(known) if error.may_pass() => Ok(Arc::clone(known)),
                    _ => Err(error),
                },
            }
        };
        let accounts = server.lookups.ask(user, work).await?;
        Ok(accounts.meant(user, told).map(|account| Known {
            secret: account.verifier.clone().map(Secret::Verifier),
            account: Some(account),
        }))
    }
}

/// Names that nobody has never crowd out those of users: anybody can ask for any name.
fn remember(cache: &mut HashMap<String, Arc<Accounts>>, user: &str, found: &Arc<Accounts>) {
    let room = if found.all.iter().any(|account| account.user == user) {
        CACHE_MAX
    } else {
        CACHE_MAX / 2
    };
    if cache.len() < room || cache.contains_key(user) {
        cache.insert(user.to_owned(), Arc::clone(found));
    }
}

/// What is asked: all accounts of this name, and the anonymous ones.
fn question(family: Family, user: &str) -> String {
    let mut name = String::with_capacity(2 * user.len());
    for byte in user.bytes() {
        // A String takes everything.
        let _written = write!(name, "{byte:02x}");
    }
    match family {
        Family::MySql => format!(
            "SELECT USER(), Host, User, plugin, HEX(authentication_string), account_locked = 'Y', password_expired = 'Y', \
             @@skip_name_resolve FROM mysql.user WHERE User IN (x'{name}', '') LIMIT 10000"
        ),
        Family::MariaDb => format!(
            "SELECT USER(), Host, User, Priv, @@skip_name_resolve FROM mysql.global_priv WHERE User IN (x'{name}', '') LIMIT 10000"
        ),
    }
}

/// What the server said.
fn answer(family: Family, outcome: Outcome) -> Accounts {
    let mut accounts = Accounts::default();
    for row in outcome.rows {
        let text = |at: usize| row.get(at)?.as_ref().map(text_of);
        let (Some(own), Some(host), Some(user)) = (text(0), text(1), text(2)) else {
            continue;
        };
        accounts.proxy.get_or_insert_with(|| {
            own.rsplit_once('@')
                .map_or(own.clone(), |(_, host)| host.to_owned())
        });
        let (account, skips) = match family {
            Family::MySql => (mysql_account(user, host, &text), 7),
            Family::MariaDb => (
                text(3).and_then(|json| mariadb_account(user, host, &json)),
                4,
            ),
        };
        accounts.resolves = text(skips).as_deref() == Some("0");
        accounts.all.extend(account);
    }
    accounts
}

impl Accounts {
    /// The account that the server chooses for who comes from the address that it is told, or else for the proxy.
    fn meant(&self, user: &str, told: Option<IpAddr>) -> Option<Account> {
        let seen = match told.map(|ip| ip.to_canonical()) {
            // Servers know the name of these two themselves. Which name they find for others isn't known here.
            Some(ip)
                if self.resolves && (ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST) =>
            {
                Seen {
                    host: "localhost".to_owned(),
                    ip: Some(ip),
                }
            }
            Some(ip) => Seen {
                host: ip.to_string(),
                ip: Some(ip),
            },
            None => Seen {
                host: self.proxy.clone()?,
                ip: None,
            },
        };
        choose(&self.all, user, &seen).cloned()
    }
}

fn text_of(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn mysql_account(
    user: String,
    host: String,
    text: &impl Fn(usize) -> Option<String>,
) -> Option<Account> {
    let plugin = text(3)?;
    let stored = crate::auth::mysql::from_hex(text(4).unwrap_or_default().as_bytes())?;
    Some(Account {
        user,
        host,
        verifier: Verifier::of(&plugin, &stored),
        plugin,
        locked: text(5)? == "1",
        expired: text(6)? == "1",
    })
}

/// MariaDB keeps what it knows of an account as JSON. A role is none.
fn mariadb_account(user: String, host: String, text: &str) -> Option<Account> {
    let all: serde_json::Value = serde_json::from_str(text).ok()?;
    let is_true = |name: &str| all.get(name).and_then(serde_json::Value::as_bool) == Some(true);
    if is_true("is_role") {
        return None;
    }
    let own = |of: &serde_json::Value, name: &str| {
        let found = of.get(name).and_then(serde_json::Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let verifier = |of: &serde_json::Value| {
        Verifier::of(
            &own(of, "plugin"),
            own(of, "authentication_string").as_bytes(),
        )
    };
    // One of several ways may do; an empty object stands for the one of the account itself.
    let alternatives = all.get("auth_or").and_then(serde_json::Value::as_array);
    let verifier = match alternatives {
        None => verifier(&all),
        Some(ways) => ways.iter().find_map(|way| {
            let is_own = way.as_object().is_none_or(serde_json::Map::is_empty);
            verifier(if is_own { &all } else { way })
        }),
    };
    let changed = all
        .get("password_last_changed")
        .and_then(serde_json::Value::as_i64);
    Some(Account {
        user,
        host,
        verifier,
        plugin: own(&all, "plugin"),
        locked: is_true("account_locked"),
        expired: changed == Some(0),
    })
}

/// Clear passwords of users with caching_sha2_password, learned when they were proven; in memory only. A server that has
/// not seen the password since it started asks for it again, which its stored form can't answer.
#[derive(Default)]
pub struct Passwords(Mutex<HashMap<Box<[u8]>, Proven>>);

/// The stored form that it belongs to, and the password.
type Proven = (sha2::Stored, Password);

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passwords of {} users", self.0.lock().len())
    }
}

impl Passwords {
    /// The password behind this stored form, if it was proven before.
    pub fn get(&self, user: &[u8], stored: &sha2::Stored) -> Option<Password> {
        let known = self.0.lock();
        let (of, password) = known.get(user)?;
        (of == stored).then(|| password.clone())
    }

    /// Notes that the password was proven.
    pub fn learn(&self, user: &[u8], stored: &sha2::Stored, password: &Password) {
        let mut known = self.0.lock();
        if known.len() < CACHE_MAX || known.contains_key(user) {
            known.insert(user.into(), (stored.clone(), password.clone()));
        }
    }

    /// Forgets a user's password, which was changed.
    pub fn forget(&self, user: &[u8]) {
        self.0.lock().remove(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19";

    fn row(columns: &[&str]) -> Vec<Option<Bytes>> {
        columns
            .iter()
            .map(|c| Some(Bytes::copy_from_slice(c.as_bytes())))
            .collect()
    }

    fn outcome(rows: &[&[&str]]) -> Outcome {
        Outcome {
            rows: rows.iter().map(|r| row(r)).collect(),
            ..Outcome::default()
        }
    }

    /// The account that is meant when the server sees the proxy.
    fn meant(family: Family, outcome: Outcome) -> Option<Account> {
        answer(family, outcome).meant("app", None)
    }

    fn to_hex(text: &str) -> String {
        text.bytes().fold(String::new(), |mut hex, b| {
            write!(hex, "{b:02X}").expect("a String takes everything");
            hex
        })
    }

    #[test]
    fn what_mysql_says() {
        let crypt: String = format!("$A$005${}{}", "s".repeat(20), "d".repeat(43));
        let hex = to_hex(&crypt);
        let own = "slackwater@10.0.0.1";
        let told = outcome(&[
            &[own, "%", "app", "caching_sha2_password", &hex, "0", "0"],
            &[
                own,
                "10.0.0.%",
                "app",
                "caching_sha2_password",
                &hex,
                "1",
                "1",
            ],
            &[
                own,
                "10.0.0.1",
                "other",
                "caching_sha2_password",
                &hex,
                "0",
                "0",
            ],
        ]);
        let found = meant(Family::MySql, told).expect("found");
        assert_eq!(found.host, "10.0.0.%");
        assert!(found.locked && found.expired);
        assert!(matches!(found.verifier, Some(Verifier::Sha2(_))));
        let none = outcome(&[&[own, "%", "app", "auth_socket", "", "0", "0"]]);
        let found = meant(Family::MySql, none).expect("found");
        assert!(found.verifier.is_none());
        assert!(meant(Family::MySql, outcome(&[])).is_none());
    }

    #[test]
    fn what_mariadb_says() {
        let own = "slackwater@localhost";
        let json = |rest: &str| format!("{{\"access\":0{rest}}}");
        let native = json(&format!(
            ",\"plugin\":\"mysql_native_password\",\"authentication_string\":\"{HASH}\",\"password_last_changed\":0"
        ));
        let either = json(&format!(
            ",\"plugin\":\"mysql_native_password\",\"authentication_string\":\"{HASH}\",\"auth_or\":[{{\"plugin\":\"unix_socket\"}},{{}}],\"account_locked\":true"
        ));
        let role = json(",\"is_role\":true");
        let invalid = json(
            ",\"plugin\":\"mysql_native_password\",\"authentication_string\":\"invalid\",\"auth_or\":[{},{\"plugin\":\"unix_socket\"}]",
        );
        let found = |text: &str| {
            let told = outcome(&[&[own, "localhost", "app", text]]);
            meant(Family::MariaDb, told)
        };
        let account = found(&native).expect("found");
        assert!(account.expired && !account.locked);
        assert!(matches!(account.verifier, Some(Verifier::Native(_))));
        let account = found(&either).expect("found");
        assert!(account.locked && matches!(account.verifier, Some(Verifier::Native(_))));
        assert!(found(&role).is_none());
        assert!(found(&invalid).expect("found").verifier.is_none());
        assert!(found("no json").is_none());
        let empty = found(&json("")).expect("found");
        assert!(matches!(empty.verifier, Some(Verifier::Empty(_))));
    }

    #[test]
    fn a_server_that_is_told_the_address_means_the_account_of_that_address() {
        let json = format!("{{\"plugin\":\"\",\"authentication_string\":\"{HASH}\"}}");
        let found = |skips: &str, told: Option<&str>| {
            let row = |host| ["s@10.0.0.1", host, "app", &json, skips];
            let rows = ["%", "10.0.0.1", "10.0.0.9", "localhost", "127.0.0.1"].map(row);
            let rows: Vec<&[&str]> = rows.iter().map(|r| &r[..]).collect();
            let accounts = answer(Family::MariaDb, outcome(&rows));
            let told = told.map(|ip| ip.parse().expect("an address"));
            accounts.meant("app", told).expect("found").host
        };
        for (skips, told, expected) in [
            ("1", None, "10.0.0.1"),
            ("1", Some("10.0.0.9"), "10.0.0.9"),
            ("1", Some("::ffff:10.0.0.9"), "10.0.0.9"),
            ("1", Some("10.0.0.8"), "%"),
            ("1", Some("127.0.0.1"), "127.0.0.1"),
            ("0", Some("127.0.0.1"), "localhost"),
            ("0", Some("::1"), "localhost"),
            ("0", Some("127.0.0.9"), "%"),
        ] {
            assert_eq!(found(skips, told), expected, "{skips} {told:?}");
        }
    }

    #[tokio::test]
    async fn the_last_answer_serves_while_the_server_is_away() {
        let verifiers = Verifiers::server();
        let found = async |result: Result<Outcome, ExecError>| {
            verifiers
                .find(Family::MariaDb, "app", None, async |sql| {
                    assert!(sql.contains("x'617070'"), "{sql}");
                    result
                })
                .await
        };
        let json = format!("{{\"plugin\":\"\",\"authentication_string\":\"{HASH}\"}}");
        assert!(found(Err(ExecError::Timeout)).await.is_err());
        let told = outcome(&[&["s@h", "%", "app", &json]]);
        let known = found(Ok(told)).await.expect("answered").expect("known");
        assert!(matches!(
            known.secret,
            Some(Secret::Verifier(Verifier::Native(_)))
        ));
        let again = found(Err(ExecError::Timeout)).await.expect("kept");
        assert!(again == Some(known));
        let denied = crate::wire::mysql::auth::ErrorPacket::new(1142, *b"42000", "denied");
        assert!(
            found(Err(ExecError::Server(Box::new(denied))))
                .await
                .is_err()
        );
        assert!(found(Ok(outcome(&[]))).await.expect("answered").is_none());
        let long = "x".repeat(400);
        let asked = verifiers.find(Family::MySql, &long, None, async |_| {
            Err(ExecError::Timeout)
        });
        assert!(asked.await.expect("not asked").is_none());
    }

    #[test]
    fn passwords_belong_to_one_stored_form() {
        let passwords = Passwords::default();
        let old = sha2::Stored::of(b"pencil", [b'a'; 20], 1);
        let new = sha2::Stored::of(b"pencil", [b'b'; 20], 1);
        passwords.learn(b"app", &old, &Password::new(b"pencil"));
        assert!(
            passwords
                .get(b"app", &old)
                .is_some_and(|p| p.reveal() == b"pencil")
        );
        assert!(passwords.get(b"app", &new).is_none());
        passwords.forget(b"app");
        assert!(passwords.get(b"app", &old).is_none());
    }
}
