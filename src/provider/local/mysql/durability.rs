//! A standby does not wait for the disk at each commit while it follows: what it loses its primary still has. One that
//! waits for each falls behind a primary whose clients commit together.
//!
//! Writes still reach the operating system at each commit, so the end of the server's process alone loses nothing. The
//! end of the machine may leave data and log of a standby at odds: a note in its data directory names the boot during
//! which it was relaxed, and after another one the standby is made anew. Before a promotion is decided the server's own
//! settings are in force again, and its logs are on the disk.

use super::super::super::{ProviderError, QueryError, ServerSession};
use super::super::data_dir::DataDir;
use super::super::fence::sync_directory;
use super::super::files::Home;
use super::Mysql;
use super::replication::ask;
use std::fs;
use std::io;
use std::path::PathBuf;

/// In the data directory of a standby that is relaxed, or was when it ended.
const NOTE: &str = "slackwater.relaxed";
/// Another at each boot of the machine.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// To the operating system at each commit, to the disk once a second.
const RELAXED_FLUSH: u64 = 2;
/// The binary log is brought to the disk each so many commits: what is left for the promotion stays little.
const RELAXED_SYNC: u64 = 100;

/// What a relaxed standby has to be given back, and the boot of the machine.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    boot: String,
    /// `innodb_flush_log_at_trx_commit`
    flush: u64,
    /// `sync_binlog`
    sync: u64,
}

impl Note {
    fn text(&self) -> String {
        format!("{} {} {}\n", self.boot, self.flush, self.sync)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let (boot, flush, sync) = (words.next()?, words.next()?, words.next()?);
        Some(Self {
            boot: boot.to_owned(),
            flush: flush.parse().ok()?,
            sync: sync.parse().ok()?,
        })
    }

    fn read(data_dir: &DataDir, home: Home) -> Result<Option<Self>, ProviderError> {
        let file = place(data_dir, home);
        match fs::read_to_string(&file) {
            Ok(text) => match Self::parse(&text) {
                Some(note) => Ok(Some(note)),
                None => Err(ProviderError::Server(format!(
                    "{} can't be read",
                    file.display()
                ))),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ProviderError::io("can't read", file)(e)),
        }
    }

    /// On the disk before anything is relaxed; there is never half a one.
    fn write(&self, data_dir: &DataDir, home: Home) -> Result<(), ProviderError> {
        let file = place(data_dir, home);
        let new = file.with_extension("new");
        data_dir.write_for_server(&new, self.text())?;
        fs::File::open(&new)
            .and_then(|f| f.sync_all())
            .and_then(|()| fs::rename(&new, &file))
            .and_then(|()| sync_directory(&data_dir.data_of(home)))
            .map_err(ProviderError::io("can't write", &file))
    }
}

fn place(data_dir: &DataDir, home: Home) -> PathBuf {
    data_dir.data_of(home).join(NOTE)
}

fn boot() -> io::Result<String> {
    fs::read_to_string(BOOT).map(|text| text.trim().to_owned())
}

/// An error if the standby in `home` was relaxed when the machine ended.
pub(super) fn see_to_boot(data_dir: &DataDir, home: Home) -> Result<(), ProviderError> {
    match Note::read(data_dir, home)? {
        Some(note) if boot().ok().as_ref() != Some(&note.boot) => Err(ProviderError::Server(
            "the machine was started anew while the standby did not wait for its disk".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn set(flush: u64, sync: u64) -> [String; 2] {
    [
        format!("SET GLOBAL innodb_flush_log_at_trx_commit = {flush}"),
        format!("SET GLOBAL sync_binlog = {sync}"),
    ]
}

impl Mysql {
    /// Lets a standby follow without waiting for the disk. `is_fresh`: it was started now, with its own settings. One
    /// that can't be relaxed follows as it is.
    pub(super) async fn relax(&self, session: &mut dyn ServerSession, home: Home, is_fresh: bool) {
        if let Err(error) = self.try_to_relax(session, home, is_fresh).await {
            tracing::warn!(%error, "a standby waits for its disk at each commit");
        }
    }

    async fn try_to_relax(
        &self,
        session: &mut dyn ServerSession,
        home: Home,
        is_fresh: bool,
    ) -> Result<(), ProviderError> {
        let Ok(boot) = boot() else {
            // Nothing would tell that the machine had ended.
            return Ok(());
        };
        let told = |e: QueryError| ProviderError::Server(format!("the standby: {e}"));
        let known = Note::read(&self.data_dir, home)?.filter(|_| !is_fresh);
        let note = if let Some(note) = known {
            note
        } else {
            let sql = "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.sync_binlog";
            let rows = ask(session, sql).await.map_err(told)?;
            let mut values = rows.iter().flatten().map(|v| v.as_deref()?.parse().ok());
            let (Some(Some(flush)), Some(Some(sync))) = (values.next(), values.next()) else {
                return Err(ProviderError::Server(
                    "the standby: how it writes to its disk can't be read".to_owned(),
                ));
            };
            let note = Note { boot, flush, sync };
            note.write(&self.data_dir, home)?;
            note
        };
        // Who is relaxed by configuration stays as it is.
        let flush = if note.flush == 0 { 0 } else { RELAXED_FLUSH };
        let sync = match note.sync {
            0 => 0,
            own => own.max(RELAXED_SYNC),
        };
        for sql in set(flush, sync) {
            ask(session, &sql).await.map_err(told)?;
        }
        Ok(())
    }

    /// Has a standby that was relaxed wait for its disk again, and brings to it what it has.
    pub(super) async fn firm(
        &self,
        session: &mut dyn ServerSession,
        home: Home,
    ) -> Result<(), QueryError> {
        let failed = |e: ProviderError| QueryError::Other(e.to_string());
        let Some(note) = Note::read(&self.data_dir, home).map_err(failed)? else {
            return Ok(());
        };
        for sql in set(note.flush, note.sync) {
            ask(session, &sql).await?;
        }
        // By their settings, which have to be in force first.
        for log in ["ENGINE", "BINARY"] {
            ask(session, &format!("FLUSH LOCAL {log} LOGS")).await?;
        }
        let file = place(&self.data_dir, home);
        fs::remove_file(&file).map_err(|e| failed(ProviderError::io("can't remove", file)(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let note = Note {
            boot: "5b0c".to_owned(),
            flush: 1,
            sync: 0,
        };
        assert_eq!(Note::parse(&note.text()), Some(note));
        for text in ["", "5b0c", "5b0c 1", "5b0c 1 x"] {
            assert_eq!(Note::parse(text), None, "{text:?}");
        }
    }
}
