//! Tests of the machine: scripts as data, and random clients against a model of the server.

mod model;
mod rewriting;
mod script;

use super::grammar::{Family, Grammar};
use super::machine::{ClientFrame, Machine, ServerFrame};
use crate::wire::mysql::packet::{HEADER_LEN, Header};
use crate::wire::mysql::reply::Status;
use std::time::Instant;

pub(super) const AUTOCOMMIT: Status = Status::AUTOCOMMIT;

pub(super) fn grammar(family: Family, deprecate_eof: bool) -> Grammar {
    Grammar {
        family,
        deprecate_eof,
        client_tracks: false,
        multi_statements: true,
        cache_metadata: false,
        extended_metadata: false,
    }
}

/// A packet as the relay cuts it.
pub(super) fn packet(seq: u8, payload: &[u8]) -> (Header, Vec<u8>) {
    let header = Header {
        len: payload.len(),
        seq,
    };
    (header, payload.to_vec())
}

/// Tells a client's packet; what of it the server gets.
pub(super) fn send(machine: &mut Machine, seq: u8, payload: &[u8]) -> (ClientFrame, Vec<u8>) {
    let (header, payload) = packet(seq, payload);
    let mut seen = 0;
    while machine.client_head(header, &payload[..seen]) > seen {
        seen = machine.client_head(header, &payload[..seen]);
    }
    let verdict = machine.on_client(header, &payload[..seen], Instant::now());
    let mut frame = [&header.bytes()[..], &payload].concat();
    match verdict {
        ClientFrame::Patch { at, len, bytes } => frame[at..at + len].copy_from_slice(&bytes[..len]),
        ClientFrame::Replace { instead_of } => {
            frame = [machine.replacement(), &frame[instead_of..]].concat();
        }
        _ => {}
    }
    (verdict, frame)
}

/// Tells a server's packet; what of it the client gets.
pub(super) fn deliver(machine: &mut Machine, seq: u8, payload: &[u8]) -> (ServerFrame, Vec<u8>) {
    let (header, payload) = packet(seq, payload);
    let mut seen = 0;
    while machine.server_head(header, &payload[..seen]) > seen {
        seen = machine.server_head(header, &payload[..seen]);
    }
    let verdict = machine.on_server(header, &payload[..seen]);
    let mut frame = [&header.bytes()[..], &payload].concat();
    match verdict {
        ServerFrame::Patch { at, bytes } => frame[at..at + 4].copy_from_slice(&bytes),
        ServerFrame::Replace { instead_of } => {
            frame = [machine.replacement(), &frame[instead_of..]].concat();
        }
        ServerFrame::Drop => frame.clear(),
        _ => {}
    }
    assert!(frame.is_empty() || frame.len() >= HEADER_LEN);
    (verdict, frame)
}
