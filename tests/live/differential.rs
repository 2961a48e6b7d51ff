//! Random protocol scripts, straight on a server and through the proxy with moves in between: what the
//! client reads is the same, byte for byte, but for what [`told`] masks.
//!
//! Scripts are numbered; a fault names its script, which `SLACKWATER_TEST_FIRST=N SLACKWATER_TEST_COUNT=1` runs
//! again. Each runs on the direct side first, message by message until the server waits for more. So what the
//! proxy's side must read is known, and nothing is guessed by time.

use crate::support::admin::Admin;
use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::Proxy;
use crate::support::random::{Random, Segment, script};
use crate::support::script::encode;
use crate::support::wire::{Client, Message, Target};
use crate::support::{SOON, full, wait_for, wait_until};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The name by which the proxy's admin API knows the session. The same on both sides: clients read it.
const APPLICATION: &str = "differential";

/// Scripts after which both sides log in again.
const SCRIPTS_PER_LOGIN: u64 = 10;

/// Made once, as the ordinary user.
const OBJECTS: &[&str] = &[
    "create schema other",
    "create table other.t (a int, b text)",
    "create sequence s",
    "create table u (a int primary key)",
    "create table d (a int unique deferrable initially deferred)",
    "create table guarded (a int, b text)",
    "create table deferred (a int, b text)",
    "create table refused (a int, b text)",
    "create function fails(text) returns int language plpgsql as $$begin raise exception 'failed: %', $1; end$$",
    "create function noisy(int) returns int language plpgsql as $$begin raise notice 'noise %', $1; return $1; end$$",
    "create function guard() returns trigger language plpgsql as $$begin if new.a = 2 then raise exception 'guarded'; end if; return new; end$$",
    "create function refuse() returns trigger language plpgsql as $$begin raise exception 'refused'; end$$",
    "create trigger guard before insert on guarded for each row execute function guard()",
    "create constraint trigger later after insert on deferred deferrable initially deferred for each row execute function refuse()",
    "create trigger refuse before insert on refused for each statement execute function refuse()",
];

/// Between scripts.
const RESET: &str = "drop table if exists t, x, other.x; create table t (a int, b text); \
    truncate u, d, guarded, deferred, refused, other.t; alter sequence s restart; \
    select lo_unlink(oid) from pg_largeobject_metadata";

/// The server that is asked straight.
struct Direct {
    server: Postgres,
    owner: Client,
    client: Client,
    watcher: Client,
}

/// The proxy's side.
struct Through {
    owner: Client,
    proxy: Proxy,
    admin: Admin,
    client: Client,
    event: Option<u64>,
    tally: BTreeMap<String, u64>,
    _server: Postgres,
}

/// What the direct side read after one segment.
struct Heard {
    messages: Vec<Message>,
    /// The connection was still open.
    open: bool,
    /// The session can be moved behind it: nothing is open, and nothing that blocks was made.
    movable: bool,
}

fn server() -> Postgres {
    // What runs by itself would make the two differ.
    let server = Postgres::start(&["autovacuum=off", "jit=off"]);
    let mut client = Client::connect(&server.app()).unwrap();
    let owner = Target::new(server.port(), ADMIN, "app");
    Client::connect(&owner)
        .unwrap()
        .run("grant create on schema public to app");
    for sql in OBJECTS {
        client.run(sql);
    }
    client.close();
    server
}

fn connect(target: &Target) -> Client {
    Client::connect(&target.clone().with("application_name", APPLICATION)).unwrap()
}

fn bytes(segment: &Segment) -> Vec<u8> {
    segment
        .lines
        .iter()
        .flat_map(|line| encode(line, line))
        .collect()
}

impl Direct {
    fn start() -> Self {
        let server = server();
        Self {
            client: connect(&server.app()),
            owner: Client::connect(&server.app()).unwrap(),
            watcher: Client::connect(&server.admin()).unwrap(),
            server,
        }
    }

    fn log_in(&mut self) {
        let next = connect(&self.server.app());
        std::mem::replace(&mut self.client, next).close();
    }

    /// Runs the script up to the end of the connection.
    fn run(&mut self, script: &[Segment]) -> Vec<Heard> {
        let mut out = Vec::new();
        let mut blocked = false;
        for segment in script {
            let sent = self.client.send(&bytes(segment)).is_ok();
            let (messages, open) = self.settle();
            blocked |= segment.blocks;
            let discarded = |m: &Message| m.tag == b'C' && m.body == b"DISCARD ALL\0";
            if segment.cleans && messages.iter().any(discarded) {
                blocked = false;
            }
            let ended = ["Q", "S", "F"].iter().any(|tag| {
                let last = segment.lines.last().map_or("", String::as_str);
                last == *tag || last.starts_with(&format!("{tag} "))
            });
            let idle = messages.last().is_some_and(|m| m.label() == "Z(I)");
            out.push(Heard {
                movable: ended && idle && !blocked,
                messages,
                open: open && sent,
            });
            if !open {
                break;
            }
        }
        out
    }

    /// Everything up to where the server waits for more, or has ended.
    fn settle(&mut self) -> (Vec<Message>, bool) {
        let mut out = Vec::new();
        wait_for("the server waits for more", SOON, || {
            let waits = self.waits();
            let (messages, open) = self.client.arrived();
            out.extend(messages);
            (waits || !open).then_some(open)
        });
        let (messages, open) = self.client.arrived();
        out.extend(messages);
        (out, open)
    }

    /// The server has read all that was sent, and waits for the client.
    fn waits(&mut self) -> bool {
        let sql = format!(
            "select wait_event from pg_stat_activity where pid = {}",
            self.client.process
        );
        // First the one, then the other: a server that has just read does not wait yet. One that has crashed answers
        // neither.
        is_read(self.server.port(), self.client.local_port())
            && self.watcher.query(&sql).is_ok_and(|rows| {
                let told = rows.first().and_then(|row| row.first());
                told.and_then(Option::as_deref) == Some("ClientRead")
            })
    }
}

/// The socket of the side with port `at` has nothing unread from the one with port `from`, nor anything unsent.
/// The kernel is asked for this one: the table in /proc is long when many connections ended lately.
fn is_read(at: u16, from: u16) -> bool {
    const BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    let mut ask = Vec::new();
    ask.extend(72_u32.to_ne_bytes());
    ask.extend([BY_FAMILY, REQUEST].map(u16::to_ne_bytes).concat());
    ask.extend([0; 8]);
    // IPv4, TCP, sockets in any state.
    ask.extend([2, 6, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    ask.extend([at, from].map(u16::to_be_bytes).concat());
    for _ in 0..2 {
        ask.extend([127, 0, 0, 1]);
        ask.extend([0; 12]);
    }
    // On any interface, whatever its cookie.
    ask.extend([[0; 4], [0xff; 4], [0xff; 4]].concat());
    let netlink = (Domain::from(16), Protocol::from(4));
    let mut socket = Socket::new(netlink.0, Type::DGRAM, Some(netlink.1)).expect("netlink");
    socket.write_all(&ask).expect("the kernel takes questions");
    let mut answer = [0; 256];
    let length = socket.read(&mut answer).expect("the kernel answers");
    // An error: there is no such socket any more.
    length < 80 || answer[72..80].iter().all(|byte| *byte == 0)
}

impl Through {
    fn start() -> Self {
        let server = server();
        let proxy = Proxy::on(&server);
        Self {
            admin: proxy.admin(),
            client: connect(&proxy.app()),
            proxy,
            owner: Client::connect(&server.app()).unwrap(),
            _server: server,
            event: None,
            tally: BTreeMap::new(),
        }
    }

    fn log_in(&mut self) {
        let next = connect(&self.proxy.app());
        std::mem::replace(&mut self.client, next).close();
        wait_until("the old session is gone", SOON, || {
            self.admin.sessions().len() == 1
        });
    }

    fn count(&mut self, what: &str) {
        *self.tally.entry(what.to_owned()).or_default() += 1;
    }

    /// An event is wanted from now on.
    fn want(&mut self) {
        if self.event.is_none() {
            self.event = Some(self.admin.start_event(&json!({ "timeout_seconds": 300 })));
        }
    }

    /// The session is at a safe point: the event that is wanted must complete.
    fn must_move(&mut self) -> Result<(), String> {
        let Some(id) = self.event else {
            return Ok(());
        };
        // After some turns of COPY nobody can tell; a statement may refer to what is gone. All else passes, once the
        // session is asked again.
        let end = Instant::now() + SOON;
        let blocked = loop {
            if self.admin.outcome(id).is_some() {
                break None;
            }
            let blockers = self.admin.blockers(APPLICATION);
            let mut kinds = blockers.iter().filter_map(|b| b["kind"].as_str());
            let stays = kinds.find(|kind| ["ambiguous", "not_restorable"].contains(kind));
            if let Some(kind) = stays {
                break Some(kind.to_owned());
            }
            if Instant::now() >= end {
                let session = self.admin.session(APPLICATION);
                return Err(format!("the event does not end: {session:?}"));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        };
        match blocked {
            None => {
                self.event = None;
                let event = self.admin.event(id);
                self.count("moved at rest");
                if event["outcome"] == "completed" {
                    Ok(())
                } else {
                    Err(format!("the event did not complete: {event}"))
                }
            }
            Some(kind) => {
                self.count(&format!("not movable: {kind}"));
                Ok(())
            }
        }
    }

    /// The session is at a safe point and the cluster is held: it gives its server connection up, or says why not.
    fn must_detach(&mut self) {
        let detached = wait_for("the session is detached", SOON, || {
            let session = self.admin.session(APPLICATION)?;
            if session["attached"] == false {
                return Some(true);
            }
            let blockers = session["blockers"].as_array()?;
            (!blockers.is_empty()).then_some(false)
        });
        self.count(if detached {
            "held at rest"
        } else {
            "held, but blocked"
        });
    }

    /// Runs the script; the first difference.
    fn run(
        &mut self,
        number: u64,
        script: &[Segment],
        heard: &[Heard],
        own: i32,
    ) -> Result<(), String> {
        let mut random = Random::new(number ^ 0xdead_beef);
        for (at, (segment, heard_here)) in script.iter().zip(heard).enumerate() {
            let movable = at
                .checked_sub(1)
                .is_some_and(|before| heard[before].movable);
            let fault = |what: String| format!("segment {at}: {what}");
            let bytes = bytes(segment);
            let mut held = false;
            let send = |client: &mut Client, bytes: &[u8]| {
                client.send(bytes).map_err(|e| fault(e.to_string()))
            };
            match random.below(24) {
                0..6 if movable => {
                    self.want();
                    self.must_move().map_err(fault)?;
                    send(&mut self.client, &bytes)?;
                }
                // Detached by a hold, and attached by what comes next.
                6..10 if movable && self.event.is_none() => {
                    self.admin.act("hold");
                    held = true;
                    self.must_detach();
                    send(&mut self.client, &bytes)?;
                }
                // Wherever this is: then it is for the event, or for the hold, to wait.
                0 => {
                    self.want();
                    send(&mut self.client, &bytes)?;
                }
                6 if self.event.is_none() => {
                    self.admin.act("hold");
                    held = true;
                    send(&mut self.client, &bytes)?;
                }
                // In the middle of a frame, or behind it.
                10 => {
                    let (head, tail) = bytes.split_at(random.below(bytes.len() + 1));
                    send(&mut self.client, head)?;
                    self.want();
                    send(&mut self.client, tail)?;
                }
                _ => send(&mut self.client, &bytes)?,
            }
            if held {
                self.admin.act("release");
            }
            self.hear(heard_here, own).map_err(fault)?;
        }
        if heard.len() == script.len() && heard.last().is_some_and(|h| h.movable) {
            self.must_move()?;
        }
        let (more, _) = self.client.arrived();
        if more.is_empty() {
            Ok(())
        } else {
            Err(format!("more than the direct side read: {}", show(&more)))
        }
    }

    fn hear(&mut self, wanted: &Heard, own: i32) -> Result<(), String> {
        for (at, want) in wanted.messages.iter().enumerate() {
            let got = self.client.receive().map_err(|e| {
                format!("{e}, instead of answer {at} of {}", show(&wanted.messages))
            })?;
            let (want, got) = (told(want, own), told(&got, self.client.process));
            if want != got {
                let all = show(&wanted.messages);
                return Err(format!(
                    "answer {at} of {all}\n  direct:  {}\n  through: {}",
                    show(&[want]),
                    show(&[got])
                ));
            }
        }
        if wanted.open {
            return Ok(());
        }
        match self.client.receive() {
            Err(e) if e.kind() != std::io::ErrorKind::TimedOut => Ok(()),
            Err(e) => Err(format!("{e}, instead of the end of the connection")),
            Ok(message) => Err(format!("{} instead of the end", show(&[message]))),
        }
    }
}

/// A message without what differs between any two servers, or any two logins.
fn told(message: &Message, own: i32) -> Message {
    let mut message = message.clone();
    match message.tag {
        // The number of the session that notified. It is this one: each side must know itself.
        b'A' if message.body.starts_with(&own.to_be_bytes()) => {
            message.body[..4].copy_from_slice(b"self");
        }
        // A table's OID. Both servers count, but temporary objects are counted by slot of the process list: a
        // slot's first one makes a schema, and the two sides use different slots.
        b'T' => {
            let mut at = 2;
            while let Some(end) = message.body[at..].iter().position(|b| *b == 0) {
                at += end + 1;
                message.body[at..at + 4].fill(0);
                at += 18;
            }
        }
        // The same in debugging messages about a table that TRUNCATE makes anew.
        b'N' => {
            const NAME: &[u8] = b"pg_toast_";
            let mut at = 0;
            while let Some(found) = message.body[at..]
                .windows(NAME.len())
                .position(|w| w == NAME)
            {
                at += found + NAME.len();
                let digits = message.body[at..].iter().take_while(|b| b.is_ascii_digit());
                let end = at + digits.count();
                message.body.drain(at..end);
            }
        }
        _ => {}
    }
    message
}

/// The server ended the connection and told nobody why: it crashed.
fn crashed(heard: &[Heard]) -> bool {
    heard.last().is_some_and(|last| {
        let fatal = |m: &Message| m.label().starts_with('E') && m.body.starts_with(b"SFATAL\0");
        !last.open && !last.messages.iter().any(fatal)
    })
}

fn show(messages: &[Message]) -> String {
    let mut out = String::new();
    for message in messages {
        let label = message.label();
        let _ = write!(out, "{label} ");
        if messages.len() == 1 || label.starts_with('E') {
            let _ = write!(
                out,
                "[{}] ",
                String::from_utf8_lossy(&message.body).escape_debug()
            );
        }
    }
    out
}

fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs scripts, [`SCRIPTS_PER_LOGIN`] on one login, as long as `next` gives numbers; what was different, and what
/// was moved.
fn work(next: impl Fn() -> Option<Range<u64>>) -> (Vec<String>, BTreeMap<String, u64>) {
    let mut direct = Direct::start();
    let mut through = Through::start();
    let mut faults = Vec::new();
    while let Some(numbers) = next() {
        let mut fresh = false;
        for number in numbers {
            if !fresh {
                direct.log_in();
                through.log_in();
            }
            direct.owner.run(RESET);
            through.owner.run(RESET);
            let script = script(&mut Random::new(number));
            let heard = direct.run(&script);
            // Some crash PostgreSQL itself (15.18 on script 7140). That tells nothing of the proxy.
            if crashed(&heard) {
                *through
                    .tally
                    .entry("crashed the server".to_owned())
                    .or_default() += 1;
                direct = Direct::start();
                continue;
            }
            let result = through.run(number, &script, &heard, direct.client.process);
            fresh = result.is_ok()
                && heard.last().is_some_and(|h| h.open)
                && through.event.is_none()
                && through.admin.blockers(APPLICATION).is_empty();
            if let Err(fault) = result {
                let mut text = format!("script {number}: {fault}\n");
                for (at, segment) in script.iter().enumerate() {
                    let _ = writeln!(text, "{at:2}  {}", segment.lines.join("\n    "));
                }
                say(&text);
                faults.push(text);
            }
            if !fresh {
                through.settle_events();
            }
        }
        if faults.len() >= 5 {
            break;
        }
    }
    (faults, through.tally)
}

#[test]
fn differential_random_scripts_read_the_same() {
    let first = setting("SLACKWATER_TEST_FIRST").unwrap_or(0);
    let count = setting("SLACKWATER_TEST_COUNT").unwrap_or(if full() { 10_000 } else { 60 });
    let end = first + count;
    let at = AtomicU64::new(first);
    let next = || {
        let from = at.fetch_add(SCRIPTS_PER_LOGIN, Ordering::Relaxed);
        (from < end).then(|| from..end.min(from + SCRIPTS_PER_LOGIN))
    };
    let (mut faults, mut tally) = (Vec::new(), BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        // They wait more than they work.
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| work(next))).collect();
        for worker in workers {
            let (found, moved) = worker.join().expect("a worker that does not panic");
            faults.extend(found);
            for (what, times) in moved {
                *tally.entry(what).or_default() += times;
            }
        }
    });
    say(&format!("scripts {first} to {end}: {tally:?}"));
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    let counted = |what: &str| tally.get(what).copied().unwrap_or_default();
    // What crashes the server compares nothing, and is not to become the rule.
    let crashed = counted("crashed the server");
    assert!(crashed <= 1 + count / 100, "scripts that crash: {tally:?}");
    let moved = counted("moved at rest");
    assert!(moved * 2 > count, "hardly anything was moved: {tally:?}");
}

impl Through {
    /// The session ends, so that its event does.
    fn settle_events(&mut self) {
        self.client.hang_up();
        wait_until("the session is gone", SOON, || {
            self.admin.session(APPLICATION).is_none()
        });
        if let Some(id) = self.event.take() {
            wait_for("the event ends", SOON, || self.admin.outcome(id));
        }
    }
}
