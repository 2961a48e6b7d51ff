//! Keeps the shape of the source true: who may import whom, which modules stay pure,
//! and how long a file may grow. Edit the tables here when ARCHITECTURE.md changes.

use std::fs;
use std::path::{Path, PathBuf};

/// Top-level module, and the crate modules that it may name. Order: lowest layer first.
/// A module that is not here (`app`, `cli`, `lib`, `main`) may name everything.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("observe", &[]),
    ("wire", &[]),
    ("auth", &["wire"]),
    ("session", &["wire", "auth"]),
    ("transport", &["observe"]),
    (
        "backend",
        &["wire", "auth", "session", "transport", "observe"],
    ),
    ("provider", &["backend", "transport", "observe"]),
    ("scale", &["backend", "provider", "session", "observe"]),
    (
        "net",
        &["wire", "auth", "session", "transport", "backend", "observe"],
    ),
    (
        "api",
        &[
            "wire",
            "auth",
            "session",
            "transport",
            "backend",
            "provider",
            "scale",
            "net",
            "observe",
        ],
    ),
    (
        "config",
        &[
            "wire",
            "auth",
            "session",
            "transport",
            "backend",
            "provider",
            "scale",
            "net",
            "api",
            "observe",
        ],
    ),
];

/// What only the program's own top may name.
const TOP: &[&str] = &["app", "cli", "config"];

/// Paths with no IO, no clock, no logging: bytes, instants and nonces come in as arguments.
const PURE: &[&str] = &[
    "wire/",
    "auth/",
    "session/",
    "scale/policy.rs",
    "scale/plan.rs",
];

const IMPURE_WORDS: &[&str] = &[
    "tokio::net",
    "tokio::spawn",
    "tokio::fs",
    "tokio::time::sleep",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::net::Tcp",
    "tracing::",
];

const LINES_MAX: usize = 600;

/// Rules of safety that have a test named after their number: `safety_NN_` is in its name. (2 and 21 are MySQL's.)
const SAFETY_RULES: &[u32] = &[
    1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28,
    29,
];

/// Those that have one of MySQL's and MariaDB's own as well: it is in a file of that name, or the test's name has
/// `_mysql_` in it. (1, 12 and 19 are PostgreSQL's; 21 and 22 come with a standby.)
const SAFETY_RULES_OF_MYSQL: &[u32] = &[
    2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 20, 23, 24, 25, 26, 27, 28, 29,
];

/// Cases of `tests/live/cases.rs`: `case_NN_` is in a test's name.
const CASES: u32 = 40;

#[test]
fn source_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for path in rust_files(&root) {
        let text = fs::read_to_string(&path).expect("source file is readable");
        let name = path
            .strip_prefix(&root)
            .expect("below src")
            .display()
            .to_string();
        check(&name, &text, &mut faults);
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn tests_explain_themselves() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut faults = Vec::new();
    for path in rust_files(&root) {
        let text = fs::read_to_string(&path).expect("test file is readable");
        let name = path.display();
        if !text.starts_with("//!") {
            faults.push(format!("{name}: no module comment (//!)"));
        }
        if text.lines().count() > LINES_MAX {
            faults.push(format!("{name}: over {LINES_MAX} lines"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Names of functions: those of PostgreSQL and of what is common, and those of MySQL.
fn functions() -> (Vec<String>, Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut of_postgres, mut of_mysql) = (Vec::new(), Vec::new());
    for path in [root.join("src"), root.join("tests")]
        .iter()
        .flat_map(|dir| rust_files(dir))
    {
        let text = fs::read_to_string(&path).expect("source file is readable");
        let lines = text
            .lines()
            .map(|l| l.trim_start().trim_start_matches("async "));
        let place = path.strip_prefix(root).expect("below the root");
        let place_of_mysql = place.display().to_string().contains("mysql");
        for line in lines {
            let Some(name) = line.strip_prefix("fn ").and_then(|l| l.split('(').next()) else {
                continue;
            };
            if place_of_mysql || name.contains("_mysql_") {
                of_mysql.push(name.to_owned());
            } else {
                of_postgres.push(name.to_owned());
            }
        }
    }
    (of_postgres, of_mysql)
}

#[test]
fn each_case_has_its_test() {
    let (names, _) = functions();
    let missing: Vec<_> = (1..=CASES)
        .filter(|case| {
            let number = format!("case_{case:02}_");
            !names.iter().any(|name| name.contains(&number))
        })
        .collect();
    assert!(missing.is_empty(), "no test is named after {missing:?}");
}

#[test]
fn each_safety_rule_has_its_test() {
    let (of_postgres, of_mysql) = functions();
    for (rules, names) in [
        (SAFETY_RULES, of_postgres),
        (SAFETY_RULES_OF_MYSQL, of_mysql),
    ] {
        let missing: Vec<_> = rules
            .iter()
            .filter(|rule| {
                let number = format!("safety_{rule:02}_");
                !names.iter().any(|name| name.contains(&number))
            })
            .collect();
        assert!(missing.is_empty(), "no test is named after {missing:?}");
    }
}

#[test]
fn the_check_finds_what_it_is_for() {
    for (name, text, fault) in [
        ("wire/a.rs", "fn a() {}", "no module comment"),
        (
            "wire/a.rs",
            "//! A.\nuse crate::scale::X;",
            "may not import scale",
        ),
        (
            "session/a.rs",
            "//! A.\nuse crate::{wire::A, provider::B};",
            "may not import provider",
        ),
        (
            "net/a.rs",
            "//! A.\nuse crate::scale::X;",
            "may not import scale",
        ),
        (
            "api/a.rs",
            "//! A.\nuse crate::config::X;",
            "may not import config",
        ),
        (
            "auth/a.rs",
            "//! A.\nuse std::fs::read;",
            "pure file names std::fs",
        ),
        (
            "net/a.rs",
            "//! A.\n#[cfg(test)]\nmod tests;\nuse crate::scale::X;",
            "may not import scale",
        ),
    ] {
        let mut faults = Vec::new();
        check(name, text, &mut faults);
        assert!(
            faults.iter().any(|f| f.contains(fault)),
            "{name}: wanted {fault}, got {faults:?}"
        );
    }
    let mut faults = Vec::new();
    check(
        "net/a.rs",
        "//! A.\nuse crate::{backend::X, session::{Y, Z}};\n#[cfg(test)]\nmod tests {\nuse crate::scale::W;\n}",
        &mut faults,
    );
    assert!(faults.is_empty(), "{faults:?}");
}

/// What of a file is not its tests: all up to `#[cfg(test)] mod name {`. A file of tests has nothing.
fn without_tests<'a>(name: &str, text: &'a str) -> &'a str {
    if name.ends_with("/tests.rs") || name.contains("/tests/") {
        return "";
    }
    for (at, mark) in text.match_indices("#[cfg(test)]\n") {
        let item = text[at + mark.len()..]
            .lines()
            .find(|l| !l.starts_with("#["));
        if item.is_some_and(|l| l.contains("mod ") && l.ends_with('{')) {
            return &text[..at];
        }
    }
    text
}

fn check(name: &str, text: &str, faults: &mut Vec<String>) {
    let code = without_tests(name, text);
    if !text.starts_with("//!") {
        faults.push(format!("{name}: no module comment (//!)"));
    }
    if code.lines().count() > LINES_MAX {
        faults.push(format!("{name}: over {LINES_MAX} lines before its tests"));
    }
    let module = name.split(['/', '.']).next().unwrap_or(name);
    if let Some((_, allowed)) = MAY_IMPORT.iter().find(|(m, _)| *m == module) {
        for target in imports(code) {
            let known = MAY_IMPORT.iter().any(|(m, _)| *m == target) || TOP.contains(&target);
            if target != module && known && !allowed.contains(&target) {
                faults.push(format!("{name}: {module} may not import {target}"));
            }
        }
    }
    if PURE.iter().any(|prefix| name.starts_with(prefix)) {
        for word in IMPURE_WORDS.iter().filter(|w| code.contains(**w)) {
            faults.push(format!("{name}: pure file names {word}"));
        }
    }
}

/// First path segments after each `crate::`, those of a braced list included.
fn imports(code: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            out.push(leading_ident(rest));
            continue;
        };
        let mut depth = 0_u32;
        let mut start = Some(0);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = Some(at + 1),
                c if c.is_whitespace() && start == Some(at) => start = Some(at + c.len_utf8()),
                _ => {
                    if let Some(from) = start.take() {
                        out.push(leading_ident(&list[from..]));
                    }
                }
            }
        }
    }
    out
}

fn leading_ident(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .unwrap_or(text)
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("directory is readable") {
        let path = entry.expect("entry is readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
