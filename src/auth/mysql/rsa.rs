//! RSA for caching_sha2_password without TLS: the password is encrypted for the server's key, so that who listens has
//! nothing. Who answers in the server's place has it, which is why `server_tls` can demand more.

use super::MAX_PASSWORD;
use super::sha2;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fmt;
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// Longest key that is taken, in characters.
const MAX_PEM: usize = 4096;

/// The proxy's own key, made when it starts.
pub struct PrivateKey {
    key: OaepPrivateDecryptingKey,
    pem: String,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl PrivateKey {
    /// A new key of 2048 bits, as servers make it. Takes a tenth of a second or two.
    pub fn generate() -> Option<Self> {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?;
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().ok()?;
        let text = BASE64.encode(der.as_ref());
        let mut pem = format!("{BEGIN}\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).ok()?);
            pem.push('\n');
        }
        pem.push_str(END);
        pem.push('\n');
        Some(Self {
            key: OaepPrivateDecryptingKey::new(private).ok()?,
            pem,
        })
    }

    /// The public key as clients are told it.
    pub fn public_pem(&self) -> &str {
        &self.pem
    }

    /// The password in what a client encrypted, masked with the challenge.
    pub fn decrypt(&self, encrypted: &[u8], nonce: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let found = self
            .key
            .decrypt(&OAEP_SHA1_MGF1SHA1, encrypted, &mut out, None);
        let mut password = Zeroizing::new(found.ok()?.to_vec());
        sha2::mask(&mut password, nonce);
        // It ends with its NUL.
        (password.pop() == Some(0)).then_some(password)
    }
}

/// Encrypts a password for a server that sent this key.
pub fn encrypt(pem: &[u8], password: &[u8], nonce: &[u8]) -> Option<Vec<u8>> {
    if password.len() > MAX_PASSWORD || nonce.is_empty() {
        return None;
    }
    let key = OaepPublicEncryptingKey::new(parse(pem)?).ok()?;
    let mut clear = Zeroizing::new(Vec::with_capacity(password.len() + 1));
    clear.extend_from_slice(password);
    clear.push(0);
    sha2::mask(&mut clear, nonce);
    let mut out = vec![0; key.ciphertext_size()];
    let length = key
        .encrypt(&OAEP_SHA1_MGF1SHA1, &clear, &mut out, None)
        .ok()?
        .len();
    out.truncate(length);
    Some(out)
}

fn parse(pem: &[u8]) -> Option<PublicEncryptingKey> {
    let text = std::str::from_utf8(pem.get(..pem.len().min(MAX_PEM))?).ok()?;
    let (_, rest) = text.split_once(BEGIN)?;
    let (body, _) = rest.split_once(END)?;
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    PublicEncryptingKey::from_der(&BASE64.decode(body).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    static KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().expect("a key"));

    #[test]
    fn what_was_encrypted_is_read_with_the_same_challenge_only() {
        let nonce = b"0123456789abcdefghij";
        for password in [&b""[..], b"pencil", &[b'x'; 200]] {
            let sent = encrypt(KEY.public_pem().as_bytes(), password, nonce).expect("encrypted");
            assert_eq!(sent.len(), 256);
            let read = KEY.decrypt(&sent, nonce).expect("decrypted");
            assert_eq!(&read[..], password);
            let other = KEY.decrypt(&sent, b"another challenge...");
            assert!(other.is_none_or(|other| other[..] != *password || password.is_empty()));
        }
        assert!(KEY.decrypt(&[1; 256], nonce).is_none());
        assert!(KEY.decrypt(b"short", nonce).is_none());
    }

    #[test]
    fn keys_that_are_none() {
        let pem = KEY.public_pem();
        assert!(pem.lines().all(|line| line.len() <= 64));
        for bad in [
            "",
            "-----BEGIN PUBLIC KEY-----",
            &pem[..200],
            &pem.replace("MII", "AII"),
        ] {
            assert!(
                encrypt(bad.as_bytes(), b"pencil", b"nonce").is_none(),
                "{bad}"
            );
        }
        assert!(
            encrypt(pem.as_bytes(), &[b'x'; 257], b"nonce").is_none(),
            "too long"
        );
    }
}
