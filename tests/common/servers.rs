//! PostgreSQL servers of several versions: a test binary runs its own tests again on each.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the directory of the server programs to test with, instead of the newest installed ones.
pub(crate) const BINARIES: &str = "SLACKWATER_TEST_PG_BIN";

/// Versions besides the installed one that are tried: all of them when the long variants are asked for.
fn versions() -> &'static [u32] {
    if std::env::var_os("SLACKWATER_TEST_FULL").is_some_and(|v| v == "1") {
        &[13, 14, 16, 17, 18]
    } else {
        &[16, 18]
    }
}

/// The server programs of a version, fetched on first use; `None`, and a line that says so, where that is
/// not possible.
fn binaries(version: u32, whole: bool) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers.sh");
    let mut command = Command::new(script);
    command.arg(version.to_string());
    if whole {
        command.arg("whole");
    }
    let output = command.output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Some(PathBuf::from(text.trim()))
        }
        other => {
            let text = format!("SKIPPED: PostgreSQL {version} can't be fetched: {other:?}\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            None
        }
    }
}

/// Runs the tests of this binary whose names have `filter` in them, but for those with `skip`, on a server of
/// each version.
pub(crate) fn on_every_version(filter: &str, skip: &str) {
    run_on(versions(), false, filter, skip);
}

/// The same on the versions that can be had with the programs that a standby needs.
#[allow(dead_code, reason = "session_state has no standbys")]
pub(crate) fn on_whole_versions(filter: &str, skip: &str) {
    run_on(&[16, 18], true, filter, skip);
}

fn run_on(versions: &[u32], whole: bool, filter: &str, skip: &str) {
    if std::env::var_os(BINARIES).is_some() {
        return;
    }
    let mut faults = Vec::new();
    for &version in versions {
        let Some(binaries) = binaries(version, whole) else {
            continue;
        };
        let this = std::env::current_exe().expect("a test knows its own program");
        let output = Command::new(this)
            .args([filter, "--skip", skip, "--test-threads", "2"])
            .env(BINARIES, binaries)
            .output()
            .expect("a test program runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains(" 0 passed"), "{filter} names tests: {said}");
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            faults.push(format!("PostgreSQL {version}: {said}\n{errors}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
