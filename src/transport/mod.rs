//! Sockets and TLS, for clients and towards servers.

pub mod client_certificate;
pub mod codec;
mod compressed;
mod end_point;
pub mod proxy_header;
pub mod self_made;
mod served;
pub mod server_certificate;
pub mod socket;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where to listen, or to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host name or IP address, and port.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// TLS on a listener (`tls = ...`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenTls {
    /// SSLRequest is answered N.
    Off,
    /// The client chooses.
    Prefer,
    /// Clients without TLS are refused.
    Require,
}

/// TLS towards a server (`server_tls = ...`), with libpq's meanings of the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerTls {
    /// Never.
    Disable,
    /// If the server has it; the certificate is not checked.
    Prefer,
    /// Always; the certificate is not checked.
    Require,
    /// Always; the certificate's chain is checked.
    VerifyCa,
    /// Always; chain and host name are checked.
    VerifyFull,
}

/// How sockets are set up, on both legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketConfig {
    /// Idle time before the first probe, and between probes. Zero: off.
    pub keepalive: Duration,
    /// How long sent data may stay unacknowledged. Zero: the system's own limit.
    pub tcp_user_timeout: Duration,
    /// The PROXY header that connections to servers begin with (`server_proxy_protocol = ...`).
    pub proxy_protocol: Option<proxy_header::Version>,
}
