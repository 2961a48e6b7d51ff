//! MySQL's own program, compressed with zstd, through swaps.

use crate::support::proxy::Proxy;
use crate::support::server::{APP, Kind, Server, on_another_server};
use crate::support::sized;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The program at work. It ends rather than go on without zstd.
struct Program {
    child: Child,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Program {
    fn start(proxy: &Proxy, level: u8, tls: &str) -> Self {
        let mut child = Command::new(Kind::MySql97.programs().join("mysql"))
            .args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"])
            .arg(format!("--port={}", proxy.port()))
            .arg(format!("--user={}", APP.0))
            .arg(format!("--password={}", APP.1))
            .args(["--compression-algorithms=zstd", "--get-server-public-key"])
            .arg(format!("--zstd-compression-level={level}"))
            .arg(format!("--ssl-mode={tls}"))
            .args(["--batch", "--skip-column-names", "--unbuffered"])
            .args(["--max-allowed-packet=64M", "app"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn run(&mut self, sql: &str) {
        writeln!(self.stdin, "{sql};").unwrap();
    }

    /// The only row of an answer.
    fn ask(&mut self, sql: &str) -> String {
        self.run(sql);
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{:?}", self.child.wait());
        line.trim_end().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ms6_the_mysql_program_with_zstd() {
    if !Kind::wanted().is_mysql() {
        return on_another_server(Kind::MySql97, &["ms6_the_mysql_program_with_zstd"]);
    }
    let server = Server::start(&[]);
    let proxy = Proxy::on(&server);
    let words = (0..60_000).fold(String::new(), |mut words, n: u64| {
        write!(words, "{} ", n.wrapping_mul(2_654_435_761)).unwrap();
        words
    });
    for (level, tls) in [(1, "DISABLED"), (3, "REQUIRED"), (22, "DISABLED")] {
        let mut program = Program::start(&proxy, level, tls);
        program.run("DROP TABLE IF EXISTS words");
        program.run("CREATE TABLE words (n int, t longtext)");
        program.run(&format!("SET @kept = 'level {level}'"));
        let mut numbers = Vec::new();
        for n in 0..sized(3, 20) {
            program.run(&format!("INSERT INTO words VALUES ({n}, '{words}')"));
            numbers.push(program.ask("SELECT CONNECTION_ID()"));
            proxy.admin().swap();
            let back = program.ask(&format!("SELECT t FROM words WHERE n = {n}"));
            assert!(
                back == words.trim_end(),
                "{} of {}",
                back.len(),
                words.len()
            );
            // More than one packet of 16 MiB, and less than one that is worth it.
            let long = program.ask("SELECT REPEAT('x', 20000000)");
            assert!(long.len() == 20_000_000 && long.bytes().all(|b| b == b'x'));
            assert_eq!(program.ask("SELECT @kept"), format!("level {level}"));
        }
        numbers.push(program.ask("SELECT CONNECTION_ID()"));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), sized(3, 20) + 1, "it moved each time");
    }
}
