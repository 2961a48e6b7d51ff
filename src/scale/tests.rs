//! Events and the search for a lost server, side by side, with servers that are only told of.

use super::coordinator::{Coordinator, Refused, Rules};
use super::event::{Event, OnTimeout, Request, Step};
use crate::backend::cluster::{Cluster, Settings};
use crate::backend::gate::Gate;
use crate::backend::registry::Registry;
use crate::backend::service::{Account, Service};
use crate::backend::{Capacity, Endpoint, Engine};
use crate::observe::{EventOutcome, Metrics};
use crate::provider::{
    Provider, QueryError, Rows, ServerQuery, ServerSession, StaticEndpoint, StaticProvider,
};
use crate::transport::{Address, ServerTls, SocketConfig};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// When a server started, and whether it is a standby.
type Known = (&'static str, bool);

/// Servers of one log, by address. One answer can be kept on its way.
#[derive(Default)]
struct Servers {
    known: Mutex<BTreeMap<String, Known>>,
    slow: AtomicBool,
    panics: AtomicBool,
    asked: Notify,
    arrives: Notify,
}

impl Servers {
    fn answer(&self, endpoint: &Endpoint, sql: &str) -> Result<Rows, QueryError> {
        let address = endpoint.address.to_string();
        let nobody = || QueryError::Refused("nobody".to_owned());
        let (started, standby) = *self.known.lock().get(&address).ok_or_else(nobody)?;
        let row = if sql.contains("pg_control_system") {
            vec![
                "7301",
                started,
                "150004",
                if standby { "t" } else { "f" },
                "",
            ]
        } else {
            // Where it is in the log.
            vec!["t", "1", "0/10", "1\t0/8\tpromoted"]
        };
        Ok(vec![row.into_iter().map(|v| Some(v.to_owned())).collect()])
    }
}

impl ServerQuery for Servers {
    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        async move {
            let answer = self.answer(endpoint, sql);
            assert!(!self.panics.swap(false, Ordering::Relaxed), "a mistake");
            if self.slow.swap(false, Ordering::Relaxed) {
                self.asked.notify_one();
                self.arrives.notified().await;
            }
            answer
        }
        .boxed()
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

/// One address for each of the capacities 1, 2 and 3. Nothing listens there.
fn endpoint(capacity: u32) -> Endpoint {
    Endpoint {
        address: Address::Unix(format!("/nowhere/{capacity}").into()),
        tls: ServerTls::Disable,
        tls_ca: None,
    }
}

impl Servers {
    fn are(&self, known: [Known; 3]) {
        let addresses = (1..).map(|capacity| endpoint(capacity).address.to_string());
        *self.known.lock() = addresses.zip(known).collect();
    }
}

async fn watched(servers: &Arc<Servers>) -> Arc<Coordinator> {
    let endpoints = (1..=3).map(|capacity| StaticEndpoint {
        capacity: Capacity(capacity),
        endpoint: endpoint(capacity),
    });
    let query: Arc<dyn ServerQuery> = Arc::clone(servers) as _;
    let provider = StaticProvider::new(endpoints.collect(), query).unwrap();
    let socket = SocketConfig {
        keepalive: Duration::ZERO,
        tcp_user_timeout: Duration::ZERO,
        proxy_protocol: None,
    };
    let account = Account::Pg {
        user: "slackwater".to_owned(),
        database: "postgres".to_owned(),
        credential: None,
    };
    let settings = Settings {
        engine: Engine::Postgres,
        socket,
        max_outage: Duration::from_mins(1),
        custom_settings: Vec::new(),
        ends_replication: false,
        diagnostics_wait: Duration::ZERO,
    };
    let registry = Arc::new(Registry::default());
    let gate = Gate::new(10, Arc::clone(&registry));
    let service = Service::new(account, socket);
    let coordinator = Coordinator::new(
        Arc::new(Cluster::new("c", gate, registry, service, settings)),
        Provider::Static(provider),
        Rules {
            max_hold: Duration::from_secs(1),
        },
        Metrics::new().cluster("c"),
    );
    coordinator.start(Capacity(1)).await.unwrap();
    tokio::spawn(Arc::clone(&coordinator).watch());
    coordinator
}

fn request(to: u32, timeout: Duration) -> Request {
    Request {
        to: Capacity(to),
        timeout,
        on_timeout: OnTimeout::Rollback,
        restart: false,
    }
}

/// An event that begins while the watch waits for an answer, which comes when the event has had all the time it needs.
async fn event_beside_a_slow_answer(
    servers: &Servers,
    coordinator: &Arc<Coordinator>,
    to: u32,
) -> Event {
    servers.slow.store(true, Ordering::Relaxed);
    coordinator.cluster.report_trouble();
    servers.asked.notified().await;
    let request = request(to, Duration::from_mins(5));
    let begun = coordinator.scale(request).unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    servers.arrives.notify_one();
    tokio::time::sleep(Duration::from_secs(30)).await;
    coordinator.event(begun.id).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_found_before_an_event_is_not_served_after_it() {
    let servers = Arc::new(Servers::default());
    servers.are([("1", false); 3]);
    let coordinator = watched(&servers).await;
    servers.are([("2", false); 3]);
    let event = event_beside_a_slow_answer(&servers, &coordinator, 2).await;
    assert_eq!(event.outcome, Some(EventOutcome::Completed), "{event:?}");
    assert_eq!(coordinator.capacity(), Some(Capacity(2)));
    let serving = coordinator.cluster.gate.view().serving.unwrap();
    assert_eq!(*serving.endpoint, endpoint(2));
}

#[tokio::test(start_paused = true)]
async fn an_event_begins_with_what_was_found_while_it_waited() {
    let servers = Arc::new(Servers::default());
    servers.are([("1", false), ("9", true), ("9", true)]);
    let coordinator = watched(&servers).await;
    // Somebody promoted the standby, which two addresses lead to.
    servers.are([("3", true), ("9", false), ("9", false)]);
    let event = event_beside_a_slow_answer(&servers, &coordinator, 3).await;
    assert_eq!(event.outcome, Some(EventOutcome::Completed), "{event:?}");
    assert_eq!(event.from, Capacity(2));
    assert_eq!(coordinator.capacity(), Some(Capacity(3)));
}

#[tokio::test(start_paused = true)]
async fn an_event_to_what_was_found_while_it_waited_has_nothing_to_do() {
    let servers = Arc::new(Servers::default());
    servers.are([("1", false), ("9", true), ("9", true)]);
    let coordinator = watched(&servers).await;
    servers.are([("3", true), ("9", false), ("9", false)]);
    let event = event_beside_a_slow_answer(&servers, &coordinator, 2).await;
    assert_eq!(event.outcome, Some(EventOutcome::Completed), "{event:?}");
    assert_eq!((event.from, event.attempt), (Capacity(2), 0));
    assert_eq!(coordinator.capacity(), Some(Capacity(2)));
}

/// Capacity 1 names a server whose standby, which 2 and 3 lead to, was promoted.
async fn after_a_promotion(servers: &Arc<Servers>) -> Arc<Coordinator> {
    servers.are([("1", false), ("9", true), ("9", true)]);
    let coordinator = watched(servers).await;
    servers.are([("3", true), ("9", false), ("9", false)]);
    coordinator
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_ends_begins_no_cut_over() {
    let request = request(2, Duration::from_mins(5));
    // In Prepare, in a hold, between two.
    for (in_prepare, millis, attempt) in [(true, 100, 0), (false, 500, 1), (false, 5_000, 1)] {
        let servers = Arc::new(Servers::default());
        let coordinator = after_a_promotion(&servers).await;
        let session = coordinator.cluster.gate.lease().await;
        servers.slow.store(in_prepare, Ordering::Relaxed);
        let begun = coordinator.scale(request).unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        coordinator.close();
        assert!(!coordinator.is_cutting_over());
        assert_eq!(coordinator.scale(request).unwrap_err(), Refused::Closed);
        // Nobody is in the way any more.
        drop(session);
        servers.arrives.notify_one();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let event = coordinator.event(begun.id).unwrap();
        assert_eq!(event.outcome, Some(EventOutcome::RolledBack), "{event:?}");
        assert_eq!(event.attempt, attempt, "{event:?}");
        assert_eq!(coordinator.capacity(), Some(Capacity(1)));
        let serving = coordinator.cluster.gate.view().serving.unwrap();
        assert_eq!(*serving.endpoint, endpoint(1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_prepare_takes_is_no_part_of_the_search() {
    let servers = Arc::new(Servers::default());
    let coordinator = after_a_promotion(&servers).await;
    servers.slow.store(true, Ordering::Relaxed);
    let request = request(2, Duration::from_secs(1));
    let begun = coordinator.scale(request).unwrap().unwrap();
    servers.asked.notified().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    servers.arrives.notify_one();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let event = coordinator.event(begun.id).unwrap();
    assert_eq!(event.outcome, Some(EventOutcome::Completed), "{event:?}");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_finds_no_server_says_so_and_has_it_looked_for() {
    let servers = Arc::new(Servers::default());
    servers.are([("1", false); 3]);
    let coordinator = watched(&servers).await;
    servers.known.lock().clear();
    let request = request(2, Duration::from_mins(5));
    let begun = coordinator.scale(request).unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let event = coordinator.event(begun.id).unwrap();
    assert_eq!(event.outcome, Some(EventOutcome::Failed), "{event:?}");
    let reason = event.reason.unwrap();
    assert!(reason.contains("see that it runs"), "{reason}");
    let serving = || coordinator.cluster.gate.view().serving;
    assert!(serving().is_none(), "clients wait in line");
    servers.are([("2", false); 3]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(*serving().unwrap().started_at, *"2");
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_server_is_lost_while_it_waits_goes_on_without_it() {
    // Whether somebody missed it, or the event is the first who does.
    for reported in [true, false] {
        let servers = Arc::new(Servers::default());
        let coordinator = after_a_promotion(&servers).await;
        let session = coordinator.cluster.gate.lease().await;
        let request = request(2, Duration::from_mins(5));
        let begun = coordinator.scale(request).unwrap().unwrap();
        // Long enough for another look at all that was prepared.
        tokio::time::sleep(Duration::from_secs(12)).await;
        let event = coordinator.event(begun.id).unwrap();
        assert_eq!((event.step, event.attempt), (Step::Wait, 1), "{event:?}");
        let lost = endpoint(1).address.to_string();
        servers.known.lock().remove(&lost);
        drop(session);
        if reported {
            coordinator.cluster.report_trouble();
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let event = coordinator.event(begun.id).unwrap();
        assert_eq!((event.step, event.attempt), (Step::CutOver, 2), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_looks_for_a_server_that_is_held_by_hand() {
    let servers = Arc::new(Servers::default());
    servers.are([("1", false); 3]);
    let coordinator = watched(&servers).await;
    let started = || coordinator.cluster.gate.view().serving.unwrap().started_at;
    let period = Duration::from_mins(1);
    let long = Duration::from_secs(30);
    for (now, released) in [("2", true), ("3", false)] {
        let before = started();
        coordinator.hold(period).unwrap();
        servers.are([(now, false); 3]);
        coordinator.cluster.report_trouble();
        tokio::time::sleep(long).await;
        assert_eq!(started(), before);
        // Its end asks by itself.
        if released {
            assert!(coordinator.release());
        } else {
            tokio::time::sleep(period).await;
        }
        tokio::time::sleep(long).await;
        assert_eq!(*started(), *now);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_panics_leaves_its_place_to_the_next_one() {
    let servers = Arc::new(Servers::default());
    servers.are([("1", false); 3]);
    let coordinator = watched(&servers).await;
    servers.panics.store(true, Ordering::Relaxed);
    let request = request(2, Duration::from_mins(5));
    let begun = coordinator.scale(request).unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let event = coordinator.event(begun.id).unwrap();
    assert_eq!(event.outcome, Some(EventOutcome::Failed), "{event:?}");
    assert!(event.ended.is_some());
    let begun = coordinator.scale(request).unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let event = coordinator.event(begun.id).unwrap();
    assert_eq!(event.outcome, Some(EventOutcome::Completed), "{event:?}");
}
