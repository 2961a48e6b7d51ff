//! Everything that a local server has on disk: one directory, locked by one proxy.
//!
//! ```text
//! data_dir/slackwater.lock      held while a proxy uses the directory
//!          server.json          the ports, chosen once, and which home has the primary
//!          switch.json          from and to, from Prepare to the end of the cut-over
//!          service_password     of the service account (0600), unless it is configured
//!          pgdata/              PostgreSQL's own: the first home; data/ for MySQL and MariaDB
//!          pgdata.2/            the second home, with `switch = "standby"`
//!          my.cnf               MySQL and MariaDB: settings of the user's own; read at each start
//!          run/                 the Unix sockets
//!          server.log           what the server in the first home says; server.2.log for the second
//! ```

use super::super::ProviderError;
use super::LocalConfig;
use super::files::{Home, Intent, ServerFile};
use super::ports::{free_port, outgoing_ports};
use super::settings::Floors;
use crate::backend::{Endpoint, Engine};
use crate::transport::{Address, ServerTls};
use base64::Engine as _;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid, User, chown};
use parking_lot::Mutex;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, in bytes.
const SOCKET_PATH_LIMIT: usize = 107;

/// The unprivileged account under which servers run when the proxy runs as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    name: String,
}

/// A locked data directory. Dropping it gives the lock up; the server goes on.
pub struct DataDir {
    path: PathBuf,
    engine: Engine,
    account: Option<Account>,
    file: Mutex<ServerFile>,
    /// Held while it is written: all do that by way of one other name, and the newest has to be the last.
    keeping: Mutex<()>,
    service_password: String,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes `config.data_dir` if need be, locks it, chooses port and password once. Starts nothing.
    pub fn open(config: &LocalConfig) -> Result<Self, ProviderError> {
        let path = std::path::absolute(&config.data_dir)
            .map_err(ProviderError::io("can't find", &config.data_dir))?;
        let problem = |problem: String| ProviderError::DataDir {
            path: path.clone(),
            problem,
        };
        make_place(&path).map_err(ProviderError::io("can't make", &path))?;
        refuse_foreign(&path)?;
        let lock = lock(&path)?;
        let home = [Home::First, Home::Second].map(|h| path.join(h.directory(config.engine)));
        let owned = home.iter().find(|h| h.exists()).unwrap_or(&home[0]);
        let account = account(owned, config.engine).map_err(problem)?;
        if let Some(account) = &account {
            check_reachable(&path, account).map_err(problem)?;
        }
        let service_password = match &config.service_password {
            Some(given) => given.clone(),
            None => stored_password(&path.join("service_password"))?,
        };
        let opened = Self {
            file: Mutex::default(),
            keeping: Mutex::default(),
            engine: config.engine,
            path,
            account,
            service_password,
            _lock: lock,
        };
        let run = opened.socket_directory();
        check_socket_path(&run).map_err(|problem| ProviderError::DataDir {
            path: opened.path.clone(),
            problem,
        })?;
        if !run.exists() {
            opened.make_directory(&run, 0o700)?;
        }
        match opened.read_json::<ServerFile>("server.json")? {
            Some(file) => *opened.file.lock() = file,
            None => opened.choose_port(Home::First)?,
        }
        Ok(opened)
    }

    /// Password of the service account, for the implementation of
    /// [`ServerQuery`](super::super::ServerQuery).
    pub fn service_password(&self) -> &str {
        &self.service_password
    }

    /// Where the primary listens for Slackwater: its Unix socket.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint_of(self.primary())
    }

    pub(super) fn endpoint_of(&self, home: Home) -> Endpoint {
        Endpoint {
            address: Address::Unix(self.socket_of(home)),
            tls: ServerTls::Disable,
            tls_ca: None,
        }
    }

    /// Its Unix socket; PostgreSQL names it itself.
    pub(super) fn socket_of(&self, home: Home) -> PathBuf {
        let port = self.port_of(home);
        self.socket_directory().join(if self.engine.speaks_mysql() {
            format!("mysql.{port}.sock")
        } else {
            format!(".s.PGSQL.{port}")
        })
    }

    /// The primary's port at 127.0.0.1 (and in the name of its Unix socket), kept over restarts.
    pub fn port(&self) -> u16 {
        self.port_of(self.primary())
    }

    /// 0 as long as there never was a server in that home.
    pub(super) fn port_of(&self, home: Home) -> u16 {
        self.file.lock().port(home).unwrap_or(0)
    }

    /// Which home has the primary.
    pub(super) fn primary(&self) -> Home {
        self.file.lock().primary
    }

    /// From now on the primary is in `home`; on disk after [`Self::keep_file`].
    pub(super) fn set_primary(&self, home: Home) {
        self.file.lock().primary = home;
    }

    /// Least values of what a standby may not have less of than its primary.
    pub(super) fn floors(&self) -> Floors {
        self.file.lock().floors
    }

    /// Raises the floors. Blocks for a few fsyncs when that changes something.
    pub(super) fn raise_floors(&self, at_least: Floors) -> Result<(), ProviderError> {
        let raised = {
            let mut file = self.file.lock();
            let before = file.floors;
            file.floors = before.max(at_least);
            file.floors != before
        };
        if raised { self.keep_file() } else { Ok(()) }
    }

    /// Writes `server.json`. Blocks for a few fsyncs.
    pub(super) fn keep_file(&self) -> Result<(), ProviderError> {
        let _alone = self.keeping.lock();
        let file = *self.file.lock();
        self.write_json("server.json", &file)
    }

    /// Takes another port when somebody else listens at that of `home`, or it has none yet. Only while no
    /// server runs there.
    pub(super) fn see_to_port(&self, home: Home) -> Result<(), ProviderError> {
        let before = self.port_of(home);
        if before == 0 {
            return self.choose_port(home);
        }
        if TcpListener::bind(("127.0.0.1", before)).is_ok() {
            return Ok(());
        }
        self.choose_port(home)?;
        let now = self.port_of(home);
        tracing::warn!(before, now, "the server's port was taken: chose another");
        Ok(())
    }

    fn choose_port(&self, home: Home) -> Result<(), ProviderError> {
        let port = free_port(outgoing_ports())
            .map_err(ProviderError::io("can't find a free port at", "127.0.0.1"))?;
        self.file.lock().set_port(home, port);
        self.keep_file()
    }

    /// What its servers are.
    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    /// PostgreSQL's settings that every capacity shares, as `name=value`.
    pub(super) fn fixed_settings(&self, home: Home) -> Vec<String> {
        vec![
            format!("port={}", self.port_of(home)),
            format!(
                "unix_socket_directories=\"{}\"",
                self.socket_directory().display()
            ),
            "listen_addresses=127.0.0.1".to_owned(),
            // server.log is the server's standard error: errors quote it.
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
        ]
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The primary's data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.data_of(self.primary())
    }

    pub(super) fn data_of(&self, home: Home) -> PathBuf {
        self.path.join(home.directory(self.engine))
    }

    /// What the primary says.
    pub(super) fn log(&self) -> PathBuf {
        self.log_of(self.primary())
    }

    pub(super) fn log_of(&self, home: Home) -> PathBuf {
        self.path.join(match home {
            Home::First => "server.log",
            Home::Second => "server.2.log",
        })
    }

    pub(super) fn socket_directory(&self) -> PathBuf {
        self.path.join("run")
    }

    pub(super) fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Whether a data directory was made.
    pub(super) fn is_made(&self) -> Result<bool, ProviderError> {
        if self.engine.speaks_mysql() {
            return Ok(super::mysql::Mark::read(self)?.is_some());
        }
        Ok(self.version()?.is_some())
    }

    /// Whether there is a data directory in `home`, made whole.
    pub(super) fn holds_data(&self, home: Home) -> bool {
        let mark = if self.engine.speaks_mysql() {
            super::mysql::MARK
        } else {
            "PG_VERSION"
        };
        self.data_of(home).join(mark).is_file()
    }

    /// Major version of PostgreSQL's data directory, `None` before initdb.
    pub(super) fn version(&self) -> Result<Option<String>, ProviderError> {
        let file = self.data().join("PG_VERSION");
        match fs::read_to_string(&file) {
            Ok(version) => Ok(Some(version.trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.see_that_empty()?;
                Ok(None)
            }
            Err(e) => Err(ProviderError::io("can't read", file)(e)),
        }
    }

    /// A data directory without the mark of one that was made whole has nothing in it.
    pub(super) fn see_that_empty(&self) -> Result<(), ProviderError> {
        let foreign = fs::read_dir(self.data()).is_ok_and(|mut d| d.next().is_some());
        if !foreign {
            return Ok(());
        }
        Err(ProviderError::DataDir {
            path: self.path.clone(),
            problem: format!(
                "{} has files but is no {} data directory: nothing is made in there; move them away",
                self.primary().directory(self.engine),
                self.engine.title()
            ),
        })
    }

    /// The change of capacity that was under way when a proxy ended.
    pub(super) fn intent(&self) -> Result<Option<Intent>, ProviderError> {
        self.read_json("switch.json")
    }

    /// What the intent alone tells of a promotion that is over is in `server.json` from then on. Asked before anything
    /// that takes the intent's place, or the old primary's.
    pub(super) fn keep_promotion(&self) -> Result<(), ProviderError> {
        match self.intent()? {
            Some(Intent {
                promotion: Some(promotion),
                ..
            }) if promotion.home == self.primary() => self.keep_file(),
            _ => Ok(()),
        }
    }

    /// Blocks for a few fsyncs.
    pub(super) fn write_intent(&self, intent: &Intent) -> Result<(), ProviderError> {
        self.keep_promotion()?;
        self.write_json("switch.json", intent)
    }

    /// Needs no fsync: one that comes back after a crash tells of a change that is over, and is dropped.
    pub(super) fn remove_intent(&self) -> Result<(), ProviderError> {
        self.keep_promotion()?;
        let file = self.path.join("switch.json");
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ProviderError::io("can't remove", file)(e))
            }
            _ => Ok(()),
        }
    }

    /// Makes a directory that belongs to the server's account.
    pub(super) fn make_directory(&self, path: &Path, mode: u32) -> Result<(), ProviderError> {
        DirBuilder::new()
            .mode(mode)
            .create(path)
            .and_then(|()| self.give(path))
            .map_err(ProviderError::io("can't make", path))
    }

    /// Writes a secret that the server's account may read, and nobody else.
    pub(super) fn write_for_server(
        &self,
        path: &Path,
        text: impl AsRef<[u8]>,
    ) -> Result<(), ProviderError> {
        let write = || {
            let _ = fs::remove_file(path);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            file.write_all(text.as_ref())?;
            self.give(path)
        };
        write().map_err(ProviderError::io("can't write", path))
    }

    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        match &self.account {
            Some(a) => Ok(chown(
                path,
                Some(Uid::from_raw(a.uid)),
                Some(Gid::from_raw(a.gid)),
            )?),
            None => Ok(()),
        }
    }

    fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ProviderError> {
        let file = self.path.join(name);
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| ProviderError::io("can't read", file)(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ProviderError::io("can't read", file)(e)),
        }
    }

    fn write_json(&self, name: &str, value: &impl serde::Serialize) -> Result<(), ProviderError> {
        let file = self.path.join(name);
        serde_json::to_vec(value)
            .map_err(io::Error::from)
            .and_then(|bytes| write_durably(&file, &bytes))
            .map_err(ProviderError::io("can't write", &file))
    }
}

/// All of the new content or all of the old, also after a power cut.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn make_place(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Root's servers run under another account, which has to get through.
    let mode = if Uid::effective().is_root() {
        0o711
    } else {
        0o700
    };
    DirBuilder::new().mode(mode).create(path)
}

/// A directory that is not empty and not ours is left alone.
fn refuse_foreign(path: &Path) -> Result<(), ProviderError> {
    if path.join("slackwater.lock").exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(path).map_err(ProviderError::io("can't read", path))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(ProviderError::DataDir {
            path: path.to_owned(),
            problem: "has files that are not slackwater's: nothing is made in there; name an empty or a new \
                      directory"
                .to_owned(),
        }),
    }
}

fn lock(path: &Path) -> Result<Flock<File>, ProviderError> {
    let file_path = path.join("slackwater.lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&file_path)
        .map_err(ProviderError::io("can't open", &file_path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)
                .and_then(|()| write!(lock, "{}", std::process::id()))
                .map_err(ProviderError::io("can't write", &file_path))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok() && !pid.is_empty();
            let holder = if known {
                format!(" (process {pid})")
            } else {
                String::new()
            };
            Err(ProviderError::Locked {
                path: path.to_owned(),
                holder,
            })
        }
        Err((_, errno)) => Err(ProviderError::io("can't lock", &file_path)(errno.into())),
    }
}

/// Who runs the servers: `None` when we are not root, then it is us.
fn account(data: &Path, engine: Engine) -> Result<Option<Account>, String> {
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    let owner = fs::metadata(data).ok().map(|m| m.uid());
    let us = Uid::effective();
    if !us.is_root() {
        return match owner {
            Some(owner) if owner != us.as_raw() => Err(format!(
                "{name} belongs to user number {owner}, this process runs as {us}: run it as that user or as root"
            )),
            _ => Ok(None),
        };
    }
    let candidates = if engine.speaks_mysql() {
        ["mysql", "nobody"]
    } else {
        ["postgres", "nobody"]
    };
    let user = match owner {
        Some(0) => {
            return Err(format!(
                "{name} belongs to root, and {} does not run as root: chown -R it to an unprivileged user",
                engine.title()
            ));
        }
        Some(owner) => User::from_uid(Uid::from_raw(owner)).ok().flatten(),
        None => candidates
            .iter()
            .find_map(|n| User::from_name(n).ok().flatten()),
    };
    let user = user.ok_or_else(|| {
        format!(
            "there is no user `{}` to run the server as: add one",
            candidates.join("` or `")
        )
    })?;
    Ok(Some(Account {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        name: user.name,
    }))
}

/// The server's account has to get through every directory on the way.
fn check_reachable(path: &Path, account: &Account) -> Result<(), String> {
    for directory in path.ancestors() {
        let Ok(meta) = fs::metadata(directory) else {
            continue;
        };
        let search = if meta.uid() == account.uid {
            0o100
        } else if meta.gid() == account.gid {
            0o010
        } else {
            0o001
        };
        if meta.mode() & search == 0 {
            return Err(format!(
                "user `{}`, under which the server runs because this process is root, can't enter {}: use a \
                 directory such as /var/lib/slackwater, or chmod o+x it",
                account.name,
                directory.display()
            ));
        }
    }
    Ok(())
}

fn check_socket_path(run: &Path) -> Result<(), String> {
    let text = run
        .to_str()
        .ok_or("has bytes that are not UTF-8: choose another name")?;
    // PostgreSQL reads a list of quoted paths here.
    if text.contains(['"', ',']) || text.chars().any(char::is_control) {
        return Err("has a quote, a comma or a control character: choose another name".to_owned());
    }
    let length = text.len() + "/.s.PGSQL.65535".len();
    if length > SOCKET_PATH_LIMIT {
        return Err(format!(
            "is {} bytes too long for a Unix socket below it (limit {SOCKET_PATH_LIMIT}): choose a shorter path",
            length - SOCKET_PATH_LIMIT
        ));
    }
    Ok(())
}

fn stored_password(file: &Path) -> Result<String, ProviderError> {
    match fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(ProviderError::io("can't read", file)(e)),
    }
    let password = random(24)
        .map(|bytes| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
        .and_then(|password| write_durably(file, password.as_bytes()).map(|()| password));
    password.map_err(ProviderError::io("can't write", file))
}

pub(super) fn random(length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Capacity;
    use std::os::unix::fs::PermissionsExt;

    fn config(path: &Path) -> LocalConfig {
        LocalConfig {
            data_dir: path.to_owned(),
            ..LocalConfig::for_tests()
        }
    }

    /// A directory that the server's account can enter.
    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    #[test]
    fn the_file_is_kept_by_several_at_the_same_time() {
        let place = place();
        let data_dir = DataDir::open(&config(&place.path().join("data"))).unwrap();
        std::thread::scope(|threads| {
            for home in [Home::First, Home::Second] {
                let data_dir = &data_dir;
                threads.spawn(move || {
                    for _ in 0..100 {
                        data_dir.choose_port(home).unwrap();
                    }
                });
            }
        });
        let kept = data_dir.read_json::<ServerFile>("server.json").unwrap();
        assert_eq!(kept.unwrap().port(Home::First), Some(data_dir.port()));
    }

    #[test]
    fn locked_once_and_stable_over_openings() {
        let place = place();
        let config = config(&place.path().join("data"));
        let first = DataDir::open(&config).unwrap();
        let (port, password) = (first.port(), first.service_password().to_owned());
        assert_eq!(password.len(), 32);
        assert!(!outgoing_ports().contains(&port));
        let error = DataDir::open(&config).err().expect("locked").to_string();
        assert!(
            error.contains(&format!("(process {})", std::process::id())),
            "{error}"
        );
        drop(first);
        let again = DataDir::open(&config).unwrap();
        assert_eq!(
            (again.port(), again.service_password()),
            (port, password.as_str())
        );
        let mode = fs::metadata(config.data_dir.join("service_password"))
            .unwrap()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn intent_is_kept_until_removed() {
        let place = place();
        let opened = DataDir::open(&config(&place.path().join("data"))).unwrap();
        assert_eq!(opened.intent().unwrap(), None);
        let intent = Intent {
            from: Capacity(1),
            to: Capacity(4),
            promotion: None,
        };
        opened.write_intent(&intent).unwrap();
        assert_eq!(opened.intent().unwrap(), Some(intent));
        opened.remove_intent().unwrap();
        opened.remove_intent().unwrap();
        assert_eq!(opened.intent().unwrap(), None);
        fs::write(opened.path().join("switch.json"), "{").unwrap();
        assert!(
            opened
                .intent()
                .unwrap_err()
                .to_string()
                .contains("switch.json")
        );
    }

    #[test]
    fn places_that_cannot_work_are_refused_with_the_reason() {
        let place = place();
        let refused = |path: &Path| {
            DataDir::open(&config(path))
                .err()
                .expect("refused")
                .to_string()
        };
        let foreign = place.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.txt"), "").unwrap();
        assert!(refused(&foreign).contains("not slackwater's"));
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
        assert!(refused(&place.path().join("x".repeat(120))).contains("bytes too long"));
        assert!(refused(&place.path().join("a,b")).contains("comma"));
        let taken = place.path().join("taken");
        let opened = DataDir::open(&config(&taken)).unwrap();
        fs::create_dir(opened.data()).unwrap();
        assert_eq!(opened.version().unwrap(), None);
        fs::write(opened.data().join("x"), "").unwrap();
        assert!(
            opened
                .version()
                .unwrap_err()
                .to_string()
                .contains("no PostgreSQL data directory")
        );
    }

    #[test]
    fn unreachable_directories_are_named() {
        let place = place();
        let inner = place.path().join("closed/data");
        fs::create_dir_all(&inner).unwrap();
        let closed = place.path().join("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = Account {
            uid: 4_000_001,
            gid: 4_000_001,
            name: "stranger".to_owned(),
        };
        let error = check_reachable(&inner, &stranger).unwrap_err();
        assert!(
            error.contains("`stranger`") && error.contains(closed.to_str().unwrap()),
            "{error}"
        );
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o711)).unwrap();
        check_reachable(&inner, &stranger).unwrap();
    }
}
