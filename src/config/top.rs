//! The parts of proxy.toml that belong to the whole proxy, and the checks across clusters.

use super::cluster;
use super::document::{Document, Item, Section};
use super::{
    Admin, CertificateFiles, ClientCertificate, ClusterConfig, Config, Limits, Listen,
    ListenConfig, ProviderConfig, Tls, is_loopback, users,
};
use crate::transport::proxy_header::{Network, NotANetwork};
use crate::transport::{Address, ListenTls};
use std::path::PathBuf;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

const LISTEN_TLS: [(&str, ListenTls); 3] = [
    ("off", ListenTls::Off),
    ("prefer", ListenTls::Prefer),
    ("require", ListenTls::Require),
];

/// Name of each listener, whether MySQL's protocol is spoken there, and an address for it.
const LISTENERS: [(&str, bool, &str); 2] = [
    ("postgres", false, "0.0.0.0:5432"),
    ("mysql", true, "0.0.0.0:3306"),
];

/// Reads the whole document; the answer counts only if no problem was reported.
pub(super) fn read(mut root: Section<'_, '_>) -> Option<Config> {
    let doc = root.doc;
    let state_dir = root
        .take("state_dir")
        .and_then(|item| item.path())
        .unwrap_or_else(|| PathBuf::from("/var/lib/slackwater"));

    let mut bound: Vec<(String, Address)> = Vec::new();
    let admin = read_admin(root.table("admin"), &mut bound);
    let mut listen = root.table("listen");
    let listeners = LISTENERS.map(|(name, _, example)| {
        listen.take(name).map(|item| {
            item.table()
                .and_then(|section| read_listen(section, &mut bound, example))
        })
    });
    listen.finish();
    let tls = read_tls(root.table("tls"));
    let limits = read_limits(root.table("limits"));

    let named = root.take("clusters").and_then(Item::table);
    let found = named.map(Section::entries).unwrap_or_default();
    let none = found.is_empty();
    let mut clusters = Vec::new();
    for (name, at, item) in found {
        if !is_cluster_name(&name) {
            doc.problem(
                Some(at),
                &item.key,
                "the name of a cluster has 1 to 63 letters, digits, hyphens and underscores",
            );
        }
        clusters.extend(
            item.table()
                .and_then(|section| cluster::read(name, at, section)),
        );
    }
    root.finish();

    if none {
        doc.problem(
            None,
            "clusters",
            "there is none; add [clusters.NAME] with a provider",
        );
    }
    for ((name, mysql, example), there) in LISTENERS.into_iter().zip(&listeners) {
        check_listener(doc, name, example, there.is_some(), mysql, &clusters);
    }
    let [postgres, mysql] = listeners.map(Option::flatten);
    check_reachable(doc, &clusters);
    check_client_certificates(doc, &tls, postgres.as_ref(), &clusters);
    let own_listeners: Vec<_> = [&postgres, &mysql]
        .into_iter()
        .flatten()
        .flat_map(|listener| listener.addresses.iter().cloned())
        .collect();
    check_loops(doc, &own_listeners, &clusters);
    // What nobody could reach anything by is not bound.
    let served = |mysql| {
        clusters
            .iter()
            .any(|c| c.config.engine.speaks_mysql() == mysql)
    };
    let listen = Listen {
        postgres: postgres.filter(|_| served(false)),
        mysql: mysql.filter(|_| served(true)),
    };
    Some(Config {
        state_dir,
        listen,
        tls,
        admin: admin?,
        limits,
        clusters: clusters.into_iter().map(|c| c.config).collect(),
        warnings: Vec::new(),
    })
}

/// A cluster with what only the checks across clusters need.
pub(super) struct ReadCluster {
    /// Offset of its name.
    pub(super) at: usize,
    pub(super) config: ClusterConfig,
}

fn read_listen(
    mut section: Section<'_, '_>,
    bound: &mut Vec<(String, Address)>,
    example: &str,
) -> Option<ListenConfig> {
    let item = section.require("address", &format!("write address = [\"{example}\"]"));
    let mut addresses = Vec::new();
    if let Some(item) = item {
        for item in item.non_empty_list().unwrap_or_default() {
            let Some(address) = item.address() else {
                continue;
            };
            if let Some((other, _)) = bound.iter().find(|(_, a)| *a == address) {
                item.problem(format!("{address} is already taken by {other}"));
            } else {
                bound.push((item.key.clone(), address.clone()));
                addresses.push(address);
            }
        }
    }
    let tls = section.take("tls").and_then(|item| item.word(&LISTEN_TLS));
    let proxy_protocol = section.take("proxy_protocol").map(read_networks);
    section.finish();
    (!addresses.is_empty()).then_some(ListenConfig {
        addresses,
        tls: tls.unwrap_or(ListenTls::Prefer),
        proxy_protocol: proxy_protocol.unwrap_or_default(),
    })
}

/// A listener is there for clusters, and clusters are reached by a listener.
fn check_listener(
    doc: &Document<'_>,
    name: &str,
    example: &str,
    there: bool,
    mysql: bool,
    clusters: &[ReadCluster],
) {
    let key = format!("listen.{name}");
    let cluster = clusters
        .iter()
        .find(|c| c.config.engine.speaks_mysql() == mysql);
    match cluster {
        None if there => doc.warn(&key, "is not bound, since no cluster has its engine"),
        // Without any cluster that is what is told.
        None => {}
        Some(cluster) if !there => doc.problem(
            None,
            &key,
            format!(
                "is missing; without it no client can reach clusters.{}: add address = [\"{example}\"]",
                cluster.config.name
            ),
        ),
        Some(_) => {}
    }
}

fn read_networks(item: Item<'_, '_>) -> Vec<Network> {
    let items = item.list().unwrap_or_default();
    let network = |item: Item<'_, '_>| {
        let text = item.non_empty()?;
        let network = text.parse();
        network
            .map_err(|error: NotANetwork| item.problem(format!("\"{text}\" is {error}")))
            .ok()
    };
    items.into_iter().filter_map(network).collect()
}

fn read_tls(mut section: Section<'_, '_>) -> Tls {
    let client_ca = section.take("client_ca").and_then(|item| item.file());
    let more = section.take("certificates").and_then(Item::non_empty_list);
    let mut certificates: Vec<_> = read_certificate(&mut section).into_iter().collect();
    section.finish();
    for mut section in more.into_iter().flatten().filter_map(Item::table) {
        let there = section.has("certificate") || section.has("private_key");
        if !there {
            section.problem_at("", "needs certificate and private_key");
        }
        certificates.extend(read_certificate(&mut section));
        section.finish();
    }
    Tls {
        certificates,
        client_ca,
    }
}

fn read_certificate(section: &mut Section<'_, '_>) -> Option<CertificateFiles> {
    let certificate = section.take("certificate");
    let private_key = section.take("private_key");
    match (&certificate, &private_key) {
        (Some(item), None) => item.problem("needs private_key beside it"),
        (None, Some(item)) => item.problem("needs certificate beside it"),
        _ => {}
    }
    Some(CertificateFiles {
        certificate: certificate.and_then(|item| item.file())?,
        private_key: private_key.and_then(|item| item.file())?,
    })
}

/// A demand for client certificates can only be met where clients are asked for one.
fn check_client_certificates(
    doc: &Document<'_>,
    tls: &Tls,
    listen: Option<&ListenConfig>,
    clusters: &[ReadCluster],
) {
    let demands = |c: &&ReadCluster| c.config.auth.client_certificate != ClientCertificate::Off;
    for cluster in clusters.iter().filter(demands) {
        let key = format!("clusters.{}.auth.client_certificate", cluster.config.name);
        if tls.client_ca.is_none() {
            let text = "needs [tls] client_ca: the CA that signed the certificates of clients";
            doc.problem(Some(cluster.at), &key, text);
        }
        if listen.is_some_and(|listen| listen.tls == ListenTls::Off) {
            let text = "needs TLS, and [listen.postgres] has tls = \"off\"";
            doc.problem(Some(cluster.at), &key, text);
        }
    }
}

fn read_admin(mut section: Section<'_, '_>, bound: &mut Vec<(String, Address)>) -> Option<Admin> {
    let default = Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port: 7432,
    };
    let item = section.take("address");
    let token_item = section.take("token_file");
    let address = match &item {
        None => default,
        Some(item) => item.address()?,
    };
    if let (Address::Unix(_), Some(item)) = (&address, &item) {
        item.problem("the admin API needs a TCP address, such as \"127.0.0.1:7432\"");
    }
    bound.push(("admin.address".to_owned(), address.clone()));
    let token_missing = token_item.is_none();
    let token = token_item.and_then(|item| users::read_secret_file(&item, section.doc));
    if let Some(item) = item.filter(|_| token_missing && !is_loopback(&address)) {
        item.problem(format!(
            "{address} can be reached from other machines, so token_file is demanded: a file with a long random token"
        ));
    }
    section.finish();
    Some(Admin { address, token })
}

fn read_limits(mut section: Section<'_, '_>) -> Limits {
    let max_clients = section.integer("max_clients", 10_000, 1..=1_000_000);
    let threads = section.integer("threads", 0, 0..=256);
    let login_timeout = section.duration("login_timeout", 30 * SECOND, SECOND..=HOUR, None);
    let age = section.duration("max_connection_age", DAY, SECOND..=365 * DAY, Some("never"));
    let limits = Limits {
        max_clients,
        max_logins: section.integer("max_logins", 500, 1..=100_000),
        max_logins_per_address: section.integer("max_logins_per_address", 200, 1..=100_000),
        max_login_failures_per_address: section.integer(
            "max_login_failures_per_address",
            100,
            0..=1_000_000,
        ),
        login_failure_window: section.duration(
            "login_failure_window",
            60 * SECOND,
            SECOND..=DAY,
            None,
        ),
        threads: usize::try_from(threads).unwrap_or(0),
        login_timeout,
        max_connection_age: (!age.is_zero()).then_some(age),
        max_connection_age_grace: section.duration(
            "max_connection_age_grace",
            300 * SECOND,
            SECOND..=DAY,
            Some("none"),
        ),
        keepalive: section.duration("keepalive", 60 * SECOND, SECOND..=HOUR, Some("off")),
        tcp_user_timeout: section.duration(
            "tcp_user_timeout",
            30 * SECOND,
            SECOND..=HOUR,
            Some("the system's own limit"),
        ),
    };
    section.finish();
    limits
}

fn is_cluster_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=63).contains(&name.len()) && name.chars().all(plain)
}

/// Each client must find exactly one cluster.
fn check_reachable(doc: &Document<'_>, clusters: &[ReadCluster]) {
    let mut defaults: Vec<(bool, &str)> = Vec::new();
    // MySQL and MariaDB share a listener.
    let port = |c: &ReadCluster| c.config.engine.speaks_mysql();
    let mut hostnames: Vec<(&str, &str)> = Vec::new();
    for cluster in clusters {
        let config = &cluster.config;
        let key = format!("clusters.{}", config.name);
        if config.default {
            if let Some((_, other)) = defaults.iter().find(|(mysql, _)| *mysql == port(cluster)) {
                doc.problem(
                    Some(cluster.at),
                    &format!("{key}.default"),
                    format!(
                        "clusters.{other} is the default already; one cluster per listener can be"
                    ),
                );
            }
            defaults.push((port(cluster), &config.name));
        }
        for hostname in &config.hostnames {
            if let Some((_, other)) = hostnames.iter().find(|(name, _)| name == hostname) {
                doc.problem(
                    Some(cluster.at),
                    &format!("{key}.hostnames"),
                    format!("{hostname:?} already belongs to clusters.{other}"),
                );
            }
            hostnames.push((hostname, &config.name));
        }
    }
    for cluster in clusters {
        let has_default = defaults.iter().any(|(mysql, _)| *mysql == port(cluster));
        if !has_default && cluster.config.hostnames.is_empty() {
            doc.problem(
                Some(cluster.at),
                &format!("clusters.{}", cluster.config.name),
                "clients can't reach it: set default = true, or hostnames",
            );
        }
    }
}

/// A server address that is the proxy's own would make it connect to itself.
fn check_loops(doc: &Document<'_>, listeners: &[Address], clusters: &[ReadCluster]) {
    for cluster in clusters {
        let ProviderConfig::Static(provider) = &cluster.config.provider else {
            continue;
        };
        for (_, endpoint) in &provider.endpoints {
            if let Some(own) = listeners.iter().find(|own| reaches(own, endpoint)) {
                doc.problem(
                    Some(cluster.at),
                    &format!("clusters.{}.provider.endpoints", cluster.config.name),
                    format!(
                        "{endpoint} is the proxy's own listener {own}: it would connect to itself"
                    ),
                );
            }
        }
    }
}

/// True where connecting to `endpoint` surely ends at the listener `own`.
fn reaches(own: &Address, endpoint: &Address) -> bool {
    if own == endpoint {
        return true;
    }
    let (Address::Tcp { host, port }, Address::Tcp { port: to_port, .. }) = (own, endpoint) else {
        return false;
    };
    let everywhere = host == "0.0.0.0" || host == "::";
    port == to_port && everywhere && is_loopback(endpoint)
}
