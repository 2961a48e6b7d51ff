//! A client's proof of who it is, up to the last OK, which is written once there is a server connection.
//!
//! A user who is unknown is taken through the same packets and the same work as one who is not, and then refused as for a
//! wrong password.

use super::errors;
use super::handshake::{Arrival, fill, say_goodbye};
use crate::auth::mysql::rsa::PrivateKey;
use crate::auth::mysql::{
    Credential, MAX_PASSWORD, Password, Plugin, Secret, Verifier, ed25519, native, proof, sha2,
};
use crate::backend::mysql::verifiers::Passwords;
use crate::wire::mysql::auth::{ErrorPacket, put_more_data, put_switch};
use crate::wire::mysql::capabilities::Capabilities;
use aws_lc_rs::hmac;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

/// How to authenticate a client.
#[derive(Debug)]
pub struct Challenge<'a> {
    /// What users are asked for whose stored form does not say, and those who are unknown.
    pub plugin: Plugin,
    /// What the proof is checked against. `None`, for a user who is unknown: the same packets and the same work, then the
    /// same refusal as for a wrong password.
    pub secret: Option<Secret>,
    /// Passwords that were proven before.
    pub passwords: &'a Passwords,
    /// Thousands of rounds that checking a password takes where the server's stored forms are the source; zero with a users
    /// file.
    pub decoy_thousands: u32,
    /// The proxy's own key.
    pub rsa: &'a PrivateKey,
}

/// Why a client was not let in. The client was told, where it could be.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The connection broke.
    #[error("the client's connection was lost during authentication")]
    Io(#[source] io::Error),
    /// It hung up instead of answering.
    #[error("the client hung up instead of answering")]
    Closed,
    /// Wrong password or unknown user; nobody is told which.
    #[error("access denied for user \"{user}\"")]
    Denied {
        /// The user's name.
        user: String,
        /// It gave a password.
        password: bool,
    },
    /// The client does not keep to the protocol, or can't do what is needed.
    #[error("authentication refused: {0}")]
    Refused(ErrorPacket),
}

impl From<io::Error> for AuthError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::InvalidData => Self::Refused(errors::bad_handshake()),
            _ => Self::Io(error),
        }
    }
}

/// Asks the client for its proof and checks it. On success nothing has been written that ends the log-in, and what the
/// client proved itself with is returned: it logs in to servers from now on. On an error the client was told.
pub async fn authenticate(
    arrival: &mut Arrival,
    challenge: Challenge<'_>,
) -> Result<Credential, AuthError> {
    let error = match prove(arrival, challenge).await {
        Ok((plugin, credential)) => {
            arrival.proof = own_proof(arrival, plugin, &credential);
            return Ok(credential);
        }
        Err(error) => error,
    };
    let packet = match &error {
        AuthError::Denied { password, .. } => {
            errors::access_denied(arrival.user(), &arrival.host(), *password)
        }
        AuthError::Refused(packet) => packet.clone(),
        AuthError::Io(_) | AuthError::Closed => return Err(error),
    };
    say_goodbye(&mut arrival.packets, &packet).await;
    Err(error)
}

/// What proves the certificate to clients of MariaDB that can't check it otherwise.
fn own_proof(arrival: &Arrival, plugin: Plugin, credential: &Credential) -> Vec<u8> {
    let is_mariadb = !arrival.capabilities.contains(Capabilities::LONG_PASSWORD);
    match (
        &arrival.fingerprint,
        proof::password_hash(plugin, credential),
    ) {
        (Some(certificate), Some(hash)) if is_mariadb => {
            proof::message(&hash, &arrival.nonce, certificate)
        }
        _ => Vec::new(),
    }
}

async fn prove(
    arrival: &mut Arrival,
    challenge: Challenge<'_>,
) -> Result<(Plugin, Credential), AuthError> {
    let plugin = match &challenge.secret {
        Some(Secret::Verifier(Verifier::Empty(plugin))) => *plugin,
        Some(Secret::Verifier(Verifier::Native(_))) => Plugin::Native,
        Some(Secret::Verifier(Verifier::Sha2(_))) => Plugin::CachingSha2,
        // A signature logs in nowhere else: the password is needed, and only asked for where nobody reads along.
        Some(Secret::Verifier(Verifier::Ed25519(_))) if arrival.stream().is_private() => {
            Plugin::Clear
        }
        Some(Secret::Verifier(Verifier::Ed25519(_))) => {
            tracing::warn!("a user with ed25519 needs TLS, or its password in users_file");
            Plugin::Ed25519
        }
        Some(Secret::Password(_)) | None => challenge.plugin,
    };
    let credential = match plugin {
        Plugin::Native => native(arrival, challenge.secret).await,
        Plugin::CachingSha2 => sha2(arrival, challenge).await,
        Plugin::Ed25519 => ed25519(arrival, challenge.secret).await,
        Plugin::Clear => clear(arrival, challenge.secret).await,
    };
    credential.map(|credential| (plugin, credential))
}

async fn native(arrival: &mut Arrival, secret: Option<Secret>) -> Result<Credential, AuthError> {
    let given = answer(arrival, Plugin::Native).await?;
    if given.is_empty() {
        return without_password(arrival, secret.as_ref());
    }
    let stored = match &secret {
        Some(Secret::Verifier(Verifier::Native(stored))) => stored.clone(),
        Some(Secret::Password(password)) => native::DoubleHash::of(password.reveal()),
        _ => native::DoubleHash::of(&seed(arrival)),
    };
    let found = stored.recover(&arrival.nonce, &given);
    match (secret, found) {
        (Some(Secret::Verifier(Verifier::Native(_))), Some(stage1)) => {
            Ok(Credential::Native(stage1))
        }
        (Some(Secret::Password(password)), Some(_)) => Ok(Credential::Password(password)),
        _ => Err(denied(arrival, true)),
    }
}

async fn sha2(arrival: &mut Arrival, challenge: Challenge<'_>) -> Result<Credential, AuthError> {
    let given = answer(arrival, Plugin::CachingSha2).await?;
    let secret = challenge.secret;
    if given.is_empty() || *given == [0] {
        return without_password(arrival, secret.as_ref());
    }
    let known = match &secret {
        Some(Secret::Password(password)) => Some(password.clone()),
        Some(Secret::Verifier(Verifier::Sha2(stored))) => {
            challenge.passwords.get(arrival.user(), stored)
        }
        _ => None,
    };
    // The same work for who is not known.
    let decoy = Password::new(&seed(arrival));
    let against = known.as_ref().unwrap_or(&decoy);
    if sha2::verify(against.reveal(), &arrival.nonce, &given)
        && let Some(password) = known
    {
        more_data(arrival, &[sha2::FAST_OK]).await?;
        return Ok(Credential::Password(password));
    }
    more_data(arrival, &[sha2::FULL]).await?;
    let given = arrival.packets.next().await?;
    let password = if arrival.stream().is_private() {
        up_to_nul(&given)
    } else if given[..] == [sha2::KEY_REQUEST] {
        more_data(arrival, challenge.rsa.public_pem().as_bytes()).await?;
        let given = arrival.packets.next().await?;
        challenge.rsa.decrypt(&given, &arrival.nonce)
    } else {
        challenge.rsa.decrypt(&given, &arrival.nonce)
    };
    wipe(given);
    let password = password.filter(|password| password.len() <= MAX_PASSWORD);
    let Some(password) = password else {
        return Err(denied(arrival, true));
    };
    let password = Password::new(&password);
    let stored = match (secret, challenge.decoy_thousands) {
        (Some(Secret::Verifier(Verifier::Sha2(stored))), _) => stored,
        (Some(Secret::Password(right)), _) if right == password => {
            return Ok(Credential::Password(password));
        }
        (Some(_), _) | (None, 0) => return Err(denied(arrival, true)),
        (None, thousands) => sha2::Stored::decoy(thousands, &seed(arrival)),
    };
    // Some milliseconds: not for the thread that serves sessions.
    let stored = Arc::new(stored);
    let (checked, tried) = (Arc::clone(&stored), password.clone());
    let matches = tokio::task::spawn_blocking(move || checked.matches(tried.reveal())).await;
    if matches.map_err(|error| AuthError::Io(io::Error::other(error)))? {
        challenge
            .passwords
            .learn(arrival.user(), &stored, &password);
        Ok(Credential::Password(password))
    } else {
        Err(denied(arrival, true))
    }
}

async fn ed25519(arrival: &mut Arrival, secret: Option<Secret>) -> Result<Credential, AuthError> {
    let mut nonce = [0; ed25519::NONCE_LEN];
    fill(&mut nonce)?;
    let given = switch(arrival, Plugin::Ed25519, &nonce).await?;
    let key = match &secret {
        Some(Secret::Password(password)) => ed25519::PublicKey::of(password.reveal()),
        _ => ed25519::PublicKey::of(&seed(arrival)),
    };
    let proven = key.verify(&nonce, &given);
    match secret {
        Some(Secret::Password(password)) if proven => Ok(Credential::Password(password)),
        _ => Err(denied(arrival, !given.is_empty())),
    }
}

async fn clear(arrival: &mut Arrival, secret: Option<Secret>) -> Result<Credential, AuthError> {
    if !arrival.stream().is_private() {
        return Err(AuthError::Refused(errors::insecure_transport()));
    }
    let given = switch(arrival, Plugin::Clear, b"").await?;
    let password = up_to_nul(&given);
    wipe(given);
    let password = password.map(|p| Password::new(&p));
    let proven = match (&secret, &password) {
        (Some(Secret::Verifier(verifier)), Some(password)) => verifier.matches(password.reveal()),
        (Some(Secret::Password(right)), Some(password)) => right == password,
        _ => false,
    };
    match password {
        Some(password) if proven => Ok(Credential::Password(password)),
        other => Err(denied(
            arrival,
            other.is_some_and(|p| !p.reveal().is_empty()),
        )),
    }
}

/// An account whose password is empty lets in who gives none.
fn without_password(arrival: &Arrival, secret: Option<&Secret>) -> Result<Credential, AuthError> {
    match secret {
        Some(Secret::Verifier(Verifier::Empty(_))) => Ok(Credential::Password(Password::new(b""))),
        _ => Err(denied(arrival, false)),
    }
}

/// The client's answer for this plugin: the one that it began with, where it is for that.
async fn answer(arrival: &mut Arrival, plugin: Plugin) -> Result<Bytes, AuthError> {
    let begun = match &arrival.response.plugin {
        Some(name) if arrival.capabilities.contains(Capabilities::PLUGIN_AUTH) => Plugin::of(name),
        _ => Some(Plugin::Native),
    };
    if begun == Some(plugin) {
        let given = std::mem::take(&mut *arrival.response.auth);
        return Ok(Bytes::from(given));
    }
    let mut data = [0; 21];
    let (nonce, _nul) = data.split_at_mut(arrival.nonce.len());
    nonce.copy_from_slice(&arrival.nonce);
    switch(arrival, plugin, &data).await
}

async fn switch(arrival: &mut Arrival, plugin: Plugin, data: &[u8]) -> Result<Bytes, AuthError> {
    if !arrival.capabilities.contains(Capabilities::PLUGIN_AUTH) {
        return Err(AuthError::Refused(errors::old_client()));
    }
    let name = plugin.name().as_bytes();
    arrival
        .packets
        .send(|out| put_switch(out, name, data))
        .await?;
    Ok(arrival.packets.next().await?)
}

async fn more_data(arrival: &mut Arrival, data: &[u8]) -> Result<(), AuthError> {
    Ok(arrival.packets.send(|out| put_more_data(out, data)).await?)
}

/// The password in front of the NUL that ends it.
fn up_to_nul(given: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let password = given.strip_suffix(&[0])?;
    Some(Zeroizing::new(password.to_vec()))
}

/// Wipes what was read, where nobody else holds it.
fn wipe(given: Bytes) {
    if let Ok(mut given) = given.try_into_mut() {
        given.as_mut().zeroize();
    }
}

/// What stands for the secret of a user who has none; always the same for one name.
fn seed(arrival: &Arrival) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &*arrival.mock_secret);
    let mut out = [0; 32];
    out.copy_from_slice(hmac::sign(&key, arrival.user()).as_ref());
    out
}

fn denied(arrival: &Arrival, password: bool) -> AuthError {
    AuthError::Denied {
        user: String::from_utf8_lossy(arrival.user()).into_owned(),
        password,
    }
}
