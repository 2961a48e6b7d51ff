//! TLS: when it is offered, and demanded.

use super::*;

#[tokio::test]
async fn case_39_clear_text_behind_a_request_for_tls_is_never_read() {
    let (near, far) = pipe();
    let client = async {
        let mut packets = Packets::new(far, MAX_LOGIN_PACKET);
        packets.next().await.expect("greeted");
        let mut bytes = BytesMut::new();
        // An SSLRequest, and a log-in in clear.
        bytes.put_slice(&[32, 0, 0, 1, 0, 0x0a, 0, 0]);
        bytes.put_bytes(0, 28);
        bytes.put_slice(&[37, 0, 0, 2, 0, 0x82, 0, 0]);
        bytes.put_bytes(0, 28);
        bytes.put_slice(b"app\0\0");
        packets
            .stream_mut()
            .write_all(&bytes)
            .await
            .expect("written");
        packets.into_parts().0
    };
    let (_far, arrived) = in_time_boxed(async {
        tokio::join!(client, arrive(near, Plugin::Native, ListenTls::Prefer))
    })
    .await;
    assert!(
        matches!(arrived, Err(HandshakeError::Tls(_))),
        "{arrived:?}"
    );
}

#[tokio::test]
async fn tls_is_offered_and_demanded_as_configured() {
    for tls in [ListenTls::Off, ListenTls::Prefer, ListenTls::Require] {
        let (near, far) = pipe();
        let client = Client { ..CLIENT };
        let server = async {
            match arrive(near, Plugin::Native, tls).await {
                Ok(arrival) => {
                    arrival.refuse(&super::super::errors::shutting_down()).await;
                    None
                }
                Err(error) => Some(error),
            }
        };
        let ((seen, _), refused) =
            in_time_boxed(async { tokio::join!(client.log_in(far), server) }).await;
        let code = seen.1.expect_err("refused").code;
        assert_eq!(
            code,
            if tls == ListenTls::Require {
                3159
            } else {
                1053
            }
        );
        assert_eq!(refused.is_some(), tls == ListenTls::Require);
    }
    // A client that asks for TLS where there is none.
    let (near, far) = pipe();
    let client = async {
        let mut packets = Packets::new(far, MAX_LOGIN_PACKET);
        let greeting = Greeting::parse(&packets.next().await.expect("greeted")).expect("one");
        assert!(!greeting.capabilities.contains(Capabilities::SSL));
        assert!(greeting.nonce.iter().all(u8::is_ascii_graphic));
        packets
            .send(|out| {
                out.put_slice(&[0, 0x0a, 0, 0]);
                out.put_bytes(0, 28);
            })
            .await
            .expect("sent");
        ErrorPacket::parse(&packets.next().await.expect("told"))
            .expect("an ERR")
            .code
    };
    let (code, arrived) =
        in_time_boxed(async { tokio::join!(client, arrive(near, Plugin::Native, ListenTls::Off)) })
            .await;
    assert!(code == 1043 && arrived.is_err());
}
