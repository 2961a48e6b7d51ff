//! What a client asks: the first byte of each command, and the heads of those that matter.

use super::packet::{MAX_PAYLOAD, PacketError, Reader, put, put_packet};
use bytes::{BufMut, BytesMut};

/// The client leaves.
pub const QUIT: u8 = 0x01;
/// Another current database.
pub const INIT_DB: u8 = 0x02;
/// A statement, or several, in text form.
pub const QUERY: u8 = 0x03;
/// Columns of a table.
pub const FIELD_LIST: u8 = 0x04;
/// Makes a database (older than any server that is supported; answered like a statement).
pub const CREATE_DB: u8 = 0x05;
/// Drops a database (as old).
pub const DROP_DB: u8 = 0x06;
/// FLUSH.
pub const REFRESH: u8 = 0x07;
/// Stops the server.
pub const SHUTDOWN: u8 = 0x08;
/// A line of figures.
pub const STATISTICS: u8 = 0x09;
/// SHOW PROCESSLIST.
pub const PROCESS_INFO: u8 = 0x0a;
/// KILL.
pub const PROCESS_KILL: u8 = 0x0c;
/// Writes to the server's log.
pub const DEBUG: u8 = 0x0d;
/// Is the server there?
pub const PING: u8 = 0x0e;
/// Another user on the same connection.
pub const CHANGE_USER: u8 = 0x11;
/// A stream of replication.
pub const BINLOG_DUMP: u8 = 0x12;
/// A replica says who it is.
pub const REGISTER_SLAVE: u8 = 0x15;
/// Prepares a statement.
pub const STMT_PREPARE: u8 = 0x16;
/// Runs a prepared statement.
pub const STMT_EXECUTE: u8 = 0x17;
/// A part of a parameter. Never answered.
pub const STMT_SEND_LONG_DATA: u8 = 0x18;
/// Drops a prepared statement. Never answered.
pub const STMT_CLOSE: u8 = 0x19;
/// Drops a statement's parameters and cursor.
pub const STMT_RESET: u8 = 0x1a;
/// Switches multi-statements.
pub const SET_OPTION: u8 = 0x1b;
/// Rows of a cursor.
pub const STMT_FETCH: u8 = 0x1c;
/// No command of any server: each answers that it does not know it.
pub const UNKNOWN: u8 = 0x1d;
/// A stream of replication by transaction numbers (MySQL).
pub const BINLOG_DUMP_GTID: u8 = 0x1e;
/// Makes the session as after its login.
pub const RESET_CONNECTION: u8 = 0x1f;
/// Runs a prepared statement for many rows of parameters (MariaDB).
pub const STMT_BULK_EXECUTE: u8 = 0xfa;

/// The statement that was prepared last (MariaDB).
pub const LAST_STATEMENT: u32 = u32::MAX;

/// Flag of a [`STMT_BULK_EXECUTE`] that brings the types of its parameters.
pub const BULK_TYPES: u16 = 128;

/// The statement's number in a command that begins with one.
pub fn statement_id(payload: &[u8]) -> Result<u32, PacketError> {
    let mut reader = Reader::new(payload);
    reader.u8()?;
    reader.u32()
}

/// Where the types of parameters are in an EXECUTE, or where they would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Types<'a> {
    /// Bytes of the payload in front of the mark that says whether they are there.
    pub mark_at: usize,
    /// Bytes of the payload in front of the types.
    pub at: usize,
    /// Two bytes for each parameter, when they are there.
    pub types: Option<&'a [u8]>,
}

/// Bytes of an EXECUTE's payload up to and with the types of `params` parameters.
pub const fn execute_head(params: u16) -> usize {
    10 + (params as usize).div_ceil(8) + 1 + 2 * params as usize
}

/// Bytes of a BULK_EXECUTE's payload up to and with the types of `params` parameters.
pub const fn bulk_head(params: u16) -> usize {
    7 + 2 * params as usize
}

/// Finds the types in the head of an EXECUTE of a statement with `params` parameters (more than none).
pub fn execute_types(payload: &[u8], params: u16) -> Result<Types<'_>, PacketError> {
    let mut reader = Reader::new(payload);
    // Command, statement, flags, iterations.
    reader.bytes(10)?;
    reader.bytes(usize::from(params).div_ceil(8))?;
    let mark_at = payload.len() - reader.rest().len();
    let types = match reader.u8()? {
        0 => None,
        _ => Some(reader.bytes(2 * usize::from(params))?),
    };
    Ok(Types {
        mark_at,
        at: mark_at + 1,
        types,
    })
}

/// The same for a BULK_EXECUTE; the mark is the second byte of its flags, whose bit is [`BULK_TYPES`].
pub fn bulk_types(payload: &[u8], params: u16) -> Result<Types<'_>, PacketError> {
    let mut reader = Reader::new(payload);
    reader.bytes(5)?;
    let flags = reader.u16()?;
    let types = match flags & BULK_TYPES {
        0 => None,
        _ => Some(reader.bytes(2 * usize::from(params))?),
    };
    Ok(Types {
        mark_at: 5,
        at: 7,
        types,
    })
}

/// Appends a command that is a byte and a text.
pub fn put_text(out: &mut BytesMut, command: u8, text: &[u8]) {
    if text.len() + 1 < MAX_PAYLOAD {
        put(out, 0, |out| {
            out.put_u8(command);
            out.put_slice(text);
        });
    } else {
        let mut payload = Vec::with_capacity(text.len() + 1);
        payload.push(command);
        payload.extend_from_slice(text);
        put_packet(out, 0, &payload);
    }
}

/// Appends a QUERY.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    put_text(out, QUERY, sql.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_where_they_are() {
        let mut execute = vec![STMT_EXECUTE, 5, 0, 0, 0, 0, 1, 0, 0, 0, 0b11, 0];
        assert_eq!(statement_id(&execute), Ok(5));
        let without = execute_types(&execute, 2).unwrap();
        assert_eq!((without.mark_at, without.at, without.types), (11, 12, None));
        execute[11] = 1;
        assert_eq!(execute_types(&execute, 2), Err(PacketError::Truncated));
        execute.extend([3, 0, 0xfe, 0, 9]);
        assert_eq!(execute_head(2), 16);
        let with = execute_types(&execute[..execute_head(2)], 2).unwrap();
        assert_eq!(with.types, Some(&[3, 0, 0xfe, 0][..]));
        let bulk = [STMT_BULK_EXECUTE, 5, 0, 0, 0, 128, 0, 3, 0, 0];
        assert_eq!(bulk_types(&bulk, 1).unwrap().types, Some(&[3, 0][..]));
    }
}
