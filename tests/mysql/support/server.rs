//! Starts MariaDB and MySQL servers for tests: initialised once per machine into a template, a copy per server.

use super::client::{Client, Target};
use super::guard::Guard;
use super::ports::Port;
use super::{SOON, wait_for};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Name and password of the proxy's service account.
pub(crate) const SERVICE: (&str, &str) = ("slackwater", "service-secret");
/// Name and password of the ordinary user, who has the database of the same name.
pub(crate) const APP: (&str, &str) = ("app", "app-secret");

/// Names the server to test with: one of [`Kind::ALL`]'s names.
const SERVER: &str = "SLACKWATER_TEST_MYSQL";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// MariaDB as it is installed.
    MariaDb,
    /// MariaDB 11.8.
    MariaDb118,
    /// MySQL 9.7.
    MySql97,
}

impl Kind {
    const ALL: [(Self, &'static str); 3] = [
        (Self::MariaDb, "mariadb"),
        (Self::MariaDb118, "mariadb-11.8"),
        (Self::MySql97, "mysql-9.7"),
    ];

    /// The one to test with.
    pub(crate) fn wanted() -> Self {
        let Ok(name) = std::env::var(SERVER) else {
            return Self::MariaDb;
        };
        let found = Self::ALL.iter().find(|(_, n)| *n == name);
        found.unwrap_or_else(|| panic!("{SERVER}: {name}?")).0
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(k, _)| *k == self).unwrap().1
    }

    pub(crate) fn is_mysql(self) -> bool {
        self == Self::MySql97
    }

    /// What `engine` in proxy.toml names it.
    pub(crate) fn engine(self) -> &'static str {
        if self.is_mysql() { "mysql" } else { "mariadb" }
    }

    /// The directory of its programs.
    pub(crate) fn programs(self) -> PathBuf {
        let words = match self {
            Self::MariaDb => return PathBuf::from("/usr/sbin"),
            Self::MariaDb118 => ["mariadb", "11.8"],
            Self::MySql97 => ["mysql", "9.7"],
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mysql_servers.sh");
        let output = Command::new(script).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }

    /// What it calls things of replication.
    pub(crate) fn words(self) -> &'static Words {
        if self.is_mysql() { &MYSQL } else { &MARIADB }
    }

    fn daemon(self) -> PathBuf {
        let name = if self.is_mysql() {
            "mysqld"
        } else {
            "mariadbd"
        };
        self.programs().join(name)
    }
}

/// Statements of replication, which have other words in each engine.
pub(crate) struct Words {
    pub(crate) read_only: &'static str,
    pub(crate) writable: &'static str,
    pub(crate) transactions: &'static str,
    /// A function of transactions and seconds.
    wait: &'static str,
    /// Empties the log.
    forget: &'static str,
    follow: &'static str,
    pub(crate) stop_receiving: &'static str,
    pub(crate) stop_following: &'static str,
    pub(crate) follow_nobody: &'static str,
}

const MARIADB: Words = Words {
    read_only: "SET GLOBAL read_only = ON",
    writable: "SET GLOBAL read_only = OFF",
    transactions: "SELECT @@GLOBAL.gtid_binlog_pos",
    wait: "MASTER_GTID_WAIT",
    forget: "RESET MASTER",
    follow: "START SLAVE",
    stop_receiving: "STOP SLAVE IO_THREAD",
    stop_following: "STOP SLAVE",
    follow_nobody: "RESET SLAVE ALL",
};

const MYSQL: Words = Words {
    read_only: "SET GLOBAL super_read_only = ON",
    // It turns off super_read_only as well.
    writable: "SET GLOBAL read_only = OFF",
    transactions: "SELECT REPLACE(@@GLOBAL.gtid_executed, CHAR(10), '')",
    wait: "WAIT_FOR_EXECUTED_GTID_SET",
    forget: "RESET BINARY LOGS AND GTIDS",
    follow: "START REPLICA",
    stop_receiving: "STOP REPLICA IO_THREAD",
    stop_following: "STOP REPLICA",
    follow_nobody: "RESET REPLICA ALL",
};

/// Runs the tests of this binary whose names have one of `filters` in them on another server than the installed one.
pub(crate) fn on_another_server(kind: Kind, filters: &[&str]) {
    if std::env::var_os(SERVER).is_some() {
        return;
    }
    let name = kind.name();
    if std::panic::catch_unwind(|| kind.programs()).is_err() {
        let text = format!("SKIPPED: {name} can't be fetched\n");
        let _ = std::io::stderr().write_all(text.as_bytes());
        return;
    }
    let this = std::env::current_exe().expect("a test knows its own program");
    let output = Command::new(this)
        .args(filters)
        .args(["--test-threads", "2"])
        .env(SERVER, name)
        .output()
        .expect("a test program runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}\n{errors}");
    assert!(
        !said.contains(" 0 passed"),
        "{filters:?} name tests: {said}"
    );
}

/// The account that servers run under when the tests run as root.
fn account() -> Option<User> {
    nix::unistd::geteuid()
        .is_root()
        .then(|| User::from_name("mysql").ok().flatten())
        .flatten()
}

/// Makes `dir` belong to the servers' account.
pub(crate) fn give_away(dir: &Path) {
    if let Some(user) = account() {
        nix::unistd::chown(dir, Some(user.uid), Some(user.gid)).expect("chown as root");
    }
}

/// Servers refuse to run as root.
fn command(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = account() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    // Servers that begin together take each other's temporary files otherwise.
    command.current_dir("/").env("TMPDIR", dir);
    command
}

fn done(mut command: Command) {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A running server. Killed, and its files removed, on drop.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    dir: tempfile::TempDir,
    port: Port,
    settings: Vec<String>,
    child: Option<Child>,
    _guard: Guard,
}

impl Server {
    /// Starts a fresh server of the kind to test with, with more arguments.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let mut server = Self::copied(settings);
        server.run_again();
        server
    }

    fn copied(settings: &[&str]) -> Self {
        let kind = Kind::wanted();
        let dir = tempfile::Builder::new()
            .prefix("slackwater-my-")
            .tempdir()
            .unwrap();
        give_away(dir.path());
        let guard = Guard::over(&[dir.path()]);
        copy_template(kind, &dir.path().join("data"));
        Self {
            kind,
            dir,
            port: Port::take(),
            settings: settings.iter().map(|&s| s.to_owned()).collect(),
            child: None,
            _guard: guard,
        }
    }

    /// Two servers with the same settings, those for replication among them. The second one follows the first.
    pub(crate) fn pair(settings: &[&str]) -> [Self; 2] {
        let pair = ["--server-id=1", "--server-id=2"].map(|number| {
            let mut server = Self::copied(settings);
            server.set(&[number]);
            // Both are copies of the same server, which MySQL knows by this.
            let _ = fs::remove_file(server.dir.path().join("data/auto.cnf"));
            server.run_again();
            // What the template's server wrote to its log has no global transaction ids.
            server.run(&[server.kind.words().forget]);
            server
        });
        pair[1].follow(&pair[0]);
        pair
    }

    /// Has it follow another server from where it is, taking no writes of its own.
    pub(crate) fn follow(&self, primary: &Self) {
        let words = self.kind.words();
        let port = primary.port.number;
        let (user, password) = SERVICE;
        let source = if self.kind.is_mysql() {
            format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, SOURCE_USER = '{user}', \
                 SOURCE_PASSWORD = '{password}', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1"
            )
        } else {
            format!(
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = '{user}', \
                 MASTER_PASSWORD = '{password}', MASTER_SSL = 0, MASTER_USE_GTID = slave_pos"
            )
        };
        let mut admin = Client::to(&self.admin());
        admin.run(words.read_only);
        // It would fall behind whenever clients write all the time.
        admin.run("SET GLOBAL innodb_flush_log_at_trx_commit = 2, GLOBAL sync_binlog = 0");
        if !self.kind.is_mysql() {
            admin.run("SET GLOBAL slave_parallel_threads = 4");
            admin.run("SET GLOBAL gtid_slave_pos = @@GLOBAL.gtid_current_pos");
        }
        admin.run(&source);
        admin.run(words.follow);
        self.wait_for_all(&mut admin, &primary.transactions());
    }

    /// Has a standby that is to be a primary write as safely as servers do by themselves.
    pub(crate) fn durable(&self) -> String {
        let binlog = u8::from(self.kind.is_mysql());
        format!("SET GLOBAL innodb_flush_log_at_trx_commit = 1, GLOBAL sync_binlog = {binlog}")
    }

    /// The global transaction ids of all that is in its log.
    pub(crate) fn transactions(&self) -> String {
        Client::to(&self.admin()).value(self.kind.words().transactions)
    }

    /// Waits until this server, which follows another one, has all of these transactions.
    pub(crate) fn wait_for_all(&self, admin: &mut Client, transactions: &str) {
        let wait = self.kind.words().wait;
        let answer = admin.value(&format!("SELECT {wait}('{transactions}', 60)"));
        assert!(answer.contains('0'), "{answer}");
    }

    /// Starts it, after it was stopped or killed.
    pub(crate) fn run_again(&mut self) {
        let mut command = daemon(self.kind, self.dir.path(), &self.dir.path().join("data"));
        command
            .arg(format!("--port={}", self.port.number))
            .args(&self.settings);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"));
        let child = command.stdout(Stdio::null()).stderr(log.unwrap()).spawn();
        self.child = Some(child.expect("the server starts"));
        wait_for("the server answers", Duration::from_secs(60), || {
            Client::connect(&self.admin()).ok()
        });
    }

    /// More arguments, from its next start on.
    pub(crate) fn set(&mut self, settings: &[&str]) {
        self.settings.extend(settings.iter().map(|&s| s.to_owned()));
    }

    /// The superuser, over the socket.
    pub(crate) fn admin(&self) -> Target {
        Target::socket(&self.dir.path().join("s"), "root", "")
    }

    /// The ordinary user, straight.
    pub(crate) fn app(&self) -> Target {
        Target::new(self.port.number, APP)
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number)
    }

    /// Runs statements as the superuser.
    pub(crate) fn run(&self, statements: &[&str]) {
        let mut admin = Client::connect(&self.admin()).unwrap();
        for sql in statements {
            admin.run(sql);
        }
    }

    /// Kills it without warning.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it as an administrator does.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            wait_for("the server stops", SOON, || child.try_wait().unwrap());
        }
    }

    /// Freezes it (SIGSTOP), or lets it go on. A thread that runs stops a little after the signal: it is waited for.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        let pid = self.child.as_ref().expect("it runs").id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        let stopped = |entry: fs::DirEntry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            stat.contains(") T ")
        };
        wait_for("its threads stand still", SOON, || {
            let mut threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
            (!frozen || threads.all(stopped)).then_some(())
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What every server is started with.
fn daemon(kind: Kind, dir: &Path, data: &Path) -> Command {
    let mut command = command(&kind.daemon(), dir);
    command
        .args([
            "--no-defaults",
            "--secure-file-priv=",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--max-connections=300",
            "--innodb-buffer-pool-size=32M",
            "--local-infile=ON",
        ])
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", dir.join("s").display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()));
    if kind.is_mysql() {
        command.args(["--mysqlx=OFF", "--performance-schema=ON"]);
    } else {
        command.arg("--plugin-load-add=metadata_lock_info");
    }
    command
}

/// Accounts and databases that the tests expect.
pub(crate) const SETUP: &[&str] = &[
    "CREATE USER slackwater@'%' IDENTIFIED BY 'service-secret'",
    "GRANT ALL ON *.* TO slackwater@'%' WITH GRANT OPTION",
    "CREATE DATABASE app",
    "CREATE DATABASE other",
    "CREATE USER app@'%' IDENTIFIED BY 'app-secret'",
    "GRANT ALL ON app.* TO app@'%'",
    "GRANT ALL ON other.* TO app@'%'",
    "CREATE ROLE helper",
    "GRANT helper TO app@'%'",
    "CREATE USER second@'%' IDENTIFIED BY 'second-secret'",
    "GRANT ALL ON app.* TO second@'%'",
    "CREATE USER raw@'%' IDENTIFIED BY ''",
    "GRANT ALL ON app.* TO raw@'%'",
];

/// Copies the template's data directory to `data`; makes it first where there is none.
fn copy_template(kind: Kind, data: &Path) {
    let name = format!("slackwater-test-my-{}-v2", kind.name());
    let place = std::env::temp_dir().join(name);
    fs::create_dir_all(&place).unwrap();
    give_away(&place);
    let lock = File::create(place.with_extension("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("locked");
    let made = place.join("made");
    if !made.exists() {
        let _ = fs::remove_dir_all(place.join("data"));
        make_template(kind, &place);
        File::create(&made).unwrap();
    }
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"])
        .arg(place.join("data"))
        .arg(data);
    done(copy);
    // Each server is one of its own; MySQL makes itself a new number.
    let _ = fs::remove_file(data.join("auto.cnf"));
}

fn make_template(kind: Kind, place: &Path) {
    let data = place.join("data");
    let data_dir = format!("--datadir={}", data.display());
    if kind.is_mysql() {
        let mut install = command(&kind.daemon(), place);
        install.args([
            "--no-defaults",
            "--initialize-insecure",
            "--secure-file-priv=",
        ]);
        install.arg("--innodb-redo-log-capacity=8M").arg(&data_dir);
        done(install);
    } else {
        // The installed program writes system tables that every later version can go on with.
        let mut install = command(Path::new("mariadb-install-db"), place);
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=8M",
        ]);
        install.arg(&data_dir);
        done(install);
    }
    let mut server = daemon(kind, place, &data);
    server.arg("--skip-networking");
    let log = File::create(place.join("log")).unwrap();
    let mut child = server.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let target = Target::socket(&place.join("s"), "root", "");
    let mut admin = wait_for(
        "the template's server answers",
        Duration::from_secs(60),
        || Client::connect(&target).ok(),
    );
    for sql in SETUP {
        admin.run(sql);
    }
    drop(admin);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}
