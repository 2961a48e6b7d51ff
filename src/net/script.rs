//! The client's end of a login, for tests: a pipe, and what is written to and read from it.

use super::handshake::HandshakeConfig;
use crate::transport::ListenTls;
use crate::transport::stream::Stream;
use crate::transport::tls::{Certificates, Shown, Source};
use crate::wire::pg::frame::{Header, put_sized};
use bytes::{BufMut, BytesMut};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a listener with this setting shares; its certificate is made once.
pub(super) fn config(tls: ListenTls) -> HandshakeConfig {
    static CERTIFICATES: OnceLock<Arc<Certificates>> = OnceLock::new();
    let certificates = CERTIFICATES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let shown = Shown::SelfMade {
            state_dir: dir.path().to_owned(),
            dns_names: Vec::new(),
        };
        let source = Source {
            shown,
            client_ca: None,
        };
        Arc::new(Certificates::read(&source).expect("made"))
    });
    HandshakeConfig {
        tls,
        proxied: Vec::new(),
        certificates: Arc::clone(certificates),
        mock_secret: [5; 32],
    }
}

/// A connection inside the process: the proxy's end, and the client's.
pub(super) fn pipe() -> (Stream, Stream) {
    let (near, far) = tokio::io::duplex(128 * 1024);
    (Stream::duplex(near), Stream::duplex(far))
}

/// Waits for `work`, but not for ever.
pub(super) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let timed = tokio::time::timeout(Duration::from_secs(20), work).await;
    timed.expect("must not hang")
}

/// A start-up packet of any version with any body.
pub(super) fn startup_packet(version: i32, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_sized(&mut out, |out| {
        out.put_i32(version);
        out.put_slice(body);
    });
    out.to_vec()
}

/// Writes and flushes.
pub(super) async fn put_all(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("written");
    stream.flush().await.expect("flushed");
}

/// Reads one frame: its tag and its body.
pub(super) async fn frame(stream: &mut Stream) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await.expect("a header");
    let header = Header::parse(&header).expect("a frame").expect("whole");
    let mut body = vec![0; header.body];
    stream.read_exact(&mut body).await.expect("a body");
    (header.tag, body)
}
