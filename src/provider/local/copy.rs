//! A copy of the primary's data, from which a standby is started.

use super::super::ProviderError;
use super::blocking;
use super::data_dir::{DataDir, random};
use super::fence;
use super::files::Home;
use super::follower::{COPYING, Follower, conninfo, password_file};
use super::process::run;
use crate::backend::Endpoint;
use nix::sys::statvfs::statvfs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

/// What the name of a copy that is under way begins with.
const COPY: &str = "copy.";
/// A copy of the data can take long; a stuck one is given up after a day.
const COPY_PATIENCE: Duration = Duration::from_hours(24);
/// Disk space beyond the copy itself: log that comes in meanwhile.
const DISK_BYTES: u64 = 128 << 20;

impl Follower {
    /// Copies the primary's data into `home`, beside its place first.
    pub(super) async fn base_backup(
        &self,
        primary: &Endpoint,
        home: Home,
    ) -> Result<(), ProviderError> {
        self.room_for_a_copy(primary, home).await?;
        let unfinished = blocking(&self.data_dir, move |d| clear(d, home)).await?;
        self.write_password()?;
        let run_in = self.data_dir.socket_directory();
        let source = format!(
            "host={} port={} user={} passfile={} application_name={COPYING}",
            conninfo(&run_in.display().to_string()),
            self.data_dir.port(),
            conninfo(&self.user),
            conninfo(&password_file(&run_in).display().to_string()),
        );
        let mut command = self
            .install
            .command("pg_basebackup", self.data_dir.account());
        command
            .args([
                "--checkpoint=fast",
                "--wal-method=stream",
                "--no-manifest",
                "--no-password",
            ])
            .arg("-d")
            .arg(source)
            .arg("-D")
            .arg(&unfinished);
        run(&mut command, "pg_basebackup", COPY_PATIENCE)
            .await
            .map_err(|error| ProviderError::Server(explain_copy(&error, &self.user)))?;
        blocking(&self.data_dir, move |d| put_in_place(d, &unfinished, home)).await
    }

    async fn room_for_a_copy(&self, primary: &Endpoint, home: Home) -> Result<(), ProviderError> {
        let sql = "SELECT pg_catalog.sum(pg_catalog.pg_database_size(d.oid))::pg_catalog.text FROM pg_catalog.pg_database d";
        let data: u64 = self.one(primary, sql).await?.parse().unwrap_or(0);
        see_to_room(
            &self.data_dir,
            data.saturating_add(self.keys.wal_keep_bytes),
            home,
        )
        .await
    }
}

/// A finished copy becomes the standby's data directory. It is fenced first.
pub(super) fn put_in_place(
    data_dir: &DataDir,
    copy: &Path,
    home: Home,
) -> Result<(), ProviderError> {
    fence::fence(data_dir, copy)?;
    fs::rename(copy, data_dir.data_of(home))
        .and_then(|()| fence::sync_directory(data_dir.path()))
        .map_err(ProviderError::io("can't rename", copy))
}

/// Whether a copy of so many bytes fits on the disk, with what it replaces gone.
pub(super) async fn see_to_room(
    data_dir: &DataDir,
    data: u64,
    home: Home,
) -> Result<(), ProviderError> {
    let there = data_dir.data_of(home);
    let reused = tokio::task::spawn_blocking(move || directory_bytes(&there))
        .await
        .unwrap_or(0);
    let disk = statvfs(data_dir.path())
        .map_err(|e| ProviderError::io("can't look at", data_dir.path())(e.into()))?;
    let free = (disk.blocks_available() * disk.fragment_size()).saturating_add(reused);
    let needed = data.saturating_add(DISK_BYTES);
    if needed <= free {
        return Ok(());
    }
    Err(ProviderError::Server(format!(
        "a standby needs {} MiB on the disk of data_dir, {} MiB are free: make room, or use switch = \"restart\"",
        needed >> 20,
        free >> 20
    )))
}

/// Removes what is in `home` and what copies that were interrupted left; the directory for a new one. Its
/// name is new each time: a copy that an earlier proxy began may still be writing.
pub(super) fn clear(data_dir: &DataDir, home: Home) -> Result<PathBuf, ProviderError> {
    clear_by(data_dir, home, |old| fs::remove_dir_all(old))
}

/// [`clear`], with what removes a directory.
pub(super) fn clear_by(
    data_dir: &DataDir,
    home: Home,
    remove: impl Fn(&Path) -> io::Result<()>,
) -> Result<PathBuf, ProviderError> {
    let path = data_dir.path();
    let place = data_dir.data_of(home);
    if data_dir.holds_data(home) && !fence::is_standby(data_dir, home) {
        return Err(ProviderError::Server(format!(
            "{} has no {}: it may have been a primary, and is not replaced; look at it, and move it away",
            place.display(),
            fence::signal(data_dir.engine())
        )));
    }
    // Half removed it could look like a primary. By the name of a copy it is nobody's, whole or half.
    let aside = new_name(path)?;
    match fs::rename(&place, &aside).and_then(|()| fence::sync_directory(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(ProviderError::io("can't set aside", place)(e));
        }
        _ => {}
    }
    let entries = fs::read_dir(path).map_err(ProviderError::io("can't read", path))?;
    let begun = |p: &Path| {
        p.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(COPY))
    };
    for old in entries.flatten().map(|e| e.path()) {
        if begun(&old) {
            remove(&old).map_err(ProviderError::io("can't remove", &old))?;
        }
    }
    let unfinished = new_name(path)?;
    data_dir.make_directory(&unfinished, 0o700)?;
    Ok(unfinished)
}

/// A name for a copy that nothing had before.
fn new_name(path: &Path) -> Result<PathBuf, ProviderError> {
    let name = random(8)
        .map_err(ProviderError::io("can't name a directory in", path))?
        .into_iter()
        .fold(0_u64, |n, b| n << 8 | u64::from(b));
    Ok(path.join(format!("{COPY}{name:016x}")))
}

fn explain_copy(error: &ProviderError, user: &str) -> String {
    let text = error.to_string();
    if text.contains("pg_hba.conf") {
        return format!(
            "{text}; a standby needs the line `local replication {user} scram-sha-256` in pg_hba.conf"
        );
    }
    text
}

/// What the files below a directory hold; what goes while it is counted counts nothing.
pub(super) fn directory_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => directory_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
