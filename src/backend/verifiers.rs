//! Where verifiers come from: the users file, or the server itself through the service account.

use super::cluster::Cluster;
use super::exec::ExecError;
use crate::auth::users::Users;
use crate::auth::{Secret, Verifier};
use parking_lot::Mutex;
use std::collections::HashMap;

/// What is asked of the server. (That a role may not log in is the server's to say, after its password.)
const FROM_AUTHID: &str = "SELECT rolpassword, \
    (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())::text \
    FROM pg_catalog.pg_authid WHERE rolname = $1::name";

/// Most verifiers that are kept for the time when the server is away.
const CACHE_MAX: usize = 10_000;

/// A source of verifiers.
#[derive(Debug)]
pub enum Verifiers {
    /// `users_file`.
    File(arc_swap::ArcSwap<Users>),
    /// The server, by `auth_query` or from `pg_authid`.
    Server {
        /// `auth_query`: one parameter, the user name; its first column is the verifier, and a second
        /// one that is false says that it has expired. None: `pg_authid`, for a superuser.
        query: Option<String>,
        /// The last verifiers, used only while the server is away.
        cache: Mutex<HashMap<String, Option<Secret>>>,
    },
}

impl Verifiers {
    /// From the server.
    pub fn server(query: Option<String>) -> Self {
        Self::Server {
            query,
            cache: Mutex::default(),
        }
    }

    /// The secret of a user; none where there is none, it has expired, or it can't be used.
    pub async fn find(&self, cluster: &Cluster, user: &str) -> Result<Option<Secret>, ExecError> {
        match self {
            Self::File(users) => Ok(users.load().get(user.as_bytes()).cloned()),
            Self::Server { query, cache } => {
                let sql = query.as_deref().unwrap_or(FROM_AUTHID);
                let rows = match cluster.service.query(&cluster.gate, sql, &[user]).await {
                    Ok(rows) => rows,
                    Err(error) => {
                        return match (&error, cache.lock().get(user)) {
                            (ExecError::Server(fields), _) if !fields.is_fatal() => Err(error),
                            (_, Some(known)) => Ok(known.clone()),
                            _ => Err(error),
                        };
                    }
                };
                let secret = rows.into_iter().next().and_then(|row| {
                    let mut columns = row.into_iter();
                    let text = columns.next().flatten()?;
                    let valid = columns
                        .next()
                        .flatten()
                        .unwrap_or_else(|| "true".to_owned());
                    if !matches!(valid.as_str(), "true" | "t") {
                        return None;
                    }
                    Verifier::parse(&text).ok().map(Secret::Verifier)
                });
                let mut cache = cache.lock();
                if cache.len() < CACHE_MAX || cache.contains_key(user) {
                    cache.insert(user.to_owned(), secret.clone());
                }
                Ok(secret)
            }
        }
    }
}
