//! Statement texts: any bytes, and statements made of pieces of which some must never be shown.

use arbitrary::{Arbitrary, Unstructured};
use slackwater::session::pg::hints::{
    SCAN_LIMIT, custom_names_from_bind, deallocated, first_keyword, is_one_statement, prepared,
    scan,
};
use slackwater::session::pg::mask::mask;
use slackwater::session::pg::watched::Watched;

/// What a masked text must not have in it.
const SECRET: &str = "s3cr3t";
const NUMBER: &str = "7777777";

#[derive(Debug, Arbitrary)]
enum Piece {
    Word(u8),
    Name,
    Text(Inside),
    Escaped(Inside),
    Bits,
    Dollar(u8, Inside),
    Number(u8),
    Line,
    Block(u8),
    Sign(u8),
    Param,
}

/// What else a literal has in it.
#[derive(Debug, Arbitrary)]
struct Inside {
    before: u8,
    behind: u8,
}

const WORDS: &[&str] = &[
    "select",
    "SET",
    "set_config",
    "e",
    "b",
    "x",
    "n",
    "u&",
    "do",
    "prepare",
    "local",
    "deallocate",
    "session",
    "current_setting",
    "load",
    "pg_backup_start",
    "from",
    "value_1",
    "a$b",
    "é",
    "app.x",
    "$",
    "E",
];
const SIGNS: &[&str] = &[
    "(", ")", ",", ";", "=", "::", ".", "-", "/", "*", "\\", ":=", "[", "<",
];

impl Inside {
    fn put(&self, out: &mut String, odd: &[&str]) {
        let pick = |n: u8| odd[usize::from(n) % odd.len()];
        out.push_str(pick(self.before));
        out.push_str(SECRET);
        out.push_str(pick(self.behind));
    }
}

fn put(out: &mut String, piece: &Piece) {
    match piece {
        Piece::Word(n) => out.push_str(WORDS[usize::from(*n) % WORDS.len()]),
        Piece::Name => out.push_str("\"na\"\"me'\""),
        Piece::Text(inside) => {
            out.push('\'');
            inside.put(out, &["", " ", "''", "--", "/*", "$$", "\"", "\n", "\\\\"]);
            out.push('\'');
        }
        Piece::Escaped(inside) => {
            out.push_str("E'");
            inside.put(out, &["", "''", "\\'", "\\\\", "\\n", "\"", "\n"]);
            out.push('\'');
        }
        Piece::Bits => out.push_str("B'1010s3cr3t'"),
        Piece::Dollar(tag, inside) => {
            let tag = ["$$", "$a$", "$_b1$"][usize::from(tag % 3)];
            out.push_str(tag);
            inside.put(out, &["", "'", "\"", "$", "$c$", "--", "/*", "\\"]);
            out.push_str(tag);
        }
        Piece::Number(form) => {
            let form =
                ["{}", "{}.{}", ".{}", "1e{}", "0x{}", "1_{}", "{}e-{}"][usize::from(form % 7)];
            out.push_str(&form.replace("{}", NUMBER));
        }
        Piece::Line => out.push_str("-- s3cr3t ' \" $$ /*\n"),
        Piece::Block(depth) => {
            let depth = usize::from(depth % 3) + 1;
            out.push_str(&"/* ' ".repeat(depth));
            out.push_str(SECRET);
            out.push_str(&" \" $$ */".repeat(depth));
        }
        Piece::Sign(n) => out.push_str(SIGNS[usize::from(*n) % SIGNS.len()]),
        Piece::Param => out.push_str("$1"),
    }
}

/// Any bytes as a statement.
pub fn any(text: &[u8]) {
    let hints = scan(text);
    assert_eq!(hints.cut, text.len() > SCAN_LIMIT);
    for name in &hints.custom_names {
        assert!(name.contains('.') && *name == name.to_ascii_lowercase());
    }
    assert!(first_keyword(text).len() <= text.len());
    for name in [prepared(text), deallocated(text)].into_iter().flatten() {
        assert!(name.len() <= text.len());
    }
    assert!(deallocated(text).is_none() || is_one_statement(text));
    for most in [0, 1, 20, usize::MAX] {
        let masked = mask(text, most);
        assert!(
            masked.chars().count() <= most.max(1),
            "{masked:?} of {:?}, {most}",
            String::from_utf8_lossy(text)
        );
        assert!(!masked.chars().any(char::is_control));
    }
    let mut watched = Watched::default();
    watched.on_text(None, text);
    watched.on_text(Some(b""), text);
    watched.on_text(Some(b""), b"select set_config($1, $2, false)");
    watched.on_bind(b"", text);
    let _ = custom_names_from_bind(text, &[1, 2]);
    assert!(watched.new_names().all(|name| name.contains('.')));
    assert_eq!(watched.new_names().count(), 0);
}

/// A statement of known pieces: what is masked shows none of its literals.
pub fn masked(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut text = String::new();
    while !input.is_empty() && text.len() < 4096 {
        let (Ok(piece), Ok(space)) = (Piece::arbitrary(&mut input), u8::arbitrary(&mut input))
        else {
            break;
        };
        put(&mut text, &piece);
        text.push_str([" ", "\n", "\t "][usize::from(space % 3)]);
    }
    let shown = mask(text.as_bytes(), usize::MAX);
    assert!(!shown.contains(SECRET), "{text:?} shows {shown:?}");
    assert!(!shown.contains(NUMBER), "{text:?} shows {shown:?}");
    any(text.as_bytes());
}
