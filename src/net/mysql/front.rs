//! One session's protocol: the machine, and what its client was told.

use super::super::protocol::{Alone, Came, Discard, Frame, Kind, Protocol, Refusal, Sent};
use super::super::relay::Fatal;
use crate::session::mysql::kill::{Kill, Target};
use crate::session::mysql::machine::{ClientFrame, Machine, ServerFrame};
use crate::session::mysql::probe::Known;
use crate::session::mysql::refuse::{self, Refused};
use crate::session::mysql::snapshot::Baseline;
use crate::wire::mysql::auth::ErrorPacket;
use crate::wire::mysql::command;
use crate::wire::mysql::packet::{Header, put};
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Instant;

/// What MySQL says to a statement that was killed.
pub(super) const INTERRUPTED: (u16, [u8; 5], &str) =
    (1317, *b"70100", "Query execution was interrupted");

/// Finds the target of a KILL.
pub trait Connections: Send + Sync + std::fmt::Debug {
    /// What is known of it, for this user. A target that has no server connection is taken care of.
    fn kill(&self, kill: Kill, user: &str) -> Target;
}

/// A session of MySQL or MariaDB.
#[derive(Debug)]
pub struct Mysql {
    /// What is owed.
    pub machine: Machine,
    connections: Arc<dyn Connections>,
    user: Arc<str>,
    /// The server's version, such as 101119.
    pub(super) version: u32,
    /// What a fresh login of this kind holds there.
    pub(super) baseline: Arc<Baseline>,
    /// Which kind of login that is.
    pub(super) kind: [u8; 32],
    /// What the last probe found of variables, on the present server connection.
    pub(super) known: Option<Known>,
    /// The number that the server has for the present connection; 0: there is none.
    pub(super) connection: u32,
    /// Sequence number of the next packet that the client would take.
    next: u8,
    /// A held request that is being refused, and why.
    refused: Option<(refuse::Refusal, ErrorPacket)>,
}

impl Mysql {
    /// A session of this user, logged in.
    pub fn new(machine: Machine, connections: Arc<dyn Connections>, user: &str) -> Self {
        Self {
            machine,
            connections,
            user: Arc::from(user),
            version: 0,
            baseline: Arc::default(),
            kind: [0; 32],
            known: None,
            connection: 0,
            next: 0,
            refused: None,
        }
    }

    /// Writes an error as the next packet: the answer to what is owed, or to nothing.
    pub(super) fn put_error(&self, error: &ErrorPacket, out: &mut BytesMut) {
        put(out, self.next, |out| error.put(out));
    }

    pub(super) fn next(&self) -> u8 {
        self.next
    }
}

impl Protocol for Mysql {
    type Header = Header;

    const DISCARD_HEAD: usize = 5;

    fn client_head(&self, header: Header, seen: &[u8]) -> usize {
        self.machine.client_head(header, seen)
    }

    fn server_head(&self, header: Header, seen: &[u8]) -> usize {
        self.machine.server_head(header, seen)
    }

    fn kind(&self, _header: Header, head: &[u8]) -> Kind {
        // Inside a message nothing is asked to be seen.
        if head.first() == Some(&command::QUIT) {
            Kind::Terminate
        } else {
            Kind::Request
        }
    }

    fn on_client(
        &mut self,
        frame: Frame<'_, Header>,
        now: Instant,
        instead: &mut BytesMut,
    ) -> Sent {
        let header = frame.header;
        let verdict = match self.machine.on_client(header, frame.head(), now) {
            ClientFrame::Kill(kill) => {
                let target = self.connections.kill(kill, &self.user);
                self.machine.kill(header, frame.head(), target, now)
            }
            verdict => verdict,
        };
        if verdict == ClientFrame::ChangeUser {
            return Sent::Keep;
        }
        self.next = header.seq.wrapping_add(1);
        match verdict {
            ClientFrame::Patch { at, len, bytes } => {
                let slot = frame.bytes.get_mut(at..at + len);
                if let (Some(slot), Some(bytes)) = (slot, bytes.get(..len)) {
                    slot.copy_from_slice(bytes);
                }
                Sent::Forward
            }
            ClientFrame::Replace { instead_of } => {
                instead.extend_from_slice(self.machine.replacement());
                Sent::Instead(instead_of)
            }
            _ => Sent::Forward,
        }
    }

    fn on_server(&mut self, frame: Frame<'_, Header>, instead: &mut BytesMut) -> Came {
        let header = frame.header;
        let (requests, transactions) = (self.machine.requests, self.machine.transactions);
        let mut came = Came::default();
        match self.machine.on_server(header, frame.head()) {
            ServerFrame::Drop => {
                came.instead_of = header.frame_len();
                return came;
            }
            ServerFrame::Unasked => {
                let error = ErrorPacket::parse(frame.head());
                let whole = frame.bytes.get(..header.frame_len());
                if let (Ok(error), Some(whole)) = (error, whole) {
                    came.fatal = Some(Box::new(Fatal {
                        code: error.code.to_string(),
                        message: error.message,
                        frame: BytesMut::from(whole),
                    }));
                }
                return came;
            }
            ServerFrame::Forward => {}
            ServerFrame::Patch { at, bytes } => {
                if let Some(slot) = frame.bytes.get_mut(at..at + bytes.len()) {
                    slot.copy_from_slice(&bytes);
                }
            }
            ServerFrame::Replace { instead_of } => {
                instead.extend_from_slice(self.machine.replacement());
                came.instead_of = instead_of;
            }
        }
        self.next = header.seq.wrapping_add(1);
        if self.machine.requests != requests {
            came.ready = Some(self.machine.transactions != transactions);
        }
        came.more_results = std::mem::take(&mut self.machine.more_results);
        came
    }

    fn at_rest(&self) -> bool {
        self.machine.at_rest()
    }

    fn seems_at_rest(&self) -> bool {
        self.machine.at_rest() || self.machine.needs_status()
    }

    fn asks_at_once(&self) -> bool {
        self.machine.needs_tracking()
    }

    fn put_question(&mut self, out: &mut BytesMut) -> bool {
        let asks = self.machine.needs_status() || self.machine.needs_tracking();
        if asks {
            self.machine.put_ask(out);
        }
        asks
    }

    fn has_left_something(&self) -> bool {
        self.machine.diagnostics_pending()
    }

    fn looks_back(&self, head: &[u8]) -> bool {
        self.machine.looks_back(head)
    }

    fn is_quiet(&self) -> bool {
        self.machine.is_quiet()
    }

    fn may_send_in_lock_step(&self) -> bool {
        self.machine.may_send_in_lock_step()
    }

    fn is_in_flight(&self) -> bool {
        self.machine.is_in_flight()
    }

    fn is_running(&self) -> bool {
        self.machine.is_running()
    }

    fn is_streaming(&self) -> bool {
        self.machine.is_streaming()
    }

    fn put_refusal(&mut self, refusal: Refusal<'_>, _out: &mut BytesMut) {
        let error = match refusal {
            Refusal::Canceled => {
                let (code, state, text) = INTERRUPTED;
                ErrorPacket::new(code, state, text)
            }
            Refusal::Outage(reason) => {
                let text = format!("the database server is not available: {reason}");
                ErrorPacket::new(1105, *b"HY000", text)
            }
        };
        self.refused = Some((refuse::Refusal::default(), error));
    }

    fn put_refused(&mut self, out: &mut BytesMut) {
        if let Some((_, error)) = self.refused.take() {
            self.put_error(&error, out);
        }
    }

    fn discard(&mut self, _so_far: Discard, header: Header, head: &[u8]) -> Option<Discard> {
        let (refusal, _) = self.refused.as_mut()?;
        match refusal.on_frame(header, head, &mut self.machine) {
            Refused::Drop => Some(Discard::More),
            Refused::Answer { seq } => {
                self.next = seq;
                Some(Discard::Last)
            }
            Refused::Quit => None,
        }
    }

    fn is_alone(&self) -> bool {
        false
    }

    fn answer(&mut self, _header: Header, _head: &[u8], _out: &mut BytesMut) -> Alone {
        Alone::Forward
    }
}
