//! The lexical parts of SQL text as MySQL and MariaDB read it: words, strings, comments, variables.
//!
//! What is inside `/*! ... */` or `/*M! ... */` counts as code, whatever version it names: hints are about what may
//! have run. Where a text can be read in two ways ([`Lexer::unsure`]) nothing that follows is certain.

/// How the session has texts read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// Double quotes are those of identifiers; `None`: not known.
    pub ansi_quotes: Option<bool>,
    /// Backslashes are no escapes.
    pub no_backslash_escapes: bool,
}

/// One part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword, an identifier, a number.
    Word(&'a [u8]),
    /// An identifier in quotes: what is between them, as it stands there.
    Quoted(&'a [u8]),
    /// A string.
    Text,
    /// `@name`.
    UserVariable,
    /// `@@name`, the `@@` alone.
    SystemVariable,
    /// Any other byte.
    Other(u8),
}

impl Token<'_> {
    /// The word, in any case.
    pub(super) fn is(&self, lower: &[u8]) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(lower))
    }
}

/// Cuts a text into tokens.
#[derive(Debug, Clone)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    modes: Modes,
    /// Inside `/*! ... */`.
    executable: bool,
    /// The text, or a part of it, can be read in two ways.
    pub(super) unsure: bool,
}

const fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || b >= 0x80
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], modes: Modes) -> Self {
        Self {
            text,
            at: 0,
            modes,
            executable: false,
            unsure: false,
        }
    }

    /// Where the last token ended.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What was read since a token's beginning.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    /// The next token and where it begins.
    pub(super) fn next(&mut self) -> Option<(usize, Token<'a>)> {
        self.skip_space();
        let start = self.at;
        let token = match self.byte(0)? {
            b'\'' => {
                self.string(b'\'', !self.modes.no_backslash_escapes);
                Token::Text
            }
            b'"' => {
                let body = match self.modes.ansi_quotes {
                    Some(true) => self.string(b'"', false),
                    Some(false) => self.string(b'"', !self.modes.no_backslash_escapes),
                    None => {
                        let body = self.string(b'"', !self.modes.no_backslash_escapes);
                        self.unsure |= body.contains(&b'\\');
                        body
                    }
                };
                match self.modes.ansi_quotes {
                    Some(true) => Token::Quoted(body),
                    _ => Token::Text,
                }
            }
            b'`' => Token::Quoted(self.string(b'`', false)),
            b'@' if self.byte(1) == Some(b'@') => {
                self.at += 2;
                Token::SystemVariable
            }
            b'@' => {
                self.at += 1;
                match self.byte(0) {
                    Some(quote @ (b'\'' | b'"' | b'`')) => {
                        let escapes = quote != b'`' && !self.modes.no_backslash_escapes;
                        self.string(quote, escapes);
                    }
                    _ => {
                        self.word_while(|b| is_word(b) || b == b'.');
                    }
                }
                Token::UserVariable
            }
            b if is_word(b) => Token::Word(self.word_while(is_word)),
            b => {
                self.at += 1;
                Token::Other(b)
            }
        };
        Some((start, token))
    }

    fn word_while(&mut self, belongs: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|b| !belongs(*b)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        while let Some(b) = self.byte(0) {
            match b {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0 => self.at += 1,
                b'#' => self.line(),
                // Behind two dashes a space has to come, or `5--1` would be a comment.
                b'-' if self.byte(1) == Some(b'-')
                    && self
                        .byte(2)
                        .is_none_or(|b| b.is_ascii_whitespace() || b.is_ascii_control()) =>
                {
                    self.line();
                }
                b'/' if self.byte(1) == Some(b'*') => self.comment(),
                b'*' if self.executable && self.byte(1) == Some(b'/') => {
                    self.executable = false;
                    self.at += 2;
                }
                _ => break,
            }
        }
    }

    fn line(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += memchr::memchr(b'\n', rest).map_or(rest.len(), |n| n + 1);
    }

    fn comment(&mut self) {
        let mark = match (self.byte(2), self.byte(3)) {
            (Some(b'!'), _) => 3,
            (Some(b'M'), Some(b'!')) => 4,
            _ => {
                let rest = self.text.get(self.at + 2..).unwrap_or_default();
                self.at += 2 + memchr::memmem::find(rest, b"*/").map_or(rest.len(), |n| n + 2);
                return;
            }
        };
        self.at += mark;
        // The version: five or six digits, where there is one.
        let digits = self.text.get(self.at..).unwrap_or_default();
        let digits = digits
            .iter()
            .take(6)
            .take_while(|b| b.is_ascii_digit())
            .count();
        self.at += if digits >= 5 { digits } else { 0 };
        // One inside another: where it ends depends on versions.
        self.unsure |= self.executable;
        self.executable = true;
    }

    /// What is between the quotes, up to the end of the text if they are not closed.
    fn string(&mut self, quote: u8, escapes: bool) -> &'a [u8] {
        let start = self.at + 1;
        let mut at = start;
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let found = memchr::memchr2(quote, b'\\', rest);
            let Some(found) = found else {
                self.at = self.text.len();
                self.unsure = true;
                return rest;
            };
            at += found;
            let before = at.checked_sub(1).and_then(|n| self.text.get(n));
            // Second bytes of characters in sjis, big5 and gbk look like this.
            let halved = at > start && before.is_some_and(|b| *b >= 0x80);
            if self.text.get(at) == Some(&b'\\') {
                self.unsure |= halved;
                at += if escapes { 2 } else { 1 };
            } else if self.text.get(at + 1) == Some(&quote) {
                at += 2;
            } else {
                self.unsure |= halved && quote == b'`';
                self.at = at + 1;
                return self.text.get(start..at).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, modes: Modes) -> (Vec<String>, bool) {
        let mut lexer = Lexer::new(text.as_bytes(), modes);
        let mut out = Vec::new();
        while let Some((_, token)) = lexer.next() {
            out.push(match token {
                Token::Word(w) => String::from_utf8_lossy(w).into_owned(),
                Token::Quoted(w) => format!("`{}`", String::from_utf8_lossy(w)),
                Token::Text => "''".to_owned(),
                Token::UserVariable => "@".to_owned(),
                Token::SystemVariable => "@@".to_owned(),
                Token::Other(b) => char::from(b).to_string(),
            });
        }
        (out, lexer.unsure)
    }

    #[test]
    fn texts_are_cut_as_the_servers_cut_them() {
        let usual = Modes {
            ansi_quotes: Some(false),
            no_backslash_escapes: false,
        };
        let ansi = Modes {
            ansi_quotes: Some(true),
            ..usual
        };
        let bare = Modes {
            no_backslash_escapes: true,
            ..usual
        };
        for (text, modes, wanted, unsure) in [
            (
                "SELECT 'a''b\\'c', \"d\" x",
                usual,
                "SELECT '' , '' x",
                false,
            ),
            ("SELECT 'a\\' x", bare, "SELECT '' x", false),
            ("SELECT \"a\\\" x", ansi, "SELECT `a\\` x", false),
            ("SELECT \"a\" x", Modes::default(), "SELECT '' x", false),
            (
                "SELECT \"a\\\" x\" y",
                Modes::default(),
                "SELECT '' y",
                true,
            ),
            (
                "a/* b 'c */d # e\n f-- g\nh--1",
                usual,
                "a d f h - - 1",
                false,
            ),
            (
                "/*!50001 a */ b /*M!100100 c*/ d /* e */",
                usual,
                "a b c d",
                false,
            ),
            ("/*! a /* b */ c */ d", usual, "a c d", false),
            (
                "@a := @@b, @`c d`, @'e', @f.g",
                usual,
                "@ : = @@ b , @ , @ , @",
                false,
            ),
            ("`a``b` 'open", usual, "`a``b` ''", true),
            ("'\u{e9}\\' x'", usual, "''", true),
            ("get_lock/**/('a',1)", usual, "get_lock ( '' , 1 )", false),
        ] {
            let (found, doubt) = words(text, modes);
            assert_eq!(
                (found.join(" "), doubt),
                (wanted.to_owned(), unsure),
                "{text}"
            );
        }
    }
}
