//! MySQL and MariaDB up to the command phase: packets, stored secrets, an exchange with a hostile server, and a hostile
//! client at the front.

use bytes::{Buf, BytesMut};
use slackwater::auth::mysql::accounts::{Account, Seen, choose};
use slackwater::auth::mysql::client::ClientExchange;
use slackwater::auth::mysql::{
    Credential, Password, Plugin, Secret, Verifier, ed25519, native, proof, sha2,
};
use slackwater::auth::users::Users;
use slackwater::wire::mysql::auth::{ChangeUser, ErrorPacket, LoginOk, parse_switch, put_switch};
use slackwater::wire::mysql::capabilities::Capabilities;
use slackwater::wire::mysql::handshake::{FirstPacket, Greeting, Version, attributes, parse_first};

const PASSWORD: &[u8] = b"pencil";

/// What is read is written and read again as the same.
pub fn login(data: &[u8]) {
    if let Ok(greeting) = Greeting::parse(data) {
        let mut out = BytesMut::new();
        greeting.put(&mut out);
        let again = Greeting::parse(&out).expect("what was written is read");
        // Without plugins the second half of the challenge has a length of its own.
        assert_eq!(again, greeting);
        let version = Version::parse(&greeting.version, data.len() % 2 == 0);
        assert!(!version.to_string().is_empty());
    }
    match parse_first(data) {
        Ok(FirstPacket::Response(read)) => {
            let told: usize = attributes(&read.attributes)
                .map(|(n, v)| n.len() + v.len())
                .sum();
            assert!(told + read.user.len() + read.auth.len() <= data.len());
            let mut out = BytesMut::new();
            read.put(&mut out);
            if read.auth.len() <= 250
                || read.capabilities.contains(Capabilities::PLUGIN_AUTH_LENENC)
            {
                let Ok(FirstPacket::Response(again)) = parse_first(&out) else {
                    panic!("what was written is not read");
                };
                assert_eq!(
                    (&again.user, &again.auth, &again.database, &again.attributes),
                    (&read.user, &read.auth, &read.database, &read.attributes)
                );
            }
        }
        Ok(FirstPacket::Ssl) => assert_eq!(data.len(), 32),
        Err(_) => {}
    }
    if let Ok((plugin, rest)) = parse_switch(data) {
        let mut out = BytesMut::new();
        put_switch(&mut out, plugin, rest);
        assert_eq!(&out[..], data);
    }
    if let Ok(error) = ErrorPacket::parse(data) {
        let mut out = BytesMut::new();
        error.put(&mut out);
        let again = ErrorPacket::parse(&out).expect("what was written is read");
        assert!(again == error || error.state.is_none());
    }
    if let Ok(ok) = LoginOk::parse(data) {
        let mut out = BytesMut::new();
        ok.put(&mut out);
        assert_eq!(LoginOk::parse(&out), Ok(ok));
    }
    let (capabilities, rest) = match data.split_first_chunk::<8>() {
        Some((bits, rest)) => (Capabilities(u64::from_le_bytes(*bits)), rest),
        None => (Capabilities(u64::MAX), data),
    };
    if let Ok(read) = ChangeUser::parse(rest, capabilities) {
        let mut out = BytesMut::new();
        read.put(&mut out, capabilities);
        let again = ChangeUser::parse(&out, capabilities).expect("what was written is read");
        assert_eq!((&again.user, &again.database), (&read.user, &read.database));
    }
}

/// A server that says what it likes: nobody who listens ever gets the password from it.
pub fn auth(data: &[u8]) {
    let Some((kind, mut rest)) = data.split_first() else {
        return;
    };
    let private = kind & 1 == 1;
    let credential = match kind >> 1 & 3 {
        0 => None,
        1 => Some(Credential::Native(native::stage1(PASSWORD))),
        _ => Some(Credential::Password(Password::new(PASSWORD))),
    };
    let names: [&[u8]; 5] = [
        b"mysql_native_password",
        b"caching_sha2_password",
        b"client_ed25519",
        b"mysql_clear_password",
        b"other",
    ];
    let name = |byte: u8| names[usize::from(byte) % names.len()];
    let (mut exchange, answer) = ClientExchange::begin(
        credential.as_ref(),
        private,
        name(kind >> 3),
        &rest[..rest.len().min(20)],
    );
    let check = |answer: &[u8]| {
        let open = answer.windows(PASSWORD.len()).any(|part| part == PASSWORD);
        assert!(private || !open, "the password in clear");
    };
    check(&answer);
    while rest.has_remaining() {
        let word = rest.get_u8();
        let length = usize::from(word >> 3).min(rest.len());
        let (said, after) = rest.split_at(length);
        rest = after;
        let answered = match word & 1 {
            0 => exchange.more(said).map(Option::unwrap_or_default),
            _ => exchange.switch(name(word >> 1), said),
        };
        match answered {
            Ok(answer) => check(&answer),
            Err(_) => return,
        }
    }
    let proven = exchange.check_proof(data, &[7; 20], &[7; 32]);
    assert_ne!(
        proven,
        proof::Proof::Good,
        "somebody who does not know the password"
    );
}

/// Stored forms, answers and accounts.
pub fn secrets(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Secret::parse(&text) {
        Ok(Secret::Verifier(Verifier::Native(stored))) => {
            assert!(stored.recover(&[7; 20], data).is_none());
        }
        Ok(Secret::Password(password)) => assert_eq!(password.reveal(), text.as_bytes()),
        Ok(Secret::Verifier(_)) | Err(_) => {}
    }
    for plugin in ["", "caching_sha2_password", "ed25519", "parsec"] {
        let verifier = Verifier::of(plugin, data);
        if let Some(Verifier::Sha2(stored)) = &verifier {
            assert!((1..=1000).contains(&stored.thousands()));
        }
    }
    assert!(
        native::DoubleHash::of(PASSWORD)
            .recover(&[7; 20], data)
            .is_none()
    );
    assert!(!sha2::verify(PASSWORD, &[7; 20], data));
    assert!(!ed25519::PublicKey::of(PASSWORD).verify(&[7; 32], data));
    let _ = Plugin::of(data);
    drop(Users::parse_mysql(&text));
    let accounts: Vec<_> = text
        .split('\n')
        .map(|host| Account {
            user: if host.len() % 2 == 0 {
                "app".to_owned()
            } else {
                String::new()
            },
            host: host.to_owned(),
            verifier: None,
            plugin: String::new(),
            locked: false,
            expired: false,
        })
        .collect();
    for ip in ["10.1.2.3", "fe80::1"] {
        let seen = Seen {
            host: "db.example.com".to_owned(),
            ip: ip.parse().ok(),
        };
        let chosen = choose(&accounts, "app", &seen);
        assert!(chosen.is_none_or(|one| accounts.contains(one)));
    }
}
