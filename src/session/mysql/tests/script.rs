//! Tables: packets as they pass, and what the machine knows after them.
//!
//! A line is `> packets = facts` (client) or `< packets = facts` (server); facts may be left out.
//! Client: `q:text`, `db`, `p:text`, `e:id` (no parameters), `e:id:cursor`, `f:id`, `c:id`, `r:id`, `l:id`, `ping`,
//! `stat`, `list`, `reset`, `opt:n`, `dump`, `what` (no command of any server), `data:n` (a file's n bytes),
//! `auth`, `big` (a query whose packet goes on), `cont:n`.
//! Server: `ok`, `eof`, `end` (what ends rows by the capabilities), each with `:flags` of `t` (transaction), `m` (more
//! results), `c` (cursor), `l` (last row) and `:S=text` for characteristics, `:L`, `:U` for tables locked or not;
//! `err`, `cols:n`, `def`, `row`, `row:first byte`, `file`, `prep:id:columns:params`, `str`, `switch`.
//! Facts: `rest` or the blocker, then `flight` when a KILL QUERY has something to hit, `stop` when a held session
//! may send nothing now, `ask` when only the server can tell whether it rests. A line `!` asks it.

use super::{AUTOCOMMIT, deliver, grammar, send};
use crate::session::mysql::grammar::{Family, Grammar};
use crate::session::mysql::machine::{ClientFrame, Machine, ServerFrame};
use crate::wire::mysql::command;
use crate::wire::mysql::packet::{Header, MAX_PAYLOAD, put_lenenc, put_lenenc_bytes};
use crate::wire::mysql::reply::{EOF, EofPacket, ErrPacket, OK, OkPacket, Status, change};
use bytes::{BufMut, BytesMut};
use std::time::Instant;

fn client(machine: &mut Machine, word: &str) {
    let (name, text) = word.split_once(':').unwrap_or((word, ""));
    let (id, rest) = text.split_once(':').unwrap_or((text, ""));
    let with_id = |command: u8, tail: &[u8]| {
        let id: u32 = if id == "last" {
            u32::MAX
        } else {
            id.parse().unwrap_or(0)
        };
        [&[command][..], &id.to_le_bytes(), tail].concat()
    };
    let mut seq = 0;
    let payload = match name {
        "q" => [&[command::QUERY], text.as_bytes()].concat(),
        "db" => [&[command::INIT_DB], &b"app"[..]].concat(),
        "p" => [&[command::STMT_PREPARE], text.as_bytes()].concat(),
        "e" => with_id(
            command::STMT_EXECUTE,
            &[u8::from(rest == "cursor"), 1, 0, 0, 0],
        ),
        "f" => with_id(command::STMT_FETCH, &[1, 0, 0, 0]),
        "c" => with_id(command::STMT_CLOSE, &[]),
        "r" => with_id(command::STMT_RESET, &[]),
        "l" => with_id(command::STMT_SEND_LONG_DATA, b"\0\0data"),
        "ping" => vec![command::PING],
        "stat" => vec![command::STATISTICS],
        "list" => [&[command::FIELD_LIST], &b"t\0"[..]].concat(),
        "reset" => vec![command::RESET_CONNECTION],
        "opt" => vec![command::SET_OPTION, id.parse().unwrap_or(0), 0],
        "dump" => vec![command::BINLOG_DUMP; 11],
        "what" => vec![0x20, 1, 2],
        "auth" => {
            seq = 3;
            vec![7; 20]
        }
        "data" => {
            seq = 2;
            vec![command::QUIT; text.parse().unwrap()]
        }
        "change" => {
            let (header, _) = super::packet(0, &[command::CHANGE_USER]);
            machine.relay_change_user(header, Instant::now());
            return;
        }
        "big" | "cont" => {
            let len = if name == "big" {
                MAX_PAYLOAD
            } else {
                text.parse().unwrap()
            };
            let header = Header { len, seq: 0 };
            let head = [&[command::QUERY][..], &[b' '; 17000]].concat();
            let seen = machine.client_head(header, &head).min(head.len());
            let verdict = machine.on_client(header, &head[..seen], Instant::now());
            assert_eq!(verdict, ClientFrame::Forward);
            return;
        }
        _ => panic!("{word}"),
    };
    send(machine, seq, &payload);
}

fn flags(text: &str) -> Status {
    let bits = text.chars().map(|c| match c {
        't' => Status::IN_TRANS.0,
        'm' => Status::MORE_RESULTS.0,
        'c' => Status::CURSOR_EXISTS.0,
        'l' => Status::LAST_ROW_SENT.0,
        _ => 0,
    });
    Status(bits.fold(AUTOCOMMIT.0, |all, bit| all | bit))
}

fn ok(first: u8, words: &[&str]) -> Vec<u8> {
    let mut session = BytesMut::new();
    let mut entry = |kind: u8, text: &[u8]| {
        let mut content = BytesMut::new();
        put_lenenc_bytes(&mut content, text);
        session.put_u8(kind);
        put_lenenc_bytes(&mut session, &content);
    };
    for word in words {
        match word.split_once('=') {
            Some(("S", text)) => entry(
                change::TRX_CHARACTERISTICS,
                text.replace('_', " ").as_bytes(),
            ),
            _ if *word == "L" => entry(change::TRX_STATE, b"_______L"),
            _ if *word == "U" => entry(change::TRX_STATE, b"________"),
            _ => {}
        }
    }
    let mut out = BytesMut::new();
    let ok = OkPacket {
        first,
        affected_rows: 0,
        last_insert_id: 0,
        status: flags(words.first().copied().unwrap_or_default()),
        warnings: 0,
        info: &[],
        session: &session,
    };
    ok.put(&mut out);
    out.to_vec()
}

fn server(machine: &mut Machine, word: &str) {
    let mut words = word.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let mut out = BytesMut::new();
    match name {
        "ok" => out.extend(ok(OK, &words)),
        "eof" => EofPacket {
            warnings: 0,
            status: flags(words.first().copied().unwrap_or_default()),
        }
        .put(&mut out),
        "end" if machine.grammar().deprecate_eof => out.extend(ok(EOF, &words)),
        "end" => return server(machine, &word.replacen("end", "eof", 1)),
        "err" => ErrPacket {
            code: 1064,
            sqlstate: b"42000",
            message: b"no",
        }
        .put(&mut out),
        "cols" => put_lenenc(&mut out, words[0].parse().unwrap()),
        "def" => out.put_slice(b"\x03def\0\0\0\x01a\0\x0c"),
        "row" => {
            let first = words
                .first()
                .map_or(1, |b| u8::from_str_radix(b, 16).unwrap());
            out.put_u8(first);
            out.put_slice(b"1234567890");
        }
        "file" => out.put_slice(b"\xfbname"),
        "prep" => {
            out.put_u8(OK);
            out.put_u32_le(words[0].parse().unwrap());
            out.put_u16_le(words[1].parse().unwrap());
            out.put_u16_le(words[2].parse().unwrap());
            out.put_slice(&[0; 3]);
        }
        "str" => out.put_slice(b"\xffUptime: 5"),
        "switch" => out.put_slice(b"\xfemysql_native_password\0nonce"),
        "event" => out.put_slice(b"\0event"),
        "bigrow" => {
            let header = Header {
                len: MAX_PAYLOAD,
                seq: 0,
            };
            let seen = machine.server_head(header, &[0xfe; 10]);
            let verdict = machine.on_server(header, &[0xfe; 10][..seen]);
            assert_eq!(verdict, ServerFrame::Forward);
            return;
        }
        _ => panic!("{word}"),
    }
    deliver(machine, 1, &out);
}

fn facts(machine: &Machine) -> String {
    let blocker = machine.wire_blocker();
    assert_eq!(
        machine.at_rest(),
        blocker.is_none(),
        "rest is no blocker: {machine:?}"
    );
    let mut facts = vec![blocker.map_or("rest", |b| b.as_str()).to_owned()];
    if machine.is_in_flight() {
        facts.push("flight".to_owned());
    }
    if !machine.may_send_in_lock_step() {
        facts.push("stop".to_owned());
    }
    if machine.needs_status() {
        facts.push("ask".to_owned());
    }
    facts.join(" ")
}

fn run_with(grammar: Grammar, script: &str) -> Machine {
    let mut machine = Machine::new(grammar, b"app", AUTOCOMMIT);
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (packets, wanted) = line.split_once(" = ").unwrap_or((line, ""));
        let (side, packets) = packets.split_at(1);
        if side == "!" {
            let mut out = BytesMut::new();
            assert!(machine.needs_status() || machine.needs_tracking(), "{line}");
            machine.put_ask(&mut out);
        }
        for word in packets.split_whitespace() {
            let word = word.replace('+', " ");
            match side {
                ">" => client(&mut machine, &word),
                _ => server(&mut machine, &word),
            }
        }
        if !wanted.is_empty() {
            assert_eq!(
                facts(&machine),
                wanted,
                "after: {line}\nof:{script}\n{machine:?}"
            );
        }
    }
    machine
}

/// Both kinds of capabilities: what ends rows, and where.
fn both(with: &str, without: &str) {
    run_with(grammar(Family::MariaDb, true), with);
    run_with(grammar(Family::MySql, false), without);
}

fn run(script: &str) -> Machine {
    run_with(grammar(Family::MariaDb, true), script)
}

#[test]
fn safety_02_at_rest_is_what_the_server_said_after_everything_was_answered() {
    both(
        "> q:SELECT = statement flight stop
         < cols:2 def def row row:fb row:00 = statement flight stop
         < end = rest
         > q:BEGIN = statement flight stop
         < ok:t = transaction
         > q:INSERT
         < ok:t = transaction
         > q:COMMIT
         < ok = rest",
        "> q:SELECT
         < cols:2 def def = statement flight stop
         < eof row row:fb = statement flight stop
         < eof = rest
         > q:BEGIN
         < ok:t = transaction
         > q:COMMIT
         < ok = rest",
    );
}

#[test]
fn case_03_rows_that_begin_like_something_else_are_rows() {
    both(
        "> q:SELECT
         < cols:1 def row:fb row:00 bigrow = statement flight stop
         < row end = rest",
        "> q:SELECT
         < cols:1 def eof row:fb row:00 row:fe = statement flight stop
         < end = rest",
    );
}

#[test]
fn case_04_an_error_ends_rows() {
    both(
        "> q:SELECT
         < cols:1 def row row err = statement ask
         ! = statement flight stop
         < ok = rest",
        "> q:SELECT
         < cols:1 def eof row err = statement ask",
    );
}

#[test]
fn case_05_ends_of_rows_are_those_that_were_agreed_on() {
    run_with(
        grammar(Family::MySql, false),
        "> q:SELECT
         < cols:1 def eof row:fe = statement flight stop
         < eof = rest",
    );
}

#[test]
fn case_06_pipelined_commands_are_answered_one_by_one() {
    run("> q:SELECT q:SELECT ping = statement flight stop
         < cols:1 def row end = statement flight stop
         < cols:1 def row end = statement flight stop
         < ok = rest");
}

#[test]
fn case_07_and_08_several_results_end_with_the_one_that_says_so() {
    both(
        "> q:SELECT;SELECT
         < cols:1 def row end:m = statement flight stop
         < ok:m = statement flight stop
         < cols:1 def end = rest
         > q:SELECT;x
         < ok:m = statement flight stop
         < err = statement ask",
        "> q:CALL
         < cols:1 def eof row eof:m = statement flight stop
         < ok = rest",
    );
}

#[test]
fn case_09_and_10_commands_without_a_reply_are_fenced_by_one_that_has_one() {
    run("> p:SELECT+?
         < prep:7:1:1 def def = rest
         > l:1 = long_data
         > c:1 = statement ask
         > ping = statement flight stop
         < ok = rest
         > c:9 = statement ask");
    let machine = run("> p:SELECT
         < prep:7:0:0 = rest
         > l:1 = long_data
         > r:1 = statement flight stop
         < ok = rest");
    assert!(!machine.statements.has_long_data());
}

#[test]
fn case_12_a_statement_whose_preparation_failed_is_not_run() {
    let machine = run("> p:x e:last
         < err = statement flight stop
         < err = statement ask");
    assert_eq!(machine.statements.iter().count(), 0);
}

#[test]
fn case_15_an_open_cursor_is_in_the_way_until_its_last_row() {
    both(
        "> p:SELECT
         < prep:3:1:0 def = rest
         > e:1:cursor
         < cols:1 def end:c = cursor
         > q:SELECT
         < cols:1 def row end = cursor
         > f:1 = statement flight stop
         < row end:c = cursor
         > f:1
         < row end:l = rest
         > e:1:cursor
         < cols:1 def end:c = cursor
         > r:1
         < ok = rest",
        "> p:SELECT
         < prep:3:1:0 def eof = rest
         > e:1:cursor
         < cols:1 def eof:c = cursor
         > f:1
         < row eof:l = rest",
    );
}

#[test]
fn a_cursor_that_is_reset_before_its_reply_came_is_closed() {
    run("> p:SELECT
         < prep:3:1:0 def = rest
         > e:1:cursor r:1
         < cols:1 def end:c = statement flight stop
         < ok = rest
         > e:1:cursor e:1
         < cols:1 def end:c = statement flight stop
         < cols:1 def row end = rest");
}

#[test]
fn case_16_a_local_file_ends_with_an_empty_packet() {
    run("> q:LOAD
         < file = copy flight
         > data:5 data:5 = copy flight
         > data:0 = statement flight stop
         < ok = rest
         > q:LOAD
         < file
         > data:0
         < err = statement ask
         > q:LOAD
         < file err = copy flight
         > data:5 = copy flight
         > data:0 = statement ask");
    run("> q:LOAD ping
         < file = ambiguous flight");
}

#[test]
fn case_17_the_dialogue_of_change_user_is_followed() {
    let machine = run("> p:SELECT
         < prep:3:0:0 = rest
         > change = statement flight
         < switch = statement flight
         > auth = statement flight
         < ok = statement ask
         ! = statement flight stop
         < ok = rest");
    assert_eq!(machine.statements.iter().count(), 0);
    run("> change
         < switch
         > auth
         < err = statement ask");
}

#[test]
fn case_18_a_reset_takes_tracking_with_it_and_it_is_set_again_unseen() {
    let machine = run("> p:SELECT
         < prep:3:0:0 = rest
         > reset = statement flight stop
         < ok = statement flight stop
         < ok = rest");
    assert_eq!(machine.statements.iter().count(), 0);
    assert_eq!(machine.tracked.database.as_deref(), Some(&b"app"[..]));
}

#[test]
fn case_19_a_client_that_changes_tracking_is_overruled_unseen() {
    let machine = run("> q:SET+session_track_transaction_info='STATE'
         < ok = statement ask
         ! = statement flight stop
         < ok = rest");
    assert_eq!(machine.tracked.wanted.as_str(), "STATE");
}

#[test]
fn case_22_an_error_leaves_the_transaction_unknown_until_the_server_is_asked() {
    run("> q:BEGIN
         < ok:t
         > q:x
         < err = statement ask
         ! = statement flight stop
         < ok:t = transaction
         > q:x
         < err = statement ask
         > q:SELECT
         < cols:1 def end:t = transaction");
}

#[test]
fn case_23_what_was_set_for_the_next_transaction_is_kept() {
    let machine = run("> q:SET+TRANSACTION
         < ok::S=SET_TRANSACTION_READ_ONLY; = rest");
    assert_eq!(
        &machine.held().characteristics[..],
        b"SET TRANSACTION READ ONLY;"
    );
    let machine = run("> q:SET+TRANSACTION
         < ok::S=SET_TRANSACTION_READ_ONLY;
         > q:SELECT
         < cols:1 def end::S= = rest");
    assert!(machine.held().characteristics.is_empty());
    // EOF does not tell that it was used up.
    run_with(
        grammar(Family::MySql, false),
        "> q:SET+TRANSACTION
         < ok::S=SET_TRANSACTION_READ_ONLY; = rest
         > q:SELECT
         < cols:1 def eof row eof = statement ask
         ! = statement flight stop
         < ok::S= = rest",
    );
}

#[test]
fn case_24_and_25_transactions_that_nobody_began_are_seen() {
    run("> q:SELECT
         < cols:1 def end:t = transaction
         > q:XA
         < ok:t:S=XA_START_'x'; = xa
         > q:XA
         < ok::S= = rest");
}

#[test]
fn case_30_locked_tables_are_seen() {
    run("> q:LOCK+TABLES+t+READ
         < ok::L = table_lock
         > q:SELECT
         < cols:1 def end = table_lock
         > q:UNLOCK+TABLES
         < ok::U = rest");
}

#[test]
fn case_01_packets_that_go_on_are_one_command() {
    run("> big = statement flight
         > cont:5 = statement flight stop
         < ok = rest
         > q:SELECT
         < cols:1 def bigrow = statement flight stop
         < row:fe = statement flight stop
         < end = rest");
}

#[test]
fn other_commands_have_the_replies_that_they_have() {
    run("> stat = statement flight stop
         < str = rest
         > list
         < def def end = rest
         > list
         < err = statement ask
         > db
         < ok = rest
         > opt:1
         < end = rest
         > what
         < err = statement ask");
    run("> dump
         < event event = replication flight");
    run("> dump
         < err = statement ask");
}

#[test]
fn nothing_is_taken_for_a_reply_that_nobody_asked_for() {
    let mut machine = Machine::new(grammar(Family::MySql, true), b"", AUTOCOMMIT);
    let mut out = BytesMut::new();
    ErrPacket {
        code: 4031,
        sqlstate: b"HY000",
        message: b"idle",
    }
    .put(&mut out);
    assert_eq!(deliver(&mut machine, 0, &out).0, ServerFrame::Unasked);
}
