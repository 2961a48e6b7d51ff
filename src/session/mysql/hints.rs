//! What a statement's text gives away: prepared statements in text form, a KILL, and which kind of blocker it may
//! have taken. Hints only: a stored program can do nearly all of this without its text passing by.

pub use super::lexical::Modes;
use super::lexical::{Lexer, Token};
use std::ops::Range;

/// Bytes of one statement that are looked at; of what follows nothing is known, and [`Hint::UNREAD`] says so.
pub const SCAN_LIMIT: usize = 16 * 1024;

/// A set of what texts may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hint(pub(super) u32);

impl Hint {
    /// A user lock was taken: `GET_LOCK` and its kin.
    pub const USER_LOCK: Self = Self(1);
    /// A user variable was named.
    pub const USER_VARIABLE: Self = Self(1 << 1);
    /// A temporary object was made.
    pub const TEMP_TABLE: Self = Self(1 << 2);
    /// LOCK TABLES.
    pub const TABLE_LOCK: Self = Self(1 << 3);
    /// FLUSH ... WITH READ LOCK, FLUSH ... FOR EXPORT, BACKUP STAGE, BACKUP LOCK, LOCK INSTANCE.
    pub const GLOBAL_LOCK: Self = Self(1 << 4);
    /// HANDLER.
    pub const HANDLER: Self = Self(1 << 5);
    /// XA.
    pub const XA: Self = Self(1 << 6);
    /// A password was changed, perhaps one's own.
    pub const PASSWORD: Self = Self(1 << 7);
    /// SQL_CALC_FOUND_ROWS.
    pub const FOUND_ROWS: Self = Self(1 << 8);
    /// A variable of session tracking was named.
    pub const TRACKING: Self = Self(1 << 9);
    /// What texts mean was changed: sql_mode, character sets.
    pub const MEANING: Self = Self(1 << 10);
    /// A statement was prepared in text form by a text that could not be read.
    pub const UNKNOWN_PREPARE: Self = Self(1 << 11);
    /// A table was created that is not temporary.
    pub const CREATE_TABLE: Self = Self(1 << 12);
    /// The text, or a part of it, could not be read.
    pub const UNREAD: Self = Self(1 << 13);
    /// A temporary table was made with an engine of its own, which may be none that a server lists.
    pub const TEMP_ENGINE: Self = Self(1 << 14);
    /// What may take a lock that nobody but the server can show.
    pub const STICKY: Self = Self(
        Self::USER_LOCK.0
            | Self::USER_VARIABLE.0
            | Self::TEMP_TABLE.0
            | Self::TEMP_ENGINE.0
            | Self::GLOBAL_LOCK.0
            | Self::HANDLER.0
            | Self::UNREAD.0,
    );

    /// All of `other` is in this set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Nothing was found.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a text does to statements that are prepared in text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrepareOp {
    /// `PREPARE name FROM ...`
    Make {
        /// In lower case.
        name: Box<[u8]>,
        /// The whole statement, when its text is a literal in it.
        statement: Option<Range<usize>>,
    },
    /// `DEALLOCATE PREPARE name`
    Drop {
        /// In lower case.
        name: Box<[u8]>,
    },
}

/// A KILL with a number in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillText {
    /// Where the number is.
    pub number: Range<usize>,
    /// The number.
    pub target: u64,
    /// `KILL QUERY`.
    pub query_only: bool,
}

/// What [`scan`] found. Nothing is allocated when nothing was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// What may have been done.
    pub hint: Hint,
    /// What is done to prepared statements, in order.
    pub ops: Vec<PrepareOp>,
    /// The text is one KILL.
    pub kill: Option<KillText>,
    /// How many statements are in the text that create a table.
    pub creates: u32,
}

/// Looks through the text of a statement, once.
pub fn scan(text: &[u8], modes: Modes) -> Hints {
    let mut hints = Hints::default();
    let head = text.get(..SCAN_LIMIT).unwrap_or(text);
    if head.len() < text.len() {
        hints.hint.add(Hint::UNREAD);
    }
    let mut scan = Scan {
        lexer: Lexer::new(head, modes),
        hints,
        first: Word::Other,
        before: Word::Begin,
        statements: 0,
    };
    while let Some((start, token)) = scan.lexer.next() {
        scan.on_token(start, &token);
    }
    if scan.lexer.unsure {
        scan.hints.hint.add(Hint::UNREAD);
    }
    if scan.statements > 1 {
        scan.hints.kill = None;
    }
    scan.hints
}

/// Words that mean something by what comes behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The beginning of a statement.
    Begin,
    Alter,
    Backup,
    Create,
    Deallocate,
    Drop,
    Flush,
    For,
    Handler,
    Lock,
    Prepare,
    Read,
    Replace,
    Set,
    Temporary,
    Xa,
    Other,
}

struct Scan<'a> {
    lexer: Lexer<'a>,
    hints: Hints,
    /// The first word of the statement.
    first: Word,
    before: Word,
    statements: u32,
}

impl Scan<'_> {
    fn on_token(&mut self, start: usize, token: &Token<'_>) {
        let word = match *token {
            Token::Word(word) => word,
            Token::Other(b';') => {
                self.before = Word::Begin;
                return;
            }
            Token::UserVariable => {
                self.begin(Word::Other);
                self.hints.hint.add(Hint::USER_VARIABLE);
                return;
            }
            _ => {
                self.begin(Word::Other);
                return;
            }
        };
        let known = self.known(start, word);
        self.begin(known);
    }

    /// Another token has passed.
    fn begin(&mut self, word: Word) {
        if self.before == Word::Begin {
            self.statements += 1;
            self.first = word;
        }
        self.before = word;
    }

    fn known(&mut self, start: usize, word: &[u8]) -> Word {
        let is = |lower: &[u8]| word.eq_ignore_ascii_case(lower);
        let begins = self.before == Word::Begin;
        // Nearly every word of nearly every statement ends here.
        match (word.len(), word.first().map(u8::to_ascii_lowercase)) {
            (2, Some(b'x')) if is(b"xa") && begins => {
                self.hints.hint.add(Hint::XA);
                return Word::Xa;
            }
            (3, Some(b'f')) if is(b"for") => return Word::For,
            (3, Some(b's')) if is(b"set") => return Word::Set,
            (4, Some(b'd')) if is(b"drop") => return Word::Drop,
            (4, Some(b'k')) if is(b"kill") && begins => self.kill(),
            (4, Some(b'l')) if is(b"lock") => {
                if self.before == Word::Backup
                    || (self.before == Word::Read && self.first == Word::Flush)
                {
                    self.hints.hint.add(Hint::GLOBAL_LOCK);
                }
                return Word::Lock;
            }
            (4, Some(b'r')) if is(b"read") => return Word::Read,
            (4, Some(b'u')) if is(b"user") && self.before == Word::Alter => {
                self.hints.hint.add(Hint::PASSWORD);
            }
            (5, Some(b'a')) if is(b"alter") => return Word::Alter,
            (5, Some(b'f')) if is(b"flush") => return Word::Flush,
            (5, Some(b'n')) if is(b"names") && self.first == Word::Set => {
                self.hints.hint.add(Hint::MEANING);
            }
            (5, Some(b's')) if is(b"stage") && self.before == Word::Backup => {
                self.hints.hint.add(Hint::GLOBAL_LOCK);
            }
            (5 | 6, Some(b't')) if is(b"table") || is(b"tables") => match self.before {
                Word::Lock => self.hints.hint.add(Hint::TABLE_LOCK),
                Word::Temporary => self.hints.creates = self.hints.creates.saturating_add(1),
                Word::Create | Word::Replace => {
                    self.hints.hint.add(Hint::CREATE_TABLE);
                    self.hints.creates = self.hints.creates.saturating_add(1);
                }
                _ => {}
            },
            (6, Some(b'b')) if is(b"backup") => return Word::Backup,
            (6, Some(b'c')) if is(b"create") => return Word::Create,
            (6, Some(b'e')) if is(b"engine") => self.engine(),
            (6, Some(b'e'))
                if is(b"export") && self.before == Word::For && self.first == Word::Flush =>
            {
                self.hints.hint.add(Hint::GLOBAL_LOCK);
            }
            (7, Some(b'h')) if is(b"handler") => {
                if begins {
                    self.hints.hint.add(Hint::HANDLER);
                }
                return Word::Handler;
            }
            (7, Some(b'p')) if is(b"prepare") => {
                match self.before {
                    Word::Begin => self.prepare(start),
                    Word::Deallocate | Word::Drop => self.deallocate(),
                    _ => {}
                }
                return Word::Prepare;
            }
            (7, Some(b'c')) if is(b"charset") && self.first == Word::Set => {
                self.hints.hint.add(Hint::MEANING);
            }
            (7, Some(b'r')) if is(b"replace") => return Word::Replace,
            (8, Some(b'i')) if is(b"instance") && self.before == Word::Lock => {
                self.hints.hint.add(Hint::GLOBAL_LOCK);
            }
            (8, Some(b'p')) if is(b"password") && self.before == Word::Set => {
                self.hints.hint.add(Hint::PASSWORD);
            }
            (8.., Some(b'g' | b's' | b'v')) => self.long_word(word),
            (9, Some(b't')) if is(b"temporary") => {
                if matches!(self.before, Word::Create | Word::Replace) {
                    self.hints.hint.add(Hint::TEMP_TABLE);
                    return Word::Temporary;
                }
            }
            (9.., Some(b'c'))
                if self.first == Word::Set
                    && (begins_with(word, b"character") || begins_with(word, b"collation")) =>
            {
                self.hints.hint.add(Hint::MEANING);
            }
            (10, Some(b'd')) if is(b"deallocate") => return Word::Deallocate,
            (10, Some(b'i')) if is(b"identified") => self.hints.hint.add(Hint::PASSWORD),
            _ => {}
        }
        Word::Other
    }

    fn long_word(&mut self, word: &[u8]) {
        let is = |lower: &[u8]| word.eq_ignore_ascii_case(lower);
        if is(b"sql_mode") {
            if self.first == Word::Set {
                self.hints.hint.add(Hint::MEANING);
            }
        } else if is(b"sql_calc_found_rows") {
            self.hints.hint.add(Hint::FOUND_ROWS);
        } else if begins_with(word, b"session_track_") {
            self.hints.hint.add(Hint::TRACKING);
        } else if is(b"get_lock")
            || is(b"service_get_read_locks")
            || is(b"service_get_write_locks")
            || begins_with(word, b"version_tokens_lock_")
        {
            self.hints.hint.add(Hint::USER_LOCK);
        }
    }

    /// `ENGINE [=] name`
    fn engine(&mut self) {
        let mut ahead = self.lexer.clone();
        let mut name = ahead.next();
        if matches!(name, Some((_, Token::Other(b'=')))) {
            name = ahead.next();
        }
        if self.hints.hint.has(Hint::TEMP_TABLE) && !name.is_some_and(|(_, n)| n.is(b"innodb")) {
            self.hints.hint.add(Hint::TEMP_ENGINE);
        }
    }

    /// The rest of `KILL [HARD | SOFT] [CONNECTION | QUERY] n`.
    fn kill(&mut self) {
        let mut ahead = self.lexer.clone();
        let mut query_only = false;
        while let Some((start, token)) = ahead.next() {
            match token {
                Token::Word(word) if word.iter().all(u8::is_ascii_digit) => {
                    let number = std::str::from_utf8(word).ok().and_then(|w| w.parse().ok());
                    let end = start + word.len();
                    // Behind the number nothing may come: else it is a part of an expression.
                    let last = match ahead.next() {
                        None => true,
                        Some((_, Token::Other(b';'))) => ahead.next().is_none(),
                        Some(_) => false,
                    };
                    self.hints.kill = number.filter(|_| last).map(|target| KillText {
                        number: start..end,
                        target,
                        query_only,
                    });
                    return;
                }
                _ if token.is(b"query") => query_only = true,
                _ if [&b"hard"[..], b"soft", b"connection"]
                    .iter()
                    .any(|w| token.is(w)) => {}
                // An expression, a user, the number of a query.
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<Box<[u8]>> {
        let (start, token) = self.lexer.next()?;
        match token {
            Token::Word(name) => Some(name.to_ascii_lowercase().into()),
            Token::Quoted(name) => {
                let name = String::from_utf8_lossy(name).to_lowercase();
                Some(name.replace("``", "`").into_bytes().into())
            }
            // A string can't be a name, so these are the quotes of an identifier.
            Token::Text => {
                let name = self.lexer.since(start);
                let name = name.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
                let name = String::from_utf8_lossy(name).to_lowercase();
                Some(name.replace("\"\"", "\"").into_bytes().into())
            }
            _ => None,
        }
    }

    /// The rest of `PREPARE name FROM ...`.
    fn prepare(&mut self, start: usize) {
        let Some(name) = self.name() else {
            self.hints.hint.add(Hint::UNKNOWN_PREPARE);
            return;
        };
        if !self
            .lexer
            .next()
            .is_some_and(|(_, token)| token.is(b"from"))
        {
            // No statement, so an error.
            return;
        }
        let mut ahead = self.lexer.clone();
        let (mut literal, mut end) = (false, ahead.at());
        while let Some((_, token)) = ahead.next() {
            match token {
                Token::Text => literal = true,
                Token::Other(b';') => break,
                _ => {
                    literal = false;
                    break;
                }
            }
            end = ahead.at();
        }
        let readable = literal && !ahead.unsure;
        self.hints.ops.push(PrepareOp::Make {
            name,
            statement: readable.then_some(start..end),
        });
    }

    fn deallocate(&mut self) {
        if let Some(name) = self.name() {
            self.hints.ops.push(PrepareOp::Drop { name });
        }
    }
}

fn begins_with(word: &[u8], lower: &[u8]) -> bool {
    word.get(..lower.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(lower))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hint(text: &str) -> Hint {
        scan(text.as_bytes(), Modes::default()).hint
    }

    #[test]
    fn case_29_texts_give_away_what_they_may_have_done() {
        for (text, wanted) in [
            (
                "SELECT a, b FROM t WHERE c = 'get_lock(1)'",
                Hint::default(),
            ),
            ("SELECT get_lock('a', 1)", Hint::USER_LOCK),
            ("SELECT /*! GET_LOCK('a',1) */", Hint::USER_LOCK),
            ("do get_lock/**/('a',1)", Hint::USER_LOCK),
            ("SELECT /* get_lock('a') */ 1", Hint::default()),
            ("CREATE TEMPORARY TABLE t (a int)", Hint::TEMP_TABLE),
            (
                "create or replace temporary table t (a int)",
                Hint::TEMP_TABLE,
            ),
            ("DROP TEMPORARY TABLE t", Hint::default()),
            (
                "CREATE TEMPORARY TABLE t (a int) ENGINE=InnoDB",
                Hint::TEMP_TABLE,
            ),
            (
                "CREATE TEMPORARY TABLE t (a int) engine memory",
                Hint(Hint::TEMP_TABLE.0 | Hint::TEMP_ENGINE.0),
            ),
            ("create table t (a int)", Hint::CREATE_TABLE),
            ("LOCK TABLES t READ", Hint::TABLE_LOCK),
            ("FLUSH TABLES WITH READ LOCK", Hint::GLOBAL_LOCK),
            ("flush tables t for export", Hint::GLOBAL_LOCK),
            ("backup stage start", Hint::GLOBAL_LOCK),
            ("BACKUP LOCK t", Hint::GLOBAL_LOCK),
            ("lock instance for backup", Hint::GLOBAL_LOCK),
            ("HANDLER t OPEN", Hint::HANDLER),
            ("xa start 'x'", Hint::XA),
            ("set password = 'x'", Hint::PASSWORD),
            ("ALTER USER u IDENTIFIED BY 'x'", Hint::PASSWORD),
            ("SELECT SQL_CALC_FOUND_ROWS * FROM t", Hint::FOUND_ROWS),
            ("SET session_track_schema=0", Hint::TRACKING),
            ("SET NAMES latin1", Hint::MEANING),
            ("set @@session.sql_mode = ''", Hint::MEANING),
            ("SELECT @@sql_mode", Hint::default()),
            ("SELECT @a := 1", Hint::USER_VARIABLE),
            (
                "SELECT 1 INTO @a; HANDLER t OPEN",
                Hint(Hint::USER_VARIABLE.0 | Hint::HANDLER.0),
            ),
            ("SELECT 'open", Hint::UNREAD),
        ] {
            assert_eq!(hint(text), wanted, "{text}");
        }
        let long = format!("SELECT '{}'", "x".repeat(SCAN_LIMIT));
        assert!(hint(&long).has(Hint::UNREAD));
    }

    #[test]
    fn statements_prepared_in_text_form_are_read() {
        let text = b"PREPARE `A``b` FROM 'select 1'; deallocate prepare x; PREPARE y FROM @v; drop prepare z; prepare q from 'a' 'b'";
        let ops = scan(text, Modes::default()).ops;
        let made = |name: &[u8], statement: Option<Range<usize>>| PrepareOp::Make {
            name: name.into(),
            statement,
        };
        assert_eq!(ops.len(), 5);
        assert_eq!(ops[0], made(b"a`b", Some(0..30)));
        assert_eq!(&text[0..30], b"PREPARE `A``b` FROM 'select 1'");
        assert_eq!(
            ops[1],
            PrepareOp::Drop {
                name: b"x"[..].into()
            }
        );
        assert_eq!(ops[2], made(b"y", None));
        assert_eq!(
            ops[3],
            PrepareOp::Drop {
                name: b"z"[..].into()
            }
        );
        let PrepareOp::Make {
            statement: Some(range),
            ..
        } = &ops[4]
        else {
            panic!("{ops:?}");
        };
        assert_eq!(&text[range.clone()], b"prepare q from 'a' 'b'");
    }

    #[test]
    fn case_31_a_kill_with_a_number_is_read() {
        for (text, wanted) in [
            ("KILL 5", Some((5, false))),
            ("/* x */ kill query 17 ;", Some((17, true))),
            ("KILL HARD CONNECTION 5", Some((5, false))),
            ("KILL QUERY ID 5", None),
            ("KILL USER u", None),
            ("KILL CONNECTION_ID()", None),
            ("KILL 5 + 1", None),
            ("SELECT 1; KILL 5", None),
            ("KILL 5; SELECT 1", None),
            ("SELECT kill FROM t", None),
        ] {
            let kill = scan(text.as_bytes(), Modes::default()).kill;
            assert_eq!(kill.map(|k| (k.target, k.query_only)), wanted, "{text}");
        }
        let kill = scan(b"kill query 17", Modes::default()).kill.unwrap();
        assert_eq!(kill.number, 11..13);
    }

    proptest! {
        #[test]
        fn any_text_is_scanned(text in proptest::collection::vec(any::<u8>(), 0..200), ansi in any::<Option<bool>>(), bare in any::<bool>()) {
            let modes = Modes { ansi_quotes: ansi, no_backslash_escapes: bare };
            let hints = scan(&text, modes);
            for op in hints.ops {
                if let PrepareOp::Make { statement: Some(range), .. } = op {
                    prop_assert!(text.get(range).is_some());
                }
            }
        }
    }
}
