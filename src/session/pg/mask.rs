//! Statement texts made fit for people: shortened, without the literals that may be secrets.

use super::hints::SCAN_LIMIT;
use super::lexical::{
    block_comment_end, dollar_end, dollar_tag, is_word, line_comment_end, string_end,
    string_like_end, word_at,
};

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
                    if out.push("?") {
                        out.cut();
                    }
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
                self.cut();
                return false;
            }
            self.left -= 1;
            self.text.push(if c.is_control() { ' ' } else { c });
        }
        true
    }

    fn cut(&mut self) {
        if self.left == 0 {
            self.text.pop();
        }
        self.text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn safety_27_literals_go_and_the_rest_stays_readable() {
        for (text, wanted) in [
            (
                "SELECT  *\n FROM t WHERE a = 'secret' AND b=42",
                "SELECT * FROM t WHERE a = ? AND b=?",
            ),
            (
                "SELECT 'it''s', E'a\\'b', U&'x', B'101', x'1F'",
                "SELECT ?, ?, U&?, ?, ?",
            ),
            (
                "SELECT $1, $$ body 'x' $$, $t$ $$ $t$, 1.5e-3, .5, 0x1F, t1.c2",
                "SELECT $1, ?, ?, ?, ?, ?, t1.c2",
            ),
            (
                "/* hint */ SELECT \"Foo 1\" -- tail 'x'\n, 2",
                "SELECT \"Foo 1\" , ?",
            ),
            ("SELECT 'open secret", "SELECT ?"),
            ("SELECT $x$ open secret", "SELECT ?"),
            ("SELECT e'open \\' secret", "SELECT ?"),
            ("SELECT naïve, '☃'", "SELECT naïve, ?"),
            ("SELECT 'a\\', 'secret', 1", "SELECT ?…"),
            ("", ""),
        ] {
            assert_eq!(mask(text.as_bytes(), 200), wanted, "{text}");
        }
        assert_eq!(mask(b"SELECT a FROM b", 8), "SELECT …");
        assert_eq!(mask(b"SELECT a", 8), "SELECT a");
        // What ends a text early counts, too.
        assert_eq!(mask(b"a 'x\\'", 2), "a\u{2026}");
        assert_eq!(mask(b"a 'x\\'", 3), "a \u{2026}");
        assert_eq!(
            mask(b"SELECT \xff\xfe, '\xff'", 80),
            "SELECT \u{fffd}\u{fffd}, ?"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_masked_within_the_limit(text in proptest::collection::vec(any::<u8>(), 0..200), max in 0_usize..40) {
            prop_assert!(mask(&text, max).chars().count() <= max.max(1));
        }

        #[test]
        fn what_is_quoted_never_shows(parts in proptest::collection::vec(prop::sample::select(vec![
            "a", " ", "'SECRET'", "E'\\'SECRET'", "$$SECRET$$", "$q$SECRET $$ $q$", ", ", "/* SECRET */", "--SECRET\n", "\"id\"", "1", "$1", "(",
        ]), 0..30)) {
            let text = parts.join(" ");
            for end in (0..=text.len()).filter(|n| text.is_char_boundary(*n)) {
                let masked = mask(&text.as_bytes()[..end], 1000);
                prop_assert!(!masked.contains("SECRET"), "{text} -> {masked}");
            }
        }
    }
}
