//! Ends what a test has started in directories of its own, however the test ends: also when it was killed itself.

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Waits for the end of its input, then kills every process whose command line names one of the directories, and
/// removes them. In a session of its own, so that what ends the test's process group does not end it.
const SCRIPT: &str = r#"
cat >/dev/null
for round in 1 2 3; do
    for dir in "$SLACKWATER_GUARD_1" "$SLACKWATER_GUARD_2"; do
        [ -n "$dir" ] || continue
        for line in $(grep -lsF "$dir" /proc/[0-9]*/cmdline); do
            pid=${line#/proc/}
            kill -KILL "${pid%/cmdline}" 2>/dev/null
        done
        rm -rf "$dir"
    done
done
"#;

/// What waits for the end of the test.
pub(crate) struct Guard {
    child: Child,
    input: Option<ChildStdin>,
}

impl Guard {
    /// Watches over one or two directories, whose names nothing else has in its command line.
    pub(crate) fn over(dirs: &[&Path]) -> Self {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", SCRIPT]);
        let names = ["SLACKWATER_GUARD_1", "SLACKWATER_GUARD_2"];
        assert!(dirs.len() <= names.len(), "one or two directories");
        for (at, name) in names.into_iter().enumerate() {
            command.env(name, dirs.get(at).copied().unwrap_or(Path::new("")));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell runs");
        let input = child.stdin.take();
        Self { child, input }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
