//! What is sent in place of packets, both ways.

use super::{AUTOCOMMIT, deliver, grammar, now, send};
use crate::session::mysql::grammar::{Family, Grammar};
use crate::session::mysql::kill::{Kill, Target};
use crate::session::mysql::machine::{ClientFrame, Machine, ServerFrame};
use crate::session::mysql::refuse::{Refusal, Refused};
use crate::wire::mysql::command;
use crate::wire::mysql::packet::{HEADER_LEN, Header, MAX_PAYLOAD, Reader, put_lenenc_bytes};
use crate::wire::mysql::reply::{OK, OkPacket, Status, change};
use bytes::{BufMut, BytesMut};
use std::collections::BTreeMap;

fn machine() -> Machine {
    Machine::new(grammar(Family::MariaDb, true), b"app", AUTOCOMMIT)
}

fn prepare(machine: &mut Machine, real: u32, params: u16) -> u32 {
    send(machine, 0, b"\x16SELECT ?");
    answer_prepare(machine, real, params)
}

fn answer_prepare(machine: &mut Machine, real: u32, params: u16) -> u32 {
    let mut payload = BytesMut::new();
    payload.put_u8(OK);
    payload.put_u32_le(real);
    payload.put_u16_le(0);
    payload.put_u16_le(params);
    payload.put_slice(&[0; 3]);
    let (_, frame) = deliver(machine, 1, &payload);
    for _ in 0..params {
        deliver(machine, 2, b"\x03def");
    }
    u32::from_le_bytes(frame[5..9].try_into().unwrap())
}

fn execute(id: u32, types: Option<&[u8]>) -> Vec<u8> {
    let mut out = vec![command::STMT_EXECUTE];
    out.extend(id.to_le_bytes());
    out.extend([0, 1, 0, 0, 0, 0]);
    out.push(u8::from(types.is_some()));
    out.extend(types.unwrap_or_default());
    out.extend(b"value");
    out
}

fn ok(machine: &mut Machine) {
    let mut out = BytesMut::new();
    OkPacket {
        first: OK,
        affected_rows: 0,
        last_insert_id: 0,
        status: AUTOCOMMIT,
        warnings: 0,
        info: &[],
        session: &[],
    }
    .put(&mut out);
    deliver(machine, 1, &out);
}

#[test]
fn numbers_of_statements_are_the_sessions_own() {
    let mut machine = machine();
    assert_eq!(prepare(&mut machine, 700, 0), 1);
    assert_eq!(prepare(&mut machine, 3, 0), 2);
    let (_, frame) = send(&mut machine, 0, &execute(1, None));
    assert_eq!(frame[5..9], 700_u32.to_le_bytes());
    ok(&mut machine);
    // The server's own answer is that it does not know it.
    let (_, frame) = send(&mut machine, 0, &execute(700, None));
    assert_eq!(frame[5..9], [0; 4]);
    ok(&mut machine);
    // The last one, by a number or as it was sent together with its PREPARE.
    let (_, frame) = send(&mut machine, 0, &execute(u32::MAX, None));
    assert_eq!(frame[5..9], 3_u32.to_le_bytes());
    ok(&mut machine);
    send(&mut machine, 0, b"\x16SELECT 1");
    let (_, frame) = send(&mut machine, 0, &execute(u32::MAX, None));
    assert_eq!(frame[5..9], [0xff; 4]);
    answer_prepare(&mut machine, 9, 0);
    ok(&mut machine);
    let (_, frame) = send(
        &mut machine,
        0,
        &[&[command::STMT_CLOSE][..], &2_u32.to_le_bytes()].concat(),
    );
    assert_eq!(frame[5..9], 3_u32.to_le_bytes());
    assert!(machine.statements.get(2).is_none());
}

#[test]
fn case_11_types_are_told_again_to_another_server() {
    for bulk in [false, true] {
        let mut machine = machine();
        let told = prepare(&mut machine, 5, 2);
        let types = [8, 0, 0xfe, 0];
        let make = |types: Option<&[u8]>| {
            if !bulk {
                return execute(told, types);
            }
            let mut out = vec![command::STMT_BULK_EXECUTE];
            out.extend(told.to_le_bytes());
            out.extend([if types.is_some() { 128 } else { 0 }, 0]);
            out.extend(types.unwrap_or_default());
            out.extend(b"value");
            out
        };
        send(&mut machine, 0, &make(Some(&types)));
        ok(&mut machine);
        let (verdict, _) = send(&mut machine, 0, &make(None));
        assert!(matches!(verdict, ClientFrame::Patch { .. }), "{verdict:?}");
        ok(&mut machine);
        machine.moved(AUTOCOMMIT, &BTreeMap::from([(told, 77)]), 0);
        let (verdict, frame) = send(&mut machine, 0, &make(None));
        assert!(
            matches!(verdict, ClientFrame::Replace { .. }),
            "{verdict:?}"
        );
        let header = Header::parse(&frame).unwrap();
        assert_eq!(header.frame_len(), frame.len());
        let mut wanted = make(Some(&types));
        wanted[1..5].copy_from_slice(&77_u32.to_le_bytes());
        assert_eq!(frame[HEADER_LEN..], wanted);
        ok(&mut machine);
        // Once is enough.
        let (verdict, _) = send(&mut machine, 0, &make(None));
        assert!(matches!(verdict, ClientFrame::Patch { .. }), "{verdict:?}");
    }
}

#[test]
fn types_that_were_sent_before_the_statement_had_a_number_are_kept() {
    let mut machine = machine();
    send(&mut machine, 0, b"\x16SELECT ?");
    send(&mut machine, 0, &execute(u32::MAX, Some(&[3, 0])));
    answer_prepare(&mut machine, 4, 1);
    ok(&mut machine);
    let statement = machine.statements.get(1).unwrap();
    assert_eq!(statement.types.as_deref(), Some(&[3, 0][..]));
}

fn tracked(client_tracks: bool, entries: &[(u8, &[u8])], info: &[u8]) -> Vec<u8> {
    let grammar = Grammar {
        client_tracks,
        ..grammar(Family::MariaDb, true)
    };
    let mut machine = Machine::new(grammar, b"app", AUTOCOMMIT);
    send(&mut machine, 0, b"\x03BEGIN");
    let mut session = BytesMut::new();
    for (kind, content) in entries {
        session.put_u8(*kind);
        put_lenenc_bytes(&mut session, content);
    }
    let mut out = BytesMut::new();
    let packet = OkPacket {
        first: OK,
        affected_rows: 3,
        last_insert_id: 4,
        status: AUTOCOMMIT,
        warnings: 5,
        info,
        session: &session,
    };
    packet.put(&mut out);
    let (_, frame) = deliver(&mut machine, 1, &out);
    let header = Header::parse(&frame).unwrap();
    assert_eq!((header.frame_len(), header.seq), (frame.len(), 1));
    let left = OkPacket::parse(&frame[4..], client_tracks).unwrap();
    assert_eq!(
        (
            left.affected_rows,
            left.last_insert_id,
            left.warnings,
            left.info
        ),
        (3, 4, 5, info)
    );
    assert_eq!(
        left.status.has(Status::STATE_CHANGED),
        !left.session.is_empty()
    );
    left.session.to_vec()
}

#[test]
fn what_servers_tell_of_transactions_is_not_for_clients_that_did_not_ask() {
    let state: (u8, &[u8]) = (change::TRX_STATE, b"\x08T_______");
    let schema: (u8, &[u8]) = (change::SCHEMA, b"\x03app");
    let redirect: (u8, &[u8]) = (change::VARIABLE, b"\x0credirect_url\x01x");
    for info in [&b""[..], b"Rows matched: 1"] {
        assert!(tracked(false, &[state, schema], info).is_empty());
        assert!(tracked(true, &[state, redirect], info).is_empty());
        let left = tracked(true, &[state, schema, redirect], info);
        let mut reader = Reader::new(&left);
        assert_eq!(
            (reader.u8(), reader.lenenc_bytes()),
            (Ok(change::SCHEMA), Ok(&b"\x03app"[..]))
        );
        assert!(reader.is_empty());
    }
}

#[test]
fn what_no_server_knows_stays_unknown() {
    let mut machine = machine();
    let (_, frame) = send(&mut machine, 0, &[0x20, 1, 2]);
    assert_eq!(frame[4..], [command::UNKNOWN, 1, 2]);
}

#[test]
fn case_31_kills_reach_who_was_meant() {
    let mut machine = machine();
    let text = b"\x03KILL QUERY 12 ";
    let (verdict, _) = send(&mut machine, 0, text);
    let kill = Kill {
        target: 12,
        query_only: true,
    };
    assert_eq!(verdict, ClientFrame::Kill(kill));
    let header = Header {
        len: text.len(),
        seq: 0,
    };
    for (target, wanted) in [
        (Target::Real(90_000), &b"KILL QUERY 90000 "[..]),
        (Target::Done, b"DO 0"),
        (
            Target::Unknown,
            b"SIGNAL SQLSTATE 'HY000' SET MESSAGE_TEXT='Unknown thread id: 12', MYSQL_ERRNO=1094",
        ),
    ] {
        let verdict = machine.kill(header, text, target, now());
        assert_eq!(
            verdict,
            ClientFrame::Replace {
                instead_of: header.frame_len()
            }
        );
        assert_eq!(&machine.replacement()[5..], wanted);
        ok(&mut machine);
    }
    let (verdict, _) = send(&mut machine, 0, &[command::PROCESS_KILL, 12, 0, 0, 0]);
    assert_eq!(
        verdict,
        ClientFrame::Kill(Kill {
            target: 12,
            query_only: false
        })
    );
    let header = Header { len: 5, seq: 0 };
    let verdict = machine.kill(
        header,
        &[command::PROCESS_KILL, 12, 0, 0, 0],
        Target::Real(5),
        now(),
    );
    assert_eq!(
        verdict,
        ClientFrame::Patch {
            at: 5,
            len: 4,
            bytes: [5, 0, 0, 0]
        }
    );
}

#[test]
fn safety_11_statements_in_text_form_are_kept_with_what_they_were_prepared_under() {
    let mut machine = machine();
    let run = |machine: &mut Machine, text: &str| {
        send(machine, 0, &[&b"\x03"[..], text.as_bytes()].concat());
        ok(machine);
    };
    run(&mut machine, "PREPARE a FROM 'select 1'");
    assert_eq!(machine.unkept(), None);
    assert_eq!(
        machine.held().texts[0].statement.as_deref(),
        Some(&b"PREPARE a FROM 'select 1'"[..])
    );
    run(&mut machine, "SET NAMES latin1");
    assert_eq!(machine.unkept().unwrap().0.as_str(), "not_restorable");
    run(&mut machine, "DEALLOCATE PREPARE a");
    assert_eq!(machine.unkept(), None);
    run(&mut machine, "PREPARE b FROM @v");
    assert_eq!(machine.unkept().unwrap().0.as_str(), "unnamed_state");
    assert_eq!(machine.held().text_prepares, 2);
    run(&mut machine, "PREPARE b FROM 'select 2'");
    assert_eq!(machine.unkept(), None);
}

#[test]
fn safety_05_a_refused_request_is_dropped_up_to_its_end() {
    let mut machine = machine();
    let told = prepare(&mut machine, 5, 0);
    let mut refusal = Refusal::default();
    let small = |first: u8| {
        (
            Header { len: 5, seq: 0 },
            [&[first][..], &told.to_le_bytes()].concat(),
        )
    };
    let mut feed = |machine: &mut Machine, (header, head): (Header, Vec<u8>)| {
        let seen = refusal.head(header).min(head.len());
        refusal.on_frame(header, &head[..seen], machine)
    };
    assert_eq!(
        feed(&mut machine, small(command::STMT_SEND_LONG_DATA)),
        Refused::Drop
    );
    assert_eq!(
        feed(&mut machine, small(command::STMT_CLOSE)),
        Refused::Drop
    );
    assert!(machine.statements.get(told).is_none());
    let long = Header {
        len: MAX_PAYLOAD,
        seq: 0,
    };
    assert_eq!(
        feed(&mut machine, (long, vec![command::QUERY; 5])),
        Refused::Drop
    );
    assert_eq!(
        feed(&mut machine, (Header { len: 0, seq: 1 }, vec![])),
        Refused::Answer { seq: 2 }
    );
    assert_eq!(
        Refusal::default().on_frame(Header { len: 1, seq: 0 }, &[command::QUIT], &mut machine),
        Refused::Quit
    );
}

#[test]
fn an_answer_to_a_command_of_our_own_stays_here() {
    let mut machine = machine();
    let (_, frame) = send(&mut machine, 0, &[command::RESET_CONNECTION]);
    assert!(frame.windows(13).any(|w| w == b"session_track"));
    let mut out = BytesMut::new();
    OkPacket {
        first: OK,
        affected_rows: 0,
        last_insert_id: 0,
        status: AUTOCOMMIT,
        warnings: 0,
        info: &[],
        session: &[],
    }
    .put(&mut out);
    assert_eq!(deliver(&mut machine, 1, &out).0, ServerFrame::Forward);
    assert_eq!(deliver(&mut machine, 1, &out).0, ServerFrame::Drop);
}
