//! Errors of Slackwater's own, in the engine's numbers and words.

use crate::wire::mysql::auth::ErrorPacket;

/// No place: before a log-in has begun it has no SQLSTATE.
pub fn too_many_connections() -> ErrorPacket {
    ErrorPacket::new(1040, *b"08004", "Too many connections")
}

/// The same to who was not listened to at all.
pub fn turned_away() -> ErrorPacket {
    ErrorPacket {
        state: None,
        ..too_many_connections()
    }
}

/// Too many failures of this address. Also before a log-in has begun.
pub fn host_is_blocked(host: &str) -> ErrorPacket {
    ErrorPacket {
        code: 1129,
        state: None,
        message: format!(
            "Host '{host}' is blocked because of many failed logins; try again later (max_login_failures_per_address of the proxy is reached)"
        ),
    }
}

/// What can't be read.
pub fn bad_handshake() -> ErrorPacket {
    ErrorPacket::new(1043, *b"08S01", "Bad handshake")
}

/// Nobody is told whether it is the name or the password.
pub fn access_denied(user: &[u8], host: &str, password: bool) -> ErrorPacket {
    let user = String::from_utf8_lossy(user);
    let password = if password { "YES" } else { "NO" };
    ErrorPacket::new(
        1045,
        *b"28000",
        format!("Access denied for user '{user}'@'{host}' (using password: {password})"),
    )
}

/// The proxy goes.
pub fn shutting_down() -> ErrorPacket {
    ErrorPacket::new(1053, *b"08S01", "Server shutdown in progress")
}

/// A proxy has no server for its client now.
pub fn no_server(text: &str) -> ErrorPacket {
    ErrorPacket::new(1105, *b"HY000", text)
}

/// The client took too long.
pub fn too_slow() -> ErrorPacket {
    ErrorPacket::new(1159, *b"08S01", "Got timeout reading communication packets")
}

/// It can't do what its account needs.
pub fn old_client() -> ErrorPacket {
    ErrorPacket::new(
        1251,
        *b"08004",
        "Client does not support authentication protocol requested by server; consider upgrading MySQL client",
    )
}

/// TLS is demanded.
pub fn insecure_transport() -> ErrorPacket {
    ErrorPacket::new(
        3159,
        *b"HY000",
        "Connections using insecure transport are prohibited while --require_secure_transport=ON.",
    )
}

/// It asks for a level of zstd that there is not.
pub fn wrong_compression_level() -> ErrorPacket {
    ErrorPacket::new(
        3923,
        *b"HY000",
        "Invalid zstd compression level for algorithm 'zstd'.",
    )
}
