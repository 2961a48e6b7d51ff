//! Statement texts made fit for people: shortened, without the literals that may be secrets.

use super::hints::SCAN_LIMIT;
use super::lexical::{Lexer, Modes, Token};

/// A statement fit for people to read: at most `max_chars` characters, literals replaced by `?`, comments
/// left out, white space squeezed. A cut text ends in `…`, a cut literal is still masked.
pub fn mask(text: &[u8], max_chars: usize) -> String {
    let head = text.get(..SCAN_LIMIT).unwrap_or(text);
    // Double quotes are taken for those of strings: what is a name then reads `?`, and no secret shows.
    let modes = Modes {
        ansi_quotes: Some(false),
        no_backslash_escapes: false,
    };
    let mut lexer = Lexer::new(head, modes);
    let mut out = String::new();
    let mut left = max_chars;
    let mut end = 0;
    while let Some((start, token)) = lexer.next() {
        let written = head.get(start..lexer.at()).unwrap_or_default();
        let piece = match token {
            Token::Text => "?".into(),
            // With backslashes that are none the string would have ended before: nobody can tell.
            _ if lexer.unsure => break,
            Token::Word(word) if word.first().is_some_and(u8::is_ascii_digit) => "?".into(),
            _ => String::from_utf8_lossy(written),
        };
        let space = (start > end && !out.is_empty()).then_some(' ');
        end = lexer.at();
        for c in space.into_iter().chain(piece.chars()) {
            if left == 0 {
                out.pop();
                out.push('…');
                return out;
            }
            left -= 1;
            out.push(if c.is_control() { ' ' } else { c });
        }
        if token == Token::Text
            && (lexer.unsure || written.windows(2).any(|w| w == b"\\'" || w == b"\\\""))
        {
            if left == 0 {
                out.pop();
            }
            out.push('…');
            return out;
        }
    }
    if (head.len() < text.len() || lexer.unsure) && !out.ends_with('…') {
        if left == 0 {
            out.pop();
        }
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn safety_27_mysql_literals_go_and_the_rest_stays_readable() {
        for (text, wanted) in [
            (
                "SELECT  *\n FROM t WHERE a = 'secret' AND b=42",
                "SELECT * FROM t WHERE a = ? AND b=?",
            ),
            (
                "SET @a = \"it's\", `b c` = x'1F' # tail",
                "SET @a = ?, `b c` = x?",
            ),
            ("SELECT 'a\\', 'secret', 1", "SELECT ?…"),
            ("SELECT 'open secret", "SELECT ?…"),
            ("/* hint */ SELECT 1.5", "SELECT ?.?"),
            ("", ""),
        ] {
            assert_eq!(mask(text.as_bytes(), 200), wanted, "{text}");
        }
        assert_eq!(mask(b"SELECT a FROM b", 8), "SELECT …");
    }

    proptest! {
        #[test]
        fn any_text_is_masked_within_the_limit(text in proptest::collection::vec(any::<u8>(), 0..200), max in 1_usize..40) {
            prop_assert!(mask(&text, max).chars().count() <= max + 1);
        }

        #[test]
        fn what_is_quoted_never_shows(parts in proptest::collection::vec(prop::sample::select(vec![
            "a", " ", "'SECRET'", "\"SECRET\"", "'\\'SECRET'", ", ", "/* SECRET */", "# SECRET\n", "`id`", "1", "(",
        ]), 0..30)) {
            let text = parts.join(" ");
            for end in (0..=text.len()).filter(|n| text.is_char_boundary(*n)) {
                let masked = mask(&text.as_bytes()[..end], 1000);
                prop_assert!(!masked.contains("SECRET"), "{text} -> {masked}");
            }
        }
    }
}
