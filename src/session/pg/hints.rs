//! What a statement's text gives away: names of custom settings, state that no probe shows, and which
//! kind of blocker it may have taken. Hints only: a function can do all of this without its text passing by.

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

const WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0_usize;
    while i < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "i is below 256")]
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
        i += 1;
    }
    table
};

fn is_word(b: u8) -> bool {
    WORD[usize::from(b)]
}

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
    let mut at = 0;
    while let Some(skipped) = text[at..].iter().position(|b| is_word(*b)) {
        let start = at + skipped;
        let len = text[start..].iter().position(|b| !is_word(*b));
        at = len.map_or(text.len(), |n| start + n);
        let word = &text[start..at];
        // Nearly every word of nearly every statement ends here.
        let known = match word.len() {
            3 => is(word, b"set"),
            4 => is(word, b"temp") || is(word, b"hold") || is(word, b"load"),
            5 => is(word, b"reset"),
            6 => is(word, b"listen"),
            7 => is(word, b"declare") || is(word, b"pg_temp"),
            9 => is(word, b"temporary"),
            10 => is(word, b"set_config"),
            15 => is(word, b"current_setting") || starts_pg(word),
            16.. => starts_pg(word),
            _ => false,
        };
        if known {
            on_word(&mut hints, &mut lexer, text, start, word);
        }
    }
    hints
}

fn is(word: &[u8], lower: &[u8]) -> bool {
    word.eq_ignore_ascii_case(lower)
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
    } else if contains(word, b"slot") {
        hints.words.add(KindWords::SLOT);
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
    let accepted = name.split(|b| *b == b'.').all(|part| {
        part.first()
            .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
            && part
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'))
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

fn word_at(text: &[u8], at: usize) -> &[u8] {
    let rest = text.get(at..).unwrap_or_default();
    let end = rest.iter().position(|b| !is_word(*b)).unwrap_or(rest.len());
    &rest[..end]
}

/// The first byte at or after `at` that is neither white space nor in a comment.
fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b) = text.get(at) {
        match b {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => at += 1,
            b'-' if text.get(at + 1) == Some(&b'-') => at = line_comment_end(text, at),
            b'/' if text.get(at + 1) == Some(&b'*') => at = block_comment_end(text, at),
            _ => break,
        }
    }
    at
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

/// The first word of a statement, as written; empty when there is none.
pub fn first_keyword(text: &[u8]) -> &[u8] {
    let mut at = skip_space(text, 0);
    while text.get(at) == Some(&b'(') {
        at = skip_space(text, at + 1);
    }
    word_at(text, at)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    /// Runs now.
    Code,
    /// A string, a function's body, a comment.
    Quoted,
}

/// Tells what a place in a text is: asked for ever later places, so that a text is walked through once.
struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    region_end: usize,
    statement_begins: bool,
    runs_bodies: bool,
    own_params: bool,
    do_tag: &'a [u8],
}

impl<'a> Lexer<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            region_end: 0,
            statement_begins: true,
            runs_bodies: false,
            own_params: false,
            do_tag: b"",
        }
    }

    fn context(&mut self, target: usize) -> Context {
        loop {
            if target < self.region_end {
                return Context::Quoted;
            }
            self.at = self.at.max(self.region_end);
            if self.at >= target {
                return Context::Code;
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let text = self.text;
        let at = self.at;
        let next = text.get(at + 1).copied();
        match text[at] {
            b'\'' => self.region_end = string_end(text, at + 1, false),
            b'"' => self.at = string_like_end(text, at + 1, b'"', false),
            b'-' if next == Some(b'-') => self.region_end = line_comment_end(text, at),
            b'/' if next == Some(b'*') => self.region_end = block_comment_end(text, at),
            b'$' => match dollar_tag(&text[at..]) {
                Some(tag) if self.do_tag == tag => {
                    self.do_tag = b"";
                    self.at += tag.len();
                }
                Some(tag) if self.runs_bodies && self.do_tag.is_empty() => {
                    self.do_tag = tag;
                    self.at += tag.len();
                }
                Some(tag) => self.region_end = dollar_end(text, at, tag),
                None => self.at += 1,
            },
            b';' => {
                self.statement_begins = self.do_tag.is_empty();
                self.at += 1;
            }
            b if is_word(b) => {
                let len = text[at..]
                    .iter()
                    .position(|b| !is_word(*b) && *b != b'$')
                    .unwrap_or(text.len() - at);
                let word = &text[at..at + len];
                self.at += len;
                if std::mem::take(&mut self.statement_begins) {
                    self.runs_bodies = is(word, b"do");
                    self.own_params = self.runs_bodies || is(word, b"prepare");
                }
                if is(word, b"e") && text.get(self.at) == Some(&b'\'') {
                    self.region_end = string_end(text, self.at + 1, true);
                }
            }
            _ => self.at += 1,
        }
    }
}

/// Where the string ends whose inside begins at `at`: behind its closing quote, or at the text's end.
fn string_end(text: &[u8], at: usize, escapes: bool) -> usize {
    string_like_end(text, at, b'\'', escapes)
}

fn string_like_end(text: &[u8], mut at: usize, quote: u8, escapes: bool) -> usize {
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let found = if escapes {
            memchr::memchr2(quote, b'\\', rest)
        } else {
            memchr::memchr(quote, rest)
        };
        let Some(found) = found else {
            return text.len();
        };
        at += found;
        if text[at] == b'\\' || text.get(at + 1) == Some(&quote) {
            at += 2;
        } else {
            return at + 1;
        }
    }
}

fn line_comment_end(text: &[u8], at: usize) -> usize {
    memchr::memchr2(b'\n', b'\r', &text[at..]).map_or(text.len(), |n| at + n)
}

/// Block comments nest.
fn block_comment_end(text: &[u8], at: usize) -> usize {
    let mut at = at + 2;
    let mut depth = 1_u32;
    while depth > 0 {
        let rest = text.get(at..).unwrap_or_default();
        let Some(found) = memchr::memchr2(b'*', b'/', rest) else {
            return text.len();
        };
        match rest.get(found..found + 2) {
            Some(b"*/") => depth -= 1,
            Some(b"/*") => depth += 1,
            _ => {
                at += found + 1;
                continue;
            }
        }
        at += found + 2;
    }
    at
}

/// The tag (`$$` or `$word$`) that `text` begins with.
fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let len = text.get(1..)?.iter().position(|b| !is_word(*b))?;
    let tag = text.get(..len + 2)?;
    (tag.last() == Some(&b'$') && !text[1].is_ascii_digit()).then_some(tag)
}

fn dollar_end(text: &[u8], at: usize, tag: &[u8]) -> usize {
    let body = at + tag.len();
    memchr::memmem::find(&text[body..], tag).map_or(text.len(), |n| body + n + tag.len())
}

/// A statement fit for people to read: at most `max_chars` characters, literals replaced by `?`, comments
/// left out, white space squeezed. A cut text ends in `…`, a cut literal is still masked.
pub fn mask(text: &[u8], max_chars: usize) -> String {
    let cut = text.len() > SCAN_LIMIT;
    let text = String::from_utf8_lossy(text.get(..SCAN_LIMIT).unwrap_or(text));
    let bytes = text.as_bytes();
    let mut out = Masked {
        text: String::new(),
        left: max_chars,
        space: false,
    };
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let next = bytes.get(at + 1).copied();
        let (piece, end) = match b {
            b'\'' => {
                let end = string_end(bytes, at + 1, false);
                if memchr::memmem::find(&bytes[at..end], b"\\'").is_some() {
                    // With standard_conforming_strings off the string goes on: nobody can tell.
                    out.push("?");
                    out.cut();
                    return out.text;
                }
                ("?", end)
            }
            b'"' => {
                let end = string_like_end(bytes, at + 1, b'"', false);
                (text.get(at..end).unwrap_or("?"), end)
            }
            b'-' if next == Some(b'-') => (" ", line_comment_end(bytes, at)),
            b'/' if next == Some(b'*') => (" ", block_comment_end(bytes, at)),
            b'$' if next.is_some_and(|b| b.is_ascii_digit()) => {
                let end = at + 1 + word_at(bytes, at + 1).len();
                (text.get(at..end).unwrap_or("?"), end)
            }
            b'$' => match dollar_tag(&bytes[at..]) {
                Some(tag) => ("?", dollar_end(bytes, at, tag)),
                None => ("$", at + 1),
            },
            b'0'..=b'9' => ("?", number_end(bytes, at)),
            b'.' if next.is_some_and(|b| b.is_ascii_digit()) => ("?", number_end(bytes, at)),
            b if is_word(b) => {
                let len = bytes[at..]
                    .iter()
                    .position(|b| !is_word(*b) && *b != b'$')
                    .unwrap_or(bytes.len() - at);
                let end = at + len;
                let prefix = matches!(
                    &bytes[at..end],
                    [b'e' | b'E' | b'b' | b'B' | b'x' | b'X' | b'n' | b'N']
                );
                if prefix && bytes.get(end) == Some(&b'\'') {
                    ("?", string_end(bytes, end + 1, matches!(b, b'e' | b'E')))
                } else {
                    (text.get(at..end).unwrap_or("?"), end)
                }
            }
            b if b.is_ascii_whitespace() || b.is_ascii_control() => (" ", at + 1),
            _ => (text.get(at..=at).unwrap_or("?"), at + 1),
        };
        if !out.push(piece) {
            return out.text;
        }
        at = end;
    }
    if cut {
        out.cut();
    }
    out.text
}

fn number_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at;
    while let Some(b) = bytes.get(end) {
        let exponent = matches!(b, b'+' | b'-')
            && end > at
            && matches!(bytes[end - 1], b'e' | b'E')
            && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        if !(is_word(*b) || *b == b'.' || exponent) {
            break;
        }
        end += 1;
    }
    end
}

struct Masked {
    text: String,
    left: usize,
    space: bool,
}

impl Masked {
    /// Appends a piece; false when it is full.
    fn push(&mut self, piece: &str) -> bool {
        if piece == " " {
            self.space = !self.text.is_empty();
            return true;
        }
        let space = std::mem::take(&mut self.space).then_some(' ');
        for c in space.into_iter().chain(piece.chars()) {
            if self.left == 0 {
                self.text.pop();
                self.cut();
                return false;
            }
            self.left -= 1;
            self.text.push(if c.is_control() { ' ' } else { c });
        }
        true
    }

    fn cut(&mut self) {
        self.text.push('…');
    }
}
