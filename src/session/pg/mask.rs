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
