//! The stored forms of a password: reading them, and making a SCRAM verifier from a password.

use super::{ScramVerifier, Secret, Verifier};
use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::borrow::Cow;
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// PBKDF2 rounds of a verifier made here; PostgreSQL's own default. Fuzzers have no time for them.
pub const ITERATIONS: NonZeroU32 = match NonZeroU32::new(if cfg!(fuzzing) { 1 } else { 4096 }) {
    Some(n) => n,
    None => NonZeroU32::MIN,
};

/// Longest salt taken from a verifier, in bytes.
const MAX_SALT: usize = 1024;

/// A stored secret that can't be used. Never repeats the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// Starts like a SCRAM verifier and is none.
    #[error(
        "not a SCRAM verifier: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey is wanted, as in pg_authid.rolpassword"
    )]
    Scram,
    /// Neither of the two stored forms.
    #[error("neither SCRAM-SHA-256$... nor md5 with 32 hexadecimal digits")]
    Unknown,
    /// MySQL's.
    #[error(
        "this is a MySQL verifier (*...), which PostgreSQL has no use for: give SCRAM-SHA-256$..., md5... or the password"
    )]
    MySql,
    /// PostgreSQL refuses empty passwords.
    #[error("the password is empty, and PostgreSQL lets nobody in with an empty password")]
    Empty,
}

impl Verifier {
    /// Reads `pg_authid.rolpassword`.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        if let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") {
            return parse_scram(rest)
                .map(Self::Scram)
                .ok_or(VerifierError::Scram);
        }
        if is_md5(text) {
            return Ok(Self::Md5(Zeroizing::new(text.to_owned())));
        }
        Err(VerifierError::Unknown)
    }
}

impl Secret {
    /// Reads a value of a users file: a verifier, or else a password. `salt` is for the verifier that is made
    /// from a password: [`super::scram::mock_salt`] is the one to give, so that a user with a password and an
    /// unknown user look alike. Deriving takes a few milliseconds.
    pub fn parse(text: &str, salt: &[u8]) -> Result<Self, VerifierError> {
        let mysql = text
            .strip_prefix('*')
            .is_some_and(|hex| hex.len() == 40 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if text.is_empty() {
            return Err(VerifierError::Empty);
        }
        if mysql {
            return Err(VerifierError::MySql);
        }
        match Verifier::parse(text) {
            Ok(verifier) => Ok(Self::Verifier(verifier)),
            Err(VerifierError::Unknown) => Ok(Self::Password {
                password: Zeroizing::new(text.to_owned()),
                scram: ScramVerifier::derive(text.as_bytes(), salt, ITERATIONS),
            }),
            Err(error) => Err(error),
        }
    }
}

impl ScramVerifier {
    /// Makes a verifier from a password: PBKDF2 with this salt and number of rounds.
    pub fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Self {
        let salted = salted_password(password, salt, iterations);
        let client_key = client_key(&salted);
        Self {
            iterations: iterations.get(),
            salt: salt.to_vec(),
            stored_key: sha256(&*client_key),
            server_key: *server_key(&salted),
        }
    }

    /// As `pg_authid.rolpassword` has it, and `CREATE ROLE ... PASSWORD` takes it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        ))
    }

    /// Whether `password` is the one behind this verifier. Costs a key derivation; compared in constant time.
    pub fn matches(&self, password: &[u8]) -> bool {
        let iterations = NonZeroU32::new(self.iterations).unwrap_or(NonZeroU32::MIN);
        let other = Self::derive(password, &self.salt, iterations);
        same(&self.stored_key, &other.stored_key)
    }
}

fn is_md5(text: &str) -> bool {
    text.strip_prefix("md5").is_some_and(|hex| {
        hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn parse_scram(rest: &str) -> Option<ScramVerifier> {
    let (parameters, keys) = rest.split_once('$')?;
    let (iterations, salt) = parameters.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let iterations = iterations
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| iterations.parse().ok())
        .flatten()
        .filter(|n| *n > 0)?;
    let salt = BASE64.decode(salt).ok()?;
    if salt.is_empty() || salt.len() > MAX_SALT {
        return None;
    }
    let key = |text| <[u8; 32]>::try_from(BASE64.decode(text).ok()?).ok();
    Some(ScramVerifier {
        iterations,
        salt,
        stored_key: key(stored_key)?,
        server_key: key(server_key)?,
    })
}

/// Equal, found out in a time that depends on the lengths only.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

pub(crate) fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    out.copy_from_slice(hmac::sign(&key, data).as_ref());
    out
}

pub(crate) fn salted_password(
    password: &[u8],
    salt: &[u8],
    iterations: NonZeroU32,
) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    let password = prepared(password);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        &password,
        &mut *out,
    );
    out
}

pub(crate) fn client_key(salted: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(hmac_sha256(salted, b"Client Key"))
}

pub(crate) fn server_key(salted: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(hmac_sha256(salted, b"Server Key"))
}

/// SASLprep; what it forbids, and what is not UTF-8, is taken as it is, as PostgreSQL does.
fn prepared(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = std::str::from_utf8(password).ok();
    let text = text.and_then(|text| stringprep::saslprep(text).ok());
    Zeroizing::new(match text {
        Some(Cow::Owned(text)) => text.into_bytes(),
        _ => password.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677: user "user", password "pencil".
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn a_verifier_that_was_made_reads_back() {
        let made = ScramVerifier::derive(b"pencil", &[7; 16], ITERATIONS);
        let Ok(Verifier::Scram(read)) = Verifier::parse(&made.to_text()) else {
            panic!("not read back");
        };
        assert!(read == made && read.matches(b"pencil"));
    }

    #[test]
    fn the_rfc_verifier() {
        let Ok(Verifier::Scram(verifier)) = Verifier::parse(PENCIL) else {
            panic!("a SCRAM verifier");
        };
        assert_eq!(verifier.iterations, 4096);
        assert!(verifier.matches(b"pencil"));
        assert!(!verifier.matches(b"Pencil"));
        let made = ScramVerifier::derive(b"pencil", &verifier.salt, ITERATIONS);
        assert!(made == verifier);
    }

    #[test]
    fn saslprep_as_the_server_does() {
        let rounds = NonZeroU32::MIN;
        let key = |p: &[u8]| ScramVerifier::derive(p, b"salt", rounds).stored_key;
        // A soft hyphen maps to nothing, a Roman numeral to letters; a forbidden control character stays.
        assert_eq!(key("I\u{ad}X".as_bytes()), key(b"IX"));
        assert_eq!(key("\u{2168}".as_bytes()), key(b"IX"));
        assert_ne!(key(b"I\x07X"), key(b"IX"));
        assert_ne!(key(b"I\xffX"), key(b"IX"));
    }

    #[test]
    fn what_is_a_verifier() {
        let md5 = "md5d41d8cd98f00b204e9800998ecf8427e";
        assert!(matches!(Verifier::parse(md5), Ok(Verifier::Md5(h)) if *h == md5));
        for text in [
            "md5sum",
            "MD5d41d8cd98f00b204e9800998ecf8427e",
            "pencil",
            "",
        ] {
            assert!(matches!(Verifier::parse(text), Err(VerifierError::Unknown)));
        }
        for text in [
            "SCRAM-SHA-256$",
            &PENCIL.replace("4096", "0"),
            &PENCIL.replace("4096", "+4096"),
            &PENCIL.replace("4096", "99999999999"),
            &PENCIL.replace("WG5d", "WG5"),
            &PENCIL.replace("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
            &PENCIL[..PENCIL.len() - 4],
        ] {
            assert!(
                matches!(Verifier::parse(text), Err(VerifierError::Scram)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_users_file_may_say() {
        let parse = |text| Secret::parse(text, b"0123456789abcdef");
        assert!(matches!(
            parse(PENCIL),
            Ok(Secret::Verifier(Verifier::Scram(_)))
        ));
        let Ok(Secret::Password { password, scram }) = parse("md5sum-lover") else {
            panic!("a password");
        };
        assert_eq!(&*password, "md5sum-lover");
        assert_eq!(scram.iterations, 4096);
        assert!(scram.matches(b"md5sum-lover"));
        assert_eq!(
            parse("*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19").err(),
            Some(VerifierError::MySql)
        );
        assert_eq!(parse("").err(), Some(VerifierError::Empty));
        assert_eq!(format!("{:?}", parse("pencil")), "Ok(Password)");
    }
}
