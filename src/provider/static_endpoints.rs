//! Provider `static`: servers that somebody else runs. A change of capacity re-points the sessions to that
//! capacity's address, and only between addresses that are proven to be one and the same server.

use super::{
    CutOver, Fact, Instance, ProviderError, ServerIdentity, ServerQuery, SwitchKind, identify,
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

    /// Proves that the endpoint of `wanted` answers and is no standby.
    pub async fn start(&self, wanted: Capacity) -> Result<Instance, ProviderError> {
        let endpoint = self.endpoint(wanted)?;
        let identity = self.primary(endpoint).await?;
        Ok(Instance {
            capacity: wanted,
            endpoint: endpoint.clone(),
            identity,
        })
    }

    /// Asks both addresses who they are; refuses when they are not the same running server.
    pub async fn prepare(
        &self,
        from: &Instance,
        to: Capacity,
    ) -> Result<SwitchKind, ProviderError> {
        let target = self.endpoint(to)?;
        let there = self.primary(target).await?;
        let here = self.primary(&from.endpoint).await?;
        same_server((&from.endpoint, &here), (target, &there))?;
        Ok(SwitchKind::Rolling)
    }

    /// Proves once more that the target is the server on which the sessions are, and names it.
    pub async fn cut_over(&self, from: &Instance, to: Capacity) -> CutOver {
        let proven = async {
            let target = self.endpoint(to)?;
            let there = self.primary(target).await?;
            // The server may have been restarted since `from` was asked: both are asked now.
            let here = self.primary(&from.endpoint).await?;
            same_server((&from.endpoint, &here), (target, &there))?;
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

/// The same data directory, run by the same process: two copies of a directory share its identifier but
/// not the moment of their start.
fn same_server(
    (from, here): (&Endpoint, &ServerIdentity),
    (to, there): (&Endpoint, &ServerIdentity),
) -> Result<(), ProviderError> {
    let why = if here.system_identifier != there.system_identifier {
        format!(
            "system identifiers {} and {}",
            here.system_identifier, there.system_identifier
        )
    } else if here.started_at != there.started_at {
        format!(
            "one system identifier, but started at {} and {}: one is a copy of the other",
            here.started_at, there.started_at
        )
    } else {
        return Ok(());
    };
    Err(ProviderError::DifferentServers {
        from: from.address.to_string().into(),
        to: to.address.to_string().into(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{QueryError, Rows};
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
