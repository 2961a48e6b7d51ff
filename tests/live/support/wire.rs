//! A small raw client of the PostgreSQL protocol: blocking, one socket, every message in the test's hands.

use super::SOON;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Whom to connect to, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its address.
    pub(crate) host: Ipv4Addr,
    /// TCP port there.
    pub(crate) port: u16,
    /// User name.
    pub(crate) user: String,
    /// Password.
    pub(crate) password: String,
    /// Database.
    pub(crate) database: String,
    /// More start-up parameters.
    pub(crate) parameters: Vec<(String, String)>,
    /// Minor version of protocol 3 that is asked for.
    pub(crate) minor: u16,
}

impl Target {
    /// A target on 127.0.0.1.
    pub(crate) fn new(port: u16, (user, password): (&str, &str), database: &str) -> Self {
        Self {
            host: Ipv4Addr::LOCALHOST,
            port,
            user: user.to_owned(),
            password: password.to_owned(),
            database: database.to_owned(),
            parameters: Vec::new(),
            minor: 0,
        }
    }

    /// The same at another address.
    pub(crate) fn at(mut self, host: Ipv4Addr) -> Self {
        self.host = host;
        self
    }

    /// The same, asking for protocol 3.`minor`.
    pub(crate) fn speaking(mut self, minor: u16) -> Self {
        self.minor = minor;
        self
    }

    /// The same in another database.
    pub(crate) fn in_database(mut self, database: &str) -> Self {
        database.clone_into(&mut self.database);
        self
    }

    /// The same with one more start-up parameter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// The fields of an ErrorResponse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// `ERROR`, `FATAL`, ...
    pub(crate) severity: String,
    /// SQLSTATE.
    pub(crate) code: String,
    /// Primary message.
    pub(crate) message: String,
    /// Detail, or empty.
    pub(crate) detail: String,
    /// Hint, or empty.
    pub(crate) hint: String,
}

impl ServerError {
    fn parse(body: &[u8]) -> Self {
        let mut out = Self::default();
        for field in body.split(|b| *b == 0).filter(|f| !f.is_empty()) {
            let text = String::from_utf8_lossy(&field[1..]).into_owned();
            match field[0] {
                b'V' => out.severity = text,
                b'C' => out.code = text,
                b'M' => out.message = text,
                b'D' => out.detail = text,
                b'H' => out.hint = text,
                _ => {}
            }
        }
        out
    }

    /// Message, detail and hint in one text.
    pub(crate) fn text(&self) -> String {
        format!("{} {} {}", self.message, self.detail, self.hint)
    }
}

/// What went wrong for a client.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The other side said so.
    Server(Box<ServerError>),
    /// The connection ended, or nothing came in time.
    Io(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(e) => write!(
                f,
                "{} {}: {} [{}] [{}]",
                e.severity, e.code, e.message, e.detail, e.hint
            ),
            Self::Io(e) => write!(f, "connection: {e}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    /// The server's error. Panics when it was something else.
    pub(crate) fn server(self) -> ServerError {
        match self {
            Self::Server(e) => *e,
            Self::Io(e) => panic!("wanted an error message, got: {e}"),
        }
    }
}

/// One message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its type.
    pub(crate) tag: u8,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// `T`, `D`, `Z(I)`, `E(42601)`.
    pub(crate) fn label(&self) -> String {
        match self.tag {
            b'Z' => format!("Z({})", char::from(self.body[0])),
            b'E' => format!("E({})", ServerError::parse(&self.body).code),
            tag => char::from(tag).to_string(),
        }
    }

    fn columns(&self) -> Vec<Option<String>> {
        let count = u16::from_be_bytes([self.body[0], self.body[1]]);
        let mut rest = &self.body[2..];
        (0..count)
            .map(|_| {
                let len = i32::from_be_bytes(rest[..4].try_into().unwrap());
                rest = &rest[4..];
                let len = usize::try_from(len).ok()?;
                let text = String::from_utf8_lossy(&rest[..len]).into_owned();
                rest = &rest[len..];
                Some(text)
            })
            .collect()
    }
}

/// Rows of a query's answer, as text.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// One client connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The process number from BackendKeyData.
    pub(crate) process: i32,
    /// The secret key from BackendKeyData.
    pub(crate) secret: Vec<u8>,
    /// ParameterStatus as last told.
    pub(crate) parameters: Vec<(String, String)>,
    /// What NoticeResponses said.
    pub(crate) notices: Vec<String>,
    target: Target,
}

impl Client {
    /// Connects and logs in.
    pub(crate) fn connect(target: &Target) -> Result<Self, Failure> {
        let address = SocketAddr::from((target.host, target.port));
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(90)))?;
        let mut client = Self {
            stream,
            buffer: Vec::new(),
            process: 0,
            secret: Vec::new(),
            parameters: Vec::new(),
            notices: Vec::new(),
            target: target.clone(),
        };
        client.log_in(target)?;
        Ok(client)
    }

    fn log_in(&mut self, target: &Target) -> Result<(), Failure> {
        let mut body = (0x3_0000 | i32::from(target.minor)).to_be_bytes().to_vec();
        let own = [("user", &target.user), ("database", &target.database)];
        for (name, value) in own
            .into_iter()
            .chain(target.parameters.iter().map(|(n, v)| (n.as_str(), v)))
        {
            body.extend(cstr(name));
            body.extend(cstr(value));
        }
        body.push(0);
        let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
        packet.extend(body);
        self.send(&packet)?;
        let mut scram = None;
        loop {
            let message = self.receive()?;
            match message.tag {
                b'R' => self.authenticate(&message.body, target, &mut scram)?,
                b'K' => {
                    self.process = i32::from_be_bytes(message.body[..4].try_into().unwrap());
                    self.secret = message.body[4..].to_vec();
                }
                b'E' => return Err(Failure::Server(Box::new(ServerError::parse(&message.body)))),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    fn authenticate(
        &mut self,
        body: &[u8],
        target: &Target,
        scram: &mut Option<ScramSha256>,
    ) -> Result<(), Failure> {
        let (kind, rest) = body.split_at(4);
        match i32::from_be_bytes(kind.try_into().unwrap()) {
            0 => Ok(()),
            3 => self.send_message(b'p', &cstr(&target.password)),
            5 => {
                let salt = rest[..4].try_into().unwrap();
                let hash = md5_hash(target.user.as_bytes(), target.password.as_bytes(), salt);
                self.send_message(b'p', &cstr(&hash))
            }
            10 => {
                let exchange =
                    ScramSha256::new(target.password.as_bytes(), ChannelBinding::unsupported());
                let mut out = cstr(SCRAM_SHA_256);
                out.extend((exchange.message().len() as u32).to_be_bytes());
                out.extend(exchange.message());
                *scram = Some(exchange);
                self.send_message(b'p', &out)
            }
            11 => {
                let exchange = scram.as_mut().expect("SASL was begun");
                exchange.update(rest)?;
                let out = exchange.message().to_vec();
                self.send_message(b'p', &out)
            }
            12 => Ok(scram.as_mut().expect("SASL was begun").finish(rest)?),
            other => Err(io::Error::other(format!("authentication request {other}")).into()),
        }
    }

    fn send_message(&mut self, tag: u8, body: &[u8]) -> Result<(), Failure> {
        Ok(self.send(&message(tag, body))?)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A second handle of the socket, to send from another thread.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    /// The next message.
    pub(crate) fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.buffered() {
                return Ok(message);
            }
            self.fill()?;
        }
    }

    fn buffered(&mut self) -> Option<Message> {
        let header = self.buffer.first_chunk::<5>()?;
        let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize + 1;
        let body = self.buffer.get(5..len)?.to_vec();
        let tag = header[0];
        self.buffer.drain(..len);
        let message = Message { tag, body };
        self.note(&message);
        Some(message)
    }

    fn note(&mut self, message: &Message) {
        if message.tag == b'N' {
            self.notices.push(ServerError::parse(&message.body).message);
        }
        if message.tag == b'S' {
            let mut texts = message.body.split(|b| *b == 0);
            let mut text =
                || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
            let (name, value) = (text(), text());
            self.parameters.retain(|(n, _)| *n != name);
            self.parameters.push((name, value));
        }
    }

    /// The ParameterStatus last told for `name`.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "closed by the other side",
            )),
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Err(io::Error::new(ErrorKind::TimedOut, "nothing came in time"))
            }
            Err(e) => Err(e),
        }
    }

    /// The TCP port of this side.
    pub(crate) fn local_port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// The whole messages that are there by now, and whether the other side has not ended the connection.
    pub(crate) fn arrived(&mut self) -> (Vec<Message>, bool) {
        self.stream.set_nonblocking(true).unwrap();
        let open = loop {
            match self.fill() {
                Ok(()) => {}
                Err(e) => break e.kind() == ErrorKind::TimedOut,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        let mut out = Vec::new();
        while let Some(message) = self.buffered() {
            out.push(message);
        }
        (out, open)
    }

    /// Messages up to and with the next ReadyForQuery.
    pub(crate) fn until_ready(&mut self) -> io::Result<Vec<Message>> {
        let mut out = Vec::new();
        loop {
            let message = self.receive()?;
            let last = message.tag == b'Z';
            out.push(message);
            if last {
                return Ok(out);
            }
        }
    }

    /// Messages up to and with the next one of type `tag`.
    pub(crate) fn until(&mut self, tag: u8) -> io::Result<Vec<Message>> {
        let mut out = Vec::new();
        loop {
            let message = self.receive()?;
            let last = message.tag == tag;
            out.push(message);
            if last {
                return Ok(out);
            }
        }
    }

    /// Sends one simple query; its rows, or its first error, once it is ready again (or was ended).
    pub(crate) fn query(&mut self, sql: &str) -> Result<Rows, Failure> {
        self.start(sql)?;
        self.finish()
    }

    /// Sends one simple query and does not wait.
    pub(crate) fn start(&mut self, sql: &str) -> io::Result<()> {
        self.send(&message(b'Q', &cstr(sql)))
    }

    /// The answer to what [`Self::start`] sent.
    pub(crate) fn finish(&mut self) -> Result<Rows, Failure> {
        let mut rows = Rows::new();
        let mut error = None;
        loop {
            let message = match self.receive() {
                Ok(message) => message,
                Err(e) => return Err(error.map_or(Failure::Io(e), Failure::Server)),
            };
            match message.tag {
                b'D' => rows.push(message.columns()),
                b'E' if error.is_none() => {
                    error = Some(Box::new(ServerError::parse(&message.body)));
                }
                b'Z' => return error.map_or(Ok(rows), |e| Err(Failure::Server(e))),
                _ => {}
            }
        }
    }

    /// The only value of a query's answer. Panics when it fails.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let rows = self.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.first()
            .and_then(|r| r.first())
            .and_then(Clone::clone)
            .unwrap_or_default()
    }

    /// Runs a statement. Panics when it fails.
    pub(crate) fn run(&mut self, sql: &str) {
        self.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The number of the server process that answers.
    pub(crate) fn server_process(&mut self) -> i32 {
        self.value("select pg_backend_pid()").parse().unwrap()
    }

    /// Sends a CancelRequest with this client's key over a connection of its own.
    pub(crate) fn cancel(&self) {
        let mut packet = (12 + self.secret.len() as u32).to_be_bytes().to_vec();
        packet.extend(80_877_102_i32.to_be_bytes());
        packet.extend(self.process.to_be_bytes());
        packet.extend(&self.secret);
        let mut stream = TcpStream::connect((self.target.host, self.target.port)).unwrap();
        stream.write_all(&packet).unwrap();
        // The other side closes once it has taken it.
        let _ = stream.read(&mut [0; 1]);
    }

    /// Ends the sending side only (FIN), as a client that exits does.
    pub(crate) fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Ends the connection with a RST, as a machine does that knows nothing of it any more.
    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Says goodbye and ends the connection.
    pub(crate) fn close(mut self) {
        let _ = self.send(&message(b'X', &[]));
    }
}

/// A string and its NUL.
pub(crate) fn cstr(text: &str) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    out.push(0);
    out
}

/// A framed message.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// Parse: `name`, `sql`, no types given.
pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[cstr(name), cstr(sql), vec![0, 0]].concat())
}

/// Bind with text values and text results.
pub(crate) fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = [cstr(portal), cstr(statement), vec![0, 0]].concat();
    body.extend((values.len() as u16).to_be_bytes());
    for value in values {
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// Execute; `rows` 0: all of them.
pub(crate) fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[cstr(portal), rows.to_be_bytes().to_vec()].concat())
}

/// Sync.
pub(crate) fn sync() -> Vec<u8> {
    message(b'S', &[])
}
