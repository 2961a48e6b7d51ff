//! A client that writes its packets itself, for what drivers do not do.

use bytes::BytesMut;
use slackwater::wire::mysql::command;
use slackwater::wire::mysql::packet::{HEADER_LEN, Header, Reader, put_packet};
use slackwater::wire::mysql::reply::{EOF, ERR, ErrPacket, OK, PrepareOk, text_row};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// CLIENT_LONG_PASSWORD, LONG_FLAG, CONNECT_WITH_DB, LOCAL_FILES, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION,
/// MULTI_STATEMENTS, MULTI_RESULTS, PS_MULTI_RESULTS, PLUGIN_AUTH, CONNECT_ATTRS, DEPRECATE_EOF.
const CAPABILITIES: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 7
    | 1 << 9
    | 1 << 13
    | 1 << 15
    | 7 << 16
    | 1 << 19
    | 1 << 20
    | 1 << 24;

/// utf8mb4_general_ci.
const CHARSET: u8 = 45;

/// Types of parameters.
pub(crate) const LONGLONG: [u8; 2] = [0x08, 0];
pub(crate) const STRING: [u8; 2] = [0xfe, 0];

/// One connection of the account `raw`, which has no password.
pub(crate) struct Raw {
    stream: TcpStream,
    seq: u8,
    /// The number that it was greeted with.
    pub(crate) number: u32,
}

impl Raw {
    /// Logs in, with a name by which the session is found.
    pub(crate) fn connect(port: u16, program: &str) -> Self {
        Self::from("127.0.0.1", b"", port, program)
    }

    /// Logs in from this address of the machine, after these bytes.
    pub(crate) fn from(address: &str, before: &[u8], port: u16, program: &str) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let end = |ip: &str, port| SockAddr::from(SocketAddr::new(ip.parse().unwrap(), port));
        socket.bind(&end(address, 0)).unwrap();
        socket.connect(&end("127.0.0.1", port)).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(before).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut raw = Self {
            stream,
            seq: 0,
            number: 0,
        };
        let greeting = raw.read().unwrap();
        let mut reader = Reader::new(&greeting);
        assert_eq!(reader.u8(), Ok(10), "protocol 10");
        reader.cstr().unwrap();
        raw.number = reader.u32().unwrap();
        let mut response = CAPABILITIES.to_le_bytes().to_vec();
        response.extend((1_u32 << 24).to_le_bytes());
        response.push(CHARSET);
        response.extend([0; 23]);
        response.extend(b"raw\0\0app\0mysql_native_password\0");
        let attribute = [
            &[12][..],
            b"program_name",
            &[program.len() as u8],
            program.as_bytes(),
        ]
        .concat();
        response.push(attribute.len() as u8);
        response.extend(attribute);
        raw.send(1, &response);
        let mut answer = raw.read().unwrap();
        if answer[0] == EOF {
            // Another plugin: an empty password is the same in each.
            raw.send(raw.seq + 1, &[]);
            answer = raw.read().unwrap();
        }
        assert_eq!(answer[0], OK, "{}", String::from_utf8_lossy(&answer));
        raw
    }

    /// Sends one packet.
    pub(crate) fn send(&mut self, seq: u8, payload: &[u8]) {
        let mut out = BytesMut::new();
        put_packet(&mut out, seq, payload);
        self.stream.write_all(&out).unwrap();
    }

    /// Sends commands in one write.
    pub(crate) fn pipeline(&mut self, payloads: &[Vec<u8>]) {
        let mut out = BytesMut::new();
        for payload in payloads {
            put_packet(&mut out, 0, payload);
        }
        self.stream.write_all(&out).unwrap();
    }

    /// Reads one packet.
    pub(crate) fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let header = Header::parse(&header).unwrap();
        self.seq = header.seq;
        let mut payload = vec![0; header.len];
        self.stream.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Sequence number of the last packet.
    pub(crate) fn seq(&self) -> u8 {
        self.seq
    }

    /// Reads an answer without rows: the number of its error, or 0.
    pub(crate) fn done(&mut self) -> u16 {
        let answer = self.read().unwrap();
        match answer[0] {
            OK => 0,
            _ => error(&answer),
        }
    }

    /// Runs a text without rows.
    pub(crate) fn run(&mut self, sql: &str) {
        self.send(0, &query(sql));
        assert_eq!(self.done(), 0, "{sql}");
    }

    /// The first value of a text's only row.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        self.send(0, &query(sql));
        let mut rows = self.rows().unwrap_or_else(|code| panic!("{sql}: {code}"));
        let row = text_row(&rows.remove(0)).unwrap()[0].map(<[u8]>::to_vec);
        row.map_or("NULL".to_owned(), |v| String::from_utf8(v).unwrap())
    }

    /// Reads a result: its rows, or the number of an error.
    pub(crate) fn rows(&mut self) -> Result<Vec<Vec<u8>>, u16> {
        let first = self.read().unwrap();
        if first[0] == ERR {
            return Err(error(&first));
        }
        for _ in 0..Reader::new(&first).lenenc().unwrap() {
            self.read().unwrap();
        }
        let mut rows = Vec::new();
        loop {
            let row = self.read().unwrap();
            match row[0] {
                ERR => return Err(error(&row)),
                EOF if row.len() < 0xff_ffff => return Ok(rows),
                _ => rows.push(row),
            }
        }
    }

    /// Reads the answer to PREPARE: the statement's number.
    pub(crate) fn prepared(&mut self) -> Result<u32, u16> {
        let answer = self.read().unwrap();
        if answer[0] == ERR {
            return Err(error(&answer));
        }
        let ok = PrepareOk::parse(&answer).unwrap();
        for _ in 0..u32::from(ok.params) + u32::from(ok.columns) {
            self.read().unwrap();
        }
        Ok(ok.id)
    }

    /// Prepares a statement.
    pub(crate) fn prepare(&mut self, sql: &str) -> u32 {
        self.send(0, &prepare(sql));
        self.prepared()
            .unwrap_or_else(|code| panic!("{sql}: {code}"))
    }
}

fn error(payload: &[u8]) -> u16 {
    ErrPacket::parse(payload).expect("an error").code
}

/// COM_QUERY.
pub(crate) fn query(sql: &str) -> Vec<u8> {
    [&[command::QUERY], sql.as_bytes()].concat()
}

/// COM_STMT_PREPARE.
pub(crate) fn prepare(sql: &str) -> Vec<u8> {
    [&[command::STMT_PREPARE], sql.as_bytes()].concat()
}

/// COM_STMT_EXECUTE with one parameter; without `types` those of the last time count.
pub(crate) fn execute(id: u32, types: Option<[u8; 2]>, value: &[u8]) -> Vec<u8> {
    let mut out = vec![command::STMT_EXECUTE];
    out.extend(id.to_le_bytes());
    out.extend([0, 1, 0, 0, 0, 0]);
    match types {
        Some(types) => out.extend([&[1][..], &types].concat()),
        None => out.push(0),
    }
    out.extend(value);
    out
}

/// COM_STMT_EXECUTE of a statement without parameters.
pub(crate) fn execute_plain(id: u32) -> Vec<u8> {
    let mut out = vec![command::STMT_EXECUTE];
    out.extend(id.to_le_bytes());
    out.extend([0, 1, 0, 0, 0]);
    out
}

/// COM_STMT_SEND_LONG_DATA of the first parameter.
pub(crate) fn long_data(id: u32, data: &[u8]) -> Vec<u8> {
    let mut out = vec![command::STMT_SEND_LONG_DATA];
    out.extend(id.to_le_bytes());
    out.extend([0, 0]);
    out.extend(data);
    out
}
