//! MariaDB's TLS without configuration (11.4 and later): a server whose certificate nobody signed proves in the message of
//! the last OK that it knows the stored form of the password, together with the challenge and the certificate that it
//! shows. A proxy that ends TLS proves it for the certificate of its own.

use super::ed25519::PublicKey;
use super::native::DoubleHash;
use super::{Credential, Plugin};
use crate::auth::verifier::{same, sha256};
use std::fmt::Write;
use zeroize::Zeroizing;

/// What the message begins with: the kind of hash, SHA-256.
const KIND: u8 = 1;

/// Hash of a certificate in DER form.
pub type Fingerprint = [u8; 32];

/// Of a certificate.
pub fn fingerprint(certificate: &[u8]) -> Fingerprint {
    sha256(certificate)
}

/// What both sides know of a password that `plugin` has proven. `None` where nothing is, and nothing can be proven.
pub fn password_hash(plugin: Plugin, credential: &Credential) -> Option<Zeroizing<Vec<u8>>> {
    let hash = match (plugin, credential) {
        (_, Credential::Password(password)) if password.reveal().is_empty() => return None,
        (Plugin::Native, Credential::Password(password)) => {
            DoubleHash::of(password.reveal()).0.to_vec()
        }
        (Plugin::Native, Credential::Native(stage1)) => DoubleHash::of_stage1(stage1).0.to_vec(),
        (Plugin::Ed25519, Credential::Password(password)) => {
            PublicKey::of(password.reveal()).0.to_vec()
        }
        _ => return None,
    };
    Some(Zeroizing::new(hash))
}

/// The message of the OK. `nonce` is the challenge of the greeting.
pub fn message(hash: &[u8], nonce: &[u8], certificate: &Fingerprint) -> Vec<u8> {
    let all = Zeroizing::new([hash, nonce, certificate].concat());
    let mut out = String::with_capacity(65);
    out.push(char::from(KIND));
    for byte in sha256(&all) {
        // A String takes everything.
        let _written = write!(out, "{byte:02X}");
    }
    out.into_bytes()
}

/// What a server's message proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// There is none.
    None,
    /// The server knows the password's stored form, and this certificate is its own.
    Good,
    /// It does not, or somebody sits between.
    Bad,
}

/// Checks the message of a server's OK.
pub fn check(info: &[u8], hash: &[u8], nonce: &[u8], certificate: &Fingerprint) -> Proof {
    if info.first() != Some(&KIND) {
        Proof::None
    } else if same(info, &message(hash, nonce, certificate)) {
        Proof::Good
    } else {
        Proof::Bad
    }
}

#[cfg(test)]
mod tests {
    use super::super::Password;
    use super::*;

    #[test]
    fn who_knows_the_hash_proves_it_for_its_certificate() {
        let nonce = b"0123456789abcdefghij";
        let ours = fingerprint(b"certificate");
        let password = Credential::Password(Password::new(b"pencil"));
        let hash = password_hash(Plugin::Native, &password).expect("known");
        let told = message(&hash, nonce, &ours);
        assert_eq!((told.len(), told[0]), (65, 1));
        assert_eq!(check(&told, &hash, nonce, &ours), Proof::Good);
        assert_eq!(
            check(&told, &hash, nonce, &fingerprint(b"other")),
            Proof::Bad
        );
        assert_eq!(check(&told, b"other", nonce, &ours), Proof::Bad);
        assert_eq!(check(b"", &hash, nonce, &ours), Proof::None);
        let stage1 = Credential::Native(super::super::native::stage1(b"pencil"));
        assert_eq!(password_hash(Plugin::Native, &stage1), Some(hash));
        assert!(password_hash(Plugin::Ed25519, &stage1).is_none());
        assert!(password_hash(Plugin::CachingSha2, &password).is_none());
        let empty = Credential::Password(Password::new(b""));
        assert!(password_hash(Plugin::Native, &empty).is_none());
    }
}
