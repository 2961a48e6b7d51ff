//! What client and server agree on at log-in: 32 flags of MySQL, and 32 more that MariaDB added.

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// Capability flags; MariaDB's own are the upper half.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(pub u64);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Capabilities {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }

        /// Names of the flags, for logs and errors.
        const NAMES: &[(u32, &str)] = &[$(($bit, stringify!($name))),*];
    };
}

flags! {
    /// Called `CLIENT_MYSQL` by MariaDB, which leaves it clear: then the extended flags are there.
    LONG_PASSWORD = 0;
    /// UPDATE counts rows that were found, not those that were changed.
    FOUND_ROWS = 1;
    /// Long column flags.
    LONG_FLAG = 2;
    /// A database is named at log-in.
    CONNECT_WITH_DB = 3;
    /// `database.table.column` is refused.
    NO_SCHEMA = 4;
    /// Packets are compressed with zlib.
    COMPRESS = 5;
    /// An ODBC client; without effect.
    ODBC = 6;
    /// LOAD DATA LOCAL.
    LOCAL_FILES = 7;
    /// Spaces before `(` in function calls.
    IGNORE_SPACE = 8;
    /// The protocol since 4.1.
    PROTOCOL_41 = 9;
    /// `interactive_timeout` instead of `wait_timeout`.
    INTERACTIVE = 10;
    /// TLS.
    SSL = 11;
    /// Without effect on the wire.
    IGNORE_SIGPIPE = 12;
    /// Status flags in OK packets.
    TRANSACTIONS = 13;
    /// Without effect.
    RESERVED = 14;
    /// A nonce of 20 bytes, and one byte of length before what answers it.
    SECURE_CONNECTION = 15;
    /// Several statements in one COM_QUERY.
    MULTI_STATEMENTS = 16;
    /// Several results of one COM_QUERY.
    MULTI_RESULTS = 17;
    /// Several results of one COM_STMT_EXECUTE.
    PS_MULTI_RESULTS = 18;
    /// Names of authentication plugins.
    PLUGIN_AUTH = 19;
    /// Connection attributes.
    CONNECT_ATTRS = 20;
    /// A length-encoded length before what answers the nonce.
    PLUGIN_AUTH_LENENC = 21;
    /// A session with an expired password may begin, to change it.
    CAN_HANDLE_EXPIRED_PASSWORDS = 22;
    /// Changes of session state in OK packets.
    SESSION_TRACK = 23;
    /// OK packets where EOF packets were.
    DEPRECATE_EOF = 24;
    /// Result sets may come without column definitions.
    OPTIONAL_RESULTSET_METADATA = 25;
    /// Packets are compressed with zstd.
    ZSTD_COMPRESSION = 26;
    /// Attributes in COM_QUERY and COM_STMT_EXECUTE.
    QUERY_ATTRIBUTES = 27;
    /// More than one authentication factor.
    MULTI_FACTOR_AUTHENTICATION = 28;
    /// Without effect on the wire.
    CAPABILITY_EXTENSION = 29;
    /// Only of the client's library.
    SSL_VERIFY_SERVER_CERT = 30;
    /// Only of the client's library.
    REMEMBER_OPTIONS = 31;
    /// MariaDB: progress reports in place of a reply.
    MARIADB_PROGRESS = 32;
    /// MariaDB: COM_MULTI, gone since.
    MARIADB_COM_MULTI = 33;
    /// MariaDB: COM_STMT_BULK_EXECUTE.
    MARIADB_STMT_BULK = 34;
    /// MariaDB: more about types in column definitions.
    MARIADB_EXTENDED_METADATA = 35;
    /// MariaDB: column definitions of prepared statements are sent only when they changed.
    MARIADB_CACHE_METADATA = 36;
    /// MariaDB: one result for each row of a bulk execution.
    MARIADB_BULK_UNIT_RESULTS = 37;
}

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);

    /// Decide how packets are built: what the client was promised must be there on each server connection.
    pub const STRUCTURE: Self = Self(
        Self::PROTOCOL_41.0
            | Self::TRANSACTIONS.0
            | Self::SECURE_CONNECTION.0
            | Self::PLUGIN_AUTH.0
            | Self::MULTI_STATEMENTS.0
            | Self::MULTI_RESULTS.0
            | Self::PS_MULTI_RESULTS.0
            | Self::LONG_FLAG.0
            | Self::DEPRECATE_EOF.0
            | Self::MARIADB_STMT_BULK.0
            | Self::MARIADB_EXTENDED_METADATA.0
            | Self::MARIADB_CACHE_METADATA.0
            | Self::MARIADB_BULK_UNIT_RESULTS.0,
    );

    /// Never offered to clients: a second way of building packets that nobody here reads, factors that can't be
    /// shown again to another server, replies in the middle of which something else comes, and a server that leaves the
    /// schema out of names, those of Slackwater's own questions too.
    pub const NOT_OFFERED: Self = Self(
        Self::NO_SCHEMA.0
            | Self::COMPRESS.0
            | Self::ZSTD_COMPRESSION.0
            | Self::SSL.0
            | Self::QUERY_ATTRIBUTES.0
            | Self::OPTIONAL_RESULTSET_METADATA.0
            | Self::MULTI_FACTOR_AUTHENTICATION.0
            | Self::MARIADB_PROGRESS.0
            | Self::MARIADB_COM_MULTI.0
            | Self::MARIADB_EXTENDED_METADATA.0
            | Self::MARIADB_CACHE_METADATA.0,
    );

    /// All of `other` are here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These but `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// MySQL's flags, as packets have them.
    pub const fn lower(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// MariaDB's flags, as packets have them.
    pub const fn extended(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// From both halves.
    pub const fn from_halves(lower: u32, extended: u32) -> Self {
        Self(lower as u64 | (extended as u64) << 32)
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Capabilities {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (_, name) in NAMES.iter().filter(|(bit, _)| self.0 & (1 << bit) != 0) {
            f.write_str(if first { "" } else { " " })?;
            f.write_str(name)?;
            first = false;
        }
        Ok(())
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves() {
        // What MariaDB 10.11 offers.
        let offered = Capabilities::from_halves(0x81ff_f7fe, 0x1d);
        assert!(!offered.contains(Capabilities::LONG_PASSWORD));
        assert!(offered.contains(Capabilities::MARIADB_PROGRESS | Capabilities::MARIADB_STMT_BULK));
        assert!(!offered.contains(Capabilities::MARIADB_COM_MULTI | Capabilities::COMPRESS));
        assert_eq!((offered.lower(), offered.extended()), (0x81ff_f7fe, 0x1d));
        let two = Capabilities::SSL | Capabilities::COMPRESS;
        assert_eq!(two.to_string(), "COMPRESS SSL");
        assert_eq!(two.without(Capabilities::SSL), Capabilities::COMPRESS);
    }
}
