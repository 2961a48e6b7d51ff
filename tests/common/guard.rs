//! Ends what a test has started in directories of its own, however the test ends: also when it was killed itself.

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Waits for the end of its input, then kills every process whose command line names one of the directories, and
/// removes them and the control groups that local servers were in. In a session of its own, so that what ends the test's process group does not end it.
const SCRIPT: &str = r#"
cat >/dev/null
groups=
for round in 1 2 3; do
    for dir in "$SLACKWATER_GUARD_1" "$SLACKWATER_GUARD_2"; do
        [ -n "$dir" ] || continue
        for line in $(grep -lsF "$dir" /proc/[0-9]*/cmdline); do
            process=${line%/cmdline}
            groups="$groups $(sed -n 's|^[0-9]*:[a-z,]*:\(/.*slackwater-.*\)|\1|p' "$process/cgroup" 2>/dev/null)"
            kill -KILL "${process#/proc/}" 2>/dev/null
        done
        rm -rf "$dir"
    done
done
for group in $(printf '%s\n' $groups | sort -u); do
    for hierarchy in /sys/fs/cgroup/cpu /sys/fs/cgroup; do
        for again in 1 2 3 4 5; do
            [ -d "$hierarchy$group" ] || break
            rmdir "$hierarchy$group" 2>/dev/null || sleep 0.1
        done
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
