//! What a statement's text gives away: names of custom settings, state that no probe shows, and which
//! kind of blocker it may have taken. Hints only: a function can do all of this without its text passing by.

use super::absent::NAME_MAX;
use super::lexical::{
    Context, Lexer, dollar_tag, is, is_word, skip_space, string_like_end, word_at,
};
use crate::wire::pg::frame::{FrameError, Reader};

/// Bytes of one statement that are looked at; what follows is ignored and [`Hints::cut`] is set.
pub const SCAN_LIMIT: usize = 64 * 1024;

/// Longest name of a custom setting that is kept, in bytes.
pub const MAX_NAME: usize = 256;

/// What [`scan`] found. Nothing is allocated when nothing was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// Names of custom settings (`app.tenant`), in lower case, each once.
    pub custom_names: Vec<String>,
    /// Numbers (from 1) of the parameters that name a setting: `set_config($1, ...)`.
    /// A simple query has none, so there they count as unreadable.
    pub names_from_params: Vec<u16>,
    /// A setting's name could not be read: an expression, or a name that is not ASCII.
    pub unreadable_set_config: bool,
    /// State that dies with its session and that no probe shows.
    pub watches: Watches,
    /// Which blockers the statement may have to do with.
    pub words: KindWords,
    /// A word that may end a transaction, so that what follows is no part of it: COMMIT, END, PREPARE, ROLLBACK.
    pub may_end: bool,
    /// A word whose work may outlast a transaction that is rolled back: locks of the session, prepared
    /// statements, connections to elsewhere; or code that is not in the text.
    pub lasting: bool,
    /// EXECUTE of a prepared statement, or the word for something else.
    pub executes: bool,
    /// The text was longer than [`SCAN_LIMIT`].
    pub cut: bool,
}

/// State of a session that no probe shows, so that it is watched on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watch {
    /// `pg_backup_start`, `pg_start_backup`: a base backup runs in this session.
    BackupStart,
    /// `pg_backup_stop`, `pg_stop_backup`: it ended.
    BackupStop,
    /// `pg_replication_origin_session_setup`.
    OriginSetup,
    /// `pg_replication_origin_session_reset`.
    OriginReset,
    /// `LOAD 'library'`.
    Load,
}

/// A set of [`Watch`]es.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watches(u8);

impl Watches {
    const ALL: [Watch; 5] = [
        Watch::BackupStart,
        Watch::BackupStop,
        Watch::OriginSetup,
        Watch::OriginReset,
        Watch::Load,
    ];

    /// The watch is in the set.
    pub const fn contains(self, watch: Watch) -> bool {
        self.0 & (1 << watch as u8) != 0
    }

    /// Nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in the set.
    pub fn iter(self) -> impl Iterator<Item = Watch> {
        Self::ALL.into_iter().filter(move |w| self.contains(*w))
    }

    fn add(&mut self, watch: Watch) {
        self.0 |= 1 << watch as u8;
    }
}

/// A set of words that make a statement a candidate for having taken a blocker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindWords(u8);

impl KindWords {
    /// `pg_advisory_lock` and its kin.
    pub const ADVISORY: Self = Self(1);
    /// `TEMP`, `TEMPORARY`, `pg_temp`.
    pub const TEMP: Self = Self(2);
    /// `LISTEN`.
    pub const LISTEN: Self = Self(4);
    /// `DECLARE`, `HOLD`.
    pub const HOLD: Self = Self(8);
    /// Functions whose name has `slot` in it.
    pub const SLOT: Self = Self(16);

    /// All of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// No word was found.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a byte is to [`scan`]: part of a word, ...
const WORD: u8 = 1;
/// ... and one that a word begins with that is looked for.
const INITIAL: u8 = 2;

const BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0_usize;
    while i < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "i is below 256")]
        let b = i as u8;
        table[i] = match b.to_ascii_lowercase() {
            b'a' | b'c' | b'd' | b'e' | b'h' | b'l' | b'p' | b'r' | b's' | b't' => WORD | INITIAL,
            _ if is_word(b) => WORD,
            _ => 0,
        };
        i += 1;
    }
    table
};

/// Looks through the text of a Query or Parse, once.
pub fn scan(text: &[u8]) -> Hints {
    let mut hints = Hints::default();
    let text = match text.get(..SCAN_LIMIT) {
        Some(head) if text.len() > SCAN_LIMIT => {
            hints.cut = true;
            head
        }
        _ => text,
    };
    let mut lexer = Lexer::new(text);
    let mut before = 0;
    for (start, b) in text.iter().enumerate() {
        let byte = BYTES[usize::from(*b)];
        // Behind a byte of a word no word begins.
        let begins = byte & !(before << 1) & INITIAL != 0;
        before = byte;
        if !begins {
            continue;
        }
        let word = word_at(text, start);
        // Nearly every word of nearly every statement ends here.
        let known = match word.len() {
            2 => is(word, b"do"),
            3 => is(word, b"set") || is(word, b"end"),
            4 => is(word, b"temp") || is(word, b"hold") || is(word, b"load") || is(word, b"call"),
            5 => is(word, b"reset") || is(word, b"abort"),
            6 => is(word, b"listen") || is(word, b"commit") || is_dblink(word),
            7 => {
                is(word, b"declare")
                    || is(word, b"pg_temp")
                    || is(word, b"prepare")
                    || is(word, b"execute")
                    || is(word, b"discard")
            }
            8 => is(word, b"rollback") || is_dblink(word),
            9 => is(word, b"temporary"),
            10 => is(word, b"set_config") || is(word, b"deallocate"),
            15 => is(word, b"current_setting") || starts_pg(word) || is_dblink(word),
            14 | 16.. => starts_pg(word) || is_dblink(word),
            _ => false,
        };
        if known {
            on_word(&mut hints, &mut lexer, text, start, word);
        }
    }
    hints
}

fn is_dblink(word: &[u8]) -> bool {
    word.get(..6).is_some_and(|head| is(head, b"dblink"))
}

fn starts_pg(word: &[u8]) -> bool {
    word.get(..3).is_some_and(|head| is(head, b"pg_"))
}

fn contains(word: &[u8], lower: &[u8]) -> bool {
    word.windows(lower.len()).any(|part| is(part, lower))
}

fn on_word(hints: &mut Hints, lexer: &mut Lexer<'_>, text: &[u8], start: usize, word: &[u8]) {
    let after = start + word.len();
    let lower = |name: &[u8]| is(word, name);
    if lower(b"set") || lower(b"reset") {
        match set_target(text, after) {
            Target::Custom(name) => add_name(&mut hints.custom_names, name),
            Target::Unreadable if lexer.context(start) == Context::Code => {
                hints.unreadable_set_config = true;
            }
            Target::Unreadable | Target::Other => {}
        }
    } else if lower(b"current_setting") {
        if let Argument::Name(name) = first_argument(text, after)
            && let Target::Custom(name) = custom_name(name)
        {
            add_name(&mut hints.custom_names, name);
        }
    } else if lower(b"set_config") {
        on_set_config(hints, lexer, text, start, after);
    } else if lower(b"load") {
        let next = text.get(skip_space(text, after));
        if matches!(next, Some(b'\'' | b'e' | b'E' | b'$')) && lexer.context(start) == Context::Code
        {
            hints.watches.add(Watch::Load);
        }
    } else if lower(b"temp") || lower(b"temporary") || lower(b"pg_temp") {
        hints.words.add(KindWords::TEMP);
    } else if lower(b"listen") {
        hints.words.add(KindWords::LISTEN);
    } else if lower(b"hold") || lower(b"declare") {
        hints.words.add(KindWords::HOLD);
    } else if contains(word, b"advisory") {
        hints.words.add(KindWords::ADVISORY);
        hints.lasting |= !contains(word, b"xact");
    } else if contains(word, b"slot") {
        hints.words.add(KindWords::SLOT);
        hints.lasting = true;
    } else if is_transaction_word(word) || is_dblink(word) {
        if lexer.context(start) == Context::Code {
            on_lasting(hints, text, after, word);
        }
    } else {
        let watch = if lower(b"pg_backup_start") || lower(b"pg_start_backup") {
            Watch::BackupStart
        } else if lower(b"pg_backup_stop") || lower(b"pg_stop_backup") {
            Watch::BackupStop
        } else if lower(b"pg_replication_origin_session_setup") {
            Watch::OriginSetup
        } else if lower(b"pg_replication_origin_session_reset") {
            Watch::OriginReset
        } else {
            return;
        };
        if lexer.context(start) == Context::Code {
            hints.watches.add(watch);
        }
    }
}

fn is_transaction_word(word: &[u8]) -> bool {
    const WORDS: [&[u8]; 10] = [
        b"commit",
        b"end",
        b"rollback",
        b"abort",
        b"prepare",
        b"execute",
        b"deallocate",
        b"discard",
        b"call",
        b"do",
    ];
    WORDS.iter().any(|known| is(word, known))
}

fn on_lasting(hints: &mut Hints, text: &[u8], after: usize, word: &[u8]) {
    if [&b"commit"[..], b"end", b"rollback", b"abort"]
        .iter()
        .any(|w| is(word, w))
    {
        hints.may_end = true;
        return;
    }
    if is(word, b"do") {
        // ON CONFLICT DO, and what rules do.
        let next = word_at(text, skip_space(text, after));
        let known: [&[u8]; 4] = [b"nothing", b"update", b"instead", b"also"];
        if known.iter().any(|known| is(next, known)) {
            return;
        }
    }
    // EXECUTE of what was prepared by the protocol: that may be COMMIT.
    hints.executes |= is(word, b"execute");
    hints.may_end |= is(word, b"prepare") || is(word, b"execute");
    hints.lasting = true;
}

fn on_set_config(
    hints: &mut Hints,
    lexer: &mut Lexer<'_>,
    text: &[u8],
    start: usize,
    after: usize,
) {
    let unreadable = match first_argument(text, after) {
        Argument::NotACall => false,
        Argument::Expression => true,
        Argument::Name(name) => match custom_name(name) {
            Target::Custom(name) => {
                add_name(&mut hints.custom_names, name);
                false
            }
            Target::Unreadable => true,
            Target::Other => false,
        },
        Argument::Param(number) => {
            // A parameter of PREPARE or of a DO body's own queries is no parameter of Bind.
            let bound = lexer.context(start) == Context::Code && !lexer.own_params;
            if bound && !hints.names_from_params.contains(&number) {
                hints.names_from_params.push(number);
            }
            !bound
        }
    };
    // What a function's body says is not run now; what a comment or string says may never be.
    if unreadable && lexer.context(start) == Context::Code {
        hints.unreadable_set_config = true;
    }
}

fn add_name(names: &mut Vec<String>, name: String) {
    if !names.contains(&name) {
        names.push(name);
    }
}

enum Target {
    Custom(String),
    Unreadable,
    Other,
}

/// Judges a setting's name: two or more identifiers with dots between them make a custom setting.
fn custom_name(name: &[u8]) -> Target {
    if !name.contains(&b'.') {
        return Target::Other;
    }
    if !name.is_ascii() || name.len() > MAX_NAME {
        return Target::Unreadable;
    }
    // Up to 13 nearly any text with a dot in it is a name; later servers refuse the hyphen and have none of that name.
    let accepted = name.split(|b| *b == b'.').all(|part| {
        part.first()
            .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
            && part
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'-'))
    });
    if accepted {
        Target::Custom(String::from_utf8_lossy(name).to_ascii_lowercase())
    } else {
        Target::Other
    }
}

/// Reads what follows `SET` or `RESET`: an optional `SESSION` or `LOCAL`, then a dotted name.
fn set_target(text: &[u8], at: usize) -> Target {
    let mut at = skip_space(text, at);
    let mut first = word_at(text, at);
    if is(first, b"session") || is(first, b"local") {
        let next = skip_space(text, at + first.len());
        if !matches!(text.get(next), Some(b'.' | b'=')) {
            at = next;
            first = word_at(text, at);
        }
    }
    // Cheap way out for `UPDATE t SET column = ...`.
    if !first.is_empty() && text.get(skip_space(text, at + first.len())) != Some(&b'.') {
        return Target::Other;
    }
    let mut name = Vec::new();
    loop {
        if text.get(at) == Some(&b'"') {
            let Some(len) = text
                .get(at + 1..)
                .and_then(|rest| memchr::memchr(b'"', rest))
            else {
                return Target::Other;
            };
            name.extend_from_slice(&text[at + 1..at + 1 + len]);
            at += len + 2;
        } else {
            let word = text[at.min(text.len())..]
                .iter()
                .position(|b| !is_word(*b) && *b != b'$')
                .map_or(&text[at.min(text.len())..], |n| &text[at..at + n]);
            if word.is_empty() {
                return Target::Other;
            }
            name.extend_from_slice(word);
            at += word.len();
        }
        let next = skip_space(text, at);
        if text.get(next) != Some(&b'.') {
            return custom_name(&name);
        }
        name.push(b'.');
        at = skip_space(text, next + 1);
    }
}

enum Argument<'a> {
    Name(&'a [u8]),
    Param(u16),
    Expression,
    NotACall,
}

/// Reads the first argument of a call whose function name ends at `at`.
fn first_argument(text: &[u8], at: usize) -> Argument<'_> {
    let mut at = at;
    if text.get(at) == Some(&b'"') {
        at += 1;
    }
    at = skip_space(text, at);
    if text.get(at) != Some(&b'(') {
        return Argument::NotACall;
    }
    at = skip_space(text, at + 1);
    if is(word_at(text, at), b"setting_name") {
        at = skip_space(text, at + b"setting_name".len());
        if !matches!(text.get(at..at + 2), Some(b"=>" | b":=")) {
            return Argument::Expression;
        }
        at = skip_space(text, at + 2);
    }
    let rest = text.get(at..).unwrap_or_default();
    let (argument, used) = match rest {
        [b'$', b'0'..=b'9', ..] => {
            let digits = word_at(rest, 1);
            let number = std::str::from_utf8(digits)
                .ok()
                .and_then(|d| d.parse().ok());
            let Some(number) = number else {
                return Argument::Expression;
            };
            (Argument::Param(number), 1 + digits.len())
        }
        [b'$', ..] => match dollar_tag(rest) {
            Some(tag) => match memchr::memmem::find(&rest[tag.len()..], tag) {
                Some(len) => (
                    Argument::Name(&rest[tag.len()..tag.len() + len]),
                    len + 2 * tag.len(),
                ),
                None => return Argument::Expression,
            },
            None => return Argument::Expression,
        },
        // Inside a string, quotes are doubled.
        [b'\'', b'\'', b, ..] if is_word(*b) => match memchr::memmem::find(&rest[2..], b"''") {
            Some(len) => (Argument::Name(&rest[2..2 + len]), len + 4),
            None => return Argument::Expression,
        },
        [b'\'', ..] | [b'e' | b'E', b'\'', ..] => {
            let open = usize::from(rest[0] != b'\'') + 1;
            let Some(len) = memchr::memchr(b'\'', &rest[open..]) else {
                return Argument::Expression;
            };
            let name = &rest[open..open + len];
            if name.contains(&b'\\') {
                return Argument::Expression;
            }
            (Argument::Name(name), open + len + 1)
        }
        _ => return Argument::Expression,
    };
    let mut end = skip_space(text, at + used);
    if text.get(end..end + 2) == Some(b"::") {
        end += 2;
        while text
            .get(end)
            .is_some_and(|b| is_word(*b) || matches!(b, b' ' | b'.' | b'"'))
        {
            end += 1;
        }
    }
    match text.get(end) {
        Some(b',' | b')') => argument,
        _ => Argument::Expression,
    }
}

/// Names that the parameters of a Bind gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BoundNames {
    /// Names of custom settings, in lower case.
    pub names: Vec<String>,
    /// A parameter held a name that could not be read.
    pub unreadable: bool,
}

/// Reads the names of custom settings from a Bind, whose statement had these `names_from_params`.
pub fn custom_names_from_bind(body: &[u8], params: &[u16]) -> Result<BoundNames, FrameError> {
    let mut out = BoundNames::default();
    let mut reader = Reader::new(body);
    reader.cstr()?;
    reader.cstr()?;
    for _ in 0..count(&mut reader)? {
        reader.i16()?;
    }
    for number in 1..=count(&mut reader)? {
        let Ok(len) = usize::try_from(reader.i32()?) else {
            continue;
        };
        let value = reader.bytes(len)?;
        if params.contains(&number) {
            match custom_name(value) {
                Target::Custom(name) => add_name(&mut out.names, name),
                Target::Unreadable => out.unreadable = true,
                Target::Other => {}
            }
        }
    }
    Ok(out)
}

/// A 16-bit count, which PostgreSQL takes as unsigned.
fn count(reader: &mut Reader<'_>) -> Result<u16, FrameError> {
    Ok(u16::from_be_bytes(reader.i16()?.to_be_bytes()))
}

/// The statement that this text deallocates, if it does nothing else.
pub fn deallocated(text: &[u8]) -> Option<Box<str>> {
    let at = behind_keyword(text, b"deallocate")?;
    let word = word_at(text, at);
    let next = skip_space(text, at + word.len());
    let is_noise = is(word, b"prepare") && !matches!(text.get(next), None | Some(b';'));
    let name = identifier(text, if is_noise { next } else { at })?;
    is_one_statement(text).then_some(name)
}

/// The statement that this text prepares, if it begins with that.
pub fn prepared(text: &[u8]) -> Option<Box<str>> {
    identifier(text, behind_keyword(text, b"prepare")?)
}

/// The prepared statement that this text executes, if that is all that it does and its name is plain.
pub fn executed(text: &[u8]) -> Option<Box<str>> {
    let at = behind_keyword(text, b"execute")?;
    let name = identifier(text, at)?;
    let behind = text.get(at + name.len());
    let is_plain = name.is_ascii() && name.len() < NAME_MAX && text.get(at) != Some(&b'"');
    (is_plain && behind != Some(&b'&') && is_one_statement(text)).then_some(name)
}

fn behind_keyword(text: &[u8], keyword: &[u8]) -> Option<usize> {
    let at = skip_space(text, 0);
    let word = word_at(text, at);
    is(word, keyword).then(|| skip_space(text, at + word.len()))
}

/// A name as PostgreSQL takes it: in lower case unless it stands in double quotes.
fn identifier(text: &[u8], at: usize) -> Option<Box<str>> {
    if text.get(at) == Some(&b'"') {
        let end = string_like_end(text, at + 1, b'"', false);
        let inside = text.get(at + 1..end.checked_sub(1)?)?;
        let name = std::str::from_utf8(inside).ok()?;
        return Some(name.replace("\"\"", "\"").into());
    }
    let rest = text.get(at..)?;
    let end = rest.iter().position(|b| !is_word(*b) && *b != b'$');
    let name = rest.get(..end.unwrap_or(rest.len()))?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase().into())
}

/// Nothing follows the statement but white space, comments and semicolons.
pub fn is_one_statement(text: &[u8]) -> bool {
    let mut lexer = Lexer::new(text);
    let mut ends = text.iter().enumerate().filter(|(_, b)| **b == b';');
    let end = ends.find(|(at, _)| lexer.is_token(*at));
    let Some((mut at, _)) = end else { return true };
    while text.get(at) == Some(&b';') {
        at = skip_space(text, at + 1);
    }
    at >= text.len()
}

/// The first word of a statement, as written; empty when there is none.
pub fn first_keyword(text: &[u8]) -> &[u8] {
    let mut at = skip_space(text, 0);
    while text.get(at) == Some(&b'(') {
        at = skip_space(text, at + 1);
    }
    word_at(text, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(text: &str) -> Vec<String> {
        scan(text.as_bytes()).custom_names
    }

    #[test]
    fn names_of_executed_statements() {
        for (text, name) in [
            ("execute S", Some("s")),
            (" EXECUTE s (1, 'x');", Some("s")),
            ("execute s; execute t", None),
            ("execute \"s\"", None),
            ("execute U&\"s\"", None),
            ("explain execute s", None),
            ("do $$ begin execute s; end $$", None),
        ] {
            assert_eq!(executed(text.as_bytes()).as_deref(), name, "{text}");
        }
        let long = format!("execute {}", "s".repeat(70));
        assert_eq!(executed(long.as_bytes()), None);
    }

    #[test]
    fn names_of_deallocated_statements() {
        for (text, name) in [
            ("deallocate s1", Some("s1")),
            (" /* x */ DEALLOCATE PREPARE S_1 ; ", Some("s_1")),
            ("deallocate \"S \"\"1\"", Some("S \"1")),
            ("deallocate prepare", Some("prepare")),
            ("deallocate a; deallocate b", None),
            ("select 1", None),
            ("deallocate", None),
        ] {
            assert_eq!(deallocated(text.as_bytes()).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn names_of_prepared_statements() {
        for (text, name) in [
            ("prepare S1 as select 1", Some("s1")),
            (
                "/* x */ PREPARE \"S 1\"(int) AS select $1; select 2",
                Some("S 1"),
            ),
            ("prepare transaction 'x'", Some("transaction")),
            ("execute s1", None),
            ("prepare", None),
        ] {
            assert_eq!(prepared(text.as_bytes()).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn one_statement_or_several() {
        for text in [
            "",
            "prepare p as select 1",
            "prepare p as select ';' || \";\" || $a$;$a$ /* ; */ ; -- ; x",
            "prepare p as select 1; ;\n;",
        ] {
            assert!(is_one_statement(text.as_bytes()), "{text}");
        }
        for text in [
            "prepare p as select 1; select 2",
            "prepare p as select '' ;;x",
        ] {
            assert!(!is_one_statement(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn names_of_custom_settings() {
        for (text, wanted) in [
            ("SET app.user = '7'", "app.user"),
            ("set session App.User to 7", "app.user"),
            ("SET LOCAL app . user TO DEFAULT", "app.user"),
            ("SET /* a */ app.user -- b\n = 1", "app.user"),
            ("RESET app.user", "app.user"),
            ("SET \"app\".\"User\" = 1", "app.user"),
            ("select set_config('my-app.id', '1', false)", "my-app.id"),
            ("SET \"app.user\" = 1", "app.user"),
            ("SET local.x = 1", "local.x"),
            ("SET a.b.c$1 = 1", "a.b.c$1"),
            ("ALTER ROLE x SET app.user = '1'", "app.user"),
            ("SELECT set_config('app.user', $1, false)", "app.user"),
            (
                "select pg_catalog.\"set_config\" ( E'app.user' , '1', true)",
                "app.user",
            ),
            ("SELECT set_config('app.user'::text, '1', true)", "app.user"),
            (
                "SELECT set_config(setting_name => 'app.user', new_value => '1', is_local => true)",
                "app.user",
            ),
            ("SELECT set_config($$app.user$$, '1', true)", "app.user"),
            ("SELECT current_setting('app.user')::int", "app.user"),
            ("SELECT CURRENT_SETTING('app.user', true)", "app.user"),
            (
                "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'SELECT set_config(''app.user'', ''1'', false)'",
                "app.user",
            ),
            (
                "CREATE FUNCTION f() RETURNS void AS $f$ BEGIN SET app.user = 1; END $f$",
                "app.user",
            ),
            (
                "CREATE POLICY p ON t USING (tenant = current_setting('app.user'))",
                "app.user",
            ),
            ("BEGIN; SET app.user = 1; COMMIT", "app.user"),
        ] {
            assert_eq!(names(text), [wanted], "{text}");
            assert!(!scan(text.as_bytes()).unreadable_set_config, "{text}");
        }
        for text in [
            "SET work_mem = '1MB'",
            "UPDATE t SET a = b.c",
            "UPDATE t SET \"a\" = 1",
            "SELECT set_config('work_mem', '1', false)",
            "SELECT reset.a FROM reset",
            "SELECT set_configs('app.user')",
            "SET 1x.y = 2",
            "SET",
            "SET SESSION",
            "SET \"open",
            "SET a.",
            "",
        ] {
            assert_eq!(scan(text.as_bytes()), Hints::default(), "{text}");
        }
        assert_eq!(
            names("SET a.b = 1; SET A.B = 2; SET c.d = 1"),
            ["a.b", "c.d"]
        );
    }

    #[test]
    fn safety_12_names_that_cannot_be_read() {
        for text in [
            "SELECT set_config(name, value, false) FROM settings",
            "SELECT set_config('app.' || k, v, false) FROM x",
            "SELECT set_config(E'app\\x2euser', '1', false)",
            "SELECT set_config(new_value => '1', setting_name => 'a.b', is_local => false)",
            "SET \"äpp\".user = 1",
            "SELECT set_config('äpp.user', '1', false)",
            "DO $$ BEGIN PERFORM set_config(n, '1', false); END $$",
            "DO LANGUAGE plpgsql $x$ DECLARE a text := $$'$$; BEGIN PERFORM set_config(n, '1', false); END $x$",
            "PREPARE p AS SELECT set_config($1, $2, false)",
            "SELECT 'it''s'; SELECT set_config(k, '1', false)",
        ] {
            assert!(scan(text.as_bytes()).unreadable_set_config, "{text}");
        }
        for text in [
            "SELECT 'set_config(name, 1)'",
            "-- set_config(name, 1)\nSELECT 1",
            "/* a /* set_config(x, 1) */ set_config(y, 1) */ SELECT 1",
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config(n, v, false); END $$",
            "SELECT E'\\' set_config(name, 1) '",
            "SELECT $$ set_config(name, 1) $$",
            "COMMENT ON FUNCTION set_config IS 'x'",
        ] {
            assert!(!scan(text.as_bytes()).unreadable_set_config, "{text}");
        }
    }

    #[test]
    fn names_in_parameters() {
        let hints = scan(b"SELECT set_config($2, $3, false), set_config($1::text, '', true)");
        assert_eq!(hints.names_from_params, [2, 1]);
        assert!(!hints.unreadable_set_config);
        let mut body = b"\0stmt\0\0\x01\0\0\0\x03".to_vec();
        for value in [Some("App.One"), None, Some("work_mem")] {
            let len = value.map_or(-1, |v| i32::try_from(v.len()).unwrap());
            body.extend(len.to_be_bytes());
            body.extend(value.unwrap_or("").as_bytes());
        }
        body.extend(b"\0\0");
        let bound = custom_names_from_bind(&body, &hints.names_from_params).unwrap();
        assert_eq!(
            (bound.names, bound.unreadable),
            (vec!["app.one".to_owned()], false)
        );
        assert_eq!(
            custom_names_from_bind(&body, &[3]).unwrap(),
            BoundNames::default()
        );
        assert!(custom_names_from_bind(&body[..20], &[1]).is_err());
    }

    #[test]
    fn safety_13_watched_statements() {
        for (text, wanted) in [
            ("SELECT pg_backup_start('x')", &[Watch::BackupStart][..]),
            (
                "select PG_START_BACKUP('x', true, false)",
                &[Watch::BackupStart],
            ),
            (
                "SELECT * FROM pg_backup_stop(); SELECT pg_stop_backup()",
                &[Watch::BackupStop],
            ),
            (
                "SELECT pg_replication_origin_session_setup('o')",
                &[Watch::OriginSetup],
            ),
            (
                "SELECT pg_replication_origin_session_reset()",
                &[Watch::OriginReset],
            ),
            ("LOAD 'auto_explain'", &[Watch::Load]),
            ("DO $$ BEGIN LOAD 'auto_explain'; END $$", &[Watch::Load]),
            (
                "INSERT INTO docs VALUES ('call pg_backup_start first')",
                &[],
            ),
            ("SELECT load, 'x' FROM machines", &[]),
            (
                "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ LOAD 'x' $$",
                &[],
            ),
        ] {
            let found: Vec<_> = scan(text.as_bytes()).watches.iter().collect();
            assert_eq!(found, wanted, "{text}");
        }
    }

    #[test]
    fn words_of_blockers() {
        for (text, wanted) in [
            ("SELECT pg_try_advisory_lock(1)", KindWords::ADVISORY),
            ("select pg_advisory_lock_shared(1)", KindWords::ADVISORY),
            ("CREATE TEMPORARY TABLE t (a int)", KindWords::TEMP),
            ("CREATE TABLE pg_temp.t (a int)", KindWords::TEMP),
            ("listen x", KindWords::LISTEN),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", KindWords::HOLD),
            (
                "SELECT pg_create_logical_replication_slot('a', 'b', true)",
                KindWords::SLOT,
            ),
            (
                "SELECT template, pg_typeof(1), pg_advice(2) FROM hollow",
                KindWords::default(),
            ),
        ] {
            assert_eq!(scan(text.as_bytes()).words, wanted, "{text}");
        }
        assert_eq!(first_keyword(b" /* x */ ((select 1))"), b"select");
        assert_eq!(first_keyword(b"--"), b"");
    }

    #[test]
    fn long_texts_are_cut_and_say_so() {
        let mut text = vec![b' '; SCAN_LIMIT];
        text.extend_from_slice(b"SET a.b = 1");
        let hints = scan(&text);
        assert!(hints.cut && hints.custom_names.is_empty());
        // Quadratic lexing would take minutes here.
        let hints = scan("set_config(x,'$$".repeat(4096).as_bytes());
        assert!(hints.unreadable_set_config);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            scan(&text);
            first_keyword(&text);
            drop(custom_names_from_bind(&text, &[1, 2]));
        }

        #[test]
        fn no_sql_like_text_panics(parts in proptest::collection::vec(prop::sample::select(vec![
            "set", "SET LOCAL ", "set_config", "(", "'", "''", "\"", ".", "$1", "$$", "$a$", "e'", "\\", "--", "/*", "*/",
            "\n", ";", "do ", "prepare ", "load ", "pg_backup_start", "current_setting(", "setting_name", "=>", "::text", ",", ")", "ä", " ", "a", "9",
        ]), 0..40)) {
            let text = parts.concat();
            scan(text.as_bytes());
            for end in 0..text.len() {
                scan(&text.as_bytes()[..end]);
            }
        }
    }
}
