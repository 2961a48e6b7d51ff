//! A MariaDB or MySQL server in a temporary directory, for these tests.

use super::guard::Guard;
use slackwater::auth::mysql::Credential;
use slackwater::backend::Endpoint;
use slackwater::backend::mysql::connect::{Connected, Login, Request, connect};
use slackwater::backend::mysql::exec::{self, Outcome};
use slackwater::transport::{Address, ServerTls, SocketConfig};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// MariaDB as it is installed.
    MariaDb,
    /// MariaDB 11.8, which proves its certificate by the password.
    MariaDb118,
    /// MySQL 9.7.
    MySql97,
}

/// A running server; stopped when dropped.
pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    child: Child,
    _guard: Guard,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// The directory of a server's programs; `None` where it can't be had, and a line that says so.
pub(crate) fn programs(kind: Kind) -> Option<PathBuf> {
    let arguments = match kind {
        Kind::MariaDb => {
            let installed = Path::new("/usr/sbin");
            return installed
                .join("mariadbd")
                .exists()
                .then(|| installed.to_owned());
        }
        Kind::MariaDb118 => ["mariadb", "11.8"],
        Kind::MySql97 => ["mysql", "9.7"],
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mysql_servers.sh");
    let output = Command::new(script).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| PathBuf::from(text.trim()))
}

/// Servers refuse to run as root.
fn unprivileged(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    // Servers that begin together take each other's temporary tables otherwise.
    command.env("TMPDIR", dir);
    if let Some(account) = account() {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    command
}

/// The account that servers run under when the tests run as root.
fn account() -> Option<nix::unistd::User> {
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    nix::unistd::User::from_name("mysql").expect("readable")
}

fn done(mut command: Command) {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Server {
    pub(crate) fn start(kind: Kind, extra: &[&str]) -> Option<Self> {
        let Some(programs) = programs(kind) else {
            let text = format!("SKIPPED: {kind:?} can't be had here\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            return None;
        };
        let dir = tempfile::Builder::new()
            .prefix("sw-my")
            .tempdir()
            .expect("a directory");
        if let Some(account) = account() {
            nix::unistd::chown(dir.path(), Some(account.uid), Some(account.gid))
                .expect("given away");
        }
        let guard = Guard::over(&[dir.path()]);
        let data = dir.path().join("data");
        let data_dir = format!("--datadir={}", data.display());
        let is_mysql = kind == Kind::MySql97;
        let daemon = programs.join(if is_mysql { "mysqld" } else { "mariadbd" });
        if is_mysql {
            let mut install = unprivileged(&daemon, dir.path());
            install.args([
                "--no-defaults",
                "--initialize-insecure",
                "--secure-file-priv=",
                &data_dir,
            ]);
            done(install);
        } else {
            // The installed program writes system tables that every later version can go on with.
            let mut install = unprivileged(Path::new("mariadb-install-db"), dir.path());
            install.args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                &data_dir,
            ]);
            done(install);
        }
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut command = unprivileged(&daemon, dir.path());
        command
            .args([
                "--no-defaults",
                "--secure-file-priv=",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
            ])
            .arg(data_dir)
            .arg(format!("--socket={}", dir.path().join("s").display()))
            .arg(format!("--pid-file={}", dir.path().join("pid").display()))
            .arg(format!("--port={port}"))
            .args(extra);
        if is_mysql {
            command.arg("--mysqlx=OFF");
        }
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = command
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        Some(Self {
            dir,
            port,
            child,
            _guard: guard,
        })
    }

    pub(crate) fn socket(&self) -> Endpoint {
        Endpoint {
            address: Address::Unix(self.dir.path().join("s")),
            tls: ServerTls::Disable,
            tls_ca: None,
        }
    }

    pub(crate) fn tcp(&self, tls: ServerTls) -> Endpoint {
        Endpoint {
            address: Address::Tcp {
                host: "127.0.0.1".to_owned(),
                port: self.port,
            },
            tls,
            tls_ca: None,
        }
    }

    /// Root over the socket, once the server answers.
    pub(crate) async fn root(&self) -> Connected {
        let until = Instant::now() + Duration::from_mins(1);
        loop {
            let password = Credential::Password(slackwater::auth::mysql::Password::new(b""));
            match log_in(
                &self.socket(),
                &Request::own(b"root", None),
                Some(&password),
            )
            .await
            {
                Ok(connected) => return connected,
                Err(error) if error.may_pass() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => {
                    let log = std::fs::read_to_string(self.dir.path().join("log"));
                    panic!("{error}: {log:?}");
                }
            }
        }
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) const SOCKET: SocketConfig = SocketConfig {
    keepalive: Duration::ZERO,
    tcp_user_timeout: Duration::ZERO,
};

pub(crate) async fn log_in(
    endpoint: &Endpoint,
    request: &Request,
    credential: Option<&Credential>,
) -> Result<Connected, slackwater::backend::mysql::connect::ConnectError> {
    let login = Login {
        endpoint,
        socket: &SOCKET,
        request,
        credential,
        deadline: soon(),
    };
    connect(&login).await
}

pub(crate) async fn run(connected: &mut Connected, sql: &str) -> Outcome {
    let outcome = exec::query(connected, sql, soon()).await;
    outcome.unwrap_or_else(|error| panic!("{sql}: {error}"))
}
