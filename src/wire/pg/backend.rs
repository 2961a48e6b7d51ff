//! Messages that a server sends: built here for the client, read here from the server.

use super::frame::{FrameError, Reader, put, put_cstr};
use bytes::{BufMut, BytesMut};

/// The fields of an ErrorResponse or NoticeResponse that decisions and people need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorFields {
    /// `ERROR`, `FATAL`, `PANIC`; from the field that is never translated (`V`).
    pub severity: String,
    /// SQLSTATE; empty when the sender left it out.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// Name of the source routine (`R`), which no translation touches.
    pub routine: String,
}

impl ErrorFields {
    /// Reads the body of an `E` or `N` message; a missing field stays empty, as does what a cut body lost.
    pub fn parse(body: &[u8]) -> Self {
        let mut out = Self::default();
        let mut reader = Reader::new(body);
        while let Ok(field) = reader.u8() {
            let Ok(text) = reader.cstr() else { break };
            let text = || String::from_utf8_lossy(text).into_owned();
            match field {
                b'V' => out.severity = text(),
                b'S' if out.severity.is_empty() => out.severity = text(),
                b'C' => out.code = text(),
                b'M' => out.message = text(),
                b'R' => out.routine = text(),
                0 => break,
                _ => {}
            }
        }
        out
    }

    /// The server ends the connection after this.
    pub fn is_fatal(&self) -> bool {
        self.severity == "FATAL" || self.severity == "PANIC"
    }
}

/// Appends an ErrorResponse. `detail` and `hint` are left out when empty.
pub fn put_error(out: &mut BytesMut, error: &ErrorMessage<'_>) {
    put(out, b'E', |out| {
        for (field, text) in [
            (b'S', error.severity),
            (b'V', error.severity),
            (b'C', error.code),
            (b'M', error.message),
            (b'D', error.detail),
            (b'H', error.hint),
        ] {
            if !text.is_empty() {
                out.put_u8(field);
                put_cstr(out, text.as_bytes());
            }
        }
        out.put_u8(0);
    });
}

/// An error of Slackwater's own, as the client reads it.
#[derive(Debug, Clone, Copy)]
pub struct ErrorMessage<'a> {
    /// `ERROR` or `FATAL`.
    pub severity: &'a str,
    /// SQLSTATE.
    pub code: &'a str,
    /// Primary message.
    pub message: &'a str,
    /// Detail; may be empty.
    pub detail: &'a str,
    /// Hint; may be empty.
    pub hint: &'a str,
}

impl<'a> ErrorMessage<'a> {
    /// An error after which the session goes on.
    pub const fn error(code: &'a str, message: &'a str) -> Self {
        Self {
            severity: "ERROR",
            code,
            message,
            detail: "",
            hint: "",
        }
    }

    /// An error that ends the connection.
    pub const fn fatal(code: &'a str, message: &'a str) -> Self {
        Self {
            severity: "FATAL",
            code,
            message,
            detail: "",
            hint: "",
        }
    }

    /// The same, with a detail.
    #[must_use]
    pub const fn detail(mut self, detail: &'a str) -> Self {
        self.detail = detail;
        self
    }

    /// The same, with a hint.
    #[must_use]
    pub const fn hint(mut self, hint: &'a str) -> Self {
        self.hint = hint;
        self
    }
}

/// Appends a ReadyForQuery with this transaction status (`I`, `T` or `E`).
pub fn put_ready(out: &mut BytesMut, status: u8) {
    put(out, b'Z', |out| out.put_u8(status));
}

/// Appends a ParameterStatus.
pub fn put_parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put(out, b'S', |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// Appends a BackendKeyData.
pub fn put_backend_key_data(out: &mut BytesMut, process: i32, secret: &[u8]) {
    put(out, b'K', |out| {
        out.put_i32(process);
        out.put_slice(secret);
    });
}

/// Reads the columns of a DataRow; `None` is NULL.
pub fn data_row(body: &[u8]) -> Result<Vec<Option<&[u8]>>, FrameError> {
    let mut reader = Reader::new(body);
    let count = usize::try_from(reader.i16()?).map_err(|_| FrameError::Truncated)?;
    (0..count)
        .map(|_| match reader.i32()? {
            -1 => Ok(None),
            n => reader
                .bytes(usize::try_from(n).map_err(|_| FrameError::Truncated)?)
                .map(Some),
        })
        .collect()
}
