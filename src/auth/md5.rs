//! PostgreSQL's md5 authentication: `md5` and the hexadecimal MD5 of password and user name is what is
//! stored; the same again over that and a salt is what is sent.

use ::md5::{Digest, Md5};
use std::fmt::Write;
use zeroize::Zeroizing;

/// The stored form: `md5` and the digest of the password followed by the user name.
pub fn hash(user: &[u8], password: &[u8]) -> Zeroizing<String> {
    digest(password, user)
}

/// What a client answers to a salt. `stored` is the stored form, `md5` included.
pub fn response(stored: &str, salt: [u8; 4]) -> Zeroizing<String> {
    let hex = stored.strip_prefix("md5").unwrap_or(stored);
    digest(hex.as_bytes(), &salt)
}

/// Whether `answer` is the response to `salt`; compared in constant time.
pub fn verify(stored: &str, salt: [u8; 4], answer: &[u8]) -> bool {
    super::verifier::same(response(stored, salt).as_bytes(), answer)
}

/// Whether `password` is the one behind the stored form; compared in constant time.
pub fn matches(stored: &str, user: &[u8], password: &[u8]) -> bool {
    super::verifier::same(hash(user, password).as_bytes(), stored.as_bytes())
}

fn digest(first: &[u8], second: &[u8]) -> Zeroizing<String> {
    let digest = Md5::new()
        .chain_update(first)
        .chain_update(second)
        .finalize();
    let mut out = Zeroizing::new(String::with_capacity(35));
    out.push_str("md5");
    for byte in digest {
        write!(out, "{byte:02x}").expect("a String takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_stores_and_expects() {
        // md5('m' || 'md5u'), and that with the salt 01 02 03 04, computed with md5sum.
        let stored = hash(b"md5u", b"m");
        assert_eq!(&*stored, "md5c77ee92e1f4dd12016e05deac786ed5f");
        let answer = response(&stored, [1, 2, 3, 4]);
        assert_eq!(&*answer, "md5953f7d001559d1bae7cf68b55e98db05");
        assert!(verify(&stored, [1, 2, 3, 4], answer.as_bytes()));
        assert!(!verify(&stored, [1, 2, 3, 5], answer.as_bytes()));
        assert!(!verify(&stored, [1, 2, 3, 4], b""));
        assert!(matches(&stored, b"md5u", b"m") && !matches(&stored, b"md5u", b"n"));
    }
}
