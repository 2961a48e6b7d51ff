//! What is done to data directories between the stop of a primary and the promotion of its standby.

use super::super::ProviderError;
use super::data_dir::DataDir;
use super::files::Home;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// With this file in its data directory a server starts as a standby, never as a primary.
const SIGNAL: &str = "standby.signal";
/// Files that a primary's operator changes in place, and that are not part of the log.
const CONFIGURATION: [&str; 4] = [
    "postgresql.conf",
    "postgresql.auto.conf",
    "pg_hba.conf",
    "pg_ident.conf",
];

pub(super) fn is_fenced(pgdata: &Path) -> bool {
    pgdata.join(SIGNAL).exists()
}

/// A server in this data directory can't come up as a primary any more. Durable when this returns.
pub(super) fn fence(data_dir: &DataDir, pgdata: &Path) -> Result<(), ProviderError> {
    let signal = pgdata.join(SIGNAL);
    File::create(&signal)
        .and_then(|file| {
            data_dir.give(&signal)?;
            file.sync_all()
        })
        .and_then(|()| sync_directory(pgdata))
        .map_err(ProviderError::io("can't write", &signal))
}

/// It can again. Durable when this returns.
pub(super) fn unfence(pgdata: &Path) -> Result<(), ProviderError> {
    let signal = pgdata.join(SIGNAL);
    match fs::remove_file(&signal) {
        Ok(()) => sync_directory(pgdata),
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
    for name in CONFIGURATION {
        if read(&data_dir.data().join(name))? != read(&data_dir.data_of(home).join(name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives the server in `home` the primary's configuration files; whether one was another.
pub(super) fn copy_configuration(data_dir: &DataDir, home: Home) -> Result<bool, ProviderError> {
    let mut changed = false;
    for name in CONFIGURATION {
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
                fs::rename(&unfinished, &to)
            }
            None => fs::remove_file(&to),
        }
        .map_err(ProviderError::io("can't write", &to))?;
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
        let place = tempfile::tempdir().unwrap();
        assert!(!is_fenced(place.path()));
        unfence(place.path()).unwrap();
        fs::write(place.path().join(SIGNAL), "").unwrap();
        assert!(is_fenced(place.path()));
        unfence(place.path()).unwrap();
        assert!(!is_fenced(place.path()));
    }
}
