//! Stands between the proxy and its server, and changes what passes as it is told to.

use super::postgres::Port;
use parking_lot::Mutex;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What becomes of a message of the server: its type, its body, and the bytes that pass instead.
pub(crate) type Rewrite = fn(u8, &[u8], &mut Vec<u8>);

/// Passes a message as it is.
pub(crate) fn as_it_is(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    out.extend(super::wire::message(tag, body));
}

/// A listener in front of a server.
pub(crate) struct Middle {
    port: Port,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    rewrite: Rewrite,
    keeps_cancels: AtomicBool,
    cancels: AtomicUsize,
    kept: Mutex<Vec<TcpStream>>,
    legs: Mutex<Vec<(Vec<u8>, TcpStream)>>,
}

impl Middle {
    /// In front of the server on this port of 127.0.0.1. The proxy must connect without TLS.
    pub(crate) fn before(server: u16, rewrite: Rewrite) -> Self {
        let port = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", port.number)).unwrap();
        let shared = Arc::new(Shared {
            server,
            rewrite,
            keeps_cancels: AtomicBool::new(false),
            cancels: AtomicUsize::new(0),
            kept: Mutex::default(),
            legs: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { port, shared }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number)
    }

    /// From now on, or not: a CancelRequest does not arrive, and its connection is never closed.
    pub(crate) fn keep_cancels(&self, keep: bool) {
        self.shared.keeps_cancels.store(keep, Ordering::SeqCst);
    }

    /// CancelRequests so far.
    pub(crate) fn cancels(&self) -> usize {
        self.shared.cancels.load(Ordering::SeqCst)
    }

    /// Says something in the server's name on the connections whose start-up packet has `word` in it. To be
    /// used while the server itself is silent there.
    pub(crate) fn say(&self, word: &str, bytes: &[u8]) {
        let mut said = 0;
        for (first, stream) in self.shared.legs.lock().iter_mut() {
            if first.windows(word.len()).any(|w| w == word.as_bytes()) {
                said += usize::from(stream.write_all(bytes).is_ok());
            }
        }
        assert!(said > 0, "no connection for {word}");
    }
}

impl Shared {
    fn serve(&self, mut near: TcpStream) -> Option<()> {
        near.set_nodelay(true).ok()?;
        let mut head = [0; 8];
        near.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        let mut first = head.to_vec();
        first.resize(length, 0);
        near.read_exact(&mut first[8..]).ok()?;
        if head[4..] == 80_877_102_i32.to_be_bytes() {
            self.cancels.fetch_add(1, Ordering::SeqCst);
            if self.keeps_cancels.load(Ordering::SeqCst) {
                self.kept.lock().push(near);
                return None;
            }
        }
        let mut far = TcpStream::connect(("127.0.0.1", self.server)).ok()?;
        far.set_nodelay(true).ok()?;
        far.write_all(&first).ok()?;
        self.legs.lock().push((first, near.try_clone().ok()?));
        let (mut from, mut to) = (near.try_clone().ok()?, far.try_clone().ok()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        while let Some((tag, body)) = frame(&mut far) {
            let mut out = Vec::new();
            (self.rewrite)(tag, &body, &mut out);
            near.write_all(&out).ok()?;
        }
        near.shutdown(Shutdown::Both).ok()
    }
}

fn frame(from: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 4];
    from.read_exact(&mut body).ok()?;
    Some((head[0], body))
}
