//! Control groups: the CPU quota of a local server, and how much memory this process' own group allows.
//! Version 2 or version 1, wherever the host lets us; where it does not, the reason is kept for `status`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Length of a quota's period, in microseconds. Shorter than the kernel's 100 ms, so that a server that
/// used its share up waits a few milliseconds rather than a tenth of a second.
const PERIOD_US: u64 = 20_000;
/// The kernel's smallest quota, in microseconds.
const LEAST_QUOTA_US: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
        })
    }
}

/// A group of this process, below the file system's mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Own {
    version: Version,
    mount: PathBuf,
    path: PathBuf,
}

/// A CPU group for one local server.
#[derive(Debug)]
pub(super) struct CpuGroup {
    version: Version,
    directory: PathBuf,
}

impl CpuGroup {
    /// Makes the group `name` below this process' own group (or takes the one that is there). The error is
    /// a phrase for `status`.
    pub(super) fn create(name: &str) -> Result<Self, String> {
        let own = own_group("cpu").ok_or("this host has no cgroup CPU controller")?;
        // In version 2 a group with processes can have no children with controllers, so next to this
        // process is the second place to try.
        let mut refused = String::new();
        let places = [Some(own.path.as_path()), own.path.parent()];
        for place in places
            .into_iter()
            .flatten()
            .filter(|p| p.starts_with(&own.mount))
        {
            match Self::create_in(own.version, place, name) {
                Ok(group) => return Ok(group),
                Err(why) if refused.is_empty() => refused = why,
                Err(_) => {}
            }
        }
        Err(refused)
    }

    fn create_in(version: Version, place: &Path, name: &str) -> Result<Self, String> {
        let directory = place.join(name);
        let made = match fs::create_dir(&directory) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(format!("can't make the group {}: {e}", directory.display())),
        };
        let group = Self { version, directory };
        let quota = group.quota_file();
        if !quota.exists() && version == Version::V2 {
            // Fails where this host does not delegate the controller; told by the next test.
            let _ = fs::write(place.join("cgroup.subtree_control"), "+cpu");
        }
        let usable = fs::OpenOptions::new().write(true).open(&quota);
        match usable {
            Ok(_) => Ok(group),
            Err(e) => {
                if made {
                    let _ = fs::remove_dir(&group.directory);
                }
                Err(format!("{} can't be written: {e}", quota.display()))
            }
        }
    }

    fn quota_file(&self) -> PathBuf {
        self.directory.join(match self.version {
            Version::V1 => "cpu.cfs_quota_us",
            Version::V2 => "cpu.max",
        })
    }

    /// Sets the quota in thousandths of a CPU; `None` lifts it.
    pub(super) fn set(&self, quota: Option<u32>) -> Result<(), String> {
        let quota = quota.map(|q| (u64::from(q) * PERIOD_US / 1000).max(LEAST_QUOTA_US));
        let write = |file: &Path, text: String| {
            fs::write(file, text).map_err(|e| format!("can't write {}: {e}", file.display()))
        };
        match self.version {
            Version::V2 => {
                let quota = quota.map_or("max".to_owned(), |q| q.to_string());
                write(&self.quota_file(), format!("{quota} {PERIOD_US}"))
            }
            Version::V1 => {
                write(
                    &self.directory.join("cpu.cfs_period_us"),
                    PERIOD_US.to_string(),
                )?;
                write(
                    &self.quota_file(),
                    quota.map_or("-1".to_owned(), |q| q.to_string()),
                )
            }
        }
    }

    /// Puts a server process and all its children into the group. Children made later are born in it.
    pub(super) fn adopt(&self, pid: u32) -> Result<(), String> {
        let procs = self.directory.join("cgroup.procs");
        fs::write(&procs, pid.to_string())
            .map_err(|e| format!("can't write {}: {e}", procs.display()))?;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in children.unwrap_or_default().split_ascii_whitespace() {
            // A child that just ended needs no group.
            let _ = fs::write(&procs, child);
        }
        Ok(())
    }

    /// Which kind of group, and where.
    pub(super) fn describe(&self) -> String {
        format!("{}, {}", self.version, self.directory.display())
    }
}

/// Bytes that this process' memory groups still allow, page cache that can be dropped included; `None`
/// without a limit.
pub(super) fn memory_headroom() -> Option<u64> {
    let own = own_group("memory")?;
    let mut place = own.path.as_path();
    let mut least = None;
    while place.starts_with(&own.mount) {
        if let Some(room) = headroom_at(own.version, place) {
            least = Some(least.map_or(room, |l: u64| l.min(room)));
        }
        let Some(parent) = place.parent() else { break };
        place = parent;
    }
    least
}

fn headroom_at(version: Version, place: &Path) -> Option<u64> {
    let (limit, usage, droppable) = match version {
        Version::V1 => (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file ",
        ),
        Version::V2 => ("memory.max", "memory.current", "inactive_file "),
    };
    let number = |file: &str| {
        fs::read_to_string(place.join(file))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let limit = number(limit)?;
    // "No limit" of version 1 is a number near 2^63.
    if limit > 1 << 60 {
        return None;
    }
    let stat = fs::read_to_string(place.join("memory.stat")).unwrap_or_default();
    let dropped = stat
        .lines()
        .find_map(|l| l.strip_prefix(droppable)?.parse::<u64>().ok());
    Some(limit.saturating_sub(number(usage)?.saturating_sub(dropped.unwrap_or(0))))
}

fn own_group(controller: &str) -> Option<Own> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut own = find_group(controller, &groups, &mounts)?;
    // Inside a container the group's path can be the host's: then the mount point is our own group.
    if !own.path.is_dir() {
        own.path.clone_from(&own.mount);
    }
    if own.version == Version::V2 {
        let there = fs::read_to_string(own.mount.join("cgroup.controllers")).unwrap_or_default();
        there.split_ascii_whitespace().find(|c| *c == controller)?;
    }
    Some(own)
}

/// Finds the group in the texts of /proc/self/cgroup and /proc/self/mountinfo. A controller that version 1
/// has mounted is not in version 2.
fn find_group(controller: &str, groups: &str, mounts: &str) -> Option<Own> {
    let mount = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let options = right
                .by_ref()
                .next()
                .filter(|k| *k == kind)
                .and(right.nth(1))?;
            let has = option.is_none_or(|o| options.split(',').any(|have| have == o));
            has.then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
        })
    };
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if controllers.split(',').any(|c| c == controller) {
            let mount = mount("cgroup", Some(controller))?;
            let path = mount.join(path.trim_start_matches('/'));
            return Some(Own {
                version: Version::V1,
                mount,
                path,
            });
        }
    }
    let path = groups.lines().find_map(|l| l.strip_prefix("0::"))?;
    let mount = mount("cgroup2", None)?;
    let path = mount.join(path.trim_start_matches('/'));
    Some(Own {
        version: Version::V2,
        mount,
        path,
    })
}

#[cfg(test)]
impl CpuGroup {
    /// The quota as the kernel shows it.
    pub(super) fn shown(&self) -> String {
        fs::read_to_string(self.quota_file())
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_found_where_it_holds_the_controller() {
        let groups = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/d\n";
        let mounts = "30 25 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let cpu = find_group("cpu", groups, mounts).unwrap();
        assert_eq!(cpu.version, Version::V1);
        assert_eq!(cpu.path, Path::new("/sys/fs/cgroup/cpu/c"));
        assert_eq!(find_group("memory", groups, mounts), None);
        let pids = find_group("pids", groups, mounts).unwrap();
        assert_eq!(
            (pids.version, pids.path),
            (Version::V2, "/sys/fs/cgroup/unified/d".into())
        );
    }

    #[test]
    fn version_2_alone() {
        let mounts = "35 24 0:30 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = find_group("cpu", "0::/system.slice/x.service\n", mounts).unwrap();
        assert_eq!(own.path, Path::new("/sys/fs/cgroup/system.slice/x.service"));
        assert_eq!(find_group("cpu", "", mounts), None);
        assert_eq!(find_group("cpu", "0::/x\n", "garbage\n"), None);
    }

    #[test]
    fn memory_limit_leaves_what_is_used_and_cannot_be_dropped() {
        let place = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(place.path().join(file), text).unwrap();
        assert_eq!(headroom_at(Version::V2, place.path()), None);
        write("memory.max", "max\n");
        assert_eq!(headroom_at(Version::V2, place.path()), None);
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 100\ninactive_file 150\n");
        assert_eq!(headroom_at(Version::V2, place.path()), Some(450));
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(headroom_at(Version::V1, place.path()), None);
    }
}
