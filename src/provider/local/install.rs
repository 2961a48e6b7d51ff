//! PostgreSQL's own programs: where they are, how they are run, and the making of a new data directory.

use super::super::ProviderError;
use super::data_dir::{Account, DataDir};
use super::process::{self, run};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

const INITDB_PATIENCE: Duration = Duration::from_mins(5);

/// A directory with `postgres` and `initdb`.
#[derive(Debug, Clone)]
pub(super) struct Install {
    binaries: PathBuf,
}

impl Install {
    /// The configured directory, or the newest that fits: of `version` (the data directory's major version)
    /// where there is one.
    pub(super) fn find(
        configured: Option<&Path>,
        version: Option<&str>,
    ) -> Result<Self, ProviderError> {
        if let Some(binaries) = configured {
            return if complete(binaries) {
                Ok(Self {
                    binaries: binaries.to_owned(),
                })
            } else {
                Err(ProviderError::Binaries(format!(
                    "`binaries`: {} has no `postgres` and `initdb`: name the directory that has them, such as \
                     /usr/lib/postgresql/17/bin",
                    binaries.display()
                )))
            };
        }
        let path = env::var_os("PATH").unwrap_or_default();
        choose(installed(Path::new("/usr/lib/postgresql")), env::split_paths(&path), version)
            .map(|binaries| Self { binaries })
            .ok_or_else(|| {
                ProviderError::Binaries(match version {
                    Some(version) => format!(
                        "no PostgreSQL {version} in /usr/lib/postgresql/{version}/bin or PATH, and data_dir was \
                         made by that version: install it, or set `binaries`"
                    ),
                    None => "no PostgreSQL server in /usr/lib/postgresql/*/bin or PATH: install the package \
                             `postgresql`, or set `binaries`"
                        .to_owned(),
                })
            })
    }

    /// Programs that not every installation has.
    pub(super) fn must_have(&self, programs: &[&str]) -> Result<(), ProviderError> {
        let missing = programs.iter().find(|p| !self.program(p).is_file());
        match missing {
            None => Ok(()),
            Some(missing) => Err(ProviderError::Binaries(format!(
                "switch = \"standby\" needs `{missing}`, which is not in {}: install PostgreSQL's server package \
                 whole, or use switch = \"restart\"",
                self.binaries.display()
            ))),
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// One of them as a command that runs under the server's account.
    pub(super) fn command(&self, name: &str, account: Option<&Account>) -> Command {
        process::command(&self.program(name), account)
    }

    /// Makes a data directory beside its place and moves it there, so that half a one is never taken for
    /// a whole one.
    pub(super) async fn initdb(
        &self,
        data_dir: &DataDir,
        service_user: &str,
    ) -> Result<(), ProviderError> {
        let account = data_dir.account();
        let unfinished = data_dir.path().join("pgdata.new");
        let password = data_dir.socket_directory().join("initdb-password");
        data_dir.write_for_server(&password, data_dir.service_password())?;
        let mut done = Ok(String::new());
        for locale in ["--locale=C.UTF-8", "--locale=C"] {
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)
                    .map_err(ProviderError::io("can't remove", &unfinished))?;
            }
            data_dir.make_directory(&unfinished, 0o700)?;
            let mut command = self.command("initdb", account);
            command
                .arg("-D")
                .arg(&unfinished)
                .arg(format!("--username={service_user}"))
                .arg(format!("--pwfile={}", password.display()))
                .args(["--auth=scram-sha-256", "--encoding=UTF8", locale]);
            done = run(&mut command, "initdb", INITDB_PATIENCE).await;
            // Only a missing locale is worth a second try.
            match &done {
                Err(ProviderError::Program { output, .. }) if output.contains("locale") => {}
                _ => break,
            }
        }
        fs::remove_file(&password).map_err(ProviderError::io("can't remove", &password))?;
        done?;
        fs::rename(&unfinished, data_dir.data())
            .map_err(ProviderError::io("can't rename", &unfinished))?;
        Ok(())
    }
}

fn complete(binaries: &Path) -> bool {
    ["postgres", "initdb"]
        .iter()
        .all(|program| binaries.join(program).is_file())
}

/// Major version and `bin` directory of each version below `root`.
fn installed(root: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(_, bin)| complete(bin))
        .collect()
}

fn choose(
    installed: Vec<(u32, PathBuf)>,
    path: impl Iterator<Item = PathBuf>,
    version: Option<&str>,
) -> Option<PathBuf> {
    let fits = |n: &u32| version.is_none_or(|v| v == n.to_string());
    installed
        .into_iter()
        .filter(|(n, _)| fits(n))
        .max_by_key(|(n, _)| *n)
        .map(|(_, bin)| bin)
        .or_else(|| path.into_iter().find(|bin| complete(bin)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_or_fitting_programs_are_chosen() {
        let root = tempfile::tempdir().unwrap();
        for version in ["9", "15", "17", "main"] {
            let bin = root.path().join(version).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("postgres"), "").unwrap();
            if version != "17" {
                fs::write(bin.join("initdb"), "").unwrap();
            }
        }
        let bin = |version: &str| root.path().join(version).join("bin");
        let found = |version, path: &[&str]| {
            choose(installed(root.path()), path.iter().map(|v| bin(v)), version)
        };
        assert_eq!(found(None, &[]), Some(bin("15")));
        assert_eq!(found(Some("9"), &[]), Some(bin("9")));
        assert_eq!(found(Some("16"), &["17", "main"]), Some(bin("main")));
        assert_eq!(found(Some("16"), &["17"]), None);
        let error = Install::find(Some(&bin("17")), None)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`binaries`"), "{error}");
    }
}
