//! Provider `static` with two servers of MySQL or MariaDB: what proves that the second one took over from the first with
//! everything that it had.
//!
//! The old server is read-only and the new one's replica by global transaction ids, both its threads run, and the new one has all
//! transactions that it has. A replica that had something else could not follow: its source refuses it (MySQL: error 1236,
//! MariaDB: the same, as long as ids are strict), or it shows as a transaction that the source has not.

use super::gtid::Gtids;
use super::{Rows, ServerQuery};
use crate::backend::{Endpoint, Engine};

/// Of a replica: whether nobody can write, which server it follows, all its transactions.
const MYSQL_OLD: &str = "SELECT @@GLOBAL.super_read_only, \
    (SELECT GROUP_CONCAT(c.SOURCE_UUID) FROM performance_schema.replication_connection_status c \
      JOIN performance_schema.replication_applier_status a USING (CHANNEL_NAME) \
      WHERE c.SERVICE_STATE = 'ON' AND a.SERVICE_STATE = 'ON'), \
    REPLACE(@@GLOBAL.gtid_executed, CHAR(10), '')";
const MYSQL_NEW: &str = "SELECT @@GLOBAL.server_uuid";
const MARIADB_OLD: &str =
    "SELECT @@GLOBAL.read_only, @@GLOBAL.server_id, @@GLOBAL.gtid_current_pos";
const MARIADB_NEW: &str = "SELECT @@GLOBAL.server_id, @@GLOBAL.gtid_current_pos";
const MARIADB_STATUS: &str = "SHOW SLAVE STATUS";

/// In MariaDB's SHOW SLAVE STATUS (the same since 10.0): Slave_IO_Running, Slave_SQL_Running, Master_Server_Id, Using_Gtid.
const RUNNING: [usize; 2] = [10, 11];
const SOURCE: usize = 39;
const USING_GTID: usize = 42;

/// `Err`: why it is not proven.
pub(super) async fn follows(
    query: &dyn ServerQuery,
    from: &Endpoint,
    to: &Endpoint,
) -> Result<(), String> {
    if query.engine() == Engine::Mysql {
        // The old one first: what it had then, the new one has had for longer.
        let old = one_row(query, from, MYSQL_OLD).await?;
        let new = one_row(query, to, MYSQL_NEW).await?;
        mysql_follows(&old, &new)?;
        let there = gtids(old.get(2))?;
        let sql = format!(
            "SELECT GTID_SUBSET('{}', @@GLOBAL.gtid_executed)",
            there.as_str()
        );
        let complete = one_row(query, to, &sql).await?;
        return if text(complete.first()) == "1" {
            Ok(())
        } else {
            Err(LACKS.to_owned())
        };
    }
    let old = one_row(query, from, MARIADB_OLD).await?;
    let status = rows(query, from, MARIADB_STATUS).await?;
    let new = one_row(query, to, MARIADB_NEW).await?;
    mariadb_follows(&old, &status, &new)
}

const LACKS: &str = "the first one has transactions that the second one has not";

fn mysql_follows(old: &[Option<String>], new: &[Option<String>]) -> Result<(), String> {
    if text(old.first()) != "1" {
        return Err(
            "the first one still takes writes of administrators: super_read_only is off".to_owned(),
        );
    }
    let source = text(old.get(1));
    if source.is_empty() || source != text(new.first()) {
        return Err(
            "the first one is not the replica of the second one, or does not follow it".to_owned(),
        );
    }
    Ok(())
}

fn mariadb_follows(
    old: &[Option<String>],
    status: &Rows,
    new: &[Option<String>],
) -> Result<(), String> {
    let [status] = status.as_slice() else {
        return Err("the first one follows no server, or several".to_owned());
    };
    let runs = RUNNING.iter().all(|&at| text(status.get(at)) == "Yes");
    let source = text(status.get(SOURCE));
    if !runs || source != text(new.first()) || source == text(old.get(1)) {
        return Err(
            "the first one is not the replica of the second one, or does not follow it".to_owned(),
        );
    }
    if matches!(text(status.get(USING_GTID)), "" | "No") {
        return Err("the first one follows by file and position, not by GTID".to_owned());
    }
    let (here, there) = (gtids(old.get(2))?, gtids(new.get(1))?);
    if there.reaches(&here) == Some(true) {
        Ok(())
    } else {
        Err(LACKS.to_owned())
    }
}

fn text(value: Option<&Option<String>>) -> &str {
    value.and_then(Option::as_deref).unwrap_or_default()
}

fn gtids(value: Option<&Option<String>>) -> Result<Gtids, String> {
    Gtids::parse(text(value)).ok_or_else(|| "its transactions can't be read".to_owned())
}

async fn rows(query: &dyn ServerQuery, at: &Endpoint, sql: &str) -> Result<Rows, String> {
    let asked = query.query(at, sql).await;
    asked.map_err(|e| format!("{} does not tell where its log ends: {e}", at.address))
}

async fn one_row(
    query: &dyn ServerQuery,
    at: &Endpoint,
    sql: &str,
) -> Result<Vec<Option<String>>, String> {
    let mut rows = rows(query, at, sql).await?;
    rows.pop()
        .ok_or_else(|| format!("{} does not tell where its log ends", at.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const N: usize>(values: [&str; N]) -> Vec<Option<String>> {
        values.map(|v| Some(v.to_owned())).to_vec()
    }

    #[test]
    fn only_the_replica_of_the_new_server_may_be_left() {
        let new = row(["u2"]);
        assert_eq!(mysql_follows(&row(["1", "u2", ""]), &new), Ok(()));
        for (old, why) in [
            (row(["0", "u2", ""]), "super_read_only"),
            (row(["1", "u3", ""]), "not the replica"),
            (row(["1", "u2,u3", ""]), "not the replica"),
            (vec![Some("1".to_owned()), None, None], "not the replica"),
        ] {
            let error = mysql_follows(&old, &new).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_replica_of_mariadb_follows_by_gtid_and_has_nothing_of_its_own() {
        let status = |io: &str, sql: &str, source: &str, gtid: &str| {
            let mut row = vec![None; 44];
            row[RUNNING[0]] = Some(io.to_owned());
            row[RUNNING[1]] = Some(sql.to_owned());
            row[SOURCE] = Some(source.to_owned());
            row[USING_GTID] = Some(gtid.to_owned());
            vec![row]
        };
        let good = status("Yes", "Yes", "2", "Slave_Pos");
        let old = row(["1", "1", "0-2-7"]);
        let new = row(["2", "0-2-9"]);
        assert_eq!(mariadb_follows(&old, &good, &new), Ok(()));
        for (old, status, new, why) in [
            (
                &old,
                status("Connecting", "Yes", "2", "Slave_Pos"),
                &new,
                "does not follow",
            ),
            (
                &old,
                status("Yes", "No", "2", "Slave_Pos"),
                &new,
                "does not follow",
            ),
            (
                &old,
                status("Yes", "Yes", "3", "Slave_Pos"),
                &new,
                "not the replica",
            ),
            (&old, status("Yes", "Yes", "2", "No"), &new, "not by GTID"),
            (
                &row(["1", "2", "0-2-7"]),
                good.clone(),
                &new,
                "not the replica",
            ),
            (&row(["1", "1", "0-1-10"]), good.clone(), &new, "has not"),
            (&old, Vec::new(), &new, "follows no server"),
        ] {
            let error = mariadb_follows(old, &status, new).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
