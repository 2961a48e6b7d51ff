//! A server of few rules, to judge the session machine by. It knows nothing of SQL: whether a message works
//! is drawn with it. What it keeps to is the order of things: who is answered by what, what is skipped, what
//! a COPY swallows, and when a transaction can be open. (PostgreSQL's `PostgresMain`, `CopyGetData`.)

use arbitrary::Arbitrary;
use std::collections::VecDeque;

/// What one statement comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum Statement {
    /// Rows.
    Rows,
    /// A command without rows.
    Command,
    /// No statement.
    Empty,
    /// A portal that stops at its row limit (a Query has none: rows).
    Suspended,
    /// BEGIN.
    Begin,
    /// COMMIT or ROLLBACK.
    End,
    /// An error.
    Fails,
    /// An error behind the first row.
    FailsLate,
    /// COPY TO STDOUT.
    CopyOut,
    /// COPY TO STDOUT with an error in the middle.
    CopyOutFails,
    /// COPY FROM STDIN.
    CopyIn,
    /// COPY FROM STDIN that fails before it reads anything.
    CopyInFails,
    /// COPY FROM STDIN that fails behind its last line.
    CopyInFailsLate,
    /// The server ends.
    Fatal,
}

/// How a message fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum Fate {
    /// It works.
    Works,
    /// It works too, in its other way (no rows; nothing to commit).
    WorksElse,
    /// It fails at once.
    Fails,
    /// It fails behind its first answer.
    FailsLate,
}

impl Fate {
    fn works(self) -> bool {
        matches!(self, Self::Works | Self::WorksElse)
    }
}

/// A message from the client.
#[derive(Debug, Clone, PartialEq, Eq, Arbitrary)]
pub enum Message {
    /// Query.
    Query(Few<Statement>),
    /// Parse of a named statement.
    Parse(Fate),
    /// Parse of the unnamed statement, with a text to know it by.
    ParseUnnamed(u8, Fate),
    /// Bind.
    Bind(Fate),
    /// Describe of a statement.
    DescribeStatement(Fate),
    /// Describe of a portal.
    DescribePortal(Fate),
    /// Execute.
    Execute(Statement),
    /// Close of the unnamed statement.
    CloseUnnamed(Fate),
    /// Close of anything else.
    CloseOther(Fate),
    /// Flush.
    Flush,
    /// Sync.
    Sync(Fate),
    /// FunctionCall.
    Function(Fate),
    /// CopyData; a bad line makes its COPY fail.
    CopyData { good: bool },
    /// CopyDone.
    CopyDone,
    /// CopyFail.
    CopyFail,
    /// A Flush with a body, or a type that there is none of.
    Nonsense { flush: bool },
}

/// At most three of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Few<T>(pub Vec<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Few<T> {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        let count = u.int_in_range(0..=3)?;
        (0..count)
            .map(|_| T::arbitrary(u))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Message {
    /// Type and body.
    pub fn frame(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Query(Few(statements)) if statements[..] == [Statement::Command] => {
                (b'Q', b"deallocate n\0".to_vec())
            }
            Self::Query(_) => (b'Q', b"q\0".to_vec()),
            Self::Parse(_) => (b'P', b"n\0q\0\0\0".to_vec()),
            Self::ParseUnnamed(id, _) => (b'P', vec![0, id | 1, 0, 0, 0]),
            Self::Bind(_) => (b'B', vec![0; 8]),
            Self::DescribeStatement(_) => (b'D', b"Sn\0".to_vec()),
            Self::DescribePortal(_) => (b'D', b"P\0".to_vec()),
            Self::Execute(_) => (b'E', vec![0; 5]),
            Self::CloseUnnamed(_) => (b'C', b"S\0".to_vec()),
            Self::CloseOther(_) => (b'C', b"Sn\0".to_vec()),
            Self::Flush => (b'H', Vec::new()),
            Self::Sync(_) => (b'S', Vec::new()),
            Self::Function(_) => (b'F', vec![0; 8]),
            Self::CopyData { .. } => (b'd', Vec::new()),
            Self::CopyDone => (b'c', Vec::new()),
            Self::CopyFail => (b'f', vec![0]),
            Self::Nonsense { flush: true } => (b'H', vec![0]),
            Self::Nonsense { flush: false } => (b'!', Vec::new()),
        }
    }

    /// Ignored wherever no COPY reads it.
    fn is_nothing(&self) -> bool {
        matches!(
            self,
            Self::Flush | Self::CopyData { .. } | Self::CopyDone | Self::CopyFail
        )
    }
}

/// Where the transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Block {
    /// None.
    #[default]
    None,
    /// One that the end of its Query or batch commits.
    Implicit,
    /// BEGIN was run.
    Open,
    /// An error in an open one.
    Failed,
}

/// A COPY that waits for data.
#[derive(Debug)]
struct Copy {
    fails_late: bool,
    /// What its Query has behind it; `None` under Execute.
    rest: Option<VecDeque<Statement>>,
}

/// The server.
#[derive(Debug, Default)]
pub struct Server {
    /// Sent by the client and not read yet.
    pub input: VecDeque<Message>,
    /// Said and not delivered yet.
    pub output: VecDeque<(u8, &'static [u8])>,
    /// It has ended, or nobody can say what it does.
    pub lost: bool,
    block: Block,
    /// Executes since the batch began.
    executed: u32,
    /// A transaction may have begun that no status shows and a Sync ends.
    batch: bool,
    skipping: bool,
    copy: Option<Copy>,
    /// The unnamed statement.
    pub unnamed: Option<u8>,
}

const ERROR: &[u8] = b"SERROR\0VERROR\0C22012\0Mwrong\0Wfunction f() line 1 at x\0Rint4div\0\0";
const IN_LINE: &[u8] =
    b"SERROR\0VERROR\0C22P02\0Mwrong\0WCOPY t, line 1, column a: \"x\"\0Rpg_strtoint32_safe\0\0";
const COPY_FAIL: &[u8] =
    b"SERROR\0VERROR\0C57014\0MCOPY from stdin failed: x\0WCOPY t, line 1\0RCopyGetData\0\0";
const FATAL: &[u8] = b"SFATAL\0VFATAL\0C57P01\0Mended\0RProcessInterrupts\0\0";

impl Server {
    fn say(&mut self, tags: &[u8]) {
        self.output.extend(tags.iter().map(|tag| (*tag, &b""[..])));
    }

    fn ready(&mut self) {
        let status: &[u8] = match self.block {
            Block::None => b"I",
            Block::Implicit | Block::Open => b"T",
            Block::Failed => b"E",
        };
        self.output.push_back((b'Z', status));
    }

    /// An error; `extended`: of a message that a Sync follows.
    fn fail(&mut self, error: &'static [u8], extended: bool) {
        self.output.push_back((b'E', error));
        self.executed = 0;
        self.batch = false;
        self.block = match self.block {
            Block::Open | Block::Failed => Block::Failed,
            Block::None | Block::Implicit => Block::None,
        };
        if extended {
            self.skipping = true;
        } else {
            self.ready();
        }
    }

    fn die(&mut self) {
        self.output.push_back((b'E', FATAL));
        self.lost = true;
    }

    /// Runs one statement; `rest` is what its Query has behind it. False: it failed, or it waits for data.
    fn run(&mut self, statement: Statement, rest: Option<&VecDeque<Statement>>) -> bool {
        let extended = rest.is_none();
        match statement {
            Statement::Rows | Statement::Suspended if !extended => self.say(b"TDDC"),
            Statement::Rows => self.say(b"DDC"),
            Statement::Suspended => self.say(b"Ds"),
            Statement::Command => self.say(b"C"),
            Statement::Empty => self.say(b"I"),
            Statement::Begin => {
                self.block = match self.block {
                    Block::Failed => {
                        self.fail(ERROR, extended);
                        return false;
                    }
                    _ => Block::Open,
                };
                self.say(b"C");
            }
            Statement::End => {
                self.block = Block::None;
                self.say(b"C");
            }
            Statement::Fails => {
                self.fail(ERROR, extended);
                return false;
            }
            Statement::FailsLate => {
                self.say(if extended { b"D" } else { b"TD" });
                self.fail(ERROR, extended);
                return false;
            }
            Statement::CopyOut => self.say(b"HddcC"),
            Statement::CopyOutFails => {
                self.say(b"Hd");
                self.fail(ERROR, extended);
                return false;
            }
            Statement::CopyInFails => {
                self.say(b"G");
                self.fail(ERROR, extended);
                return false;
            }
            Statement::CopyIn | Statement::CopyInFailsLate => {
                self.say(b"G");
                self.copy = Some(Copy {
                    fails_late: statement == Statement::CopyInFailsLate,
                    rest: rest.cloned(),
                });
                return false;
            }
            Statement::Fatal => {
                self.die();
                return false;
            }
        }
        true
    }

    /// The statements of a Query that are left, and its end.
    fn go_on(&mut self, mut statements: VecDeque<Statement>) {
        while let Some(statement) = statements.pop_front() {
            if !self.run(statement, Some(&statements)) {
                return;
            }
        }
        self.ready();
    }

    fn copying(&mut self, copy: Copy, message: &Message) {
        let extended = copy.rest.is_none();
        match message {
            Message::CopyData { good: true } | Message::Flush | Message::Sync(_) => {
                self.copy = Some(copy);
            }
            Message::CopyData { good: false } => self.fail(IN_LINE, extended),
            Message::CopyFail => self.fail(COPY_FAIL, extended),
            Message::CopyDone if copy.fails_late => self.fail(ERROR, extended),
            Message::CopyDone => {
                self.say(b"C");
                match copy.rest {
                    Some(rest) => self.go_on(rest),
                    None => self.executed += 1,
                }
            }
            // From 14 on it ends the session; before, the COPY.
            _ => {
                self.output.push_back((b'E', ERROR));
                self.die();
            }
        }
    }

    /// Reads one message.
    pub fn read(&mut self) {
        if self.lost {
            return;
        }
        let Some(message) = self.input.pop_front() else {
            return;
        };
        if let Some(copy) = self.copy.take() {
            return self.copying(copy, &message);
        }
        if let Message::Nonsense { flush } = message {
            return if flush && !self.skipping {
                self.fail(ERROR, true);
            } else if !flush {
                self.die();
            };
        }
        if self.skipping && !matches!(message, Message::Sync(_)) {
            return;
        }
        self.take(message);
    }

    fn take(&mut self, message: Message) {
        // From the second Execute of a batch on the transaction shows.
        if self.executed > 0 && self.block == Block::None && !message.is_nothing() {
            self.block = match message {
                Message::Sync(_) | Message::CloseOther(_) | Message::CloseUnnamed(_) => Block::None,
                _ => Block::Implicit,
            };
        }
        // A Sync has something to fail at only if there is something to commit.
        let open = self.batch && self.block == Block::None || self.block == Block::Implicit;
        self.batch = match message {
            Message::Sync(_) | Message::Function(_) | Message::Query(_) => false,
            ref nothing if nothing.is_nothing() => self.batch,
            _ => true,
        };
        match message {
            Message::Query(Few(statements)) => {
                self.unnamed = None;
                self.executed = 0;
                if statements.is_empty() {
                    self.say(b"I");
                }
                self.go_on(statements.into());
            }
            Message::ParseUnnamed(id, fate) => {
                self.unnamed = fate.works().then_some(id | 1);
                self.answer(fate, b"1", b"1");
            }
            Message::Parse(fate) => self.answer(fate, b"1", b"1"),
            Message::Bind(fate) => self.answer(fate, b"2", b"2"),
            Message::DescribeStatement(Fate::FailsLate) => {
                self.say(b"t");
                self.fail(ERROR, true);
            }
            Message::DescribeStatement(fate) => self.answer(fate, b"tT", b"tn"),
            Message::DescribePortal(fate) => self.answer(fate, b"T", b"n"),
            Message::Execute(statement) => {
                if self.run(statement, None) {
                    self.executed += 1;
                }
            }
            Message::CloseUnnamed(fate) => {
                if fate.works() {
                    self.unnamed = None;
                }
                self.answer(fate, b"3", b"3");
            }
            Message::CloseOther(fate) => self.answer(fate, b"3", b"3"),
            Message::Sync(fate) => {
                self.skipping = false;
                self.executed = 0;
                if open && !fate.works() {
                    self.fail(ERROR, false);
                } else {
                    if self.block == Block::Implicit {
                        self.block = Block::None;
                    }
                    self.ready();
                }
            }
            Message::Function(fate) => {
                self.executed = 0;
                match fate {
                    Fate::Fails => self.fail(ERROR, false),
                    Fate::FailsLate => {
                        self.say(b"V");
                        self.fail(ERROR, false);
                    }
                    Fate::Works | Fate::WorksElse => {
                        self.say(b"V");
                        self.ready();
                    }
                }
            }
            Message::Flush
            | Message::CopyData { .. }
            | Message::CopyDone
            | Message::CopyFail
            | Message::Nonsense { .. } => {}
        }
    }

    fn answer(&mut self, fate: Fate, works: &[u8], works_else: &[u8]) {
        match fate {
            Fate::Works => self.say(works),
            Fate::WorksElse => self.say(works_else),
            Fate::Fails | Fate::FailsLate => self.fail(ERROR, true),
        }
    }

    /// Nothing is owed, open or on its way that could have an effect.
    pub fn is_idle(&self) -> bool {
        self.waits() && self.is_over()
    }

    /// Nothing is open.
    fn is_over(&self) -> bool {
        self.block == Block::None && !self.batch && !self.skipping && self.copy.is_none()
    }

    /// It has said all that it has to say, until the client sends more.
    pub fn waits(&self) -> bool {
        self.output.is_empty() && self.input.iter().all(|message| self.means_nothing(message))
    }

    fn means_nothing(&self, message: &Message) -> bool {
        if self.copy.is_some() {
            false
        } else if self.skipping {
            !matches!(message, Message::Sync(_))
        } else {
            message.is_nothing()
        }
    }

    /// It runs something or waits for data: a cancel has something to hit.
    pub fn is_busy(&self) -> bool {
        self.copy.is_some() || !self.waits()
    }
}
