//! Which process is the server of a data directory.

use super::super::process::Process;
use std::fs;
use std::path::Path;

/// How servers are called, whatever engine.
const SERVERS: [&str; 2] = ["mysqld", "mariadbd"];

/// The living server of a data directory: it works there and is called as servers are.
pub(in super::super) fn find(data: &Path) -> Option<Process> {
    let processes = fs::read_dir("/proc").ok()?;
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| is_server(*pid))
        .filter_map(Process::of)
        .find(|process| process.works_in(data))
}

/// Has a server's program read its settings and end: MySQL's, MariaDB's.
pub(super) const READS_SETTINGS: [&str; 2] = ["--validate-config", "--help"];

/// Whether one of the first words of its command line is the name of a server. The very first need not be: it may
/// run through a dynamic linker of its own. One that only reads its settings, and was left behind by a proxy that was
/// killed, is none.
fn is_server(pid: i32) -> bool {
    const WORDS: usize = 5;
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = || line.split(|b| *b == 0);
    let reads = words().any(|word| READS_SETTINGS.iter().any(|r| r.as_bytes() == word));
    !reads
        && words().take(WORDS).any(|word| {
            let name = word.rsplit(|b| *b == b'/').next().unwrap_or_default();
            SERVERS.iter().any(|server| server.as_bytes() == name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_reads_its_settings_is_no_server() {
        let place = tempfile::tempdir().unwrap();
        // A shell of this name, which ends with its standard input. A file that was just written might be busy.
        let program = place.path().join("mariadbd");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        for (last, is_one) in [
            ("--skip-log-error", true),
            ("--help", false),
            ("--validate-config", false),
        ] {
            let mut child = std::process::Command::new(&program)
                .args([
                    "-c",
                    "read -r line; true",
                    "--datadir=/x",
                    last,
                    "--verbose",
                ])
                .current_dir(place.path())
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            // Its arguments can be read a moment after it runs.
            let arguments = format!("/proc/{pid}/cmdline");
            while !fs::read_to_string(&arguments)
                .unwrap()
                .contains("--verbose")
            {
                std::thread::yield_now();
            }
            assert_eq!(
                find(place.path()),
                Process::of(pid).filter(|_| is_one),
                "{last}"
            );
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}
