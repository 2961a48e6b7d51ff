//! How MySQL and MariaDB have clients prove who they are, on both legs.
//!
//! [`native`], [`sha2`] and [`ed25519`] hold the mechanisms, [`rsa`] what carries a password where there is no TLS,
//! [`client`] the whole exchange with a server, [`proof`] how MariaDB proves to know the password, [`accounts`] which
//! account of a name is meant.

pub mod accounts;
pub mod client;
pub mod ed25519;
pub mod native;
pub mod proof;
pub mod rsa;
pub mod sha2;

use super::verifier::same;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Longest password that is taken, in bytes: MySQL's own limit. Longer ones would make hashing costly.
pub const MAX_PASSWORD: usize = 256;

/// A way to prove who one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plugin {
    /// SHA-1 twice over the password is stored.
    Native,
    /// SHA-256 crypt is stored, and a faster digest kept in memory.
    CachingSha2,
    /// A public key is stored (MariaDB).
    Ed25519,
    /// The password itself.
    Clear,
}

impl Plugin {
    /// By the name that packets have.
    pub fn of(name: &[u8]) -> Option<Self> {
        [Self::Native, Self::CachingSha2, Self::Ed25519, Self::Clear]
            .into_iter()
            .find(|plugin| plugin.name().as_bytes() == name)
    }

    /// The name that packets have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "mysql_native_password",
            Self::CachingSha2 => "caching_sha2_password",
            Self::Ed25519 => "client_ed25519",
            Self::Clear => "mysql_clear_password",
        }
    }
}

/// The stored form of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Verifier {
    /// The account has an empty password, and this plugin.
    Empty(Plugin),
    /// SHA1(SHA1(password)).
    Native(native::DoubleHash),
    /// `$A$005$...`.
    Sha2(sha2::Stored),
    /// A public key.
    Ed25519(ed25519::PublicKey),
}

impl Verifier {
    /// Reads the authentication string of an account with this plugin, by the name that accounts have; `None` where
    /// it lets nobody in, or nobody whom the proxy could log in again.
    pub fn of(plugin: &str, stored: &[u8]) -> Option<Self> {
        let known = match plugin {
            "" | "mysql_native_password" => Plugin::Native,
            "caching_sha2_password" => Plugin::CachingSha2,
            "ed25519" => Plugin::Ed25519,
            _ => return None,
        };
        if stored.is_empty() {
            return Some(Self::Empty(known));
        }
        match known {
            Plugin::Native => native::DoubleHash::parse(stored).map(Self::Native),
            Plugin::CachingSha2 => sha2::Stored::parse(stored).map(Self::Sha2),
            Plugin::Ed25519 => ed25519::PublicKey::parse(stored).map(Self::Ed25519),
            Plugin::Clear => None,
        }
    }

    /// Whether `password` is the one behind it. Costs milliseconds for [`Self::Sha2`]; compared in constant time.
    pub fn matches(&self, password: &[u8]) -> bool {
        if password.len() > MAX_PASSWORD {
            return false;
        }
        match self {
            Self::Empty(_) => password.is_empty(),
            Self::Native(stored) => *stored == native::DoubleHash::of(password),
            Self::Sha2(stored) => stored.matches(password),
            Self::Ed25519(key) => same(&key.0, &ed25519::PublicKey::of(password).0),
        }
    }
}

/// What is known of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Only the stored form.
    Verifier(Verifier),
    /// The password itself, from a users file.
    Password(Password),
}

impl Secret {
    /// Reads a value of a users file: `*` and 40 hexadecimal digits, `$A$...` as it is or as `0x` and hexadecimal
    /// digits, or else a password.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(SecretError::Empty);
        }
        if text.starts_with("SCRAM-SHA-256$") {
            return Err(SecretError::Postgres);
        }
        if let Some(stored) = native::DoubleHash::parse(bytes) {
            return Ok(Self::Verifier(Verifier::Native(stored)));
        }
        let decoded = text
            .strip_prefix("0x")
            .and_then(|hex| from_hex(hex.as_bytes()));
        let stored = decoded.as_deref().unwrap_or(bytes);
        if stored.starts_with(sha2::STORED_PREFIX) {
            let stored = sha2::Stored::parse(stored).ok_or(SecretError::Sha2)?;
            return Ok(Self::Verifier(Verifier::Sha2(stored)));
        }
        if bytes.len() > MAX_PASSWORD {
            return Err(SecretError::Long);
        }
        Ok(Self::Password(Password::new(bytes)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verifier(Verifier::Empty(_)) => "EmptyPassword",
            Self::Verifier(Verifier::Native(_)) => "NativeVerifier",
            Self::Verifier(Verifier::Sha2(_)) => "Sha2Verifier",
            Self::Verifier(Verifier::Ed25519(_)) => "Ed25519Verifier",
            Self::Password(_) => "Password",
        })
    }
}

/// A secret of a users file that can't be used. Never repeats the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Nothing.
    #[error("the password is empty")]
    Empty,
    /// Starts like the stored form of caching_sha2_password and is none.
    #[error(
        "not a caching_sha2_password verifier: $A$005$, 20 bytes of salt and 43 characters are wanted, as in mysql.user, or the same as 0x..."
    )]
    Sha2,
    /// PostgreSQL's.
    #[error(
        "this is a PostgreSQL verifier, which MySQL has no use for: give *..., $A$... or the password"
    )]
    Postgres,
    /// No client could send it.
    #[error("the password is longer than 256 bytes, which is MySQL's limit")]
    Long,
}

/// A clear password. Wiped when dropped, compared in constant time, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password(Vec<u8>);

impl Password {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The password.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// What logs in to a server on a client's behalf, found at the client's own log-in. Never printed.
#[derive(Clone)]
pub enum Credential {
    /// SHA1(password): works on each server that holds the same double hash.
    Native(Zeroizing<[u8; native::LEN]>),
    /// The password itself, in memory only.
    Password(Password),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native(_) => "NativeHash",
            Self::Password(_) => "Password",
        })
    }
}

/// Reads hexadecimal digits, of which there are an even number.
pub(crate) fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn what_a_users_file_may_say() {
        let kind = |text: &str| Secret::parse(text).map(|secret| format!("{secret:?}"));
        let is = |text: &str, name: &str| assert_eq!(kind(text).as_deref(), Ok(name), "{text}");
        is(
            "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19",
            "NativeVerifier",
        );
        is("pencil", "Password");
        is("*short", "Password");
        is("0xyz", "Password");
        let crypt = format!("$A$005${}{}", "s".repeat(20), "d".repeat(43));
        is(&crypt, "Sha2Verifier");
        let hex = crypt.bytes().fold(String::new(), |mut hex, b| {
            write!(hex, "{b:02X}").expect("a String takes everything");
            hex
        });
        is(&format!("0x{hex}"), "Sha2Verifier");
        assert!(Secret::parse(&format!("0x{hex}")) == Secret::parse(&crypt));
        assert_eq!(Secret::parse(""), Err(SecretError::Empty));
        assert_eq!(Secret::parse("$A$005$short"), Err(SecretError::Sha2));
        assert_eq!(
            Secret::parse("SCRAM-SHA-256$4096:x"),
            Err(SecretError::Postgres)
        );
        assert_eq!(Secret::parse(&"x".repeat(257)), Err(SecretError::Long));
    }

    #[test]
    fn what_an_account_may_have() {
        let native = b"*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19";
        let found = |plugin: &str, stored: &[u8]| Verifier::of(plugin, stored).is_some();
        assert!(found("mysql_native_password", native) && found("", native));
        assert!(found(
            "ed25519",
            b"ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY"
        ));
        assert!(!found("mysql_native_password", b"invalid"));
        assert!(!found("unix_socket", b"") && !found("parsec", b"P0..."));
        let empty = Verifier::of("caching_sha2_password", b"").expect("empty");
        assert!(empty.matches(b"") && !empty.matches(b"x"));
        let stored = Verifier::of("", native).expect("native");
        assert!(stored.matches(b"password") && !stored.matches(b"Password"));
    }
}
