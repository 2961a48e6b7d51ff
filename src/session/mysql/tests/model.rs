//! A small server: reads commands in order and answers by the protocol's rules, with what it says of its own state.
//! Random clients talk to it through the machine, with packets in flight on both sides.

use super::{AUTOCOMMIT, deliver, grammar, send};
use crate::session::mysql::grammar::Family;
use crate::session::mysql::machine::{ClientFrame, Machine, ServerFrame};
use crate::wire::mysql::command;
use crate::wire::mysql::packet::{put_lenenc, put_lenenc_bytes};
use crate::wire::mysql::reply::{EOF, EofPacket, ErrPacket, OK, OkPacket, Status, change};
use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// What one statement comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statement {
    Rows(u8),
    Ok,
    Begin,
    Commit,
    Fails,
    FailsInRows,
    Lock,
    Unlock,
    OneShot,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Query(Vec<Statement>),
    Prepare {
        works: bool,
        params: u16,
        columns: u16,
    },
    Execute {
        which: u8,
        cursor: bool,
        works: bool,
    },
    Fetch {
        which: u8,
        last: bool,
    },
    LongData(u8),
    Close(u8),
    Reset(u8),
    ResetConnection,
    SetOption(bool),
    FieldList {
        works: bool,
    },
    Statistics,
    Ping,
    Unknown,
}

#[derive(Debug, Default, Clone)]
struct Prepared {
    cursor: bool,
    long_data: bool,
}

#[derive(Debug)]
struct Server {
    deprecate_eof: bool,
    input: VecDeque<Vec<u8>>,
    /// What each command in `input` comes to.
    fates: VecDeque<Message>,
    output: VecDeque<Vec<u8>>,
    in_transaction: bool,
    locked: bool,
    one_shot: bool,
    told: (bool, bool),
    next: u32,
    statements: BTreeMap<u32, Prepared>,
}

impl Server {
    fn status(&self, extra: u16) -> Status {
        let transaction = if self.in_transaction {
            Status::IN_TRANS.0
        } else {
            0
        };
        Status(AUTOCOMMIT.0 | transaction | extra)
    }

    fn ok(&mut self, first: u8, extra: u16) {
        let mut session = BytesMut::new();
        let mut entry = |kind: u8, text: &[u8]| {
            let mut content = BytesMut::new();
            put_lenenc_bytes(&mut content, text);
            session.put_u8(kind);
            put_lenenc_bytes(&mut session, &content);
        };
        if self.told != (self.locked, self.one_shot) {
            self.told = (self.locked, self.one_shot);
            entry(
                change::TRX_STATE,
                if self.locked {
                    b"_______L"
                } else {
                    b"________"
                },
            );
            entry(
                change::TRX_CHARACTERISTICS,
                if self.one_shot {
                    b"SET TRANSACTION READ ONLY;"
                } else {
                    b""
                },
            );
        }
        let status = self.status(extra);
        let mut out = BytesMut::new();
        OkPacket {
            first,
            affected_rows: 0,
            last_insert_id: 0,
            status,
            warnings: 0,
            info: &[],
            session: &session,
        }
        .put(&mut out);
        self.output.push_back(out.to_vec());
    }

    fn end(&mut self, extra: u16) {
        if self.deprecate_eof {
            self.ok(EOF, extra);
        } else {
            let mut out = BytesMut::new();
            EofPacket {
                warnings: 0,
                status: self.status(extra),
            }
            .put(&mut out);
            self.output.push_back(out.to_vec());
        }
    }

    fn err(&mut self) {
        let mut out = BytesMut::new();
        ErrPacket {
            code: 1146,
            sqlstate: b"42S02",
            message: b"no",
        }
        .put(&mut out);
        self.output.push_back(out.to_vec());
    }

    fn columns(&mut self, count: u8) {
        let mut out = BytesMut::new();
        put_lenenc(&mut out, u64::from(count));
        self.output.push_back(out.to_vec());
        self.definitions(u16::from(count));
    }

    fn definitions(&mut self, count: u16) {
        for _ in 0..count {
            self.output.push_back(b"\x03def".to_vec());
        }
        if count > 0 && !self.deprecate_eof {
            self.end(0);
        }
    }

    /// One statement; whether it worked.
    fn run(&mut self, statement: Statement, more: u16) -> bool {
        match statement {
            Statement::Ok => self.ok(OK, more),
            Statement::Begin => {
                (self.in_transaction, self.one_shot) = (true, false);
                self.ok(OK, more);
            }
            Statement::Commit => {
                self.in_transaction = false;
                self.ok(OK, more);
            }
            Statement::Lock | Statement::Unlock => {
                self.locked = statement == Statement::Lock;
                self.ok(OK, more);
            }
            Statement::OneShot if self.in_transaction => {
                self.err();
                return false;
            }
            Statement::OneShot => {
                self.one_shot = true;
                self.ok(OK, more);
            }
            Statement::Rows(rows) => {
                self.one_shot &= self.in_transaction || rows == 0;
                self.columns(1);
                for row in 0..rows {
                    self.output
                        .push_back(vec![[0, 0xfb, 1, 0xfc][usize::from(row % 4)]; 12]);
                }
                self.end(more);
            }
            Statement::FailsInRows => {
                self.columns(2);
                self.output.push_back(vec![1; 3]);
                self.err();
                return false;
            }
            Statement::Fails => {
                self.err();
                return false;
            }
        }
        true
    }

    fn read(&mut self) {
        let (Some(payload), Some(fate)) = (self.input.pop_front(), self.fates.pop_front()) else {
            return;
        };
        let id = command::statement_id(&payload).unwrap_or_default();
        match fate {
            Message::Query(statements) => {
                for (at, statement) in statements.iter().enumerate() {
                    let more = if at + 1 < statements.len() {
                        Status::MORE_RESULTS.0
                    } else {
                        0
                    };
                    if !self.run(*statement, more) {
                        break;
                    }
                }
            }
            Message::Prepare { works: false, .. } => self.err(),
            Message::Prepare {
                params, columns, ..
            } => {
                self.next += 3;
                self.statements.insert(self.next, Prepared::default());
                let mut out = BytesMut::new();
                out.put_u8(OK);
                out.put_u32_le(self.next);
                out.put_u16_le(columns);
                out.put_u16_le(params);
                out.put_slice(&[0; 3]);
                self.output.push_back(out.to_vec());
                self.definitions(params);
                self.definitions(columns);
            }
            Message::Execute { cursor, works, .. } => match self.statements.get_mut(&id) {
                Some(statement) => {
                    *statement = Prepared {
                        cursor: cursor && works,
                        long_data: false,
                    };
                    if !works {
                        self.err();
                    } else if cursor {
                        let extra = Status::CURSOR_EXISTS.0;
                        self.output.push_back(vec![1]);
                        self.output.push_back(b"\x03def".to_vec());
                        self.end(extra);
                    } else {
                        self.run(Statement::Rows(2), 0);
                    }
                }
                None => self.err(),
            },
            Message::Fetch { last, .. } => match self.statements.get_mut(&id) {
                Some(statement) if statement.cursor => {
                    statement.cursor = !last;
                    self.output.push_back(vec![0; 4]);
                    let extra = if last {
                        Status::LAST_ROW_SENT
                    } else {
                        Status::CURSOR_EXISTS
                    };
                    self.end(extra.0);
                }
                _ => self.err(),
            },
            Message::LongData(_) => {
                if let Some(statement) = self.statements.get_mut(&id) {
                    statement.long_data = true;
                }
            }
            Message::Close(_) => {
                self.statements.remove(&id);
            }
            Message::Reset(_) => match self.statements.get_mut(&id) {
                Some(statement) => {
                    *statement = Prepared::default();
                    self.ok(OK, 0);
                }
                None => self.err(),
            },
            Message::ResetConnection => {
                self.statements.clear();
                (self.in_transaction, self.locked, self.one_shot) = (false, false, false);
                // Nothing is told, and tracking is off: it begins anew when it is switched on.
                self.told = (false, false);
                self.ok(OK, 0);
            }
            Message::SetOption(_) => self.end(0),
            Message::FieldList { works: false } | Message::Unknown => self.err(),
            Message::FieldList { works: true } => {
                self.output.push_back(b"\x03def".to_vec());
                self.end(0);
            }
            Message::Statistics => self.output.push_back(b"\xffUptime".to_vec()),
            Message::Ping => self.ok(OK, 0),
        }
    }

    fn is_idle(&self) -> bool {
        let open = |p: &Prepared| p.cursor || p.long_data;
        self.input.is_empty()
            && self.output.is_empty()
            && !self.in_transaction
            && !self.locked
            && !self.statements.values().any(open)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send(Message),
    Read,
    Deliver,
    Ask,
}

struct World {
    machine: Machine,
    server: Server,
}

impl World {
    fn payload(&self, message: &Message) -> Vec<u8> {
        let with_id = |command: u8, which: u8, tail: &[u8]| {
            // Some that are known, and some that are not.
            let id = u32::from(which % 6);
            [&[command][..], &id.to_le_bytes(), tail].concat()
        };
        match message {
            Message::Query(_) => b"\x03SELECT".to_vec(),
            Message::Prepare { .. } => b"\x16SELECT ?".to_vec(),
            Message::Execute { which, cursor, .. } => with_id(
                command::STMT_EXECUTE,
                *which,
                &[u8::from(*cursor), 1, 0, 0, 0, 0, 1, 8, 0, 8, 0],
            ),
            Message::Fetch { which, .. } => with_id(command::STMT_FETCH, *which, &[1, 0, 0, 0]),
            Message::LongData(which) => with_id(command::STMT_SEND_LONG_DATA, *which, b"\0\0x"),
            Message::Close(which) => with_id(command::STMT_CLOSE, *which, &[]),
            Message::Reset(which) => with_id(command::STMT_RESET, *which, &[]),
            Message::ResetConnection => vec![command::RESET_CONNECTION],
            Message::SetOption(on) => vec![command::SET_OPTION, u8::from(!on), 0],
            Message::FieldList { .. } => b"\x04t\0".to_vec(),
            Message::Statistics => vec![command::STATISTICS],
            Message::Ping => vec![command::PING],
            Message::Unknown => vec![0x77],
        }
    }

    fn arrives(&mut self, frame: &[u8], message: Message) {
        let header = crate::wire::mysql::packet::Header::parse(frame).unwrap();
        let (own, behind) = frame.split_at(header.frame_len());
        self.server.input.push_back(own[4..].to_vec());
        self.server.fates.push_back(message);
        if !behind.is_empty() {
            // Slackwater's own.
            self.arrives(behind, Message::Query(vec![Statement::Ok]));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(message) => {
                let payload = self.payload(&message);
                let (verdict, frame) = send(&mut self.machine, 0, &payload);
                assert!(!matches!(
                    verdict,
                    ClientFrame::Kill(_) | ClientFrame::ChangeUser | ClientFrame::Terminate
                ));
                self.arrives(&frame, message);
            }
            Step::Read => self.server.read(),
            Step::Deliver => {
                if let Some(payload) = self.server.output.pop_front() {
                    let (verdict, _) = deliver(&mut self.machine, 1, &payload);
                    assert_ne!(verdict, ServerFrame::Unasked);
                }
            }
            Step::Ask => {
                if self.machine.needs_status() {
                    let mut out = BytesMut::new();
                    self.machine.put_ask(&mut out);
                    self.arrives(&out, Message::Query(vec![Statement::Ok]));
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        let (machine, server) = (&self.machine, &self.server);
        assert_eq!(machine.why_ambiguous(), None, "{server:?}\n{machine:?}");
        let idle = server.is_idle();
        assert!(
            !machine.at_rest() || idle,
            "wrongly at rest: {server:?}\n{machine:?}"
        );
        assert!(
            machine.at_rest() || machine.needs_status() || !idle,
            "never at rest: {server:?}\n{machine:?}"
        );
        if machine.at_rest() {
            assert_eq!(
                !machine.held().characteristics.is_empty(),
                server.one_shot,
                "{server:?}\n{machine:?}"
            );
            let real: Vec<u32> = machine
                .statements
                .iter()
                .filter_map(|(_, s)| s.real)
                .collect();
            let mut sorted = real.clone();
            sorted.sort_unstable();
            let there: Vec<u32> = server.statements.keys().copied().collect();
            assert_eq!(sorted, there, "{server:?}\n{machine:?}");
        }
        let busy = !server.input.is_empty() || !server.output.is_empty();
        assert!(
            machine.is_in_flight() || !busy || machine.unfenced_only(),
            "nothing to cancel: {server:?}\n{machine:?}"
        );
        assert!(
            machine.may_send_in_lock_step() || busy,
            "locked up: {server:?}\n{machine:?}"
        );
        assert_eq!(machine.at_rest(), machine.wire_blocker().is_none());
    }
}

impl Machine {
    fn unfenced_only(&self) -> bool {
        self.unfenced && self.owed.is_empty()
    }
}

fn statement() -> impl Strategy<Value = Statement> {
    prop_oneof![
        (0_u8..5).prop_map(Statement::Rows),
        Just(Statement::Ok),
        Just(Statement::Begin),
        Just(Statement::Commit),
        Just(Statement::Fails),
        Just(Statement::FailsInRows),
        Just(Statement::Lock),
        Just(Statement::Unlock),
        Just(Statement::OneShot),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => proptest::collection::vec(statement(), 1..4).prop_map(Message::Query),
        2 => (any::<bool>(), 0_u16..3, 0_u16..3).prop_map(|(works, params, columns)| Message::Prepare { works, params, columns }),
        3 => (any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(which, cursor, works)| Message::Execute { which, cursor, works }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(which, last)| Message::Fetch { which, last }),
        1 => any::<u8>().prop_map(Message::LongData),
        2 => any::<u8>().prop_map(Message::Close),
        1 => any::<u8>().prop_map(Message::Reset),
        1 => Just(Message::ResetConnection),
        1 => any::<bool>().prop_map(Message::SetOption),
        1 => any::<bool>().prop_map(|works| Message::FieldList { works }),
        1 => Just(Message::Statistics),
        1 => Just(Message::Ping),
        1 => Just(Message::Unknown),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => message().prop_map(Step::Send),
        3 => Just(Step::Read),
        6 => Just(Step::Deliver),
        1 => Just(Step::Ask),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 512 } else { 4096 }))]

    #[test]
    fn safety_02_random_clients_are_followed(deprecate_eof in any::<bool>(), steps in proptest::collection::vec(step(), 1..120)) {
        let family = if deprecate_eof { Family::MariaDb } else { Family::MySql };
        let mut world = World {
            machine: Machine::new(grammar(family, deprecate_eof), b"app", AUTOCOMMIT),
            server: Server {
                deprecate_eof,
                input: VecDeque::new(),
                fates: VecDeque::new(),
                output: VecDeque::new(),
                in_transaction: false,
                locked: false,
                one_shot: false,
                told: (false, false),
                next: 10,
                statements: BTreeMap::new(),
            },
        };
        for step in steps {
            world.step(step);
        }
        // Everything is read and answered, what is doubtful is asked: rest comes, unless something is open.
        for _ in 0..500 {
            world.step(Step::Read);
            world.step(Step::Deliver);
            world.step(Step::Ask);
        }
        prop_assert_eq!(world.machine.at_rest(), world.server.is_idle());
    }

    #[test]
    fn any_packets_of_both_sides_are_followed(packets in proptest::collection::vec((any::<bool>(), 0_u8..3, proptest::collection::vec(any::<u8>(), 0..40)), 0..60)) {
        let mut machine = Machine::new(grammar(Family::MariaDb, true), b"app", AUTOCOMMIT);
        for (client, seq, payload) in packets {
            if client {
                send(&mut machine, seq, &payload);
            } else {
                deliver(&mut machine, seq, &payload);
            }
            prop_assert_eq!(machine.at_rest(), machine.wire_blocker().is_none());
        }
    }
}
