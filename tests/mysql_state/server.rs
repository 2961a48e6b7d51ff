//! A MariaDB or MySQL server of the test's own, and a client whose packets pass through a session's machine.

use crate::mysql::{Mysql, Version};
use bytes::BytesMut;
use slackwater::session::mysql::grammar::{Family, Grammar};
use slackwater::session::mysql::machine::{ClientFrame, Machine, ServerFrame};
use slackwater::session::mysql::probe::{
    Known, Probe, ProbeError, ProbeSpec, ProbeStep, put_probe,
};
use slackwater::session::mysql::restore::{RestoreStep, Restored, put_restore, verify};
use slackwater::session::mysql::side::{Side, read_side, side_query};
use slackwater::session::mysql::snapshot::{Baseline, Snapshot};
use slackwater::session::mysql::tracker::TRACKING_SQL;
use slackwater::wire::mysql::command;
use slackwater::wire::mysql::packet::{HEADER_LEN, Header, Reader, put_packet};
use slackwater::wire::mysql::reply::{ERR, ErrPacket, OK, OkPacket, PrepareOk, Status, text_row};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Asked of the server, and forwarded, where `SESSION_TRACK` is always agreed on.
const CAPABILITIES: u32 = 1 | 4 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15 | 7 << 16 | 1 << 19 | 1 << 23;
const DEPRECATE_EOF: u32 = 1 << 24;
const LOCAL_FILES: u32 = 1 << 7;

/// Names the version to test with: `mariadb` (as installed), `mariadb-11.8` or `mysql-9.7`.
const SERVER: &str = "SLACKWATER_TEST_MYSQL";

/// A running server, and what the tests need to be there.
pub(crate) struct Server {
    process: Mysql,
    baseline: OnceLock<Arc<Baseline>>,
    pub(crate) family: Family,
    pub(crate) version: u32,
}

impl Server {
    pub(crate) fn start() -> Self {
        let wanted = std::env::var(SERVER).unwrap_or_default();
        let version = match wanted.as_str() {
            "" | "mariadb" => Version::Mariadb1011,
            "mariadb-11.8" => Version::Mariadb118,
            "mysql-9.7" => Version::Mysql97,
            other => panic!("{SERVER}: {other}?"),
        };
        let server = Mysql::start(version, &["local-infile=1"]).expect("its programs are there");
        let mut server = Self {
            process: server,
            baseline: OnceLock::new(),
            family: if version.is_mysql() {
                Family::MySql
            } else {
                Family::MariaDb
            },
            version: 0,
        };
        server.fill();
        server
    }

    /// What the tests need to be there.
    fn fill(&mut self) {
        let text = self.process.value("SELECT VERSION()");
        self.process.run(&[
            "CREATE USER boss@localhost IDENTIFIED BY ''",
            "GRANT ALL ON *.* TO boss@localhost WITH GRANT OPTION",
        ]);
        let mut root = self.login("boss", "", true);
        let number = |at: usize| {
            let digits = text.split(['.', '-']).nth(at).unwrap();
            digits.parse::<u32>().unwrap()
        };
        self.version = number(0) * 10_000 + number(1) * 100 + number(2);
        root.all(&[
            "ALTER DATABASE app CHARACTER SET latin1",
            "CREATE DATABASE other CHARACTER SET utf8mb4",
            "CREATE USER app@localhost IDENTIFIED BY ''",
            "CREATE ROLE r1",
            "GRANT r1 TO app@localhost",
            "GRANT ALL ON app.* TO app@localhost",
            "GRANT ALL ON other.* TO app@localhost",
            "GRANT RELOAD ON *.* TO app@localhost",
            "CREATE TABLE app.t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(20)) ENGINE=InnoDB",
            "CREATE TABLE other.t (other INT) ENGINE=InnoDB",
            "INSERT INTO app.t (v) VALUES ('a'), ('b')",
            "CREATE PROCEDURE app.p_lock() DO GET_LOCK('in_procedure', 10)",
            "CREATE PROCEDURE app.p_temp() CREATE TEMPORARY TABLE in_procedure (a INT)",
            "CREATE PROCEDURE app.p_var() BEGIN SET @in_procedure = 5; SET SESSION sort_buffer_size = 300000; END",
            "CREATE PROCEDURE app.p_prepare() PREPARE in_procedure FROM 'SELECT 1'",
            "CREATE FUNCTION app.f_lock() RETURNS INT DETERMINISTIC RETURN GET_LOCK('in_function', 10)",
            "CREATE PROCEDURE app.p_begin() BEGIN START TRANSACTION; SELECT * FROM nowhere; END",
        ]);
        if self.family == Family::MySql {
            root.all(&["GRANT BACKUP_ADMIN ON *.* TO app@localhost"]);
        }
    }

    /// A session of the ordinary user.
    pub(crate) fn app(&self) -> Client {
        self.login("app", "app", true)
    }

    /// Logs in without a password.
    pub(crate) fn login(&self, user: &str, database: &str, deprecate_eof: bool) -> Client {
        let stream = UnixStream::connect(self.process.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let grammar = Grammar {
            family: self.family,
            deprecate_eof,
            client_tracks: false,
            multi_statements: true,
            cache_metadata: false,
            extended_metadata: false,
        };
        let mut client = Client {
            stream,
            machine: Machine::new(grammar, database.as_bytes(), Status::AUTOCOMMIT),
            version: self.version,
            seq: 0,
            real_id: 0,
            known: None,
        };
        let greeting = client.read_raw();
        let mut reader = Reader::new(&greeting);
        reader.u8().unwrap();
        reader.cstr().unwrap();
        client.real_id = u64::from(reader.u32().unwrap());
        let flags = CAPABILITIES | LOCAL_FILES | if deprecate_eof { DEPRECATE_EOF } else { 0 };
        let mut response = flags.to_le_bytes().to_vec();
        response.extend((1_u32 << 24).to_le_bytes());
        response.push(45);
        response.extend([0; 23]);
        response.extend(
            [
                user.as_bytes(),
                b"\0\0",
                database.as_bytes(),
                b"\0mysql_native_password\0",
            ]
            .concat(),
        );
        client.write_raw(1, &response);
        let mut answer = client.read_raw();
        if answer.first() == Some(&0xfe) {
            let seq = client.seq + 1;
            client.write_raw(seq, &[]);
            answer = client.read_raw();
        }
        let ok = OkPacket::parse(&answer, true).expect("logged in");
        let status = ok.status;
        client.write_raw(0, &[&[command::QUERY], TRACKING_SQL.as_bytes()].concat());
        assert_eq!(client.read_raw().first(), Some(&OK));
        client.machine.begin(status);
        client
    }

    /// What the service account sees of a session.
    pub(crate) fn side(&self, client: &Client) -> Option<Side> {
        if self.family == Family::MariaDb {
            return None;
        }
        let mut root = self.login("boss", "", true);
        let rows = root.rows(&side_query(&[client.real_id]));
        let rows: Vec<Vec<Option<Vec<u8>>>> = rows;
        Some(read_side(&rows).remove(&client.real_id).expect("seen"))
    }

    /// What a fresh login of the ordinary user holds.
    pub(crate) fn baseline(&self) -> Arc<Baseline> {
        let make = || {
            let mut fresh = self.app();
            let side = self.side(&fresh);
            fresh.probe_with(None, side.as_ref()).unwrap().baseline
        };
        Arc::clone(self.baseline.get_or_init(make))
    }

    /// Probes a session as the proxy would.
    pub(crate) fn probe(&self, client: &mut Client) -> Result<Probe, ProbeError> {
        let side = self.side(client);
        client.probe_with(Some(&self.baseline()), side.as_ref())
    }

    /// Moves a session to a new server connection, and says what a probe finds there.
    pub(crate) fn moved(&self, old: Client, probe: &Probe) -> (Client, Restored) {
        let fresh = self.baseline();
        let database = probe.baseline.database.clone().unwrap_or_default();
        let mut new = self.login("app", &database, old.machine.grammar().deprecate_eof);
        let restored = new.restore(&probe.snapshot, &fresh).unwrap();
        new.machine = old.machine;
        new.machine
            .moved(restored.status, &restored.ids, restored.text_prepares);
        let again = self.probe(&mut new).unwrap();
        verify(&probe.snapshot, &fresh, &again, &restored).unwrap();
        (new, restored)
    }
}

/// A client, the machine of its session, and its server connection.
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) machine: Machine,
    version: u32,
    seq: u8,
    pub(crate) real_id: u64,
    known: Option<Known>,
}

impl Client {
    fn read_raw(&mut self) -> Vec<u8> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::parse(&header).unwrap();
        self.seq = header.seq;
        let mut payload = vec![0; header.len];
        self.stream.read_exact(&mut payload).unwrap();
        payload
    }

    fn write_raw(&mut self, seq: u8, payload: &[u8]) {
        let mut out = BytesMut::new();
        put_packet(&mut out, seq, payload);
        self.stream.write_all(&out).unwrap();
    }

    /// Sends a packet as the relay would.
    pub(crate) fn send(&mut self, seq: u8, payload: &[u8]) {
        let header = Header {
            len: payload.len(),
            seq,
        };
        let mut seen = 0;
        while self.machine.client_head(header, &payload[..seen]) > seen {
            seen = self.machine.client_head(header, &payload[..seen]);
        }
        let mut frame = [&header.bytes()[..], payload].concat();
        match self
            .machine
            .on_client(header, &payload[..seen], Instant::now().into_std())
        {
            ClientFrame::Forward => {}
            ClientFrame::Patch { at, len, bytes } => {
                frame[at..at + len].copy_from_slice(&bytes[..len]);
            }
            ClientFrame::Replace { instead_of } => {
                frame = [self.machine.replacement(), &frame[instead_of..]].concat();
            }
            other => panic!("{other:?}"),
        }
        self.stream.write_all(&frame).unwrap();
    }

    /// Reads a packet as the relay would; what of it the client gets.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        let payload = self.read_raw();
        let header = Header {
            len: payload.len(),
            seq: self.seq,
        };
        let mut seen = 0;
        while self.machine.server_head(header, &payload[..seen]) > seen {
            seen = self.machine.server_head(header, &payload[..seen]);
        }
        let mut frame = [&header.bytes()[..], &payload].concat();
        match self.machine.on_server(header, &payload[..seen]) {
            ServerFrame::Forward => {}
            ServerFrame::Patch { at, bytes } => frame[at..at + 4].copy_from_slice(&bytes),
            ServerFrame::Replace { instead_of } => {
                frame = [self.machine.replacement(), &frame[instead_of..]].concat();
            }
            ServerFrame::Drop => return None,
            ServerFrame::Unasked => panic!("unasked: {payload:?}"),
        }
        Some(frame[HEADER_LEN..].to_vec())
    }

    /// Reads until nothing is owed, and asks the server what it has to be asked.
    pub(crate) fn settle(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        loop {
            while self.machine.is_in_flight() {
                packets.extend(self.read());
            }
            if !self.machine.needs_status() {
                assert_eq!(self.machine.why_ambiguous(), None);
                return packets;
            }
            let mut out = BytesMut::new();
            self.machine.put_ask(&mut out);
            self.stream.write_all(&out).unwrap();
        }
    }

    pub(crate) fn command(&mut self, payload: &[u8]) -> Vec<Vec<u8>> {
        self.send(0, payload);
        self.settle()
    }

    /// Runs a text; its packets.
    pub(crate) fn query(&mut self, sql: &str) -> Vec<Vec<u8>> {
        self.command(&[&[command::QUERY], sql.as_bytes()].concat())
    }

    /// Runs texts that must not fail.
    pub(crate) fn all(&mut self, texts: &[&str]) {
        for sql in texts {
            let packets = self.query(sql);
            let failed = packets.iter().find(|p| p.first() == Some(&ERR));
            let words = failed.map(|p| {
                String::from_utf8_lossy(ErrPacket::parse(p).unwrap().message).into_owned()
            });
            assert_eq!(words, None, "{sql}");
        }
    }

    /// The error of a text.
    pub(crate) fn error(&mut self, sql: &str) -> u16 {
        let packets = self.query(sql);
        ErrPacket::parse(packets.last().unwrap())
            .unwrap_or_else(|_| panic!("{sql}: {packets:?}"))
            .code
    }

    /// The rows of the only result of a text.
    pub(crate) fn rows(&mut self, sql: &str) -> Vec<Vec<Option<Vec<u8>>>> {
        let packets = self.query(sql);
        let columns = usize::from(packets[0][0]);
        assert_ne!(
            packets[0][0],
            ERR,
            "{sql}: {}",
            String::from_utf8_lossy(&packets[0])
        );
        let eof = usize::from(!self.machine.grammar().deprecate_eof);
        let rows = &packets[1 + columns + eof..packets.len() - 1];
        let own =
            |row: Vec<Option<&[u8]>>| row.into_iter().map(|v| v.map(<[u8]>::to_vec)).collect();
        rows.iter().map(|row| own(text_row(row).unwrap())).collect()
    }

    /// The first value.
    pub(crate) fn value(&mut self, sql: &str) -> Option<String> {
        let value = self.rows(sql).remove(0).remove(0)?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    /// Prepares a statement; its number as the client knows it.
    pub(crate) fn prepare(&mut self, sql: &str) -> u32 {
        let packets = self.command(&[&[command::STMT_PREPARE], sql.as_bytes()].concat());
        PrepareOk::parse(&packets[0])
            .unwrap_or_else(|_| panic!("{sql}: {packets:?}"))
            .id
    }

    /// Runs a statement with one BIGINT parameter, or none; the last packet's first byte, and the rows.
    pub(crate) fn execute(
        &mut self,
        id: u32,
        param: Option<(i64, bool)>,
        flags: u8,
    ) -> Vec<Vec<u8>> {
        let mut payload = vec![command::STMT_EXECUTE];
        payload.extend(id.to_le_bytes());
        payload.extend([flags, 1, 0, 0, 0]);
        if let Some((value, with_types)) = param {
            payload.push(0);
            payload.push(u8::from(with_types));
            if with_types {
                payload.extend([8, 0]);
            }
            payload.extend(value.to_le_bytes());
        }
        self.command(&payload)
    }

    pub(crate) fn with_id(&mut self, command: u8, id: u32, tail: &[u8]) -> Vec<Vec<u8>> {
        self.command(&[&[command][..], &id.to_le_bytes(), tail].concat())
    }

    pub(crate) fn probe_with(
        &mut self,
        baseline: Option<&Arc<Baseline>>,
        side: Option<&Side>,
    ) -> Result<Probe, ProbeError> {
        let held = self.machine.held();
        let spec = ProbeSpec {
            grammar: self.machine.grammar(),
            version: self.version,
            baseline,
            held: &held,
            side,
            known: self.known.as_ref(),
            in_full: false,
        };
        let mut out = BytesMut::new();
        let mut reader = put_probe(&mut out, &spec);
        self.stream.write_all(&out).unwrap();
        let probe = loop {
            match reader.on_packet(&self.read_raw())? {
                ProbeStep::More => {}
                ProbeStep::Send(bytes) => self.stream.write_all(&bytes).unwrap(),
                ProbeStep::Done(probe) => break *probe,
            }
        };
        assert_eq!(probe.connection_id, self.real_id);
        self.machine.answered(&probe.answer);
        self.machine.proven(probe.proven);
        self.machine.set_ansi_quotes(probe.ansi_quotes);
        self.known.clone_from(&probe.known);
        Ok(probe)
    }

    pub(crate) fn restore(
        &mut self,
        snapshot: &Snapshot,
        fresh: &Baseline,
    ) -> Result<Restored, String> {
        let mut out = BytesMut::new();
        let mut reader = put_restore(&mut out, snapshot, fresh, self.machine.grammar());
        self.stream.write_all(&out).unwrap();
        loop {
            match reader.on_packet(&self.read_raw()) {
                Ok(RestoreStep::More) => {}
                Ok(RestoreStep::Done(restored)) => return Ok(*restored),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// All that a client can read of its own session, by name.
    pub(crate) fn dump(&mut self, user_variables: &[&str]) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let family = self.machine.grammar().family;
        let limit = "LIMIT 18446744073709551615";
        let sql = match family {
            Family::MariaDb => format!(
                "SET STATEMENT sql_big_selects=1 FOR SELECT variable_name,HEX(session_value) FROM information_schema.system_variables WHERE variable_scope<>'GLOBAL' {limit}"
            ),
            Family::MySql => format!(
                "SELECT /*+ SET_VAR(sql_big_selects=1) */ variable_name,HEX(variable_value) FROM performance_schema.session_variables {limit}"
            ),
        };
        for row in self.rows(&sql) {
            let text = |at: usize| {
                row[at]
                    .as_ref()
                    .map(|v| String::from_utf8_lossy(v).into_owned())
            };
            all.insert(text(0).unwrap().to_lowercase(), format!("{:?}", text(1)));
        }
        let mut apart = vec!["sql_big_selects", "max_join_size"];
        if family == Family::MariaDb {
            apart.push("max_statement_time");
        }
        // Read as the session has them, which the statement above changes.
        for name in apart {
            let value = self.value(&format!("SELECT @@{name} LIMIT 1"));
            all.insert(name.to_owned(), format!("{value:?}"));
        }
        for own in [
            "timestamp",
            "pseudo_thread_id",
            "rand_seed1",
            "rand_seed2",
            "statement_id",
            "last_gtid",
            "gtid_executed",
            "gtid_owned",
        ] {
            all.remove(own);
        }
        for name in user_variables {
            let values: Vec<_> = [
                "@`$`",
                "HEX(@`$`)",
                "CHARSET(@`$`)",
                "COLLATION(@`$`)",
                "COERCIBILITY(@`$`)",
            ]
            .map(|part| {
                format!(
                    "HEX(CONCAT({}))",
                    part.replace('$', &name.replace('`', "``"))
                )
            })
            .into_iter()
            .map(|sql| self.value(&format!("SELECT {sql} LIMIT 1")))
            .collect();
            all.insert(format!("@{name}"), format!("{values:?}"));
        }
        for sql in [
            "DATABASE()",
            "CURRENT_ROLE()",
            "CURRENT_USER()",
            "@@last_insert_id",
        ] {
            let value = self.value(&format!("SELECT HEX({sql}) LIMIT 1"));
            all.insert(sql.to_owned(), format!("{value:?}"));
        }
        all
    }
}
