//! A client: the driver `mysql`, made short for tests.

use super::server::APP;
use mysql::prelude::{FromValue, Queryable as _};
use mysql::{Conn, Opts, OptsBuilder, Params, Row, Value};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where to connect, as whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    port: u16,
    socket: Option<PathBuf>,
    user: String,
    password: String,
    database: Option<String>,
    program: String,
    compressed: bool,
    /// The address of this machine that it comes from; the system's choice when left out.
    from: Option<IpAddr>,
    /// The client checks the certificate against this CA.
    pub(crate) ca: Option<PathBuf>,
}

impl Target {
    /// A port of this machine.
    pub(crate) fn new(port: u16, (user, password): (&str, &str)) -> Self {
        Self {
            port,
            socket: None,
            user: user.to_owned(),
            password: password.to_owned(),
            database: Some("app".to_owned()),
            program: "test".to_owned(),
            compressed: false,
            from: None,
            ca: None,
        }
    }

    /// A Unix socket.
    pub(crate) fn socket(path: &Path, user: &str, password: &str) -> Self {
        Self {
            socket: Some(path.to_owned()),
            database: None,
            ..Self::new(0, (user, password))
        }
    }

    /// The same with a name by which the session is found.
    pub(crate) fn named(&self, program: &str) -> Self {
        Self {
            program: program.to_owned(),
            ..self.clone()
        }
    }

    /// The same, compressed or not.
    pub(crate) fn compressed(&self, compressed: bool) -> Self {
        Self {
            compressed,
            ..self.clone()
        }
    }

    /// The same from another address.
    pub(crate) fn at(&self, address: &str) -> Self {
        Self {
            from: Some(address.parse().expect("an address")),
            ..self.clone()
        }
    }

    /// The same as another user.
    pub(crate) fn user(&self, (user, password): (&str, &str)) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            ..self.clone()
        }
    }

    fn options(&self) -> Opts {
        let attributes = [("program_name", self.program.as_str())]
            .into_iter()
            .collect();
        let mut options = OptsBuilder::new()
            .ip_or_hostname(Some("127.0.0.1"))
            .tcp_port(self.port)
            .user(Some(&self.user))
            .pass(Some(&self.password))
            .db_name(self.database.as_ref())
            // It would ask the server for its socket, and go past the proxy.
            .prefer_socket(false)
            .bind_address(self.from.map(|from| SocketAddr::new(from, 0)))
            .stmt_cache_size(0)
            .compress(self.compressed.then(mysql::Compression::fast))
            .max_allowed_packet(Some(64 << 20))
            .connect_attrs(Some::<std::collections::HashMap<&str, &str>>(attributes));
        if let Some(socket) = &self.socket {
            options = options.socket(Some(socket.display().to_string()));
        }
        if let Some(ca) = &self.ca {
            let tls = mysql::SslOpts::default().with_root_cert_path(Some(ca.clone()));
            options = options
                .ssl_opts(Some(tls))
                .ip_or_hostname(Some("localhost"));
        }
        options.into()
    }
}

/// One connection.
pub(crate) struct Client(pub(crate) Conn);

impl Client {
    /// Logs in.
    pub(crate) fn connect(target: &Target) -> Result<Self, mysql::Error> {
        Conn::new(target.options()).map(Self)
    }

    /// Logs in; that must work.
    pub(crate) fn to(target: &Target) -> Self {
        Self::connect(target).unwrap_or_else(|e| panic!("{target:?}: {e}"))
    }

    /// Runs a statement.
    pub(crate) fn run(&mut self, sql: &str) {
        self.try_run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub(crate) fn try_run(&mut self, sql: &str) -> Result<(), mysql::Error> {
        self.0.query_drop(sql)
    }

    /// The first value of the first row as text; NULL reads `NULL`.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        self.try_value(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    pub(crate) fn try_value(&mut self, sql: &str) -> Result<String, mysql::Error> {
        let row: Option<Row> = self.0.query_first(sql)?;
        Ok(row.map_or_else(|| "nothing".to_owned(), |row| text(row.as_ref(0))))
    }

    /// All values of all rows, a line for each.
    pub(crate) fn rows(&mut self, sql: &str) -> String {
        let rows: Vec<Row> = self.0.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        let line = |row: &Row| {
            let values = (0..row.len()).map(|at| text(row.as_ref(at)));
            values.collect::<Vec<_>>().join("|")
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// The first value of a prepared statement's first row.
    pub(crate) fn execute<T: FromValue>(
        &mut self,
        statement: &mysql::Statement,
        params: impl Into<Params>,
    ) -> Result<Option<T>, mysql::Error> {
        self.0.exec_first(statement, params)
    }

    pub(crate) fn prepare(&mut self, sql: &str) -> mysql::Statement {
        self.0.prep(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// The number that it was greeted with.
    pub(crate) fn number(&self) -> u32 {
        self.0.connection_id()
    }
}

/// The engine's number of an error; 0: the connection is gone.
pub(crate) fn code(error: &mysql::Error) -> u16 {
    match error {
        mysql::Error::MySqlError(error) => error.code,
        _ => 0,
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::NULL) => "NULL".to_owned(),
        Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(other) => format!("{other:?}"),
    }
}

/// The ordinary user through this port.
pub(crate) fn app(port: u16) -> Target {
    Target::new(port, APP)
}
