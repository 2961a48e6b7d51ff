//! MariaDB's client_ed25519: the challenge is signed with a key that is the SHA-512 of the password, where Ed25519 would
//! hash a seed; the public key is stored. Signatures are Ed25519's own.

use super::MAX_PASSWORD;
use crate::auth::verifier::same;
use aws_lc_rs::digest::{SHA512, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::hazmat::{ExpandedSecretKey, raw_sign};
use sha2::Sha512;
use zeroize::Zeroizing;

/// Bytes of the challenge.
pub const NONCE_LEN: usize = 32;
/// Bytes of the answer.
pub const SIGNATURE_LEN: usize = 64;

/// The stored form.
#[derive(Clone)]
pub struct PublicKey(pub [u8; 32]);

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for PublicKey {}

impl PublicKey {
    /// Reads the 43 characters of an account's authentication string.
    pub fn parse(text: &[u8]) -> Option<Self> {
        BASE64.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// Of a password.
    pub fn of(password: &[u8]) -> Self {
        Self(VerifyingKey::from(&secret_key(password)).to_bytes())
    }

    /// Checks a client's answer to a challenge.
    pub fn verify(&self, nonce: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(nonce, signature).is_ok()
    }
}

/// The answer to a challenge.
pub fn answer(password: &[u8], nonce: &[u8]) -> [u8; SIGNATURE_LEN] {
    let secret = secret_key(password);
    raw_sign::<Sha512>(&secret, nonce, &VerifyingKey::from(&secret)).to_bytes()
}

fn secret_key(password: &[u8]) -> ExpandedSecretKey {
    let password = password.get(..MAX_PASSWORD).unwrap_or(password);
    let mut expanded = Zeroizing::new([0; 64]);
    expanded.copy_from_slice(digest(&SHA512, password).as_ref());
    ExpandedSecretKey::from_bytes(&expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_and_the_answer() {
        // ed25519_password('secret') of MariaDB.
        let stored =
            PublicKey::parse(b"ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY").expect("a key");
        assert!(stored == PublicKey::of(b"secret"));
        let nonce = [7; NONCE_LEN];
        let signature = answer(b"secret", &nonce);
        assert!(stored.verify(&nonce, &signature));
        assert!(!stored.verify(&[8; NONCE_LEN], &signature));
        assert!(!stored.verify(&nonce, &answer(b"Secret", &nonce)));
        assert!(!stored.verify(&nonce, &signature[..63]) && !stored.verify(&nonce, b""));
        for text in ["", "ZIgU", "not base64 at all"] {
            assert!(PublicKey::parse(text.as_bytes()).is_none());
        }
    }
}
