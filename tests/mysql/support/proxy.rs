//! Starts the program itself with a configuration made for the test.

use super::admin::{Admin, CLUSTER};
use super::client::{Client, Target, app};
use super::guard::Guard;
use super::ports::Port;
use super::server::{Kind, SERVICE, SETUP, Server, give_away};
use super::{EVENT, SOON, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What a test wants other than the usual. The strings are lines of `proxy.toml` for that section.
#[derive(Debug, Default, Clone)]
pub(crate) struct Options {
    /// Lines for `[listen.mysql]`.
    pub(crate) listen: String,
    /// Lines for `[limits]`.
    pub(crate) limits: String,
    /// Lines for `[clusters.shop.scaling]`.
    pub(crate) scaling: String,
    /// Lines for `[clusters.shop.sessions]`.
    pub(crate) sessions: String,
    /// Lines for `[clusters.shop.provider]`.
    pub(crate) provider: String,
    /// Lines for `[clusters.shop.auth]`, after the service account.
    pub(crate) auth: String,
}

/// One of the two places for a local server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Home {
    First,
    Second,
}

impl Home {
    pub(crate) const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// The name of its data directory.
    pub(crate) fn data(self) -> &'static str {
        match self {
            Self::First => "data",
            Self::Second => "data.2",
        }
    }
}

/// The port of the server in a home, once there is one, as the proxy wrote it down in its directory.
pub(crate) fn port_of(local: &Path, home: Home) -> Option<u16> {
    let field = match home {
        Home::First => "port",
        Home::Second => "second_port",
    };
    let port = read_json(&local.join("server.json"))?[field].as_u64()?;
    u16::try_from(port).ok()
}

fn read_json(file: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// A running proxy. Ended, with servers that it started, when the test ends, however it does.
pub(crate) struct Proxy {
    dir: tempfile::TempDir,
    port: Port,
    admin_port: Port,
    child: Child,
    local: Option<PathBuf>,
    _guard: Guard,
}

impl Proxy {
    /// In front of one server that two capacities name.
    pub(crate) fn on(server: &Server) -> Self {
        Self::with(server, &Options::default())
    }

    /// [`Self::on`], with options.
    pub(crate) fn with(server: &Server, options: &Options) -> Self {
        let address = server.address();
        let provider = format!(
            "kind = \"static\"\nendpoints = [{{ capacity = 2, address = \"{address}\" }}, \
             {{ capacity = 4, address = \"{address}\" }}]\n{}",
            options.provider
        );
        Self::spawn(server.kind, &provider, options, None)
    }

    /// In front of two servers, each of a capacity of its own.
    pub(crate) fn on_two(small: &Server, large: &Server, options: &Options) -> Self {
        let provider = format!(
            "kind = \"static\"\nendpoints = [{{ capacity = 2, address = \"{}\" }}, \
             {{ capacity = 4, address = \"{}\" }}]\n{}",
            small.address(),
            large.address(),
            options.provider
        );
        Self::spawn(small.kind, &provider, options, None)
    }

    /// With a server of its own that it restarts at each event.
    pub(crate) fn local(options: &Options) -> Self {
        Self::local_with("restart", options)
    }

    /// With a server of its own from which a standby takes over at each event.
    pub(crate) fn standby(options: &Options) -> Self {
        Self::local_with("standby", options)
    }

    fn local_with(switch: &str, options: &Options) -> Self {
        let kind = Kind::wanted();
        let dir = tempfile::Builder::new()
            .prefix("slackwater-my-local-")
            .tempdir()
            .unwrap();
        give_away(dir.path());
        let data = dir.keep().join("home");
        fs::create_dir(&data).unwrap();
        give_away(&data);
        // The mark by which the proxy knows a directory as its own.
        File::create(data.join("slackwater.lock")).unwrap();
        let programs = match kind {
            Kind::MariaDb => String::new(),
            kind => format!("binaries = \"{}\"\n", kind.programs().display()),
        };
        let provider = format!(
            "kind = \"local\"\ndata_dir = \"{}\"\nswitch = \"{switch}\"\n{programs}\
             memory_per_acu = \"64MiB\"\ncpu_per_acu = 1.0\n{}",
            data.display(),
            options.provider
        );
        let proxy = Self::spawn(kind, &provider, options, Some(data));
        let mut admin = Client::to(&proxy.local_admin());
        for sql in SETUP.iter().filter(|sql| !sql.contains("slackwater")) {
            admin.run(sql);
        }
        proxy
    }

    fn spawn(kind: Kind, provider: &str, options: &Options, local: Option<PathBuf>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("slackwater-my-proxy-")
            .tempdir()
            .unwrap();
        let (port, admin_port) = (Port::take(), Port::take());
        let text = format!(
            "state_dir = \"{state}\"\n\
             [listen.mysql]\naddress = [\"127.0.0.1:{port}\"]\ntls = \"prefer\"\n{listen}\n\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n\
             [limits]\n{limits}\n\
             [clusters.{CLUSTER}]\nengine = \"{engine}\"\ndefault = true\n\
             [clusters.{CLUSTER}.auth]\nservice_user = \"{user}\"\nservice_password = \"{password}\"\n{auth}\n\
             [clusters.{CLUSTER}.capacity]\nmin = 2\nmax = 4\nladder = [2, 4]\nauto_pause_after = \"0\"\n\
             [clusters.{CLUSTER}.scaling]\nauto = false\n{scaling}\n\
             [clusters.{CLUSTER}.sessions]\n{sessions}\n\
             [clusters.{CLUSTER}.provider]\n{provider}\n",
            state = dir.path().join("state").display(),
            port = port.number,
            admin = admin_port.number,
            listen = options.listen,
            limits = options.limits,
            engine = kind.engine(),
            user = SERVICE.0,
            password = SERVICE.1,
            auth = options.auth,
            scaling = options.scaling,
            sessions = options.sessions,
        );
        fs::write(dir.path().join("proxy.toml"), text).unwrap();
        let mut guarded = vec![dir.path()];
        guarded.extend(local.as_deref().and_then(Path::parent));
        let guard = Guard::over(&guarded);
        let child = serve(dir.path());
        let proxy = Self {
            dir,
            port,
            admin_port,
            child,
            local,
            _guard: guard,
        };
        proxy.wait_ready();
        proxy
    }

    /// Waits for /readyz; panics when the program ends.
    pub(crate) fn wait_ready(&self) {
        let admin = self.admin();
        let pid = self.child.id();
        wait_for("the proxy is ready", Duration::from_secs(60), || {
            let alive =
                fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
            assert!(alive, "the proxy ended: {}", self.log());
            admin
                .get_text("/readyz")
                .filter(|(status, _)| *status == 200)
        });
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin::new(self.admin_port.number)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number
    }

    /// The ordinary user through the proxy.
    pub(crate) fn app(&self) -> Target {
        app(self.port.number)
    }

    /// A logged-in client, with a name to find its session by.
    pub(crate) fn client(&self, name: &str) -> Client {
        Client::connect(&self.app().named(name))
            .unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.log()))
    }

    /// The directory of its own server.
    pub(crate) fn local_dir(&self) -> &Path {
        self.local.as_deref().expect("a local server")
    }

    /// What it remembers of its servers on disk.
    fn server_file(&self) -> Option<Value> {
        read_json(&self.local_dir().join("server.json"))
    }

    /// The home of its server that takes writes, as it is written down.
    pub(crate) fn primary(&self) -> Home {
        let first = self.server_file().is_none_or(|f| f["primary"] != "second");
        if first { Home::First } else { Home::Second }
    }

    /// The same once no promotion is under way, as it may be for a moment after an event too.
    pub(crate) fn settled_primary(&self) -> Home {
        let intent = self.local_dir().join("switch.json");
        wait_until("no promotion is under way", EVENT, || {
            let intent = read_json(&intent).unwrap_or_default();
            intent["promotion"].is_null()
        });
        self.primary()
    }

    /// The port of the server in a home, once there is one.
    pub(crate) fn port_of(&self, home: Home) -> Option<u16> {
        port_of(self.local_dir(), home)
    }

    /// The service account of its own server, over its socket.
    pub(crate) fn local_admin(&self) -> Target {
        let port = self.port_of(self.settled_primary()).expect("a port");
        let socket = self.local_dir().join(format!("run/mysql.{port}.sock"));
        Target::socket(&socket, SERVICE.0, SERVICE.1)
    }

    /// The certificate of the CA that the proxy made for itself.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("state/tls/ca.crt")
    }

    /// The process of the server that it runs itself.
    pub(crate) fn server_process(&self) -> Option<Pid> {
        self.process_in(self.primary())
    }

    /// The process of the server in a home.
    pub(crate) fn process_in(&self, home: Home) -> Option<Pid> {
        let file = self.local_dir().join(format!("run/{}.pid", home.data()));
        let text = fs::read_to_string(file).ok()?;
        Some(Pid::from_raw(text.trim().parse().ok()?))
    }

    /// Kills (SIGKILL) the server that it runs itself; returns when its sockets are closed.
    pub(crate) fn kill_server(&self) {
        self.kill_server_in(self.primary());
    }

    /// Kills (SIGKILL) the server in a home; returns when its sockets are closed.
    pub(crate) fn kill_server_in(&self, home: Home) {
        if let Some(pid) = self.process_in(home) {
            let _ = kill(pid, Signal::SIGKILL);
            // Its first thread may be gone long before the last one, which closes the sockets.
            wait_for("the server is gone", SOON, || kill(pid, None).err());
        }
    }

    /// Kills it (SIGKILL) and starts it again with the same configuration; returns when it is ready.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = serve(self.dir.path());
        self.wait_ready();
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("--- end of the proxy's log\n{}\n---\n", self.log());
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slackwater"))
}

/// Starts the program with the configuration in `dir`.
fn serve(dir: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    Command::new(program())
        .args(["serve", "--config"])
        .arg(dir.join("proxy.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("the proxy starts")
}
