//! Scripts: client messages and expected answers as text, run straight on a server or through the proxy.
//!
//! One item per line; `#` begins a comment.
//!
//! | line | does |
//! |---|---|
//! | `Q "sql"` `P name "sql"` `B portal statement "value"...` `D S name` `D P name` `E portal rows` | the message of that letter; `-` is the empty name |
//! | `C S name` `C P name` `S` `H` `d "data"` `c` `f "reason"` `F oid "argument"...` | the same |
//! | `raw T "body"` | a message of type T, whatever its body |
//! | `repeat N line` | the line N times |
//! | `cut N` | sends all that is pending but its last N bytes, which wait for `send` or `>` |
//! | `send` | sends all that is pending |
//! | `> T D C Z(I)` | sends all that is pending, then reads exactly these answers |
//! | `> ready N` | sends all that is pending, then reads up to the Nth ReadyForQuery |
//! | `! event` | a scale event is wanted now; `! event N`: for N seconds |
//! | `! busy` | the session must be seen at work: a part of its request has reached the server |
//! | `! blocked [kind]` | the session must now be in the way of that event, and say so |
//! | `! done` | the event must complete now |
//! | `! rolled_back` | the event must come to nothing |

use super::admin::Admin;
use super::wire::{Client, Message, bind, cstr, execute, message, parse};
use super::{EVENT, SOON, wait_until};
use serde_json::json;

/// What scale events mean where the script runs.
pub(crate) trait Stage {
    /// An event is wanted now, for so many seconds.
    fn event(&mut self, seconds: u64);
    /// The session must be at work.
    fn busy(&mut self);
    /// The session must be in the event's way, for this reason.
    fn blocked(&mut self, kind: Option<&str>);
    /// The event must complete.
    fn done(&mut self);
    /// The event must come to nothing.
    fn rolled_back(&mut self);
}

/// Straight on the server: there are no events.
pub(crate) struct Direct;

impl Stage for Direct {
    fn event(&mut self, _: u64) {}
    fn busy(&mut self) {}
    fn blocked(&mut self, _: Option<&str>) {}
    fn done(&mut self) {}
    fn rolled_back(&mut self) {}
}

/// Through the proxy, as the session with this application name.
pub(crate) struct Through {
    admin: Admin,
    application: String,
    event: Option<u64>,
}

impl Through {
    /// A stage for one session.
    pub(crate) fn new(admin: Admin, application: &str) -> Self {
        Self {
            admin,
            application: application.to_owned(),
            event: None,
        }
    }
}

impl Stage for Through {
    fn event(&mut self, seconds: u64) {
        assert!(self.event.is_none(), "one event at a time");
        let options = json!({ "timeout_seconds": seconds });
        self.event = Some(self.admin.start_event(&options));
    }

    fn busy(&mut self) {
        wait_until("the session is at work", SOON, || {
            let session = self.admin.session(&self.application);
            session.is_some_and(|s| s["state"] == "active")
        });
    }

    fn blocked(&mut self, kind: Option<&str>) {
        let id = self.event.expect("an event was wanted before");
        wait_until(
            &format!("the session is in the way ({kind:?})"),
            SOON,
            || {
                let event = self.admin.event(id);
                assert!(
                    self.admin.outcome(id).is_none(),
                    "the event must not end here: {event:#}"
                );
                let blockers = self.admin.blockers(&self.application);
                kind.map_or(!blockers.is_empty(), |k| {
                    blockers.iter().any(|b| b["kind"] == k)
                })
            },
        );
    }

    fn done(&mut self) {
        if let Some(id) = self.event.take() {
            let event = self.admin.finished(id, EVENT);
            assert_eq!(
                event["outcome"],
                "completed",
                "{event:#}\n{:#?}",
                self.admin.sessions()
            );
        }
    }

    fn rolled_back(&mut self) {
        let id = self.event.take().expect("an event was wanted before");
        let event = self.admin.finished(id, EVENT);
        assert_eq!(event["outcome"], "rolled_back", "{event:#}");
    }
}

/// Runs `text` over `client`; everything that the other side sent.
pub(crate) fn run(text: &str, client: &mut Client, stage: &mut dyn Stage) -> Vec<Message> {
    let mut pending = Vec::new();
    let mut is_cut = false;
    let mut heard = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = format!("line {}: {line}", number + 1);
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            ">" => {
                is_cut = false;
                heard.extend(expect(&at, rest, client, &std::mem::take(&mut pending)));
            }
            "cut" => {
                let keep = rest.trim().parse::<usize>().expect("a number of bytes");
                let tail = pending.split_off(pending.len() - keep);
                client.send(&pending).unwrap();
                pending = tail;
                is_cut = true;
            }
            "send" => {
                is_cut = false;
                client.send(&std::mem::take(&mut pending)).unwrap();
            }
            "!" => {
                if !is_cut {
                    client.send(&std::mem::take(&mut pending)).unwrap();
                }
                match rest.split_once(' ').unwrap_or((rest, "")) {
                    ("event", "") => stage.event(300),
                    ("event", seconds) => stage.event(seconds.parse().expect("seconds")),
                    ("busy", _) => stage.busy(),
                    ("blocked", "") => stage.blocked(None),
                    ("blocked", kind) => stage.blocked(Some(kind.trim())),
                    ("done", _) => stage.done(),
                    ("rolled_back", _) => stage.rolled_back(),
                    _ => panic!("{at}: not known"),
                }
            }
            "repeat" => {
                let (count, line) = rest.split_once(' ').expect("a count and a line");
                let bytes = encode(&at, line);
                for _ in 0..count.parse::<usize>().expect("a count") {
                    pending.extend_from_slice(&bytes);
                }
            }
            _ => pending.extend(encode(&at, line)),
        }
    }
    assert!(
        pending.is_empty(),
        "the script ends with messages that were not sent"
    );
    stage.done();
    heard
}

/// Sends and reads at the same time, so that a script may be larger than all buffers on the way.
fn expect(at: &str, want: &str, client: &mut Client, bytes: &[u8]) -> Vec<Message> {
    let mut writer = client.writer();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || std::io::Write::write_all(&mut writer, bytes));
        let mut heard = Vec::new();
        if let Some(count) = want.strip_prefix("ready ") {
            for _ in 0..count.trim().parse::<usize>().expect("a count") {
                let messages = client.until_ready().unwrap_or_else(|e| {
                    panic!("{at}: {e}, after {} messages", heard.len());
                });
                heard.extend(messages);
            }
        } else {
            for label in want.split_whitespace() {
                let got = client
                    .receive()
                    .unwrap_or_else(|e| panic!("{at}: wanted {label}: {e}"));
                assert_eq!(got.label(), label, "{at}");
                heard.push(got);
            }
        }
        sender
            .join()
            .unwrap()
            .unwrap_or_else(|e| panic!("{at}: {e}"));
        heard
    })
}

/// The bytes of one line that is a message.
pub(crate) fn encode(at: &str, line: &str) -> Vec<u8> {
    let words = words(line);
    let mut words = words.iter().map(String::as_str);
    let tag = words.next().unwrap_or_default().to_owned();
    let mut next = || match words.next() {
        Some("-") => "",
        Some(word) => word,
        None => panic!("{at}: a word is missing"),
    };
    match tag.as_str() {
        "Q" => message(b'Q', &cstr(next())),
        "P" => parse(next(), next()),
        "B" => {
            let (portal, statement) = (next(), next());
            bind(portal, statement, &words.collect::<Vec<_>>())
        }
        "E" => execute(next(), next().parse().expect("a number of rows")),
        "D" | "C" => {
            let kind = next().as_bytes()[0];
            message(tag.as_bytes()[0], &[vec![kind], cstr(next())].concat())
        }
        "S" | "H" | "c" | "X" => message(tag.as_bytes()[0], &[]),
        "d" => message(b'd', next().as_bytes()),
        "raw" => message(next().as_bytes()[0], next().as_bytes()),
        "f" => message(b'f', &cstr(next())),
        "F" => {
            let mut body = next()
                .parse::<u32>()
                .expect("an oid")
                .to_be_bytes()
                .to_vec();
            let values: Vec<&str> = words.collect();
            body.extend([0, 0]);
            body.extend((values.len() as u16).to_be_bytes());
            for value in values {
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value.as_bytes());
            }
            body.extend([0, 0]);
            message(b'F', &body)
        }
        _ => panic!("{at}: not known"),
    }
}

/// Words between spaces; a quoted one may hold spaces, `\n`, `\0` and `\"`. `{N}` in one is N bytes of `x`.
fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let mut word = String::new();
        match c {
            ' ' => continue,
            '"' => {
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => match chars.next() {
                            Some('n') => word.push('\n'),
                            Some('0') => word.push('\0'),
                            Some(other) => word.push(other),
                            None => {}
                        },
                        c => word.push(c),
                    }
                }
            }
            c => {
                word.push(c);
                while let Some(c) = chars.next_if(|c| *c != ' ') {
                    word.push(c);
                }
            }
        }
        out.push(blow_up(&word));
    }
    out
}

fn blow_up(word: &str) -> String {
    let Some((head, rest)) = word.split_once('{') else {
        return word.to_owned();
    };
    let sized = rest
        .split_once('}')
        .and_then(|(n, tail)| Some((n.parse::<usize>().ok()?, tail)));
    match sized {
        Some((count, tail)) => format!("{head}{}{tail}", "x".repeat(count)),
        None => word.to_owned(),
    }
}
