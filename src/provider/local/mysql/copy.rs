//! A copy of the primary's data, from which a standby is started: MySQL's server makes it itself (CLONE), MariaDB's is made by
//! `mariadb-backup`.

use super::super::super::ProviderError;
use super::super::super::gtid::Gtids;
use super::super::blocking;
use super::super::copy::{clear, directory_bytes, put_in_place, see_to_room};
use super::super::data_dir::DataDir;
use super::super::files::Home;
use super::super::process::{self, run};
use super::accounts::literal;
use super::make::MARK;
use super::replication::POSITION;
use super::{Mysql, temporary};
use crate::backend::{Endpoint, Engine};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A copy of the data can take long; a stuck one is given up after a day.
const COPY_PATIENCE: Duration = Duration::from_hours(24);
/// Where `mariadb-backup` writes which transactions the copy has, since 11.1 and before.
const BACKUP_POSITION: [&str; 2] = ["mariadb_backup_binlog_info", "xtrabackup_binlog_info"];

impl Mysql {
    /// Copies the primary's data into `home`, beside its place first.
    pub(super) async fn copy_data(
        &self,
        primary: &Endpoint,
        home: Home,
    ) -> Result<(), ProviderError> {
        let data = self.data_dir.data();
        let bytes = tokio::task::spawn_blocking(move || directory_bytes(&data))
            .await
            .unwrap_or(0);
        see_to_room(&self.data_dir, bytes, home).await?;
        let place = blocking(&self.data_dir, move |d| clear(d, home)).await?;
        let copy = place.join("data");
        match self.engine {
            Engine::Mysql => self.clone_data(primary, &copy).await?,
            _ => self.back_up(&copy).await?,
        }
        let engine = self.engine;
        blocking(&self.data_dir, move |d| {
            complete(d, &copy, engine)?;
            put_in_place(d, &copy, home)?;
            fs::remove_dir_all(&place).map_err(ProviderError::io("can't remove", &place))
        })
        .await
    }

    async fn clone_data(&self, primary: &Endpoint, to: &Path) -> Result<(), ProviderError> {
        let unreachable = ProviderError::unreachable(primary);
        let mut session = self.query.session(primary).await.map_err(unreachable)?;
        let sql = format!(
            "CLONE LOCAL DATA DIRECTORY = {}",
            literal(&to.display().to_string())
        );
        session
            .query_within(&sql, COPY_PATIENCE)
            .await
            .map(drop)
            .map_err(|e| ProviderError::Server(format!("the data can't be copied: {e}")))
    }

    async fn back_up(&self, to: &Path) -> Result<(), ProviderError> {
        const NAME: &str = "mariadb-backup";
        let program = self.programs.backup.as_deref().ok_or_else(|| {
            ProviderError::Binaries(format!("a standby needs `{NAME}`: install it"))
        })?;
        let data_dir = &*self.data_dir;
        // A password on a command line is everybody's to read.
        let options = data_dir.socket_directory().join("copy.cnf");
        let home = data_dir.primary();
        let text = format!(
            "[client]\nskip-ssl\nuser = \"{}\"\npassword = \"{}\"\nsocket = \"{}\"\n",
            quoted(&self.user),
            quoted(data_dir.service_password()),
            quoted(&data_dir.socket_of(home).display().to_string())
        );
        data_dir.write_for_server(&options, text)?;
        let path = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let command = || {
            let mut command = process::command(program, data_dir.account());
            command
                .arg(path("defaults-file", &options))
                .arg(path("target-dir", to))
                .arg(path("tmpdir", &temporary(data_dir)))
                .current_dir(data_dir.socket_directory());
            command
        };
        let mut back_up = command();
        back_up
            .arg("--backup")
            .arg(path("datadir", &data_dir.data()));
        let done = run(&mut back_up, NAME, COPY_PATIENCE).await;
        fs::remove_file(&options).map_err(ProviderError::io("can't remove", &options))?;
        done?;
        data_dir.write_for_server(&options, "")?;
        let mut prepare = command();
        prepare.arg("--prepare");
        let done = run(&mut prepare, NAME, COPY_PATIENCE).await;
        fs::remove_file(&options).map_err(ProviderError::io("can't remove", &options))?;
        done.map(drop)
    }
}

/// What a copy has not by itself; the mark of a whole one last.
fn complete(data_dir: &DataDir, copy: &Path, engine: Engine) -> Result<(), ProviderError> {
    let from = data_dir.data();
    let take = |name: &Path| {
        let bytes =
            fs::read(from.join(name)).map_err(ProviderError::io("can't read", from.join(name)))?;
        data_dir.write_for_server(&copy.join(name), bytes)
    };
    if engine == Engine::Mysql {
        // Certificates and keys that the server made for itself: who verifies it sees the same one.
        for name in keys(&from)? {
            take(&name)?;
        }
    } else {
        let gtids = BACKUP_POSITION
            .iter()
            .find_map(|name| fs::read_to_string(copy.join(name)).ok())
            .and_then(|text| Gtids::parse(text.trim().split('\t').nth(2).unwrap_or_default()))
            .ok_or_else(|| {
                ProviderError::Server("the copy does not say which transactions it has".to_owned())
            })?;
        data_dir.write_for_server(&copy.join(POSITION), gtids.as_str())?;
    }
    take(Path::new(MARK))
}

/// Names of the `.pem` files of a data directory.
fn keys(data: &Path) -> Result<Vec<PathBuf>, ProviderError> {
    let entries = fs::read_dir(data).map_err(ProviderError::io("can't read", data))?;
    Ok(entries
        .flatten()
        .map(|entry| PathBuf::from(entry.file_name()))
        .filter(|name| name.extension().is_some_and(|e| e == "pem"))
        .collect())
}

/// For a quoted value in an option file.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"")
}
