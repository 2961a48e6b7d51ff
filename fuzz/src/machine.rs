//! The session machine between a client that sends anything and [`crate::model::Server`]; and the machine alone
//! with any frames from both sides.

use crate::model::{Fate, Few, Message, Server, Statement};
use arbitrary::{Arbitrary, Unstructured};
use bytes::BytesMut;
use slackwater::session::pg::machine::Machine;
use slackwater::session::pg::snapshot::Prepared;
use slackwater::wire::pg::frame::Header;
use std::time::Instant;

/// Why a machine is in doubt that the next reply ends; any other doubt is for good.
const FOR_NOW: &str = "COPY failed with a Sync inside it; the next request will tell";

#[derive(Debug, Arbitrary)]
enum Step {
    /// The client sends.
    Send(Message),
    /// The server reads so many messages.
    Read(u8),
    /// So many of its answers arrive.
    Deliver(u8),
    /// Something comes unasked: a notice, a parameter, a notification; or the session goes on on a server connection
    /// that lacks its named statement.
    Unasked(u8),
    /// The session was probed, with or without findings.
    Probed(bool),
}

/// A machine, and what it was fed with.
pub struct World {
    /// The machine.
    pub machine: Machine,
    server: Server,
    now: Instant,
    doubt: Option<&'static str>,
    /// Messages that the machine has sent by itself.
    own: usize,
}

/// Kinds of [`Step::Unasked`] from here on are a move.
const MOVE: u8 = 240;

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::default(),
            server: Server::default(),
            now: Instant::now(),
            doubt: None,
            own: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(message) => {
                let (tag, body) = message.frame();
                let replaced = self.send_absent(tag, &body);
                send(&mut self.machine, tag, &body, self.now);
                self.server.input.push_back(replaced.unwrap_or(message));
            }
            Step::Read(count) => (0..=count % 16).for_each(|_| self.server.read()),
            Step::Deliver(count) => {
                for _ in 0..=count % 16 {
                    if let Some((tag, body)) = self.server.output.pop_front() {
                        deliver(&mut self.machine, tag, body);
                        self.check();
                    }
                }
            }
            Step::Unasked(MOVE..) => {
                if self.machine.at_rest() {
                    self.machine.absent.begin(vec![Prepared {
                        name: "n".into(),
                        text: "q".into(),
                        types: Box::default(),
                        from_sql: false,
                    }]);
                }
            }
            Step::Unasked(kind) => {
                let tag = [b'N', b'S', b'A'][usize::from(kind % 3)];
                deliver(&mut self.machine, tag, b"");
            }
            Step::Probed(clean) => {
                if self.machine.at_rest() {
                    if clean {
                        self.machine.probed_clean();
                    } else {
                        self.machine.probed_blocked();
                    }
                }
            }
        }
        self.check();
    }

    /// What the machine sends before a frame, or in its place; how it fares depends on how many went before.
    fn send_absent(&mut self, tag: u8, body: &[u8]) -> Option<Message> {
        let header = Header {
            tag,
            body: body.len(),
        };
        let head = &body[..Machine::client_head(header)];
        let mut out = BytesMut::new();
        let instead_of = self.machine.put_absent(header, head, true, &mut out);
        while let Ok(Some(header)) = Header::parse(&out) {
            drop(out.split_to(header.frame_len()));
            self.own += 1;
            let fates = [Fate::Works, Fate::WorksElse, Fate::Fails, Fate::FailsLate];
            let fate = fates[self.own % fates.len()];
            self.server.input.push_back(match header.tag {
                b'P' => Message::Parse(fate),
                b'D' => Message::DescribeStatement(fate),
                _ => {
                    assert_eq!(instead_of, body.len() + 5, "the whole frame");
                    let works = [Statement::Command, Statement::Command];
                    let fails = [Statement::Fails, Statement::Command];
                    let statements = if fate == Fate::Works { works } else { fails };
                    return Some(Message::Query(Few(statements.into())));
                }
            });
        }
        assert_eq!(instead_of, 0);
        None
    }

    fn check(&mut self) {
        let (machine, server) = (&self.machine, &self.server);
        self.doubt = check_alone(machine, self.doubt);
        if server.lost {
            return;
        }
        if machine.at_rest() {
            assert!(server.is_idle(), "wrongly at rest: {server:?}\n{machine:?}");
            let kept = machine.unnamed.to_restore().map(|body| body[1]);
            assert_eq!(kept, server.unnamed, "{server:?}\n{machine:?}");
        }
        if machine.why_ambiguous().is_some() {
            return;
        }
        assert!(
            machine.at_rest() || !server.is_idle(),
            "never at rest: {server:?}\n{machine:?}"
        );
        assert!(
            machine.is_in_flight() || !server.is_busy(),
            "nothing to cancel: {server:?}\n{machine:?}"
        );
        // Lock-step: who waits for an answer that can't come waits for ever.
        assert!(
            machine.may_send_in_lock_step() || !server.waits(),
            "locked up: {server:?}\n{machine:?}"
        );
    }
}

/// What must hold whatever passed; the doubt that stays.
fn check_alone(machine: &Machine, doubt: Option<&'static str>) -> Option<&'static str> {
    let why = machine.why_ambiguous();
    assert!(doubt.is_none() || doubt == why, "{doubt:?} became {why:?}");
    if machine.at_rest() {
        assert_eq!(why, None);
        assert!(!machine.is_in_flight() && machine.is_quiet());
        assert!(machine.may_send_in_lock_step());
    } else {
        let blocker = machine.wire_blocker();
        assert!(blocker.is_some(), "not at rest, and nothing says why");
    }
    why.filter(|why| *why != FOR_NOW)
}

fn send(machine: &mut Machine, tag: u8, body: &[u8], now: Instant) {
    let header = Header {
        tag,
        body: body.len(),
    };
    machine.on_client(header, &body[..Machine::client_head(header)], now);
}

fn deliver(machine: &mut Machine, tag: u8, body: &[u8]) {
    let header = Header {
        tag,
        body: body.len(),
    };
    let head = machine.server_head(header);
    machine.on_server(header, &body[..head]);
}

/// Runs a script; `look` sees the machine after each step.
pub fn scripted(data: &[u8], mut look: impl FnMut(&Machine)) {
    let mut world = World::new();
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else {
            break;
        };
        world.step(step);
        look(&world.machine);
    }
    // Let it come to an end.
    while !(world.server.lost || world.server.input.is_empty()) {
        world.step(Step::Read(u8::MAX));
        look(&world.machine);
    }
    while !world.server.output.is_empty() {
        world.step(Step::Deliver(0));
        look(&world.machine);
    }
}

/// A body longer than the session machine keeps.
const LONG: usize = 70_000;

/// Any frames from both sides: `[tag, length, body...]`, the top bit of the length tells the side. The largest
/// length stands for [`LONG`].
pub fn raw(mut data: &[u8], mut look: impl FnMut(&Machine)) {
    let mut machine = Machine::default();
    let now = Instant::now();
    let mut doubt = None;
    while let [tag, length, rest @ ..] = data {
        let (body, behind) = rest.split_at(rest.len().min(usize::from(length & 0x7f)));
        if *length == 0x7f {
            let mut long = body.to_vec();
            long.resize(LONG, 0);
            send(&mut machine, *tag, &long, now);
        } else if length & 0x80 == 0 {
            send(&mut machine, *tag, body, now);
        } else {
            deliver(&mut machine, *tag, body);
        }
        doubt = check_alone(&machine, doubt);
        look(&machine);
        data = behind;
    }
}
