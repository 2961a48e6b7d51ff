//! SCRAM on both sides, md5, stored verifiers, users files. Everything derives with one round.

use slackwater::auth::scram::{Binding, ClientExchange, NONCE_BYTES, ServerExchange};
use slackwater::auth::users::Users;
use slackwater::auth::verifier::VerifierError;
use slackwater::auth::{Credential, ScramVerifier, Secret, Verifier, md5};
use std::num::NonZeroU32;
use std::sync::LazyLock;

const PASSWORD: &str = "pencil";
const SALT: &[u8] = b"0123456789abcdef";
const NONCE: [u8; NONCE_BYTES] = *b"nonce of the test!";
/// Stands for the client's nonce in what the fuzzer makes of a server's message.
const NONCE_HERE: u8 = 1;

static VERIFIER: LazyLock<ScramVerifier> =
    LazyLock::new(|| ScramVerifier::derive(PASSWORD.as_bytes(), SALT, NonZeroU32::MIN));
static KEYS: LazyLock<Credential> = LazyLock::new(|| {
    let client = ClientExchange::new(&password(), &NONCE).expect("a password will do");
    let server = ServerExchange::new(VERIFIER.clone(), &NONCE);
    let (server, message) = server
        .client_first(false, &client.first())
        .expect("its first");
    let (_, message) = client.server_first(&message).expect("the server's first");
    server.client_final(&message).expect("its proof").credential
});

fn password() -> Credential {
    Credential::Password(PASSWORD.to_owned().into())
}

/// What a client can bind to.
const END_POINT: &[u8] = b"hash of a certificate";

/// How both sides stand to channel binding.
#[derive(Clone, Copy)]
enum Channel {
    Clear,
    NotOffered,
    Bound,
}

impl Channel {
    fn server(self, server: ServerExchange) -> ServerExchange {
        server.bound_to(matches!(self, Self::Bound).then_some(END_POINT))
    }

    fn client(self, credential: &Credential) -> ClientExchange {
        let client = ClientExchange::new(credential, &NONCE).expect("can do SCRAM");
        client.binding(match self {
            Self::Clear => Binding::Impossible,
            Self::NotOffered => Binding::NotOffered,
            Self::Bound => Binding::EndPoint(END_POINT.into()),
        })
    }

    fn is_bound(self) -> bool {
        matches!(self, Self::Bound)
    }
}

/// One exchange: hostile on one side, or honest with one message changed on its way.
pub fn scram(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let channel = [Channel::Clear, Channel::NotOffered, Channel::Bound][usize::from(kind / 4 % 3)];
    match kind % 4 {
        0 => server_side(data, channel, kind & 0x80 != 0),
        1 => client_side(data, channel, &password()),
        2 => client_side(data, channel, &KEYS),
        _ => changed(data, channel, kind / 12),
    }
    Binding::choose(data, channel.is_bound().then_some(END_POINT));
}

fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    (&data[..at], data.get(at + 1..).unwrap_or_default())
}

fn server_side(data: &[u8], channel: Channel, bound: bool) {
    let (first, last) = halves(data);
    let secret = [7; 32];
    let real = channel.server(ServerExchange::new(VERIFIER.clone(), &NONCE));
    let mock = channel.server(ServerExchange::mock(&secret, b"nobody", &NONCE));
    assert_eq!(real.mechanisms(), mock.mechanisms());
    assert_eq!(real.chosen(first), mock.chosen(first));
    let real = real.client_first(bound, first);
    let mock = mock.client_first(bound, first);
    assert_eq!(
        real.is_ok(),
        mock.is_ok(),
        "an unknown user looks different"
    );
    if let (Ok((real, _)), Ok((mock, answer))) = (real, mock) {
        // The rest of the nonce, as an honest client repeats it.
        let nonce = answer.split(|b| *b == b',').next().unwrap_or_default();
        let last = put_nonce(last, nonce.get(2..).unwrap_or_default());
        assert!(mock.client_final(&last).is_err(), "a mock let somebody in");
        assert!(real.client_final(&last).is_err(), "in without the password");
    }
}

fn client_side(data: &[u8], channel: Channel, credential: &Credential) {
    let (first, last) = halves(data);
    let client = channel.client(credential);
    let own = client.first();
    let nonce = own.rsplit(|b| *b == b'=').next().unwrap_or_default();
    if let Ok((client, _)) = client.server_first(&put_nonce(first, nonce)) {
        assert!(
            client.server_final(last).is_err(),
            "a server without the verifier"
        );
    }
}

fn put_nonce(text: &[u8], nonce: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + nonce.len());
    for b in text {
        if *b == NONCE_HERE {
            out.extend_from_slice(nonce);
        } else {
            out.push(*b);
        }
    }
    out
}

/// An honest exchange in which message `which` is changed: `[position, byte or deletion]...`
fn changed(data: &[u8], channel: Channel, which: u8) {
    let mut touched = None;
    let mut number = 0;
    let mut pass = |message: Vec<u8>| {
        let now = if number == which % 5 {
            let changed = change(&message, data);
            touched = (changed != message).then_some(number);
            changed
        } else {
            message
        };
        number += 1;
        now
    };
    let mut exchange = || {
        let client = channel.client(&password());
        let server = channel.server(ServerExchange::new(VERIFIER.clone(), &NONCE));
        let (server, message) = server.client_first(channel.is_bound(), &pass(client.first()))?;
        let (client, message) = client.server_first(&pass(message))?;
        let done = server.client_final(&pass(message))?;
        client.server_final(&pass(done.message))
    };
    let result = exchange();
    match touched {
        None => result.expect("an honest exchange"),
        // What follows the signature may be an extension.
        Some(3) => {}
        Some(_) => assert!(result.is_err(), "changed on its way, and taken"),
    }
}

fn change(message: &[u8], how: &[u8]) -> Vec<u8> {
    let mut out = message.to_vec();
    for step in how.chunks_exact(2) {
        let at = usize::from(step[0]) % (out.len() + 1);
        match (step[1], out.get_mut(at)) {
            (0xff, Some(_)) => {
                out.remove(at);
            }
            (byte @ 0x80.., _) => out.insert(at, byte & 0x7f),
            (byte, Some(slot)) => *slot = byte,
            (_, None) => {}
        }
    }
    out
}

/// Stored forms and users files.
pub fn stored(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let verifier = Verifier::parse(&text);
    if let Ok(Verifier::Scram(scram)) = &verifier {
        let written = scram.to_text();
        assert!(
            matches!(Verifier::parse(&written), Ok(Verifier::Scram(again)) if again == *scram),
            "what was written is not read"
        );
    }
    if let Ok(Verifier::Md5(stored)) = &verifier {
        let salt = [1, 2, 3, 4];
        assert!(md5::verify(
            stored,
            salt,
            md5::response(stored, salt).as_bytes()
        ));
        assert!(!md5::verify(stored, salt, data));
    }
    match Secret::parse(&text, SALT) {
        Ok(Secret::Verifier(_)) => assert!(verifier.is_ok()),
        Ok(Secret::Password { password, scram }) => {
            assert!(matches!(verifier, Err(VerifierError::Unknown)));
            assert!(scram.matches(password.as_bytes()));
            assert!(!scram.matches(format!("{}x", *password).as_bytes()));
        }
        Err(_) => assert!(verifier.is_err()),
    }
    match Users::parse(&text, |_| *b"0123456789abcdef") {
        Ok(users) => assert_eq!(users.is_empty(), users.len() == 0),
        Err(error) => assert!(error.line >= 1 && error.line <= 1 + text.lines().count()),
    }
}
