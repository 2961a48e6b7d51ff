//! `slackwater dev`: local servers, a CA and a proxy, without configuration.
//!
//! ```text
//! DIR/state/         state_dir of the proxy
//!     postgres/      data_dir of PostgreSQL's server
//!     mariadb/       data_dir of MariaDB's; mysql/ of MySQL's, where that is what is installed
//!     dev.toml       the configuration that was used; written at each start
//!     ca.crt         a copy of the CA's certificate, for sslrootcert and ssl-ca
//!     app_password   password of the role and account `app` (0600)
//! ```

use super::control::App;
use super::start::{self, fail};
use super::{AppError, DevOptions};
use crate::auth::ScramVerifier;
use crate::auth::verifier::ITERATIONS;
use crate::backend::Engine;
use crate::config::{Config, ProviderConfig};
use crate::provider::local::{DataDir, installed};
use crate::provider::{LocalConfig, Provider};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::fcntl::Flock;
use nix::unistd::Uid;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Name of the role that is made, and of its database.
const APP: &str = "app";
const POSTGRES_PORT: u16 = 5432;
const MYSQL_PORT: u16 = 3306;
const ADMIN_PORT: u16 = 7432;
/// Random bytes of the password.
const PASSWORD_BYTES: usize = 18;
/// Length of a verifier's salt; PostgreSQL's own.
const SALT_BYTES: usize = 16;
/// How long `--stop` waits for the server's end.
const STOP_MAX: Duration = Duration::from_mins(1);

/// Name of an engine's cluster.
fn cluster(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => "dev",
        Engine::Mysql => "dev-mysql",
        Engine::Mariadb => "dev-mariadb",
    }
}

/// Sets up local servers and a proxy in front of them, prints how to connect, and runs until told to end.
pub async fn dev(options: DevOptions) -> Result<(), AppError> {
    let mut place = Place::of(&options)?;
    if options.stop {
        return place.stop().await;
    }
    let missing = place.choose_engines(&|engine| installed(engine).map_err(|e| e.to_string()))?;
    place.make()?;
    drop(place.lock(
        "a second one needs its own --data, --postgres-port, --mysql-port and --admin-port",
    )?);
    let local = Ipv4Addr::LOCALHOST.into();
    see_that_free(local, place.admin_port, "the admin API", "--admin-port")?;
    let hosts = place.hosts()?;
    let text = place.configuration(&hosts);
    let file = place.dir.join("dev.toml");
    fs::write(&file, &text).map_err(|e| fail(format!("can't write {}: {e}", file.display())))?;
    let config = parse(&file, &text)?;
    let password = place.password()?;
    let app = Box::pin(App::start(config, Some(file))).await?;
    let up = set_up(&app, &password).await?;
    place.copy_ca(&app)?;
    let greeting = place.greeting(&password, &up, &missing);
    app.run(&greeting).await?;
    super::print(&format!(
        "What was started goes on, for the next `dev`. To end it: {}",
        place.stop_line()
    ));
    Ok(())
}

/// An engine that runs, and its capacity for people.
type Up = (Engine, String);

/// Makes the role and its database in the running servers.
async fn set_up(app: &App, password: &str) -> Result<Vec<Up>, AppError> {
    let mut salt = [0; SALT_BYTES];
    randomize(&mut salt)?;
    // PostgreSQL gets to see no password: a statement can end up in its log. The others blot it out there.
    let verifier = ScramVerifier::derive(password.as_bytes(), &salt, ITERATIONS).to_text();
    let mut up = Vec::new();
    for running in &app.clusters {
        let engine = running.config.engine;
        let coordinator = &running.coordinator;
        let secret = if engine.speaks_mysql() {
            password
        } else {
            verifier.as_str()
        };
        if let Provider::Local(local) = coordinator.provider() {
            let server = local.data_dir().endpoint();
            let made = async {
                local.create_user(&server, APP, secret).await?;
                local.create_database(&server, APP, APP).await
            };
            made.await.map_err(|e| {
                fail(format!(
                    "the account and database `{APP}` of {}: {e}",
                    engine.title()
                ))
            })?;
        }
        let capacity = coordinator
            .capacity()
            .ok_or_else(|| fail("a server ended while it was set up; start again"))?;
        let ladder = &running.config.capacity.ladder;
        let ladder: Vec<_> = ladder.iter().map(ToString::to_string).collect();
        up.push((engine, format!("{capacity} ACU (of {})", ladder.join(", "))));
    }
    Ok(up)
}

fn randomize(bytes: &mut [u8]) -> Result<(), AppError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| fail("the system gives no randomness"))
}

fn parse(file: &Path, text: &str) -> Result<Config, AppError> {
    Config::parse(file, text).map_err(fail)
}

/// Where everything is kept, and at which ports it listens.
struct Place {
    dir: PathBuf,
    /// `dir` was given, so later commands have to be given it too.
    named: bool,
    postgres_port: u16,
    mysql_port: u16,
    admin_port: u16,
    program: String,
    /// What is started.
    engines: Vec<Engine>,
}

impl Place {
    fn of(options: &DevOptions) -> Result<Self, AppError> {
        let dir = match &options.data {
            Some(dir) => std::path::absolute(dir)
                .map_err(|e| fail(format!("--data {}: {e}", dir.display())))?,
            None => default_dir(Uid::effective().is_root(), &|name| std::env::var_os(name))
                .ok_or_else(|| {
                    fail("there is no HOME to keep data in: name a directory with --data")
                })?,
        };
        Ok(Self {
            dir,
            named: options.data.is_some(),
            postgres_port: options.postgres_port.unwrap_or(POSTGRES_PORT),
            mysql_port: options.mysql_port.unwrap_or(MYSQL_PORT),
            admin_port: options.admin_port.unwrap_or(ADMIN_PORT),
            program: program(),
            engines: Vec::new(),
        })
    }

    /// PostgreSQL, and MariaDB or MySQL: whichever of the two has data here, else whichever is installed. The answer
    /// is what is missing, for people.
    fn choose_engines(
        &mut self,
        installed: &dyn Fn(Engine) -> Result<(), String>,
    ) -> Result<Vec<String>, AppError> {
        let mut missing = Vec::new();
        match installed(Engine::Postgres) {
            Ok(()) => self.engines.push(Engine::Postgres),
            Err(why) => missing.push(why),
        }
        let both = [Engine::Mariadb, Engine::Mysql];
        let used = both.into_iter().find(|e| self.server(*e).exists());
        match used {
            Some(used) => match installed(used) {
                Ok(()) => self.engines.push(used),
                Err(why) => missing.push(why),
            },
            None => match both.into_iter().find(|e| installed(*e).is_ok()) {
                Some(found) => self.engines.push(found),
                None => missing.push(
                    "no MariaDB or MySQL server: install the package `mariadb-server`".to_owned(),
                ),
            },
        }
        if self.engines.is_empty() {
            return Err(fail(missing.join("; ")));
        }
        Ok(missing)
    }

    fn port(&self, engine: Engine) -> u16 {
        if engine.speaks_mysql() {
            self.mysql_port
        } else {
            self.postgres_port
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Sees that no other proxy uses the directory.
    fn lock(&self, else_do: &str) -> Result<Flock<File>, AppError> {
        start::lock_state_dir(&self.state())?.ok_or_else(|| {
            let dir = self.dir.display();
            fail(format!(
                "`slackwater dev` runs already with {dir}: {else_do}"
            ))
        })
    }

    /// The data_dir of an engine's server.
    fn server(&self, engine: Engine) -> PathBuf {
        self.dir.join(engine.name())
    }

    /// Makes the directory, or sees that the one that is there is ours.
    fn make(&self) -> Result<(), AppError> {
        let dir = self.dir.display();
        let bad = |e: io::Error| {
            fail(format!(
                "can't use {dir}: {e}; name another directory with --data"
            ))
        };
        if let Some(parent) = self.dir.parent() {
            fs::create_dir_all(parent).map_err(bad)?;
        }
        // The servers of root run under another account, which has to get through.
        let mode = if Uid::effective().is_root() {
            0o711
        } else {
            0o700
        };
        match DirBuilder::new().mode(mode).create(&self.dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            done => return done.map_err(bad),
        }
        let empty = fs::read_dir(&self.dir).map_err(bad)?.next().is_none();
        if !empty && !self.state().join("slackwater.lock").exists() {
            return Err(fail(format!(
                "{dir} has files that are not of `slackwater dev`: name an empty or a new directory with --data"
            )));
        }
        Ok(())
    }

    /// The loopback addresses of this machine, after a look whether the ports are free at them.
    fn hosts(&self) -> Result<Vec<IpAddr>, AppError> {
        let mut hosts = Vec::new();
        for host in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            // A machine without IPv6 is no reason to give up.
            if IpAddr::is_ipv4(&host) || TcpListener::bind((host, 0)).is_ok() {
                for &engine in &self.engines {
                    let (whom, option) = if engine.speaks_mysql() {
                        ("MySQL clients", "--mysql-port")
                    } else {
                        ("PostgreSQL clients", "--postgres-port")
                    };
                    see_that_free(host, self.port(engine), whom, option)?;
                }
                hosts.push(host);
            }
        }
        Ok(hosts)
    }

    fn configuration(&self, hosts: &[IpAddr]) -> String {
        let quote = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
        let mut text = format!(
            "# Written by `slackwater dev` at each start. To change it, copy it, and use `slackwater serve`.\n\
             state_dir = {state}\n\n\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n",
            state = quote(&self.state()),
            admin = self.admin_port,
        );
        for &engine in &self.engines {
            let addresses: Vec<_> = hosts
                .iter()
                .map(|host| {
                    format!(
                        "\"{}\"",
                        std::net::SocketAddr::new(*host, self.port(engine))
                    )
                })
                .collect();
            // A String takes everything.
            let _ = write!(
                text,
                "\n[listen.{listener}]\naddress = [{addresses}]\n\n\
                 [clusters.{cluster}]\nengine = \"{engine}\"\ndefault = true\n\n\
                 [clusters.{cluster}.capacity]\nladder = [1, 2, 4, 8]\n\n\
                 [clusters.{cluster}.provider]\nkind = \"local\"\ndata_dir = {server}\n\
                 memory_per_acu = \"128MiB\"\ncpu_per_acu = 0.25\n",
                listener = if engine.speaks_mysql() {
                    "mysql"
                } else {
                    "postgres"
                },
                addresses = addresses.join(", "),
                cluster = cluster(engine),
                server = quote(&self.server(engine)),
            );
        }
        text
    }

    /// The password of the role, made at the first start.
    fn password(&self) -> Result<Zeroizing<String>, AppError> {
        let file = self.dir.join("app_password");
        match fs::read_to_string(&file).map(Zeroizing::new) {
            Ok(text) if !text.trim().is_empty() => {
                return Ok(Zeroizing::new(text.trim().to_owned()));
            }
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(fail(format!("can't read {}: {e}", file.display())));
            }
            _ => {}
        }
        let mut bytes = Zeroizing::new([0; PASSWORD_BYTES]);
        randomize(&mut *bytes)?;
        let password = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        options
            .open(&file)
            .and_then(|mut file| file.write_all(password.as_bytes()))
            .map_err(|e| fail(format!("can't write {}: {e}", file.display())))?;
        Ok(password)
    }

    /// Puts the CA's certificate where every user who may enter `dir` can read it.
    fn copy_ca(&self, app: &App) -> Result<(), AppError> {
        let Some(ca) = app.certificates.ca_path() else {
            return Ok(());
        };
        let copy = self.ca();
        fs::copy(ca, &copy)
            .and_then(|_| fs::set_permissions(&copy, Permissions::from_mode(0o644)))
            .map_err(|e| fail(format!("can't copy the CA to {}: {e}", copy.display())))
    }

    fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The line by which a client of this engine connects, as the account `app` and sure of whom it talks to.
    fn connect_line(&self, engine: Engine, password: &str) -> String {
        let ca = self.ca().display().to_string();
        let port = self.port(engine);
        let (client, sure) = match engine {
            Engine::Postgres => {
                let url = format!(
                    "postgresql://{APP}:{password}@localhost:{port}/{APP}?sslmode=verify-full&sslrootcert={}",
                    percent(&ca)
                );
                return format!("psql {}", shell(&url));
            }
            Engine::Mysql => ("mysql", "--ssl-mode=VERIFY_IDENTITY"),
            Engine::Mariadb => ("mariadb", "--ssl-verify-server-cert"),
        };
        // Without the protocol "localhost" would be a Unix socket.
        format!(
            "{client} --protocol=tcp --host=localhost --port={port} --user={APP} --password={password} {} {sure} {APP}",
            shell(&format!("--ssl-ca={ca}"))
        )
    }

    fn greeting(&self, password: &str, up: &[Up], missing: &[String]) -> String {
        let admin = format!("http://127.0.0.1:{}", self.admin_port);
        let mut out = format!("\nEverything is in {}\n", self.dir.display());
        let mut say = |text: &str| {
            // A String takes everything.
            let _ = write!(out, "\n{text}");
        };
        let ask = |command: &str| {
            if self.admin_port == ADMIN_PORT {
                format!("    {} {command}", self.program)
            } else {
                format!("    {} {command} --admin {admin}", self.program)
            }
        };
        for (engine, capacity) in up {
            say(&format!(
                "{} is up behind Slackwater, at {capacity}. Connect:",
                engine.title()
            ));
            say(&format!("    {}", self.connect_line(*engine, password)));
        }
        for why in missing {
            say(&format!("Left out: {why}"));
        }
        say("Change the capacity while clients work:");
        for (engine, _) in up {
            say(&ask(&format!("scale {} 2 --wait", cluster(*engine))));
        }
        say("Look:");
        say(&ask("status"));
        for (engine, _) in up {
            let cluster = cluster(*engine);
            say(&ask(&format!("status {cluster}")));
            say(&ask(&format!("sessions {cluster}")));
            say(&ask(&format!("events {cluster}")));
        }
        say(&format!("    {admin}/metrics"));
        say(
            "End: Ctrl-C ends the proxy; servers go on, and the next `dev` takes them over. To end them too:",
        );
        say(&format!("    {}", self.stop_line()));
        say("");
        out
    }

    fn stop_line(&self) -> String {
        if self.named {
            let dir = shell(&self.dir.display().to_string());
            format!("{} dev --stop --data {dir}", self.program)
        } else {
            format!("{} dev --stop", self.program)
        }
    }

    async fn stop(&self) -> Result<(), AppError> {
        let dir = self.dir.display();
        let there: Vec<_> = Engine::ALL
            .into_iter()
            .filter(|engine| self.server(*engine).join("slackwater.lock").exists())
            .collect();
        if there.is_empty() {
            super::print(&format!("no server was started in {dir}"));
            return Ok(());
        }
        let _alone = self.lock("end it first, with Ctrl-C")?;
        let mut failed = None;
        for engine in there {
            let title = engine.title();
            let stopped = async {
                let data_dir = DataDir::open(&self.local_config(engine)?).map_err(fail)?;
                data_dir.stop_server(STOP_MAX).await.map_err(fail)
            };
            match stopped.await {
                Ok(Some(process)) => super::print(&format!(
                    "stopped the {title} server in {dir} (process {process})"
                )),
                Ok(None) => super::print(&format!("no {title} server runs in {dir}")),
                // The others are stopped all the same.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn local_config(&self, engine: Engine) -> Result<LocalConfig, AppError> {
        let only = Self {
            dir: self.dir.clone(),
            program: String::new(),
            engines: vec![engine],
            ..*self
        };
        let config = parse(
            &self.dir.join("dev.toml"),
            &only.configuration(&[Ipv4Addr::LOCALHOST.into()]),
        )?;
        let keys = config.cluster(cluster(engine));
        let parts = keys.and_then(|keys| match (&keys.provider, &keys.auth.service) {
            (ProviderConfig::Local(local), Some(account)) => Some((keys, local, account)),
            _ => None,
        });
        let (keys, local, account) = parts.ok_or_else(|| fail("dev.toml names no local server"))?;
        Ok(start::local_config(keys, local, account, None))
    }
}

/// Where data is kept when nobody says it: for root a directory that every account can get through.
fn default_dir(
    root: bool,
    variable: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/lib/slackwater/dev"));
    }
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("slackwater/dev"))
}

/// How people call this program: by its name where that finds it, else by its path.
fn program() -> String {
    const NAME: &str = "slackwater";
    let Ok(this) = std::env::current_exe() else {
        return NAME.to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(NAME))
        .find(|file| file.is_file());
    match found.and_then(|file| fs::canonicalize(file).ok()) {
        Some(found) if Some(&found) == fs::canonicalize(&this).ok().as_ref() => NAME.to_owned(),
        _ => shell(&this.display().to_string()),
    }
}

fn see_that_free(host: IpAddr, port: u16, whom: &str, option: &str) -> Result<(), AppError> {
    let at = std::net::SocketAddr::new(host, port);
    match TcpListener::bind(at) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AddrInUse => Err(fail(format!(
            "another program listens at {at}, the address for {whom}: choose another port with {option}"
        ))),
        Err(e) => Err(fail(format!(
            "can't listen at {at} for {whom}: {e}; choose another port with {option}"
        ))),
    }
}

/// A word for a POSIX shell.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A value in a URL.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // A String takes everything.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &str, named: bool) -> Place {
        Place {
            dir: dir.into(),
            named,
            postgres_port: 6001,
            mysql_port: 6003,
            admin_port: 6002,
            program: "slackwater".to_owned(),
            engines: vec![Engine::Postgres, Engine::Mariadb],
        }
    }

    #[test]
    fn what_it_writes_is_a_configuration_that_works() {
        let place = place("/srv/it's \"here\"", true);
        for engine in Engine::ALL {
            let local = place.local_config(engine).unwrap();
            let data_dir = Path::new("/srv/it's \"here\"").join(engine.name());
            assert_eq!((local.engine, local.data_dir), (engine, data_dir));
            assert_eq!(
                (
                    local.memory_per_acu,
                    local.cpu_per_acu,
                    local.max_capacity.0
                ),
                (128 << 20, 250, 8)
            );
        }
        let hosts = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let config = parse(Path::new("/x/dev.toml"), &place.configuration(&hosts)).unwrap();
        let shown = |listen: crate::config::ListenConfig| {
            let addresses: Vec<_> = listen.addresses.iter().map(ToString::to_string).collect();
            addresses.join(" ")
        };
        let listen = config.listen;
        assert_eq!(shown(listen.postgres.unwrap()), "127.0.0.1:6001 [::1]:6001");
        assert_eq!(shown(listen.mysql.unwrap()), "127.0.0.1:6003 [::1]:6003");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn lines_can_be_pasted_whatever_the_directory_is_called() {
        let up =
            [Engine::Postgres, Engine::Mariadb, Engine::Mysql].map(|e| (e, "1 ACU".to_owned()));
        let missing = ["no server of that kind".to_owned()];
        let greeting = place("/srv/it's here", true).greeting("pw", &up, &missing);
        for line in [
            "MariaDB is up behind Slackwater, at 1 ACU. Connect:",
            "    mariadb --protocol=tcp --host=localhost --port=6003 --user=app --password=pw '--ssl-ca=/srv/it'\\''s here/ca.crt' --ssl-verify-server-cert app",
            "    mysql --protocol=tcp --host=localhost --port=6003 --user=app --password=pw '--ssl-ca=/srv/it'\\''s here/ca.crt' --ssl-mode=VERIFY_IDENTITY app",
            "    slackwater scale dev-mariadb 2 --wait --admin http://127.0.0.1:6002",
            "Left out: no server of that kind",
            "    psql 'postgresql://app:pw@localhost:6001/app?sslmode=verify-full&sslrootcert=/srv/it%27s%20here/ca.crt'",
            "    slackwater scale dev 2 --wait --admin http://127.0.0.1:6002",
            "    slackwater dev --stop --data '/srv/it'\\''s here'",
        ] {
            assert!(greeting.lines().any(|l| l == line), "{line}\n{greeting}");
        }
        let usual = Place {
            admin_port: ADMIN_PORT,
            ..place("/srv/dev", false)
        };
        let greeting = usual.greeting("pw", &up[..1], &[]);
        for line in ["    slackwater sessions dev", "    slackwater dev --stop"] {
            assert!(greeting.lines().any(|l| l == line), "{line}\n{greeting}");
        }
    }

    #[test]
    fn what_is_installed_is_started_and_what_is_missing_said() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = |there: &[Engine]| {
            let mut place = place(dir.path().to_str().unwrap(), true);
            place.engines.clear();
            let installed = |engine: Engine| {
                if there.contains(&engine) {
                    Ok(())
                } else {
                    Err(format!("no {engine}"))
                }
            };
            let missing = place.choose_engines(&installed).map_err(|e| e.0)?;
            Ok::<_, String>((place.engines, missing.join("; ")))
        };
        let (engines, missing) = chosen(&Engine::ALL).unwrap();
        assert_eq!((engines[0], missing.as_str()), (Engine::Postgres, ""));
        assert!(chosen(&[]).unwrap_err().contains("no postgres"));
        assert_eq!(engines[1], Engine::Mariadb);
        let (engines, missing) = chosen(&[Engine::Postgres]).unwrap();
        assert_eq!(engines, [Engine::Postgres]);
        assert!(missing.contains("mariadb-server"), "{missing}");
        let (engines, missing) = chosen(&[Engine::Mysql]).unwrap();
        assert_eq!(
            (engines, missing.as_str()),
            (vec![Engine::Mysql], "no postgres")
        );
        // Data of one is not left lying for the other.
        fs::create_dir(dir.path().join("mysql")).unwrap();
        assert_eq!(chosen(&Engine::ALL).unwrap().0[1], Engine::Mysql);
        let (engines, missing) = chosen(&[Engine::Postgres, Engine::Mariadb]).unwrap();
        assert_eq!((engines.len(), missing.as_str()), (1, "no mysql"));
    }

    #[test]
    fn data_is_kept_where_the_account_keeps_data() {
        let none = |_: &str| None;
        let home = |name: &str| (name == "HOME").then(|| "/home/ann".into());
        let both = |name: &str| match name {
            "HOME" => Some("/home/ann".into()),
            _ => Some("/data".into()),
        };
        let found = |root, variable| default_dir(root, variable).map(|p| p.display().to_string());
        assert_eq!(found(true, &home).unwrap(), "/var/lib/slackwater/dev");
        assert_eq!(
            found(false, &home).unwrap(),
            "/home/ann/.local/share/slackwater/dev"
        );
        assert_eq!(found(false, &both).unwrap(), "/data/slackwater/dev");
        assert_eq!(found(false, &none), None);
    }

    #[test]
    fn the_password_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path().to_str().unwrap(), true);
        let first = place.password().unwrap();
        assert_eq!(first.len(), 24);
        assert_eq!(*place.password().unwrap(), *first);
        let mode = fs::metadata(dir.path().join("app_password")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn directories_of_others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let error = place(dir.path().to_str().unwrap(), true)
            .make()
            .unwrap_err();
        assert!(error.0.contains("--data"), "{error}");
        let new = dir.path().join("a/b");
        let place = place(new.to_str().unwrap(), true);
        place.make().unwrap();
        place.make().unwrap();
        drop(start::state_dir(&place.state()).unwrap());
        place.make().unwrap();
    }

    #[test]
    fn a_port_in_use_names_the_option() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let host = Ipv4Addr::LOCALHOST.into();
        let error = see_that_free(host, port, "the admin API", "--admin-port").unwrap_err();
        assert!(
            error.0.contains("--admin-port") && error.0.contains(&port.to_string()),
            "{error}"
        );
    }
}
