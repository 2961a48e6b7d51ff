//! Accounts and databases of MySQL and MariaDB, as statements. Both keep passwords out of their logs.

use super::super::super::ProviderError;
use super::super::LocalProvider;
use crate::backend::{Endpoint, Engine};

/// What the first start of a data directory runs, one statement per line: the service account, with every right,
/// over the Unix socket only. Nobody else gets in without a password of his own: MySQL's root is locked, MariaDB's is
/// for the system's own accounts.
pub(super) fn first(engine: Engine, user: &str, password: &str) -> String {
    let account = format!("{}@'localhost'", literal(user));
    let password = literal(password);
    let mut statements = vec![
        format!("CREATE USER IF NOT EXISTS {account} IDENTIFIED BY {password}"),
        format!("ALTER USER {account} IDENTIFIED BY {password}"),
        format!("GRANT ALL PRIVILEGES ON *.* TO {account} WITH GRANT OPTION"),
    ];
    if engine == Engine::Mariadb {
        // It runs them without grant tables, until it is told to read them.
        statements.insert(0, "FLUSH PRIVILEGES".to_owned());
    } else if user != "root" {
        statements.push("ALTER USER 'root'@'localhost' ACCOUNT LOCK".to_owned());
    }
    statements.join(";\n") + ";\n"
}

impl LocalProvider {
    /// An account that can come from anywhere: through Slackwater it comes by the Unix socket.
    pub(in super::super) async fn create_account(
        &self,
        at: &Endpoint,
        name: &str,
        password: &str,
    ) -> Result<(), ProviderError> {
        let account = format!("{}@'%'", literal(name));
        let secret = literal(password);
        let made = format!("CREATE USER IF NOT EXISTS {account} IDENTIFIED BY {secret}");
        self.ask(at, &made).await?;
        let set = format!("ALTER USER {account} IDENTIFIED BY {secret}");
        self.ask(at, &set).await.map(drop)
    }

    /// A database in which `owner` may do everything.
    pub(in super::super) async fn create_schema(
        &self,
        at: &Endpoint,
        name: &str,
        owner: &str,
    ) -> Result<(), ProviderError> {
        let made = format!("CREATE DATABASE IF NOT EXISTS {}", identifier(name));
        self.ask(at, &made).await?;
        // In a grant the name is a pattern.
        let pattern = identifier(&name.replace('_', "\\_").replace('%', "\\%"));
        let grant = format!(
            "GRANT ALL PRIVILEGES ON {pattern}.* TO {}@'%'",
            literal(owner)
        );
        self.ask(at, &grant).await.map(drop)
    }
}

/// A quoted identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A quoted string, for connections whose `sql_mode` has not NO_BACKSLASH_ESCAPES: the service account's.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
