//! Must show 1: `slackwater dev` prints a `psql` line that works with `sslmode=verify-full`, and a `mariadb` (or
//! `mysql`) line that verifies the server as well; and what it started is found again by the next one.

use crate::support::admin::Admin;
use crate::support::postgres::{Port, kill_by_pid_file};
use crate::support::proxy::program;
use crate::support::{SOON, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running `slackwater dev`.
struct Dev {
    child: Child,
    output: PathBuf,
    admin: Admin,
}

impl Dev {
    fn start(dir: &Path, round: u32, ports: &[Port; 3]) -> Self {
        let [port, mysql, admin] = ports;
        let output = dir.join(format!("output-{round}"));
        let file = File::create(&output).unwrap();
        let child = Command::new(program())
            .args(["dev", "--data"])
            .arg(dir.join("data"))
            .args(["--postgres-port", &port.number.to_string()])
            .args(["--mysql-port", &mysql.number.to_string()])
            .args(["--admin-port", &admin.number.to_string()])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("slackwater dev starts");
        let admin = Admin::new(admin.number);
        Self {
            child,
            output,
            admin,
        }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The `psql` line that it prints.
    fn line(&self) -> String {
        wait_for("a psql line is printed", Duration::from_secs(120), || {
            let text = self.text();
            let line = text
                .lines()
                .find(|l| l.contains("psql ") && l.contains("verify-full"))?;
            Some(line[line.find("psql ")?..].to_owned())
        })
    }

    fn psql(&self, sql: &str) -> String {
        let line = format!("{} -XAtc \"{sql}\"", self.line());
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(
            output.status.success(),
            "{line}: {output:?}\n{}",
            self.text()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The line for MariaDB's or MySQL's client.
    fn mysql(&self, sql: &str) -> String {
        self.line();
        let text = self.text();
        let line = text
            .lines()
            .map(str::trim)
            .find(|l| l.contains("--ssl-verify-server-cert") || l.contains("VERIFY_IDENTITY"))
            .unwrap_or_else(|| panic!("no line for MySQL's client: {text}"));
        let line = format!("{line} -BNe \"{sql}\"");
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}\n{text}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn stop(mut self) {
        kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        )
        .unwrap();
        wait_until("it ends after SIGTERM", SOON, || {
            self.child.try_wait().unwrap().is_some()
        });
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends every server below a directory, whatever its name there.
struct Servers(PathBuf);

impl Drop for Servers {
    fn drop(&mut self) {
        let mut look = vec![self.0.clone()];
        while let Some(dir) = look.pop() {
            if dir.join("postmaster.pid").exists() {
                kill_by_pid_file(&dir);
            } else if let Ok(pid) = fs::read_to_string(dir.join("data.pid")) {
                // Its process is in this directory's own server, which nobody else knows.
                let _ = kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL);
            } else {
                let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
                look.extend(entries.map(|e| e.path()).filter(|p| p.is_dir()));
            }
        }
    }
}

#[test]
fn ms1_the_printed_line_works_and_the_server_outlives_the_proxy() {
    let dir = tempfile::Builder::new()
        .prefix("slackwater-dev-")
        .tempdir()
        .unwrap();
    // Root's servers run under another account, which has to get through.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), mode).unwrap();
    let _servers = Servers(dir.path().to_owned());
    let ports = [Port::take(), Port::take(), Port::take()];
    let dev = Dev::start(dir.path(), 1, &ports);
    assert_eq!(dev.psql("select 40 + 2"), "42");
    assert_eq!(
        dev.psql("create table kept as select 7 as n; select n from kept"),
        "SELECT 1\n7"
    );
    let clusters = dev.admin.get("/v1/clusters");
    assert_eq!(clusters.as_array().map(Vec::len), Some(2), "{clusters}");
    assert_eq!(dev.mysql("select 40 + 2"), "42");
    let made = "create table kept (n int); insert into kept values (7); select n from kept";
    assert_eq!(dev.mysql(made), "7");
    let process = "select @@global.report_host";
    let started_mysql = dev.mysql(process);
    let started = dev.psql("select pg_postmaster_start_time()");
    dev.stop();
    let dev = Dev::start(dir.path(), 2, &ports);
    assert_eq!(
        dev.psql("select pg_postmaster_start_time()"),
        started,
        "the server was adopted"
    );
    assert_eq!(dev.psql("select n from kept"), "7");
    assert_eq!(dev.mysql(process), started_mysql, "the server was adopted");
    assert_eq!(dev.mysql("select n from kept"), "7");
    dev.stop();
}
