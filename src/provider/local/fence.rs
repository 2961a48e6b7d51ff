//! What is done to data directories between the stop of a primary and the promotion of its standby.

use super::super::ProviderError;
use super::data_dir::DataDir;
use super::files::Home;
use crate::backend::Engine;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// With this file in its data directory a server of PostgreSQL starts as a standby, never as a primary.
const POSTGRES_SIGNAL: &str = "standby.signal";
/// MySQL and MariaDB have no such file of their own. This one is an option file: `mysqld_safe` and `mariadbd-safe` read it
/// in the data directory, and Slackwater starts what has it read-only.
const MYSQL_SIGNAL: &str = "my.cnf";
const MYSQL_MARK: &str = "# Slackwater:";
const MYSQL_FENCE: &str = "# Slackwater: this data directory has, or had, a newer copy elsewhere (see ../server.json). A server\n\
    # that is started here may not take a write.\n\
    [mysqld]\n\
    read_only = ON\n\
    skip_networking\n\
    event_scheduler = OFF\n";

/// Files that a primary's operator changes in place, and that are not part of the log.
fn configuration(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Postgres => &[
            "postgresql.conf",
            "postgresql.auto.conf",
            "pg_hba.conf",
            "pg_ident.conf",
        ],
        // What SET PERSIST writes.
        Engine::Mysql => &["mysqld-auto.cnf"],
        Engine::Mariadb => &[],
    }
}

/// The name of the file that makes a data directory a standby's.
pub(super) fn signal(engine: Engine) -> &'static str {
    if engine.speaks_mysql() {
        MYSQL_SIGNAL
    } else {
        POSTGRES_SIGNAL
    }
}

/// Whether the file is there. A `my.cnf` that somebody else put into the data directory is none; one without a word is a
/// fence that was just being put up.
pub(super) fn is_fenced(data_dir: &DataDir, data: &Path) -> bool {
    let engine = data_dir.engine();
    let signal = data.join(signal(engine));
    if !engine.speaks_mysql() {
        return signal.exists();
    }
    fs::read_to_string(signal).is_ok_and(|text| text.is_empty() || text.starts_with(MYSQL_MARK))
}

/// Whether what is in `home` is whole and can only start as a standby.
pub(super) fn is_standby(data_dir: &DataDir, home: Home) -> bool {
    data_dir.holds_data(home) && is_fenced(data_dir, &data_dir.data_of(home))
}

/// Whether a fence could be put up. Asked before a server is stopped for it.
pub(super) fn see_that_a_fence_fits(data_dir: &DataDir, data: &Path) -> Result<(), ProviderError> {
    let signal = data.join(signal(data_dir.engine()));
    if !signal.exists() || is_fenced(data_dir, data) {
        return Ok(());
    }
    Err(ProviderError::Server(format!(
        "{} is not Slackwater's, and a file of this name of its own has to be there: move what it says to {}",
        signal.display(),
        data_dir.path().join(MYSQL_SIGNAL).display()
    )))
}

/// A server in this data directory can't come up as a primary any more. Durable when this returns.
pub(super) fn fence(data_dir: &DataDir, data: &Path) -> Result<(), ProviderError> {
    let engine = data_dir.engine();
    let signal = data.join(signal(engine));
    see_that_a_fence_fits(data_dir, data)?;
    File::create(&signal)
        .and_then(|mut file| {
            if engine.speaks_mysql() {
                file.write_all(MYSQL_FENCE.as_bytes())?;
            }
            data_dir.give(&signal)?;
            file.sync_all()
        })
        .and_then(|()| sync_directory(data))
        .map_err(ProviderError::io("can't write", &signal))
}

/// It can again. Durable when this returns.
pub(super) fn unfence(data_dir: &DataDir, data: &Path) -> Result<(), ProviderError> {
    if !is_fenced(data_dir, data) {
        return Ok(());
    }
    let signal = data.join(signal(data_dir.engine()));
    match fs::remove_file(&signal) {
        Ok(()) => sync_directory(data),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
    .map_err(ProviderError::io("can't remove", &signal))
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Whether the server in `home` has the primary's configuration files.
pub(super) fn same_configuration(data_dir: &DataDir, home: Home) -> Result<bool, ProviderError> {
    for name in configuration(data_dir.engine()) {
        if read(&data_dir.data().join(name))? != read(&data_dir.data_of(home).join(name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives the server in `home` the primary's configuration files; whether one was another. Durable when this returns:
/// the next start of that server may be behind a power cut, and its promotion.
pub(super) fn copy_configuration(data_dir: &DataDir, home: Home) -> Result<bool, ProviderError> {
    let mut changed = false;
    for name in configuration(data_dir.engine()) {
        let to = data_dir.data_of(home).join(name);
        let wanted = read(&data_dir.data().join(name))?;
        if wanted == read(&to)? {
            continue;
        }
        changed = true;
        match wanted {
            Some(bytes) => {
                let unfinished = to.with_extension("new");
                data_dir.write_for_server(&unfinished, &bytes)?;
                File::open(&unfinished)
                    .and_then(|file| file.sync_all())
                    .and_then(|()| fs::rename(&unfinished, &to))
            }
            None => fs::remove_file(&to),
        }
        .map_err(ProviderError::io("can't write", &to))?;
    }
    if changed {
        let data = data_dir.data_of(home);
        sync_directory(&data).map_err(ProviderError::io("can't write", &data))?;
    }
    Ok(changed)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, ProviderError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ProviderError::io("can't read", path)(e)),
    }
}

/// What a standby of this stopped server has not got, by its files: unlogged relations and replication
/// slots. Prepare named them; this sees those that were made since.
pub(super) fn vanishing(pgdata: &Path) -> Result<Option<String>, ProviderError> {
    let list = |path: &Path| fs::read_dir(path).map_err(ProviderError::io("can't read", path));
    if let Some(slot) = list(&pgdata.join("pg_replslot"))?.flatten().next() {
        let name = slot.file_name().to_string_lossy().into_owned();
        return Ok(Some(format!("replication slot {name}")));
    }
    for database in list(&pgdata.join("base"))?.flatten() {
        let path = database.path();
        if !path.is_dir() {
            continue;
        }
        for file in list(&path)?.flatten() {
            let name = file.file_name();
            // The init fork, from which an unlogged relation is emptied after a crash.
            if name.to_string_lossy().ends_with("_init") {
                let relation = path.join(name);
                return Ok(Some(format!("unlogged relation {}", relation.display())));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::LocalConfig;
    use super::*;

    #[test]
    fn what_would_vanish_is_seen_in_the_files() {
        let place = tempfile::tempdir().unwrap();
        let pgdata = place.path();
        fs::create_dir_all(pgdata.join("base/5")).unwrap();
        fs::create_dir_all(pgdata.join("pg_replslot")).unwrap();
        fs::write(pgdata.join("base/5/16384"), "").unwrap();
        fs::write(pgdata.join("base/5/16384_fsm"), "").unwrap();
        assert_eq!(vanishing(pgdata).unwrap(), None);
        fs::write(pgdata.join("base/5/16390_init"), "").unwrap();
        let found = vanishing(pgdata).unwrap().unwrap();
        assert!(found.starts_with("unlogged relation") && found.ends_with("16390_init"));
        fs::create_dir(pgdata.join("pg_replslot/orders")).unwrap();
        assert_eq!(
            vanishing(pgdata).unwrap().unwrap(),
            "replication slot orders"
        );
        fs::remove_dir_all(pgdata.join("pg_replslot")).unwrap();
        assert!(vanishing(pgdata).is_err(), "what can't be read is no proof");
    }

    #[test]
    fn a_fence_is_put_up_and_taken_down_once() {
        for engine in [Engine::Postgres, Engine::Mariadb] {
            let place = tempfile::tempdir().unwrap();
            let config = LocalConfig {
                engine,
                data_dir: place.path().join("data_dir"),
                ..LocalConfig::for_tests()
            };
            let data_dir = DataDir::open(&config).unwrap();
            let data = data_dir.data_of(Home::Second);
            fs::create_dir(&data).unwrap();
            assert!(!is_fenced(&data_dir, &data));
            unfence(&data_dir, &data).unwrap();
            fence(&data_dir, &data).unwrap();
            assert!(is_fenced(&data_dir, &data));
            assert!(!is_standby(&data_dir, Home::Second), "nothing is in there");
            unfence(&data_dir, &data).unwrap();
            assert!(!is_fenced(&data_dir, &data));
        }
    }

    #[test]
    fn a_my_cnf_of_somebody_elses_is_no_fence_and_stays() {
        let place = tempfile::tempdir().unwrap();
        let config = LocalConfig {
            engine: Engine::Mysql,
            data_dir: place.path().join("data_dir"),
            ..LocalConfig::for_tests()
        };
        let data_dir = DataDir::open(&config).unwrap();
        let data = data_dir.data_of(Home::First);
        fs::create_dir(&data).unwrap();
        let file = data.join(MYSQL_SIGNAL);
        let own = "[mysqld]\nsql_mode = ANSI\n";
        fs::write(&file, own).unwrap();
        assert!(!is_fenced(&data_dir, &data));
        unfence(&data_dir, &data).unwrap();
        let error = fence(&data_dir, &data).unwrap_err().to_string();
        assert!(error.contains("is not Slackwater's"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), own);
        // Half a fence, as a power cut leaves it.
        fs::write(&file, "").unwrap();
        assert!(is_fenced(&data_dir, &data));
        fence(&data_dir, &data).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), MYSQL_FENCE);
    }
}
