//! Starts PostgreSQL servers for tests: initdb once per machine into a template, a copy per server.

pub(crate) use super::ports::Port;
use super::wire::{Client, Target};
use super::{SOON, servers, wait_for};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Name and password of the superuser.
pub(crate) const ADMIN: (&str, &str) = ("postgres", "admin-secret");
/// Name and password of the proxy's service account (superuser).
pub(crate) const SERVICE: (&str, &str) = ("slackwater", "service-secret");
/// Name and password of a user that may replicate.
pub(crate) const REPL: (&str, &str) = ("repl", "repl-secret");
/// Name and password of the ordinary user, who owns the database of the same name.
pub(crate) const APP: (&str, &str) = ("app", "app-secret");

const HBA: &str = "local all all scram-sha-256\n\
    host all all 127.0.0.1/32 scram-sha-256\n\
    host all all ::1/128 scram-sha-256\n\
    local replication all scram-sha-256\n\
    host replication all 127.0.0.1/32 scram-sha-256\n";

/// Before PostgreSQL 14 md5 was the default.
const SETTINGS: &str = "password_encryption = 'scram-sha-256'\n";

const ROLES: &[&str] = &[
    "CREATE ROLE slackwater SUPERUSER LOGIN PASSWORD 'service-secret'",
    "CREATE ROLE app LOGIN PASSWORD 'app-secret'",
    "CREATE ROLE repl LOGIN REPLICATION PASSWORD 'repl-secret'",
    "CREATE ROLE helper NOLOGIN",
    "GRANT helper TO app",
    "CREATE DATABASE app OWNER app",
];

/// The directory with the server programs to test with.
pub(crate) fn server_binaries() -> PathBuf {
    std::env::var_os(servers::BINARIES).map_or_else(binaries, Into::into)
}

/// The directory with PostgreSQL's programs of the newest installed version, clients among them.
pub(crate) fn binaries() -> PathBuf {
    let newest = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok().map(|e| e.path().join("bin")))
        .filter(|p| p.join("initdb").exists() && p.join("postgres").exists())
        .max_by_key(|p| {
            let version = p.parent().and_then(Path::file_name).map(ToOwned::to_owned);
            version.and_then(|v| v.to_str()?.parse::<u32>().ok())
        });
    newest.expect("PostgreSQL's server programs in /usr/lib/postgresql (run `make setup`)")
}

/// The account that servers run under when the tests run as root.
fn account() -> Option<User> {
    nix::unistd::geteuid().is_root().then(|| {
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .expect("an unprivileged account, since PostgreSQL refuses to run as root")
    })
}

/// `program` of PostgreSQL's, to run under the servers' account.
fn command(program: &str) -> Command {
    let mut command = Command::new(server_binaries().join(program));
    if let Some(user) = account() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

/// Makes `dir` belong to the servers' account.
pub(crate) fn give_away(dir: &Path) {
    if let Some(user) = account() {
        nix::unistd::chown(dir, Some(user.uid), Some(user.gid)).expect("chown as root");
    }
}

/// A running server. Killed, and its files removed, on drop.
pub(crate) struct Postgres {
    dir: tempfile::TempDir,
    port: Port,
    settings: Vec<String>,
    child: Option<Child>,
    /// Its directory is a file system of its own.
    mounted: bool,
}

impl Postgres {
    /// Starts a fresh server with these settings (`name=value`).
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_from(&template(), settings)
    }

    /// Starts a server on a copy of `data` with these settings.
    pub(crate) fn start_from(data: &Path, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("slackwater-pg-")
            .tempdir()
            .unwrap();
        Self::in_dir(dir, data, settings, false)
    }

    /// The same on a file system of this size, such as `100m`. `None`: this account can't mount one.
    pub(crate) fn on_small_disk(size: &str, settings: &[&str]) -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("slackwater-pg-")
            .tempdir()
            .unwrap();
        mount(dir.path(), size).then(|| Self::in_dir(dir, &template(), settings, true))
    }

    /// Makes the file system of [`Self::on_small_disk`] larger.
    pub(crate) fn grow_disk(&self, size: &str) {
        resize(self.dir.path(), size);
    }

    fn in_dir(dir: tempfile::TempDir, data: &Path, settings: &[&str], mounted: bool) -> Self {
        give_away(dir.path());
        copy_cluster(data, &dir.path().join("data"));
        let mut server = Self {
            dir,
            port: Port::take(),
            settings: settings.iter().map(|&s| s.to_owned()).collect(),
            child: None,
            mounted,
        };
        server.boot();
        server
    }

    /// One more setting, from its next start on.
    pub(crate) fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// A standby of `primary`, with these settings; made of its files while it is stopped for a moment.
    pub(crate) fn standby_of(primary: &mut Self, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("slackwater-pg-")
            .tempdir()
            .unwrap();
        give_away(dir.path());
        let mut rules = OpenOptions::new()
            .append(true)
            .open(primary.data_dir().join("pg_hba.conf"))
            .unwrap();
        std::io::Write::write_all(
            &mut rules,
            b"host replication all 127.0.0.1/32 scram-sha-256\n",
        )
        .unwrap();
        primary.stop();
        let status = Command::new("cp")
            .arg("-a")
            .arg(primary.data_dir())
            .arg(dir.path().join("data"))
            .status()
            .unwrap();
        assert!(status.success(), "copying the primary");
        let mut server = Self {
            dir,
            port: Port::take(),
            settings: settings.iter().map(|&s| s.to_owned()).collect(),
            child: None,
            mounted: false,
        };
        primary.boot();
        server.follow(primary);
        server
    }

    /// Starts as a standby of `primary`, and waits until it streams.
    pub(crate) fn follow(&mut self, primary: &Self) {
        let signal = self.data_dir().join("standby.signal");
        File::create(&signal).unwrap();
        give_away(&signal);
        self.settings
            .retain(|s| !s.starts_with("primary_conninfo="));
        self.settings.push(format!(
            "primary_conninfo=host=127.0.0.1 port={} user={} password={}",
            primary.port(),
            ADMIN.0,
            ADMIN.1
        ));
        self.boot();
        wait_for("the standby streams", SOON, || {
            let mut client = Client::connect(&self.admin()).ok()?;
            let sql = "select coalesce((select status from pg_stat_wal_receiver), '')";
            (client.value(sql) == "streaming").then_some(())
        });
    }

    /// Tells a standby to become a primary, as `pg_ctl promote` does.
    pub(crate) fn promote(&self) {
        let file = self.data_dir().join("promote");
        File::create(&file).unwrap();
        give_away(&file);
        self.signal(Signal::SIGUSR1);
    }

    /// Starts the server's process again after [`Self::stop`], and waits until it takes queries.
    pub(crate) fn boot(&mut self) {
        self.spawn();
        wait_for("PostgreSQL takes queries", SOON, || {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten())
            {
                panic!("PostgreSQL ended with {status}: {}", self.log());
            }
            Client::connect(&self.admin()).ok()
        });
    }

    /// Starts the server's process and does not wait.
    pub(crate) fn spawn(&mut self) {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = command("postgres");
        command.arg("-D").arg(self.data_dir());
        for setting in [
            format!("port={}", self.port.number),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.dir.path().display()),
            "fsync=off".to_owned(),
            "max_connections=120".to_owned(),
            "shared_buffers=32MB".to_owned(),
            "log_line_prefix=%m [%p] %u ".to_owned(),
        ]
        .iter()
        .chain(&self.settings)
        {
            command.arg("-c").arg(setting);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().expect("PostgreSQL starts"));
    }

    /// Sends `signal` to the postmaster (SIGINT: fast stop) without waiting.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id().cast_signed()), signal).expect("the server is ours");
        }
    }

    /// Stops the server fast and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGINT);
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Kills the server and all its processes at once (SIGKILL), and waits until they are gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_tree(child.id().cast_signed());
            child.wait().unwrap();
        }
    }

    /// Gives the server a certificate and its key, for the next [`Self::boot`].
    pub(crate) fn turn_on_tls(&mut self, certificate: &Path, key: &Path) {
        use std::os::unix::fs::PermissionsExt;
        for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
            let to = self.data_dir().join(name);
            fs::copy(from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            give_away(&to);
        }
        self.settings.push("ssl=on".to_owned());
    }

    /// Waits for the end of the process that was signalled.
    pub(crate) fn wait(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Lets clients in by md5, too.
    pub(crate) fn allow_md5(&self) {
        fs::write(
            self.data_dir().join("pg_hba.conf"),
            HBA.replace("scram-sha-256", "md5"),
        )
        .unwrap();
        self.run(&["select pg_reload_conf()"]);
        wait_for("the new rules are in force", SOON, || {
            let mut client = Client::connect(&self.admin()).ok()?;
            let sql = "select count(*) from pg_hba_file_rules where auth_method = 'md5'";
            (client.value(sql) == "5").then_some(())
        });
    }

    /// Lets clients in from other addresses, too (with `listen_addresses=*`).
    pub(crate) fn allow_network(&self) {
        let path = self.data_dir().join("pg_hba.conf");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text + "host all all 10.0.0.0/8 scram-sha-256\n").unwrap();
        self.run(&["select pg_reload_conf()"]);
    }

    /// Stops all its processes where they are, or lets them go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        if let Some(child) = &self.child {
            let postmaster = child.id().cast_signed();
            for pid in std::iter::once(postmaster).chain(children(postmaster)) {
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its TCP port on 127.0.0.1.
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

    /// The superuser in the database `app`, straight to the server.
    pub(crate) fn admin(&self) -> Target {
        Target::new(self.port(), ADMIN, "app")
    }

    /// The ordinary user, straight to the server.
    pub(crate) fn app(&self) -> Target {
        Target::new(self.port(), APP, "app")
    }

    /// The ordinary user with an application name.
    pub(crate) fn named(&self, application: &str) -> Target {
        self.app().with("application_name", application)
    }

    /// Runs statements as the superuser, straight on the server.
    pub(crate) fn run(&self, statements: &[&str]) {
        let mut client = Client::connect(&self.admin()).expect("the server takes its superuser");
        for sql in statements {
            client.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.signal(Signal::SIGQUIT);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        if self.mounted {
            unmount(self.dir.path());
        }
    }
}

/// Puts a file system of this size, such as `100m`, over a directory. Only root can.
pub(crate) fn mount(dir: &Path, size: &str) -> bool {
    let options = format!("size={size}");
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
    let status = command.arg(dir).status();
    status.is_ok_and(|status| status.success())
}

/// Gives it another size.
pub(crate) fn resize(dir: &Path, size: &str) {
    let options = format!("remount,size={size}");
    let mut command = Command::new("mount");
    let status = command.args(["-o", &options]).arg(dir).status().unwrap();
    assert!(status.success(), "remount");
}

/// Takes it away.
pub(crate) fn unmount(dir: &Path) {
    let _ = Command::new("umount").arg("-l").arg(dir).status();
}

/// Kills a postmaster and its processes, none of which gets to know of it.
pub(crate) fn kill_tree(postmaster: i32) {
    // Stopped, it can neither start nor end any; in the middle of a fork it is not stopped yet.
    if kill(Pid::from_raw(postmaster), Signal::SIGSTOP).is_ok() {
        wait_for("a server stands still", SOON, || {
            matches!(state_of(postmaster), None | Some('T' | 'Z')).then_some(())
        });
    }
    let children = children(postmaster);
    for pid in &children {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let _ = kill(Pid::from_raw(postmaster), Signal::SIGKILL);
    for pid in children {
        wait_for("a killed process ends", SOON, || {
            matches!(state_of(pid), None | Some('Z')).then_some(())
        });
    }
}

fn children(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after_name.split(' ').nth(1) == Some(parent.to_string().as_str())
    };
    pids.filter(is_child).collect()
}

/// The postmaster's process number in a data directory's pid file.
pub(crate) fn pid_in(data_dir: &Path) -> Option<i32> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Restarts the server in `data_dir` as its operator would, with the settings that it had.
pub(crate) fn restart_in(data_dir: &Path) {
    let mut restart = command("pg_ctl");
    restart.args(["restart", "-w", "-s", "-m", "fast"]);
    let log = data_dir.join("restart.log");
    restart.arg("-l").arg(log).arg("-D").arg(data_dir);
    assert!(restart.status().expect("pg_ctl runs").success());
}

/// Ends a server that something else started in `data_dir`, by its pid file.
pub(crate) fn kill_by_pid_file(data_dir: &Path) {
    if let Some(pid) = pid_in(data_dir) {
        let group = control_group(pid);
        let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        wait_for("the server ends", SOON, || {
            matches!(state_of(pid), None | Some('Z')).then_some(())
        });
        // Others of it may still be there: then it stays.
        let _ = group.map(fs::remove_dir);
    }
}

/// The control group that a local server is in, if it has one of its own.
fn control_group(pid: i32) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut paths = groups.lines().filter_map(|l| Some(l.rsplit_once(':')?.1));
    let path = paths.find(|path| path.contains("/slackwater-"))?;
    let hierarchies = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"];
    let mut places = hierarchies
        .iter()
        .map(|h| PathBuf::from(format!("{h}{path}")));
    places.find(|place| place.is_dir())
}

/// The state letter of a process; `None`: it is gone.
fn state_of(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Copies the template cluster to `to`.
pub(crate) fn copy_template(to: &Path) {
    copy_cluster(&template(), to);
}

/// Copies a data directory to `to`, where it belongs to the servers' account.
fn copy_cluster(from: &Path, to: &Path) {
    let run = |command: &mut Command| {
        let status = command.status().unwrap();
        assert!(status.success(), "copying a cluster: {command:?}");
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

/// The template cluster, made on first use.
fn template() -> PathBuf {
    let base = std::env::temp_dir().join(format!(
        "slackwater-test-template-{}-{:x}",
        nix::unistd::geteuid(),
        content()
    ));
    fs::create_dir_all(&base).unwrap();
    give_away(&base);
    let lock = File::create(base.join("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let ready = base.join("data");
    if !ready.exists() {
        let making = base.join("making");
        let _ = fs::remove_dir_all(&making);
        make_template(&base, &making);
        fs::rename(&making, &ready).unwrap();
    }
    ready
}

/// Tells templates of another content apart.
fn content() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    (HBA, SETTINGS, ROLES, server_binaries()).hash(&mut hash);
    hash.finish()
}

fn make_template(base: &Path, data: &Path) {
    let output = command("initdb")
        .args(["-N", "-U", ADMIN.0, "-E", "UTF8", "--locale=C.UTF-8", "-D"])
        .arg(data)
        .output()
        .unwrap();
    assert!(output.status.success(), "initdb: {output:?}");
    fs::write(data.join("pg_hba.conf"), HBA).unwrap();
    let mut settings = OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.conf"))
        .unwrap();
    std::io::Write::write_all(&mut settings, SETTINGS.as_bytes()).unwrap();
    // A single-user server takes one statement per line.
    let mut child = command("postgres")
        .args(["--single", "-c", "fsync=off", "-D"])
        .arg(data)
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(File::create(base.join("single.log")).unwrap())
        .spawn()
        .unwrap();
    let mut statements = ROLES.join("\n");
    statements.push_str("\nALTER ROLE postgres PASSWORD 'admin-secret'\n");
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, statements.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "roles of the template");
    let log = fs::read_to_string(base.join("single.log")).unwrap_or_default();
    assert!(!log.contains("ERROR"), "roles of the template: {log}");
}

/// How long a server of this kind may take to start or stop.
pub(crate) const SERVER: Duration = Duration::from_secs(60);
