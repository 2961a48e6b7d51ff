//! What the live tests stand on: servers, the proxy, a raw client, scripts, the ledger.

pub(crate) mod admin;
pub(crate) mod direct;
#[path = "../../common/guard.rs"]
mod guard;
pub(crate) mod ledger;
pub(crate) mod middle;
#[path = "../../common/mysql.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
pub(crate) mod mysql;
pub(crate) mod pgbench;
#[path = "../../common/ports.rs"]
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod script;
pub(crate) mod scripts;
#[path = "../../common/servers.rs"]
pub(crate) mod servers;
#[path = "../../common/waiting.rs"]
mod waiting;
pub(crate) mod wire;

pub(crate) use waiting::{EVENT, SOON, full, sized, skipped, wait_for, wait_until};
