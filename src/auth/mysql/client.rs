//! A client's side of an authentication exchange, towards servers.

use super::{Credential, Password, Plugin, ed25519, native, proof, rsa, sha2};
use zeroize::Zeroizing;

/// Bytes of the challenge that native and sha2 use.
const NONCE: usize = 20;

/// Why a server can't be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Another plugin.
    #[error("the server asks for the authentication plugin {0}, which Slackwater does not have")]
    Plugin(String),
    /// A password is needed, and only its hash is known.
    #[error("the server asks for {0}, and Slackwater only has the hash of a mysql_native_password")]
    NoPassword(&'static str),
    /// Nothing is known.
    #[error("the server asks for a password, and none is configured for this account")]
    NoCredential,
    /// It would travel in clear.
    #[error("the server asks for the password itself, which only goes over TLS or a Unix socket")]
    Exposed,
    /// The server does not keep to the protocol.
    #[error("the server's authentication messages make no sense")]
    OutOfOrder,
    /// Its key can't be used.
    #[error("the server's RSA key can't be used")]
    Key,
}

/// What is sent.
pub type Answer = Zeroizing<Vec<u8>>;

/// One exchange.
pub struct ClientExchange<'a> {
    credential: Option<&'a Credential>,
    /// Nobody can read along.
    private: bool,
    plugin: Plugin,
    nonce: Vec<u8>,
    /// The RSA key was asked for.
    waits_for_key: bool,
    /// The whole exchange was asked for, and is done.
    sent_password: bool,
}

impl<'a> ClientExchange<'a> {
    /// Begins with the plugin and challenge of a greeting. A plugin that can't be used is exchanged for one that can: the
    /// server then asks for the account's own.
    pub fn begin(
        credential: Option<&'a Credential>,
        private: bool,
        plugin: &[u8],
        nonce: &[u8],
    ) -> (Self, Answer) {
        let plugin = match (Plugin::of(plugin), credential) {
            (Some(plugin @ Plugin::CachingSha2), None | Some(Credential::Password(_))) => plugin,
            _ => Plugin::Native,
        };
        let mut exchange = Self {
            credential,
            private,
            plugin,
            nonce: Vec::new(),
            waits_for_key: false,
            sent_password: false,
        };
        // With these two plugins an answer that can't be given is an empty one.
        let answer = exchange.switch_to(plugin, nonce).unwrap_or_default();
        (exchange, answer)
    }

    /// The plugin in use.
    pub const fn plugin(&self) -> Plugin {
        self.plugin
    }

    /// Answers an AuthSwitchRequest.
    pub fn switch(&mut self, plugin: &[u8], data: &[u8]) -> Result<Answer, ClientError> {
        let known = Plugin::of(plugin)
            .ok_or_else(|| ClientError::Plugin(String::from_utf8_lossy(plugin).into_owned()))?;
        self.switch_to(known, data)
    }

    fn switch_to(&mut self, plugin: Plugin, data: &[u8]) -> Result<Answer, ClientError> {
        self.plugin = plugin;
        self.waits_for_key = false;
        self.sent_password = false;
        let length = match plugin {
            Plugin::Ed25519 => ed25519::NONCE_LEN,
            Plugin::Native | Plugin::CachingSha2 => NONCE,
            Plugin::Clear => 0,
        };
        let nonce = data.get(..length).ok_or(ClientError::OutOfOrder)?;
        self.nonce = nonce.to_vec();
        let credential = self.credential.ok_or(ClientError::NoCredential)?;
        let password = match credential {
            Credential::Password(password) => Ok(password),
            Credential::Native(_) => Err(ClientError::NoPassword(plugin.name())),
        };
        let is_empty = password.as_ref().is_ok_and(|p| p.reveal().is_empty());
        let answer = match plugin {
            // An empty password hides nothing and is told as nothing.
            Plugin::Native | Plugin::CachingSha2 if is_empty => Vec::new(),
            Plugin::Native => match credential {
                Credential::Native(stage1) => native::answer(stage1, nonce).to_vec(),
                Credential::Password(password) => {
                    native::answer(&native::stage1(password.reveal()), nonce).to_vec()
                }
            },
            Plugin::CachingSha2 => sha2::answer(password?.reveal(), nonce).to_vec(),
            Plugin::Ed25519 => ed25519::answer(password?.reveal(), nonce).to_vec(),
            Plugin::Clear => return self.in_clear(password?),
        };
        Ok(Zeroizing::new(answer))
    }

    /// Takes an AuthMoreData; `None` when there is nothing to say to it.
    pub fn more(&mut self, data: &[u8]) -> Result<Option<Answer>, ClientError> {
        if self.plugin != Plugin::CachingSha2 || self.sent_password {
            return Err(ClientError::OutOfOrder);
        }
        let password = match self.credential {
            Some(Credential::Password(password)) => password,
            Some(Credential::Native(_)) => {
                return Err(ClientError::NoPassword(self.plugin.name()));
            }
            None => return Err(ClientError::NoCredential),
        };
        if self.waits_for_key {
            self.sent_password = true;
            let sent = rsa::encrypt(data, password.reveal(), &self.nonce);
            return sent
                .map(|sent| Some(Zeroizing::new(sent)))
                .ok_or(ClientError::Key);
        }
        match data {
            [sha2::FAST_OK] => Ok(None),
            [sha2::FULL] if self.private => {
                self.sent_password = true;
                self.in_clear(password).map(Some)
            }
            [sha2::FULL] => {
                self.waits_for_key = true;
                Ok(Some(Zeroizing::new(vec![sha2::KEY_REQUEST])))
            }
            _ => Err(ClientError::OutOfOrder),
        }
    }

    fn in_clear(&self, password: &Password) -> Result<Answer, ClientError> {
        if !self.private {
            return Err(ClientError::Exposed);
        }
        let mut answer = Zeroizing::new(Vec::with_capacity(password.reveal().len() + 1));
        answer.extend_from_slice(password.reveal());
        answer.push(0);
        Ok(answer)
    }

    /// What the message of the server's OK proves of the certificate that it showed; `nonce` is that of the greeting.
    pub fn check_proof(
        &self,
        info: &[u8],
        nonce: &[u8],
        certificate: &proof::Fingerprint,
    ) -> proof::Proof {
        let hash = self
            .credential
            .and_then(|c| proof::password_hash(self.plugin, c));
        match hash {
            Some(hash) => proof::check(info, &hash, nonce, certificate),
            None => proof::Proof::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE_1: &[u8] = b"0123456789abcdefghij\0";
    const NONCE_2: &[u8] = b"another servers one.\0";

    fn password() -> Credential {
        Credential::Password(Password::new(b"pencil"))
    }

    #[test]
    fn native_with_a_password_or_its_hash() {
        let hash = Credential::Native(native::stage1(b"pencil"));
        for credential in [&password(), &hash] {
            for begun in ["mysql_native_password", "client_ed25519", "unheard of"] {
                let (mut exchange, sent) =
                    ClientExchange::begin(Some(credential), false, begun.as_bytes(), NONCE_1);
                assert_eq!(exchange.plugin(), Plugin::Native);
                let stored = native::DoubleHash::of(b"pencil");
                assert!(stored.recover(&NONCE_1[..20], &sent).is_some());
                let sent = exchange
                    .switch(b"mysql_native_password", NONCE_2)
                    .expect("sent");
                assert!(stored.recover(&NONCE_2[..20], &sent).is_some());
                assert_eq!(exchange.more(&[sha2::FULL]), Err(ClientError::OutOfOrder));
            }
        }
        let (mut exchange, _) =
            ClientExchange::begin(Some(&hash), true, b"caching_sha2_password", NONCE_1);
        assert_eq!(exchange.plugin(), Plugin::Native, "all that it can do");
        for plugin in [Plugin::CachingSha2, Plugin::Ed25519, Plugin::Clear] {
            let refused = exchange.switch(plugin.name().as_bytes(), &[7; 33]);
            assert_eq!(refused, Err(ClientError::NoPassword(plugin.name())));
        }
        assert!(matches!(
            exchange.switch(b"parsec", b""),
            Err(ClientError::Plugin(_))
        ));
    }

    #[test]
    fn sha2_fast_in_private_and_with_a_key() {
        let secret = password();
        let begin = |private| {
            let (exchange, sent) =
                ClientExchange::begin(Some(&secret), private, b"caching_sha2_password", NONCE_1);
            assert!(sha2::verify(b"pencil", &NONCE_1[..20], &sent));
            exchange
        };
        assert_eq!(begin(false).more(&[sha2::FAST_OK]), Ok(None));
        let mut exchange = begin(true);
        let sent = exchange
            .more(&[sha2::FULL])
            .expect("answered")
            .expect("said");
        assert_eq!(&sent[..], b"pencil\0");
        assert_eq!(
            exchange.more(&[sha2::FULL]),
            Err(ClientError::OutOfOrder),
            "once"
        );
        let key = rsa::PrivateKey::generate().expect("a key");
        let mut exchange = begin(false);
        let sent = exchange
            .more(&[sha2::FULL])
            .expect("answered")
            .expect("said");
        assert_eq!(&sent[..], [sha2::KEY_REQUEST]);
        let sent = exchange
            .more(key.public_pem().as_bytes())
            .expect("answered")
            .expect("said");
        assert_eq!(
            &key.decrypt(&sent, &NONCE_1[..20]).expect("ours")[..],
            b"pencil"
        );
        let mut exchange = begin(false);
        assert!(exchange.more(&[sha2::FULL]).is_ok());
        assert_eq!(exchange.more(b"no key"), Err(ClientError::Key));
        assert_eq!(begin(false).more(b"x"), Err(ClientError::OutOfOrder));
    }

    #[test]
    fn a_password_is_never_sent_in_clear_where_somebody_listens() {
        let secret = password();
        let (mut open, _) = ClientExchange::begin(Some(&secret), false, b"", NONCE_1);
        assert_eq!(
            open.switch(b"mysql_clear_password", b""),
            Err(ClientError::Exposed)
        );
        let (mut private, _) = ClientExchange::begin(Some(&secret), true, b"", NONCE_1);
        let sent = private.switch(b"mysql_clear_password", b"").expect("sent");
        assert_eq!(&sent[..], b"pencil\0");
        let sent = private.switch(b"client_ed25519", &[7; 32]).expect("sent");
        assert!(ed25519::PublicKey::of(b"pencil").verify(&[7; 32], &sent));
    }

    #[test]
    fn nothing_known_and_an_empty_password() {
        let (mut exchange, sent) = ClientExchange::begin(None, false, b"", NONCE_1);
        assert!(sent.is_empty());
        assert_eq!(
            exchange.switch(b"mysql_native_password", NONCE_2),
            Err(ClientError::NoCredential)
        );
        let empty = Credential::Password(Password::new(b""));
        let (mut exchange, sent) =
            ClientExchange::begin(Some(&empty), false, b"caching_sha2_password", NONCE_1);
        assert!(sent.is_empty());
        assert!(
            exchange
                .switch(b"mysql_native_password", NONCE_2)
                .expect("sent")
                .is_empty()
        );
        assert_eq!(
            exchange.switch(b"mysql_native_password", b"cut"),
            Err(ClientError::OutOfOrder)
        );
    }
}
