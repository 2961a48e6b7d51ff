//! What the live tests of MySQL and MariaDB stand on: servers, the proxy, clients, the ledger, a load.

#[path = "../../live/support/admin.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
pub(crate) mod admin;
pub(crate) mod client;
pub(crate) mod direct;
#[path = "../../common/guard.rs"]
mod guard;
pub(crate) mod ledger;
#[path = "../../common/ports.rs"]
pub(crate) mod ports;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod server;
pub(crate) mod sysbench;
#[path = "../../common/waiting.rs"]
mod waiting;

pub(crate) use waiting::{EVENT, SOON, sized, wait_for, wait_until};
