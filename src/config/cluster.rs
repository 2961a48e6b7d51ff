//! `[clusters.NAME]`: everything of one cluster but its provider.

use super::document::{Item, Section};
use super::top::ReadCluster;
use super::{
    AuthConfig, AuthMethod, AuthSource, CapacityConfig, ClientCertificate, ClusterConfig,
    OnTimeout, ProviderConfig, ScalingConfig, Secret, ServiceAccount, SessionsConfig, provider,
    users,
};
use crate::backend::{Capacity, Engine};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Largest capacity that can be written, in ACU.
const MAX_ACU: u32 = 65_536;
/// Largest capacity when `max` is left out, in ACU.
const DEFAULT_MAX: u32 = 16;
/// The sizes of Aurora Serverless v1 for PostgreSQL.
const POSTGRES_LADDER: [u32; 8] = [2, 4, 8, 16, 32, 64, 192, 384];
/// The sizes of Aurora Serverless v1 for MySQL.
const MYSQL_LADDER: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The service account of a local server, which `local` makes, when `service_user` is left out.
const LOCAL_SERVICE_USER: &str = "slackwater";

/// Kinds of state that `sessions.on_blocker` names, for each kind of engine.
const POSTGRES_BLOCKERS: &[&str] = &["advisory_lock", "listen", "temp_table", "hold_cursor"];
const MYSQL_BLOCKERS: &[&str] = &["user_lock", "temp_table"];

const METHODS: [(&str, AuthMethod); 4] = [
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("md5", AuthMethod::Md5),
    ("password", AuthMethod::Password),
    ("cert", AuthMethod::Cert),
];

const CLIENT_CERTIFICATES: [(&str, ClientCertificate); 3] = [
    ("off", ClientCertificate::Off),
    ("verify-ca", ClientCertificate::VerifyCa),
    ("verify-full", ClientCertificate::VerifyFull),
];

/// Reads one cluster. `at` is the offset of its name.
pub(super) fn read(name: String, at: usize, mut section: Section<'_, '_>) -> Option<ReadCluster> {
    let engine = section
        .require(
            "engine",
            "write engine = \"postgres\", \"mysql\" or \"mariadb\"",
        )
        .and_then(|item| item.word(&Engine::ALL.map(|engine| (engine.name(), engine))));
    // What else is wrong is told as well; with the engine unknown, PostgreSQL's keys are as good as any.
    let kind = engine.unwrap_or_default();
    let default = section
        .take("default")
        .and_then(|item| item.boolean())
        .unwrap_or(false);
    let hostnames = read_hostnames(section.take("hostnames"));
    let auth = section.table("auth");
    let capacity = section.table("capacity");
    let scaling = read_scaling(section.table("scaling"));
    let sessions = read_sessions(section.table("sessions"), kind);
    let provider = section
        .require(
            "provider",
            "add a table with kind = \"static\" or kind = \"local\"",
        )
        .and_then(Item::table)
        .and_then(|section| provider::read(section, kind));
    // A provider with a mistake of its own is told that first.
    let foreign = matches!(provider, Some(ProviderConfig::Static(_)));
    let auth = read_auth(auth, foreign, kind);
    let capacity = read_capacity(capacity, provider.as_ref(), kind);
    section.finish();
    Some(ReadCluster {
        at,
        config: ClusterConfig {
            name,
            engine: engine?,
            default,
            hostnames,
            auth: auth?,
            capacity: capacity?,
            scaling,
            sessions,
            provider: provider?,
        },
    })
}

fn read_hostnames(item: Option<Item<'_, '_>>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for item in item.and_then(Item::list).unwrap_or_default() {
        let Some(name) = item.string().map(str::to_ascii_lowercase) else {
            continue;
        };
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            item.problem(format!(
                "{name:?} is not a host name; write the whole name, without port, wildcard or final dot"
            ));
        } else if names.contains(&name) {
            item.problem(format!("{name:?} is named twice"));
        } else {
            names.push(name);
        }
    }
    names
}

/// `foreign`: others made the servers, so their service account must be named.
fn read_auth(mut section: Section<'_, '_>, foreign: bool, engine: Engine) -> Option<AuthConfig> {
    let mysql = engine.speaks_mysql();
    if mysql {
        // Each account says itself how its password is proven, and there is no database to connect to.
        let keys = [
            "method",
            "client_certificate",
            "service_database",
            "auth_query",
        ];
        section.refuse(&keys, &only(&[Engine::Postgres], engine));
    }
    let method_item = section.take("method");
    let method = method_item.as_ref().and_then(|item| item.word(&METHODS));
    let certificate_item = section.take("client_certificate");
    let certificate = certificate_item
        .as_ref()
        .and_then(|item| item.word(&CLIENT_CERTIFICATES));
    let user = section.take("service_user");
    let database = section.take("service_database");
    let query = section.take("auth_query");
    let file = section.take("service_password_file");
    let inline = section.take("service_password");
    let users = section.take("users_file");

    if let (Some(item), Some(_)) = (&inline, &file) {
        item.problem("stands beside service_password_file; keep one of the two");
    }
    if foreign && user.is_none() {
        for item in [&database, &query, &file, &inline].into_iter().flatten() {
            item.problem("needs service_user beside it");
        }
    }
    if let (Some(item), Some(_)) = (&query, &users) {
        item.problem("is never asked beside users_file; keep one of the two");
    }
    if let Some((text, item)) = query.as_ref().and_then(|item| Some((item.string()?, item)))
        && !text.contains("$1")
    {
        item.problem("must contain $1, which stands for the user's name");
    }
    if foreign && user.is_none() && users.is_none() {
        section.problem_at(
            "",
            "says nobody may log in: set service_user (verifiers then come from the server) or users_file",
        );
    }
    let password = match (&file, &inline) {
        (Some(item), _) => users::read_secret_file(item, section.doc),
        (None, Some(item)) => item.non_empty().map(Secret::new),
        (None, None) => None,
    };
    let user = match user {
        Some(item) => item.non_empty(),
        None => (!foreign).then(|| LOCAL_SERVICE_USER.to_owned()),
    };
    let service = user.map(|user| ServiceAccount {
        user,
        database: database
            .and_then(|item| item.non_empty())
            .unwrap_or_else(|| if mysql { "" } else { "postgres" }.to_owned()),
        password,
    });
    let source = match users {
        Some(item) => users::read_users(&item, section.doc, engine)
            .map(|(path, users)| AuthSource::Users { path, users }),
        None => Some(AuthSource::Server {
            query: query.and_then(|item| item.non_empty()),
        }),
    };
    section.finish();
    let by_certificate = method == Some(AuthMethod::Cert);
    if let Some(item) = method_item.filter(|_| by_certificate) {
        check_cert(&item, source.as_ref());
    }
    if let Some(item) = certificate_item
        && by_certificate
        && certificate != Some(ClientCertificate::VerifyFull)
    {
        item.problem("method = \"cert\" is verify-full; leave client_certificate out");
    }
    let demanded = certificate.unwrap_or(ClientCertificate::Off);
    Some(AuthConfig {
        method: method.unwrap_or(AuthMethod::ScramSha256),
        client_certificate: if by_certificate {
            ClientCertificate::VerifyFull
        } else {
            demanded
        },
        source: source?,
        service,
    })
}

/// Without a password of the client's, its user's password for the server must be known from elsewhere.
fn check_cert(item: &Item<'_, '_>, source: Option<&AuthSource>) {
    match source {
        None => {}
        Some(AuthSource::Server { .. }) => item.problem(
            "needs users_file with each user's password: Slackwater logs in to the server with it, and a certificate gives none",
        ),
        Some(AuthSource::Users { users, .. }) => {
            let is_password = |text: &str| {
                matches!(
                    crate::auth::Verifier::parse(text),
                    Err(crate::auth::verifier::VerifierError::Unknown)
                )
            };
            if let Some((name, _)) = users.iter().find(|(_, s)| !is_password(s.reveal())) {
                item.problem(format!(
                    "needs each user's password in users_file, and that of {name:?} is a verifier, which can't log in to a server"
                ));
            }
        }
    }
}

fn read_capacity(
    mut section: Section<'_, '_>,
    provider: Option<&ProviderConfig>,
    engine: Engine,
) -> Option<CapacityConfig> {
    let min = section.take("min");
    let max = section.take("max");
    let ladder = section.take("ladder").and_then(read_ladder);
    if let Some(item) = section.take("auto_pause_after")
        && item
            .duration(Duration::ZERO..=365 * DAY, None)
            .is_some_and(|d| !d.is_zero())
    {
        item.later(
            "pausing",
            "set auto_pause_after = \"0\" (never), or leave it out",
        );
    }
    section.reject_unknown();

    let offered: Option<Vec<u32>> = match provider? {
        ProviderConfig::Static(p) => Some(p.endpoints.iter().map(|(c, _)| c.0).collect()),
        ProviderConfig::Local(_) => None,
    };
    let explicit = ladder.is_some();
    let ladder = ladder.or_else(|| offered.clone()).unwrap_or_else(|| {
        if engine.speaks_mysql() {
            MYSQL_LADDER.to_vec()
        } else {
            POSTGRES_LADDER.to_vec()
        }
    });
    // For a static cluster without a ladder of its own, bounds beside its endpoints only narrow.
    let exact = explicit || offered.is_none();
    let bound = |item: Option<&Item<'_, '_>>, default: u32| {
        let Some(item) = item else {
            return Some(default);
        };
        let value = item.integer(0..=MAX_ACU)?;
        if value == 0 {
            item.later("capacity 0 (pause)", "the smallest capacity is 1");
            return None;
        }
        if exact && !ladder.contains(&value) {
            item.problem(format!(
                "{value} is not on the ladder {ladder:?}; set ladder or choose one of these"
            ));
            return None;
        }
        Some(value)
    };
    let low = bound(min.as_ref(), *ladder.first()?)?;
    let highest = *ladder.last()?;
    let default_max = if offered.is_some() || explicit {
        highest
    } else {
        DEFAULT_MAX.max(low)
    };
    let high = bound(max.as_ref(), default_max)?;
    if low > high {
        let message = format!("min is {low} and max is {high}; min must not be above max");
        match (&min, &max) {
            (Some(item), _) | (None, Some(item)) => item.problem(message),
            (None, None) => {}
        }
        return None;
    }
    let wanted: Vec<u32> = ladder
        .into_iter()
        .filter(|c| (low..=high).contains(c))
        .collect();
    let usable: Vec<u32> = match &offered {
        Some(offered) => wanted
            .iter()
            .copied()
            .filter(|c| offered.contains(c))
            .collect(),
        None => wanted.clone(),
    };
    let (Some(first), Some(last)) = (usable.first().copied(), usable.last().copied()) else {
        section.problem_at(
            "",
            format!("no endpoint has a capacity from {low} to {high}"),
        );
        return None;
    };
    if explicit && wanted != usable {
        section.warn(format_args!(
            "only {usable:?} have an endpoint, so only these of the ladder {wanted:?} can be chosen"
        ));
    }
    Some(CapacityConfig {
        min: Capacity(first),
        max: Capacity(last),
        ladder: usable.into_iter().map(Capacity).collect(),
    })
}

fn read_ladder(item: Item<'_, '_>) -> Option<Vec<u32>> {
    let mut ladder = Vec::new();
    for item in item.non_empty_list()? {
        let value = item.integer(1..=MAX_ACU)?;
        if ladder.last().is_some_and(|last| *last >= value) {
            item.problem("the ladder ascends, each capacity larger than the one before");
            return None;
        }
        ladder.push(value);
    }
    Some(ladder)
}

fn read_scaling(mut section: Section<'_, '_>) -> ScalingConfig {
    if let Some(item) = section.take("auto")
        && item.boolean() == Some(true)
    {
        item.later(
            "scaling by itself",
            "set auto = false and use `slackwater scale`",
        );
    }
    let scaling_point_timeout =
        section.duration("scaling_point_timeout", 300 * SECOND, SECOND..=DAY, None);
    let on_timeout = section
        .take("on_timeout")
        .and_then(|item| {
            item.word(&[
                ("rollback", OnTimeout::Rollback),
                ("force", OnTimeout::Force),
            ])
        })
        .unwrap_or(OnTimeout::Rollback);
    let max_hold = section.duration(
        "max_hold",
        SECOND,
        Duration::from_millis(10)..=60 * SECOND,
        None,
    );
    let max_outage = section.duration("max_outage", 60 * SECOND, SECOND..=HOUR, None);
    for (key, thresholds, pauses) in [
        (
            "scale_up",
            ["cpu_above", "connections_above"],
            [].as_slice(),
        ),
        (
            "scale_down",
            ["cpu_below", "connections_below"],
            ["cooldown_after_up", "cooldown_after_down"].as_slice(),
        ),
    ] {
        let mut table = section.table(key);
        for name in thresholds {
            if let Some(item) = table.take(name) {
                item.number(0.0..=1.0);
            }
        }
        for name in pauses {
            table.duration(name, Duration::ZERO, Duration::ZERO..=DAY, None);
        }
        table.finish();
    }
    section.finish();
    ScalingConfig {
        scaling_point_timeout,
        on_timeout,
        max_hold,
        max_outage,
    }
}

/// Why a key is refused in a cluster of this `engine`.
fn only(owners: &[Engine], engine: Engine) -> String {
    let owners: Vec<_> = owners.iter().map(|e| e.title()).collect();
    format!(
        "is only there for {}, and this cluster has engine = \"{engine}\": leave it out",
        owners.join(" and ")
    )
}

fn read_sessions(mut section: Section<'_, '_>, engine: Engine) -> SessionsConfig {
    let mysql = engine.speaks_mysql();
    if mysql {
        section.refuse(&["custom_settings"], &only(&[Engine::Postgres], engine));
    } else {
        let owners = [Engine::Mysql, Engine::Mariadb];
        section.refuse(&["diagnostics_wait"], &only(&owners, engine));
    }
    if let Some(item) = section.take("pooling") {
        match item.string() {
            Some("session") | None => {}
            Some("transaction") => item.later("pooling = \"transaction\"", "use \"session\""),
            Some(other) => item.problem(format!("{other:?} is no kind of pooling; \"session\" is")),
        }
    }
    let park_after = section.duration("park_after", Duration::ZERO, SECOND..=DAY, Some("never"));
    let snapshot_after = section.duration(
        "snapshot_after",
        SECOND,
        Duration::from_millis(100)..=DAY,
        None,
    );
    let diagnostics_wait = mysql.then(|| {
        let range = Duration::ZERO..=60 * SECOND;
        section.duration("diagnostics_wait", Duration::from_millis(100), range, None)
    });
    let custom_settings = if mysql {
        Vec::new()
    } else {
        read_custom_settings(section.take("custom_settings"))
    };
    let max_server_connections = section.integer("max_server_connections", 90, 3..=100_000);
    let mut blockers = section.table("on_blocker");
    let (kinds, others, owner) = if mysql {
        (MYSQL_BLOCKERS, POSTGRES_BLOCKERS, Engine::Postgres)
    } else {
        (POSTGRES_BLOCKERS, MYSQL_BLOCKERS, Engine::Mysql)
    };
    let foreign: Vec<_> = others
        .iter()
        .filter(|k| !kinds.contains(k))
        .copied()
        .collect();
    blockers.refuse(&foreign, &only(&[owner], engine));
    for &kind in kinds {
        if let Some(item) = blockers.take(kind) {
            match item.string() {
                Some("block") | None => {}
                Some("move") => item.later(&format!("moving {kind}"), "use \"block\""),
                Some(other) => item.problem(format!("{other:?} is not possible; \"block\" is")),
            }
        }
    }
    let ends_replication = blockers
        .take("replication")
        .and_then(|item| item.word(&[("block", false), ("terminate", true)]))
        .unwrap_or(false);
    blockers.finish();
    section.finish();
    SessionsConfig {
        park_after: (!park_after.is_zero()).then_some(park_after),
        snapshot_after,
        diagnostics_wait: diagnostics_wait.unwrap_or_default(),
        custom_settings,
        ends_replication,
        max_server_connections,
    }
}

fn read_custom_settings(item: Option<Item<'_, '_>>) -> Vec<String> {
    let mut names = Vec::new();
    for item in item.and_then(Item::list).unwrap_or_default() {
        let Some(name) = item.string() else { continue };
        let part = |p: &str| {
            !p.starts_with(|c: char| c.is_ascii_digit() || c == '$')
                && !p.is_empty()
                && p.chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii())
        };
        if name.len() > 127 || !name.contains('.') || !name.split('.').all(part) {
            item.problem(format!(
                "{name:?} is not a custom setting; write a name such as \"app.tenant\""
            ));
        } else {
            names.push(name.to_owned());
        }
    }
    names
}
