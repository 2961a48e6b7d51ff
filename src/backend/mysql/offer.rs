//! What clients are greeted with before any server connection exists: what a real server of the cluster said.

use crate::auth::mysql::Plugin;
use crate::wire::mysql::capabilities::Capabilities;
use crate::wire::mysql::handshake::{Family, Greeting, Nonce, Version};
use bytes::Bytes;

/// What a cluster's servers offer; learned at each log-in, and kept for the time when they are away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The server's version.
    pub version: Version,
    /// What the server can do and clients may have, TLS and compression aside.
    pub capabilities: Capabilities,
    /// Its default collation, the low byte.
    pub charset: u8,
    /// Status flags of a new session.
    pub status: u16,
    /// What accounts are made with when nothing else is said.
    pub plugin: Plugin,
}

impl Offer {
    /// From a server's greeting.
    pub fn learn(greeting: &Greeting) -> Self {
        let flag = Capabilities::LONG_PASSWORD;
        let is_mariadb = !greeting.capabilities.contains(flag);
        let version = Version::parse(&greeting.version, is_mariadb);
        // A plugin that only servers know is asked for by a switch.
        let plugin = Plugin::of(&greeting.plugin).unwrap_or(Plugin::Native);
        Self {
            version,
            capabilities: greeting.capabilities.without(Capabilities::NOT_OFFERED),
            charset: greeting.charset,
            status: greeting.status,
            plugin,
        }
    }

    /// What both can do. A client keeps what it was promised for its whole life, on whichever server.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            capabilities: self.capabilities & other.capabilities,
            ..self.clone()
        }
    }

    /// Which descendant.
    pub const fn family(&self) -> Family {
        self.version.family
    }

    /// The greeting of a client.
    pub fn greeting(&self, connection_id: u32, nonce: Nonce, extra: Capabilities) -> Greeting {
        Greeting {
            version: self.version.text.clone(),
            connection_id,
            nonce,
            capabilities: self.capabilities | extra,
            charset: self.charset,
            status: self.status,
            plugin: Bytes::from_static(self.plugin.name().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(text: &'static str, capabilities: Capabilities, plugin: &'static str) -> Greeting {
        Greeting {
            version: Bytes::from_static(text.as_bytes()),
            connection_id: 7,
            nonce: [b'x'; 20],
            capabilities,
            charset: 45,
            status: 2,
            plugin: Bytes::from_static(plugin.as_bytes()),
        }
    }

    #[test]
    fn what_is_learned_of_each_family() {
        let mariadb = Offer::learn(&greeting(
            "5.5.5-10.11.19-MariaDB",
            Capabilities::from_halves(0x81ff_f7fe, 0x1d),
            "mysql_native_password",
        ));
        assert_eq!(
            (mariadb.family(), mariadb.plugin),
            (Family::MariaDb, Plugin::Native)
        );
        let kept = mariadb.capabilities;
        assert!(kept.contains(Capabilities::MARIADB_STMT_BULK | Capabilities::DEPRECATE_EOF));
        assert_eq!(kept & Capabilities::NOT_OFFERED, Capabilities::NONE);
        let mysql = Offer::learn(&greeting(
            "9.7.4",
            Capabilities::from_halves(0xdfff_ffff, 0),
            "caching_sha2_password",
        ));
        assert_eq!(
            (mysql.family(), mysql.plugin),
            (Family::MySql, Plugin::CachingSha2)
        );
        let told = mysql.greeting(99, [b'n'; 20], Capabilities::SSL);
        assert_eq!(
            (told.connection_id, &told.plugin[..]),
            (99, &b"caching_sha2_password"[..])
        );
        assert!(told.capabilities.contains(Capabilities::SSL));
        let both = mysql.and(&mariadb);
        assert!(!both.capabilities.contains(Capabilities::MARIADB_STMT_BULK));
        assert_eq!(both.version, mysql.version);
    }
}
