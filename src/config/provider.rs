//! `[clusters.NAME.provider]`: what runs a cluster's servers.

use super::document::{Item, Section};
use super::{LocalProvider, ProviderConfig, StaticProvider};
use crate::backend::{Capacity, Engine};
use crate::provider::{StandbyKeys, Switch};
use crate::transport::proxy_header::Version;
use crate::transport::{Address, ServerTls};
use std::time::Duration;

/// Largest capacity that an endpoint can have, in ACU.
const MAX_ACU: u32 = 65_536;
/// Memory of one ACU when `memory_per_acu` is left out, in bytes: that of Aurora.
const MEMORY_PER_ACU: u64 = 2 << 30;
/// Processors of one ACU when `cpu_per_acu` is left out: those of Aurora's instance sizes.
const CPU_PER_ACU: f64 = 0.25;

const SERVER_TLS: [(&str, ServerTls); 5] = [
    ("disable", ServerTls::Disable),
    ("prefer", ServerTls::Prefer),
    ("require", ServerTls::Require),
    ("verify-ca", ServerTls::VerifyCa),
    ("verify-full", ServerTls::VerifyFull),
];

const PROXY_PROTOCOLS: [(&str, Option<Version>); 3] = [
    ("off", None),
    ("v1", Some(Version::V1)),
    ("v2", Some(Version::V2)),
];

const SWITCHES: [(&str, Switch); 2] = [("restart", Switch::Restart), ("standby", Switch::Standby)];

/// Reads a provider by its `kind`.
pub(super) fn read(mut section: Section<'_, '_>, engine: Engine) -> Option<ProviderConfig> {
    let kind = section.require("kind", "write kind = \"static\" or kind = \"local\"")?;
    match kind.string()? {
        "static" => read_static(section).map(ProviderConfig::Static),
        "local" => read_local(section, engine).map(ProviderConfig::Local),
        name @ ("exec" | "kubernetes") => {
            kind.later(&format!("provider {name:?}"), "use \"static\" or \"local\"");
            None
        }
        other => {
            kind.problem(format!(
                "{other:?} is no kind of provider; \"static\" and \"local\" are"
            ));
            None
        }
    }
}

fn read_static(mut section: Section<'_, '_>) -> Option<StaticProvider> {
    let endpoints = section
        .require(
            "endpoints",
            "write endpoints = [{ capacity = 2, address = \"10.0.0.5:5432\" }]",
        )
        .and_then(read_endpoints);
    let tls = section
        .take("server_tls")
        .and_then(|item| item.word(&SERVER_TLS))
        .unwrap_or(ServerTls::Prefer);
    let ca = section.take("server_ca");
    if let Some(item) = &ca
        && !matches!(tls, ServerTls::VerifyCa | ServerTls::VerifyFull)
    {
        item.problem("is only looked at with server_tls = \"verify-ca\" or \"verify-full\"");
    }
    let ca = ca.and_then(|item| item.file());
    let proxy_protocol = section
        .take("server_proxy_protocol")
        .and_then(|item| item.word(&PROXY_PROTOCOLS))
        .flatten();
    section.finish();
    Some(StaticProvider {
        endpoints: endpoints?,
        tls,
        ca,
        proxy_protocol,
    })
}

fn read_endpoints(item: Item<'_, '_>) -> Option<Vec<(Capacity, Address)>> {
    let mut endpoints: Vec<(Capacity, Address)> = Vec::new();
    let mut complete = true;
    for item in item.non_empty_list()? {
        let Some(mut section) = item.table() else {
            complete = false;
            continue;
        };
        let capacity = section
            .require("capacity", "each endpoint has one")
            .and_then(|item| {
                let value = item.integer(1..=MAX_ACU)?;
                if endpoints.iter().any(|(c, _)| c.0 == value) {
                    item.problem(format!("another endpoint has capacity {value} already"));
                }
                Some(Capacity(value))
            });
        let address = section
            .require(
                "address",
                "each endpoint has one, such as \"10.0.0.5:5432\"",
            )
            .and_then(|item| item.address());
        match (capacity, address) {
            (Some(capacity), Some(address)) => endpoints.push((capacity, address)),
            _ => complete = false,
        }
        section.finish();
    }
    endpoints.sort_by_key(|(capacity, _)| *capacity);
    complete.then_some(endpoints)
}

fn read_local(mut section: Section<'_, '_>, engine: Engine) -> Option<LocalProvider> {
    section.refuse(
        &["server_proxy_protocol"],
        "is only there for kind = \"static\": a local server is reached over its Unix socket, and takes no PROXY header there; leave it out",
    );
    let data_dir = section
        .require("data_dir", "it is the directory of the server's data")
        .and_then(|item| {
            let path = item.path()?;
            if path.exists() && !path.is_dir() {
                item.problem(format!("{} is not a directory", path.display()));
                return None;
            }
            Some(path)
        });
    let binaries = section.take("binaries").and_then(|item| {
        let path = item.path()?;
        let program = match engine {
            Engine::Postgres => "postgres",
            Engine::Mysql => "mysqld",
            Engine::Mariadb => "mariadbd",
        };
        if !path.join(program).is_file() {
            item.problem(format!(
                "{} has no program named {program}; leave binaries out to have it found",
                path.display()
            ));
        }
        Some(path)
    });
    let switch = section
        .take("switch")
        .and_then(|item| item.word(&SWITCHES))
        .unwrap_or_default();
    let standby = read_standby(&mut section, switch, engine);
    let memory_per_acu = section
        .take("memory_per_acu")
        .and_then(|item| item.bytes((64 << 20)..=(1 << 40)))
        .unwrap_or(MEMORY_PER_ACU);
    let cpu_per_acu = section
        .take("cpu_per_acu")
        .and_then(|item| item.number(0.01..=1024.0))
        .unwrap_or(CPU_PER_ACU);
    section.finish();
    Some(LocalProvider {
        data_dir: data_dir?,
        binaries,
        switch,
        standby,
        memory_per_acu,
        cpu_per_acu,
    })
}

/// Keys of `switch = "standby"`.
fn read_standby(section: &mut Section<'_, '_>, switch: Switch, engine: Engine) -> StandbyKeys {
    let mut keys = StandbyKeys::default();
    let mut take = |key| {
        let item = section.take(key)?;
        if switch != Switch::Standby {
            item.problem("is only looked at with switch = \"standby\"");
        }
        Some(item)
    };
    if let Some(item) = take("stop_timeout")
        && let Some(stop) = item.duration(Duration::from_secs(1)..=Duration::from_mins(10), None)
    {
        keys.stop = stop;
    }
    if let Some(item) = take("catch_up_timeout")
        && let Some(catch_up) =
            item.duration(Duration::from_secs(1)..=Duration::from_hours(24), None)
    {
        keys.catch_up = catch_up;
    }
    let wal_keep_size = take("wal_keep_size");
    if let Some(item) = &wal_keep_size
        && engine.speaks_mysql()
    {
        item.problem(
            "is PostgreSQL's; for MySQL and MariaDB set binlog_expire_logs_seconds in data_dir/my.cnf",
        );
    }
    if let Some(item) = wal_keep_size
        && let Some(bytes) = item.bytes((64 << 20)..=(1 << 40))
    {
        keys.wal_keep_bytes = bytes;
    }
    keys
}
