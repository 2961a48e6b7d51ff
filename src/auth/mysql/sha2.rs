//! caching_sha2_password: SHA-256 crypt of the password is stored. A server that has seen the password keeps
//! `SHA256(SHA256(password))` in memory, and checks answers to its challenges with that; otherwise it asks for the
//! password itself.

use super::MAX_PASSWORD;
use crate::auth::verifier::{same, sha256};
use aws_lc_rs::digest::{Context, SHA256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a hash.
pub const LEN: usize = 32;

/// What a stored form begins with: the digest's name.
pub const STORED_PREFIX: &[u8] = b"$A$";

/// The server says: the answer was right, OK follows.
pub const FAST_OK: u8 = 3;
/// The server says: send the password.
pub const FULL: u8 = 4;
/// The client says: send the RSA key.
pub const KEY_REQUEST: u8 = 2;

/// Bytes of salt; the algorithm's original takes 16 at most.
const SALT: usize = 20;
/// Characters of the digest.
const DIGEST: usize = 43;
/// The stored number of rounds counts thousands.
const ROUNDS: u32 = 1000;
/// Most rounds that are taken from a stored form: more, and checking one would be an attack on the proxy.
const MAX_THOUSANDS: u32 = 1000;

/// The fast answer to a challenge: it hides `SHA256(password)`.
pub fn answer(password: &[u8], nonce: &[u8]) -> Zeroizing<[u8; LEN]> {
    let mut out = Zeroizing::new(sha256(password));
    let double = Zeroizing::new(sha256(&*out));
    let mask = Zeroizing::new(hash(&[&*double, nonce]));
    for (slot, byte) in out.iter_mut().zip(&*mask) {
        *slot ^= byte;
    }
    out
}

/// Whether `given` is the fast answer of `password`; compared in constant time.
pub fn verify(password: &[u8], nonce: &[u8], given: &[u8]) -> bool {
    same(&*answer(password, nonce), given)
}

/// The password and a NUL, exclusive-or the challenge over and over: what is encrypted with RSA. The same takes
/// it apart.
pub fn mask(bytes: &mut [u8], nonce: &[u8]) {
    for (byte, mask) in bytes.iter_mut().zip(nonce.iter().cycle()) {
        *byte ^= mask;
    }
}

/// What `mysql.user` holds: rounds, salt, digest.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Stored {
    thousands: u32,
    salt: [u8; SALT],
    digest: [u8; DIGEST],
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        self.thousands == other.thousands
            && self.salt == other.salt
            && same(&self.digest, &other.digest)
    }
}

impl Eq for Stored {}

impl Stored {
    /// Reads `$A$`, three hexadecimal digits of thousands of rounds, `$`, salt and digest.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let rest = text.strip_prefix(STORED_PREFIX)?;
        let (rounds, rest) = rest.split_first_chunk::<3>()?;
        let (salt, digest) = rest.strip_prefix(b"$")?.split_first_chunk()?;
        let thousands = std::str::from_utf8(rounds).ok()?;
        let thousands = u32::from_str_radix(thousands, 16).ok()?;
        (1..=MAX_THOUSANDS).contains(&thousands).then_some(())?;
        Some(Self {
            thousands,
            salt: *salt,
            digest: digest.try_into().ok()?,
        })
    }

    /// One that no password matches, and that takes as long to find out as one with these thousands of rounds.
    pub fn decoy(thousands: u32, seed: &[u8; LEN]) -> Self {
        let mut salt = [0; SALT];
        salt.copy_from_slice(seed.get(..SALT).unwrap_or(&[0; SALT]));
        Self {
            thousands: thousands.clamp(1, MAX_THOUSANDS),
            salt,
            // No digest of the algorithm has this character.
            digest: [b'!'; DIGEST],
        }
    }

    /// Of a password, as a server would store it.
    pub fn of(password: &[u8], salt: [u8; SALT], thousands: u32) -> Self {
        let digest = crypt(password, &salt, thousands.saturating_mul(ROUNDS));
        Self {
            thousands,
            salt,
            digest,
        }
    }

    /// Thousands of rounds.
    pub const fn thousands(&self) -> u32 {
        self.thousands
    }

    /// Whether `password` is the one behind it: some milliseconds, compared in constant time.
    pub fn matches(&self, password: &[u8]) -> bool {
        let usable = password.len() <= MAX_PASSWORD;
        let password = if usable { password } else { b"" };
        let found = crypt(password, &self.salt, self.thousands.saturating_mul(ROUNDS));
        same(&found, &self.digest) && usable
    }
}

fn hash(parts: &[&[u8]]) -> [u8; LEN] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    finish(context)
}

fn finish(context: Context) -> [u8; LEN] {
    let mut out = [0; LEN];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Repeats `block` to `length` bytes.
fn stretch(block: &[u8; LEN], length: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(block.iter().copied().cycle().take(length).collect())
}

/// SHA-256 crypt (Drepper, 2007) with a salt of any length. Crates that have it cut the salt to 16 bytes.
fn crypt(password: &[u8], salt: &[u8], rounds: u32) -> [u8; DIGEST] {
    let both = Zeroizing::new(hash(&[password, salt, password]));
    let mut context = Context::new(&SHA256);
    context.update(password);
    context.update(salt);
    context.update(&stretch(&both, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        context.update(if bits & 1 == 1 { &*both } else { password });
        bits >>= 1;
    }
    let mut digest = Zeroizing::new(finish(context));
    let mut context = Context::new(&SHA256);
    for _ in 0..password.len() {
        context.update(password);
    }
    let p = stretch(&Zeroizing::new(finish(context)), password.len());
    let mut context = Context::new(&SHA256);
    for _ in 0..16 + u32::from(digest[0]) {
        context.update(salt);
    }
    let s = stretch(&Zeroizing::new(finish(context)), salt.len());
    for round in 0..rounds {
        let mut context = Context::new(&SHA256);
        let (first, last): (&[u8], &[u8]) = if round & 1 == 1 {
            (&p, &*digest)
        } else {
            (&*digest, &p)
        };
        context.update(first);
        if round % 3 != 0 {
            context.update(&s);
        }
        if round % 7 != 0 {
            context.update(&p);
        }
        context.update(last);
        digest = Zeroizing::new(finish(context));
    }
    encode(&digest)
}

/// The base64 of crypt(3), which has an order of its own: of each three bytes, and of these letters.
fn encode(digest: &[u8; LEN]) -> [u8; DIGEST] {
    const LETTERS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const ORDER: [[usize; 3]; 10] = [
        [0, 10, 20],
        [21, 1, 11],
        [12, 22, 2],
        [3, 13, 23],
        [24, 4, 14],
        [15, 25, 5],
        [6, 16, 26],
        [27, 7, 17],
        [18, 28, 8],
        [9, 19, 29],
    ];
    let byte = |at: usize| digest.get(at).copied().map_or(0, u32::from);
    let words = ORDER
        .iter()
        .map(|[a, b, c]| byte(*a) << 16 | byte(*b) << 8 | byte(*c));
    let letters = words
        .chain([byte(31) << 8 | byte(30)])
        .flat_map(|word| (0..4).map(move |n| (word >> (6 * n)) & 63));
    let mut out = [0; DIGEST];
    for (slot, letter) in out.iter_mut().zip(letters) {
        *slot = LETTERS.get(letter as usize).copied().unwrap_or(b'.');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    const NONCE: &[u8] = b"0123456789abcdefghij";

    #[test]
    fn crypt_is_the_published_algorithm() {
        // What crypt(3) of the system makes of them.
        for (password, salt, rounds, digest) in [
            (
                "Hello world!",
                "saltstring",
                5000,
                b"5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5",
            ),
            (
                "Hello world!",
                "saltstringsaltst",
                10000,
                b"3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA",
            ),
            (
                "we have a short salt string but not a short password",
                "short",
                77777,
                b"JiO1O3ZpDAxGJeaDIuqCoEFysAe1mZNJRs3pw0KQRd/",
            ),
        ] {
            assert_eq!(&crypt(password.as_bytes(), salt.as_bytes(), rounds), digest);
        }
    }

    #[test]
    fn a_stored_form_reads_back_and_knows_its_password() {
        let stored = Stored::of(b"pencil", *b"salt of twenty bytes", 5);
        let mut text = b"$A$005$salt of twenty bytes".to_vec();
        text.extend_from_slice(&stored.digest);
        let read = Stored::parse(&text).expect("read");
        assert!(read == stored && read.matches(b"pencil") && read.thousands() == 5);
        assert!(!read.matches(b"Pencil") && !read.matches(b"") && !read.matches(&[b'x'; 257]));
        let ten = [b"$A$00A$", &text[7..]].concat();
        assert_eq!(Stored::parse(&ten).map(|s| s.thousands()), Some(10));
        for bad in [
            &text[..69],
            b"$A$000$",
            b"$A$",
            b"",
            &[&text[..], b"x"].concat(),
        ] {
            assert!(Stored::parse(bad).is_none());
        }
        let too_many = [b"$A$fff$", &text[7..]].concat();
        assert!(Stored::parse(&too_many).is_none());
        assert!(!Stored::decoy(5, &[b'x'; LEN]).matches(b"pencil"));
    }

    #[test]
    fn the_fast_answer() {
        let sent = answer(b"pencil", NONCE);
        // Worked out by the published formula: SHA256(p) xor SHA256(SHA256(SHA256(p)) nonce).
        let hex = sent.iter().fold(String::new(), |mut hex, b| {
            write!(hex, "{b:02x}").expect("a String takes everything");
            hex
        });
        assert_eq!(
            hex,
            "1c545f008e6c3283f9316cda911afad8f43148c55e1e6203231995767b0580da"
        );
        assert!(verify(b"pencil", NONCE, &*sent));
        assert!(!verify(b"Pencil", NONCE, &*sent) && !verify(b"pencil", b"another", &*sent));
        assert!(!verify(b"pencil", NONCE, b""));
    }

    proptest! {
        #[test]
        fn masked_twice_is_as_before(password: Vec<u8>, nonce: [u8; 20]) {
            let mut bytes = password.clone();
            mask(&mut bytes, &nonce);
            mask(&mut bytes, &nonce);
            prop_assert_eq!(bytes, password);
        }

        #[test]
        fn arbitrary_text_does_no_harm(text: Vec<u8>) {
            drop(Stored::parse(&text));
            drop(Stored::parse(&[STORED_PREFIX, &text].concat()));
        }
    }
}
