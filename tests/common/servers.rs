//! PostgreSQL servers of several versions: a test binary runs its own tests again on each.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the directory of the server programs to test with, instead of the newest installed ones.
pub(crate) const BINARIES: &str = "SLACKWATER_TEST_PG_BIN";

fn full() -> bool {
    std::env::var_os("SLACKWATER_TEST_FULL").is_some_and(|v| v == "1")
}

/// Versions besides the installed one that are tried: all of them when the long variants are asked for.
fn versions() -> &'static [u32] {
    if full() {
        &[13, 14, 16, 17, 18]
    } else {
        &[16, 18]
    }
}

/// The server programs of a version, fetched on first use; `None`, and a line that says so, where that is
/// not possible. The long variants are nothing without them.
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
            assert!(!full(), "PostgreSQL {version} can't be fetched: {other:?}");
            let text = format!("SKIPPED: PostgreSQL {version} can't be fetched: {other:?}\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            None
        }
    }
}

/// Runs the tests of this binary whose names have `filter` in them, but for those with one of `skip`, on a server of
/// each version.
pub(crate) fn on_every_version(filter: &str, skip: &[&str]) {
    run_on(versions(), false, &[filter], skip);
}

/// The same on a server of one version with the programs that a standby needs, for any of the `filters`.
#[allow(dead_code, reason = "session_state has no standbys")]
pub(crate) fn on_a_whole(version: u32, filters: &[&str], skip: &[&str]) {
    if versions().contains(&version) {
        run_on(&[version], true, filters, skip);
    }
}

fn run_on(versions: &[u32], whole: bool, filters: &[&str], skip: &[&str]) {
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
            .args(filters)
            .args(skip.iter().flat_map(|name| ["--skip", *name]))
            .args(["--test-threads", "2"])
            .env(BINARIES, binaries)
            .output()
            .expect("a test program runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            !said.contains(" 0 passed"),
            "{filters:?} name tests: {said}"
        );
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            faults.push(format!("PostgreSQL {version}: {said}\n{errors}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
