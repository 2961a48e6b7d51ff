//! Starts MariaDB and MySQL servers for tests: made once per machine and version into a template, a copy per
//! server. They are asked with the engines' own command-line clients, which prove nothing about ours.

use super::guard::Guard;
use super::ports::Port;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// Name and password of an account with every right.
pub(crate) const ADMIN: (&str, &str) = ("admin", "admin-secret");
/// Name and password of the proxy's service account, with every right too.
pub(crate) const SERVICE: (&str, &str) = ("slackwater", "service-secret");
/// Name and password of the ordinary account, which has the database of the same name.
pub(crate) const APP: (&str, &str) = ("app", "app-secret");

/// How long a server may take to start or stop.
const SERVER: Duration = Duration::from_mins(1);

const STATEMENTS: &[&str] = &[
    "CREATE USER 'admin'@'%' IDENTIFIED BY 'admin-secret'",
    "GRANT ALL PRIVILEGES ON *.* TO 'admin'@'%' WITH GRANT OPTION",
    "CREATE USER 'slackwater'@'%' IDENTIFIED BY 'service-secret'",
    "GRANT ALL PRIVILEGES ON *.* TO 'slackwater'@'%' WITH GRANT OPTION",
    "CREATE USER 'app'@'%' IDENTIFIED BY 'app-secret'",
    "CREATE DATABASE app",
    "GRANT ALL PRIVILEGES ON app.* TO 'app'@'%'",
    "CREATE ROLE helper",
    "GRANT helper TO 'app'@'%'",
];

/// A server that tests run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    /// Debian's, which is installed.
    Mariadb1011,
    /// Fetched by `scripts/mysql_servers.sh`.
    Mariadb118,
    /// Fetched by `scripts/mysql_servers.sh`.
    Mysql97,
}

impl Version {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Mariadb1011, Self::Mariadb118, Self::Mysql97];

    /// Whether it is MySQL, not MariaDB.
    pub(crate) fn is_mysql(self) -> bool {
        self == Self::Mysql97
    }

    /// Its name in proxy.toml.
    pub(crate) fn engine(self) -> &'static str {
        if self.is_mysql() { "mysql" } else { "mariadb" }
    }

    /// The directory with its programs, for `binaries`; `None` for the installed one, which is found by itself.
    /// `Err`: it can't be had here; a line says so.
    pub(crate) fn binaries(self) -> Result<Option<PathBuf>, ()> {
        let wanted = match self {
            Self::Mariadb1011 => return Ok(None),
            Self::Mariadb118 => ["mariadb", "11.8"],
            Self::Mysql97 => ["mysql", "9.7"],
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mysql_servers.sh");
        match Command::new(script).args(wanted).output() {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                Ok(Some(PathBuf::from(text.trim())))
            }
            other => {
                let text = format!("SKIPPED: {wanted:?} can't be fetched: {other:?}\n");
                let _ = std::io::stderr().write_all(text.as_bytes());
                Err(())
            }
        }
    }

    fn server_program(self) -> &'static str {
        if self.is_mysql() {
            "mysqld"
        } else {
            "mariadbd"
        }
    }

    /// The engine's own client.
    pub(crate) fn client_program(self) -> &'static str {
        if self.is_mysql() { "mysql" } else { "mariadb" }
    }
}

/// A running server. Killed, and its files removed, on drop.
pub(crate) struct Mysql {
    version: Version,
    binaries: Option<PathBuf>,
    dir: tempfile::TempDir,
    port: Port,
    settings: Vec<String>,
    child: Option<Child>,
    _guard: Guard,
}

impl Mysql {
    /// Starts a fresh server with these settings (`name=value`); `None` where its programs can't be had.
    pub(crate) fn start(version: Version, settings: &[&str]) -> Option<Self> {
        let binaries = version.binaries().ok()?;
        let dir = tempfile::Builder::new()
            .prefix("slackwater-my-")
            .tempdir()
            .unwrap();
        give_away(dir.path());
        let guard = Guard::over(&[dir.path()]);
        let template = template(version, binaries.as_deref());
        copy(&template, &dir.path().join("data"));
        let mut server = Self {
            version,
            binaries,
            dir,
            port: Port::take(),
            settings: settings.iter().map(|&s| s.to_owned()).collect(),
            child: None,
            _guard: guard,
        };
        server.boot();
        Some(server)
    }

    /// One more setting, from its next start on.
    pub(crate) fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Starts the server's process again after [`Self::stop`], and waits until it takes queries.
    pub(crate) fn boot(&mut self) {
        self.spawn();
        let deadline = Instant::now() + SERVER;
        loop {
            if self.query(ADMIN, "", "SELECT 1").is_ok() {
                return;
            }
            let ended = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten());
            assert!(ended.is_none(), "the server ended: {}", self.log());
            assert!(Instant::now() < deadline, "no start: {}", self.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Starts the server's process and does not wait.
    pub(crate) fn spawn(&mut self) {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = command(self.binaries.as_deref(), self.version.server_program());
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", self.data_dir().display()))
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!(
                "--pid-file={}",
                self.dir.path().join("pid").display()
            ))
            .arg(format!("--port={}", self.port.number))
            .arg(format!("--secure-file-priv={}", self.dir.path().display()))
            // A server that starts removes from /tmp what others are using.
            .arg(format!("--tmpdir={}", self.dir.path().display()))
            .args([
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--server-id=1",
            ])
            .args(["--max-connections=150", "--innodb-buffer-pool-size=64M"])
            .args([
                "--innodb-flush-log-at-trx-commit=2",
                "--character-set-server=utf8mb4",
            ]);
        command.args(if self.version.is_mysql() {
            ["--mysqlx=OFF", "--performance-schema=ON"]
        } else {
            ["--skip-log-error", "--plugin-load-add=metadata_lock_info"]
        });
        for setting in &self.settings {
            command.arg(format!("--{setting}"));
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().expect("the server starts"));
    }

    /// Sends `signal` to the server (SIGTERM: clean stop) without waiting.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id().cast_signed()), signal).expect("the server is ours");
        }
    }

    /// Stops the server cleanly and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.wait();
    }

    /// Kills the server (SIGKILL), and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Stops its process where it is, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.signal(if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        });
    }

    /// Waits for the end of the process that was signalled.
    pub(crate) fn wait(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// What it is.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port.number
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number)
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The engine's own client, for what else is to be given to it.
    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new(program(
            self.binaries.as_deref(),
            self.version.client_program(),
        ));
        command.arg("--no-defaults");
        command
    }

    /// Statements by the engine's own client over the Unix socket: the rows, values parted by tabs, or what it said.
    pub(crate) fn query(
        &self,
        account: (&str, &str),
        database: &str,
        sql: &str,
    ) -> Result<Vec<String>, String> {
        let output = self
            .client()
            .args(["--batch", "--skip-column-names", "--raw"])
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--user={}", account.0))
            .args(["-e", sql, database])
            .env("MYSQL_PWD", account.1)
            .output()
            .expect("the client runs (run `make setup`)");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Runs statements with every right, straight on the server.
    pub(crate) fn run(&self, statements: &[&str]) {
        for sql in statements {
            self.query(ADMIN, "app", sql)
                .unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }

    /// The one value that a query with every right answers.
    pub(crate) fn value(&self, sql: &str) -> String {
        let rows = self.query(ADMIN, "app", sql);
        let mut rows = rows.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.remove(0)
    }
}

impl Drop for Mysql {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The account that servers run under when the tests run as root.
fn account() -> Option<User> {
    nix::unistd::geteuid().is_root().then(|| {
        ["mysql", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .expect("an unprivileged account, since these servers refuse to run as root")
    })
}

fn give_away(dir: &Path) {
    if let Some(user) = account() {
        nix::unistd::chown(dir, Some(user.uid), Some(user.gid)).expect("chown as root");
    }
}

fn program(binaries: Option<&Path>, name: &str) -> PathBuf {
    if let Some(binaries) = binaries {
        return binaries.join(name);
    }
    ["/usr/sbin", "/usr/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no {name} in /usr/sbin or /usr/bin (run `make setup`)"))
}

/// A program that runs under the servers' account.
fn command(binaries: Option<&Path>, name: &str) -> Command {
    let mut command = Command::new(program(binaries, name));
    if let Some(user) = account() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

/// Copies a data directory to `to`, where it belongs to the servers' account.
fn copy(from: &Path, to: &Path) {
    let run = |command: &mut Command| {
        let status = command.status().unwrap();
        assert!(status.success(), "copying a data directory: {command:?}");
    };
    run(Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(from)
        .arg(to));
    if let Some(user) = account() {
        let owner = format!("{}:{}", user.uid, user.gid);
        run(Command::new("chown").args(["-R", &owner]).arg(to));
    }
}

/// The template data directory of a version, made on first use.
fn template(version: Version, binaries: Option<&Path>) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    (STATEMENTS, binaries).hash(&mut hash);
    let base = std::env::temp_dir().join(format!(
        "slackwater-test-{version:?}-{}-{:x}",
        nix::unistd::geteuid(),
        hash.finish()
    ));
    fs::create_dir_all(&base).unwrap();
    give_away(&base);
    let lock = File::create(base.join("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let ready = base.join("data");
    if !ready.exists() {
        let making = base.join("making");
        let _ = fs::remove_dir_all(&making);
        make_template(version, binaries, &base, &making);
        // Each server is to have a number of its own.
        let _ = fs::remove_file(making.join("auto.cnf"));
        fs::rename(&making, &ready).unwrap();
    }
    ready
}

fn make_template(version: Version, binaries: Option<&Path>, base: &Path, data: &Path) {
    let places = [
        format!("--datadir={}", data.display()),
        format!("--tmpdir={}", base.display()),
    ];
    let mut make = if version.is_mysql() {
        let mut command = command(binaries, "mysqld");
        command.args([
            "--no-defaults",
            "--initialize-insecure",
            "--secure-file-priv=NULL",
            "--innodb-redo-log-capacity=8M",
        ]);
        command
    } else {
        let mut command = command(binaries, "mariadb-install-db");
        command.args([
            "--no-defaults",
            "--skip-test-db",
            "--skip-name-resolve",
            "--force",
            "--auth-root-authentication-method=normal",
            "--innodb-log-file-size=8M",
        ]);
        command
    };
    let output = make.args(&places).output().unwrap();
    assert!(output.status.success(), "{version:?}: {output:?}");
    let socket = base.join("s");
    let log = File::create(base.join("log")).unwrap();
    let mut server = command(binaries, version.server_program());
    server
        .args(["--no-defaults", "--skip-networking", "--secure-file-priv="])
        .args(&places)
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--pid-file={}", base.join("pid").display()))
        .stdout(Stdio::null())
        .stderr(log);
    let mut server = server.spawn().expect("the server starts");
    let query = |sql: &str| {
        let mut client = Command::new(program(binaries, version.client_program()));
        client
            .args(["--no-defaults", "--user=root", "-e", sql])
            .arg(format!("--socket={}", socket.display()));
        client.output().expect("the client runs (run `make setup`)")
    };
    let deadline = Instant::now() + SERVER;
    while !query("SELECT 1").status.success() {
        assert!(Instant::now() < deadline, "no start of {version:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    for sql in STATEMENTS {
        let output = query(sql);
        assert!(output.status.success(), "{sql}: {output:?}");
    }
    kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
}
