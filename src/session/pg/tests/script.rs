//! Tables: frames as they pass, and what the machine knows after them.
//!
//! A line is `> frames = facts` (client) or `< frames = facts` (server); facts may be left out.
//! Client: `Q`, `Q:text`, `P:text` (unnamed), `Pname`, `B`, `Ds`, `Dp`, `E`, `Cu` (unnamed statement),
//! `Cs`, `Cp`, `S`, `H`, `F`, `d`, `c`, `f`. Server: the tag; `Z:I`; errors as `E`, `E:fatal`,
//! `E:line` (in a line of COPY), `E:zero` (before the first line), `E:fail` (by CopyFail).
//! Facts: `rest` or the blocker, then `flight` when a cancel has something to hit, then `stop` when a
//! held session may send nothing now, then `u=text`, the unnamed statement that is to be restored.

use crate::session::pg::machine::{ClientFrame, Machine, ServerFrame};
use crate::wire::pg::frame::Header;
use tokio::time::Instant;

fn client(machine: &mut Machine, word: &str) {
    let (name, text) = word.split_once(':').unwrap_or((word, ""));
    let (tag, rest) = name.split_at(1);
    let mut body = Vec::new();
    match tag {
        "Q" => body.extend([text.as_bytes(), b"\0"].concat()),
        "P" => body.extend([rest.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat()),
        "B" => body.extend(b"\0\0\0\0\0\0\0\0"),
        "D" => body.extend([rest.to_uppercase().as_bytes(), b"\0"].concat()),
        "E" => body.extend(b"\0\0\0\0\0"),
        "C" if rest == "u" => body.extend(b"S\0"),
        "C" => body.extend([rest.to_uppercase().as_bytes(), b"name\0"].concat()),
        "f" => body.push(0),
        "H" | "S" => body.extend(text.as_bytes()),
        _ => {}
    }
    let tag = tag.as_bytes()[0];
    let header = Header {
        tag,
        body: body.len(),
    };
    let head = &body[..Machine::client_head(header)];
    assert_eq!(
        machine.on_client(header, head, Instant::now().into_std()),
        ClientFrame::Forward
    );
}

fn server(machine: &mut Machine, word: &str) {
    let (tag, rest) = word.split_once(':').unwrap_or((word, ""));
    let body: &[u8] = match (tag, rest) {
        ("E", "fatal") => b"VFATAL\0C57P01\0\0",
        ("E", "line") => b"VERROR\0C22P02\0WCOPY t, line 1, column a: \"x\"\0Rf\0\0",
        ("E", "zero") => b"VERROR\0C57014\0WCOPY t, line 0\0RProcessInterrupts\0\0",
        ("E", "fail") => b"VERROR\0C57014\0WCOPY t, line 2\0RCopyGetData\0\0",
        ("E", _) => b"VERROR\0CP0001\0Wfunction f() line 1\0Rf\0\0",
        ("Z", status) => status.as_bytes(),
        _ => b"",
    };
    let header = Header {
        tag: tag.as_bytes()[0],
        body: body.len(),
    };
    let seen = machine.server_head(header);
    let meaning = machine.on_server(header, &body[..seen]);
    let expected = match tag {
        "Z" => ServerFrame::Ready,
        "E" => ServerFrame::Error,
        "S" => ServerFrame::ParameterStatus,
        "A" => ServerFrame::Notification,
        _ => ServerFrame::Forward,
    };
    assert_eq!(meaning, expected, "{word}");
}

fn facts(machine: &Machine) -> String {
    let blocker = machine.wire_blocker();
    assert_eq!(machine.at_rest(), blocker.is_none(), "rest is no blocker");
    let mut facts = vec![blocker.map_or("rest", |b| b.as_str()).to_owned()];
    if machine.is_in_flight() {
        facts.push("flight".to_owned());
    }
    if !machine.may_send_in_lock_step() {
        facts.push("stop".to_owned());
    }
    if let Some(body) = machine.unnamed.to_restore() {
        let text = body.split(|b| *b == 0).nth(1).expect("its text");
        facts.push(format!("u={}", String::from_utf8_lossy(text)));
    }
    facts.join(" ")
}

fn check(script: &str) {
    let mut machine = Machine::default();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (frames, expected) = line
            .split_once('=')
            .map_or((line, None), |(f, e)| (f, Some(e)));
        let (side, frames) = frames.split_at(1);
        for word in frames.split_whitespace() {
            match side {
                ">" => client(&mut machine, word),
                "<" => server(&mut machine, word),
                _ => panic!("no side: {line}"),
            }
        }
        if let Some(expected) = expected {
            let why = machine.why_ambiguous();
            assert_eq!(
                facts(&machine),
                expected.trim(),
                "{line} {why:?} in{script}"
            );
        }
    }
}

#[test]
fn simple_queries() {
    check(
        "> Q                  = statement flight stop
         < T D D C            = statement flight stop
         < Z:I                = rest
         > Q                  = statement flight stop
         < I Z:I              = rest
         > Q Q Q              = statement flight stop
         < C Z:I T D C C E Z:I = statement flight stop
         < E Z:I              = rest",
    );
    check("> Q\n < C C T D C I\n < Z:I = rest");
    check(
        "> Q                  = statement flight stop
         < C Z:T              = transaction
         > Q                  = transaction flight stop
         < E Z:E              = transaction
         > Q
         < C Z:I              = rest",
    );
}

#[test]
fn case_37_what_comes_at_any_time_changes_nothing() {
    check(
        "< N S A              = rest
         > Q                  = statement flight stop
         < N S T A D N C S Z:I = rest
         > P:a B E S
         < N 1 S 2 A C N Z:I  = rest u=a
         < N A S              = rest u=a",
    );
}

#[test]
fn safety_01_an_implicit_transaction_stays_open_until_sync() {
    check(
        "> P:a B E H          = statement flight
         < 1 2 C              = transaction u=a
         > S                  = statement flight stop u=a
         < Z:I                = rest u=a
         > B Dp E             = statement flight u=a
         < 2 T D s            = transaction u=a
         > E Cp
         < D C 3              = transaction u=a
         > S
         < Z:I                = rest u=a",
    );
    // Nothing but a Flush: the server has seen nothing that it would answer.
    check("> H = rest\n > Pn Ds H\n < 1 t T = transaction\n > S\n < Z:I = rest");
    check("> Pn B Ds Dp E Cs Cp S\n < 1 2 t n T C 3 3\n < Z:I = rest");
    check("> P: B E S = statement flight stop\n < 1 2 I Z:I = rest u=");
}

#[test]
fn syncs_are_answered_in_order() {
    check(
        "> S S P:a B E S      = statement flight stop
         < Z:I Z:I            = statement flight stop
         < 1 2 C              = statement flight stop u=a
         < Z:I                = rest u=a",
    );
    // The commit at Sync fails: an error, and its ReadyForQuery.
    check("> P:a B E S\n < 1 2 C E = statement flight stop u=a\n < Z:I = rest u=a");
    check("> S:xx\n < E = statement flight stop\n < Z:I = rest");
}

#[test]
fn case_24_an_error_skips_to_sync_and_queries_too() {
    check(
        "> Pn B E S
         < E                  = statement flight stop
         < Z:I                = rest
         > Pn B E
         < 1 E                = transaction
         > Q F Pn B d c H     = transaction
         > S                  = statement flight stop
         < Z:I                = rest",
    );
    // Sent before the error was known.
    check("> Pn Q F H\n < E = transaction\n > S\n < Z:I = rest");
    check("> Pn Q S Q\n < E Z:I = statement flight stop\n < C Z:I = rest");
    check("> B E S B E S\n < E Z:I 2 C Z:I = rest");
    check("> Q\n < C Z:T\n > B E S\n < E Z:E = transaction\n > Q\n < C Z:I = rest");
    // A Query or a FunctionCall that fails skips nothing.
    check("> Q Q\n < E Z:I = statement flight stop\n < C Z:I = rest");
    check("> F F\n < E Z:I V Z:I = rest");
    check("> F\n < V = statement flight stop\n < Z:I = rest");
}

#[test]
fn a_query_in_a_batch_ends_it() {
    check("> P:a B E Q = statement flight stop\n < 1 2 C T D C Z:I = rest");
    check("> P:a B E Q S\n < 1 2 C C Z:I = statement flight stop\n < Z:I = rest");
    check("> P:a B E P:b B E Q\n < 1 2 C 1 2 C C Z:T = transaction\n > S\n < Z:I = rest");
    check("> Pn B E F\n < 1 2 C V Z:I = rest");
    check("> Q Pn\n < C Z:I 1 = transaction");
}

#[test]
fn the_unnamed_statement() {
    check(
        "> P:a S\n < 1 = statement flight stop u=a\n < Z:I = rest u=a
         > P:b S\n < 1 Z:I = rest u=b
         > Pn S\n < 1 Z:I = rest u=b
         > Cs Cp S\n < 3 3 Z:I = rest u=b
         > Cu S\n < 3 Z:I = rest",
    );
    let one = "> P:a S\n < 1 Z:I\n";
    check(&format!("{one} > Q\n < E Z:I = rest"));
    check(&format!("{one} > F\n < V Z:I = rest u=a"));
    // A Parse that fails has dropped the old one; one that was skipped has not.
    check(&format!("{one} > P:b S\n < E Z:I = rest"));
    check(&format!("{one} > B P:b S\n < E Z:I = rest u=a"));
    check(&format!("{one} > B P:b S P:c S\n < E Z:I 1 Z:I = rest u=c"));
    check(&format!(
        "{one} > Pn\n < E\n > P:b Cu Q S\n < Z:I = rest u=a"
    ));
    check(&format!("{one} > Pn Cu Q S\n < E Z:I = rest u=a"));
    check("> P:a P:b P:c S\n < 1 1 E Z:I = rest");
    check("> Q P:a S\n < C Z:I 1 Z:I = rest u=a");
    check("> P:a Q S\n < 1 C Z:I Z:I = rest");
}

#[test]
fn case_30_a_name_longer_than_what_is_looked_at_is_a_name() {
    let mut machine = Machine::default();
    let body = [&b"n".repeat(100_000)[..], b"\0select 1\0\0\0"].concat();
    let header = Header {
        tag: b'P',
        body: body.len(),
    };
    let head = &body[..Machine::client_head(header)];
    machine.on_client(header, head, Instant::now().into_std());
    client(&mut machine, "S");
    server(&mut machine, "1");
    server(&mut machine, "Z:I");
    assert_eq!(
        facts(&machine),
        "rest",
        "no unnamed statement, large or not"
    );
}

#[test]
fn copy_out() {
    check("> Q\n < H = copy flight stop\n < d d c = statement flight stop\n < C Z:I = rest");
    check("> Pn B E S\n < 1 2 H d c C Z:I = rest");
    check("> Q\n < H d E = statement flight stop\n < Z:I = rest");
    check("> Pn B E S\n < 1 2 H d E = statement flight stop\n < Z:I = rest");
}

#[test]
fn copy_in() {
    check(
        "> Q                  = statement flight stop
         < G                  = copy flight
         > d d                = copy flight
         > c                  = statement flight stop
         < C                  = statement flight stop
         < Z:I                = rest",
    );
    check("> Q\n < G\n > d f = statement flight stop\n < E:fail Z:I = rest\n > c = rest");
    // It fails while the client still sends.
    check(
        "> Q\n < G\n > d\n < E:line = statement flight stop\n > d c\n < Z:I = rest\n > d c f = rest",
    );
    // All of it sent before CopyInResponse.
    check("> Q d c = statement flight stop\n < G C Z:I = rest");
    check("> Q d f Q\n < G E:fail Z:I C Z:I = rest");
    // Several in one Query.
    check("> Q\n < C G\n > d c\n < C T D C G = copy flight\n > c\n < C Z:I = rest");
    check("> Q d c d c\n < G C G = statement flight stop\n < C Z:I = rest");
    // Outside COPY all of it is ignored.
    check("> d c f d = rest\n > Q\n < C Z:I = rest");
    check("> Q d c\n < C Z:I = rest");
    check("> Pn c B f E d S\n < 1 2 C Z:I = rest");
}

#[test]
fn case_34_copy_in_swallows_syncs() {
    // As libpq does it: a Sync behind Execute, another behind CopyDone.
    check(
        "> Pn B E S           = statement flight stop
         < 1 2 G              = copy flight
         > d H c              = statement flight
         > S                  = statement flight stop
         < C Z:I              = rest",
    );
    check("> Pn B E S d c S\n < 1 2 G = statement flight stop\n < C Z:I = rest");
    // Without the second one the transaction stays open.
    check("> Pn B E S d c H\n < 1 2 G C = transaction\n > S\n < Z:I = rest");
    check("> Pn B E S d c c H\n < 1 2 G C = transaction\n > S\n < Z:I = rest");
    check("> Pn B E S\n < 1 2 G\n > S S d S c H\n < C = transaction\n > S\n < Z:I = rest");
    check("> Q S d c\n < G C Z:I = rest");
}

#[test]
fn case_34_copy_that_fails_with_syncs_inside() {
    let libpq = "> Pn B E S\n < 1 2 G\n > d\n";
    // CopyFail, and an error in a line: the first Sync was read.
    check(&format!(
        "{libpq} > f S\n < E:fail = statement flight stop\n < Z:I = rest"
    ));
    check(&format!("{libpq} > c S\n < E:line Z:I = rest"));
    check(&format!(
        "{libpq} < E:line = transaction\n > d c\n > S\n < Z:I = rest"
    ));
    // A trigger's error: perhaps it was not. One reply tells.
    let doubt = format!("{libpq} > c S\n < E Z:I = ambiguous\n");
    check(&format!("{doubt} < Z:I = rest"));
    check(&format!(
        "{doubt} > Q\n < T = statement flight stop\n < D C Z:I = rest"
    ));
    check(&format!(
        "{doubt} > Q\n < Z:I = statement flight stop\n < C Z:I = rest"
    ));
    check(&format!(
        "{doubt} > Q\n < E = statement flight stop\n < Z:I = rest"
    ));
    check(&format!("{doubt} > P:x S\n < Z:I 1 Z:I = rest u=x"));
    check(&format!(
        "{doubt} > S\n < Z:I = ambiguous\n > Q\n < I Z:I = rest"
    ));
    check(&format!("{doubt} > F\n < V Z:I = rest"));
    check(&doubt.replace("E Z:I", "E:zero Z:I"));
    // The error is known before the client's own end of it.
    let early = format!("{libpq} < E = ambiguous\n");
    check(&format!("{early} < Z:I = rest"));
    check(&format!(
        "{early} > d c S\n < Z:I = ambiguous\n < Z:I = rest"
    ));
    check(&format!(
        "{early} > f S\n < Z:I = ambiguous\n > Q\n < C Z:I = rest"
    ));
    // Whether this Query runs nobody knows.
    check(&format!("{early} > Q S\n < C Z:I Z:I = ambiguous"));
    check("> E S d S c Q S\n < G E = ambiguous flight\n < Z:I Z:I C Z:I Z:I = ambiguous");
    // A Flush with a body is ignored inside the COPY, and an error behind it.
    check(&format!("{early} > H:xx = ambiguous\n < Z:I E = ambiguous"));
    check("> E\n < G\n > d S H:xx = ambiguous flight\n < E:line Z:I E = ambiguous");
    // A Sync behind the first data may be unread even then.
    check("> E\n < G\n > d S d c S\n < E:line Z:I = ambiguous\n > Q\n < Z:I C Z:I = rest");
    check("> E d S c S\n < G E:line Z:I = ambiguous\n < Z:I = rest");
    check("> E S d c S\n < G E:line Z:I = rest");
    // In a simple Query they are answered behind its ReadyForQuery.
    check("> Q S d c\n < G E:line Z:I = rest");
    check("> Q S d c\n < G E = ambiguous flight stop\n < Z:I = ambiguous\n < Z:I = rest");
    check("> Q S d c Q\n < G E Z:I = ambiguous flight stop\n < C Z:I = rest");
    check("> Q S d c Q\n < G E Z:I Z:I = statement flight stop\n < C Z:I = rest");
}

#[test]
fn case_40_copy_both_flows_both_ways_until_both_have_ended_it() {
    // The client ends it; what the server had sent by then is followed by its own end.
    check(
        "> Q                  = statement flight stop
         < W                  = copy flight
         < d d N d
         > d d                = copy flight
         > c                  = copy flight stop
         < d c C Z:I          = rest
         > d c                = rest",
    );
    // The end of a timeline: the server ends it, is answered, and says what comes next.
    check(
        "> Q
         < W d c              = copy flight
         > d c                = statement flight stop
         < T D C C Z:I        = rest",
    );
    // Answers that were sent before the stream began, and a command that was sent behind its end.
    check(
        "> Q d c Q
         < W c C Z:I          = statement flight stop
         < T D C Z:I          = rest",
    );
    check(
        "> Q
         < W d E              = statement flight stop
         > d                  = statement flight stop
         < Z:I                = rest",
    );
    check("> Q\n < W d\n > Q = ambiguous flight");
    check("> Q\n < W d\n > S = ambiguous flight");
    check("> Q\n < W d\n > f = ambiguous flight");
    check("> Q S\n < W = ambiguous flight");
    check("> P:a B E S\n < 1 2 W E:fatal = ambiguous u=a");
    check("< W = ambiguous");
}

#[test]
fn what_nobody_asked_for_is_ambiguous() {
    for frame in "Z:I C 1 2 3 T n t I s G H c d D V E R K W x".split(' ') {
        check(&format!("< {frame} = ambiguous"));
    }
    check("< E:fatal = rest");
    check("> Pn S\n < 2 Z:I = ambiguous");
    check("> E S\n < Z:I = ambiguous flight");
    check("> Q\n < Z:x = ambiguous");
    check("> Q\n < G\n > Pn = ambiguous flight");
    check("> E S Q\n < G = ambiguous flight");
    check("> H:xx = ambiguous");
    check("> x = ambiguous");
    // For good.
    check("< Z:I = ambiguous\n > Q\n < C Z:I = ambiguous");
}

/// What a name that nobody can read blocks, DISCARD ALL frees: once it is known that nothing was set behind it.
#[test]
fn safety_12_what_discard_all_undoes_blocks_nobody_any_more() {
    let query = |machine: &mut Machine, text: &str| {
        let body = [text.as_bytes(), b"\0"].concat();
        let header = Header {
            tag: b'Q',
            body: body.len(),
        };
        machine.on_client(header, &body, Instant::now().into_std());
    };
    let complete = |machine: &mut Machine, tag: &[u8]| {
        for (tag, body) in [(b'C', tag), (b'Z', b"I")] {
            let header = Header {
                tag,
                body: body.len(),
            };
            let seen = machine.server_head(header);
            machine.on_server(header, &body[..seen]);
        }
    };
    let mut machine = Machine::default();
    let unreadable = "select set_config('app.' || 'x', '1', false)";
    query(&mut machine, unreadable);
    complete(&mut machine, b"SELECT 1\0");
    query(&mut machine, "discard plans");
    complete(&mut machine, b"DISCARD PLANS\0");
    assert!(machine.watched.is_unreadable());
    // Sent behind it, perhaps done behind it.
    query(&mut machine, "discard all");
    query(&mut machine, unreadable);
    complete(&mut machine, b"DISCARD ALL\0");
    assert!(machine.watched.is_unreadable());
    complete(&mut machine, b"SELECT 1\0");
    query(&mut machine, "discard all");
    complete(&mut machine, b"DISCARD ALL\0");
    assert!(!machine.watched.is_unreadable());
    // A Bind that names a statement which is gone with it, cut in the middle.
    let parse = b"a\0select set_config($1, '1', false)\0\0\0";
    for (tag, body) in [(b'P', &parse[..]), (b'S', b"")] {
        let header = Header {
            tag,
            body: body.len(),
        };
        machine.on_client(header, body, Instant::now().into_std());
    }
    for tag in [b'1', b'Z'] {
        let header = Header { tag, body: 1 };
        machine.on_server(header, b"I");
    }
    query(&mut machine, "discard all");
    complete(&mut machine, b"DISCARD ALL\0");
    let header = Header { tag: b'B', body: 4 };
    machine.on_client(header, b"\0a\0\0", Instant::now().into_std());
    assert!(!machine.watched.is_unreadable());
}
