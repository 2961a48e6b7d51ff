//! Statements of Slackwater's own on a server connection that no client's state has touched.

use super::connect::{ConnectError, Connected, Login, connect};
use super::frames::{PAYLOAD_MAX, Packets};
use crate::wire::mysql::auth::{ERR, ErrorPacket};
use crate::wire::mysql::capabilities::Capabilities;
use crate::wire::mysql::packet::{PacketError, Reader};
use bytes::{BufMut, Bytes};
use std::io;
use tokio::time::Instant;

/// Most bytes of rows that are kept of one answer.
const ROWS_MAX: usize = 64 * 1024 * 1024;

/// Status flag: another result follows.
const MORE_RESULTS: u16 = 8;

/// NULL in a text row; in place of a result, the request for a local file.
const NULL: u8 = 0xfb;
/// First byte of what ends a result, or of a row whose first column is longer than 16 MiB.
const EOF: u8 = 0xfe;
/// Longest packet that ends a result set where EOF packets do.
const EOF_MAX: usize = 9;

/// The rows of a result, as text; `None` is NULL.
pub type Rows = Vec<Vec<Option<Bytes>>>;

/// One column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Bytes,
    /// Collation.
    pub charset: u16,
    /// Type, as the protocol numbers them.
    pub kind: u8,
    /// Flags.
    pub flags: u16,
}

/// What a statement answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Its columns; none without a result set.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Rows,
    /// Rows that it changed.
    pub affected: u64,
    /// The last id that it made.
    pub last_insert_id: u64,
    /// Status flags.
    pub status: u16,
    /// Warnings.
    pub warnings: u16,
    /// The message.
    pub info: Bytes,
}

impl Outcome {
    /// The rows, each value as text.
    pub fn into_text(self) -> Vec<Vec<Option<String>>> {
        let text = |value: Option<Bytes>| value.map(|v| String::from_utf8_lossy(&v).into_owned());
        let rows = self.rows.into_iter();
        rows.map(|row| row.into_iter().map(text).collect())
            .collect()
    }

    /// The first column of the first row, as text.
    pub fn scalar(&self) -> Option<String> {
        let value = self.rows.first()?.first()?.as_ref()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The login failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused the statement.
    #[error("{0}")]
    Server(Box<ErrorPacket>),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Io(#[from] io::Error),
    /// The server took too long.
    #[error("the server did not answer in time")]
    Timeout,
}

impl From<PacketError> for ExecError {
    fn from(error: PacketError) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl ExecError {
    /// The server is away, starting or full: waiting may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect(error) => error.may_pass(),
            // Shutting down; killed.
            Self::Server(error) => matches!(error.code, 1053 | 1927 | 3169),
            Self::Io(_) | Self::Timeout => true,
        }
    }

    /// The connection can't be used again.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Server(error) => matches!(error.code, 1053 | 1927 | 3169 | 4031),
            Self::Connect(_) | Self::Io(_) | Self::Timeout => true,
        }
    }
}

/// Runs one statement by the text protocol. Of several results (a CALL) the first is returned.
pub async fn query(
    connected: &mut Connected,
    sql: &str,
    deadline: Instant,
) -> Result<Outcome, ExecError> {
    let eof = !connected.capabilities.contains(Capabilities::DEPRECATE_EOF);
    tokio::time::timeout_at(deadline, run(connected, sql, eof))
        .await
        .map_err(|_| ExecError::Timeout)?
}

/// Logs in, runs one statement, leaves.
pub async fn connect_and_query(login: &Login<'_>, sql: &str) -> Result<Outcome, ExecError> {
    let mut connected = connect(login).await?;
    let outcome = query(&mut connected, sql, login.deadline).await?;
    connected.end().await;
    Ok(outcome)
}

async fn run(connected: &mut Connected, sql: &str, eof: bool) -> Result<Outcome, ExecError> {
    let mut packets = Packets::new(&mut connected.stream, PAYLOAD_MAX);
    let sent = packets.send(|out| {
        out.put_u8(3);
        out.put_slice(sql.as_bytes());
    });
    sent.await?;
    let mut first = None;
    loop {
        let outcome = one_result(&mut packets, eof).await?;
        let more = outcome.status & MORE_RESULTS != 0;
        let first = first.get_or_insert(outcome);
        if !more {
            return Ok(std::mem::take(first));
        }
    }
}

async fn one_result(
    packets: &mut Packets<&mut crate::transport::stream::Stream>,
    eof: bool,
) -> Result<Outcome, ExecError> {
    let payload = packets.next().await?;
    match payload.first() {
        Some(0) => return Ok(ok(&payload)?),
        Some(&ERR) => return Err(error(&payload)?),
        Some(&NULL) => {
            // It asks for a local file: there is none for it, which an empty packet says.
            packets.send(|_| {}).await?;
            return match packets.next().await? {
                payload if payload.first() == Some(&ERR) => Err(error(&payload)?),
                payload => Ok(ok(&payload)?),
            };
        }
        _ => {}
    }
    let count = Reader::new(&payload).lenenc()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(column(&packets.next().await?)?);
    }
    if eof {
        packets.next().await?;
    }
    let mut rows = Rows::new();
    let mut kept = 0;
    loop {
        let payload = packets.next().await?;
        kept += payload.len();
        if kept > ROWS_MAX {
            return Err(PacketError::Kind.into());
        }
        match payload.first() {
            Some(&ERR) => return Err(error(&payload)?),
            Some(&EOF) if eof && payload.len() < EOF_MAX => {
                let mut fields = Reader::new(&payload);
                fields.u8()?;
                let warnings = fields.u16()?;
                return Ok(Outcome {
                    columns,
                    rows,
                    status: fields.u16()?,
                    warnings,
                    ..Outcome::default()
                });
            }
            // Payloads are limited to less than what a row that begins so would have.
            Some(&EOF) if !eof => {
                let end = ok(&payload)?;
                return Ok(Outcome {
                    columns,
                    rows,
                    ..end
                });
            }
            _ => rows.push(row(&payload, columns.len())?),
        }
    }
}

fn error(payload: &Bytes) -> Result<ExecError, PacketError> {
    ErrorPacket::parse(payload).map(|error| ExecError::Server(Box::new(error)))
}

fn ok(payload: &Bytes) -> Result<Outcome, PacketError> {
    let mut fields = Reader::new(payload);
    fields.u8()?;
    let affected = fields.lenenc()?;
    let last_insert_id = fields.lenenc()?;
    let status = fields.u16()?;
    let warnings = fields.u16()?;
    let info = if fields.is_empty() {
        Bytes::new()
    } else {
        payload.slice_ref(fields.lenenc_bytes()?)
    };
    Ok(Outcome {
        affected,
        last_insert_id,
        status,
        warnings,
        info,
        ..Outcome::default()
    })
}

fn column(payload: &Bytes) -> Result<Column, PacketError> {
    let mut fields = Reader::new(payload);
    // Catalog, schema, table, and the table's own name.
    for _ in 0..4 {
        fields.lenenc_bytes()?;
    }
    let name = payload.slice_ref(fields.lenenc_bytes()?);
    fields.lenenc_bytes()?;
    fields.lenenc()?;
    let charset = fields.u16()?;
    fields.u32()?;
    let kind = fields.u8()?;
    Ok(Column {
        name,
        charset,
        kind,
        flags: fields.u16()?,
    })
}

fn row(payload: &Bytes, columns: usize) -> Result<Vec<Option<Bytes>>, PacketError> {
    let mut fields = Reader::new(payload);
    let mut row = Vec::with_capacity(columns.min(payload.len()));
    for _ in 0..columns {
        let value = if fields.rest().first() == Some(&NULL) {
            fields.u8()?;
            None
        } else {
            Some(payload.slice_ref(fields.lenenc_bytes()?))
        };
        row.push(value);
    }
    if fields.is_empty() {
        Ok(row)
    } else {
        Err(PacketError::Kind)
    }
}
