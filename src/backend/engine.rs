//! Which kind of database a cluster is.

use crate::wire::mysql::handshake::Family;
use std::fmt;

/// A database engine, as `engine` in proxy.toml names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Engine {
    /// PostgreSQL.
    #[default]
    Postgres,
    /// MySQL.
    Mysql,
    /// MariaDB.
    Mariadb,
}

impl Engine {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Mysql, Self::Mariadb];

    /// Its name in proxy.toml and in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
        }
    }

    /// Its name for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MySQL",
            Self::Mariadb => "MariaDB",
        }
    }

    /// Whether clients speak MySQL's protocol with it, and come in by `[listen.mysql]`.
    pub const fn speaks_mysql(self) -> bool {
        matches!(self, Self::Mysql | Self::Mariadb)
    }
}

impl From<Engine> for Family {
    /// Which descendant of MySQL an engine is; PostgreSQL is none, and is not asked about.
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Mariadb => Self::MariaDb,
            Engine::Mysql | Engine::Postgres => Self::MySql,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
