//! mysql_native_password: `SHA1(SHA1(password))` is stored, and the answer to a challenge hides `SHA1(password)`, which who
//! holds the stored form can recover. It logs in to each server that holds the same stored form.

use super::from_hex;
use crate::auth::verifier::same;
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY as SHA1};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a hash.
pub const LEN: usize = 20;

/// `SHA1(password)`.
pub type Stage1 = Zeroizing<[u8; LEN]>;

/// `SHA1(SHA1(password))`, which servers store.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DoubleHash(pub [u8; LEN]);

impl PartialEq for DoubleHash {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for DoubleHash {}

impl DoubleHash {
    /// Reads `*` and 40 hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let hex = text.strip_prefix(b"*")?;
        from_hex(hex)?.try_into().ok().map(Self)
    }

    /// Of a password.
    pub fn of(password: &[u8]) -> Self {
        Self::of_stage1(&stage1(password))
    }

    /// Of a password's first hash.
    pub fn of_stage1(stage1: &[u8; LEN]) -> Self {
        Self(sha1(&[stage1]))
    }

    /// Checks a client's answer to a challenge; what it hid is returned.
    pub fn recover(&self, nonce: &[u8], answer: &[u8]) -> Option<Stage1> {
        let answer = <[u8; LEN]>::try_from(answer).ok()?;
        let found = mask(&answer, nonce, &self.0);
        same(&sha1(&[&*found]), &self.0).then_some(found)
    }
}

/// Of a password.
pub fn stage1(password: &[u8]) -> Stage1 {
    Zeroizing::new(sha1(&[password]))
}

/// The answer to a challenge.
pub fn answer(stage1: &[u8; LEN], nonce: &[u8]) -> Zeroizing<[u8; LEN]> {
    mask(stage1, nonce, &sha1(&[stage1]))
}

fn mask(bytes: &[u8; LEN], nonce: &[u8], double: &[u8; LEN]) -> Zeroizing<[u8; LEN]> {
    let mut out = Zeroizing::new(sha1(&[nonce, double]));
    for (slot, byte) in out.iter_mut().zip(bytes) {
        *slot ^= byte;
    }
    out
}

fn sha1(parts: &[&[u8]]) -> [u8; LEN] {
    let mut context = Context::new(&SHA1);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; LEN];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &[u8] = b"0123456789abcdefghij";

    #[test]
    fn the_stored_form() {
        // PASSWORD('password') of any server.
        let stored = DoubleHash::parse(b"*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19");
        assert!(stored == Some(DoubleHash::of(b"password")));
        for text in [
            "",
            "*",
            "2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19",
            "*2470C0C0",
            "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E1g",
        ] {
            assert!(DoubleHash::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_recovered_answers_another_server() {
        let stored = DoubleHash::of(b"pencil");
        let sent = answer(&stage1(b"pencil"), NONCE);
        let found = stored.recover(NONCE, &*sent).expect("the right password");
        assert_eq!(found, stage1(b"pencil"));
        let other = b"another servers one.";
        assert_eq!(answer(&found, other), answer(&stage1(b"pencil"), other));
        assert!(stored.recover(other, &*sent).is_none(), "another challenge");
        let wrong = answer(&stage1(b"Pencil"), NONCE);
        assert!(stored.recover(NONCE, &*wrong).is_none());
        assert!(stored.recover(NONCE, b"").is_none());
    }
}
