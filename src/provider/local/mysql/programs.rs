//! The programs of MySQL and MariaDB: where they are and of which version, and which of both they are.
//! Packages of MariaDB have a `mysqld` too, so the name alone says nothing.

use super::super::super::ProviderError;
use crate::backend::Engine;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where packages put servers that are not in everybody's PATH.
const USUAL: [&str; 5] = [
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/libexec",
    "/usr/local/mysql/bin",
    "/usr/bin",
];

/// The oldest versions that are known to work.
const OLDEST_MYSQL: u32 = 80_000;
/// It has the statements about replicas by their present names, and CLONE lets tables be changed meanwhile.
const OLDEST_STANDBY: u32 = 80_027;
const OLDEST_MARIADB: u32 = 100_600;

/// A server program and what makes its data directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) server: PathBuf,
    /// MariaDB's `mariadb-install-db`; MySQL's server does that itself.
    pub(super) installer: Option<PathBuf>,
    /// MariaDB's `mariadb-backup`, where it is installed; MySQL's server copies its data itself.
    pub(super) backup: Option<PathBuf>,
    /// For example 90704 for 9.7.4, 101119 for 10.11.19.
    pub(super) version: u32,
}

impl Programs {
    /// The configured directory's, or the first that is found.
    pub(super) fn find(engine: Engine, configured: Option<&Path>) -> Result<Self, ProviderError> {
        let name = server_name(engine);
        let title = engine.title();
        if let Some(directory) = configured {
            return in_directory(engine, directory)
                .map_err(|why| ProviderError::Binaries(format!("`binaries`: {why}")));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let mut why = None;
        for directory in env::split_paths(&path).chain(USUAL.map(PathBuf::from)) {
            if !directory.join(name).is_file() {
                continue;
            }
            match in_directory(engine, &directory) {
                Ok(found) => return Ok(found),
                Err(fault) => why = why.or(Some(fault)),
            }
        }
        let package = match engine {
            Engine::Mysql => "mysql-server",
            _ => "mariadb-server",
        };
        Err(ProviderError::Binaries(why.unwrap_or_else(|| {
            format!(
                "no {title} server (`{name}`) in PATH or {}: install the package `{package}`, or set `binaries`",
                USUAL.join(", ")
            )
        })))
    }
}

impl Programs {
    /// What a standby needs beyond a server.
    pub(super) fn must_make_standbys(&self, engine: Engine) -> Result<(), ProviderError> {
        if engine == Engine::Mysql && self.version < OLDEST_STANDBY {
            return Err(ProviderError::Binaries(format!(
                "switch = \"standby\" needs MySQL {} or later, and {} is {}",
                version_text(OLDEST_STANDBY),
                self.server.display(),
                version_text(self.version)
            )));
        }
        if engine == Engine::Mariadb && self.backup.is_none() {
            return Err(ProviderError::Binaries(format!(
                "switch = \"standby\" needs `mariadb-backup` beside {}: install the package `mariadb-backup`",
                self.server.display()
            )));
        }
        Ok(())
    }
}

pub(super) fn server_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Mysql => "mysqld",
        _ => "mariadbd",
    }
}

fn in_directory(engine: Engine, directory: &Path) -> Result<Programs, String> {
    let (name, title) = (server_name(engine), engine.title());
    let server = directory.join(name);
    if !server.is_file() {
        return Err(format!(
            "{} has no `{name}`: name the directory of {title}'s programs",
            directory.display()
        ));
    }
    let said = ask_version(&server)?;
    let (version, mariadb) = parse_version(&said)
        .ok_or_else(|| format!("{} tells no version: {said}", server.display()))?;
    let is = if mariadb {
        Engine::Mariadb
    } else {
        Engine::Mysql
    };
    if is != engine {
        return Err(format!(
            "{} is {}'s, and the engine is {title}",
            server.display(),
            is.title()
        ));
    }
    let oldest = if mariadb {
        OLDEST_MARIADB
    } else {
        OLDEST_MYSQL
    };
    if version < oldest {
        return Err(format!(
            "{} is {title} {}, and {} is the oldest that is supported",
            server.display(),
            version_text(version),
            version_text(oldest)
        ));
    }
    let installer = if mariadb {
        Some(find_installer(directory)?)
    } else {
        None
    };
    let backup = mariadb
        .then(|| find_beside(directory, "mariadb-backup"))
        .flatten();
    Ok(Programs {
        server,
        installer,
        backup,
        version,
    })
}

/// Beside the server, or where packages and archives have it.
fn find_beside(directory: &Path, name: &str) -> Option<PathBuf> {
    ["", "../bin", "../scripts"]
        .iter()
        .map(|beside| directory.join(beside).join(name))
        .find(|program| program.is_file())
}

fn find_installer(directory: &Path) -> Result<PathBuf, String> {
    const NAME: &str = "mariadb-install-db";
    find_beside(directory, NAME).ok_or_else(|| {
        format!(
            "there is no `{NAME}` in {} or beside it: install MariaDB's server package whole",
            directory.display()
        )
    })
}

fn ask_version(server: &Path) -> Result<String, String> {
    let output = Command::new(server)
        .args(["--no-defaults", "--version"])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("can't run {}: {e}", server.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Number, and whether it is MariaDB's, of `... Ver 10.11.19-MariaDB-0+deb12u1 for ...`, or of what SQL's VERSION()
/// says.
pub(super) fn parse_version(text: &str) -> Option<(u32, bool)> {
    let word = match text.split_once("Ver ") {
        Some((_, rest)) => rest.split_ascii_whitespace().next()?,
        None => text,
    };
    // What old replicas need to read from MariaDB 10 and later.
    let word = word.strip_prefix("5.5.5-").unwrap_or(word);
    let numbers = word
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    let mut numbers = numbers.split('.').map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok().filter(|n| *n < 100);
    let (major, minor, patch) = (next()?, next()?, next()?);
    Some((
        major * 10_000 + minor * 100 + patch,
        word.contains("MariaDB"),
    ))
}

/// 90704 as `9.7.4`.
pub(in super::super) fn version_text(number: u32) -> String {
    let (major, minor, patch) = (number / 10_000, number / 100 % 100, number % 100);
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_read_from_programs_and_servers() {
        for (text, number, mariadb, shown) in [
            (
                "mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)",
                101_119,
                true,
                "10.11.19",
            ),
            (
                "/x/Ver/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))",
                90_704,
                false,
                "9.7.4",
            ),
            ("8.0.36", 80_036, false, "8.0.36"),
            ("5.5.5-10.6.1-MariaDB-log", 100_601, true, "10.6.1"),
        ] {
            assert_eq!(parse_version(text), Some((number, mariadb)), "{text}");
            assert_eq!(version_text(number), shown);
        }
        for text in ["", "Ver ", "mysqld Ver nine", "8.0", "8.0.100"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn what_a_program_is_counts_not_its_name() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, says: &str| {
            let file = place.path().join(name);
            std::fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let found = |engine| Programs::find(engine, Some(place.path()));
        let refused = |engine| found(engine).unwrap_err().to_string();
        assert!(refused(Engine::Mysql).contains("has no `mysqld`"));
        write("mysqld", "mysqld  Ver 10.11.19-MariaDB for Linux");
        assert!(refused(Engine::Mysql).contains("is MariaDB's, and the engine is MySQL"));
        write("mysqld", "mysqld  Ver 5.7.44 for Linux");
        assert!(refused(Engine::Mysql).contains("MySQL 5.7.44, and 8.0.0 is the oldest"));
        write("mysqld", "mysqld  Ver 8.4.1 for Linux");
        assert_eq!(found(Engine::Mysql).unwrap().version, 80_401);
        write("mariadbd", "mariadbd  Ver 11.8.6-MariaDB for Linux");
        assert!(refused(Engine::Mariadb).contains("no `mariadb-install-db`"));
        write("mariadb-install-db", "");
        let programs = found(Engine::Mariadb).unwrap();
        assert_eq!(programs.version, 110_806);
        assert!(programs.installer.is_some());
    }
}
