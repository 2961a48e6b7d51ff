//! One session's protocol: the machine, and what its client was told.

use super::super::protocol::{Alone, Came, Discard, Frame, Kind, Protocol, Refusal, Sent};
use super::super::relay::Fatal;
use crate::session::pg::aborted::{Aborted, Next};
use crate::session::pg::machine::{Machine, ServerFrame};
use crate::wire::pg::backend::{
    ErrorFields, ErrorMessage, put_error, put_parameter_status, put_ready,
};
use crate::wire::pg::frame::{HEADER_LEN, Header, Reader};
use crate::wire::pg::parameters::Parameters;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::time::Instant;

/// What PostgreSQL says to a cancelled statement.
const CANCELLED: &str = "canceling statement due to user request";

/// Translates the process number in a NotificationResponse.
pub trait ProcessNames: Send + Sync + std::fmt::Debug {
    /// The number that the session of this server process was told.
    fn told(&self, real: i32) -> i32;
}

/// A session of PostgreSQL.
#[derive(Debug)]
pub struct Pg {
    /// What is owed.
    pub machine: Machine,
    /// ParameterStatus as the client was last told.
    params: Parameters,
    names: Arc<dyn ProcessNames>,
    /// The process number that the client was told.
    pub(in crate::net) told: i32,
    /// The session's transaction was lost with its server; the client has not ended it yet.
    pub(super) aborted: Option<Box<Aborted>>,
}

impl Pg {
    /// A session whose client was told this process number, and nothing else yet.
    pub fn new(names: Arc<dyn ProcessNames>, told: i32) -> Self {
        Self {
            machine: Machine::default(),
            params: Parameters::default(),
            names,
            told,
            aborted: None,
        }
    }

    /// ParameterStatus values of a newly attached server: the client is told those that differ.
    pub fn tell_parameters<'a>(
        &mut self,
        params: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        out: &mut BytesMut,
    ) {
        for (name, value) in params {
            if self.params.get(name) != Some(value) {
                put_parameter_status(out, name, value);
                self.set_parameter(name, value);
            }
        }
    }

    /// ParameterStatus values that the client was told during its login.
    pub fn adopt_parameters(&mut self, params: &[(Bytes, Bytes)]) {
        for (name, value) in params {
            self.params.set(name, value);
        }
    }

    /// A ParameterStatus as the client knows it.
    pub fn parameter(&self, name: &[u8]) -> Option<String> {
        self.params
            .get(name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Whole messages of the server that came while Slackwater spoke with it.
    pub fn put_whole(&mut self, mut frames: &[u8], out: &mut BytesMut) {
        while let Ok(Some(header)) = Header::parse(frames) {
            let (frame, rest) = frames.split_at(header.frame_len().min(frames.len()));
            frames = rest;
            let at = out.len();
            let kept = match header.tag {
                b'A' if renamed(frame, header, &*self.names, out) => out.len() - at,
                _ => 0,
            };
            if header.tag == b'S' {
                self.note_parameter(frame.get(HEADER_LEN..).unwrap_or_default());
            }
            out.extend_from_slice(frame.get(kept..).unwrap_or_default());
        }
    }

    fn set_parameter(&mut self, name: &[u8], value: &[u8]) {
        let params = &self.params;
        if params.get(name).is_some_and(|old| old != value) {
            let before = |name: &[u8]| params.get(name);
            self.machine.made.changed(name, value, before);
        }
        self.params.set(name, value);
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let mut reader = Reader::new(body);
        if let (Ok(name), Ok(value)) = (reader.cstr(), reader.cstr()) {
            self.set_parameter(name, value);
        }
    }
}

impl Protocol for Pg {
    type Header = Header;

    const DISCARD_HEAD: usize = 0;

    fn client_head(&self, header: Header, _seen: &[u8]) -> usize {
        Machine::client_head(header)
    }

    fn server_head(&self, header: Header, _seen: &[u8]) -> usize {
        self.machine.server_head(header)
    }

    fn kind(&self, header: Header, _head: &[u8]) -> Kind {
        if header.tag == b'X' {
            Kind::Terminate
        } else if Machine::means_nothing(header) && self.machine.is_quiet() {
            Kind::Nothing
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
        let mut instead_of = 0;
        if !self.machine.absent.is_empty() {
            let utf8 = self.params.get(b"client_encoding") == Some(b"UTF8");
            let head = frame.head();
            instead_of = self.machine.put_absent(frame.header, head, utf8, instead);
        }
        self.machine.on_client(frame.header, frame.head(), now);
        if instead.is_empty() {
            Sent::Forward
        } else {
            Sent::Instead(instead_of)
        }
    }

    fn on_server(&mut self, frame: Frame<'_, Header>, instead: &mut BytesMut) -> Came {
        let head = frame.head();
        let mut came = Came::default();
        match self.machine.on_server(frame.header, head) {
            ServerFrame::Forward => {}
            ServerFrame::Ready => came.ready = Some(head.first() == Some(&b'I')),
            ServerFrame::Drop => came.instead_of = frame.header.frame_len(),
            ServerFrame::OtherRows => came.fatal = Some(Box::new(other_rows())),
            ServerFrame::ParameterStatus => self.note_parameter(head),
            ServerFrame::Notification => {
                if renamed(frame.bytes, frame.header, &*self.names, instead) {
                    came.instead_of = instead.len();
                }
            }
            ServerFrame::Error => came.fatal = fatal(frame.bytes, frame.header, head),
        }
        came
    }

    fn at_rest(&self) -> bool {
        self.machine.at_rest()
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

    fn put_refusal(&mut self, refusal: Refusal<'_>, out: &mut BytesMut) {
        put_error(
            out,
            &match refusal {
                Refusal::Canceled => ErrorMessage::error("57014", CANCELLED),
                Refusal::Outage(reason) => {
                    ErrorMessage::error("57P03", "the database system is not available")
                        .detail(reason)
                }
            },
        );
    }

    fn put_refused(&mut self, out: &mut BytesMut) {
        put_ready(out, b'I');
    }

    fn discard(&mut self, so_far: Discard, header: Header, _head: &[u8]) -> Option<Discard> {
        Some(match (so_far, header.tag) {
            (_, b'X') => return None,
            // Of a batch everything up to Sync is dropped.
            (Discard::First, b'Q' | b'F') | (_, b'S') => Discard::Last,
            (Discard::First, _) if Machine::means_nothing(header) => Discard::First,
            _ => Discard::More,
        })
    }

    fn is_alone(&self) -> bool {
        self.aborted.is_some()
    }

    fn answer(&mut self, header: Header, head: &[u8], out: &mut BytesMut) -> Alone {
        let Some(aborted) = &mut self.aborted else {
            return Alone::Forward;
        };
        match aborted.on_frame(header, head, out) {
            Next::Answered => Alone::Answered,
            Next::Over => Alone::Over,
            Next::Forward => Alone::Forward,
            Next::Unknown => Alone::Unknown(header.tag),
        }
    }
}

/// Writes the head of a NotificationResponse with the told process number, where that is another one.
fn renamed(frame: &[u8], header: Header, names: &dyn ProcessNames, out: &mut BytesMut) -> bool {
    let (Some(head), Some(body)) = (frame.get(..HEADER_LEN), frame.get(HEADER_LEN..)) else {
        return false;
    };
    let Ok(real) = Reader::new(body).i32() else {
        return false;
    };
    let told = names.told(real);
    if told == real || header.body < 4 {
        return false;
    }
    out.extend_from_slice(head);
    out.extend_from_slice(&told.to_be_bytes());
    true
}

/// The statement that runs next will have run.
fn other_rows() -> Fatal {
    let (code, text) = (
        "08007",
        "a prepared statement has other rows than its client was told: whether it took effect is unknown",
    );
    let mut frame = BytesMut::new();
    put_error(&mut frame, &ErrorMessage::fatal(code, text));
    Fatal {
        code: code.to_owned(),
        message: text.to_owned(),
        frame,
    }
}

/// A FATAL or PANIC that is there as a whole.
fn fatal(frame: &[u8], header: Header, head: &[u8]) -> Option<Box<Fatal>> {
    let whole = frame.get(..header.frame_len())?;
    let fields = ErrorFields::parse(head);
    fields.is_fatal().then(|| {
        Box::new(Fatal {
            code: fields.code,
            message: fields.message,
            frame: BytesMut::from(whole),
        })
    })
}
