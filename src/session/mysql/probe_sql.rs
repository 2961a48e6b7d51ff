//! The statements of a probe. ASCII only, single quotes only, no backslash, a LIMIT of their own: the session's
//! settings may be any. What may hold other characters is read as hexadecimal digits.

use super::grammar::Family;
use std::fmt::Write as _;

/// More rows than there are.
pub(super) const ALL: &str = " LIMIT 18446744073709551615";

/// What a fresh login and any other session are asked alike.
pub(super) fn facts(family: Family) -> String {
    let select = "@@timestamp,CONNECTION_ID(),HEX(DATABASE()),HEX(CURRENT_ROLE()),HEX(CURRENT_USER()),@@last_insert_id,@@insert_id LIMIT 1";
    format!("{}{select}", guarded(family))
}

/// A SELECT that no limit of the session's cuts short.
pub(super) const fn guarded(family: Family) -> &'static str {
    match family {
        Family::MariaDb => "SET STATEMENT sql_big_selects=1,max_statement_time=0 FOR SELECT ",
        Family::MySql => "SELECT /*+ SET_VAR(sql_big_selects=1) MAX_EXECUTION_TIME(0) */ ",
    }
}

/// What the server tells to its clients of transactions.
pub(super) const TRACKING: &str = "session_track_transaction_info";

/// Variables that are asked for one by one, without the guard that would change them, and one that no session carries.
pub(super) const fn asked_apart(family: Family) -> &'static [&'static str] {
    const ALL: [&str; 4] = [
        TRACKING,
        "sql_big_selects",
        "max_join_size",
        "max_statement_time",
    ];
    match family {
        Family::MariaDb => &ALL,
        Family::MySql => ALL.split_at(3).0,
    }
}

/// A digest does not tell of it.
pub(super) fn is_apart(name: &str) -> bool {
    asked_apart(Family::MariaDb).contains(&name)
}

pub(super) fn apart(family: Family) -> String {
    let names: Vec<_> = asked_apart(family)
        .iter()
        .map(|name| format!("@@{name}"))
        .collect();
    // It joins nothing. That hint changes no variable.
    let hint = match family {
        Family::MariaDb => "",
        Family::MySql => "/*+ MAX_EXECUTION_TIME(0) */ ",
    };
    format!("SELECT {hint}{} LIMIT 1", names.join(","))
}

/// MariaDB: one value that tells of all these variables whether they have changed. `None`: a name is out of the
/// ordinary.
pub(super) fn digest<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut sql = format!("{}SHA2(CONCAT_WS(','", guarded(Family::MariaDb));
    for name in names {
        let ordinary = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if !name.bytes().all(ordinary) {
            return None;
        }
        // HEX alone would round what has a fraction.
        let _ = write!(sql, ",IFNULL(HEX(CONCAT(@@{name})),'-')");
    }
    sql.push_str("),256) LIMIT 1");
    Some(sql)
}

pub(super) fn variables(family: Family) -> String {
    let select = match family {
        Family::MariaDb => format!("variable_name,HEX(session_value),variable_type {LISTED}"),
        Family::MySql => {
            "variable_name,HEX(variable_value),'' FROM performance_schema.session_variables"
                .to_owned()
        }
    };
    format!("{}{select}{ALL}", guarded(family))
}

/// MariaDB: the session variables.
const LISTED: &str =
    "FROM information_schema.system_variables WHERE variable_scope<>'GLOBAL' AND read_only='NO'";

/// How many session variables a server of MariaDB has: INSTALL PLUGIN may bring more, which no digest tells of that was
/// made before.
pub(super) fn count() -> String {
    format!("SELECT COUNT(*) {LISTED}")
}

/// MariaDB.
pub(super) fn user_variables() -> String {
    let guarded = guarded(Family::MariaDb);
    format!("{guarded}HEX(variable_name) FROM information_schema.user_variables{ALL}")
}

/// MariaDB.
pub(super) fn locks() -> String {
    let guarded = guarded(Family::MariaDb);
    format!(
        "{guarded}lock_mode,lock_type,HEX(table_schema),HEX(table_name) FROM information_schema.metadata_lock_info WHERE thread_id=CONNECTION_ID(){ALL}"
    )
}

/// MariaDB from 11.2 on.
pub(super) fn temporary() -> String {
    let guarded = guarded(Family::MariaDb);
    format!(
        "{guarded}HEX(table_schema),HEX(table_name) FROM information_schema.tables WHERE table_type LIKE 'TEMPORARY%' LIMIT 100"
    )
}

/// Counters of the session: what never happened in it.
const COUNTERS: [&str; 9] = [
    "com_ha_open",
    "com_flush",
    "com_prepare_sql",
    "com_create_table",
    // MariaDB.
    "com_create_temporary_table",
    "com_create_sequence",
    "com_backup",
    "com_backup_lock",
    // MySQL.
    "com_lock_instance",
];

/// Those of them that a server has.
pub(super) fn counted(family: Family) -> impl Iterator<Item = &'static str> {
    COUNTERS
        .into_iter()
        .enumerate()
        .filter(move |(at, _)| *at < 4 || (*at < 8) == (family == Family::MariaDb))
        .map(|(_, name)| name)
}

/// MySQL: SHOW is cut short by the session's own limits; these go, and come back.
pub(super) const UNLIMITED: &str =
    "SET SESSION sql_select_limit=18446744073709551615,SESSION sql_big_selects=1";

/// The limits as they were.
pub(super) fn limited(select_limit: &str, big_selects: &str) -> String {
    format!("SET SESSION sql_select_limit={select_limit},SESSION sql_big_selects={big_selects}")
}

pub(super) fn counters(family: Family) -> String {
    let names: Vec<_> = counted(family).map(|name| format!("'{name}'")).collect();
    let names = names.join(",");
    match family {
        Family::MariaDb => format!(
            "{}variable_name,variable_value FROM information_schema.session_status WHERE variable_name IN ({names}){ALL}",
            guarded(family)
        ),
        Family::MySql => format!("SHOW SESSION STATUS WHERE variable_name IN ({names})"),
    }
}

pub(super) fn clock(family: Family) -> String {
    format!("{}@@timestamp LIMIT 1", guarded(family))
}

/// Values and types of user variables. The names' quotes are doubled already.
pub(super) fn values(family: Family, names: &[&str]) -> String {
    let mut sql = guarded(family).to_owned();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            sql.push(',');
        }
        let name = format!("@{}", quoted(name));
        sql.push_str(&name);
        for function in ["HEX", "CHARSET", "COLLATION"] {
            sql.extend([",", function, "(", &name, ")"]);
        }
    }
    sql.push_str(" LIMIT 1");
    sql
}

/// A name as an identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
