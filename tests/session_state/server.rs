//! A PostgreSQL server for the tests, and a blocking client that speaks frames.

use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use slackwater::session::pg::made::Made;
use slackwater::session::pg::probe::{
    Probe, ProbeError, ProbeReader, ProbeSpec, ProbeStep, put_probe,
};
use slackwater::session::pg::restore::{
    RestoreError, RestoreStep, Restored, put_restore, row_shape, verify,
};
use slackwater::session::pg::snapshot::Snapshot;
use slackwater::wire::pg::backend::{ErrorFields, data_row};
use slackwater::wire::pg::frame::{HEADER_LEN, Header, put, put_cstr, put_sized};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(crate) type Row = Vec<Option<String>>;
type Frame = (u8, Vec<u8>);

/// One server for all tests that run at the same time; it stops with the last of them.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    process: Child,
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

fn as_server_account(command: &mut Command) -> &mut Command {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres")
            .unwrap()
            .expect("account postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
}

/// The newest server of Debian's packages, or the one in SLACKWATER_TEST_PG_BIN.
fn binaries() -> PathBuf {
    if let Some(bin) = std::env::var_os("SLACKWATER_TEST_PG_BIN") {
        return bin.into();
    }
    let mut found: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL's server package")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL's server package")
}

impl Server {
    pub(crate) fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock();
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start());
        *shared = Arc::downgrade(&server);
        server
    }

    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
            nix::unistd::chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let (bin, data) = (binaries(), dir.path().join("data"));
        let status = as_server_account(&mut Command::new(bin.join("initdb")))
            .args([
                "-N",
                "-A",
                "trust",
                "-U",
                "adm",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "-D",
            ])
            .arg(&data)
            .status()
            .unwrap();
        assert!(status.success(), "initdb: {status}");
        let mut command = Command::new(bin.join("postgres"));
        as_server_account(&mut command)
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path());
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "wal_level=logical",
            "max_connections=60",
            "timezone=UTC",
        ] {
            command.args(["-c", setting]);
        }
        let server = Self {
            process: command.spawn().unwrap(),
            dir,
        };
        let mut adm = server.wait_until_up();
        for sql in [
            "CREATE ROLE app LOGIN",
            "CREATE ROLE grp",
            "GRANT grp TO app",
            "CREATE SCHEMA \"Foo Bar\" AUTHORIZATION app",
            "CREATE SCHEMA s1",
            "GRANT ALL ON SCHEMA public, s1 TO PUBLIC",
            "CREATE TABLE t (id int, v text)",
            "GRANT ALL ON t TO PUBLIC",
            "CREATE EXTENSION dblink",
            "CREATE FUNCTION pwn() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ \
             SELECT set_config('log_min_duration_statement', '5000', false) $$",
        ] {
            adm.query(sql);
        }
        server
    }

    fn wait_until_up(&self) -> Client {
        let deadline = tokio_now() + Duration::from_mins(1);
        loop {
            match Client::try_open(
                self.dir.path(),
                &[("user", "adm"), ("database", "postgres")],
            ) {
                Ok(client) => return client,
                Err(e) => assert!(tokio_now() < deadline, "the server does not come up: {e}"),
            }
            std::thread::yield_now();
        }
    }

    pub(crate) fn app(&self) -> Client {
        self.open(&[("user", "app"), ("database", "postgres")])
    }

    pub(crate) fn adm(&self) -> Client {
        self.open(&[("user", "adm"), ("database", "postgres")])
    }

    pub(crate) fn open(&self, startup: &[(&str, &str)]) -> Client {
        Client::try_open(self.dir.path(), startup).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
        self.process.wait().unwrap();
    }
}

pub(crate) fn tokio_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// A blocking client that speaks frames.
pub(crate) struct Client {
    socket: UnixStream,
    inbox: BytesMut,
    user: String,
    dir: PathBuf,
    startup: Vec<(String, String)>,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) version: u32,
}

impl Client {
    fn try_open(dir: &Path, startup: &[(&str, &str)]) -> Result<Self, String> {
        let socket = UnixStream::connect(dir.join(".s.PGSQL.5432")).map_err(|e| e.to_string())?;
        socket
            .set_read_timeout(Some(Duration::from_mins(1)))
            .unwrap();
        let mut client = Self {
            socket,
            inbox: BytesMut::new(),
            user: startup[0].1.to_owned(),
            dir: dir.to_owned(),
            startup: startup
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            parameters: BTreeMap::new(),
            version: 0,
        };
        let mut out = BytesMut::new();
        put_sized(&mut out, |out| {
            out.put_i32(3 << 16);
            for (name, value) in startup {
                put_cstr(out, name.as_bytes());
                put_cstr(out, value.as_bytes());
            }
            out.put_u8(0);
        });
        client.send(&out);
        loop {
            let (tag, body) = client.frame()?;
            match tag {
                b'E' => return Err(ErrorFields::parse(&body).message),
                b'S' => client.on_parameter(&body),
                b'Z' => break,
                _ => {}
            }
        }
        client.version = client.query("SHOW server_version_num")[0][0]
            .clone()
            .unwrap()
            .parse()
            .unwrap();
        Ok(client)
    }

    /// A new connection with the same start-up packet.
    pub(crate) fn again(&self) -> Self {
        let startup: Vec<_> = self
            .startup
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        Self::try_open(&self.dir, &startup).unwrap()
    }

    fn on_parameter(&mut self, body: &[u8]) {
        let mut parts = body
            .split(|b| *b == 0)
            .map(|p| String::from_utf8_lossy(p).into_owned());
        self.parameters
            .insert(parts.next().unwrap(), parts.next().unwrap());
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(crate) fn frame(&mut self) -> Result<(u8, Vec<u8>), String> {
        loop {
            if let Some(header) = Header::parse(&self.inbox).unwrap()
                && self.inbox.len() >= header.frame_len()
            {
                let frame = self.inbox.split_to(header.frame_len());
                return Ok((header.tag, frame[HEADER_LEN..].to_vec()));
            }
            let mut buffer = [0; 8192];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(n) => self.inbox.extend_from_slice(&buffer[..n]),
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn until_ready(&mut self) -> (Vec<Row>, Vec<Frame>, Option<ErrorFields>) {
        let (mut rows, mut frames, mut error) = (Vec::new(), Vec::new(), None);
        loop {
            let (tag, body) = self.frame().unwrap();
            match tag {
                b'D' => rows.push(
                    data_row(&body)
                        .unwrap()
                        .iter()
                        .map(|v| v.map(|v| String::from_utf8_lossy(v).into_owned()))
                        .collect(),
                ),
                b'S' => self.on_parameter(&body),
                b'E' => error = Some(ErrorFields::parse(&body)),
                b'Z' => return (rows, frames, error),
                _ => {}
            }
            frames.push((tag, body));
        }
    }

    pub(crate) fn try_query(
        &mut self,
        sql: impl AsRef<[u8]>,
    ) -> Result<Vec<Row>, Box<ErrorFields>> {
        let mut out = BytesMut::new();
        put(&mut out, b'Q', |out| put_cstr(out, sql.as_ref()));
        self.send(&out);
        let (rows, _, error) = self.until_ready();
        error.map_or(Ok(rows), |e| Err(Box::new(e)))
    }

    pub(crate) fn query(&mut self, sql: &str) -> Vec<Row> {
        self.try_query(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"))
    }

    pub(crate) fn parse(&mut self, name: &str, sql: impl AsRef<[u8]>) {
        let mut out = BytesMut::new();
        put(&mut out, b'P', |out| {
            put_cstr(out, name.as_bytes());
            put_cstr(out, sql.as_ref());
            out.put_i16(0);
        });
        put(&mut out, b'S', |_| {});
        self.send(&out);
        let (_, _, error) = self.until_ready();
        assert_eq!(error, None, "Parse {name}");
    }

    pub(crate) fn execute(
        &mut self,
        name: &str,
        params: &[&str],
    ) -> Result<Vec<Row>, Box<ErrorFields>> {
        let mut out = BytesMut::new();
        put(&mut out, b'B', |out| {
            out.put_u8(0);
            put_cstr(out, name.as_bytes());
            out.put_i16(0);
            out.put_i16(i16::try_from(params.len()).unwrap());
            for param in params {
                out.put_i32(i32::try_from(param.len()).unwrap());
                out.put_slice(param.as_bytes());
            }
            out.put_i16(0);
        });
        put(&mut out, b'E', |out| out.put_slice(&[0; 5]));
        put(&mut out, b'S', |_| {});
        self.send(&out);
        let (rows, _, error) = self.until_ready();
        error.map_or(Ok(rows), |e| Err(Box::new(e)))
    }

    pub(crate) fn describe(&mut self, name: &str) -> u64 {
        let mut out = BytesMut::new();
        put(&mut out, b'D', |out| {
            out.put_u8(b'S');
            put_cstr(out, name.as_bytes());
        });
        put(&mut out, b'S', |_| {});
        self.send(&out);
        let (_, frames, _) = self.until_ready();
        let (tag, body) = frames
            .iter()
            .find(|(tag, _)| matches!(tag, b'T' | b'n'))
            .unwrap();
        row_shape(*tag, body)
    }

    pub(crate) fn put_probe(
        &self,
        names: &[&str],
        previous: Option<&Snapshot>,
    ) -> (BytesMut, ProbeReader) {
        let custom_names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut out = BytesMut::new();
        let reader = put_probe(
            &mut out,
            &ProbeSpec {
                custom_names: &custom_names,
                previous,
                login_user: &self.user,
                server_version_num: self.version,
            },
        );
        (out, reader)
    }

    pub(crate) fn read_probe(
        &mut self,
        reader: &mut ProbeReader,
    ) -> (Result<Probe, ProbeError>, Vec<u8>) {
        let mut for_client = Vec::new();
        loop {
            let (tag, body) = self.frame().unwrap();
            match reader.on_frame(tag, &body) {
                Ok(ProbeStep::More) => {}
                Ok(ProbeStep::ForClient) => {
                    if tag == b'S' {
                        self.on_parameter(&body);
                    }
                    for_client.push(tag);
                }
                Ok(ProbeStep::Send(bytes)) => self.send(&bytes),
                Ok(ProbeStep::Done(probe)) => return (Ok(*probe), for_client),
                Err(e) => return (Err(e), for_client),
            }
        }
    }

    pub(crate) fn try_probe(&mut self, names: &[&str]) -> Result<Probe, ProbeError> {
        let (out, mut reader) = self.put_probe(names, None);
        self.send(&out);
        self.read_probe(&mut reader).0
    }

    pub(crate) fn probe(&mut self, names: &[&str]) -> Probe {
        self.try_probe(names).unwrap()
    }

    pub(crate) fn restore(
        &mut self,
        snapshot: &Snapshot,
        left_out: &BTreeSet<Box<str>>,
    ) -> Result<(Restored, Probe), Box<RestoreError>> {
        let mut out = BytesMut::new();
        let mut reader = put_restore(&mut out, snapshot, left_out, &Made::default(), self.version);
        let (probe, mut probe_reader) = self.put_probe(&[], Some(snapshot));
        out.extend_from_slice(&probe);
        self.send(&out);
        let restored = loop {
            let (tag, body) = self.frame().unwrap();
            match reader.on_frame(tag, &body)? {
                RestoreStep::More => {}
                RestoreStep::ParameterStatus => self.on_parameter(&body),
                RestoreStep::Done(restored) => break restored,
            }
        };
        Ok((restored, self.read_probe(&mut probe_reader).0.unwrap()))
    }

    /// What a move does: the snapshot goes onto a new connection, which is verified.
    pub(crate) fn moved(&self, snapshot: &Snapshot) -> (Self, Restored, Probe) {
        let mut new = self.again();
        let (restored, probe) = new.restore(snapshot, &BTreeSet::new()).unwrap();
        verify(snapshot, &probe, &BTreeSet::new()).unwrap();
        (new, restored, probe)
    }

    /// What must be equal after a move, asked so that no setting of the session disturbs the answer.
    pub(crate) fn dump(&mut self, custom: &[&str]) -> Vec<Vec<Row>> {
        self.query("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE");
        let mut out = vec![
            self.query(
                "SELECT name, setting, source FROM pg_catalog.pg_settings \
                 WHERE source OPERATOR(pg_catalog.=) ANY ('{session,client}'::pg_catalog.text[]) \
                 AND pg_catalog.left(name, 13) OPERATOR(pg_catalog.<>) 'transaction_i' \
                 AND pg_catalog.left(name, 13) OPERATOR(pg_catalog.<>) 'transaction_r' \
                 AND pg_catalog.left(name, 13) OPERATOR(pg_catalog.<>) 'transaction_d' ORDER BY 1",
            ),
            self.query(
                "SELECT name, pg_catalog.encode(pg_catalog.convert_to(statement, 'UTF8'), 'hex'), \
                 parameter_types::pg_catalog.oid[], from_sql \
                 FROM pg_catalog.pg_prepared_statements ORDER BY 1",
            ),
            self.query(
                "SELECT current_user, session_user, pg_catalog.current_setting('role'), \
                 pg_catalog.current_setting('is_superuser'), \
                 pg_catalog.current_setting('session_authorization')",
            ),
        ];
        for name in custom {
            out.push(self.query(&format!(
                "SELECT pg_catalog.current_setting('{name}', true)"
            )));
        }
        self.query("COMMIT");
        out
    }
}
