//! Which start of a server a connection belongs to.

use super::connect::Connected;
use super::exec::{ExecError, query};
use crate::wire::mysql::handshake::Family;
use crate::wire::mysql::packet::PacketError;
use tokio::time::Instant;

/// One row of one column, equal on all connections to one start of a server and on no others; any account may ask.
///
/// The status variable Uptime is the statement's own time less the start's, so that both in one statement give the start
/// exactly, whatever the session's clock is set to. The end of a UUID is random since the start, and the machine's.
pub const fn started_at_sql(family: Family) -> &'static str {
    match family {
        Family::MySql => {
            "SELECT CONCAT(CAST(UNIX_TIMESTAMP() - CAST(VARIABLE_VALUE AS SIGNED) AS SIGNED), SUBSTRING(UUID(), 19)) \
             FROM performance_schema.global_status WHERE VARIABLE_NAME = 'Uptime' LIMIT 1"
        }
        Family::MariaDb => {
            "SELECT CONCAT(CAST(UNIX_TIMESTAMP() - CAST(VARIABLE_VALUE AS SIGNED) AS SIGNED), SUBSTRING(UUID(), 19)) \
             FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'UPTIME' LIMIT 1"
        }
    }
}

/// Asks a server which start of it this is.
pub async fn started_at(connected: &mut Connected, deadline: Instant) -> Result<String, ExecError> {
    let sql = started_at_sql(connected.version.family);
    let answer = query(connected, sql, deadline).await?.scalar();
    answer.ok_or_else(|| PacketError::Kind.into())
}
