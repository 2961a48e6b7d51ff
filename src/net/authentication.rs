//! A client's proof of who it is, up to AuthenticationOk.
//!
//! A user who is unknown, whose password has expired, or who has no verifier for the method is taken through
//! the same messages and the same work as any other, and then refused as for a wrong password.

use super::handshake::{Arrival, READ, read_more, say_goodbye, write};
use crate::auth::scram::{self, ScramError, ServerExchange};
use crate::auth::{Credential, ScramVerifier, Secret, Verifier, md5};
use crate::transport::client_certificate;
use crate::wire::pg::backend::ErrorMessage;
use crate::wire::pg::frame::{Header, Reader, put};
use bytes::{BufMut, BytesMut};
use std::io;
use zeroize::{Zeroize, Zeroizing};

/// Longest password message taken, in bytes of its body.
pub const MAX_PASSWORD_MESSAGE: usize = 64 * 1024;

/// Longest SASL message taken; PostgreSQL takes no more either.
const MAX_SASL_MESSAGE: usize = scram::MAX_MESSAGE;

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// SCRAM-SHA-256; with channel binding (`-PLUS`) where TLS gives something to bind to.
    ScramSha256,
    /// md5; a user with a SCRAM verifier is asked for SCRAM instead, as PostgreSQL does.
    Md5,
    /// The password itself; refused unless TLS or a Unix socket carries it.
    Password,
    /// Nothing more than its certificate, whose common name was found to be the user's name. The users file
    /// has the password that logs in to servers.
    Certificate,
}

/// What a cluster demands of a client's certificate, with pg_hba.conf's meanings of the words in `clientcert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Nothing.
    Off,
    /// There must be one. (One that is shown was verified by the TLS handshake.)
    VerifyCa,
    /// There must be one, and its common name must be the user's name.
    VerifyFull,
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
    /// The certificate is another's, or none of that user is known.
    #[error("certificate authentication failed for user \"{user}\"")]
    Certificate {
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

/// Checks a client's certificate against what is demanded of it. On an error the client was told.
pub async fn check_certificate(
    arrival: &mut Arrival,
    demand: ClientCertificate,
) -> Result<(), AuthError> {
    let error = match demand {
        ClientCertificate::Off => return Ok(()),
        _ if arrival.stream.peer_certificate().is_none() => {
            let text = "connection requires a valid client certificate";
            refused("28000", text.to_owned())
        }
        ClientCertificate::VerifyCa => return Ok(()),
        ClientCertificate::VerifyFull => {
            let name = client_certificate::common_name(&arrival.stream);
            if name.is_some_and(|name| name.as_bytes() == arrival.user()) {
                return Ok(());
            }
            certificate_failed(arrival.user())
        }
    };
    Err(tell(arrival, error).await)
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
        (Method::Certificate, Some(Secret::Password { password, .. })) => {
            let sent = send_authentication(arrival, 0, b"").await;
            sent.map(|()| Credential::Password(password))
        }
        (Method::Certificate, _) => Err(certificate_failed(arrival.user())),
    };
    match result {
        Ok(credential) => Ok(credential),
        Err(error) => Err(tell(arrival, error).await),
    }
}

/// Tells the client why it is not let in, as far as there is somebody to be told.
async fn tell(arrival: &mut Arrival, error: AuthError) -> AuthError {
    let message = error.to_string();
    let told = match &error {
        AuthError::Failed { .. } => ErrorMessage::fatal("28P01", &message),
        AuthError::Certificate { .. } => ErrorMessage::fatal("28000", &message),
        AuthError::Refused { code, message } => ErrorMessage::fatal(code, message),
        AuthError::Io(_) | AuthError::Closed => return error,
    };
    say_goodbye(&mut arrival.stream, &told).await;
    error
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
    let exchange = exchange.bound_to(arrival.end_point.as_deref());
    send_authentication(arrival, 10, exchange.mechanisms()).await?;
    let mut message = password_message(arrival, MAX_SASL_MESSAGE).await?;
    let (bound, initial) = initial_response(&message, &exchange)?;
    let initial = if let Some(initial) = initial {
        initial
    } else {
        // It chose its mechanism and waits for a challenge, though there is none to give.
        send_authentication(arrival, 11, b"").await?;
        message = password_message(arrival, MAX_SASL_MESSAGE).await?;
        &message
    };
    let (exchange, answer) = exchange
        .client_first(bound, initial)
        .map_err(|error| fault(error, arrival.user()))?;
    send_authentication(arrival, 11, &answer).await?;
    let message = password_message(arrival, MAX_SASL_MESSAGE).await?;
    let done = exchange
        .client_final(&message)
        .map_err(|error| fault(error, arrival.user()))?;
    let mut out = BytesMut::new();
    put_authentication(&mut out, 12, &done.message);
    put_authentication(&mut out, 0, b"");
    send_auth(arrival, &out).await?;
    Ok(password.map_or(done.credential, Credential::Password))
}

/// Whether the mechanism that a SASLInitialResponse names binds to the channel, and the SCRAM message in it.
fn initial_response<'a>(
    body: &'a [u8],
    exchange: &ServerExchange,
) -> Result<(bool, Option<&'a [u8]>), AuthError> {
    let malformed = || refused("08P01", "malformed SASL initial response".to_owned());
    let mut reader = Reader::new(body);
    let mechanism = reader.cstr().map_err(|_| malformed())?;
    let Some(bound) = exchange.chosen(mechanism) else {
        let text = "client selected an invalid SASL authentication mechanism";
        return Err(refused("08P01", text.to_owned()));
    };
    let length = reader.i32().map_err(|_| malformed())?;
    if length == -1 && reader.rest().is_empty() {
        Ok((bound, None))
    } else if usize::try_from(length) == Ok(reader.rest().len()) {
        Ok((bound, Some(reader.rest())))
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
    let message = password_message(arrival, MAX_PASSWORD_MESSAGE).await?;
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
    let message = password_message(arrival, MAX_PASSWORD_MESSAGE).await?;
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
            Some(stored) => (md5::matches(&stored, &user, &password), password),
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

/// Reads the body of one `p` message, of at most `limit` bytes.
async fn password_message(
    arrival: &mut Arrival,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, AuthError> {
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
            if header.body > limit {
                let size = header.body;
                let text =
                    format!("password message of {size} bytes is too long: {limit} are taken");
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

fn certificate_failed(user: &[u8]) -> AuthError {
    AuthError::Certificate {
        user: String::from_utf8_lossy(user).into_owned(),
    }
}

const fn refused(code: &'static str, message: String) -> AuthError {
    AuthError::Refused { code, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::{Binding, ClientExchange};
    use crate::net::handshake::{Accepted, accept};
    use crate::net::script::{config, frame, in_time, pipe, put_all, startup_packet};
    use crate::transport::stream::Stream;
    use crate::transport::{ListenTls, ServerTls, tls};
    use crate::wire::pg::backend::{ErrorFields, put_ready};
    use crate::wire::pg::startup::{PROTOCOL_3_0, put_ssl_request};

    const SALT: [u8; 16] = *b"0123456789abcdef";

    fn password(text: &str) -> Secret {
        Secret::parse(text, &SALT).expect("a password")
    }

    fn scram_only(text: &str) -> Secret {
        let verifier =
            ScramVerifier::derive(text.as_bytes(), &SALT, crate::auth::verifier::ITERATIONS);
        Secret::Verifier(Verifier::Scram(verifier))
    }

    fn md5_only(user: &str, text: &str) -> Secret {
        Secret::Verifier(Verifier::Md5(md5::hash(user.as_bytes(), text.as_bytes())))
    }

    /// A connection whose start-up packet for user `app` has been taken, and its other end.
    async fn arrived(encrypted: bool) -> (Arrival, Stream) {
        let config = config(ListenTls::Prefer);
        let (near, mut far) = pipe();
        let client = async {
            if encrypted {
                let mut request = BytesMut::new();
                put_ssl_request(&mut request);
                put_all(&mut far, &request).await;
                let mut answer = [0];
                tokio::io::AsyncReadExt::read_exact(&mut far, &mut answer)
                    .await
                    .expect("an answer");
                let opened = tls::connect(far, "localhost", ServerTls::Require, None).await;
                far = opened.expect("a handshake");
            }
            put_all(&mut far, &startup_packet(PROTOCOL_3_0, b"user\0app\0\0")).await;
            far
        };
        let (accepted, far) = in_time(async { tokio::join!(accept(near, &config), client) }).await;
        match accepted {
            Ok(Accepted::Session(arrival)) => (*arrival, far),
            other => panic!("{other:?}"),
        }
    }

    fn p(body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, b'p', |out| out.put_slice(body));
        out
    }

    fn initial(mechanism: &str, data: &[u8]) -> BytesMut {
        let mut body = BytesMut::new();
        body.put_slice(mechanism.as_bytes());
        body.put_u8(0);
        body.put_i32(i32::try_from(data.len()).expect("short"));
        body.put_slice(data);
        p(&body)
    }

    /// A client with this password; answers whatever it is asked for. Returns all that it was sent.
    async fn client(far: &mut Stream, password: &str) -> Vec<(u8, Vec<u8>)> {
        let secret = Credential::Password(Zeroizing::new(password.to_owned()));
        let mut exchange = Some(ClientExchange::new(&secret, &[9; 18]).expect("a password"));
        let mut signed = None;
        let mut heard = Vec::new();
        loop {
            let (tag, body) = frame(far).await;
            heard.push((tag, body.clone()));
            if tag != b'R' {
                return heard;
            }
            let (kind, data) = body.split_at(4);
            let answer = match kind {
                [0, 0, 0, 0] => return heard,
                [0, 0, 0, 3] => p(format!("{password}\0").as_bytes()),
                [0, 0, 0, 5] => {
                    let stored = md5::hash(b"app", password.as_bytes());
                    let salt = data.try_into().expect("four bytes");
                    p(format!("{}\0", &*md5::response(&stored, salt)).as_bytes())
                }
                [0, 0, 0, 10] => {
                    let end_point = tls::server_end_point(far);
                    assert_eq!(data.starts_with(b"SCRAM-SHA-256-PLUS\0"), far.is_tls());
                    let binding = Binding::choose(data, end_point.as_deref()).expect("offered");
                    let bound = exchange.take().expect("asked once").binding(binding);
                    assert_eq!(bound.mechanism().ends_with("-PLUS"), far.is_tls());
                    let first = initial(bound.mechanism(), &bound.first());
                    exchange = Some(bound);
                    first
                }
                [0, 0, 0, 11] => {
                    let exchange = exchange.take().expect("asked once");
                    let (next, proof) = exchange.server_first(data).expect("a good challenge");
                    signed = Some(next);
                    p(&proof)
                }
                [0, 0, 0, 12] => {
                    let signed = signed.take().expect("after the proof");
                    signed.server_final(data).expect("the server's signature");
                    continue;
                }
                other => panic!("{other:?}"),
            };
            put_all(far, &answer).await;
        }
    }

    type Heard = Vec<(u8, Vec<u8>)>;

    async fn login(
        encrypted: bool,
        method: Method,
        secret: Option<Secret>,
        tried: &str,
    ) -> (Result<Credential, AuthError>, Heard) {
        let (mut arrival, mut far) = arrived(encrypted).await;
        let challenge = Challenge { method, secret };
        in_time(async {
            tokio::join!(
                authenticate(&mut arrival, challenge),
                client(&mut far, tried)
            )
        })
        .await
    }

    #[tokio::test]
    async fn each_method_lets_the_right_password_in() {
        for (encrypted, method, secret, credential) in [
            (
                false,
                Method::ScramSha256,
                scram_only("pencil"),
                "ScramKeys",
            ),
            (true, Method::ScramSha256, password("pencil"), "Password"),
            (false, Method::Md5, md5_only("app", "pencil"), "Md5Hash"),
            (false, Method::Md5, password("pencil"), "Password"),
            (false, Method::Md5, scram_only("pencil"), "ScramKeys"),
            (true, Method::Password, scram_only("pencil"), "Password"),
            (
                true,
                Method::Password,
                md5_only("app", "pencil"),
                "Password",
            ),
            (true, Method::Password, password("pencil"), "Password"),
        ] {
            let (result, heard) = login(encrypted, method, Some(secret.clone()), "pencil").await;
            let got = result.expect("the right password");
            assert_eq!(format!("{got:?}"), credential, "{method:?} {secret:?}");
            assert_eq!(heard.last(), Some(&(b'R', vec![0; 4])), "AuthenticationOk");
            for tried in ["Pencil", ""] {
                let (result, heard) = login(encrypted, method, Some(secret.clone()), tried).await;
                assert!(matches!(result, Err(AuthError::Failed { user }) if user == "app"));
                let (tag, body) = heard.last().expect("an answer");
                let told = ErrorFields::parse(body);
                assert_eq!((*tag, &*told.code), (b'E', "28P01"));
                assert_eq!(
                    told.message,
                    "password authentication failed for user \"app\""
                );
                assert_eq!(told.severity, "FATAL");
            }
        }
    }

    #[tokio::test]
    async fn case_20_an_unknown_user_reads_like_a_wrong_password() {
        /// Blanks what is random or the user's own: nonce, salts.
        fn masked(heard: Heard) -> Heard {
            let mask = |body: Vec<u8>| match body.get(..4) {
                Some([0, 0, 0, 5]) => vec![5; body.len()],
                Some([0, 0, 0, 11]) => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    let fields = text.split(',').map(|field| {
                        if field.starts_with("i=") {
                            field.to_owned()
                        } else {
                            format!("{} bytes", field.len())
                        }
                    });
                    fields.collect::<Vec<_>>().join(",").into_bytes()
                }
                _ => body,
            };
            heard
                .into_iter()
                .map(|(tag, body)| (tag, mask(body)))
                .collect()
        }
        for (method, known) in [
            (Method::ScramSha256, scram_only("pencil")),
            (Method::ScramSha256, password("pencil")),
            (Method::ScramSha256, md5_only("app", "pencil")),
            (Method::Md5, md5_only("app", "pencil")),
            (Method::Password, scram_only("pencil")),
        ] {
            let (_, wrong) = login(true, method, Some(known), "wrong").await;
            let (result, unknown) = login(true, method, None, "wrong").await;
            assert!(matches!(result, Err(AuthError::Failed { .. })));
            assert_eq!(masked(wrong), masked(unknown), "{method:?}");
        }
    }

    #[tokio::test]
    async fn a_password_never_travels_in_clear() {
        let (result, heard) =
            login(false, Method::Password, Some(password("pencil")), "pencil").await;
        assert!(matches!(
            result,
            Err(AuthError::Refused { code: "28000", .. })
        ));
        assert_eq!(heard.len(), 1, "it was not even asked for");
        assert!(
            ErrorFields::parse(&heard[0].1)
                .message
                .contains("needs TLS")
        );
    }

    /// Sends `messages` after the first request and returns the outcome and the last words.
    async fn abuse(method: Method, messages: &[u8]) -> (AuthError, ErrorFields) {
        let (mut arrival, mut far) = arrived(true).await;
        let challenge = Challenge {
            method,
            secret: Some(password("pencil")),
        };
        let client = async {
            frame(&mut far).await;
            put_all(&mut far, messages).await;
            let (_, mut body) = frame(&mut far).await;
            if body.starts_with(&[0, 0, 0, 11]) {
                body = frame(&mut far).await.1;
            }
            ErrorFields::parse(&body)
        };
        let work = async { tokio::join!(authenticate(&mut arrival, challenge), client) };
        let (result, told) = in_time(work).await;
        (result.expect_err("must be refused"), told)
    }

    #[expect(clippy::too_many_lines, reason = "a table")]
    #[tokio::test]
    async fn case_18_what_is_no_proof_is_refused_by_name() {
        let first = |text: &str| initial("SCRAM-SHA-256", text.as_bytes()).to_vec();
        let mut too_long = BytesMut::from(&b"p"[..]);
        too_long.put_i32(64 * 1024 + 5);
        let scram = Method::ScramSha256;
        for (method, messages, code, words) in [
            (scram, too_long.to_vec(), "08P01", "1024 are taken"),
            (
                scram,
                b"Q\0\0\0\x08abc\0".to_vec(),
                "08P01",
                "got message type 81",
            ),
            (
                scram,
                b"p\0\0\0\x03".to_vec(),
                "08P01",
                "invalid message length 3",
            ),
            (scram, p(b"").to_vec(), "08P01", "initial response"),
            (
                scram,
                p(b"SCRAM-SHA-256\0\x7f\xff\xff\xff").to_vec(),
                "08P01",
                "initial response",
            ),
            (
                scram,
                initial("SCRAM-SHA-1", b"").to_vec(),
                "08P01",
                "invalid SASL",
            ),
            (
                scram,
                first("p=tls-unique,,n=,r=a"),
                "08P01",
                "channel binding",
            ),
            (scram, first("y,,n=,r=a"), "28000", "negotiation error"),
            (
                scram,
                initial("SCRAM-SHA-256-PLUS", b"n,,n=,r=a").to_vec(),
                "08P01",
                "does not include channel binding data",
            ),
            (
                scram,
                initial("SCRAM-SHA-256-PLUS", b"p=tls-unique,,n=,r=a").to_vec(),
                "08P01",
                "channel-binding type",
            ),
            (
                scram,
                [
                    initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=a").to_vec(),
                    p(b"c=biws,r=a,p=AAAA").to_vec(),
                ]
                .concat(),
                "28000",
                "channel binding check failed",
            ),
            (scram, first("n,,m=x,n=,r=a"), "0A000", "extension"),
            (
                scram,
                first("n,a=root,n=,r=a"),
                "0A000",
                "authorization identity",
            ),
            (
                scram,
                [first("n,,n=,r=a"), p(b"c=biws,r=b,p=AAAA").to_vec()].concat(),
                "08P01",
                "nonce",
            ),
            (
                Method::Password,
                p(b"no end").to_vec(),
                "08P01",
                "password packet size",
            ),
            (
                Method::Password,
                p(b"two\0ends\0").to_vec(),
                "08P01",
                "password packet size",
            ),
            (
                Method::Md5,
                p(b"").to_vec(),
                "08P01",
                "password packet size",
            ),
        ] {
            let (error, told) = abuse(method, &messages).await;
            assert!(matches!(error, AuthError::Refused { .. }), "{error:?}");
            assert_eq!(told.code, code, "{told:?}");
            assert!(told.message.contains(words), "{told:?}");
        }
    }

    #[tokio::test]
    async fn cve_2026_6664_lengths_inside_sasl_messages_are_never_believed() {
        for length in [-2, i32::MIN, i32::MAX, 0, 9, 11, 1 << 30] {
            let mut body = b"SCRAM-SHA-256\0".to_vec();
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(b"n,,n=,r=ab");
            let (error, told) = abuse(Method::ScramSha256, &p(&body)).await;
            assert!(matches!(error, AuthError::Refused { .. }), "{length}");
            assert_eq!(told.code, "08P01", "{length}: {told:?}");
        }
        for length in [i32::MIN, -1, 0, 3, i32::MAX] {
            let mut message = b"p".to_vec();
            message.extend_from_slice(&length.to_be_bytes());
            let (error, told) = abuse(Method::ScramSha256, &message).await;
            assert!(matches!(error, AuthError::Refused { .. }), "{length}");
            assert_eq!(told.code, "08P01", "{length}: {told:?}");
        }
    }

    #[tokio::test]
    async fn cve_2026_6665_long_names_and_nonces_overflow_nothing() {
        let room = MAX_SASL_MESSAGE - 40;
        let first = format!("n,,n={},r=a", "u".repeat(room));
        let (error, told) = abuse(
            Method::ScramSha256,
            &[
                initial("SCRAM-SHA-256", first.as_bytes()).to_vec(),
                p(b"c=biws,r=b,p=AAAA").to_vec(),
            ]
            .concat(),
        )
        .await;
        assert!(matches!(error, AuthError::Refused { .. }));
        assert!(
            told.message.contains("nonce"),
            "taken, and answered: {told:?}"
        );
        let long = format!("n,,n=,r={}", "a".repeat(60_000));
        let (_, told) = abuse(
            Method::ScramSha256,
            &initial("SCRAM-SHA-256", long.as_bytes()),
        )
        .await;
        assert!(told.message.contains("too long"), "{told:?}");
    }

    #[tokio::test]
    async fn a_client_may_choose_its_mechanism_before_it_begins() {
        let (mut arrival, mut far) = arrived(false).await;
        let challenge = Challenge {
            method: Method::ScramSha256,
            secret: Some(scram_only("pencil")),
        };
        let client = async {
            frame(&mut far).await;
            put_all(&mut far, &p(b"SCRAM-SHA-256\0\xff\xff\xff\xff")).await;
            let (_, asked) = frame(&mut far).await;
            assert_eq!(asked, [0, 0, 0, 11], "an empty challenge");
            let secret = Credential::Password(Zeroizing::new("pencil".to_owned()));
            let exchange = ClientExchange::new(&secret, &[9; 18]).expect("a password");
            put_all(&mut far, &p(&exchange.first())).await;
            let (_, answer) = frame(&mut far).await;
            let (_, proof) = exchange.server_first(&answer[4..]).expect("a challenge");
            put_all(&mut far, &p(&proof)).await;
        };
        let work = async { tokio::join!(authenticate(&mut arrival, challenge), client) };
        assert!(in_time(work).await.0.is_ok());
    }

    #[tokio::test]
    async fn hanging_up_is_no_wrong_password() {
        for goodbye in [&b"X\0\0\0\x04"[..], b""] {
            let (mut arrival, mut far) = arrived(false).await;
            put_all(&mut far, goodbye).await;
            drop(far);
            let challenge = Challenge {
                method: Method::Md5,
                secret: None,
            };
            let result = in_time(authenticate(&mut arrival, challenge)).await;
            let quiet = matches!(result, Err(AuthError::Closed | AuthError::Io(_)));
            assert!(quiet, "{result:?}");
        }
    }

    #[tokio::test]
    async fn pipelined_bytes_are_kept() {
        let (mut arrival, mut far) = arrived(true).await;
        let mut bytes = p(b"pencil\0");
        bytes.extend_from_slice(b"Q\0\0\0\x0dselect 1\0");
        put_all(&mut far, &bytes).await;
        let challenge = Challenge {
            method: Method::Password,
            secret: Some(password("pencil")),
        };
        let result = in_time(authenticate(&mut arrival, challenge)).await;
        assert!(result.is_ok());
        assert_eq!(&arrival.buffered[..], b"Q\0\0\0\x0dselect 1\0");
    }

    #[tokio::test]
    async fn a_real_driver_logs_in() {
        for tried in ["pencil", "wrong"] {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let config = config(ListenTls::Prefer);
            let proxy = async {
                let accepted = accept(Stream::duplex(near), &config).await;
                let Ok(Accepted::Session(mut arrival)) = accepted else {
                    panic!("{accepted:?}");
                };
                let challenge = Challenge {
                    method: Method::ScramSha256,
                    secret: Some(scram_only("pencil")),
                };
                let result = authenticate(&mut arrival, challenge).await;
                if result.is_ok() {
                    let mut ready = BytesMut::new();
                    put_ready(&mut ready, b'I');
                    put_all(&mut arrival.stream, &ready).await;
                }
                (result, arrival)
            };
            let mut driver = tokio_postgres::Config::new();
            driver.user("app").password(tried);
            driver.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let connect = driver.connect_raw(far, tokio_postgres::NoTls);
            let ((result, _arrival), connected) =
                in_time(Box::pin(async { tokio::join!(proxy, connect) })).await;
            assert_eq!(result.is_ok(), tried == "pencil");
            match connected {
                Ok(_) => assert_eq!(tried, "pencil"),
                Err(error) => {
                    let told = error.as_db_error().expect("an ErrorResponse");
                    assert_eq!(told.code().code(), "28P01");
                    assert_eq!(tried, "wrong");
                }
            }
        }
    }
}
