//! Statements of Slackwater's own on a server connection that no client's state has touched.

use super::connect::{ConnectError, Connected, Login, connect};
use super::frames::Frames;
use crate::wire::pg::backend::{ErrorFields, data_row};
use crate::wire::pg::frame::{put, put_cstr};
use bytes::{BufMut, BytesMut};
use std::io;
use tokio::time::Instant;

/// The rows of a result, as text; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The login failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A server of MySQL or MariaDB did not do it.
    #[error(transparent)]
    Mysql(#[from] super::mysql::exec::ExecError),
    /// The server refused the statement.
    #[error("{} ({})", .0.message, .0.code)]
    Server(Box<ErrorFields>),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Io(#[from] io::Error),
    /// The server took too long.
    #[error("the server did not answer in time")]
    Timeout,
}

impl ExecError {
    /// The server is away, starting or full: waiting may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect(error) => error.may_pass(),
            Self::Mysql(error) => error.may_pass(),
            Self::Server(fields) => fields.is_fatal(),
            Self::Io(_) | Self::Timeout => true,
        }
    }

    /// Nobody answers there.
    pub fn is_away(&self) -> bool {
        use super::mysql::connect::ConnectError as MysqlConnect;
        use super::mysql::exec::ExecError as Mysql;
        matches!(
            self,
            Self::Io(_)
                | Self::Connect(ConnectError::Io { .. })
                | Self::Mysql(Mysql::Io(_) | Mysql::Connect(MysqlConnect::Io { .. }))
        )
    }

    /// The connection can't be used again.
    pub fn breaks(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Io(_) | Self::Timeout => true,
            Self::Mysql(error) => error.is_fatal(),
            Self::Server(fields) => fields.is_fatal(),
        }
    }
}

/// Runs one statement by the extended protocol; parameters and results are text.
pub async fn query(
    connected: &mut Connected,
    sql: &str,
    params: &[&str],
    deadline: Instant,
) -> Result<Rows, ExecError> {
    tokio::time::timeout_at(deadline, run(connected, sql, params))
        .await
        .map_err(|_| ExecError::Timeout)?
}

/// Logs in, runs one statement, leaves.
pub async fn connect_and_query(login: &Login<'_>, sql: &str) -> Result<Rows, ExecError> {
    let mut connected = connect(login).await?;
    let rows = query(&mut connected, sql, &[], login.deadline).await?;
    connected.end().await;
    Ok(rows)
}

async fn run(connected: &mut Connected, sql: &str, params: &[&str]) -> Result<Rows, ExecError> {
    let mut out = BytesMut::new();
    put(&mut out, b'P', |out| {
        put_cstr(out, b"");
        put_cstr(out, sql.as_bytes());
        out.put_i16(0);
    });
    put(&mut out, b'B', |out| {
        put_cstr(out, b"");
        put_cstr(out, b"");
        out.put_i16(0);
        out.put_i16(i16::try_from(params.len()).unwrap_or(i16::MAX));
        for param in params {
            out.put_i32(i32::try_from(param.len()).unwrap_or(i32::MAX));
            out.put_slice(param.as_bytes());
        }
        out.put_i16(0);
    });
    put(&mut out, b'E', |out| {
        put_cstr(out, b"");
        out.put_i32(0);
    });
    put(&mut out, b'S', |_| {});
    let mut frames = Frames::new(&mut connected.stream);
    frames.send(&out).await?;
    let mut rows = Rows::new();
    let mut error = None;
    loop {
        let message = frames.next().await?;
        match message.tag {
            b'D' => {
                let row = data_row(&message.body)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                let text = |column: &[u8]| String::from_utf8_lossy(column).into_owned();
                rows.push(row.into_iter().map(|column| column.map(text)).collect());
            }
            b'E' => error = Some(Box::new(ErrorFields::parse(&message.body))),
            b'Z' => return error.map_or(Ok(rows), |error| Err(ExecError::Server(error))),
            _ => {}
        }
        if error.as_ref().is_some_and(|e| e.is_fatal()) {
            return Err(ExecError::Server(error.unwrap_or_default()));
        }
    }
}
