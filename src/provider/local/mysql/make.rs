//! The making of a data directory: the engine's own tables, the service account, and a mark by which one that was
//! made whole is known.

use super::super::super::ProviderError;
use super::super::data_dir::{DataDir, random};
use super::super::process::{self, run};
use super::{Mysql, accounts, files, hex, my_cnf, temporary};
use crate::backend::Engine;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(5);
/// Bytes of the number of a data directory.
const ID_BYTES: usize = 16;
/// The mark's file, in the data directory itself so that copies have it too.
pub(in super::super) const MARK: &str = "slackwater.json";

const MY_CNF: &str = "# Settings of your own for this server; read at each start. What a capacity stands for and where the server\n\
    # listens is on its command line, and wins.\n\
    [mysqld]\n\
    character-set-server = utf8mb4\n";

/// MariaDB makes a key at each start unless it is told not to, which takes longer than the start itself.
const WITHOUT_TLS: &str = "# Slackwater comes by the Unix socket. For TLS to clients that go past it, name ssl-cert and ssl-key instead.\n\
    skip-ssl\n";

/// What a data directory says of itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in super::super) struct Mark {
    pub(in super::super) engine: String,
    /// Made with it; physical copies share it.
    pub(in super::super) id: String,
}

impl Mark {
    /// `None` before there is a data directory.
    pub(in super::super) fn read(data_dir: &DataDir) -> Result<Option<Self>, ProviderError> {
        let file = data_dir.data().join(MARK);
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| ProviderError::io("can't read", file)(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                data_dir.see_that_empty()?;
                Ok(None)
            }
            Err(e) => Err(ProviderError::io("can't read", file)(e)),
        }
    }

    fn write(data_dir: &DataDir, data: &Path, engine: Engine) -> Result<(), ProviderError> {
        let id =
            random(ID_BYTES).map_err(ProviderError::io("can't read", "the system's randomness"))?;
        let mark = Self {
            engine: engine.name().to_owned(),
            id: hex(&id),
        };
        let file = data.join(MARK);
        let bytes = serde_json::to_vec(&mark)
            .map_err(|e| ProviderError::io("can't write", &file)(e.into()))?;
        data_dir.write_for_server(&file, bytes)
    }
}

impl Mysql {
    /// Makes a data directory beside its place and moves it there, so that half a one is never taken for a whole
    /// one.
    pub(in super::super) async fn make(&self, service_user: &str) -> Result<(), ProviderError> {
        let data_dir = &*self.data_dir;
        let home = data_dir.primary();
        let unfinished = data_dir
            .path()
            .join(format!("{}.new", home.directory(self.engine)));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .map_err(ProviderError::io("can't remove", &unfinished))?;
        }
        make_files(data_dir, self.engine)?;
        let statements = data_dir.socket_directory().join("service-account.sql");
        let sql = accounts::first(self.engine, service_user, data_dir.service_password());
        data_dir.write_for_server(&statements, sql)?;
        let done = if let Some(installer) = &self.programs.installer {
            data_dir.make_directory(&unfinished, 0o700)?;
            let mut command = process::command(installer, data_dir.account());
            command
                .arg("--no-defaults")
                .arg(format!("--datadir={}", unfinished.display()))
                .arg(format!("--extra-file={}", statements.display()))
                .arg(format!("--tmpdir={}", temporary(data_dir).display()))
                .args(["--auth-root-authentication-method=socket", "--skip-test-db"])
                .args(["--skip-name-resolve", "--force"]);
            run(&mut command, "mariadb-install-db", PATIENCE).await
        } else {
            let mut command = process::command(&self.programs.server, data_dir.account());
            command
                .arg("--no-defaults")
                .arg(format!("--datadir={}", unfinished.display()))
                .arg(format!("--init-file={}", statements.display()))
                .arg(format!("--secure-file-priv={}", files(data_dir).display()))
                .arg(format!("--tmpdir={}", temporary(data_dir).display()))
                .arg("--initialize-insecure");
            // It makes the directory itself, or takes an empty one.
            data_dir.make_directory(&unfinished, 0o700)?;
            run(&mut command, "mysqld --initialize", PATIENCE).await
        };
        fs::remove_file(&statements).map_err(ProviderError::io("can't remove", &statements))?;
        done?;
        Mark::write(data_dir, &unfinished, self.engine)?;
        let data = data_dir.data_of(home);
        fs::rename(&unfinished, &data).map_err(ProviderError::io("can't rename", &unfinished))
    }
}

/// What stands beside the data directory: the user's settings, and the place for files of SQL.
fn make_files(data_dir: &DataDir, engine: Engine) -> Result<(), ProviderError> {
    let my_cnf = my_cnf(data_dir);
    if !my_cnf.exists() {
        let more = match engine {
            Engine::Mariadb => WITHOUT_TLS,
            _ => "",
        };
        fs::write(&my_cnf, format!("{MY_CNF}{more}"))
            // A file that everybody may write is not read by the server.
            .and_then(|()| fs::set_permissions(&my_cnf, fs::Permissions::from_mode(0o644)))
            .map_err(ProviderError::io("can't write", &my_cnf))?;
    }
    for directory in [files(data_dir), temporary(data_dir)] {
        if !directory.exists() {
            data_dir.make_directory(&directory, 0o700)?;
        }
    }
    Ok(())
}
