//! Real servers: Debian's MariaDB, and the MariaDB and MySQL that `scripts/mysql_servers.sh` fetches. Each test runs
//! on all of them, one after the other. They are asked with the engines' own command-line clients.

use super::super::super::{CutOver, Instance, QueryError, Rows, ServerQuery, ServerSession};
use super::super::tests::{completed, place::Place, say, until};
use super::super::{LocalConfig, LocalProvider, SwitchKind};
use super::*;
use crate::backend::Capacity;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::signal::Signal;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// One kind of server to test with.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) engine: Engine,
    binaries: Option<PathBuf>,
}

/// All that are here, or can be fetched.
pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = vec![Kind {
        engine: Engine::Mariadb,
        binaries: None,
    }];
    for (engine, version) in [(Engine::Mariadb, "11.8"), (Engine::Mysql, "9.7")] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mysql_servers.sh");
        let output = std::process::Command::new(script)
            .args([engine.name(), version])
            .output();
        match output {
            Ok(output) if output.status.success() => kinds.push(Kind {
                engine,
                binaries: Some(PathBuf::from(
                    String::from_utf8_lossy(&output.stdout).trim(),
                )),
            }),
            other => {
                let text = format!("SKIPPED: {engine} {version} can't be fetched: {other:?}\n");
                let _ = io::stderr().write_all(text.as_bytes());
            }
        }
    }
    kinds
}

impl Kind {
    pub(super) fn config(&self, place: &Place) -> LocalConfig {
        LocalConfig {
            engine: self.engine,
            binaries: self.binaries.clone(),
            ..place.config()
        }
    }

    pub(super) fn provider(&self, place: &Place) -> LocalProvider {
        self.provider_with(self.config(place))
    }

    pub(super) fn provider_with(&self, config: LocalConfig) -> LocalProvider {
        let data_dir = DataDir::open(&config).unwrap();
        let query = Client {
            program: self.client(),
            user: config.service_user.clone(),
            password: data_dir.service_password().to_owned(),
        };
        LocalProvider::new(config, data_dir, Arc::new(query)).unwrap()
    }

    /// With programs that don't start a server at capacity 9. (One with more memory than the host has would have to
    /// be killed by the system first, on some.)
    fn that_never_has_nine(&self, place: &Place) -> Self {
        let programs = Programs::find(self.engine, self.binaries.as_deref()).unwrap();
        let directory = place.directory.path().join("programs");
        fs::create_dir(&directory).unwrap();
        let write = |name: &str, text: String| {
            let file = directory.join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let real = programs.server.display();
        let refuses =
            "case \"$*\" in *=slackwater:9:*) echo '[ERROR] nine is too many' >&2; exit 1 ;; esac";
        write(
            programs::server_name(self.engine),
            format!("#!/bin/sh\n{refuses}\nexec '{real}' \"$@\"\n"),
        );
        for other in [Some(self.client()), programs.installer, programs.backup]
            .into_iter()
            .flatten()
        {
            let name = other.file_name().unwrap().to_str().unwrap();
            let text = format!("#!/bin/sh\nexec '{}' \"$@\"\n", other.display());
            write(name, text);
        }
        Self {
            engine: self.engine,
            binaries: Some(directory),
        }
    }

    fn client(&self) -> PathBuf {
        let name = match self.engine {
            Engine::Mysql => "mysql",
            _ => "mariadb",
        };
        self.binaries
            .as_ref()
            .map_or_else(|| PathBuf::from(name), |dir| dir.join(name))
    }
}

/// A log-in with the engine's own client.
#[derive(Clone)]
struct Client {
    program: PathBuf,
    user: String,
    password: String,
}

impl Client {
    async fn run(&self, at: &Endpoint, database: &str, sql: &str) -> Result<Rows, QueryError> {
        let crate::transport::Address::Unix(socket) = &at.address else {
            panic!("unix only")
        };
        // Newer clients of MariaDB demand TLS unless they are told that a Unix socket needs none.
        let plain = if self.program.ends_with("mysql") {
            "--ssl-mode=DISABLED"
        } else {
            "--skip-ssl"
        };
        let output = Command::new(&self.program)
            .args(["--no-defaults", "--batch", "--skip-column-names", "--raw"])
            .arg(plain)
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--user={}", self.user))
            .args(["-e", sql, database])
            .env("MYSQL_PWD", &self.password)
            .output()
            .await
            .unwrap();
        if output.status.success() {
            let text = String::from_utf8(output.stdout).unwrap();
            let value = |v: &str| (v != "NULL").then(|| v.to_owned());
            return Ok(text
                .lines()
                .map(|line| line.split('\t').map(value).collect())
                .collect());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = text
            .split("ERROR ")
            .nth(1)
            .and_then(|rest| rest.split_ascii_whitespace().next())
            .unwrap_or_default()
            .to_owned();
        Err(match code.as_str() {
            "2002" | "2003" | "2013" | "2006" => QueryError::Refused(text),
            "1053" => QueryError::Starting,
            "1040" => QueryError::Full,
            "1045" | "1698" | "3118" => QueryError::Auth(text),
            _ => QueryError::Other(text),
        })
    }
}

impl ServerQuery for Client {
    fn query<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.run(endpoint, "", sql).boxed()
    }

    fn session<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Box<dyn ServerSession>, QueryError>> {
        let one = OneByOne(self.clone(), endpoint.clone());
        async move { Ok(Box::new(one) as _) }.boxed()
    }

    fn query_in<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        database: &'a str,
        sql: &'a str,
    ) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.run(endpoint, database, sql).boxed()
    }
}

/// Each statement is a log-in; nothing here needs a session's state.
struct OneByOne(Client, Endpoint);

impl ServerSession for OneByOne {
    fn query<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<Rows, QueryError>> {
        self.0.run(&self.1, "", sql).boxed()
    }
}

pub(super) async fn ask(provider: &LocalProvider, sql: &str) -> Rows {
    let at = provider.data_dir().endpoint();
    provider
        .ask(&at, sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

pub(super) async fn value(provider: &LocalProvider, sql: &str) -> String {
    let mut rows = ask(provider, sql).await;
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.remove(0).remove(0).unwrap_or_default()
}

async fn pool_mib(provider: &LocalProvider) -> String {
    value(
        provider,
        "SELECT @@GLOBAL.innodb_buffer_pool_size DIV 1048576",
    )
    .await
}

fn server(place: &Place) -> Process {
    find(&place.data_dir().join("data")).expect("a server runs")
}

pub(super) async fn switched(provider: &LocalProvider, from: &Instance, to: u32) -> Instance {
    let to = Capacity(to);
    let kind = provider.prepare(from, to).await.unwrap();
    assert_eq!(kind, SwitchKind::Barrier);
    completed(provider.cut_over(from, to).await)
}

#[tokio::test]
async fn resized_with_all_its_data_and_adopted_by_the_next_proxy() {
    for kind in kinds() {
        let place = Place::new();
        let provider = kind.provider(&place);
        let mut now = provider.start(Capacity(1)).await.unwrap();
        assert_eq!(
            (now.capacity, pool_mib(&provider).await.as_str()),
            (Capacity(1), "64"),
            "{kind:?}"
        );
        // The wanted capacity of the second call is ignored: a server runs.
        assert_eq!(provider.start(Capacity(2)).await.unwrap(), now);
        ask(&provider, "CREATE DATABASE shop").await;
        ask(&provider, "CREATE TABLE shop.t (n INT PRIMARY KEY)").await;
        let mut processes = vec![server(&place).pid()];
        for to in [4, 1, 2, 2, 8] {
            ask(
                &provider,
                &format!("INSERT INTO shop.t VALUES ({})", processes.len()),
            )
            .await;
            let next = switched(&provider, &now, to).await;
            assert_ne!(next.identity.started_at, now.identity.started_at);
            let system = |i: &Instance| i.identity.system_identifier.clone();
            assert_eq!(system(&next), system(&now));
            assert_eq!(next.capacity, Capacity(to));
            assert_eq!(pool_mib(&provider).await, (64 * to).to_string());
            // Asked again, it is only told again.
            let again = provider.cut_over(&now, Capacity(to)).await;
            assert_eq!(completed(again), next);
            processes.push(server(&place).pid());
            say(&format!("{kind:?}: {}", provider.last_switch().unwrap()));
            now = next;
        }
        assert_eq!(value(&provider, "SELECT COUNT(*) FROM shop.t").await, "5");
        assert_eq!(value(&provider, "SELECT @@max_connections").await, "170");
        processes.dedup();
        assert_eq!(processes.len(), 6);
        let facts = provider.facts();
        let fact = |name: &str| facts.iter().find(|f| f.name == name).unwrap().value.clone();
        assert_eq!(fact("innodb_buffer_pool_size"), "512M");
        let version = value(&provider, "SELECT VERSION()").await;
        assert!(version.starts_with(&fact("server_version")), "{version}");
        provider.state.lock().await.tidy().await;
        assert_eq!(provider.data_dir.intent().unwrap(), None);

        drop(provider);
        let provider = kind.provider(&place);
        let adopted = provider.start(Capacity(1)).await.unwrap();
        assert_eq!(adopted, now);
        let next = switched(&provider, &adopted, 2).await;
        assert!(!processes.contains(&server(&place).pid()));
        // Another server of the same data is another start, and the same system.
        assert_ne!(next.identity.started_at, adopted.identity.started_at);
    }
}

#[tokio::test]
async fn the_service_account_sees_what_sessions_hold_and_strangers_get_in_nowhere() {
    for kind in kinds() {
        let place = Place::new();
        let provider = kind.provider(&place);
        let at = provider.start(Capacity(1)).await.unwrap().endpoint;
        let seen = match kind.engine {
            Engine::Mysql => {
                "SELECT COUNT(*) FROM performance_schema.setup_instruments \
                 WHERE NAME = 'wait/lock/metadata/sql/mdl' AND ENABLED = 'YES'"
            }
            _ => {
                "SELECT COUNT(*) FROM information_schema.PLUGINS \
                 WHERE PLUGIN_NAME = 'METADATA_LOCK_INFO' AND PLUGIN_STATUS = 'ACTIVE'"
            }
        };
        assert_eq!(value(&provider, seen).await, "1", "{kind:?}");
        let shown = "SELECT GET_LOCK('x', 0)";
        assert_eq!(value(&provider, shown).await, "1");
        for (user, password) in [("root", ""), ("slackwater", "wrong"), ("nobody", "")] {
            let stranger = Client {
                program: kind.client(),
                user: user.to_owned(),
                password: password.to_owned(),
            };
            // MariaDB's root is the system's own root, which may run these tests.
            if user == "root" && kind.engine == Engine::Mariadb {
                continue;
            }
            let error = stranger.run(&at, "", "SELECT 1").await.unwrap_err();
            assert!(matches!(error, QueryError::Auth(_)), "{user}: {error}");
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            mode(&provider.data_dir.path().join("service_password")),
            0o600
        );
        assert_eq!(mode(&provider.data_dir.socket_directory()), 0o700);
        let left = fs::read_dir(provider.data_dir.socket_directory()).unwrap();
        let left: Vec<_> = left
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| Path::new(name).extension().is_some_and(|e| e == "sql"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let owner = fs::metadata(format!("/proc/{}", server(&place).pid())).unwrap();
        assert_ne!(owner.uid(), 0);

        let weird = "we'ird \\user`";
        for password in ["first", "se'c\"ond"] {
            provider.create_user(&at, weird, password).await.unwrap();
            provider
                .create_database(&at, "app_`db", weird)
                .await
                .unwrap();
        }
        let mut app = Client {
            program: kind.client(),
            user: weird.to_owned(),
            password: "se'c\"ond".to_owned(),
        };
        let sql = "CREATE TABLE IF NOT EXISTS t (n INT); SELECT DATABASE()";
        let rows = app.run(&at, "app_`db", sql).await.unwrap();
        assert_eq!(rows, [[Some("app_`db".to_owned())]]);
        let denied = app.run(&at, "appx`db", "SELECT 1").await.unwrap_err();
        assert!(denied.to_string().contains("1044"), "{denied}");
        app.password = "first".to_owned();
        let error = app.run(&at, "", "SELECT 1").await.unwrap_err();
        assert!(matches!(error, QueryError::Auth(_)), "{error}");
    }
}

#[tokio::test]
async fn safety_20_what_a_restart_would_lose_or_not_survive_is_refused_by_name() {
    for kind in kinds() {
        let place = Place::new();
        let provider = kind.provider(&place);
        let now = provider.start(Capacity(1)).await.unwrap();
        let refused = async |why: &str, to: u32| {
            let error = provider.prepare(&now, Capacity(to)).await.unwrap_err();
            assert!(error.to_string().contains(why), "{kind:?}: {error}");
            assert_eq!(provider.start(Capacity(1)).await.unwrap(), now);
        };
        refused("paused", 0).await;
        refused("lower memory_per_acu", 1_000_000).await;

        let file = my_cnf(&provider.data_dir);
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{good}work_mem = lots\n")).unwrap();
        refused("unknown variable 'work_mem=lots'", 2).await;
        fs::write(&file, format!("{good}sql_mode = NONSENSE\n")).unwrap();
        refused("Error while setting value 'NONSENSE' to 'sql_mode'", 2).await;
        fs::write(&file, &good).unwrap();

        ask(&provider, "CREATE DATABASE shop").await;
        ask(
            &provider,
            "CREATE TABLE shop.`we``ird` (n INT) ENGINE=MEMORY",
        )
        .await;
        provider.prepare(&now, Capacity(2)).await.unwrap();
        ask(&provider, "INSERT INTO shop.`we``ird` VALUES (1)").await;
        refused(
            "MEMORY tables would be empty after the restart: `shop`.`we``ird`;",
            2,
        )
        .await;
        ask(&provider, "DELETE FROM shop.`we``ird`").await;
        provider.prepare(&now, Capacity(2)).await.unwrap();

        // A prepared XA transaction survives, so it is no reason to refuse.
        ask(&provider, "CREATE TABLE shop.t (n INT) ENGINE=InnoDB").await;
        let sql = "XA START 'x1'; INSERT INTO shop.t VALUES (7); XA END 'x1'; XA PREPARE 'x1'";
        ask(&provider, sql).await;
        let next = switched(&provider, &now, 2).await;
        assert_eq!(ask(&provider, "XA RECOVER").await.len(), 1);
        ask(&provider, "XA COMMIT 'x1'").await;
        assert_eq!(value(&provider, "SELECT n FROM shop.t").await, "7");

        let error = provider.prepare(&now, Capacity(4)).await.unwrap_err();
        assert!(
            error.to_string().contains("restarted by somebody else"),
            "{error}"
        );
        assert_eq!(provider.start(Capacity(1)).await.unwrap(), next);
    }
}

#[tokio::test]
async fn safety_23_a_failed_start_goes_back_to_the_old_settings() {
    for kind in kinds() {
        let place = Place::new();
        let kind = kind.that_never_has_nine(&place);
        let provider = kind.provider(&place);
        let old = provider.start(Capacity(2)).await.unwrap();
        let CutOver::KeptOld { instance, reason } = provider.cut_over(&old, Capacity(9)).await
        else {
            panic!("a server that its program refuses: {kind:?}")
        };
        assert!(
            reason.contains("does not start with capacity 9"),
            "{reason}"
        );
        assert!(reason.contains("[ERROR] nine is too many"), "{reason}");
        assert_eq!(instance.capacity, Capacity(2));
        assert_ne!(instance.identity.started_at, old.identity.started_at);
        assert_eq!(pool_mib(&provider).await, "128");

        // Neither the new nor the old settings: lost, and back once the cause is gone.
        let file = my_cnf(&provider.data_dir);
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{good}work_mem = lots\n")).unwrap();
        let CutOver::Lost { reason } = provider.cut_over(&instance, Capacity(1)).await else {
            panic!("started with a broken configuration: {kind:?}")
        };
        assert!(
            reason.contains("work_mem") && reason.contains("as before"),
            "{reason}"
        );
        fs::write(&file, good).unwrap();
        let now = completed(provider.cut_over(&instance, Capacity(1)).await);
        assert_eq!(now.capacity, Capacity(1));
    }
}

#[tokio::test]
async fn safety_25_a_killed_server_is_started_again_and_a_dropped_cut_over_goes_on() {
    for kind in kinds() {
        let place = Place::new();
        let mut provider = kind.provider(&place);
        let old = provider.start(Capacity(1)).await.unwrap();
        ask(&provider, "CREATE DATABASE shop").await;
        ask(&provider, "CREATE TABLE shop.t (n INT) ENGINE=InnoDB").await;
        ask(&provider, "INSERT INTO shop.t VALUES (7)").await;
        let process = server(&place);
        process.signal(Signal::SIGKILL).unwrap();
        until("it is gone", || !process.alive()).await;
        let after_crash = provider.start(Capacity(2)).await.unwrap();
        assert_eq!(after_crash.capacity, Capacity(2));
        assert_ne!(after_crash.identity.started_at, old.identity.started_at);
        assert_eq!(value(&provider, "SELECT n FROM shop.t").await, "7");

        // A stop that hangs is told, and goes on later.
        let before = server(&place);
        provider.patience.stop = std::time::Duration::from_millis(50);
        before.signal(Signal::SIGSTOP).unwrap();
        let CutOver::Lost { reason } = provider.cut_over(&after_crash, Capacity(4)).await else {
            panic!("a stopped process stopped")
        };
        let told = format!("process {} has not stopped", before.pid());
        assert!(reason.contains(&told), "{reason}");
        before.signal(Signal::SIGCONT).unwrap();
        provider.patience.stop = std::time::Duration::from_mins(1);

        // The future is dropped after each further step.
        for polls in 1..40 {
            let mut cut_over = Box::pin(provider.cut_over(&after_crash, Capacity(4)));
            let mut left = polls;
            let done = std::future::poll_fn(|context| {
                left -= 1;
                match cut_over.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
                    std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => std::task::Poll::Pending,
                }
            });
            if done.await.is_some() {
                break;
            }
        }
        let now = completed(provider.cut_over(&after_crash, Capacity(4)).await);
        assert_eq!(now.capacity, Capacity(4));
        assert!(!before.alive());
        assert_eq!(value(&provider, "SELECT n FROM shop.t").await, "7");

        // A proxy that ends between Prepare and the end of the cut-over: the next one undoes it.
        provider.prepare(&now, Capacity(8)).await.unwrap();
        let process = server(&place);
        process.signal(Signal::SIGTERM).unwrap();
        until("it is gone", || !process.alive()).await;
        drop(provider);
        let provider = kind.provider(&place);
        let undone = provider.start(Capacity(1)).await.unwrap();
        assert_eq!(undone.capacity, Capacity(4));
        assert_eq!(provider.data_dir.intent().unwrap(), None);
        let stopped = provider
            .data_dir
            .stop_server(std::time::Duration::from_mins(1))
            .await
            .unwrap();
        assert!(stopped.is_some());
        assert!(find(&place.data_dir().join("data")).is_none());
    }
}

#[tokio::test]
async fn places_and_programs_that_do_not_fit_are_refused() {
    let place = Place::new();
    let kind = kinds().remove(0);
    let provider = kind.provider(&place);
    provider.start(Capacity(1)).await.unwrap();
    drop(provider);
    let config = LocalConfig {
        engine: Engine::Mysql,
        ..kind.config(&place)
    };
    let data_dir = DataDir::open(&config).unwrap();
    let account = Client {
        program: kind.client(),
        user: String::new(),
        password: String::new(),
    };
    let error = LocalProvider::new(config, data_dir, Arc::new(account))
        .err()
        .expect("refused");
    assert!(
        error
            .to_string()
            .contains("it has data of engine mariadb, and the cluster's engine is mysql"),
        "{error}"
    );
    let taken = Place::new();
    let config = kind.config(&taken);
    let opened = DataDir::open(&config).unwrap();
    fs::create_dir(opened.data()).unwrap();
    fs::write(opened.data().join("ibdata1"), "").unwrap();
    let error = opened.is_made().unwrap_err().to_string();
    assert!(
        error.contains("has files but is no MariaDB data directory"),
        "{error}"
    );
}
