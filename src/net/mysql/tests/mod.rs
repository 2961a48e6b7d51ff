//! Log-ins over a pipe, with real TLS: what each side reads, packet by packet.

use super::authentication::{AuthError, Challenge, authenticate};
use super::handshake::{Accepted, Arrival, HandshakeConfig, HandshakeError, accept};
use crate::auth::mysql::client::ClientExchange;
use crate::auth::mysql::rsa::PrivateKey;
use crate::auth::mysql::{
    Credential, Password, Plugin, Secret, Verifier, ed25519, native, proof, sha2,
};
use crate::backend::mysql::connect::Request;
use crate::backend::mysql::frames::Packets;
use crate::backend::mysql::offer::Offer;
use crate::backend::mysql::verifiers::Passwords;
use crate::net::script::{self, in_time, pipe};
use crate::transport::codec::{Algorithm, ZstdLevel};
use crate::transport::stream::Stream;
use crate::transport::{ListenTls, testing};
use crate::wire::mysql::auth::{ERR, ErrorPacket, LoginOk, MORE_DATA, OK, SWITCH, parse_switch};
use crate::wire::mysql::capabilities::Capabilities;
use crate::wire::mysql::handshake::{Greeting, HandshakeResponse, MAX_LOGIN_PACKET, put_attribute};
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

mod compression;
mod tls;

static RSA: LazyLock<Arc<PrivateKey>> =
    LazyLock::new(|| Arc::new(PrivateKey::generate().expect("a key")));

fn config(tls: ListenTls) -> HandshakeConfig {
    HandshakeConfig {
        tls,
        proxied: Vec::new(),
        certificates: script::config(tls).certificates,
        mock_secret: [5; 32],
        rsa: Arc::clone(&RSA),
    }
}

fn offer(plugin: Plugin) -> Offer {
    let mariadb = plugin == Plugin::Native;
    let (version, capabilities) = if mariadb {
        (
            "11.8.6-MariaDB",
            Capabilities::from_halves(0x81ff_f7fe, 0x1d),
        )
    } else {
        ("9.7.4", Capabilities::from_halves(0xdfff_ffff, 0))
    };
    Offer::learn(&Greeting {
        version: Bytes::from_static(version.as_bytes()),
        connection_id: 1,
        nonce: [b'x'; 20],
        capabilities,
        charset: 45,
        status: 2,
        plugin: Bytes::from_static(plugin.name().as_bytes()),
    })
}

/// A client's way to log in.
#[derive(Clone)]
struct Client {
    user: &'static str,
    password: &'static str,
    /// The plugin that it begins with; the greeting's when left out.
    plugin: Option<&'static str>,
    tls: bool,
    without: Capabilities,
    /// The level of zstd that it asks for, where that is offered.
    zstd: Option<u8>,
}

const CLIENT: Client = Client {
    user: "app",
    password: "pencil",
    plugin: None,
    tls: false,
    without: Capabilities::COMPRESS,
    zstd: None,
};

/// What a client saw: each packet's first byte and length, and what ended it.
type Seen = (Vec<(u8, usize)>, Result<LoginOk, ErrorPacket>);

impl Client {
    async fn log_in(&self, stream: Stream) -> (Seen, Packets<Stream>) {
        let mut packets = Packets::new(stream, MAX_LOGIN_PACKET);
        let greeting =
            Greeting::parse(&packets.next().await.expect("greeted")).expect("a greeting");
        let mut attributes = BytesMut::new();
        put_attribute(&mut attributes, b"program_name", b"test");
        let mut response = HandshakeResponse {
            capabilities: greeting.capabilities.without(self.without),
            max_packet: 1 << 24,
            charset: 45,
            user: Bytes::from_static(self.user.as_bytes()),
            auth: Zeroizing::default(),
            database: None,
            plugin: None,
            attributes: attributes.freeze(),
            zstd_level: self.zstd.filter(|_| {
                let offered = greeting.capabilities;
                offered.contains(Capabilities::ZSTD_COMPRESSION)
            }),
        };
        let mut fingerprint = None;
        if self.tls {
            packets
                .send(|out| response.put_ssl_request(out))
                .await
                .expect("sent");
            let sequence = packets.sequence();
            let stream = packets.into_parts().0;
            let stream = testing::connect(stream, "localhost", &[], None)
                .await
                .expect("TLS");
            fingerprint = stream.peer_certificate().map(proof::fingerprint);
            packets = Packets::new(stream, MAX_LOGIN_PACKET);
            packets.set_sequence(sequence);
        } else {
            response.capabilities = response.capabilities.without(Capabilities::SSL);
        }
        let secret = Credential::Password(Password::new(self.password.as_bytes()));
        let begun = self.plugin.map_or(&greeting.plugin[..], str::as_bytes);
        let (mut exchange, answer) =
            ClientExchange::begin(Some(&secret), self.tls, begun, &greeting.nonce);
        response.auth = answer;
        if !self.without.contains(Capabilities::PLUGIN_AUTH) {
            response.plugin = Some(Bytes::from_static(exchange.plugin().name().as_bytes()));
        }
        packets.send(|out| response.put(out)).await.expect("sent");
        let mut seen = Vec::new();
        loop {
            let payload = packets.next().await.expect("answered");
            seen.push((payload[0], payload.len()));
            let answer = match payload[0] {
                OK => {
                    let ok = LoginOk::parse(&payload).expect("an OK");
                    if let Some(fingerprint) = fingerprint {
                        let proven = exchange.check_proof(&ok.info, &greeting.nonce, &fingerprint);
                        assert_ne!(proven, proof::Proof::Bad);
                    }
                    return ((seen, Ok(ok)), packets);
                }
                ERR => {
                    let error = ErrorPacket::parse(&payload).expect("an ERR");
                    return ((seen, Err(error)), packets);
                }
                SWITCH => {
                    let (plugin, data) = parse_switch(&payload).expect("a switch");
                    Some(exchange.switch(plugin, data).expect("can be answered"))
                }
                MORE_DATA => exchange.more(&payload[1..]).expect("can be answered"),
                other => panic!("packet {other}"),
            };
            if let Some(answer) = answer {
                packets
                    .send(|out| out.put_slice(&answer))
                    .await
                    .expect("sent");
            }
        }
    }
}

async fn arrive(
    stream: Stream,
    plugin: Plugin,
    tls: ListenTls,
) -> Result<Box<Arrival>, HandshakeError> {
    match accept(stream, &offer(plugin), 77, &config(tls)).await? {
        Accepted::Session(arrival) => Ok(arrival),
        Accepted::Closed => panic!("it left"),
    }
}

async fn in_time_boxed<T>(work: impl Future<Output = T>) -> T {
    in_time(Box::pin(work)).await
}

/// Both sides of a log-in.
async fn both(
    client: &Client,
    plugin: Plugin,
    secret: Option<Secret>,
    passwords: &Passwords,
) -> (Seen, Result<Credential, AuthError>) {
    Box::pin(both_sides(client, plugin, secret, passwords)).await
}

async fn both_sides(
    client: &Client,
    plugin: Plugin,
    secret: Option<Secret>,
    passwords: &Passwords,
) -> (Seen, Result<Credential, AuthError>) {
    let (near, far) = pipe();
    let server = async {
        let mut arrival = arrive(near, plugin, ListenTls::Prefer)
            .await
            .expect("arrives");
        assert_eq!(arrival.connection_id, 77);
        assert_eq!(arrival.application().as_deref(), Some("test"));
        let challenge = Challenge {
            plugin,
            secret,
            passwords,
            decoy_thousands: 1,
            rsa: &RSA,
        };
        let done = authenticate(&mut arrival, challenge).await;
        if done.is_ok() {
            arrival.welcome(2, 0).await.expect("welcomed");
        }
        done
    };
    let ((seen, _), done) = in_time_boxed(async { tokio::join!(client.log_in(far), server) }).await;
    assert_eq!(seen.1.is_ok(), done.is_ok());
    (seen, done)
}

fn is_password(credential: &Credential) -> bool {
    matches!(credential, Credential::Password(p) if p.reveal() == b"pencil")
}

fn stored_sha2() -> Secret {
    Secret::Verifier(Verifier::Sha2(sha2::Stored::of(b"pencil", [b's'; 20], 1)))
}

fn stored_native() -> Secret {
    Secret::Verifier(Verifier::Native(native::DoubleHash::of(b"pencil")))
}

#[tokio::test]
async fn native_gives_the_hash_that_logs_in_elsewhere() {
    let passwords = Passwords::default();
    for tls in [false, true] {
        for plugin in [None, Some("caching_sha2_password")] {
            let client = Client {
                plugin,
                tls,
                ..CLIENT
            };
            let (seen, done) =
                both(&client, Plugin::Native, Some(stored_native()), &passwords).await;
            assert!(matches!(done, Ok(Credential::Native(h)) if h == native::stage1(b"pencil")));
            assert_eq!(
                seen.0.len(),
                if plugin.is_some() { 2 } else { 1 },
                "a switch at most"
            );
            let proof = seen.1.expect("in").info;
            assert_eq!(
                proof.len(),
                if tls { 65 } else { 0 },
                "MariaDB's clients are proven the certificate"
            );
        }
    }
}

#[tokio::test]
async fn sha2_takes_the_password_once_and_is_fast_then() {
    for tls in [true, false] {
        let passwords = Passwords::default();
        let client = Client { tls, ..CLIENT };
        let rounds = [if tls { 2 } else { 3 }, 2];
        for (round, expected) in rounds.into_iter().enumerate() {
            let (seen, done) = both(
                &client,
                Plugin::CachingSha2,
                Some(stored_sha2()),
                &passwords,
            )
            .await;
            assert!(
                is_password(&done.expect("in")),
                "what a cold server asks for"
            );
            assert_eq!(seen.0.len(), expected, "{round} {:?}", seen.0);
            assert!(seen.1.expect("in").info.is_empty());
        }
        // A wrong one is asked for whole, as by a server, and the right one still is fast.
        let wrong = Client {
            password: "Pencil",
            ..client.clone()
        };
        let (seen, done) = both(&wrong, Plugin::CachingSha2, Some(stored_sha2()), &passwords).await;
        assert!(matches!(done, Err(AuthError::Denied { .. })));
        assert_eq!(seen.1.expect_err("denied").code, 1045);
        let known = Some(Secret::Password(Password::new(b"pencil")));
        let (seen, done) = both(&client, Plugin::CachingSha2, known, &Passwords::default()).await;
        assert!(
            is_password(&done.expect("in")) && seen.0.len() == 2,
            "from a users file"
        );
    }
}

#[tokio::test]
async fn nobody_can_tell_an_unknown_user_from_a_wrong_password() {
    let ed25519 = || Some(Secret::Password(Password::new(b"pencil")));
    for (plugin, secret) in [
        (Plugin::Native, Some(stored_native())),
        (Plugin::CachingSha2, Some(stored_sha2())),
        (Plugin::CachingSha2, ed25519()),
        (Plugin::Ed25519, ed25519()),
    ] {
        for tls in [false, true] {
            for begun in [
                None,
                Some("mysql_native_password"),
                Some("caching_sha2_password"),
            ] {
                let wrong = Client {
                    password: "Pencil",
                    plugin: begun,
                    tls,
                    ..CLIENT
                };
                let (known, _) = both(&wrong, plugin, secret.clone(), &Passwords::default()).await;
                let (unknown, done) = both(&wrong, plugin, None, &Passwords::default()).await;
                assert_eq!(known, unknown, "{plugin:?} {tls} {begun:?}");
                assert!(matches!(
                    done,
                    Err(AuthError::Denied { password: true, .. })
                ));
                let error = unknown.1.expect_err("denied");
                assert_eq!((error.code, error.state), (1045, Some(*b"28000")));
                assert_eq!(
                    error.message,
                    "Access denied for user 'app'@'localhost' (using password: YES)"
                );
            }
        }
    }
    let none = Client {
        password: "",
        ..CLIENT
    };
    for secret in [Some(stored_native()), None] {
        let (seen, _) = both(&none, Plugin::Native, secret, &Passwords::default()).await;
        assert!(
            seen.1
                .expect_err("denied")
                .message
                .ends_with("(using password: NO)")
        );
    }
}

#[tokio::test]
async fn empty_passwords_and_ed25519() {
    let passwords = Passwords::default();
    for plugin in [Plugin::Native, Plugin::CachingSha2] {
        let secret = || Some(Secret::Verifier(Verifier::Empty(plugin)));
        let none = Client {
            password: "",
            ..CLIENT
        };
        let (_, done) = both(&none, plugin, secret(), &passwords).await;
        assert!(matches!(done, Ok(Credential::Password(p)) if p.reveal().is_empty()));
        let (_, done) = both(&CLIENT, plugin, secret(), &passwords).await;
        assert!(done.is_err());
    }
    // The stored key alone: the password is asked for inside TLS, and never in clear.
    let secret = || {
        Some(Secret::Verifier(Verifier::Ed25519(ed25519::PublicKey::of(
            b"pencil",
        ))))
    };
    let inside = Client {
        tls: true,
        ..CLIENT
    };
    let (_, done) = both(&inside, Plugin::Native, secret(), &passwords).await;
    assert!(is_password(&done.expect("in")));
    let wrong = Client {
        password: "Pencil",
        ..inside.clone()
    };
    assert!(
        both(&wrong, Plugin::Native, secret(), &passwords)
            .await
            .1
            .is_err()
    );
    assert!(
        both(&CLIENT, Plugin::Native, secret(), &passwords)
            .await
            .1
            .is_err()
    );
    // The password of a users file signs.
    let known = Some(Secret::Password(Password::new(b"pencil")));
    let (_, done) = both(&CLIENT, Plugin::Ed25519, known, &passwords).await;
    assert!(is_password(&done.expect("in")));
}

#[tokio::test]
async fn clients_without_plugins_do_native_and_nothing_else() {
    let old = Client {
        without: Capabilities::PLUGIN_AUTH | Capabilities::COMPRESS,
        plugin: Some("mysql_native_password"),
        ..CLIENT
    };
    let passwords = Passwords::default();
    let (_, done) = both(&old, Plugin::Native, Some(stored_native()), &passwords).await;
    assert!(done.is_ok());
    let (seen, _) = both(&old, Plugin::CachingSha2, Some(stored_sha2()), &passwords).await;
    assert_eq!(seen.1.expect_err("refused").code, 1251);
}

#[tokio::test]
async fn strangers_words_are_bounded() {
    for bytes in [
        &[0xff, 0xff, 0xff, 1][..],
        &[1, 0, 1, 1],
        &[1, 0, 0, 7, 0],
        &[3, 0, 0, 1, 1, 2, 3],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let (near, mut far) = pipe();
        let client = async {
            far.write_all(bytes).await.expect("written");
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.expect("closed");
            got
        };
        let server = async {
            let error = arrive(near, Plugin::Native, ListenTls::Off)
                .await
                .expect_err("refused");
            assert!(matches!(error, HandshakeError::Refused(_)), "{error}");
        };
        let (got, ()) = in_time_boxed(async { tokio::join!(client, server) }).await;
        assert!(got.ends_with(b"#08S01Bad handshake"), "{bytes:?}");
    }
    let (near, far) = pipe();
    drop(far);
    let left = accept(near, &offer(Plugin::Native), 1, &config(ListenTls::Off)).await;
    assert!(matches!(
        left,
        Ok(Accepted::Closed) | Err(HandshakeError::Io(_))
    ));
}

#[tokio::test]
async fn case_17_a_session_changes_its_user_with_a_new_challenge() {
    for password in ["pencil", "Pencil"] {
        let (near, far) = pipe();
        let server = async {
            let first = arrive(near, Plugin::Native, ListenTls::Off)
                .await
                .expect("arrives");
            let nonce = first.nonce;
            let capabilities = first.capabilities;
            let (stream, buffered) = first.welcome(2, 0).await.expect("welcomed");
            let request = Request {
                capabilities,
                ..Request::own(b"other", Some(b"shop"))
            };
            let other = super::handshake::nonce().expect("random");
            let mut again = Arrival::again(stream, buffered, (77, &request), other, [5; 32]);
            assert_ne!(again.nonce, nonce);
            assert_eq!(
                (again.user(), again.database()),
                (&b"other"[..], Some(&b"shop"[..]))
            );
            let passwords = Passwords::default();
            let challenge = Challenge {
                plugin: Plugin::Native,
                secret: Some(stored_native()),
                passwords: &passwords,
                decoy_thousands: 0,
                rsa: &RSA,
            };
            let done = authenticate(&mut again, challenge).await;
            if done.is_ok() {
                again.welcome(2, 0).await.expect("welcomed");
            }
            done.is_ok()
        };
        let client = async {
            let (seen, mut packets) = CLIENT.log_in(far).await;
            seen.1.expect("in");
            packets.set_sequence(1);
            let asked = packets.next().await.expect("asked");
            let (plugin, data) = parse_switch(&asked).expect("a switch");
            assert_eq!(plugin, b"mysql_native_password");
            let answer = native::answer(&native::stage1(password.as_bytes()), &data[..20]);
            packets
                .send(|out| out.put_slice(&*answer))
                .await
                .expect("sent");
            packets.next().await.expect("answered")[0] == OK
        };
        let (let_in, ok) = Box::pin(in_time(async { tokio::join!(server, client) })).await;
        assert_eq!((let_in, ok), (password == "pencil", password == "pencil"));
    }
}

#[tokio::test]
async fn a_cluster_in_front_of_the_user() {
    let (near, far) = pipe();
    let client = Client {
        user: "shop/app/x",
        ..CLIENT
    };
    let server = async {
        let mut arrival = arrive(near, Plugin::Native, ListenTls::Off)
            .await
            .expect("arrives");
        assert_eq!(arrival.take_cluster(|_| false), None);
        assert_eq!(arrival.user(), b"shop/app/x");
        assert_eq!(
            arrival.take_cluster(|name| name == "shop").as_deref(),
            Some("shop")
        );
        assert_eq!(arrival.user(), b"app/x");
        arrival
            .refuse_with(b"\xff\x19\x04#42000Unknown database")
            .await;
    };
    let ((seen, _), ()) = in_time_boxed(async { tokio::join!(client.log_in(far), server) }).await;
    assert_eq!(seen.1.expect_err("refused").code, 1049);
}
