//! The `options` start-up parameter: a command line in one string, cut as PostgreSQL cuts it
//! (`pg_split_opts` and `getopt` in its sources).

use std::ops::Range;

/// Letters of switches that take a value, in `process_postgres_switches`.
const WITH_VALUE: &[u8] = b"BCDNSWcdfhkprtv-";

/// One `-c name=value` or `--name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name, dashes turned into underscores as the server does.
    pub name: Vec<u8>,
    /// Value, escapes removed.
    pub value: Vec<u8>,
    /// The bytes of `options` that give it, its switch included.
    pub span: Range<usize>,
    /// Other switches stand before it in the same word, and stay there without it.
    pub grouped: bool,
}

/// White space between words.
pub const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// A word, and where each of its bytes stood (with its backslash, if any).
struct Word {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    span: Range<usize>,
}

/// Cuts `options` into words: white space separates, a backslash takes the next byte as it is.
fn words(options: &[u8]) -> Vec<Word> {
    let mut out: Vec<Word> = Vec::new();
    let mut word: Option<Word> = None;
    let mut escaped_at = None;
    for (at, &byte) in options.iter().enumerate() {
        if escaped_at.is_none() && is_space(byte) {
            out.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_with(|| Word {
            bytes: Vec::new(),
            starts: Vec::new(),
            span: at..at,
        });
        word.span.end = at + 1;
        if escaped_at.is_none() && byte == b'\\' {
            escaped_at = Some(at);
        } else {
            word.bytes.push(byte);
            word.starts.push(escaped_at.take().unwrap_or(at));
        }
    }
    out.extend(word);
    out
}

/// The settings given by `-c` and `--`, in order. Other switches are the server's business, and so is
/// everything from the first word on that is no switch.
pub fn settings(options: &[u8]) -> Vec<Setting> {
    let words = words(options);
    let mut out = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if word.bytes.first() != Some(&b'-') || word.bytes.len() < 2 || word.bytes == b"--" {
            break;
        }
        let Some(at) = word
            .bytes
            .iter()
            .skip(1)
            .position(|letter| WITH_VALUE.contains(letter))
        else {
            continue;
        };
        let letter_at = at + 1;
        let inline = word.bytes.get(letter_at + 1..).unwrap_or_default();
        // The dash of "-c" goes with its letter; switches grouped before it stay.
        let start_at = if at == 0 { 0 } else { letter_at };
        let start = word
            .starts
            .get(start_at)
            .copied()
            .unwrap_or(word.span.start);
        let (text, end) = if inline.is_empty() {
            let Some(next) = rest.next() else { break };
            (next.bytes.as_slice(), next.span.end)
        } else {
            (inline, word.span.end)
        };
        if !matches!(word.bytes.get(letter_at), Some(b'c' | b'-')) {
            continue;
        }
        if let Some(equals) = memchr::memchr(b'=', text) {
            let (name, value) = text.split_at(equals);
            out.push(Setting {
                name: name
                    .iter()
                    .map(|b| if *b == b'-' { b'_' } else { *b })
                    .collect(),
                value: value.get(1..).unwrap_or_default().to_vec(),
                span: start..end,
                grouped: start_at > 0,
            });
        }
    }
    out
}

/// Cuts every setting of `name` out of `options`, with the white space behind it, and returns what remains
/// and the last value; `None` when there is none. Names are compared without case, as the server does.
pub fn take(options: &[u8], name: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut last = None;
    let mut rest = Vec::with_capacity(options.len());
    let mut from = 0;
    for setting in settings(options) {
        if !setting.name.eq_ignore_ascii_case(name.as_bytes()) {
            continue;
        }
        rest.extend_from_slice(options.get(from..setting.span.start).unwrap_or_default());
        let behind = options.get(setting.span.end..).unwrap_or_default();
        from = setting.span.end;
        if !setting.grouped {
            from += behind.iter().take_while(|b| is_space(**b)).count();
        }
        last = Some(setting.value);
    }
    let last = last?;
    rest.extend_from_slice(options.get(from..).unwrap_or_default());
    Some((rest, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(options: &str, expected: &[(&str, &str)]) {
        let got: Vec<(String, String)> = settings(options.as_bytes())
            .into_iter()
            .map(|s| {
                let text = |bytes| String::from_utf8(bytes).expect("test data is text");
                (text(s.name), text(s.value))
            })
            .collect();
        let expected: Vec<(String, String)> = expected
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(got, expected, "{options:?}");
    }

    #[test]
    fn settings_as_the_server_reads_them() {
        check("", &[]);
        check("-c a=b", &[("a", "b")]);
        check("-ca=b --c-d=e", &[("a", "b"), ("c_d", "e")]);
        check(r"-c search_path=a,\ b", &[("search_path", "a, b")]);
        check(r"-c a=\\\\", &[("a", r"\\")]);
        check("-c a=b=c", &[("a", "b=c")]);
        check("\t-c\n a=b\x0b", &[("a", "b")]);
        check("-c a", &[]);
        check("-c", &[]);
        check("-S 100 -c a=b", &[("a", "b")]);
        check("-f -c a=b", &[]);
        check("-eOc a=b", &[("a", "b")]);
        check("word -c a=b", &[]);
        check("-- -c a=b", &[]);
        check("-c a=+1", &[("a", "+1")]);
        check("-c a=x\\", &[("a", "x")]);
    }

    fn take_text(options: &str) -> Option<(String, String)> {
        let text = |bytes| String::from_utf8(bytes).expect("test data is text");
        take(options.as_bytes(), "slackwater.cluster").map(|(r, v)| (text(r), text(v)))
    }

    #[test]
    fn take_cuts_exactly() {
        let taken = |rest: &str, value: &str| Some((rest.to_owned(), value.to_owned()));
        assert_eq!(take_text("-c a=b"), None);
        assert_eq!(take_text("-c slackwater.cluster=x"), taken("", "x"));
        assert_eq!(
            take_text("-c a=b -cslackwater.cluster=x  -c d=e"),
            taken("-c a=b -c d=e", "x")
        );
        assert_eq!(
            take_text("-c SlackWater.Cluster=x -c slackwater.cluster=y"),
            taken("", "y")
        );
        assert_eq!(
            take_text("-ec slackwater.cluster=x -c a=b"),
            taken("-e -c a=b", "x")
        );
        assert_eq!(
            take_text(r"-e\ -slackwater.cluster=x -c a=b"),
            taken(r"-e\  -c a=b", "x"),
            "behind white space that is part of the word"
        );
        assert_eq!(
            take_text(r"-c a=slackwater.cluster=x\ -c"),
            None,
            "a value that looks like it"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_spans_hold(options in proptest::collection::vec(
            proptest::sample::select(b"-c =\\ab\t.".to_vec()), 0..40)) {
            for setting in settings(&options) {
                prop_assert!(setting.span.start < setting.span.end);
                prop_assert!(setting.span.end <= options.len());
            }
        }

        #[test]
        fn what_remains_is_what_the_server_would_have_read(
            before in "(-c [ab]=[xy\\\\]{1,3} )?", after in "( -c [ab]=[xy]{0,3})?") {
            let with = format!("{before}-c slackwater.cluster=z{after}");
            let (rest, value) = take(with.as_bytes(), "slackwater.cluster").unwrap_or_default();
            let read = |options: &[u8]| -> Vec<_> {
                settings(options).into_iter().map(|s| (s.name, s.value)).collect()
            };
            let mut expected = read(with.as_bytes());
            let whole = expected.len();
            expected.retain(|(name, _)| name != b"slackwater.cluster");
            if whole > expected.len() {
                prop_assert_eq!(value, b"z");
                prop_assert_eq!(read(&rest), expected);
            }
        }
    }
}
