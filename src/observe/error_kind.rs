//! Who is at fault: the label of `slackwater_errors_total`, and a field of logs.

use std::fmt;

/// Who is at fault for an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The client: a wrong password, a message that isn't one, an unknown database.
    Client,
    /// Slackwater itself.
    Proxy,
    /// The database server: it is away, or answers what it must not.
    Server,
    /// What creates and stops servers.
    Provider,
    /// A configured limit was reached.
    Limit,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Client,
        Self::Proxy,
        Self::Server,
        Self::Provider,
        Self::Limit,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Server => "server",
            Self::Provider => "provider",
            Self::Limit => "limit",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an error was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// On a client's connection.
    Client,
    /// On a server connection.
    Server,
    /// In a scale event, a provider or the admin API.
    Control,
}

impl Side {
    /// All sides.
    pub const ALL: [Self; 3] = [Self::Client, Self::Server, Self::Control];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Control => "control",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
