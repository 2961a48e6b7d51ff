//! The users file: one `name = "secret"` per line, where the secret is `SCRAM-SHA-256$...`, `md5...` or a
//! password; for MySQL and MariaDB `*...`, `$A$...` or a password.

use super::{Secret, mysql};
use std::collections::BTreeMap;
use std::collections::HashMap;
use toml::Spanned;
use zeroize::Zeroize;

/// The users of one cluster, each with what is known of its password.
#[derive(Debug, Clone)]
pub struct Users<S = Secret>(HashMap<Box<[u8]>, S>);

impl<S> Default for Users<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// What is wrong with a users file, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct UsersError {
    /// Counted from 1.
    pub line: usize,
    /// What to change.
    pub reason: String,
}

impl Users {
    /// Reads the text of a users file. `salt` gives the salt for a user whose password is written plainly
    /// (see [`Secret::parse`]); each such user costs some milliseconds.
    pub fn parse(text: &str, mut salt: impl FnMut(&str) -> [u8; 16]) -> Result<Self, UsersError> {
        Self::parse_with(text, |name, secret| {
            Secret::parse(secret, &salt(name)).map_err(|error| error.to_string())
        })
    }

    /// Takes names and secrets that were read already; see [`Self::parse`]. The error says whose secret is
    /// wrong, and not what it is.
    pub fn of<'a>(
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
        mut salt: impl FnMut(&str) -> [u8; 16],
    ) -> Result<Self, String> {
        Self::of_with(users, |name, secret| {
            Secret::parse(secret, &salt(name)).map_err(|error| error.to_string())
        })
    }
}

impl Users<mysql::Secret> {
    /// Takes names and secrets that were read already, for MySQL and MariaDB. The error says whose secret is wrong,
    /// and not what it is.
    pub fn of_mysql<'a>(
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        Self::of_with(users, |_, secret| {
            mysql::Secret::parse(secret).map_err(|error| error.to_string())
        })
    }

    /// Reads the text of a users file, for MySQL and MariaDB.
    pub fn parse_mysql(text: &str) -> Result<Self, UsersError> {
        Self::parse_with(text, |_, secret| {
            mysql::Secret::parse(secret).map_err(|error| error.to_string())
        })
    }
}

impl<S> Users<S> {
    /// `read` makes of a name and what is written behind it what is kept, or says what is wrong.
    fn parse_with(
        text: &str,
        mut read: impl FnMut(&str, &str) -> Result<S, String>,
    ) -> Result<Self, UsersError> {
        let at = |offset: usize| {
            1 + text
                .as_bytes()
                .iter()
                .take(offset)
                .filter(|b| **b == b'\n')
                .count()
        };
        // The error's own Display would show the line, secret and all.
        let table: BTreeMap<Spanned<String>, Spanned<toml::Value>> =
            toml::from_str(text).map_err(|error| UsersError {
                line: at(error.span().map_or(0, |span| span.start)),
                reason: error.message().to_owned(),
            })?;
        let mut users = HashMap::with_capacity(table.len());
        for (name, value) in table {
            let fault = |reason| UsersError {
                line: at(name.span().start),
                reason,
            };
            let name_text = name.get_ref();
            let toml::Value::String(mut secret) = value.into_inner() else {
                return Err(fault(format!(
                    "the secret of user \"{name_text}\" must be a string: a verifier or a password"
                )));
            };
            let parsed = read(name_text, &secret);
            secret.zeroize();
            let parsed = parsed
                .map_err(|error| fault(format!("the secret of user \"{name_text}\": {error}")))?;
            users.insert(name_text.as_bytes().into(), parsed);
        }
        Ok(Self(users))
    }

    fn of_with<'a>(
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
        mut read: impl FnMut(&str, &str) -> Result<S, String>,
    ) -> Result<Self, String> {
        let read = |(name, secret): (&'a str, &'a str)| {
            let parsed = read(name, secret);
            let parsed = parsed.map_err(|e| format!("the secret of user \"{name}\": {e}"))?;
            Ok((name.as_bytes().into(), parsed))
        };
        users
            .into_iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The secret of a user; names are compared byte by byte.
    pub fn get(&self, user: &[u8]) -> Option<&S> {
        self.0.get(user)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is no user.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Verifier;

    fn parse(text: &str) -> Result<Users, UsersError> {
        Users::parse(text, |_| [7; 16])
    }

    #[test]
    fn users_of_each_kind() {
        let users = parse(concat!(
            "# staff\n",
            "app = \"pencil\"\n",
            "\"o'hara ü\" = 'md5d41d8cd98f00b204e9800998ecf8427e'\n",
        ))
        .expect("a good file");
        assert_eq!(users.len(), 2);
        assert!(
            matches!(users.get(b"app"), Some(Secret::Password { scram, .. }) if scram.salt == [7; 16])
        );
        assert!(matches!(
            users.get("o'hara ü".as_bytes()),
            Some(Secret::Verifier(Verifier::Md5(_)))
        ));
        assert!(users.get(b"App").is_none());
        assert!(parse("").expect("an empty file").is_empty());
        assert!(!format!("{users:?}").contains("pencil"));
    }

    #[test]
    fn users_of_mysql() {
        let text = "app = \"*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19\"\nb = \"pencil\"\n";
        let users = Users::parse_mysql(text).expect("a good file");
        assert!(matches!(
            users.get(b"app"),
            Some(mysql::Secret::Verifier(_))
        ));
        assert!(matches!(users.get(b"b"), Some(mysql::Secret::Password(_))));
        let fault = Users::parse_mysql("a = \"$A$secret\"").expect_err("no verifier");
        assert!(fault.reason.contains("caching_sha2") && !fault.reason.contains("secret\""));
        let fault = Users::of_mysql([("a", "")]).expect_err("empty");
        assert!(
            fault.contains("\"a\"") && fault.contains("empty"),
            "{fault}"
        );
    }

    #[test]
    fn users_that_were_read_already() {
        let salt = |_: &str| [7; 16];
        let users = Users::of([("app", "pencil"), ("b", "md5sum")], salt).expect("good");
        assert!(users.get(b"app") == parse("app = \"pencil\"").expect("good").get(b"app"));
        assert_eq!(users.len(), 2);
        let fault = Users::of([("app", "SCRAM-SHA-256$secret")], salt).expect_err("no verifier");
        assert!(
            fault.contains("\"app\"") && !fault.contains("secret\""),
            "{fault}"
        );
    }

    #[test]
    fn faults_name_the_line_and_no_secret() {
        for (text, line, words) in [
            ("a = \"x\"\n\nb = 7\n", 3, "user \"b\" must be a string"),
            (
                "a = \"x\"\n[b]\nc = \"secret\"\n",
                2,
                "user \"b\" must be a string",
            ),
            ("a = \"SCRAM-SHA-256$secret\"", 1, "not a SCRAM verifier"),
            ("a = \"ok\"\nb = \"\"", 2, "empty"),
            (
                "a = \"ok\"\nb = \"*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19\"",
                2,
                "MySQL",
            ),
            ("a = \"ok\"\nb = \"secret", 2, ""),
            ("a = \"secret\"\na = \"secret\"", 2, "duplicate"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.reason.contains(words), "{text}: {error}");
            assert!(!error.to_string().contains("secret\""), "{error}");
        }
    }
}
