//! A small PostgreSQL: reads messages in order and answers by the rules of `PostgresMain` and
//! `CopyGetData`. Random clients talk to it through the machine, with frames in flight on both sides.

use crate::session::pg::machine::Machine;
use crate::wire::pg::frame::Header;
use proptest::prelude::*;
use std::collections::VecDeque;
use tokio::time::Instant;

/// What one statement comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statement {
    Rows,
    Command,
    Empty,
    Suspended,
    Begin,
    Commit,
    Fails,
    CopyOut,
    CopyIn,
    /// Fails behind CopyInResponse, before it reads anything.
    CopyInFails,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Query(Vec<Statement>),
    Parse { unnamed: Option<u8>, works: bool },
    Bind { works: bool },
    DescribeStatement,
    DescribePortal,
    Execute(Statement),
    CloseUnnamed,
    CloseOther,
    Flush,
    Sync { commit_fails: bool },
    Function { works: bool },
    CopyData { good: bool },
    CopyDone,
    CopyFail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Block {
    #[default]
    None,
    /// A batch has begun; not told by any status.
    Started,
    /// Behind the first Execute of a batch.
    Implicit,
    Explicit,
    Failed,
}

/// A COPY that reads.
#[derive(Debug)]
struct Copy {
    /// The rest of its Query; none under Execute.
    rest: Option<Vec<Statement>>,
    lines: u32,
}

#[derive(Debug, Default)]
struct Server {
    input: VecDeque<Message>,
    output: VecDeque<(u8, &'static [u8])>,
    block: Block,
    executed: bool,
    skipping: bool,
    copy: Option<Copy>,
    unnamed: Option<u8>,
    /// Extended messages since the last end of a batch.
    batch: bool,
    dead: bool,
}

const ERROR: &[u8] = b"VERROR\0CP0001\0Wfunction f() line 1\0Rf\0\0";
const ERROR_IN_LINE: &[u8] = b"VERROR\0C22P02\0WCOPY t, line 1\0Rf\0\0";
const ERROR_COPY_FAIL: &[u8] = b"VERROR\0C57014\0WCOPY t, line 1\0RCopyGetData\0\0";
const FATAL: &[u8] = b"VFATAL\0C08P01\0RPostgresMain\0\0";

impl Server {
    fn say(&mut self, tags: &[u8]) {
        self.output.extend(tags.iter().map(|t| (*t, &b""[..])));
    }

    fn ready(&mut self) {
        let status: &[u8] = match self.block {
            Block::None | Block::Started => b"I",
            Block::Implicit | Block::Explicit => b"T",
            Block::Failed => b"E",
        };
        self.output.push_back((b'Z', status));
    }

    fn fail(&mut self, error: &'static [u8], extended: bool) {
        self.output.push_back((b'E', error));
        self.block = match self.block {
            Block::Explicit | Block::Failed => Block::Failed,
            _ => Block::None,
        };
        self.executed = false;
        if extended {
            self.skipping = true;
        } else {
            self.ready();
        }
    }

    /// `start_xact_command`; false in a failed transaction.
    fn start(&mut self) -> bool {
        match self.block {
            Block::None => self.block = Block::Started,
            Block::Started if self.executed => self.block = Block::Implicit,
            _ => {}
        }
        self.block != Block::Failed
    }

    /// `finish_xact_command`.
    fn finish(&mut self) {
        if self.block == Block::Started {
            self.block = Block::None;
        }
        self.executed = false;
    }

    /// Runs one statement; false when it failed or reads COPY data.
    fn run(&mut self, statement: Statement, rest: Option<Vec<Statement>>) -> bool {
        let extended = rest.is_none();
        if self.block == Block::Failed && statement != Statement::Commit {
            self.fail(ERROR, extended);
            return false;
        }
        match statement {
            Statement::Rows if extended => self.say(b"DDC"),
            Statement::Rows => self.say(b"TDC"),
            Statement::Suspended if extended => self.say(b"Ds"),
            Statement::Command | Statement::Suspended => self.say(b"C"),
            Statement::Empty => self.say(b"I"),
            Statement::Begin => {
                self.block = Block::Explicit;
                self.say(b"C");
            }
            Statement::Commit => {
                self.block = Block::None;
                self.say(b"C");
            }
            Statement::CopyOut => self.say(b"HdcC"),
            Statement::Fails => {
                self.fail(ERROR, extended);
                return false;
            }
            Statement::CopyInFails => {
                self.say(b"G");
                self.fail(ERROR, extended);
                return false;
            }
            Statement::CopyIn => {
                self.say(b"G");
                self.copy = Some(Copy { rest, lines: 0 });
                return false;
            }
        }
        true
    }

    fn query(&mut self, mut statements: Vec<Statement>) {
        while !statements.is_empty() {
            let statement = statements.remove(0);
            self.start();
            if !self.run(statement, Some(statements.clone())) {
                return;
            }
        }
        self.finish();
        self.ready();
    }

    fn copying(&mut self, mut copy: Copy, message: &Message) {
        let extended = copy.rest.is_none();
        match message {
            Message::CopyData { good: true } => copy.lines += 1,
            Message::CopyData { good: false } => return self.fail(ERROR_IN_LINE, extended),
            Message::Sync { .. } | Message::Flush => {}
            Message::CopyFail => return self.fail(ERROR_COPY_FAIL, extended),
            Message::CopyDone => {
                self.say(b"C");
                match copy.rest {
                    Some(rest) => self.query(rest),
                    None => self.executed = true,
                }
                return;
            }
            _ => {
                self.output.push_back((b'E', ERROR));
                self.output.push_back((b'E', FATAL));
                self.dead = true;
                return;
            }
        }
        self.copy = Some(copy);
    }

    fn read(&mut self) {
        let Some(message) = self.input.pop_front() else {
            return;
        };
        if let Some(copy) = self.copy.take() {
            return self.copying(copy, &message);
        }
        if self.skipping && !matches!(message, Message::Sync { .. }) {
            return;
        }
        self.batch = match message {
            Message::Query(_) | Message::Sync { .. } | Message::Function { .. } => false,
            Message::CopyData { .. } | Message::CopyDone | Message::CopyFail | Message::Flush => {
                self.batch
            }
            _ => true,
        };
        match message {
            Message::Query(statements) => {
                self.unnamed = None;
                self.start();
                if statements.is_empty() {
                    self.say(b"I");
                }
                self.query(statements);
            }
            Message::Parse { unnamed, works } => {
                if unnamed.is_some() {
                    self.unnamed = None;
                }
                if self.start() && works {
                    self.unnamed = unnamed.or(self.unnamed);
                    self.say(b"1");
                } else {
                    self.fail(ERROR, true);
                }
            }
            Message::Bind { works } => {
                if self.start() && works {
                    self.say(b"2");
                } else {
                    self.fail(ERROR, true);
                }
            }
            Message::DescribeStatement => {
                self.start();
                self.say(if self.executed { b"tn" } else { b"tT" });
            }
            Message::DescribePortal => {
                self.start();
                self.say(if self.executed { b"n" } else { b"T" });
            }
            Message::Execute(statement) => {
                self.start();
                if self.run(statement, None) {
                    self.executed = true;
                }
            }
            Message::CloseUnnamed => {
                self.unnamed = None;
                self.say(b"3");
            }
            Message::CloseOther => self.say(b"3"),
            Message::Sync { commit_fails } => {
                self.skipping = false;
                let open = matches!(self.block, Block::Started | Block::Implicit);
                if open && commit_fails {
                    self.block = Block::None;
                    return self.fail(ERROR, false);
                }
                if open {
                    self.block = Block::None;
                }
                self.executed = false;
                self.ready();
            }
            Message::Function { works } => {
                if self.start() && works {
                    self.say(b"V");
                    self.finish();
                    self.ready();
                } else {
                    self.fail(ERROR, false);
                }
            }
            Message::Flush | Message::CopyData { .. } | Message::CopyDone | Message::CopyFail => {}
        }
    }

    /// Nothing is owed, open or on its way that could have an effect.
    fn is_idle(&self) -> bool {
        self.output.is_empty()
            && self.block == Block::None
            && !self.skipping
            && self.copy.is_none()
            && self.input.iter().all(|m| {
                matches!(
                    m,
                    Message::Flush
                        | Message::CopyData { .. }
                        | Message::CopyDone
                        | Message::CopyFail
                )
            })
    }
}

fn send(machine: &mut Machine, message: &Message) {
    let (tag, body): (u8, Vec<u8>) = match message {
        Message::Query(_) => (b'Q', b"q\0".to_vec()),
        Message::Parse { unnamed: None, .. } => (b'P', b"n\0q\0\0\0".to_vec()),
        Message::Parse {
            unnamed: Some(n), ..
        } => (b'P', vec![0, *n, 0, 0, 0]),
        Message::Bind { .. } => (b'B', vec![0; 8]),
        Message::DescribeStatement => (b'D', b"Sn\0".to_vec()),
        Message::DescribePortal => (b'D', b"P\0".to_vec()),
        Message::Execute(_) => (b'E', vec![0; 5]),
        Message::CloseUnnamed => (b'C', b"S\0".to_vec()),
        Message::CloseOther => (b'C', b"Sn\0".to_vec()),
        Message::Flush => (b'H', Vec::new()),
        Message::Sync { .. } => (b'S', Vec::new()),
        Message::Function { .. } => (b'F', vec![0; 8]),
        Message::CopyData { .. } => (b'd', Vec::new()),
        Message::CopyDone => (b'c', Vec::new()),
        Message::CopyFail => (b'f', vec![0]),
    };
    let header = Header {
        tag,
        body: body.len(),
    };
    machine.on_client(
        header,
        &body[..Machine::client_head(header)],
        Instant::now().into_std(),
    );
}

fn deliver(machine: &mut Machine, (tag, body): (u8, &[u8])) {
    let header = Header {
        tag,
        body: body.len(),
    };
    let seen = machine.server_head(header);
    machine.on_server(header, &body[..seen]);
}

#[derive(Debug, Clone)]
enum Step {
    /// The client sends; these travel together.
    Send(Vec<Message>),
    /// The server reads so many.
    Read(u8),
    /// So many frames arrive.
    Deliver(u8),
    /// A notice comes in between.
    Notice,
}

fn statement() -> impl Strategy<Value = Statement> {
    prop_oneof![
        4 => Just(Statement::Rows),
        2 => Just(Statement::Command),
        1 => Just(Statement::Empty),
        1 => Just(Statement::Suspended),
        1 => Just(Statement::Begin),
        2 => Just(Statement::Commit),
        2 => Just(Statement::Fails),
        1 => Just(Statement::CopyOut),
        2 => Just(Statement::CopyIn),
        1 => Just(Statement::CopyInFails),
    ]
}

/// Any message, sense or not.
fn message() -> impl Strategy<Value = Message> {
    let works = || prop::bool::weighted(0.8);
    prop_oneof![
        3 => prop::collection::vec(statement(), 0..3).prop_map(Message::Query),
        2 => (prop::option::of(1_u8..9), works())
            .prop_map(|(unnamed, works)| Message::Parse { unnamed, works }),
        2 => works().prop_map(|works| Message::Bind { works }),
        1 => Just(Message::DescribeStatement),
        1 => Just(Message::DescribePortal),
        4 => statement().prop_map(Message::Execute),
        1 => Just(Message::CloseUnnamed),
        1 => Just(Message::CloseOther),
        1 => Just(Message::Flush),
        5 => prop::bool::weighted(0.1).prop_map(|commit_fails| Message::Sync { commit_fails }),
        1 => works().prop_map(|works| Message::Function { works }),
        2 => works().prop_map(|good| Message::CopyData { good }),
        2 => Just(Message::CopyDone),
        1 => Just(Message::CopyFail),
    ]
}

fn steps(sends: impl Strategy<Value = Vec<Message>>) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => sends.prop_map(Step::Send),
        4 => (1_u8..8).prop_map(Step::Read),
        4 => (1_u8..8).prop_map(Step::Deliver),
        1 => Just(Step::Notice),
    ];
    prop::collection::vec(step, 1..40)
}

/// What drivers send: whole requests, COPY with all that belongs to it.
fn driver_request() -> impl Strategy<Value = Vec<Message>> {
    use Message::{Bind, CopyData, CopyDone, CopyFail, DescribePortal, Execute, Parse, Query};
    const SYNC: Message = Message::Sync {
        commit_fails: false,
    };
    let plain = || {
        statement().prop_filter("COPY has its own", |s| {
            !matches!(s, Statement::CopyIn | Statement::CopyInFails)
        })
    };
    let data = || {
        let lines = prop::collection::vec(prop::bool::weighted(0.8), 0..4);
        (lines, any::<bool>()).prop_map(|(lines, done)| {
            let mut data: Vec<_> = lines.iter().map(|good| CopyData { good: *good }).collect();
            data.push(if done { CopyDone } else { CopyFail });
            data
        })
    };
    let copy = || prop_oneof![Just(Statement::CopyIn), Just(Statement::CopyInFails)];
    prop_oneof![
        prop::collection::vec(plain(), 0..3).prop_map(|s| vec![Query(s)]),
        (prop::option::of(1_u8..9), any::<bool>(), plain()).prop_map(|(unnamed, works, s)| {
            let parse = Parse { unnamed, works };
            vec![
                parse,
                Bind { works: true },
                DescribePortal,
                Execute(s),
                SYNC,
            ]
        }),
        (copy(), data()).prop_map(|(s, data)| [vec![Query(vec![s])], data].concat()),
        // libpq: a Sync behind Execute, and one behind the end of the data.
        (copy(), data()).prop_map(|(s, data)| {
            let begin = vec![Bind { works: true }, Execute(s), SYNC];
            [begin, data, vec![SYNC]].concat()
        }),
        any::<bool>().prop_map(|works| vec![Message::Function { works }]),
    ]
}

struct World {
    machine: Machine,
    server: Server,
}

impl World {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Send(messages) => {
                for message in messages {
                    send(&mut self.machine, &message);
                    self.server.input.push_back(message);
                    self.check()?;
                }
            }
            Step::Read(n) => {
                for _ in 0..n {
                    if !self.server.dead {
                        self.server.read();
                    }
                    self.check()?;
                }
            }
            Step::Deliver(n) => {
                for _ in 0..n {
                    if let Some(frame) = self.server.output.pop_front() {
                        deliver(&mut self.machine, frame);
                    }
                    self.check()?;
                }
            }
            Step::Notice => deliver(&mut self.machine, (b'N', b"")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (machine, server) = (&self.machine, &self.server);
        if server.dead {
            return Ok(());
        }
        if machine.at_rest() {
            prop_assert!(server.is_idle(), "wrongly at rest: {server:?} {machine:?}");
            let kept = machine.unnamed.to_restore().map(|body| body[1]);
            prop_assert_eq!(kept, server.unnamed, "{:?}", machine);
        } else if server.is_idle() && !server.batch {
            prop_assert!(
                machine.why_ambiguous().is_some(),
                "never at rest: {server:?} {machine:?}"
            );
        }
        Ok(())
    }
}

fn world() -> World {
    World {
        machine: Machine::default(),
        server: Server::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any messages in any order: at rest is never said wrongly, and is said when nothing is in doubt.
    #[test]
    fn safety_01_rest_is_told_truly(steps in steps(prop::collection::vec(message(), 1..6))) {
        let mut world = world();
        for step in steps {
            world.step(step)?;
        }
        // Let it come to an end.
        for _ in 0..4 {
            world.step(Step::Read(u8::MAX))?;
            world.step(Step::Deliver(u8::MAX))?;
        }
    }

    /// Requests as drivers send them never leave a doubt behind the next one's reply.
    #[test]
    fn drivers_are_never_ambiguous(
        requests in prop::collection::vec(
            (driver_request(), prop::collection::vec((1_u8..5, 1_u8..5), 0..4)), 1..12),
    ) {
        let mut world = world();
        for (request, turns) in requests {
            world.step(Step::Send(request))?;
            for (read, deliver) in turns {
                world.step(Step::Read(read))?;
                world.step(Step::Deliver(deliver))?;
            }
            // A driver waits for its replies before the next request.
            while !(world.server.input.is_empty() && world.server.output.is_empty()) {
                prop_assert!(!world.server.dead, "a request of a driver can't end the server");
                world.step(Step::Read(1))?;
                world.step(Step::Deliver(u8::MAX))?;
            }
        }
        for end in [Statement::Commit, Statement::Rows] {
            world.step(Step::Send(vec![Message::Query(vec![end])]))?;
            world.step(Step::Read(1))?;
            world.step(Step::Deliver(u8::MAX))?;
        }
        prop_assert!(world.machine.at_rest(), "{:?}", world.machine);
    }
}
