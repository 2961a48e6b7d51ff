//! Where verifiers come from: the users file, or the server itself through the service account.

use super::cluster::Cluster;
use super::exec::ExecError;
use super::lookups::Lookups;
use crate::auth::users::Users;
use crate::auth::{Secret, Verifier};
use parking_lot::Mutex;
use std::collections::HashMap;
use zeroize::Zeroizing;

/// What is asked of the server. (That a role may not log in is the server's to say, after its password.)
const FROM_AUTHID: &str = "SELECT rolname, rolpassword, \
    (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())::text \
    FROM pg_catalog.pg_authid WHERE rolname = $1::name";

/// Whether a role's password is valid now; every account may ask that. An `auth_query` tells a verifier and rarely
/// until when it is good.
const IS_VALID: &str = "SELECT (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())::text \
    FROM pg_catalog.pg_roles WHERE rolname = $1::name";

/// Most verifiers that are kept for the time when the server is away.
const CACHE_MAX: usize = 10_000;

/// Longest name of a role, in bytes (`NAMEDATALEN` less one).
const ROLE_NAME_MAX: usize = 63;

/// A source of verifiers.
#[derive(Debug)]
pub enum Verifiers {
    /// `users_file`.
    File(arc_swap::ArcSwap<Users>),
    /// The server, by `auth_query` or from `pg_authid`.
    Server {
        /// `auth_query`: one parameter, the user name; a row of name and verifier. A third column that is false
        /// says that it has expired. None: `pg_authid`, for a superuser.
        query: Option<String>,
        /// The last verifiers, used only while the server is away.
        cache: Mutex<HashMap<String, Option<Secret>>>,
        /// Clients of one user that come together are one question to the server.
        lookups: Lookups<Option<Secret>>,
    },
}

impl Verifiers {
    /// From the server.
    pub fn server(query: Option<String>) -> Self {
        Self::Server {
            query,
            cache: Mutex::default(),
            lookups: Lookups::default(),
        }
    }

    /// The secret of a user; none where there is none, it has expired, or it can't be used.
    pub async fn find(&self, cluster: &Cluster, user: &str) -> Result<Option<Secret>, ExecError> {
        match self {
            Self::File(users) => Ok(users.load().get(user.as_bytes()).cloned()),
            Self::Server {
                query,
                cache,
                lookups,
            } => {
                let user = as_role_name(user);
                let work = async {
                    match ask(cluster, query.as_deref(), user).await {
                        Ok(secret) => {
                            remember(&mut cache.lock(), user, secret.clone());
                            Ok(secret)
                        }
                        Err(error) => match cache.lock().get(user) {
                            Some(known) if error.may_pass() => Ok(known.clone()),
                            _ => Err(error),
                        },
                    }
                };
                lookups.ask(user, work).await
            }
        }
    }
}

/// Names are cut to the length of a role's, as PostgreSQL does with the name in a start-up packet.
fn as_role_name(user: &str) -> &str {
    user.get(..user.floor_char_boundary(ROLE_NAME_MAX))
        .unwrap_or(user)
}

/// Names that nobody has never crowd out those of users: anybody can ask for any name.
fn remember(cache: &mut HashMap<String, Option<Secret>>, user: &str, secret: Option<Secret>) {
    let room = if secret.is_some() {
        CACHE_MAX
    } else {
        CACHE_MAX / 2
    };
    if cache.len() < room || cache.contains_key(user) {
        cache.insert(user.to_owned(), secret);
    }
}

/// Asks the server. A verifier of somebody else, or of a role that may not log in now, is none.
async fn ask(
    cluster: &Cluster,
    query: Option<&str>,
    user: &str,
) -> Result<Option<Secret>, ExecError> {
    let ask = async |sql| cluster.service.query(&cluster.gate, sql, &[user]).await;
    let rows = ask(query.unwrap_or(FROM_AUTHID)).await?;
    let Some(verifier) = rows.into_iter().next().and_then(|row| verifier(row, user)) else {
        return Ok(None);
    };
    if query.is_some() {
        let rows = ask(IS_VALID).await?;
        let answer = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        if !answer.flatten().is_some_and(|valid| is_true(&valid)) {
            return Ok(None);
        }
    }
    Ok(Some(Secret::Verifier(verifier)))
}

/// Reads a row of name, verifier, and perhaps whether it is valid.
fn verifier(row: Vec<Option<String>>, user: &str) -> Option<Verifier> {
    let mut columns = row.into_iter();
    let name = columns.next().flatten()?;
    let text = Zeroizing::new(columns.next().flatten()?);
    let valid = columns.next().flatten();
    if name != user || valid.is_some_and(|valid| !is_true(&valid)) {
        return None;
    }
    Verifier::parse(&text).ok()
}

fn is_true(text: &str) -> bool {
    matches!(text, "true" | "t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_names_take_little_and_crowd_out_nobody() {
        let mut cache = HashMap::new();
        for number in 0..2 * CACHE_MAX {
            let long = format!("{number} {}", "x".repeat(9_000));
            remember(&mut cache, as_role_name(&long), None);
        }
        assert_eq!(cache.len(), CACHE_MAX / 2);
        assert!(cache.keys().all(|name| name.len() <= 63));
        let md5 = "md5d41d8cd98f00b204e9800998ecf8427e";
        let secret = Verifier::parse(md5).ok().map(Secret::Verifier);
        remember(&mut cache, "app", secret);
        assert!(cache.contains_key("app"));
        assert_eq!(as_role_name("ä".repeat(40).as_str()).len(), 62);
    }

    #[test]
    fn what_a_row_means() {
        let md5 = "md5d41d8cd98f00b204e9800998ecf8427e";
        let read = |columns: &[Option<&str>]| {
            let row = columns.iter().map(|c| c.map(str::to_owned)).collect();
            verifier(row, "app").is_some()
        };
        assert!(read(&[Some("app"), Some(md5)]));
        assert!(read(&[Some("app"), Some(md5), Some("t")]));
        assert!(read(&[Some("app"), Some(md5), None]));
        assert!(!read(&[Some("app"), Some(md5), Some("f")]), "expired");
        assert!(!read(&[Some("other"), Some(md5)]), "somebody else's");
        assert!(!read(&[Some("app"), None]), "no password");
        assert!(!read(&[Some("app"), Some("plain")]), "no verifier");
        assert!(!read(&[Some(md5)]), "no name");
        assert!(!read(&[]));
    }
}
