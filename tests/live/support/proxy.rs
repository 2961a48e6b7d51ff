//! Starts the program itself with a configuration made for the test.

use super::admin::{Admin, CLUSTER};
use super::middle::Middle;
use super::postgres::{
    APP, Port, Postgres, SERVICE, copy_template, give_away, kill_by_pid_file, kill_tree, mount,
    pid_in, resize, server_binaries, unmount,
};
use super::wire::{Client, Target};
use super::{EVENT, SOON, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// What a test wants other than the usual. The strings are lines of `proxy.toml` for that section.
#[derive(Debug, Default, Clone)]
pub(crate) struct Options {
    /// Lines for `[limits]`.
    pub(crate) limits: String,
    /// Lines for `[clusters.shop.scaling]`.
    pub(crate) scaling: String,
    /// Lines for `[clusters.shop.sessions]`.
    pub(crate) sessions: String,
    /// Lines for `[clusters.shop.provider]`, after `endpoints`.
    pub(crate) provider: String,
    /// Instead of the service account's password.
    pub(crate) service_password: Option<String>,
    /// Lines for `[clusters.shop.auth]`, after the service account.
    pub(crate) auth: String,
    /// Whole sections, such as `[tls]`.
    pub(crate) sections: String,
    /// Listens on every address.
    pub(crate) everywhere: bool,
    /// More environment of the program.
    pub(crate) environment: Vec<(String, String)>,
    /// Listens on a Unix socket in this directory, too.
    pub(crate) socket_dir: Option<PathBuf>,
    /// A local server's data are on a file system of their own, of this size, such as `300m`. For root only.
    pub(crate) disk: Option<String>,
    /// Another directory of PostgreSQL's programs, for a local server.
    pub(crate) binaries: Option<PathBuf>,
}

/// A running proxy. Ended, with servers that it started, on drop.
#[derive(Debug)]
pub(crate) struct Proxy {
    dir: tempfile::TempDir,
    port: Port,
    admin_port: Port,
    child: Child,
    environment: Vec<(String, String)>,
    local_data: Option<PathBuf>,
    mounted: bool,
}

impl Proxy {
    /// In front of one server that two capacities name.
    pub(crate) fn on(server: &Postgres) -> Self {
        Self::with(server, &Options::default())
    }

    /// [`Self::on`], with options.
    pub(crate) fn with(server: &Postgres, options: &Options) -> Self {
        let proxy = Self::unready(&server.address(), options);
        proxy.wait_ready();
        proxy
    }

    /// [`Self::on`]; sessions at rest are parked soon.
    pub(crate) fn parking(server: &Postgres) -> Self {
        let options = Options {
            sessions: "park_after = \"1s\"\nsnapshot_after = \"200ms\"".to_owned(),
            ..Options::default()
        };
        Self::with(server, &options)
    }

    /// Waits until the session of this name is parked.
    pub(crate) fn wait_parked(&self, application: &str) {
        wait_until("the session is parked", SOON, || {
            let session = self.admin().session(application);
            session.is_some_and(|s| s["state"] == "parked" && s["attached"] == false)
        });
    }

    /// In front of `address`, without waiting for readiness.
    pub(crate) fn unready(address: &str, options: &Options) -> Self {
        let provider = format!(
            "kind = \"static\"\nendpoints = [{{ capacity = 2, address = \"{address}\" }}, \
             {{ capacity = 4, address = \"{address}\" }}]\n{}",
            options.provider
        );
        Self::spawn(&provider, options, None)
    }

    /// In front of two servers: capacity 2 names the first, 4 the second.
    pub(crate) fn between(first: &Postgres, second: &Postgres) -> Self {
        let provider = format!(
            "kind = \"static\"\nendpoints = [{{ capacity = 2, address = \"{}\" }}, \
             {{ capacity = 4, address = \"{}\" }}]",
            first.address(),
            second.address()
        );
        let proxy = Self::spawn(&provider, &Options::default(), None);
        proxy.wait_ready();
        proxy
    }

    /// In front of something that speaks to a server without TLS.
    pub(crate) fn behind(middle: &Middle, options: &Options) -> Self {
        let mut options = options.clone();
        options.provider.push_str("server_tls = \"disable\"\n");
        let proxy = Self::unready(&middle.address(), &options);
        proxy.wait_ready();
        proxy
    }

    /// With a PostgreSQL server of its own that it restarts at each event.
    pub(crate) fn local(options: &Options) -> Self {
        let proxy = Self::local_unready("restart", options);
        proxy.wait_ready();
        proxy
    }

    /// With a PostgreSQL server of its own, from which a standby takes over at each event.
    pub(crate) fn standby(options: &Options) -> Self {
        let proxy = Self::local_unready("standby", options);
        proxy.wait_ready();
        proxy
    }

    fn local_unready(switch: &str, options: &Options) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("slackwater-local-")
            .tempdir()
            .unwrap();
        if let Some(size) = &options.disk {
            assert!(mount(dir.path(), size), "as root");
        }
        give_away(dir.path());
        let data = dir.keep().join("data");
        fs::create_dir(&data).unwrap();
        give_away(&data);
        // The mark by which the proxy knows a directory as its own.
        File::create(data.join("slackwater.lock")).unwrap();
        copy_template(&data.join("pgdata"));
        let rules = data.join("pgdata/pg_hba.conf");
        let mut text = fs::read_to_string(&rules).unwrap();
        text.push_str(
            "local replication slackwater scram-sha-256\n\
             host replication all 127.0.0.1/32 scram-sha-256\n",
        );
        fs::write(&rules, text).unwrap();
        if switch == "standby" {
            let settings = data.join("pgdata/postgresql.conf");
            let mut text = fs::read_to_string(&settings).unwrap();
            text.push_str("wal_level = logical\n");
            fs::write(&settings, text).unwrap();
        }
        let binaries = options.binaries.clone().unwrap_or_else(server_binaries);
        let provider = format!(
            "kind = \"local\"\ndata_dir = \"{}\"\nswitch = \"{switch}\"\n\
             binaries = \"{}\"\nmemory_per_acu = \"64MiB\"\ncpu_per_acu = 1.0\n{}",
            data.display(),
            binaries.display(),
            options.provider
        );
        Self::spawn(&provider, options, Some(data))
    }

    /// Where a local server's data are.
    pub(crate) fn data_dir(&self) -> &Path {
        self.local_data.as_deref().expect("a local server")
    }

    /// Data directories of the first and the second home of a local server.
    pub(crate) fn homes(&self) -> [PathBuf; 2] {
        ["pgdata", "pgdata.2"].map(|name| self.data_dir().join(name))
    }

    fn spawn(provider: &str, options: &Options, local_data: Option<PathBuf>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("slackwater-proxy-")
            .tempdir()
            .unwrap();
        let (port, admin_port) = (Port::take(), Port::take());
        let config = dir.path().join("proxy.toml");
        fs::write(
            &config,
            configuration(dir.path(), &port, &admin_port, provider, options),
        )
        .unwrap();
        let child = serve(dir.path(), &options.environment);
        Self {
            dir,
            port,
            admin_port,
            child,
            environment: options.environment.clone(),
            mounted: local_data.is_some() && options.disk.is_some(),
            local_data,
        }
    }

    /// Gives the file system of its server's data another size.
    pub(crate) fn resize_disk(&self, size: &str) {
        resize(self.data_dir().parent().expect("made there"), size);
    }

    /// Stops it, puts `to` in the place of `from` in its configuration, and starts it again.
    pub(crate) fn reconfigure(&mut self, from: &str, to: &str) {
        let config = self.dir.path().join("proxy.toml");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&config, text.replace(from, to)).unwrap();
        self.kill_and_restart();
    }

    /// Kills it (SIGKILL) and starts it again with the same configuration; returns when it is ready.
    pub(crate) fn kill_and_restart(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
        self.start_again();
    }

    /// Starts one that has ended, with the same configuration; returns when it is ready.
    pub(crate) fn start_again(&mut self) {
        self.child = serve(self.dir.path(), &self.environment);
        self.wait_ready();
    }

    /// Waits for /readyz; panics when the program ends.
    pub(crate) fn wait_ready(&self) {
        let admin = self.admin();
        let pid = self.child.id();
        wait_for(
            "the proxy is ready (/readyz)",
            Duration::from_secs(60),
            || {
                let alive = fs::read_to_string(format!("/proc/{pid}/stat"))
                    .is_ok_and(|s| !s.contains(") Z "));
                assert!(alive, "the proxy ended: {}", self.log());
                admin
                    .get_text("/readyz")
                    .filter(|(status, _)| *status == 200)
            },
        );
    }

    /// The admin API.
    pub(crate) fn admin(&self) -> Admin {
        Admin::new(self.admin_port.number)
    }

    /// Waits until the admin API answers, ready or not.
    pub(crate) fn wait_alive(&self) {
        let admin = self.admin();
        wait_until("the proxy answers (/healthz)", SOON, || {
            admin.get_text("/healthz").is_some()
        });
    }

    /// The ordinary user through the proxy.
    pub(crate) fn app(&self) -> Target {
        Target::new(self.port.number, APP, "app")
    }

    /// The ordinary user through the proxy, with an application name to find the session by.
    pub(crate) fn named(&self, application: &str) -> Target {
        self.app().with("application_name", application)
    }

    /// A logged-in [`Self::named`] client.
    pub(crate) fn client(&self, application: &str) -> Client {
        Client::connect(&self.named(application))
            .unwrap_or_else(|e| panic!("{application}: {e}\n{}", self.log()))
    }

    /// The port that clients connect to, on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port.number
    }

    /// The program's process number.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// The certificate of the CA that the proxy made for itself.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("state/tls/ca.crt")
    }

    /// A second process with the same configuration.
    pub(crate) fn second(&self) -> Child {
        Command::new(program())
            .args(["serve", "--config"])
            .arg(self.dir.path().join("proxy.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts")
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the proxy runs");
    }

    /// Waits for its end; how it ended.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        wait_for("the proxy ends", SOON, || self.child.try_wait().unwrap())
    }

    /// The home, 0 or 1, whose server takes writes, as it is written down.
    pub(crate) fn primary(&self) -> usize {
        let file = read_json(&self.data_dir().join("server.json"));
        usize::from(file.is_some_and(|file| file["primary"] == "second"))
    }

    /// The same once no promotion is under way, as it may be for a moment after an event too.
    pub(crate) fn settled_primary(&self) -> usize {
        let intent = self.data_dir().join("switch.json");
        wait_until("no promotion is under way", EVENT, || {
            let intent = read_json(&intent).unwrap_or_default();
            intent["promotion"].is_null()
        });
        self.primary()
    }

    /// The data directory of its own server that takes writes.
    pub(crate) fn primary_data(&self) -> PathBuf {
        let [first, second] = self.homes();
        if self.primary() == 0 { first } else { second }
    }

    /// Kills (SIGKILL) the server that it runs itself and that takes writes, with all its processes.
    pub(crate) fn kill_server(&self) {
        if let Some(pid) = pid_in(&self.primary_data()) {
            kill_tree(pid);
        }
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Runs a client command (`scale`, `status`, ...) against it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .args(["--admin", self.admin().url()]);
        command
            .stdin(Stdio::null())
            .output()
            .expect("the command runs")
    }

    /// `slackwater scale --wait` to the capacity that it has not now; must exit 0.
    pub(crate) fn scale_by_command(&self) {
        let to = self.admin().other_capacity().to_string();
        let output = self.command(&["scale", CLUSTER, &to, "--wait", "--timeout", "60s"]);
        assert!(
            output.status.success(),
            "scale: {output:?}\n{}",
            tail(&self.log())
        );
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("--- end of the proxy's log\n{}\n---\n", tail(&self.log()));
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        }
        let _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGKILL,
        );
        let _ = self.child.wait();
        if let Some(data) = &self.local_data {
            for home in ["pgdata", "pgdata.2"] {
                kill_by_pid_file(&data.join(home));
            }
            if let Some(dir) = data.parent() {
                if self.mounted {
                    unmount(dir);
                }
                let _ = fs::remove_dir_all(dir);
            }
        }
    }
}

fn read_json(file: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Starts the program with the configuration in `dir`.
fn serve(dir: &Path, environment: &[(String, String)]) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    Command::new(program())
        .args(["serve", "--config"])
        .arg(dir.join("proxy.toml"))
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("the proxy starts")
}

/// The last 60 lines.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_slackwater"))
}

fn configuration(
    dir: &Path,
    port: &Port,
    admin: &Port,
    provider: &str,
    options: &Options,
) -> String {
    let mut text = String::new();
    let password = options.service_password.as_deref().unwrap_or(SERVICE.1);
    let socket = options
        .socket_dir
        .as_ref()
        .map(|dir| format!("unix:{}/.s.PGSQL.{}", dir.display(), port.number));
    write!(
        text,
        "state_dir = \"{state}\"\n\
         [listen.postgres]\naddress = [\"{host}:{port}\"{socket}]\ntls = \"prefer\"\n\
         {sections}\n\
         [admin]\naddress = \"127.0.0.1:{admin}\"\n\
         [limits]\n{limits}\n\
         [clusters.{CLUSTER}]\nengine = \"postgres\"\ndefault = true\n\
         [clusters.{CLUSTER}.auth]\nservice_user = \"{user}\"\nservice_database = \"postgres\"\n\
         service_password = \"{password}\"\n{auth}\n\
         [clusters.{CLUSTER}.capacity]\nmin = 2\nmax = 4\nladder = [2, 4]\nauto_pause_after = \"0\"\n\
         [clusters.{CLUSTER}.scaling]\nauto = false\n{scaling}\n\
         [clusters.{CLUSTER}.sessions]\n{sessions}\n\
         [clusters.{CLUSTER}.provider]\n{provider}\n",
        state = dir.join("state").display(),
        host = if options.everywhere {
            "0.0.0.0"
        } else {
            "127.0.0.1"
        },
        port = port.number,
        admin = admin.number,
        socket = socket.map(|s| format!(", \"{s}\"")).unwrap_or_default(),
        sections = options.sections,
        auth = options.auth,
        limits = options.limits,
        user = SERVICE.0,
        scaling = options.scaling,
        sessions = options.sessions,
    )
    .expect("a string takes everything");
    text
}
