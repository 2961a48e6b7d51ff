//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it, both sides, with and without channel binding
//! (`tls-server-end-point`, RFC 5929).
//!
//! Each side is a chain of states that consume themselves: [`ServerExchange`] then [`ServerFinal`] towards a
//! client, [`ClientExchange`], [`ClientSigned`] then done towards a server. The server side works with the
//! database server's own verifier and yields ClientKey, which is all that a later login to a server needs.

use super::verifier::{
    ITERATIONS, client_key, hmac_sha256, salted_password, same, server_key, sha256,
};
use super::{Credential, ScramVerifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// The mechanism's name in SASL messages.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// Its name with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The header of the first message under channel binding.
const GS2_BOUND: &str = "p=tls-server-end-point,,";

/// Longest message of an exchange that is looked at, in bytes; PostgreSQL's own limit.
pub const MAX_MESSAGE: usize = 1024;

/// Random bytes of a nonce made here (18, as PostgreSQL: 24 characters in base64).
pub const NONCE_BYTES: usize = 18;

/// Most PBKDF2 rounds that a server may ask a password of: about half a second of work.
const MAX_ITERATIONS: u32 = if cfg!(fuzzing) { 4 } else { 1_000_000 };

/// Why an exchange ends. The words are PostgreSQL's own where it has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The other side does not keep to the grammar.
    #[error("malformed SCRAM message ({0})")]
    Malformed(&'static str),
    /// The client acts for another identity than the one it logs in as.
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// `m=`: an extension that must be understood.
    #[error("client requires an unsupported SCRAM extension")]
    Extension,
    /// The client binds to a channel although it chose the mechanism without.
    #[error(
        "the client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data"
    )]
    ChannelBinding,
    /// The reverse.
    #[error(
        "the client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data"
    )]
    NoChannelBinding,
    /// The client could bind and believes that we can't: somebody took the offer out on its way.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client binds to something else than the server's certificate.
    #[error("unsupported SCRAM channel-binding type")]
    BindingType,
    /// The client is bound to another certificate than the one shown here: somebody is in between.
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    /// The nonce is not this exchange's.
    #[error("invalid SCRAM response (nonce does not match)")]
    Nonce,
    /// The client does not know the password, or there is no such user.
    #[error("the proof does not fit the verifier")]
    Proof,
    /// The server asks for more or fewer rounds than are taken.
    #[error("the server wants {0} SCRAM iterations; 1 to 1000000 are taken")]
    Iterations(u32),
    /// The server refused and said why.
    #[error("the server ended the SCRAM exchange with an error")]
    ServerRefused,
    /// The server could not prove that it holds the verifier.
    #[error("the server's SCRAM signature is wrong: it does not hold this user's verifier")]
    ServerSignature,
    /// An md5 hash is no use for SCRAM.
    #[error(
        "the server asks for SCRAM, but only an md5 hash of this user's password is known; set the password again with password_encryption = scram-sha-256"
    )]
    NoScramSecret,
}

impl ScramError {
    /// SQLSTATE that a client is told; [`Self::Proof`] has its own text there, with the user's name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AuthorizationIdentity | Self::Extension => "0A000",
            Self::Proof | Self::NoScramSecret => "28P01",
            Self::Downgrade | Self::BindingMismatch => "28000",
            _ => "08P01",
        }
    }
}

/// The salt that an unknown user is shown: the same at each try and after each restart, as a real user's is.
pub fn mock_salt(secret: &[u8; 32], user: &[u8]) -> [u8; 16] {
    let full = hmac_sha256(secret, user);
    *full.first_chunk().expect("32 bytes hold 16")
}

/// A verifier for a user who has none, so that an attempt takes the same bytes and the same work. Nobody
/// knows a password for it.
pub fn mock_verifier(secret: &[u8; 32], user: &[u8]) -> ScramVerifier {
    let key = |label: &[u8]| hmac_sha256(&hmac_sha256(secret, label), user);
    ScramVerifier {
        iterations: ITERATIONS.get(),
        salt: mock_salt(secret, user).to_vec(),
        stored_key: key(b"mock StoredKey"),
        server_key: key(b"mock ServerKey"),
    }
}

/// The server's side, waiting for the client's first message.
pub struct ServerExchange {
    verifier: ScramVerifier,
    doomed: bool,
    nonce: String,
    /// What a client can bind to; offered where it is there.
    end_point: Option<Box<[u8]>>,
}

/// The server's side, waiting for the client's proof.
pub struct ServerFinal {
    verifier: ScramVerifier,
    doomed: bool,
    /// The header of the client's first message and what it binds to, which its last one must repeat in base64.
    binding: Vec<u8>,
    nonce: String,
    client_first_bare: String,
    server_first: String,
}

/// What a client's proof gave.
pub struct ServerDone {
    /// The message that proves the server to the client (`v=...`).
    pub message: Vec<u8>,
    /// Logs in to servers that hold the same verifier.
    pub credential: Credential,
}

impl ServerExchange {
    /// An exchange for a user with a verifier. `nonce` is [`NONCE_BYTES`] of randomness.
    pub fn new(verifier: ScramVerifier, nonce: &[u8; NONCE_BYTES]) -> Self {
        Self {
            verifier,
            doomed: false,
            nonce: BASE64.encode(nonce),
            end_point: None,
        }
    }

    /// Offers channel binding to this certificate's hash, where there is one.
    #[must_use]
    pub fn bound_to(mut self, end_point: Option<&[u8]>) -> Self {
        self.end_point = end_point.map(Into::into);
        self
    }

    /// The mechanisms that are offered, as AuthenticationSASL lists them.
    pub const fn mechanisms(&self) -> &'static [u8] {
        if self.end_point.is_some() {
            b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
        } else {
            b"SCRAM-SHA-256\0\0"
        }
    }

    /// Whether the client's choice of mechanism binds to the channel; `None`: it was not offered.
    pub fn chosen(&self, mechanism: &[u8]) -> Option<bool> {
        if mechanism == MECHANISM.as_bytes() {
            Some(false)
        } else {
            (self.end_point.is_some() && mechanism == MECHANISM_PLUS.as_bytes()).then_some(true)
        }
    }

    /// An exchange that fails at its end whatever the client proves, for a user without a usable verifier.
    pub fn mock(secret: &[u8; 32], user: &[u8], nonce: &[u8; NONCE_BYTES]) -> Self {
        Self {
            doomed: true,
            ..Self::new(mock_verifier(secret, user), nonce)
        }
    }

    /// Takes the client's first message; returns the answer to send. `bound`: what [`Self::chosen`] said.
    pub fn client_first(
        self,
        bound: bool,
        message: &[u8],
    ) -> Result<(ServerFinal, Vec<u8>), ScramError> {
        let message = text(message)?;
        let (flag, rest) = message
            .split_once(',')
            .ok_or(ScramError::Malformed("no channel-binding flag"))?;
        let binding = match (flag, &self.end_point) {
            ("n" | "y", _) if bound => return Err(ScramError::NoChannelBinding),
            ("n", _) => b"n,,".to_vec(),
            // The client could bind but believes that we can't; true only where it was not offered.
            ("y", Some(_)) => return Err(ScramError::Downgrade),
            ("y", None) => b"y,,".to_vec(),
            (_, Some(end_point)) if bound => match flag.strip_prefix("p=") {
                Some("tls-server-end-point") => [GS2_BOUND.as_bytes(), end_point].concat(),
                Some(_) => return Err(ScramError::BindingType),
                None => return Err(ScramError::Malformed("unexpected channel-binding flag")),
            },
            _ if flag.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed("unexpected channel-binding flag")),
        };
        if rest.starts_with("a=") {
            return Err(ScramError::AuthorizationIdentity);
        }
        let bare = rest
            .strip_prefix(',')
            .ok_or(ScramError::Malformed("comma expected after the flag"))?;
        if bare.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let mut fields = bare.split(',');
        // The name in here is not looked at: the start-up packet's counts, as in PostgreSQL.
        attribute(fields.next(), "n=", "user name expected")?;
        let client_nonce = attribute(fields.next(), "r=", "nonce expected")?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ScramError::Malformed("non-printable characters in nonce"));
        }
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = BASE64.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let answer = server_first.clone().into_bytes();
        let next = ServerFinal {
            verifier: self.verifier,
            doomed: self.doomed,
            binding,
            nonce,
            client_first_bare: bare.to_owned(),
            server_first,
        };
        Ok((next, answer))
    }
}

impl ServerFinal {
    /// Takes the client's last message and checks its proof.
    pub fn client_final(self, message: &[u8]) -> Result<ServerDone, ScramError> {
        let message = text(message)?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("no proof"))?;
        let mut fields = without_proof.split(',');
        let binding = attribute(fields.next(), "c=", "channel binding expected")?;
        if !same(binding.as_bytes(), BASE64.encode(&self.binding).as_bytes()) {
            if self.binding.starts_with(b"p=") {
                return Err(ScramError::BindingMismatch);
            }
            return Err(ScramError::Malformed(
                "unexpected channel-binding attribute in client-final-message",
            ));
        }
        let nonce = attribute(fields.next(), "r=", "nonce expected")?;
        if !same(nonce.as_bytes(), self.nonce.as_bytes()) {
            return Err(ScramError::Nonce);
        }
        let proof = Zeroizing::new(
            BASE64
                .decode(proof)
                .map_err(|_| ScramError::Malformed("proof is not base64"))?,
        );
        let proof = <&[u8; 32]>::try_from(proof.as_slice())
            .map_err(|_| ScramError::Malformed("proof has the wrong length"))?;
        let auth_message = auth_message(&self.client_first_bare, &self.server_first, without_proof);
        let signature = hmac_sha256(&self.verifier.stored_key, auth_message.as_bytes());
        let client_key = Zeroizing::new(xor(proof, &signature));
        let proven = same(&sha256(&*client_key), &self.verifier.stored_key);
        let signature = hmac_sha256(&self.verifier.server_key, auth_message.as_bytes());
        if !proven || self.doomed {
            return Err(ScramError::Proof);
        }
        Ok(ServerDone {
            message: format!("v={}", BASE64.encode(signature)).into_bytes(),
            credential: Credential::ScramKeys {
                client_key,
                server_key: Zeroizing::new(self.verifier.server_key),
            },
        })
    }
}

enum ClientSecret {
    Keys {
        client_key: Zeroizing<[u8; 32]>,
        server_key: Zeroizing<[u8; 32]>,
    },
    Password(Zeroizing<String>),
}

/// What the client's side knows of channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// There is nothing to bind to: no TLS, or a certificate that can't be bound to.
    Impossible,
    /// It would bind, and the server did not offer it.
    NotOffered,
    /// It binds to this hash of the server's certificate.
    EndPoint(Box<[u8]>),
}

impl Binding {
    /// What is to be done about a server's offer, a list of names that each end in NUL; `end_point` is what
    /// there is to bind to. `None`: nothing that is spoken here was offered.
    pub fn choose(offer: &[u8], end_point: Option<&[u8]>) -> Option<Self> {
        let offers = |name: &str| offer.split(|b| *b == 0).any(|n| n == name.as_bytes());
        match end_point {
            Some(end_point) if offers(MECHANISM_PLUS) => Some(Self::EndPoint(end_point.into())),
            Some(_) => offers(MECHANISM).then_some(Self::NotOffered),
            None => offers(MECHANISM).then_some(Self::Impossible),
        }
    }

    fn header(&self) -> &'static str {
        match self {
            Self::Impossible => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => GS2_BOUND,
        }
    }

    fn data(&self) -> Vec<u8> {
        let end_point: &[u8] = match self {
            Self::EndPoint(end_point) => end_point,
            Self::Impossible | Self::NotOffered => &[],
        };
        [self.header().as_bytes(), end_point].concat()
    }
}

/// The client's side towards a server: its first message is ready.
pub struct ClientExchange {
    secret: ClientSecret,
    nonce: String,
    binding: Binding,
}

/// The client's side after its proof: the server's signature is still to be checked.
pub struct ClientSigned {
    signature: [u8; 32],
}

impl ClientExchange {
    /// An exchange with what is known of the user. `nonce` is [`NONCE_BYTES`] of randomness.
    pub fn new(credential: &Credential, nonce: &[u8; NONCE_BYTES]) -> Result<Self, ScramError> {
        let secret = match credential {
            Credential::ScramKeys {
                client_key,
                server_key,
            } => ClientSecret::Keys {
                client_key: client_key.clone(),
                server_key: server_key.clone(),
            },
            Credential::Password(password) => ClientSecret::Password(password.clone()),
            Credential::Md5Hash(_) => return Err(ScramError::NoScramSecret),
        };
        Ok(Self {
            secret,
            nonce: BASE64.encode(nonce),
            binding: Binding::Impossible,
        })
    }

    /// Binds to the channel, or says why not.
    #[must_use]
    pub fn binding(mut self, binding: Binding) -> Self {
        self.binding = binding;
        self
    }

    /// The mechanism to name in SASLInitialResponse.
    pub const fn mechanism(&self) -> &'static str {
        match self.binding {
            Binding::EndPoint(_) => MECHANISM_PLUS,
            Binding::Impossible | Binding::NotOffered => MECHANISM,
        }
    }

    /// The first message, for SASLInitialResponse with [`Self::mechanism`].
    pub fn first(&self) -> Vec<u8> {
        format!("{}{}", self.binding.header(), self.first_bare()).into_bytes()
    }

    /// The server's answer costs a key derivation (milliseconds of CPU): a password is all there is.
    pub const fn is_slow(&self) -> bool {
        matches!(self.secret, ClientSecret::Password(_))
    }

    /// Takes the server's first message; returns the proof to send. See [`Self::is_slow`].
    pub fn server_first(self, message: &[u8]) -> Result<(ClientSigned, Vec<u8>), ScramError> {
        let server_first = text(message)?;
        if server_first.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let mut fields = server_first.split(',');
        let nonce = attribute(fields.next(), "r=", "nonce expected")?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Nonce);
        }
        let salt = attribute(fields.next(), "s=", "salt expected")?;
        let salt = BASE64
            .decode(salt)
            .map_err(|_| ScramError::Malformed("salt is not base64"))?;
        let iterations: u32 = attribute(fields.next(), "i=", "iteration count expected")?
            .parse()
            .map_err(|_| ScramError::Malformed("iteration count is no number"))?;
        let rounds = NonZeroU32::new(iterations)
            .filter(|n| n.get() <= MAX_ITERATIONS)
            .ok_or(ScramError::Iterations(iterations))?;
        let without_proof = format!("c={},r={nonce}", BASE64.encode(self.binding.data()));
        let auth_message = auth_message(&self.first_bare(), server_first, &without_proof);
        let (client_key, server_key) = match self.secret {
            ClientSecret::Keys {
                client_key,
                server_key,
            } => (client_key, server_key),
            ClientSecret::Password(password) => {
                let salted = salted_password(password.as_bytes(), &salt, rounds);
                (client_key(&salted), server_key(&salted))
            }
        };
        let signature = hmac_sha256(&sha256(&*client_key), auth_message.as_bytes());
        let proof = Zeroizing::new(xor(&client_key, &signature));
        let answer = format!("{without_proof},p={}", BASE64.encode(*proof));
        let next = ClientSigned {
            signature: hmac_sha256(&*server_key, auth_message.as_bytes()),
        };
        Ok((next, answer.into_bytes()))
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }
}

impl ClientSigned {
    /// Takes the server's last message. Without this the server has proven nothing: AuthenticationOk that
    /// comes before it must be refused.
    pub fn server_final(self, message: &[u8]) -> Result<(), ScramError> {
        let message = text(message)?;
        if message.starts_with("e=") {
            return Err(ScramError::ServerRefused);
        }
        let signature = attribute(message.split(',').next(), "v=", "signature expected")?;
        let signature = BASE64
            .decode(signature)
            .map_err(|_| ScramError::Malformed("signature is not base64"))?;
        if same(&signature, &self.signature) {
            Ok(())
        } else {
            Err(ScramError::ServerSignature)
        }
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("too long"));
    }
    std::str::from_utf8(message)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or(ScramError::Malformed("not text"))
}

fn attribute<'a>(
    field: Option<&'a str>,
    name: &str,
    missing: &'static str,
) -> Result<&'a str, ScramError> {
    field
        .and_then(|field| field.strip_prefix(name))
        .ok_or(ScramError::Malformed(missing))
}

fn auth_message(client_first_bare: &str, server_first: &str, without_proof: &str) -> String {
    format!("{client_first_bare},{server_first},{without_proof}")
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    let mut out = *a;
    for (out, b) in out.iter_mut().zip(b) {
        *out ^= b;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: [u8; NONCE_BYTES] = [7; NONCE_BYTES];

    fn verifier() -> ScramVerifier {
        ScramVerifier::derive(b"pencil", b"0123456789abcdef", ITERATIONS)
    }

    fn password(text: &str) -> Credential {
        Credential::Password(Zeroizing::new(text.to_owned()))
    }

    /// Runs both sides against each other.
    fn login(server: ServerExchange, credential: &Credential) -> Result<Credential, ScramError> {
        let client = ClientExchange::new(credential, &[9; NONCE_BYTES])?;
        let bound = server.chosen(client.mechanism().as_bytes());
        let (server, message) = server.client_first(bound.expect("offered"), &client.first())?;
        let (client, message) = client.server_first(&message)?;
        let done = server.client_final(&message)?;
        client.server_final(&done.message)?;
        Ok(done.credential)
    }

    #[test]
    fn a_password_opens_and_so_do_the_recovered_keys() {
        let server = || ServerExchange::new(verifier(), &NONCE);
        let keys = login(server(), &password("pencil")).expect("the right password");
        assert!(matches!(keys, Credential::ScramKeys { .. }));
        let again = login(server(), &keys).expect("ClientKey is enough");
        login(server(), &again).expect("and recovered again");
        assert_eq!(
            login(server(), &password("Pencil")).err(),
            Some(ScramError::Proof)
        );
        let other = ScramVerifier::derive(b"pencil", b"another salt 123", ITERATIONS);
        assert_eq!(
            login(ServerExchange::new(other, &NONCE), &keys).err(),
            Some(ScramError::Proof),
            "another salt, other keys"
        );
        let md5 = Credential::Md5Hash(Zeroizing::new("md5".to_owned()));
        assert_eq!(login(server(), &md5).err(), Some(ScramError::NoScramSecret));
    }

    #[test]
    fn the_rfc_exchange() {
        // RFC 7677 section 3; its client sends n=user, so the server side is run on its words.
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let verifier = ScramVerifier::derive(b"pencil", &salt, ITERATIONS);
        let mut server = ServerExchange::new(verifier, &NONCE);
        server.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
        let (server, first) = server
            .client_first(false, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
            .expect("a good first message");
        assert_eq!(
            first,
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let done = server
            .client_final(
                b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                  p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            )
            .expect("the RFC's proof");
        assert_eq!(
            done.message,
            b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }

    #[test]
    fn first_messages() {
        let check = |message: &str| {
            ServerExchange::new(verifier(), &NONCE)
                .client_first(false, message.as_bytes())
                .map(|(_, answer)| String::from_utf8(answer).expect("text"))
        };
        assert!(check("y,,n=,r=abc").is_ok_and(|answer| answer.starts_with("r=abcBwcH")));
        assert!(check("n,,n=x,r=abc,ext=1").is_ok());
        for (message, expected) in [
            (
                "p=tls-server-end-point,,n=,r=abc",
                ScramError::ChannelBinding,
            ),
            ("n,a=root,n=,r=abc", ScramError::AuthorizationIdentity),
            ("n,,m=ext,n=,r=abc", ScramError::Extension),
        ] {
            assert_eq!(check(message), Err(expected), "{message}");
        }
        for message in [
            "",
            "n",
            "n,",
            "n,x,n=,r=abc",
            "q,,n=,r=abc",
            "n,,r=abc",
            "n,,n=",
            "n,,n=,r=",
            "n,,n=,r=a\u{1}",
            "n,,n=,r=ä",
        ] {
            assert!(
                matches!(check(message), Err(ScramError::Malformed(_))),
                "{message}"
            );
        }
        let long = format!("n,,n=,r={}", "a".repeat(MAX_MESSAGE));
        assert_eq!(check(&long), Err(ScramError::Malformed("too long")));
    }

    #[test]
    fn channel_binding_is_checked_on_both_sides() {
        let here = [1; 32];
        let bind = |end_point: &[u8]| Binding::EndPoint(end_point.into());
        let run = |offered: Option<&[u8]>, binding: Binding| {
            let server = ServerExchange::new(verifier(), &NONCE).bound_to(offered);
            let client = ClientExchange::new(&password("pencil"), &[9; NONCE_BYTES])?;
            let client = client.binding(binding);
            let bound = server.chosen(client.mechanism().as_bytes());
            let bound = bound.ok_or(ScramError::ChannelBinding)?;
            let (server, message) = server.client_first(bound, &client.first())?;
            let (client, message) = client.server_first(&message)?;
            let done = server.client_final(&message)?;
            client.server_final(&done.message)?;
            Ok(done.credential)
        };
        let keys = run(Some(&here), bind(&here)).expect("bound to the same certificate");
        login(ServerExchange::new(verifier(), &NONCE), &keys).expect("the keys are the same ones");
        assert_eq!(
            run(Some(&here), bind(&[2; 32])).err(),
            Some(ScramError::BindingMismatch),
            "another certificate"
        );
        assert_eq!(
            run(Some(&here), Binding::NotOffered).err(),
            Some(ScramError::Downgrade),
            "the offer was taken out on its way"
        );
        assert!(run(Some(&here), Binding::Impossible).is_ok());
        assert!(run(None, Binding::NotOffered).is_ok());
        assert_eq!(
            run(None, bind(&here)).err(),
            Some(ScramError::ChannelBinding),
            "not offered"
        );
    }

    #[test]
    fn gs2_flags_as_postgresql_checks_them() {
        let check = |bound: bool, message: &str| {
            let server = ServerExchange::new(verifier(), &NONCE).bound_to(Some(&[1; 32]));
            let first = server.client_first(bound, message.as_bytes());
            first.map(|_| ())
        };
        let bound = "p=tls-server-end-point,,n=,r=abc";
        assert_eq!(check(true, bound), Ok(()));
        assert_eq!(check(false, "n,,n=,r=abc"), Ok(()));
        for (choice, message, expected) in [
            (false, bound, ScramError::ChannelBinding),
            (true, "n,,n=,r=abc", ScramError::NoChannelBinding),
            (true, "y,,n=,r=abc", ScramError::NoChannelBinding),
            (false, "y,,n=,r=abc", ScramError::Downgrade),
            (true, "p=tls-unique,,n=,r=abc", ScramError::BindingType),
            (true, "p=tls-exporter,,n=,r=abc", ScramError::BindingType),
            (
                true,
                "q,,n=,r=abc",
                ScramError::Malformed("unexpected channel-binding flag"),
            ),
        ] {
            assert_eq!(check(choice, message), Err(expected), "{choice} {message}");
        }
    }

    #[test]
    fn the_best_offer_is_chosen() {
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".as_slice();
        let plain = b"SCRAM-SHA-256\0\0".as_slice();
        let here = [3; 32];
        let end_point = Some(Binding::EndPoint(here.into()));
        assert_eq!(Binding::choose(both, Some(&here)), end_point);
        assert_eq!(Binding::choose(both, None), Some(Binding::Impossible));
        assert_eq!(
            Binding::choose(plain, Some(&here)),
            Some(Binding::NotOffered)
        );
        assert_eq!(Binding::choose(plain, None), Some(Binding::Impossible));
        assert_eq!(Binding::choose(b"OAUTHBEARER\0\0", Some(&here)), None);
        assert_eq!(
            Binding::choose(b"SCRAM-SHA-256-PLUS\0\0", None),
            None,
            "only what can't be had"
        );
    }

    #[test]
    fn final_messages() {
        let check = |change: &dyn Fn(String) -> String| {
            let client = ClientExchange::new(&password("pencil"), &NONCE).expect("a password");
            let (server, first) = ServerExchange::new(verifier(), &[1; NONCE_BYTES])
                .client_first(false, &client.first())
                .expect("a good first message");
            let (_, message) = client.server_first(&first).expect("a good answer");
            let message = change(String::from_utf8(message).expect("text"));
            server.client_final(message.as_bytes()).map(|_| ())
        };
        assert_eq!(check(&|m| m), Ok(()));
        assert_eq!(
            check(&|m| m.replace("r=Bw", "r=bw")),
            Err(ScramError::Nonce)
        );
        for change in [
            &(|m: String| m.replace("c=biws", "c=eSws")) as &dyn Fn(String) -> String,
            &|m| m.replace(",p=", ",p=AAAA"),
            &|m| m.replace(",p=", ",p=!"),
            &|m| m.replace(",p=", ",q="),
            &|m| m + ",x=1",
            &|_| String::new(),
        ] {
            assert!(matches!(check(change), Err(ScramError::Malformed(_))));
        }
        let ext = check(&|m| m.replace(",p=", ",x=1,p="));
        assert_eq!(
            ext,
            Err(ScramError::Proof),
            "an extension is part of what is signed"
        );
    }

    #[test]
    fn an_unknown_user_looks_like_a_known_one() {
        let secret = [3; 32];
        let first = |server: ServerExchange| {
            let (_, answer) = server.client_first(false, b"n,,n=,r=abc").expect("good");
            String::from_utf8(answer).expect("text")
        };
        let known = first(ServerExchange::new(verifier(), &NONCE));
        let unknown = first(ServerExchange::mock(&secret, b"nobody", &NONCE));
        assert_eq!(known.len(), unknown.len());
        assert_eq!(
            unknown,
            first(ServerExchange::mock(&secret, b"nobody", &NONCE))
        );
        assert_ne!(
            unknown,
            first(ServerExchange::mock(&secret, b"other", &NONCE))
        );
        assert_ne!(
            unknown,
            first(ServerExchange::mock(&[4; 32], b"nobody", &NONCE))
        );
        let result = login(
            ServerExchange::mock(&secret, b"nobody", &NONCE),
            &password("x"),
        );
        assert_eq!(result.err(), Some(ScramError::Proof));
    }

    #[test]
    fn a_doomed_exchange_fails_even_with_the_right_proof() {
        let mut server = ServerExchange::new(verifier(), &NONCE);
        server.doomed = true;
        assert_eq!(
            login(server, &password("pencil")).err(),
            Some(ScramError::Proof)
        );
    }

    #[test]
    fn a_server_must_prove_itself() {
        let client = || ClientExchange::new(&password("pencil"), &NONCE).expect("a password");
        let own = BASE64.encode(NONCE);
        let first = |text: String| client().server_first(text.as_bytes()).map(|_| ());
        assert_eq!(first(format!("r={own}x,s=AAAA,i=1")), Ok(()));
        assert_eq!(first(format!("r={own},s=AAAA,i=1")), Err(ScramError::Nonce));
        assert_eq!(
            first("r=other,s=AAAA,i=1".to_owned()),
            Err(ScramError::Nonce)
        );
        assert_eq!(
            first(format!("r={own}x,s=AAAA,i=0")),
            Err(ScramError::Iterations(0))
        );
        assert_eq!(
            first(format!("r={own}x,s=AAAA,i=1000001")),
            Err(ScramError::Iterations(1_000_001))
        );
        let signed = || {
            let text = format!("r={own}x,s=AAAA,i=1");
            client().server_first(text.as_bytes()).expect("good").0
        };
        assert_eq!(
            signed().server_final(b"e=other-error"),
            Err(ScramError::ServerRefused)
        );
        let wrong = format!("v={}", BASE64.encode([0; 32]));
        assert_eq!(
            signed().server_final(wrong.as_bytes()),
            Err(ScramError::ServerSignature)
        );
        assert_eq!(
            signed().server_final(b"v=AAAA"),
            Err(ScramError::ServerSignature)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(a in proptest::collection::vec(any::<u8>(), 0..80), b in "[a-z=,/+]{0,60}") {
            let server = || ServerExchange::new(mock_verifier(&[1; 32], b"u"), &NONCE);
            let _ = server().client_first(false, &a);
            let bound = server().bound_to(Some(&a));
            let _ = bound.client_first(true, &[GS2_BOUND.as_bytes(), &a].concat());
            let _ = server().client_first(false, format!("n,,n=,r={b}").as_bytes());
            let (next, _) = server().client_first(false, b"n,,n=,r=abc").expect("good");
            let _ = next.client_final(format!("c=biws,{b},p={b}").as_bytes());
            let keys = Credential::ScramKeys {
                client_key: Zeroizing::new([1; 32]),
                server_key: Zeroizing::new([2; 32]),
            };
            let client = ClientExchange::new(&keys, &NONCE).expect("keys");
            let _ = client.server_first(&a);
        }
    }
}
