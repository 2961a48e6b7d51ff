//! Compression: what is agreed on, and what follows a login.

use super::*;

/// What a client and a log-in without TLS agree on, by what the servers are.
async fn agreed(client: &Client, servers: Plugin) -> Result<Option<Algorithm>, HandshakeError> {
    let (near, far) = pipe();
    let server = arrive(near, servers, ListenTls::Off);
    let client = async {
        let (seen, _) = client.log_in(far).await;
        seen.1
    };
    let work = async {
        tokio::select! {
            arrived = server => arrived.map(|arrival| arrival.compression()),
            seen = client => panic!("{seen:?} before anybody asked for a proof"),
        }
    };
    Box::pin(in_time(work)).await
}

#[tokio::test]
async fn zstd_is_offered_where_servers_are_mysql_and_zlib_goes_before_it() {
    let (mysql, mariadb) = (Plugin::CachingSha2, Plugin::Native);
    let zstd = |level| ZstdLevel::new(level).map(Algorithm::Zstd);
    for (zlib, level, servers, expected) in [
        (false, None, mysql, None),
        (false, Some(1), mysql, zstd(1)),
        (false, Some(22), mysql, zstd(22)),
        (true, Some(3), mysql, Some(Algorithm::Zlib)),
        (true, None, mysql, Some(Algorithm::Zlib)),
        // A level that is not used is not looked at.
        (true, Some(0), mysql, Some(Algorithm::Zlib)),
        (false, Some(3), mariadb, None),
        (true, Some(3), mariadb, Some(Algorithm::Zlib)),
    ] {
        let without = if zlib {
            Capabilities::NONE
        } else {
            Capabilities::COMPRESS
        };
        let client = Client {
            without,
            zstd: level,
            ..CLIENT
        };
        let found = agreed(&client, servers).await.expect("agreed");
        assert_eq!(found, expected, "{zlib} {level:?} {servers:?}");
    }
    for level in [0, 23, 255] {
        let client = Client {
            zstd: Some(level),
            ..CLIENT
        };
        let refused = agreed(&client, mysql).await.expect_err("no such level");
        assert!(
            matches!(&refused, HandshakeError::Refused(error) if error.code == 3923),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn what_follows_a_login_is_compressed_where_that_was_agreed_on() {
    let zstd = Algorithm::Zstd(ZstdLevel::new(9).expect("a level"));
    for (tls, algorithm) in [
        (false, Algorithm::Zlib),
        (true, Algorithm::Zlib),
        (false, zstd),
        (true, zstd),
    ] {
        let (near, far) = pipe();
        let (without, level) = match algorithm {
            Algorithm::Zlib => (Capabilities::NONE, None),
            Algorithm::Zstd(_) => (Capabilities::COMPRESS, Some(9)),
        };
        let client = Client {
            tls,
            without,
            zstd: level,
            // Asked for by a switch: the greeting is MySQL's.
            plugin: Some("mysql_native_password"),
            ..CLIENT
        };
        let server = async {
            let mut arrival = arrive(near, Plugin::CachingSha2, ListenTls::Prefer)
                .await
                .expect("arrives");
            let passwords = Passwords::default();
            let challenge = Challenge {
                plugin: Plugin::Native,
                secret: Some(stored_native()),
                passwords: &passwords,
                decoy_thousands: 0,
                rsa: &RSA,
            };
            authenticate(&mut arrival, challenge).await.expect("in");
            let (mut stream, _) = arrival.welcome(2, 0).await.expect("welcomed");
            assert_eq!(stream.is_tls(), tls);
            let mut query = [0; 1000];
            stream.read_exact(&mut query).await.expect("read");
            stream.write_all(&query).await.expect("written");
            stream.flush().await.expect("flushed");
        };
        let client = async {
            let (seen, packets) = client.log_in(far).await;
            seen.1.expect("in");
            let stream = packets.into_parts().0;
            let mut stream = stream.compressed(algorithm, BytesMut::new());
            let mut packet = [7; 1000];
            packet[..4].copy_from_slice(&[0xe4, 3, 0, 0]);
            stream.write_all(&packet).await.expect("written");
            stream.flush().await.expect("flushed");
            let mut got = [0; 1000];
            stream.read_exact(&mut got).await.expect("read");
            // The answer's number follows.
            packet[3] = 1;
            assert_eq!(got, packet);
        };
        Box::pin(in_time(async { tokio::join!(client, server) })).await;
    }
}
