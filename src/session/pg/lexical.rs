//! The lexical parts of SQL text that hints and masking need: words, strings, comments, dollar quotes.

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

pub(super) const fn is_word(b: u8) -> bool {
    WORD[b as usize]
}

pub(super) fn is(word: &[u8], lower: &[u8]) -> bool {
    word.eq_ignore_ascii_case(lower)
}

pub(super) fn word_at(text: &[u8], at: usize) -> &[u8] {
    let rest = text.get(at..).unwrap_or_default();
    let end = rest.iter().position(|b| !is_word(*b)).unwrap_or(rest.len());
    &rest[..end]
}

/// The first byte at or after `at` that is neither white space nor in a comment.
pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    /// Runs now.
    Code,
    /// A string, a function's body, a comment.
    Quoted,
}

/// Tells what a place in a text is: asked for ever later places, so that a text is walked through once.
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    region_end: usize,
    statement_begins: bool,
    runs_bodies: bool,
    /// `$n` is a parameter of PREPARE or of a DO body, not of a Bind.
    pub(super) own_params: bool,
    do_tag: &'a [u8],
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
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

    pub(super) fn context(&mut self, target: usize) -> Context {
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

    /// A token begins here, and runs now. (A name in double quotes is one token.)
    pub(super) fn is_token(&mut self, at: usize) -> bool {
        self.context(at) == Context::Code && self.at == at
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
pub(super) fn string_end(text: &[u8], at: usize, escapes: bool) -> usize {
    string_like_end(text, at, b'\'', escapes)
}

pub(super) fn string_like_end(text: &[u8], mut at: usize, quote: u8, escapes: bool) -> usize {
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

pub(super) fn line_comment_end(text: &[u8], at: usize) -> usize {
    memchr::memchr2(b'\n', b'\r', &text[at..]).map_or(text.len(), |n| at + n)
}

/// Block comments nest.
pub(super) fn block_comment_end(text: &[u8], at: usize) -> usize {
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
pub(super) fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let len = text.get(1..)?.iter().position(|b| !is_word(*b))?;
    let tag = text.get(..len + 2)?;
    (tag.last() == Some(&b'$') && !text[1].is_ascii_digit()).then_some(tag)
}

pub(super) fn dollar_end(text: &[u8], at: usize, tag: &[u8]) -> usize {
    let body = at + tag.len();
    memchr::memmem::find(&text[body..], tag).map_or(text.len(), |n| body + n + tag.len())
}
