//! Secrets that stand in files of their own: passwords, tokens, and the users file.

use super::document::{Document, Item};
use super::{Secret, read_text};
use crate::backend::Engine;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Fewest characters of an admin token or password file that is not called short.
const SHORT_SECRET: usize = 8;

/// Reads the secret in the file that `item` names: its first line.
pub(super) fn read_secret_file(item: &Item<'_, '_>, doc: &Document<'_>) -> Option<Secret> {
    let path = item.file()?;
    warn_if_open(&item.key, &path, doc);
    let text = read_text(&path)
        .map_err(|message| item.problem(format!("{} {message}", path.display())))
        .ok()?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) {
        item.problem(format!(
            "{} must hold one line, and nothing else",
            path.display()
        ));
        return None;
    }
    if line.len() < SHORT_SECRET {
        doc.warn(
            &item.key,
            format_args!("the secret has fewer than {SHORT_SECRET} characters"),
        );
    }
    Some(Secret::new(line.to_owned()))
}

/// Reads a users file: one `name = "secret"` per line, in TOML.
pub(super) fn read_users(
    item: &Item<'_, '_>,
    doc: &Document<'_>,
    engine: Engine,
) -> Option<(PathBuf, Vec<(String, Secret)>)> {
    let path = item.file()?;
    warn_if_open(&item.key, &path, doc);
    let text: Zeroizing<String> = read_text(&path)
        .map_err(|message| item.problem(format!("{} {message}", path.display())))
        .ok()?;
    let file = Document::new(&text, PathBuf::new());
    let mut users = Vec::new();
    for (name, at, entry) in file
        .root()
        .map(super::document::Section::entries)
        .unwrap_or_default()
    {
        let limit = if engine.speaks_mysql() { 80 } else { 63 };
        if name.is_empty() || name.len() > limit || name.contains('\0') {
            let message = format!("a user name has 1 to {limit} bytes");
            file.problem(Some(at), &name, message);
        }
        let Some(secret) = entry.non_empty().map(Secret::new) else {
            continue;
        };
        let checked = if engine.speaks_mysql() {
            check_mysql_secret(secret.reveal())
        } else {
            check_secret(secret.reveal())
        };
        if let Err(message) = checked {
            entry.problem(message);
        }
        users.push((name, secret));
    }
    let (problems, _) = file.finish();
    for problem in &problems {
        item.problem(format!(
            "{}:{}: {}: {}",
            path.display(),
            problem.line,
            problem.key,
            problem.message
        ));
    }
    if users.is_empty() && problems.is_empty() {
        item.problem(format!("{} names no user", path.display()));
    }
    users.sort_by(|a, b| a.0.cmp(&b.0));
    Some((path, users))
}

/// What looks like a verifier must be one, or a typing error would make it a password.
fn check_secret(secret: &str) -> Result<(), &'static str> {
    use base64::Engine as _;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
    if let Some(rest) = secret.strip_prefix("SCRAM-SHA-256$") {
        let parts = rest.split_once('$').and_then(|(head, keys)| {
            let (iterations, salt) = head.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let iterations: u32 = iterations.parse().ok()?;
            let salt = base64(salt)?;
            let (stored, server) = (base64(stored)?, base64(server)?);
            Some(iterations > 0 && !salt.is_empty() && stored.len() == 32 && server.len() == 32)
        });
        if parts != Some(true) {
            return Err(
                "is not a SCRAM verifier; it reads SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey, as in pg_authid.rolpassword",
            );
        }
    } else if let Some(hash) = secret.strip_prefix("md5").filter(|h| h.len() == 32) {
        // PostgreSQL takes anything else that begins with md5 as a password too.
        if !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("is not an md5 hash; it reads md5 and 32 hexadecimal digits");
        }
    }
    Ok(())
}

/// The same for MySQL and MariaDB.
fn check_mysql_secret(secret: &str) -> Result<(), &'static str> {
    if let Some(hash) = secret.strip_prefix('*') {
        // As long as a hash and no hash: a digit was lost.
        let hexadecimal = hash.bytes().all(|b| b.is_ascii_hexdigit());
        if hash.len() == 40 && !hexadecimal
            || hexadecimal && (36..=44).contains(&hash.len()) && hash.len() != 40
        {
            return Err(
                "is not a mysql_native_password hash; it reads * and 40 hexadecimal digits, as in mysql.user",
            );
        }
    } else if secret.starts_with("SCRAM-SHA-256$") {
        return Err("is a verifier of PostgreSQL");
    }
    Ok(())
}

#[cfg(unix)]
fn warn_if_open(key: &str, path: &Path, doc: &Document<'_>) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map(|m| m.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o007 != 0) {
        doc.warn(
            key,
            format_args!(
                "every user of this machine can read {}: chmod o= it",
                path.display()
            ),
        );
    }
}
