//! The relay between two pipes: every byte, in order, whatever the pieces; and what stops it.

use super::{Context, Instant, Leg, Mode, Poll, READ_MAX, Relay, SCRATCH, Stop};
use crate::backend::registry::{Ask, Identity, Registered, Registry};
use crate::net::pg::{Pg, ProcessNames};
use crate::net::protocol::Refusal;
use crate::transport::stream::Stream;
use crate::wire::pg::frame::{HEADER_LEN, Header, put};
use bytes::{BufMut, BytesMut};
use futures_util::FutureExt;
use futures_util::task::noop_waker_ref;
use proptest::prelude::*;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

#[path = "relay_held.rs"]
mod held;
#[path = "relay_safe_points.rs"]
mod safe_points;

#[derive(Debug)]
struct Renumber;

impl ProcessNames for Renumber {
    fn told(&self, real: i32) -> i32 {
        if real == 77 { 1234 } else { real }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

struct Bench {
    relay: Relay<Pg>,
    registered: Registered,
    client: DuplexStream,
    server: DuplexStream,
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put(&mut out, tag, |out| out.put_slice(body));
    out.to_vec()
}

/// `Q P B E S ...` by their tags; `Z:I`.
fn frames(words: &str) -> Vec<u8> {
    let one = |word: &str| {
        let (tag, text) = word.split_once(':').unwrap_or((word, ""));
        let text = text.as_bytes();
        match tag {
            "Q" => frame(b'Q', &[text, b"\0"].concat()),
            "P" => frame(b'P', &[b"\0", text, b"\0\0\0"].concat()),
            "B" => frame(b'B', &[0; 8]),
            "F" => frame(b'F', &[0; 8]),
            "E" => frame(b'E', &[0; 5]),
            "f" => frame(b'f', &[0]),
            _ => frame(tag.as_bytes()[0], text),
        }
    };
    words.split_whitespace().flat_map(one).collect()
}

const ERROR: &[u8] = b"SERROR\0VERROR\0C42601\0Msyntax\0\0";

fn fatal_frame() -> Vec<u8> {
    frame(b'E', b"SFATAL\0VFATAL\0C57P01\0Mshut down\0\0")
}

fn notification(process: i32) -> Vec<u8> {
    frame(
        b'A',
        &[&process.to_be_bytes()[..], b"channel\0payload\0"].concat(),
    )
}

/// What a pipe has for its reader now.
fn drain(stream: &mut DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Some(Ok(n)) = stream.read(&mut buffer).now_or_never() {
        if n == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

fn tags(mut bytes: &[u8]) -> String {
    let mut tags = Vec::new();
    while let Some(header) = Header::parse(bytes).expect("frames") {
        tags.push((header.tag as char).to_string());
        bytes = bytes.get(header.frame_len()..).expect("whole frames");
    }
    assert!(bytes.is_empty(), "a frame was cut");
    tags.join(" ")
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
            connected_at: now(),
            age_limit: None,
        };
        let registered = Arc::new(Registry::default()).add(identity, String::new());
        registered.handle.forget_asked();
        let leg = Leg::new(Stream::duplex(near_client), BytesMut::new());
        let mut relay = Relay::new(leg, Pg::new(Arc::new(Renumber), 0));
        relay.attach(Leg::new(Stream::duplex(near_server), BytesMut::new()));
        Self {
            relay,
            registered,
            client,
            server,
        }
    }

    /// Lets the relay do what it can; why it stopped, if it did.
    fn turn(&mut self) -> Option<Stop> {
        let mut cx = Context::from_waker(noop_waker_ref());
        let stop = match self.relay.poll(&mut cx, &self.registered.handle, now()) {
            Poll::Ready(stop) => Some(stop),
            Poll::Pending => None,
        };
        self.assert_bounded();
        stop
    }

    fn turn_held(&mut self) -> Option<Stop> {
        let mut cx = Context::from_waker(noop_waker_ref());
        match self.relay.poll_held(&mut cx, &self.registered.handle) {
            Poll::Ready(stop) => Some(stop),
            Poll::Pending => None,
        }
    }

    fn assert_bounded(&self) {
        let legs = [Some(&self.relay.client), self.relay.server.as_ref()];
        for leg in legs.into_iter().flatten() {
            assert!(leg.carry.len() <= 2 * READ_MAX, "{}", leg.carry.len());
            assert!(leg.out.len() <= SCRATCH, "{}", leg.out.len());
        }
    }

    fn client_sends(&mut self, bytes: &[u8]) -> Option<Stop> {
        let sent = self.client.write_all(bytes).now_or_never();
        sent.expect("room in the pipe").expect("open");
        self.turn()
    }

    fn server_sends(&mut self, bytes: &[u8]) -> Option<Stop> {
        let sent = self.server.write_all(bytes).now_or_never();
        sent.expect("room in the pipe").expect("open");
        self.turn()
    }

    /// Sends as the client; what of it came through.
    fn forwards(&mut self, words: &str) -> String {
        let stop = self.client_sends(&frames(words));
        assert!(stop.is_none(), "{stop:?}");
        tags(&drain(&mut self.server))
    }

    /// Sends as the server; what the relay stopped for.
    fn replies(&mut self, words: &str) -> Option<Stop> {
        let stop = self.server_sends(&frames(words));
        let seen = drain(&mut self.client);
        assert_eq!(seen, frames(words), "replies arrive");
        stop
    }

    fn lock_step(&mut self) {
        self.relay.mode = Mode::LockStep;
    }

    /// At rest and taken off, with whatever the client has sent.
    fn detached() -> Self {
        let mut bench = Self::new(1 << 20);
        bench.lock_step();
        assert!(matches!(bench.turn(), Some(Stop::SafePoint)));
        bench.relay.detach().expect("a server");
        bench
    }

    /// A new server.
    fn attach(&mut self) {
        let (server, near) = tokio::io::duplex(1 << 20);
        self.server = server;
        self.relay
            .attach(Leg::new(Stream::duplex(near), BytesMut::new()));
    }

    fn refuse(&mut self) {
        self.relay.refuse_held(Refusal::Canceled).expect("frames");
    }
}

/// A client's and a server's transcript, and what the client reads.
fn transcripts() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let client = [
        frames("Q:select P:a B E H S F d c Q:b"),
        frame(b'P', &[&b"n\0"[..], &[b'x'; 200], b"\0\0\0"].concat()),
        frames("S"),
    ]
    .concat();
    let server = |process| {
        [
            frames("T D D:xyz C Z:I 1 2 C Z:I V Z:I"),
            notification(process),
            notification(5),
            frame(b'S', b"TimeZone\0UTC\0"),
            frames("N T D C"),
            frame(b'E', ERROR),
            frames("Z:I 1"),
            frames("Z:I"),
        ]
        .concat()
    };
    (client, server(77), server(1234))
}

#[test]
fn frames_split_anywhere_arrive_unchanged() {
    let (client, server, seen) = transcripts();
    for at in 0..=client.len() {
        let mut bench = Bench::new(1 << 16);
        assert!(bench.client_sends(&client[..at]).is_none());
        assert!(bench.client_sends(&client[at..]).is_none());
        assert_eq!(drain(&mut bench.server), client, "cut at {at}");
        let at = at.min(server.len());
        assert!(bench.server_sends(&server[..at]).is_none());
        assert!(bench.server_sends(&server[at..]).is_none());
        assert_eq!(drain(&mut bench.client), seen, "cut at {at}");
        assert!(
            bench.relay.at_safe_point(),
            "{:?}",
            bench.relay.front.machine
        );
        assert_eq!(
            bench.relay.front.parameter(b"TimeZone").as_deref(),
            Some("UTC"),
            "cut at {at}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any pieces, any size of the pipes, real wake-ups.
    #[test]
    fn any_pieces_arrive_unchanged(
        pipe in 1_usize..300,
        client_piece in 1_usize..400,
        server_piece in 1_usize..400,
        read_piece in 1_usize..400,
    ) {
        let (client, server, seen) = transcripts();
        let (to_server, to_client) =
            pump(pipe, &client, client_piece, &server, server_piece, seen.len(), read_piece);
        prop_assert_eq!(to_server, client);
        prop_assert_eq!(to_client, seen);
    }
}

fn within<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), work)
            .await
            .expect("in time: no wake-up was lost")
    })
}

async fn write_pieces(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], piece: usize) {
    for part in bytes.chunks(piece) {
        to.write_all(part).await.expect("open");
    }
}

async fn read_pieces(from: &mut (impl AsyncRead + Unpin), len: usize, piece: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0; piece];
    while all.len() < len {
        let n = from.read(&mut buffer).await.expect("open");
        assert!(n > 0, "closed early");
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

/// Both peers write and read at once; what each has read. The server's replies do not wait for requests,
/// which the machine finds ambiguous, and the bytes pass all the same.
fn pump(
    pipe: usize,
    client_bytes: &[u8],
    client_piece: usize,
    server_bytes: &[u8],
    server_piece: usize,
    seen: usize,
    read_piece: usize,
) -> (Vec<u8>, Vec<u8>) {
    let bench = Bench::new(pipe);
    let (mut relay, handle) = (bench.relay, Arc::clone(&bench.registered.handle));
    let (mut client_read, mut client_write) = tokio::io::split(bench.client);
    let (mut server_read, mut server_write) = tokio::io::split(bench.server);
    within(async {
        let relaying = poll_fn(|cx| relay.poll(cx, &handle, now()));
        let peers = async {
            tokio::join!(
                write_pieces(&mut client_write, client_bytes, client_piece),
                write_pieces(&mut server_write, server_bytes, server_piece),
                read_pieces(&mut server_read, client_bytes.len(), read_piece),
                read_pieces(&mut client_read, seen, read_piece),
            )
        };
        tokio::select! {
            stop = relaying => panic!("stopped: {stop:?}"),
            ((), (), to_server, to_client) = peers => (to_server, to_client),
        }
    })
}

#[test]
fn a_good_bye_behind_a_request_lets_it_run_to_its_end() {
    let mut bench = Bench::new(1 << 16);
    assert_eq!(bench.forwards("Q:insert X"), "Q X");
    assert!(!bench.relay.at_safe_point());
    // It may still read, or not.
    assert!(bench.replies("C").is_none());
    drop(std::mem::replace(&mut bench.client, tokio::io::duplex(1).0));
    assert!(bench.server_sends(&frames("N Z:I")).is_none());
    assert!(!bench.relay.at_safe_point(), "it will not be used again");
    drop(std::mem::replace(&mut bench.server, tokio::io::duplex(1).0));
    assert!(matches!(bench.turn(), Some(Stop::ServerGone)));
}

#[test]
fn a_good_bye_at_rest_or_inside_copy_is_no_request() {
    let mut bench = Bench::new(1 << 16);
    assert!(matches!(
        bench.client_sends(&frames("X")),
        Some(Stop::ClientGone)
    ));
    let mut bench = Bench::new(1 << 16);
    bench.forwards("Q:copy");
    assert!(bench.replies("G").is_none());
    assert!(matches!(
        bench.client_sends(&frames("d X")),
        Some(Stop::ClientGone)
    ));
}

#[test]
fn half_a_message_is_known() {
    let mut bench = Bench::new(1 << 16);
    bench.forwards("Q:select");
    let row = frame(b'D', &[7; 100]);
    assert!(bench.server_sends(&row[..50]).is_none());
    assert!(bench.relay.is_mid_frame());
    assert!(bench.server_sends(&row[50..]).is_none());
    assert!(!bench.relay.is_mid_frame());
}

#[test]
fn case_25_both_sides_may_write_more_than_all_buffers() {
    let client: Vec<u8> = (0..3_000)
        .flat_map(|n| frame(b'Q', &[&vec![b'q'; n % 1500][..], b"\0"].concat()))
        .collect();
    let server: Vec<u8> = (0..3_000)
        .flat_map(|n| [frame(b'D', &vec![b'r'; n % 1500]), frames("C Z:I")].concat())
        .collect();
    for pipe in [64, 5_000, 100_000] {
        let (to_server, to_client) = pump(pipe, &client, 9_999, &server, 7_777, server.len(), 4096);
        assert!(to_server == client && to_client == server, "pipe of {pipe}");
    }
}

#[test]
fn large_messages_stream_in_bounded_memory() {
    let mut bench = Bench::new(1 << 20);
    let size = 48 << 20;
    let large = |tag: u8| {
        let mut head = vec![tag];
        head.extend_from_slice(&(size + 4_i32).to_be_bytes());
        head
    };
    let piece = vec![7; 1 << 19];
    let pieces = usize::try_from(size).expect("positive") / piece.len();
    assert!(bench.client_sends(&large(b'Q')).is_none());
    let mut passed = 0;
    for _ in 0..pieces {
        assert!(bench.client_sends(&piece).is_none());
        passed += drain(&mut bench.server).len();
    }
    assert_eq!(passed, pieces * piece.len() + HEADER_LEN);
    passed = 0;
    assert!(bench.server_sends(&large(b'D')).is_none());
    for _ in 0..pieces {
        assert!(bench.server_sends(&piece).is_none());
        passed += drain(&mut bench.client).len();
    }
    assert_eq!(passed, pieces * piece.len() + HEADER_LEN);
    assert!(bench.replies("C Z:I").is_none());
    assert!(bench.relay.at_safe_point());
    let legs = [Some(&bench.relay.client), bench.relay.server.as_ref()];
    for leg in legs.into_iter().flatten() {
        assert_eq!((leg.carry.capacity(), leg.out.capacity()), (0, 0), "idle");
    }
}

#[test]
fn case_36_a_client_that_does_not_read_stops_only_itself() {
    let mut bench = Bench::new(1 << 10);
    assert_eq!(bench.forwards("Q:rows"), "Q");
    let rows: Vec<u8> = (0..9_000_u32)
        .flat_map(|n| frame(b'D', &n.to_be_bytes()))
        .chain(frames("C Z:I"))
        .collect();
    let (mut written, mut stuck) = (0, 0);
    while stuck < 3 {
        match bench.server.write(&rows[written..]).now_or_never() {
            Some(n) => written += n.expect("open"),
            None => stuck += 1,
        }
        assert!(bench.turn().is_none());
    }
    assert!(written < rows.len(), "the server was stopped");
    bench.lock_step();
    assert_eq!(bench.forwards("Q:next"), "", "nothing passes the reply");
    assert!(!bench.relay.at_safe_point());
    let mut seen = Vec::new();
    let mut stopped = false;
    while seen.len() < rows.len() {
        seen.extend(drain(&mut bench.client));
        if let Some(Ok(n)) = bench.server.write(&rows[written..]).now_or_never() {
            written += n;
        }
        assert!(
            !stopped || seen.len() == rows.len(),
            "undelivered at a safe point"
        );
        stopped |= bench.turn().is_some();
    }
    assert!(seen == rows, "in order");
}

#[test]
fn case_34_late_copy_data_is_no_request() {
    // To a server it is sent on, which ignores it; without one it is dropped.
    let mut bench = Bench::detached();
    let late = [frames("d:late c H"), frame(b'd', &[1; 5_000])].concat();
    assert!(bench.client_sends(&late[..late.len() - 10]).is_none());
    assert!(!bench.relay.holds_request());
    assert!(bench.client_sends(&late[late.len() - 10..]).is_none());
    let stop = bench.client_sends(&frames("Q:next"));
    assert!(matches!(stop, Some(Stop::NeedServer)), "{stop:?}");
    bench.attach();
    assert!(matches!(bench.turn(), Some(Stop::SafePoint)));
    assert!(drain(&mut bench.server).is_empty());
    bench.relay.mode = Mode::Flow;
    assert!(bench.turn().is_none());
    assert_eq!(tags(&drain(&mut bench.server)), "Q");
    // A cancel drops the request behind it, and that only.
    let mut bench = Bench::detached();
    bench
        .client
        .write_all(&frames("d f H Q:1 Q:2"))
        .now_or_never();
    assert!(bench.turn_held().is_none());
    bench.refuse();
    bench.turn_held();
    assert_eq!(tags(&drain(&mut bench.client)), "E Z");
    bench.attach();
    bench.relay.mode = Mode::Flow;
    assert!(bench.turn().is_none());
    assert_eq!(drain(&mut bench.server), frames("Q:2"));
}

#[test]
fn the_servers_last_words_wait() {
    let mut bench = Bench::new(1 << 16);
    let words = [frames("N"), fatal_frame()].concat();
    for at in 0..words.len() {
        let mut bench = Bench::new(1 << 16);
        assert!(bench.server_sends(&words[..at]).is_none());
        let Some(Stop::ServerFatal(fatal)) = bench.server_sends(&words[at..]) else {
            panic!("cut at {at}");
        };
        assert_eq!(fatal.code, "57P01");
        assert_eq!(fatal.frame, fatal_frame());
        assert_eq!(drain(&mut bench.client), frames("N"));
        assert!(bench.relay.at_safe_point(), "healing is still possible");
    }
    bench.forwards("Q:1");
    drop(std::mem::replace(&mut bench.server, tokio::io::duplex(1).0));
    assert!(matches!(bench.turn(), Some(Stop::ServerGone)));
}

#[test]
fn terminate_ends_behind_what_was_sent() {
    let mut bench = Bench::new(1 << 16);
    assert_eq!(bench.forwards("Q:1 X Q:2"), "Q X");
    let mut bench = Bench::detached();
    let stop = bench.client_sends(&frames("X Q:2"));
    assert!(matches!(stop, Some(Stop::ClientGone)));
}

#[test]
fn case_40_a_stream_is_stopped_between_two_messages_however_much_comes() {
    let mut bench = Bench::new(1 << 20);
    assert_eq!(bench.forwards("Q:START"), "Q");
    assert!(bench.replies("W d:one").is_none());
    assert!(bench.relay.front.machine.is_streaming() && !bench.relay.is_mid_frame());
    let data = frame(b'd', &[7; 1000]);
    let (half, rest) = data.split_at(400);
    assert!(bench.server_sends(half).is_none());
    assert!(bench.relay.is_mid_frame(), "the client has half of one");
    bench.relay.want_gap = true;
    let more = [rest, &data, &data].concat();
    assert!(matches!(bench.server_sends(&more), Some(Stop::Rested)));
    assert!(!bench.relay.is_mid_frame());
    let told = drain(&mut bench.client);
    assert_eq!(tags(&told), "d", "no more than the rest of it");
    assert!(bench.turn().is_none(), "asked once");
    assert_eq!(tags(&drain(&mut bench.client)), "d d", "nothing is kept");
    assert!(bench.replies("c").is_none());
}

#[test]
fn case_37_what_came_beside_a_probe_is_the_clients() {
    let mut bench = Bench::new(1 << 20);
    let status = frame(b'S', b"TimeZone\0UTC\0");
    let notice = frame(b'N', b"SNOTICE\0\0");
    let came = [&notification(77)[..], &status, &notice, &notification(5)].concat();
    let (front, out) = bench.relay.front_and_out();
    front.put_whole(&came, out);
    assert!(bench.turn().is_none());
    let told = [&notification(1234)[..], &status, &notice, &notification(5)].concat();
    assert_eq!(drain(&mut bench.client), told);
    assert_eq!(
        bench.relay.front.parameter(b"TimeZone").as_deref(),
        Some("UTC")
    );
}

#[test]
fn garbage_is_named() {
    for length in [i32::MIN, -1, 0, 3, i32::MAX] {
        let garbage = [&[b'Q'][..], &length.to_be_bytes()].concat();
        let mut bench = Bench::new(1 << 16);
        let stop = bench.client_sends(&[frames("Q:1"), garbage.clone()].concat());
        assert!(matches!(stop, Some(Stop::ClientGarbage(_))), "{length}");
        assert_eq!(drain(&mut bench.server), frames("Q:1"));
        let mut bench = Bench::new(1 << 16);
        let stop = bench.server_sends(&[frames("N"), garbage].concat());
        assert!(matches!(stop, Some(Stop::ServerGarbage(_))), "{length}");
        assert_eq!(drain(&mut bench.client), frames("N"));
    }
}

#[test]
fn an_ask_wakes_an_idle_relay() {
    let bench = Bench::new(1 << 16);
    let (mut relay, handle) = (bench.relay, Arc::clone(&bench.registered.handle));
    within(async {
        let mut relaying = pin!(poll_fn(|cx| relay.poll(cx, &handle, now())));
        assert!((&mut relaying).now_or_never().is_none());
        let (stop, ()) = tokio::join!(relaying, async {
            tokio::task::yield_now().await;
            handle.ask(Ask::Gate);
        });
        assert!(matches!(stop, Stop::Asked));
    });
}
