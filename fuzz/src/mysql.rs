//! MySQL: the session machine with any packets from both sides, and everything that reads packets or texts.

use arbitrary::{Arbitrary, Unstructured};
use bytes::BytesMut;
use slackwater::session::mysql::grammar::{Family, Grammar};
use slackwater::session::mysql::hints::scan;
use slackwater::session::mysql::machine::{ClientFrame, Held, Machine, ServerFrame};
use slackwater::session::mysql::mask::mask;
use slackwater::session::mysql::probe::{ProbeSpec, ProbeStep, put_check, put_probe};
use slackwater::session::mysql::refuse::Refusal;
use slackwater::session::mysql::restore::{RestoreStep, put_restore};
use slackwater::transport::codec::{Algorithm, ZstdLevel};
use slackwater::wire::mysql::packet::{Header, Reader};
use slackwater::wire::mysql::reply::{
    Column, EofPacket, ErrPacket, OkPacket, PrepareOk, Status, changes, text_row,
};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Instant;

#[derive(Debug, Arbitrary)]
struct Setting {
    mariadb: bool,
    deprecate_eof: bool,
    client_tracks: bool,
    cache_metadata: bool,
}

impl Setting {
    fn grammar(&self) -> Grammar {
        Grammar {
            family: if self.mariadb {
                Family::MariaDb
            } else {
                Family::MySql
            },
            deprecate_eof: self.deprecate_eof,
            client_tracks: self.client_tracks,
            multi_statements: true,
            cache_metadata: self.cache_metadata && self.mariadb,
            extended_metadata: false,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Client {
        seq: u8,
        command: u8,
        id: u8,
        rest: &'a [u8],
    },
    Query(&'a [u8]),
    Prepare(&'a [u8]),
    Server {
        seq: u8,
        payload: &'a [u8],
    },
    Ok {
        flags: u16,
        session: &'a [u8],
    },
    Prepared {
        id: u8,
        columns: u8,
        params: u8,
    },
    Ask,
    Moved,
    Probed(&'a [u8]),
}

/// Runs a script of packets from both sides.
pub fn machine(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setting) = Setting::arbitrary(&mut input) else {
        return;
    };
    let mut machine = Machine::new(setting.grammar(), b"app", Status::AUTOCOMMIT);
    let now = Instant::now();
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else {
            break;
        };
        match step {
            Step::Client {
                seq,
                command,
                id,
                rest,
            } => {
                send(
                    &mut machine,
                    seq % 2,
                    &[&[command, id, 0, 0, 0], rest].concat(),
                    now,
                );
            }
            Step::Query(text) => send(&mut machine, 0, &[b"\x03", text].concat(), now),
            Step::Prepare(text) => send(&mut machine, 0, &[b"\x16", text].concat(), now),
            Step::Server { seq, payload } => deliver(&mut machine, seq, payload),
            Step::Ok { flags, session } => {
                let ok = OkPacket {
                    first: 0,
                    affected_rows: 0,
                    last_insert_id: 0,
                    status: Status(flags),
                    warnings: 0,
                    info: &[],
                    session,
                };
                let mut out = BytesMut::new();
                ok.put(&mut out);
                deliver(&mut machine, 1, &out);
            }
            Step::Prepared {
                id,
                columns,
                params,
            } => {
                deliver(
                    &mut machine,
                    1,
                    &[0, id, 0, 0, 0, columns, 0, params, 0, 0, 0, 0],
                );
            }
            Step::Ask => {
                if machine.needs_status() || machine.needs_tracking() {
                    machine.put_ask(&mut BytesMut::new());
                }
            }
            Step::Moved if machine.at_rest() => {
                let ids: BTreeMap<u32, u32> = machine
                    .statements
                    .iter()
                    .map(|(id, _)| (id, id + 7))
                    .collect();
                machine.moved(Status::AUTOCOMMIT, &ids, 0);
            }
            Step::Moved => {}
            Step::Probed(payload) => machine.answered(payload),
        }
        assert_eq!(machine.at_rest(), machine.wire_blocker().is_none());
        assert!(!machine.at_rest() || (machine.is_quiet() && !machine.is_in_flight()));
        assert!(!machine.needs_status() || machine.is_quiet());
        assert!(machine.may_send_in_lock_step() || machine.is_in_flight());
    }
    machine.held();
    machine.unkept();
}

fn send(machine: &mut Machine, seq: u8, payload: &[u8], now: Instant) {
    let header = Header {
        len: payload.len(),
        seq,
    };
    let mut seen = 0;
    while machine.client_head(header, &payload[..seen]) > seen {
        seen = machine.client_head(header, &payload[..seen]);
        assert!(seen <= payload.len());
    }
    match machine.on_client(header, &payload[..seen], now) {
        ClientFrame::Patch { at, len, .. } => assert!(at + len <= header.frame_len().max(9)),
        ClientFrame::Replace { instead_of } => {
            assert!(instead_of <= header.frame_len());
            let new = Header::parse(machine.replacement()).expect("a header");
            let rest = header.frame_len() - instead_of;
            assert!(new.frame_len() <= machine.replacement().len() + rest);
        }
        _ => {}
    }
}

fn deliver(machine: &mut Machine, seq: u8, payload: &[u8]) {
    let header = Header {
        len: payload.len(),
        seq,
    };
    let mut seen = 0;
    while machine.server_head(header, &payload[..seen]) > seen {
        seen = machine.server_head(header, &payload[..seen]);
        assert!(seen <= payload.len());
    }
    if let ServerFrame::Replace { instead_of } = machine.on_server(header, &payload[..seen]) {
        assert_eq!(instead_of, header.frame_len());
        let new = Header::parse(machine.replacement()).expect("a header");
        assert_eq!(new.frame_len(), machine.replacement().len());
        assert_eq!(new.seq, seq);
    }
}

/// The body of a compressed packet that says it holds so much.
fn compressed(algorithm: Algorithm, data: &[u8]) {
    let length = data.first().map_or(0, |length| usize::from(*length));
    match algorithm.unpack(data.get(1..).unwrap_or_default(), length) {
        Ok(unpacked) => assert_eq!(unpacked.len(), length),
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidData),
    }
    let packed = algorithm.pack(data).expect("packed");
    let back = packed.map(|packed| algorithm.unpack(&packed, data.len()));
    assert!(back.is_none_or(|back| back.is_ok_and(|back| back == data)));
}

/// Texts, payloads, and the replies to a probe and a restore.
pub fn readers(data: &[u8]) {
    let hints = scan(data, slackwater::session::mysql::hints::Modes::default());
    drop(hints);
    assert!(mask(data, 40).chars().count() <= 41);
    let mut reader = Reader::new(data);
    while reader.text_value().is_ok() && !reader.is_empty() {}
    let _ = OkPacket::parse(data, true).map(|ok| changes(ok.session).count());
    let _ = (
        EofPacket::parse(data),
        ErrPacket::parse(data),
        Column::parse(data, true),
    );
    let _ = (text_row(data), PrepareOk::parse(data));
    let zstd = ZstdLevel::new(3).map(Algorithm::Zstd);
    for algorithm in zstd.into_iter().chain([Algorithm::Zlib]) {
        compressed(algorithm, data);
    }
    let mut input = Unstructured::new(data);
    let Ok(setting) = Setting::arbitrary(&mut input) else {
        return;
    };
    let grammar = setting.grammar();
    let held = Held::fresh(grammar);
    let spec = ProbeSpec {
        grammar,
        version: 110_800,
        baseline: None,
        held: &held,
        side: None,
        known: None,
        in_full: false,
    };
    let mut out = BytesMut::new();
    let mut probe = if setting.client_tracks {
        put_check(&mut out, &spec)
    } else {
        put_probe(&mut out, &spec)
    };
    let mut restore = None;
    while let Ok(payload) = <&[u8]>::arbitrary(&mut input) {
        if payload.is_empty() {
            let more = !input.is_empty();
            if more && restore.is_none() && probe.on_long_packet().is_ok() {
                continue;
            }
            break;
        }
        match &mut restore {
            None => match probe.on_packet(payload) {
                Ok(ProbeStep::More | ProbeStep::Send(_)) => {}
                Ok(ProbeStep::Done(found)) => {
                    restore = Some(put_restore(
                        &mut out,
                        &found.snapshot,
                        &found.baseline,
                        grammar,
                    ));
                }
                Err(_) => break,
            },
            Some(restore) => match restore.on_packet(payload) {
                Ok(RestoreStep::More) => {}
                Ok(RestoreStep::Done(_)) | Err(_) => break,
            },
        }
    }
    let mut machine = Machine::new(grammar, b"", Status::AUTOCOMMIT);
    let mut refusal = Refusal::default();
    for chunk in data.chunks(6) {
        let header = Header {
            len: chunk.len(),
            seq: 0,
        };
        let seen = refusal.head(header);
        refusal.on_frame(header, &chunk[..seen], &mut machine);
    }
}
