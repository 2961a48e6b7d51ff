//! sysbench as a load.

use std::process::{Child, Command, Stdio};

/// Tables, and rows in each.
const SIZE: [&str; 2] = ["--tables=4", "--table-size=2000"];

fn sysbench(port: u16, threads: usize) -> Command {
    let mut command = Command::new("sysbench");
    command
        .args(["--db-driver=mysql", "--mysql-host=127.0.0.1"])
        .arg(format!("--mysql-port={port}"))
        .args([
            "--mysql-user=app",
            "--mysql-password=app-secret",
            "--mysql-db=app",
        ])
        .args(SIZE)
        .arg(format!("--threads={threads}"));
    command
}

/// Makes the tables.
pub(crate) fn fill(port: u16) {
    let output = sysbench(port, 1)
        .args(["oltp_read_write", "prepare"])
        .output()
        .expect("sysbench is there (run `make setup`)");
    assert!(output.status.success(), "{output:?}");
}

/// A load that runs until it is stopped. Any error ends it.
pub(crate) struct Load(Child);

impl Load {
    /// `prepared`: statements are prepared.
    pub(crate) fn start(port: u16, test: &str, prepared: bool, threads: usize) -> Self {
        let mode = if prepared { "auto" } else { "disable" };
        let child = sysbench(port, threads)
            .arg(format!("--db-ps-mode={mode}"))
            .args(["--time=600", "--report-interval=1", test, "run"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("sysbench is there (run `make setup`)"))
    }

    /// Ends it. It must still have been running: it stops at its first error.
    pub(crate) fn stop(mut self) {
        let ended = self.0.try_wait().unwrap();
        let _ = self.0.kill();
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(ended.is_none(), "the load ended: {text}\n{errors}");
        assert!(
            !text.contains("FATAL") && !errors.contains("FATAL"),
            "{text}\n{errors}"
        );
        // Errors that do not end it are its own deadlocks.
        for line in text.lines().filter(|l| l.contains("reconn/s:")) {
            assert!(line.contains("reconn/s: 0.00"), "{line}");
        }
    }
}
