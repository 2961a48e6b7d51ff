//! The front door from a stranger's side: TLS as it comes, certificates, versions, sizes. The numbers are those
//! of the forty cases.

use super::authentication::{
    AuthError, Challenge, ClientCertificate, Method, authenticate, check_certificate,
};
use super::handshake::{Accepted, Arrival, HandshakeConfig, HandshakeError, accept};
use super::script::{config, frame, in_time, pipe, put_all, startup_packet};
use crate::auth::Secret;
use crate::transport::ListenTls;
use crate::transport::stream::Stream;
use crate::transport::testing::{Ca, connect, serve};
use crate::transport::tls::{ALPN, CertificateFiles};
use crate::wire::pg::backend::ErrorFields;
use crate::wire::pg::startup::{PROTOCOL_3_0, put_ssl_request};
use bytes::BytesMut;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

const START: &[u8] = b"user\0app\0\0";

fn with_certificates(files: Vec<CertificateFiles>, ca: Option<&Ca>) -> HandshakeConfig {
    let path = ca.map(Ca::path);
    HandshakeConfig {
        certificates: Arc::new(serve(files, path.as_deref())),
        ..config(ListenTls::Prefer)
    }
}

/// What comes of a client that does `client` with its end.
async fn meet<F: Future>(
    config: &HandshakeConfig,
    client: impl FnOnce(Stream) -> F,
) -> (Result<Accepted, HandshakeError>, F::Output) {
    let (near, far) = pipe();
    in_time(Box::pin(async {
        tokio::join!(accept(near, config), client(far))
    }))
    .await
}

async fn ask_for_tls(far: &mut Stream) {
    let mut request = BytesMut::new();
    put_ssl_request(&mut request);
    put_all(far, &request).await;
    assert_eq!(far.read_u8().await.expect("an answer"), b'S');
}

fn arrived(result: Result<Accepted, HandshakeError>) -> Arrival {
    match result {
        Ok(Accepted::Session(arrival)) => *arrival,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn case_13_versions_and_protocol_options() {
    let negotiated = |minor: u8, names: &[u8]| {
        let count = u8::try_from(names.split(|b| *b == 0).count() - 1).expect("few");
        let mut body = vec![0, 3, 0, minor, 0, 0, 0, count];
        body.extend_from_slice(names);
        body
    };
    let option = b"user\0app\0_pq_.x\0on\0_pq_.y\0\0\0".as_slice();
    for (minor, body, spoken, told) in [
        (0, START, 0, None),
        (1, START, 1, None),
        (2, START, 2, None),
        (3, START, 2, Some(negotiated(2, b""))),
        (9999, START, 2, Some(negotiated(2, b""))),
        (0, option, 0, Some(negotiated(0, b"_pq_.x\0_pq_.y\0"))),
        (2, option, 2, Some(negotiated(2, b"_pq_.x\0_pq_.y\0"))),
        (9999, option, 2, Some(negotiated(2, b"_pq_.x\0_pq_.y\0"))),
    ] {
        let packet = startup_packet(PROTOCOL_3_0 | minor, body);
        let (result, mut far) = meet(&config(ListenTls::Prefer), async |mut far| {
            put_all(&mut far, &packet).await;
            far
        })
        .await;
        let arrival = arrived(result);
        assert_eq!(arrival.minor, spoken, "3.{minor}");
        assert_eq!(arrival.params.get("_pq_.x"), None, "goes to no server");
        drop(arrival);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.expect("closed");
        let expected = told.map(|body| {
            let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
            [b"v".as_slice(), &length, &body].concat()
        });
        assert_eq!(heard, expected.unwrap_or_default(), "3.{minor}: told once");
    }
    for version in [2 << 16, 4 << 16, 0, (3 << 16) | (1 << 31)] {
        let packet = startup_packet(version, START);
        let (result, told) = meet(&config(ListenTls::Prefer), async |mut far| {
            put_all(&mut far, &packet).await;
            ErrorFields::parse(&frame(&mut far).await.1)
        })
        .await;
        assert!(matches!(result, Err(HandshakeError::Refused { .. })));
        assert_eq!(told.code, "0A000", "{told:?}");
        assert!(
            told.message.starts_with("unsupported frontend protocol ")
                && told.message.ends_with(": server supports 3.0 to 3.2"),
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn case_11_impossible_lengths_cost_no_memory() {
    for length in [
        0,
        3,
        4,
        7,
        10_001,
        65_535,
        65_536,
        0x7fff_ffff,
        -1,
        i32::MIN,
    ] {
        let (result, told) = meet(&config(ListenTls::Prefer), async |mut far| {
            put_all(&mut far, &length.to_be_bytes()).await;
            ErrorFields::parse(&frame(&mut far).await.1)
        })
        .await;
        assert!(
            matches!(result, Err(HandshakeError::Refused { .. })),
            "{length}: at once, from its four bytes"
        );
        assert_eq!(
            (&*told.code, &*told.message),
            ("08P01", "invalid length of startup packet"),
            "{length}"
        );
    }
    // The longest that PostgreSQL takes.
    let mut body = b"user\0app\0application_name\0".to_vec();
    body.resize(10_000 - 8 - 2, b'a');
    body.extend_from_slice(b"\0\0");
    let packet = startup_packet(PROTOCOL_3_0, &body);
    assert_eq!(packet.len(), 10_000);
    let (result, ()) = meet(&config(ListenTls::Prefer), async |mut far| {
        put_all(&mut far, &packet).await;
    })
    .await;
    let arrival = arrived(result);
    assert!(
        arrival
            .params
            .get("application_name")
            .is_some_and(|n| n.len() > 9_900)
    );
    assert!(
        arrival.buffered.capacity() <= 20_000,
        "no more than was sent"
    );
}

#[tokio::test]
async fn case_12_names_given_twice_count_as_in_postgresql() {
    let body = b"user\0first\0database\0one\0user\0app\0database\0two\0\0";
    let (result, ()) = meet(&config(ListenTls::Prefer), async |mut far| {
        put_all(&mut far, &startup_packet(PROTOCOL_3_0, body)).await;
    })
    .await;
    let arrival = arrived(result);
    assert_eq!(
        (arrival.user(), arrival.database()),
        (&b"app"[..], &b"two"[..])
    );
}

#[tokio::test]
async fn case_15_gss_after_ssl_was_refused_and_plain_start_up() {
    let gss = [0, 0, 0, 8, 4, 210, 22, 48];
    let (result, ()) = meet(&config(ListenTls::Off), async |mut far| {
        let mut request = BytesMut::new();
        put_ssl_request(&mut request);
        for bytes in [&request[..], &gss] {
            put_all(&mut far, bytes).await;
            assert_eq!(far.read_u8().await.expect("an answer"), b'N');
        }
        put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
    })
    .await;
    assert!(!arrived(result).stream.is_tls());
}

#[tokio::test]
async fn case_16_direct_tls_demands_its_protocol_by_name() {
    let prefer = config(ListenTls::Prefer);
    let direct = async |far: Stream, protocols: &[&[u8]]| {
        let mut far = connect(far, "localhost", protocols, None).await?;
        put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
        Ok::<_, std::io::Error>(far)
    };
    for protocols in [&[ALPN][..], &[b"h2", ALPN]] {
        let (result, far) = meet(&prefer, |far| direct(far, protocols)).await;
        let arrival = arrived(result);
        assert!(arrival.stream.is_tls() && arrival.end_point.is_some());
        drop(far);
    }
    // None: the handshake itself works, and what follows is refused.
    let (result, told) = meet(&prefer, async |far| {
        let mut far = direct(far, &[]).await.expect("a handshake");
        ErrorFields::parse(&frame(&mut far).await.1)
    })
    .await;
    assert!(matches!(
        result,
        Err(HandshakeError::Refused { code: "08P01", .. })
    ));
    assert!(told.message.contains("without ALPN"), "{told:?}");
    // Another: TLS itself says no.
    let (result, far) = meet(&prefer, |far| direct(far, &[b"h2"])).await;
    let Err(HandshakeError::Tls(error)) = result else {
        panic!("{result:?}");
    };
    assert!(error.to_string().contains("ALPN"), "{error}");
    let text = far.expect_err("no TLS").to_string();
    assert!(text.contains("NoApplicationProtocol"), "{text}");
    // Asked for by SSLRequest it may be left out, and still not be another.
    for (protocols, works) in [
        (&[][..], true),
        (&[ALPN][..], true),
        (&[&b"h2"[..]][..], false),
    ] {
        let (result, far) = meet(&prefer, async |mut far| {
            ask_for_tls(&mut far).await;
            direct(far, protocols).await
        })
        .await;
        assert_eq!(result.is_ok(), works, "{protocols:?}: {result:?}");
        assert_eq!(far.is_ok(), works);
    }
}

#[tokio::test]
async fn case_16_the_first_byte_of_direct_tls_may_come_alone_and_late() {
    let prefer = config(ListenTls::Prefer);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (hello, mut relay) = tokio::io::duplex(64 * 1024);
    let client = async {
        let mut far = connect(Stream::duplex(hello), "localhost", &[ALPN], None).await?;
        put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
        Ok::<_, std::io::Error>(far)
    };
    // Byte by byte, each in a segment of its own.
    let slow = async {
        let mut far = far;
        let mut byte = [0];
        for _ in 0..100 {
            let read = relay.read_exact(&mut byte).await;
            read.expect("a byte of the client's hello");
            tokio::io::AsyncWriteExt::write_all(&mut far, &byte)
                .await
                .expect("written");
            tokio::task::yield_now().await;
        }
        drop(tokio::io::copy_bidirectional(&mut relay, &mut far).await);
    };
    let accepted = async {
        tokio::select! {
            done = async { tokio::join!(accept(Stream::duplex(near), &prefer), client) } => done,
            () = slow => panic!("the relay ended"),
        }
    };
    let (result, far) = in_time(Box::pin(accepted)).await;
    assert!(arrived(result).stream.is_tls());
    assert!(far.is_ok());
}

#[tokio::test]
async fn the_name_that_is_asked_for_chooses_the_certificate() {
    let ca = Ca::new();
    let files = vec![
        ca.sign("first", &["first.example.com"]),
        ca.sign("wild", &["*.db.example.com"]),
    ];
    let config = with_certificates(files, None);
    let mut seen = Vec::new();
    for host in [
        "first.example.com",
        "shop.db.example.com",
        "127.0.0.1",
        "other.org",
    ] {
        let (result, far) = meet(&config, async |mut far| {
            ask_for_tls(&mut far).await;
            let mut far = connect(far, host, &[], None).await.expect("a handshake");
            put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
            far
        })
        .await;
        let bound = crate::transport::tls::server_end_point(&far);
        assert_eq!(arrived(result).end_point, bound, "both ends mean the same");
        seen.push(bound.expect("a hash"));
    }
    assert_ne!(seen[0], seen[1]);
    assert_eq!(
        (&seen[2], &seen[3]),
        (&seen[0], &seen[0]),
        "the first for the rest"
    );
}

/// Whether a client with this certificate gets in where that is demanded; its error otherwise.
async fn show(
    config: &HandshakeConfig,
    demand: ClientCertificate,
    own: Option<&CertificateFiles>,
) -> Result<(), AuthError> {
    let (result, _far) = meet(config, async |mut far| {
        ask_for_tls(&mut far).await;
        let far = connect(far, "localhost", &[ALPN], own).await;
        let mut far = far.expect("a handshake");
        put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
        far
    })
    .await;
    check_certificate(&mut arrived(result), demand).await
}

#[tokio::test]
async fn client_certificates_are_asked_for_and_each_demand_means_what_it_says() {
    use ClientCertificate::{Off, VerifyCa, VerifyFull};
    let (ca, other) = (Ca::new(), Ca::new());
    let config = with_certificates(vec![ca.sign("server", &["localhost"])], Some(&ca));
    let (app, else_) = (ca.sign("app", &[]), ca.sign("else", &["app"]));
    for (demand, own, refusal) in [
        (Off, None, None),
        (Off, Some(&else_), None),
        (VerifyCa, Some(&else_), None),
        (VerifyFull, Some(&app), None),
        (VerifyCa, None, Some("requires a valid client certificate")),
        (
            VerifyFull,
            None,
            Some("requires a valid client certificate"),
        ),
        (
            VerifyFull,
            Some(&else_),
            Some("certificate authentication failed for user \"app\""),
        ),
    ] {
        let error = show(&config, demand, own)
            .await
            .err()
            .map(|e| e.to_string());
        match refusal {
            None => assert_eq!(error, None, "{demand:?}"),
            Some(words) => assert!(
                error.as_ref().is_some_and(|e| e.contains(words)),
                "{demand:?}: {error:?}"
            ),
        }
    }
    // One of another CA is no better than none, even where none is demanded.
    let foreign = other.sign("app", &[]);
    let (result, _far) = meet(&config, async |mut far| {
        ask_for_tls(&mut far).await;
        connect(far, "localhost", &[ALPN], Some(&foreign)).await
    })
    .await;
    let Err(HandshakeError::Tls(error)) = result else {
        panic!("{result:?}");
    };
    assert!(
        error
            .to_string()
            .contains("client's certificate was not accepted"),
        "{error}"
    );
    // Without TLS nothing can be shown.
    let (result, _far) = meet(&config, async |mut far| {
        put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
        far
    })
    .await;
    let refused = check_certificate(&mut arrived(result), VerifyCa).await;
    assert!(matches!(
        refused,
        Err(AuthError::Refused { code: "28000", .. })
    ));
}

#[tokio::test]
async fn a_certificate_alone_lets_in_who_has_a_password_on_file() {
    let password = || Secret::parse("pencil", &[7; 16]).expect("a password");
    let stored = Secret::parse("md5d41d8cd98f00b204e9800998ecf8427e", &[]).expect("a verifier");
    for (secret, works) in [
        (Some(password()), true),
        (Some(stored), false),
        (None, false),
    ] {
        let (result, mut far) = meet(&config(ListenTls::Prefer), async |mut far| {
            put_all(&mut far, &startup_packet(PROTOCOL_3_0, START)).await;
            far
        })
        .await;
        let mut arrival = arrived(result);
        let challenge = Challenge {
            method: Method::Certificate,
            secret,
        };
        let result = in_time(authenticate(&mut arrival, challenge)).await;
        assert_eq!(result.is_ok(), works);
        let (tag, body) = frame(&mut far).await;
        if works {
            assert_eq!((tag, body), (b'R', vec![0; 4]));
        } else {
            assert_eq!(ErrorFields::parse(&body).code, "28000");
        }
    }
}
