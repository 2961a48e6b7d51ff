//! The relay between two pipes: what one side reads is what the other sent, in order, and all of it that is whole.

use arbitrary::{Arbitrary, Unstructured};
use bytes::{BufMut, BytesMut};
use slackwater::backend::registry::{Identity, Registered, Registry};
use slackwater::net::pg::{Pg, ProcessNames};
use slackwater::net::relay::{Leg, Mode, Relay, Stop};
use slackwater::transport::stream::Stream;
use slackwater::wire::pg::frame::{Header, put};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

#[derive(Debug)]
struct Same;

impl ProcessNames for Same {
    fn told(&self, real: i32) -> i32 {
        real
    }
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// A whole frame from the client.
    Client(u8, &'a [u8]),
    /// Bytes from the client.
    ClientRaw(&'a [u8]),
    /// A whole frame from the server.
    Server(u8, &'a [u8]),
    /// Bytes from the server.
    ServerRaw(&'a [u8]),
    /// The client reads so much.
    ClientReads(u16),
    /// The server reads so much.
    ServerReads(u16),
    /// The relay goes on.
    Turn,
    /// One request at a time, or not.
    Mode(bool),
}

/// One end: what it wrote, what of that was taken, what it read.
struct End {
    pipe: DuplexStream,
    sent: Vec<u8>,
    taken: usize,
    read: Vec<u8>,
}

impl End {
    fn new(pipe: DuplexStream) -> Self {
        Self {
            pipe,
            sent: Vec::new(),
            taken: 0,
            read: Vec::new(),
        }
    }

    fn push(&mut self, cx: &mut Context<'_>) {
        while let Some(rest) = self.sent.get(self.taken..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.pipe).poll_write(cx, rest) {
                Poll::Ready(Ok(n)) if n > 0 => self.taken += n,
                _ => break,
            }
        }
    }

    fn pull(&mut self, cx: &mut Context<'_>, most: usize) {
        let mut buffer = vec![0; most];
        let mut buffer = ReadBuf::new(&mut buffer);
        if let Poll::Ready(Ok(())) = Pin::new(&mut self.pipe).poll_read(cx, &mut buffer) {
            self.read.extend_from_slice(buffer.filled());
        }
    }
}

struct Bench {
    relay: Relay<Pg>,
    registered: Registered,
    client: End,
    server: End,
    over: bool,
}

impl Bench {
    fn new(pipe: usize) -> Self {
        let (client, near_client) = tokio::io::duplex(pipe);
        let (server, near_server) = tokio::io::duplex(pipe);
        let identity = Identity {
            id: 1,
            user: "u".to_owned(),
            database: "d".to_owned(),
            client_address: "duplex".to_owned(),
            connected_at: Instant::now(),
            age_limit: None,
        };
        let registered = Arc::new(Registry::default()).add(identity, String::new());
        registered.handle.forget_asked();
        let leg = Leg::new(Stream::duplex(near_client), BytesMut::new());
        let mut relay = Relay::new(leg, Pg::new(Arc::new(Same), 0));
        relay.attach(Leg::new(Stream::duplex(near_server), BytesMut::new()));
        Self {
            relay,
            registered,
            client: End::new(client),
            server: End::new(server),
            over: false,
        }
    }

    fn turn(&mut self) {
        if self.over {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        self.client.push(&mut cx);
        self.server.push(&mut cx);
        match self
            .relay
            .poll(&mut cx, &self.registered.handle, Instant::now())
        {
            Poll::Pending => {}
            Poll::Ready(Stop::SafePoint | Stop::Rested) => self.relay.mode = Mode::Flow,
            Poll::Ready(Stop::Asked) => self.registered.handle.forget_asked(),
            Poll::Ready(_) => self.over = true,
        }
        self.check();
    }

    fn check(&self) {
        let (client, server) = (&self.client, &self.server);
        assert!(
            client.sent.starts_with(&server.read),
            "the server read else"
        );
        assert!(
            server.sent.starts_with(&client.read),
            "the client read else"
        );
    }
}

fn framed(tag: u8, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    put(&mut out, tag, |out| out.put_slice(body));
    out
}

/// The bytes of whole frames at the start of `bytes`, before one with the tag `last`.
fn whole(bytes: &[u8], last: Option<u8>) -> usize {
    let mut at = 0;
    while let Ok(Some(header)) = Header::parse(&bytes[at..]) {
        let Some(end) = at
            .checked_add(header.frame_len())
            .filter(|end| *end <= bytes.len())
        else {
            break;
        };
        if last == Some(header.tag) {
            break;
        }
        at = end;
    }
    at
}

/// Runs a script.
pub fn scripted(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let pipe = 1 + usize::from(u16::arbitrary(&mut input).unwrap_or(99) % 2000);
    let mut bench = Bench::new(pipe);
    let mut cx = Context::from_waker(Waker::noop());
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else {
            break;
        };
        match step {
            Step::Client(tag, body) => bench.client.sent.extend(framed(tag, body)),
            Step::ClientRaw(bytes) => bench.client.sent.extend(bytes),
            Step::Server(tag, body) => bench.server.sent.extend(framed(tag, body)),
            Step::ServerRaw(bytes) => bench.server.sent.extend(bytes),
            Step::ClientReads(n) => bench.client.pull(&mut cx, usize::from(n)),
            Step::ServerReads(n) => bench.server.pull(&mut cx, usize::from(n)),
            Step::Turn => bench.turn(),
            Step::Mode(lock_step) if !bench.over => {
                bench.relay.mode = if lock_step {
                    Mode::LockStep
                } else {
                    Mode::Flow
                };
            }
            Step::Mode(_) => {}
        }
    }
    // Everybody reads on, until nothing moves.
    bench.relay.mode = Mode::Flow;
    let mut before = usize::MAX;
    loop {
        bench.turn();
        bench.client.pull(&mut cx, 4096);
        bench.server.pull(&mut cx, 4096);
        let (client, server) = (&bench.client, &bench.server);
        let moved = client.read.len() + server.read.len() + client.taken + server.taken;
        if bench.over || moved == before {
            break;
        }
        before = moved;
    }
    bench.check();
    if !bench.over {
        assert!(
            // A Terminate's body and what is behind it nobody reads.
            bench.server.read.len() >= whole(&bench.client.sent, Some(b'X')),
            "kept from the server"
        );
        assert!(
            bench.client.read.len() >= whole(&bench.server.sent, None),
            "kept from the client"
        );
    }
}
