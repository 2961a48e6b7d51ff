//! Provider `static`: servers that somebody else runs. A change of capacity re-points the sessions to that
//! capacity's address: if both addresses are proven to be one and the same server, or if the second is proven
//! to have taken over from the first with everything that it had.
//!
//! (Of MySQL and MariaDB see `static_mysql`.) The second proof: the new server is no standby, and the old one is its standby, on its timeline. A server
//! follows a timeline only from a place that it has reached itself and not passed (PostgreSQL refuses to follow
//! one that forked off before), so everything that the old one ever acknowledged is on the new one.

use super::lsn::Lsn;
use super::{
    CutOver, Fact, Instance, ProviderError, QueryError, Rows, ServerIdentity, ServerQuery,
    SwitchKind, identify, static_mysql,
};
use crate::backend::{Capacity, Endpoint};
use std::sync::Arc;

/// One line of `endpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticEndpoint {
    /// The capacity that this address stands for.
    pub capacity: Capacity,
    /// Where it is.
    pub endpoint: Endpoint,
}

/// The provider `static`.
pub struct StaticProvider {
    /// Ascending by capacity, each once.
    endpoints: Vec<StaticEndpoint>,
    query: Arc<dyn ServerQuery>,
}

impl StaticProvider {
    /// `endpoints` in any order, at least one, each capacity once and above 0.
    pub fn new(
        mut endpoints: Vec<StaticEndpoint>,
        query: Arc<dyn ServerQuery>,
    ) -> Result<Self, ProviderError> {
        endpoints.sort_by_key(|e| e.capacity);
        if endpoints.is_empty() {
            return Err(ProviderError::Endpoints(
                "is empty: name at least one { capacity, address }".to_owned(),
            ));
        }
        if endpoints[0].capacity == Capacity(0) {
            return Err(ProviderError::Endpoints(
                "capacity 0 means paused and has no address: use 1 or more".to_owned(),
            ));
        }
        if let Some(twice) = endpoints
            .windows(2)
            .find(|w| w[0].capacity == w[1].capacity)
        {
            return Err(ProviderError::Endpoints(format!(
                "capacity {} has two addresses, {} and {}: leave one",
                twice[0].capacity, twice[0].endpoint.address, twice[1].endpoint.address
            )));
        }
        Ok(Self { endpoints, query })
    }

    /// Proves that the endpoint of `wanted` answers and is no standby. If it is one, and another endpoint is
    /// proven to have taken over from it, that one is the instance.
    pub async fn start(&self, wanted: Capacity) -> Result<Instance, ProviderError> {
        let endpoint = self.endpoint(wanted)?;
        let standby = match self.primary(endpoint).await {
            Ok(identity) => {
                return Ok(Instance {
                    capacity: wanted,
                    endpoint: endpoint.clone(),
                    identity,
                });
            }
            Err(error @ ProviderError::InRecovery(_)) => error,
            Err(error) => return Err(error),
        };
        for other in self.endpoints.iter().filter(|e| e.endpoint != *endpoint) {
            if let Ok((_, identity)) = self.proof(endpoint, &other.endpoint).await {
                return Ok(Instance {
                    capacity: other.capacity,
                    endpoint: other.endpoint.clone(),
                    identity,
                });
            }
        }
        Err(standby)
    }

    /// Asks both addresses who they are; refuses when nothing proves that the sessions may move.
    pub async fn prepare(
        &self,
        from: &Instance,
        to: Capacity,
    ) -> Result<SwitchKind, ProviderError> {
        let (kind, _) = self.proof(&from.endpoint, self.endpoint(to)?).await?;
        Ok(kind)
    }

    /// Proves once more that the sessions may move to the target, and names it.
    pub async fn cut_over(&self, from: &Instance, to: Capacity) -> CutOver {
        let proven = async {
            let target = self.endpoint(to)?;
            // A server may have been restarted since `from` was asked: both are asked now.
            let (_, there) = self.proof(&from.endpoint, target).await?;
            Ok(Instance {
                capacity: to,
                endpoint: target.clone(),
                identity: there,
            })
        };
        match proven.await {
            Ok(instance) => CutOver::Completed(instance),
            Err::<_, ProviderError>(error) => CutOver::KeptOld {
                instance: from.clone(),
                reason: error.to_string(),
            },
        }
    }

    /// Which address stands for which capacity.
    pub fn facts(&self) -> Vec<Fact> {
        self.endpoints
            .iter()
            .map(|e| {
                Fact::new(
                    &format!("capacity {}", e.capacity),
                    e.endpoint.address.to_string(),
                    "run by somebody else: its memory and CPU are what they are there",
                )
            })
            .collect()
    }

    fn endpoint(&self, wanted: Capacity) -> Result<&Endpoint, ProviderError> {
        if wanted == Capacity(0) {
            return Err(ProviderError::Paused);
        }
        self.endpoints
            .iter()
            .find(|e| e.capacity == wanted)
            .map(|e| &e.endpoint)
            .ok_or_else(|| {
                let known: Vec<_> = self
                    .endpoints
                    .iter()
                    .map(|e| e.capacity.to_string())
                    .collect();
                ProviderError::NoEndpoint {
                    wanted,
                    known: known.join(", "),
                }
            })
    }

    /// What lets sessions move from one address to the other, and who is there.
    async fn proof(
        &self,
        from: &Endpoint,
        to: &Endpoint,
    ) -> Result<(SwitchKind, ServerIdentity), ProviderError> {
        let there = self.primary(to).await?;
        let different = |why: String| ProviderError::DifferentServers {
            from: from.address.to_string().into(),
            to: to.address.to_string().into(),
            why,
        };
        let here = match identify(&*self.query, from).await {
            Ok(found) => found.identity,
            Err(error) => {
                return Err(different(format!(
                    "the first one does not tell where its log ends: {error}"
                )));
            }
        };
        if self.query.engine().speaks_mysql() && here != there {
            if !here.in_recovery {
                return Err(different(
                    "both take writes, and nothing proves that the second one has all of the first"
                        .to_owned(),
                ));
            }
            static_mysql::follows(&*self.query, from, to)
                .await
                .map_err(different)?;
            return Ok((SwitchKind::Barrier, there));
        }
        if here.system_identifier != there.system_identifier {
            return Err(different(format!(
                "system identifiers {} and {}",
                here.system_identifier, there.system_identifier
            )));
        }
        if !here.in_recovery {
            // The same data directory, run by the same process: copies share the identifier, but not the
            // moment of their start.
            if here.started_at == there.started_at {
                return Ok((SwitchKind::Rolling, there));
            }
            return Err(different(format!(
                "one system identifier, but started at {} and {}: one is a copy of the other, and both take writes",
                here.started_at, there.started_at
            )));
        }
        // The old one first: what it had then, the new one has had for longer.
        let old = self.log_of(from, STANDBY_LOG_SQL).await?;
        let new = self.log_of(to, PRIMARY_LOG_SQL).await?;
        follows(&old, &new).map_err(different)?;
        Ok((SwitchKind::Barrier, there))
    }

    async fn log_of(&self, endpoint: &Endpoint, sql: &str) -> Result<Log, ProviderError> {
        let unreachable = ProviderError::unreachable(endpoint);
        let rows = self.query.query(endpoint, sql).await.map_err(unreachable)?;
        Log::parse(&rows).ok_or_else(|| {
            unreachable(QueryError::Other(
                "its answer about its log could not be read".to_owned(),
            ))
        })
    }

    async fn primary(&self, endpoint: &Endpoint) -> Result<ServerIdentity, ProviderError> {
        let found = identify(&*self.query, endpoint).await.map_err(|source| {
            ProviderError::Unreachable {
                address: endpoint.address.to_string(),
                source,
            }
        })?;
        if found.identity.in_recovery {
            return Err(ProviderError::InRecovery(endpoint.address.to_string()));
        }
        Ok(found.identity)
    }
}

/// Where a server is in which log.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    /// A standby that receives, or a primary.
    live: bool,
    timeline: u32,
    position: Lsn,
    /// Where each timeline before this one ended.
    history: String,
}

/// A standby: the timeline that it receives, how far it is.
const STANDBY_LOG_SQL: &str = "SELECT \
    (coalesce(w.status, '') = 'streaming')::pg_catalog.text, \
    coalesce(w.received_tli, 0)::pg_catalog.text, \
    coalesce(greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()), '0/0')::pg_catalog.text, \
    coalesce(pg_catalog.pg_read_file('pg_wal/' || \
      pg_catalog.lpad(pg_catalog.upper(pg_catalog.to_hex(w.received_tli)), 8, '0') || '.history', 0, 1000000, true), '') \
    FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_stat_wal_receiver w ON true";

/// A primary: its timeline, how far it is.
const PRIMARY_LOG_SQL: &str = "SELECT 'true', \
    ('x' || t.hex)::pg_catalog.bit(32)::pg_catalog.int4::pg_catalog.text, \
    pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text, \
    coalesce(pg_catalog.pg_read_file('pg_wal/' || t.hex || '.history', 0, 1000000, true), '') \
    FROM (SELECT pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) AS hex) t";

impl Log {
    fn parse(rows: &Rows) -> Option<Self> {
        let [row] = rows.as_slice() else { return None };
        let [Some(live), Some(timeline), Some(position), Some(history)] = row.as_slice() else {
            return None;
        };
        Some(Self {
            live: matches!(live.as_str(), "true" | "t"),
            timeline: timeline.parse().ok()?,
            position: position.parse().ok()?,
            history: history.clone(),
        })
    }
}

/// Whether the old server follows the new one, so that it has nothing that the new one has not.
fn follows(old: &Log, new: &Log) -> Result<(), String> {
    if !old.live {
        return Err("the first one is a standby that receives nothing".to_owned());
    }
    if old.timeline != new.timeline || old.history != new.history || new.history.is_empty() {
        return Err(format!(
            "the first one follows timeline {} and the second one is on timeline {}: it is not its standby",
            old.timeline, new.timeline
        ));
    }
    if old.position > new.position {
        return Err(format!(
            "the first one is at {} and the second one only at {}",
            old.position, new.position
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::ServerSession;
    use super::*;
    use crate::transport::{Address, ServerTls};
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use std::collections::HashMap;

    /// System identifier, start, in recovery.
    type Known = (&'static str, &'static str, bool);

    /// What answers at which port.
    struct Servers(HashMap<u16, Known>);

    impl ServerQuery for Servers {
        fn query<'a>(
            &'a self,
            endpoint: &'a Endpoint,
            _sql: &'a str,
        ) -> BoxFuture<'a, Result<Rows, QueryError>> {
            let Address::Tcp { port, .. } = endpoint.address else {
                panic!("tcp only")
            };
            let answer = self
                .0
                .get(&port)
                .ok_or(QueryError::Refused("nobody".to_owned()));
            let rows = answer.map(|&(system, started, recovery)| {
                vec![
                    [
                        system,
                        started,
                        "150004",
                        if recovery { "true" } else { "false" },
                        "",
                    ]
                    .map(|v| Some(v.to_owned()))
                    .to_vec(),
                ]
            });
            futures_util::future::ready(rows).boxed()
        }

        fn session<'a>(
            &'a self,
            _endpoint: &'a Endpoint,
        ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>> {
            panic!("one statement is enough")
        }

        fn query_in<'a>(
            &'a self,
            endpoint: &'a Endpoint,
            _database: &'a str,
            sql: &'a str,
        ) -> BoxFuture<'a, Result<Rows, QueryError>> {
            self.query(endpoint, sql)
        }
    }

    fn at(capacity: u32, port: u16) -> StaticEndpoint {
        StaticEndpoint {
            capacity: Capacity(capacity),
            endpoint: Endpoint {
                address: Address::Tcp {
                    host: "db".to_owned(),
                    port,
                },
                tls: ServerTls::Disable,
                tls_ca: None,
            },
        }
    }

    fn provider(servers: &Arc<Servers>, endpoints: &[(u32, u16)]) -> StaticProvider {
        let endpoints = endpoints.iter().map(|&(c, p)| at(c, p)).collect();
        StaticProvider::new(endpoints, Arc::clone(servers) as _).unwrap()
    }

    fn servers(list: &[(u16, Known)]) -> Arc<Servers> {
        Arc::new(Servers(list.iter().copied().collect()))
    }

    #[tokio::test]
    async fn two_addresses_of_one_server_are_rolling() {
        let servers = servers(&[(1, ("7", "t1", false)), (2, ("7", "t1", false))]);
        let provider = provider(&servers, &[(2, 1), (4, 2)]);
        let from = provider.start(Capacity(2)).await.unwrap();
        assert_eq!(
            provider.prepare(&from, Capacity(4)).await.unwrap(),
            SwitchKind::Rolling
        );
        let CutOver::Completed(to) = provider.cut_over(&from, Capacity(4)).await else {
            panic!("not completed")
        };
        assert_eq!(
            (to.capacity, &to.endpoint),
            (Capacity(4), &at(4, 2).endpoint)
        );
        assert_eq!(
            provider.cut_over(&from, Capacity(4)).await,
            CutOver::Completed(to)
        );
    }

    #[tokio::test]
    async fn different_servers_and_copies_are_refused_with_the_reason() {
        for (there, why) in [
            (("8", "t1", false), "system identifiers 7 and 8"),
            (("7", "t2", false), "one is a copy"),
            (("7", "t1", true), "standby"),
        ] {
            let servers = servers(&[(1, ("7", "t1", false)), (2, there)]);
            let provider = provider(&servers, &[(2, 1), (4, 2)]);
            let from = provider.start(Capacity(2)).await.unwrap();
            let error = provider
                .prepare(&from, Capacity(4))
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(why) && error.contains("db:2"), "{error}");
            let CutOver::KeptOld { instance, reason } = provider.cut_over(&from, Capacity(4)).await
            else {
                panic!("moved to another server")
            };
            assert_eq!((instance, reason), (from, error));
        }
    }

    #[test]
    fn safety_18_only_a_standby_of_the_new_server_proves_that_nothing_is_missing() {
        let log = |live, timeline, position, history: &str| Log {
            live,
            timeline,
            position: Lsn(position),
            history: history.to_owned(),
        };
        let new = log(true, 2, 100, "1\t0/50\tno recovery target specified\n");
        let follower = |position| Log {
            position: Lsn(position),
            ..log(true, 2, 0, &new.history)
        };
        assert_eq!(follows(&follower(100), &new), Ok(()));
        for (old, why) in [
            (follower(101), "the second one only at 0/64"),
            (log(false, 2, 90, &new.history), "receives nothing"),
            (log(true, 1, 90, ""), "follows timeline 1"),
            // Promoted from the same timeline elsewhere.
            (log(true, 2, 90, "1\t0/40\tother\n"), "not its standby"),
        ] {
            assert!(follows(&old, &new).unwrap_err().contains(why), "{why}");
        }
        // A primary that was never promoted has taken over from nobody.
        assert!(follows(&log(true, 1, 1, ""), &log(true, 1, 1, "")).is_err());
        let row = |values: [&str; 4]| vec![values.map(|v| Some(v.to_owned())).to_vec()];
        assert_eq!(
            Log::parse(&row(["true", "2", "0/64", "x"])),
            Some(log(true, 2, 100, "x"))
        );
        assert_eq!(Log::parse(&row(["true", "two", "0/64", "x"])), None);
        assert_eq!(Log::parse(&Vec::new()), None);
    }

    #[tokio::test]
    async fn errors_name_what_to_do() {
        let servers = servers(&[(1, ("7", "t1", false)), (3, ("7", "t1", true))]);
        let provider = provider(&servers, &[(2, 1), (4, 2), (8, 3)]);
        let error = |capacity| {
            let provider = &provider;
            async move {
                provider
                    .start(Capacity(capacity))
                    .await
                    .unwrap_err()
                    .to_string()
            }
        };
        assert!(error(3).await.contains("`endpoints` has 2, 4, 8"));
        assert!(error(4).await.contains("server db:2: no connection"));
        assert!(error(8).await.contains("standby"));
        assert!(error(0).await.contains("paused"));
        let query: Arc<dyn ServerQuery> = servers.clone();
        for (bad, word) in [
            (vec![], "empty"),
            (vec![at(2, 1), at(2, 2)], "two addresses, db:1 and db:2"),
            (vec![at(0, 1)], "paused"),
        ] {
            let error = StaticProvider::new(bad, query.clone())
                .err()
                .expect("refused")
                .to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
