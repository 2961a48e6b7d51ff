//! The same random scripts on a server directly and through Slackwater in front of another one, with moves in between:
//! every value, every error and every count of changed rows must be the same.
//!
//! (Not tried: prepared statements with user variables. MySQL decides what their columns are by the types that the variables
//! have when the statement is prepared, and after a move it was prepared again.)
//!
//! `SLACKWATER_TEST_FIRST` and `SLACKWATER_TEST_COUNT` choose the scripts.

use crate::support::client::{Client, code};
use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::sized;
use mysql::prelude::Queryable as _;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Statements of which a script is made. `{n}` is a small number, `{v}` one of a few names.
const STATEMENTS: &[&str] = &[
    "SET @{v} = {n}",
    "SET @{v} = {n} / 3, @w = 'te''xt {n}'",
    "SET @{v} = NULL",
    "SET @{v} = 18446744073709551615 - {n}",
    "SET @{v} = _latin1 x'e9{n}0' COLLATE latin1_german1_ci",
    "SET @{v} = 1e{n}",
    "SELECT @{v}, @w",
    "SELECT HEX(@{v}), COLLATION(@{v}), @{v} + 1",
    "SELECT a, @{v} := a FROM t ORDER BY a LIMIT 1",
    "SELECT MAX(a) INTO @{v} FROM t",
    "SET SESSION sort_buffer_size = 300000 + {n} * 1024",
    "SET SESSION group_concat_max_len = 1000 + {n}",
    "SELECT @@sort_buffer_size, @@group_concat_max_len",
    "SET time_zone = '+0{n}:00'",
    "SELECT FROM_UNIXTIME(0), @@time_zone",
    "SET NAMES latin1",
    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
    "SET character_set_results = NULL",
    "SELECT @@character_set_client, @@collation_connection, @@character_set_results",
    "SET sql_mode = ''",
    "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",
    "SET sql_mode = 'STRICT_ALL_TABLES'",
    "SELECT @@sql_mode",
    "INSERT INTO t (b) VALUES ('{n}')",
    "INSERT INTO t (b) VALUES (REPEAT('x', 300))",
    "INSERT INTO t (a, b) VALUES ({n}, 'again')",
    "UPDATE t SET b = CONCAT(b, '{n}') WHERE a = {n}",
    "DELETE FROM t WHERE a = {n}",
    "SELECT LAST_INSERT_ID()",
    "SELECT LAST_INSERT_ID({n}00)",
    "SET SESSION last_insert_id = {n}",
    "SELECT COUNT(*), MAX(a), GROUP_CONCAT(b ORDER BY a) FROM t",
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s{n}",
    "ROLLBACK TO SAVEPOINT s{n}",
    "SET autocommit = 0",
    "SET autocommit = 1",
    "SELECT @@autocommit",
    "SET TRANSACTION READ ONLY",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "USE other",
    "USE app",
    "SELECT DATABASE()",
    "PREPARE {v} FROM 'SELECT {n}, ?'",
    "PREPARE {v} FROM 'SELECT COUNT(*) FROM t WHERE a > ?'",
    "EXECUTE {v} USING @w",
    "EXECUTE {v}",
    "DEALLOCATE PREPARE {v}",
    "SELECT GET_LOCK('l{n}', 0)",
    "SELECT RELEASE_LOCK('l{n}')",
    "SELECT RELEASE_ALL_LOCKS()",
    "SET ROLE helper",
    "SET ROLE NONE",
    "SELECT CURRENT_ROLE(), CURRENT_USER()",
    "SELECT nothing",
    "SELEC 1",
    "SET @{v} = 1; SELECT @{v}; SELECT {n}",
    "SELECT 1; SELECT nothing; SELECT 3",
    "/* nothing */",
    "DO SLEEP(0)",
    "SET insert_id = {n}0",
    "SET timestamp = {n}00000000.5",
    "SET timestamp = DEFAULT",
    "SELECT UNIX_TIMESTAMP(NOW(6)) = @@timestamp",
    "SET foreign_key_checks = 0",
    "SELECT @@foreign_key_checks, @@unique_checks",
    "SET SESSION max_statement_time = {n}",
    "SET SESSION sql_select_limit = {n}",
    "SET SESSION sql_select_limit = DEFAULT",
    "SELECT a FROM t UNION SELECT 0 ORDER BY 1",
];

/// A generator of numbers that is the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

enum Step {
    Text(String),
    /// Prepares and runs a statement of the binary protocol, or one that was prepared before.
    Prepare(&'static str),
    Execute(usize, i64),
    Close(usize),
    Reset,
}

fn script(seed: u64) -> Vec<Step> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let length = 8 + random.below(25);
    (0..length)
        .map(|_| match random.below(20) {
            0 | 1 => Step::Prepare(
                [
                    "SELECT ? + 1, b FROM t ORDER BY a LIMIT 1",
                    "SELECT b FROM t WHERE a = ?",
                    "INSERT INTO t (b) VALUES (?)",
                    "SELECT CONCAT(?, 'end')",
                    "UPDATE t SET b = 'u' WHERE a = ?",
                ][random.below(5)],
            ),
            2..=4 => Step::Execute(random.below(4), random.below(9).try_into().unwrap()),
            5 if random.below(3) == 0 => Step::Close(random.below(4)),
            6 if random.below(6) == 0 => Step::Reset,
            _ => {
                let text = STATEMENTS[random.below(STATEMENTS.len())];
                let text = text.replace("{n}", &random.below(7).to_string());
                Step::Text(text.replace("{v}", ["x", "y", "z"][random.below(3)]))
            }
        })
        .collect()
}

/// Runs a script; what the client reads, a line for each step.
fn play(client: &mut Client, script: &[Step], mut between: impl FnMut(usize)) -> String {
    let mut heard = String::new();
    let mut prepared: Vec<Option<mysql::Statement>> = Vec::new();
    for (at, step) in script.iter().enumerate() {
        between(at);
        let said = match step {
            Step::Text(sql) => format!("{sql} -> {}", text(client, sql)),
            Step::Prepare(sql) => match client.0.prep(sql) {
                Ok(statement) => {
                    let told = format!("{sql} -> {} params", statement.num_params());
                    prepared.push(Some(statement));
                    told
                }
                Err(error) => format!("{sql} -> {}", code(&error)),
            },
            Step::Execute(which, value) => match prepared.get(*which).and_then(Option::as_ref) {
                Some(statement) => {
                    let rows: Result<Vec<mysql::Row>, _> = client.0.exec(statement, (*value,));
                    match rows {
                        Ok(rows) => format!(
                            "execute {which} -> {:?} {}",
                            rows.into_iter().map(mysql::Row::unwrap).collect::<Vec<_>>(),
                            client.0.affected_rows()
                        ),
                        Err(error) => format!("execute {which} -> {}", code(&error)),
                    }
                }
                None => String::new(),
            },
            Step::Close(which) => {
                if let Some(statement) = prepared.get_mut(*which).and_then(Option::take) {
                    client.0.close(statement).unwrap();
                }
                String::new()
            }
            Step::Reset => {
                prepared.clear();
                format!("reset -> {:?}", client.0.reset().is_ok())
            }
        };
        writeln!(heard, "{at}: {said}").unwrap();
    }
    heard
}

/// All results of a text.
fn text(client: &mut Client, sql: &str) -> String {
    let mut said = String::new();
    let mut results = match client.0.query_iter(sql) {
        Ok(results) => results,
        Err(error) => return format!("error {}", code(&error)),
    };
    while let Some(result) = results.iter() {
        for row in result {
            match row {
                Ok(row) => write!(said, "{:?} ", row.unwrap()).unwrap(),
                Err(error) => write!(said, "error {} ", code(&error)).unwrap(),
            }
        }
        said.push_str("| ");
    }
    let changed = results.affected_rows();
    write!(said, "{changed}").unwrap();
    said
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn differential_random_scripts_read_the_same() {
    let (plain, server) = (Server::start(&[]), Server::start(&[]));
    let proxy = Proxy::on(&server);
    let first = number("SLACKWATER_TEST_FIRST", 1);
    let count = number("SLACKWATER_TEST_COUNT", sized(40, 10_000));
    let fresh = [
        "DROP TABLE IF EXISTS app.t, other.t",
        "CREATE TABLE app.t (a int PRIMARY KEY AUTO_INCREMENT, b varchar(200)) ENGINE=InnoDB",
        "CREATE TABLE other.t (a int PRIMARY KEY AUTO_INCREMENT, b varchar(200)) ENGINE=InnoDB",
        "INSERT INTO app.t (b) VALUES ('one'), ('two')",
    ];
    let stop = AtomicBool::new(false);
    let moves = AtomicU64::new(0);
    let mut mismatches = Vec::new();
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let event = proxy
                    .admin()
                    .start_event(&serde_json::json!({ "timeout_seconds": 5 }));
                proxy.admin().finished(event, crate::support::EVENT);
                moves.fetch_add(1, Ordering::Relaxed);
            }
        });
        for seed in first..first + count {
            let script = script(seed);
            for server in [&plain, &server] {
                server.run(&fresh);
            }
            let straight = play(&mut Client::to(&plain.app()), &script, |_| {});
            let mut client = proxy.client("random");
            let through = play(&mut client, &script, |at| {
                // Some steps wait for a move, so that many of them are the first ones behind it.
                if (seed + at as u64).is_multiple_of(5) {
                    let before = moves.load(Ordering::Relaxed);
                    let until = tokio::time::Instant::now() + std::time::Duration::from_millis(40);
                    while moves.load(Ordering::Relaxed) < before + 2
                        && tokio::time::Instant::now() < until
                    {
                        std::thread::park_timeout(std::time::Duration::from_millis(1));
                    }
                }
            });
            if straight != through {
                mismatches.push(format!(
                    "script {seed}\n{}",
                    difference(&straight, &through)
                ));
                if mismatches.len() >= 3 {
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        mover.join().unwrap();
    });
    assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
    assert!(moves.load(Ordering::Relaxed) > count / 10);
}

/// The lines that differ, and what came before.
fn difference(straight: &str, through: &str) -> String {
    let mut out = String::new();
    for (one, other) in straight.lines().zip(through.lines()) {
        if one == other {
            writeln!(out, "  {one}").unwrap();
        } else {
            writeln!(out, "- {one}\n+ {other}").unwrap();
        }
    }
    out
}
