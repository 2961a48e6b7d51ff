//! A client's proof of who it is, up to AuthenticationOk.
//!
//! A user who is unknown, whose password has expired, or who has no verifier for the method is taken through
//! the same messages and the same work as any other, and then refused as for a wrong password.

use super::handshake::{Arrival, READ, read_more, say_goodbye, write};
use crate::auth::scram::{self, ScramError, ServerExchange};
use crate::auth::{Credential, ScramVerifier, Secret, Verifier, md5};
use crate::wire::pg::backend::ErrorMessage;
use crate::wire::pg::frame::{Header, Reader, put};
use bytes::{BufMut, BytesMut};
use std::io;
use zeroize::{Zeroize, Zeroizing};

/// Longest password or SASL message taken, in bytes of its body.
pub const MAX_PASSWORD_MESSAGE: usize = 64 * 1024;

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// SCRAM-SHA-256, without channel binding.
    ScramSha256,
    /// md5; a user with a SCRAM verifier is asked for SCRAM instead, as PostgreSQL does.
    Md5,
    /// The password itself; refused unless TLS or a Unix socket carries it.
    Password,
}

/// How to authenticate a client.
#[derive(Debug)]
pub struct Challenge {
    /// What it is asked for.
    pub method: Method,
    /// What its proof is checked against. `None`, for a user who is unknown or whose password has expired:
    /// the same bytes and the same work, then the same refusal as for a wrong password.
    pub secret: Option<Secret>,
}

/// Why a client was not let in. The client was told, where it could be.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The connection broke.
    #[error("the client's connection was lost during authentication")]
    Io(#[source] io::Error),
    /// It hung up instead of answering, as programs do that ask their user for a password first.
    #[error("the client hung up instead of answering")]
    Closed,
    /// Wrong password, unknown user, or expired password; nobody is told which.
    #[error("password authentication failed for user \"{user}\"")]
    Failed {
        /// The user's name.
        user: String,
    },
    /// The client does not keep to the protocol, or asks for what is not offered.
    #[error("authentication refused: {message} ({code})")]
    Refused {
        /// SQLSTATE.
        code: &'static str,
        /// What the client read.
        message: String,
    },
}

/// Asks the client for its proof and checks it. On success AuthenticationOk has been written, and what the
/// client proved itself with is returned: it logs in to servers from now on. On an error the client was told.
pub async fn authenticate(
    arrival: &mut Arrival,
    challenge: Challenge,
) -> Result<Credential, AuthError> {
    let Challenge { method, secret } = challenge;
    let result = match (method, secret) {
        (Method::Password, secret) => cleartext(arrival, secret).await,
        (Method::Md5, Some(secret @ Secret::Verifier(Verifier::Scram(_))))
        | (Method::ScramSha256, Some(secret)) => sasl(arrival, Some(secret)).await,
        (Method::ScramSha256, None) => sasl(arrival, None).await,
        (Method::Md5, secret) => md5(arrival, secret).await,
    };
    let error = match result {
        Ok(credential) => return Ok(credential),
        Err(error) => error,
    };
    let message = error.to_string();
    let told = match &error {
        AuthError::Failed { .. } => ErrorMessage::fatal("28P01", &message),
        AuthError::Refused { code, message } => ErrorMessage::fatal(code, message),
        AuthError::Io(_) | AuthError::Closed => return Err(error),
    };
    say_goodbye(&mut arrival.stream, &told).await;
    Err(error)
}

async fn sasl(arrival: &mut Arrival, secret: Option<Secret>) -> Result<Credential, AuthError> {
    let mut nonce = [0; scram::NONCE_BYTES];
    fill(&mut nonce)?;
    let (exchange, password) = match secret {
        Some(Secret::Verifier(Verifier::Scram(verifier))) => {
            (ServerExchange::new(verifier, &nonce), None)
        }
        Some(Secret::Password { password, scram }) => {
            (ServerExchange::new(scram, &nonce), Some(password))
        }
        // An md5 hash can't check a SCRAM proof.
        Some(Secret::Verifier(Verifier::Md5(_))) | None => (
            ServerExchange::mock(&arrival.mock_secret, arrival.user(), &nonce),
            None,
        ),
    };
    let fault = |error: ScramError, user: &[u8]| match error {
        ScramError::Proof => failed(user),
        other => refused(other.code(), other.to_string()),
    };
    send_authentication(arrival, 10, b"SCRAM-SHA-256\0\0").await?;
    let message = password_message(arrival).await?;
    let initial = initial_response(&message)?;
    let (exchange, answer) = exchange
        .client_first(initial)
        .map_err(|error| fault(error, arrival.user()))?;
    send_authentication(arrival, 11, &answer).await?;
    let message = password_message(arrival).await?;
    let done = exchange
        .client_final(&message)
        .map_err(|error| fault(error, arrival.user()))?;
    let mut out = BytesMut::new();
    put_authentication(&mut out, 12, &done.message);
    put_authentication(&mut out, 0, b"");
    send_auth(arrival, &out).await?;
    Ok(password.map_or(done.credential, Credential::Password))
}

/// The SCRAM message inside a SASLInitialResponse.
fn initial_response(body: &[u8]) -> Result<&[u8], AuthError> {
    let malformed = || refused("08P01", "malformed SASL initial response".to_owned());
    let mut reader = Reader::new(body);
    let mechanism = reader.cstr().map_err(|_| malformed())?;
    if mechanism != scram::MECHANISM.as_bytes() {
        let text = "client selected an invalid SASL authentication mechanism";
        return Err(refused("08P01", text.to_owned()));
    }
    let length = reader.i32().map_err(|_| malformed())?;
    if usize::try_from(length) == Ok(reader.rest().len()) {
        Ok(reader.rest())
    } else {
        Err(malformed())
    }
}

async fn md5(arrival: &mut Arrival, secret: Option<Secret>) -> Result<Credential, AuthError> {
    let mut salt = [0; 4];
    fill(&mut salt)?;
    let user = arrival.user();
    let stored = match &secret {
        Some(Secret::Verifier(Verifier::Md5(stored))) => stored.clone(),
        Some(Secret::Password { password, .. }) => md5::hash(user, password.as_bytes()),
        Some(Secret::Verifier(Verifier::Scram(_))) | None => md5::hash(user, &*arrival.mock_secret),
    };
    send_authentication(arrival, 5, &salt).await?;
    let message = password_message(arrival).await?;
    let proven = md5::verify(&stored, salt, password_text(&message)?);
    let credential = match secret {
        Some(Secret::Verifier(Verifier::Md5(stored))) => Some(Credential::Md5Hash(stored)),
        Some(Secret::Password { password, .. }) => Some(Credential::Password(password)),
        Some(Secret::Verifier(Verifier::Scram(_))) | None => None,
    };
    let credential = credential.filter(|_| proven);
    let credential = credential.ok_or_else(|| failed(arrival.user()))?;
    send_authentication(arrival, 0, b"").await?;
    Ok(credential)
}

async fn cleartext(arrival: &mut Arrival, secret: Option<Secret>) -> Result<Credential, AuthError> {
    if !arrival.stream.is_private() {
        let text = "cleartext password authentication needs TLS: connect with sslmode=require, verify-ca or verify-full";
        return Err(refused("28000", text.to_owned()));
    }
    send_authentication(arrival, 3, b"").await?;
    let message = password_message(arrival).await?;
    let password = Zeroizing::new(password_text(&message)?.to_vec());
    let mock = scram::mock_verifier(&arrival.mock_secret, arrival.user());
    let user = arrival.user().to_vec();
    // One key derivation whatever is known of the user.
    let check = move || {
        let (verifier, md5): (ScramVerifier, _) = match secret {
            Some(Secret::Verifier(Verifier::Scram(verifier))) => (verifier, None),
            Some(Secret::Password { scram, .. }) => (scram, None),
            Some(Secret::Verifier(Verifier::Md5(stored))) => (mock, Some(stored)),
            None => (mock, None),
        };
        let matches = verifier.matches(&password);
        match md5 {
            Some(stored) => (md5::hash(&user, &password) == stored, password),
            None => (matches, password),
        }
    };
    let checked = tokio::task::spawn_blocking(check).await;
    let (proven, password) = checked.map_err(|error| AuthError::Io(io::Error::other(error)))?;
    // What is no text can't be kept for servers, and a server's database would not take it either.
    let password = std::str::from_utf8(&password).ok().filter(|_| proven);
    let password = password.map(|text| Zeroizing::new(text.to_owned()));
    let password = password.ok_or_else(|| failed(arrival.user()))?;
    send_authentication(arrival, 0, b"").await?;
    Ok(Credential::Password(password))
}

/// The string that a PasswordMessage consists of.
fn password_text(body: &[u8]) -> Result<&[u8], AuthError> {
    let mut reader = Reader::new(body);
    match reader.cstr() {
        Ok(text) if reader.rest().is_empty() => Ok(text),
        _ => Err(refused("08P01", "invalid password packet size".to_owned())),
    }
}

/// Reads the body of one `p` message.
async fn password_message(arrival: &mut Arrival) -> Result<Zeroizing<Vec<u8>>, AuthError> {
    loop {
        let header = Header::parse(&arrival.buffered)
            .map_err(|error| refused("08P01", error.to_string()))?;
        if let Some(header) = header {
            if header.tag == b'X' {
                return Err(AuthError::Closed);
            }
            if header.tag != b'p' {
                let tag = header.tag;
                let text = format!("expected password response, got message type {tag}");
                return Err(refused("08P01", text));
            }
            if header.body > MAX_PASSWORD_MESSAGE {
                let size = header.body;
                let text = format!(
                    "password message of {size} bytes is too long: {MAX_PASSWORD_MESSAGE} are taken"
                );
                return Err(refused("08P01", text));
            }
            if arrival.buffered.len() >= header.frame_len() {
                let mut frame = arrival.buffered.split_to(header.frame_len());
                let body = frame.get(frame.len() - header.body..);
                let body = Zeroizing::new(body.unwrap_or_default().to_vec());
                frame.as_mut().zeroize();
                return Ok(body);
            }
        }
        let read = read_more(&mut arrival.stream, &mut arrival.buffered, READ).await;
        if read.map_err(AuthError::Io)? == 0 {
            return Err(AuthError::Closed);
        }
    }
}

fn put_authentication(out: &mut BytesMut, kind: i32, data: &[u8]) {
    put(out, b'R', |out| {
        out.put_i32(kind);
        out.put_slice(data);
    });
}

async fn send_authentication(
    arrival: &mut Arrival,
    kind: i32,
    data: &[u8],
) -> Result<(), AuthError> {
    let mut out = BytesMut::new();
    put_authentication(&mut out, kind, data);
    send_auth(arrival, &out).await
}

async fn send_auth(arrival: &mut Arrival, bytes: &[u8]) -> Result<(), AuthError> {
    let stream = &mut arrival.stream;
    write(stream, bytes).await.map_err(AuthError::Io)
}

fn fill(bytes: &mut [u8]) -> Result<(), AuthError> {
    aws_lc_rs::rand::fill(bytes)
        .map_err(|_| AuthError::Io(io::Error::other("the system gave no random bytes")))
}

fn failed(user: &[u8]) -> AuthError {
    AuthError::Failed {
        user: String::from_utf8_lossy(user).into_owned(),
    }
}

const fn refused(code: &'static str, message: String) -> AuthError {
    AuthError::Refused { code, message }
}
