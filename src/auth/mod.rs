//! Authentication exchanges as pure state machines; nonces and randomness come in as arguments.
//!
//! [`scram`] and [`md5`] hold the mechanisms, [`verifier`] the stored forms of a secret, [`users`] the users
//! file. Secrets are wiped when dropped, compared in constant time, and have no readable `Debug`.

pub mod md5;
pub mod mysql;
pub mod scram;
pub mod users;
pub mod verifier;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What the proxy checks a client's proof against.
#[derive(Clone, PartialEq, Eq)]
pub enum Verifier {
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as in `pg_authid.rolpassword`.
    Scram(ScramVerifier),
    /// `md5` and 32 hexadecimal digits.
    Md5(Zeroizing<String>),
}

/// The parts of a SCRAM-SHA-256 verifier.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ScramVerifier {
    /// PBKDF2 rounds.
    pub iterations: u32,
    /// Salt, decoded.
    pub salt: Vec<u8>,
    /// SHA-256 of ClientKey.
    pub stored_key: [u8; 32],
    /// What the server signs with.
    pub server_key: [u8; 32],
}

/// What is known of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Only the stored form.
    Verifier(Verifier),
    /// The password itself, from a users file.
    Password {
        /// The password.
        password: Zeroizing<String>,
        /// Made from it once, so that a login costs no key derivation.
        scram: ScramVerifier,
    },
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Verifier(Verifier::Scram(_)) => "ScramVerifier",
            Self::Verifier(Verifier::Md5(_)) => "Md5Verifier",
            Self::Password { .. } => "Password",
        })
    }
}

/// What logs in to a server on a client's behalf, recovered at the client's own login. Never printed.
#[derive(Clone)]
pub enum Credential {
    /// SCRAM without the password: works on each server that holds the very same verifier.
    ScramKeys {
        /// Recovered from the client's proof.
        client_key: Zeroizing<[u8; 32]>,
        /// From the verifier; checks the server's signature.
        server_key: Zeroizing<[u8; 32]>,
    },
    /// The stored md5 hash (`md5...`), which is all that md5 authentication needs.
    Md5Hash(Zeroizing<String>),
    /// The password itself, from a users file or from cleartext authentication over TLS.
    Password(Zeroizing<String>),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ScramKeys { .. } => "ScramKeys",
            Self::Md5Hash(_) => "Md5Hash",
            Self::Password(_) => "Password",
        })
    }
}
