//! What of a probe's answers is in the way.

use super::answers::Answers;
use super::findings::{Detection, Finding, name_some};
use super::grammar::Family;
use super::probe::{LISTS_TEMPORARY, ProbeReader};
use crate::session::blocker::BlockerKind;
use std::collections::BTreeMap;

impl ProbeReader {
    pub(super) fn findings(&self, answers: &Answers) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut find = |kind, detail: &str| {
            out.push(Finding {
                kind,
                detail: detail.to_owned(),
            });
        };
        if answers.status.in_transaction() {
            find(BlockerKind::Transaction, "a transaction is open");
        }
        if let Some((kind, detail)) = &self.held.unkept {
            find(*kind, detail);
        }
        if self.checks {
            return out;
        }
        self.counted(answers, &mut find);
        let count = |name: &str| answers.count(name);
        let mut locks = BTreeMap::<BlockerKind, Vec<String>>::new();
        for (object, name, mode) in &answers.locks {
            // What a transaction locks goes with it.
            if answers.status.in_transaction() && object != "User lock" {
                continue;
            }
            let (kind, detail) = self.lock(
                object,
                name,
                mode,
                count("com_ha_open") > 0,
                count("com_backup_lock") > 0,
            );
            locks.entry(kind).or_default().push(detail);
        }
        for (kind, details) in locks {
            name_some(&mut out, kind, details);
        }
        let temporary = answers
            .temporary
            .iter()
            .map(|t| format!("temporary table {t}"));
        name_some(&mut out, BlockerKind::TempTable, temporary);
        out.extend(
            self.side
                .iter()
                .flat_map(|side| side.findings.iter().cloned()),
        );
        out
    }

    /// What the server's counters tell to have happened, and nothing to be over.
    fn counted(&self, answers: &Answers, find: &mut impl FnMut(BlockerKind, &str)) {
        let count = |name: &str| answers.count(name);
        let lacks = |detection| answers.missing.contains(&detection);
        if lacks(Detection::LockInfo) || lacks(Detection::Service) {
            // Counters tell that it never happened; whether it is over they don't.
            if count("com_ha_open") > 0 {
                find(
                    BlockerKind::Handler,
                    "HANDLER was used, and nothing on this server shows whether it is open",
                );
            }
            let global = [
                "com_flush",
                "com_backup",
                "com_backup_lock",
                "com_lock_instance",
            ];
            if global.into_iter().any(|name| count(name) > 0) {
                find(
                    BlockerKind::GlobalLock,
                    "FLUSH, BACKUP or LOCK INSTANCE was used, and nothing on this server shows whether a lock is held",
                );
            }
        }
        let family = self.grammar.family;
        if family == Family::MariaDb && self.version < LISTS_TEMPORARY && answers.made_temporary() {
            find(
                BlockerKind::TempTable,
                "a temporary table was created, and this version can't show whether it is there: the session is blocked until it is reset",
            );
        }
        if family == Family::MySql && count("com_create_table") > self.held.creates {
            find(
                BlockerKind::TempTable,
                "a stored program created tables, and nothing shows whether they are temporary: the session is blocked until it is reset",
            );
        }
        let unseen = count("com_prepare_sql") > self.held.text_prepares;
        if let Some(side) = &self.side {
            let known = |name: &str| self.held.texts.iter().any(|t| *t.name == *name.as_bytes());
            for name in side.texts.keys().filter(|name| !known(name)) {
                find(
                    BlockerKind::UnnamedState,
                    &format!("prepared statement {name} was made where its text could not be read"),
                );
            }
            // One of those that are known may be another by now.
            if unseen && side.texts.keys().any(|name| known(name)) {
                find(
                    BlockerKind::UnnamedState,
                    "a stored program prepared statements, perhaps under names that were taken",
                );
            }
        } else if unseen {
            find(
                BlockerKind::UnnamedState,
                "a statement was prepared by a stored program",
            );
        }
    }

    /// A lock of MariaDB's metadata_lock_info.
    fn lock(
        &self,
        object: &str,
        name: &str,
        mode: &str,
        handlers: bool,
        backups: bool,
    ) -> (BlockerKind, String) {
        match object {
            "User lock" => (BlockerKind::UserLock, format!("GET_LOCK('{name}')")),
            _ if self.held.tables_locked => (BlockerKind::TableLock, format!("LOCK TABLES {name}")),
            "Table metadata lock" if handlers => {
                (BlockerKind::Handler, format!("HANDLER on {name}"))
            }
            "Table metadata lock" if backups => {
                (BlockerKind::GlobalLock, format!("BACKUP LOCK on {name}"))
            }
            "Table metadata lock" | "Schema metadata lock" => {
                (BlockerKind::TableLock, format!("LOCK TABLES {name}"))
            }
            _ => (
                BlockerKind::GlobalLock,
                format!("{} ({mode})", object.to_lowercase()),
            ),
        }
    }
}
