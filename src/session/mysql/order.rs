//! Session variables: which are state, and in which order they are set.

/// They stand for something that is carried by other means, differ on each connection, or change by themselves.
pub(super) fn is_carried(name: &str) -> bool {
    !matches!(
        name,
        "timestamp"
            | "insert_id"
            | "last_insert_id"
            | "identity"
            | "rand_seed1"
            | "rand_seed2"
            | "pseudo_thread_id"
            | "last_gtid"
            | "in_transaction"
            | "warning_count"
            | "error_count"
            | "statement_id"
            | "external_user"
            | "proxy_user"
            | "gtid_executed"
            | "gtid_purged"
            | "gtid_owned"
            | "gtid_binlog_pos"
            | "gtid_binlog_state"
            | "gtid_current_pos"
            | "gtid_slave_pos"
            | "gtid_seq_no"
            | "wsrep_gtid_seq_no"
            | "max_allowed_packet"
            | "net_buffer_length"
            | "max_user_connections"
            | "session_track_transaction_info"
            // No session has one of its own, MySQL shows them to each, and the promotion of a standby changes them: who
            // logged in ahead has seen those of the standby.
            | "event_scheduler"
            | "read_only"
            | "super_read_only"
            | "innodb_flush_log_at_trx_commit"
            | "sync_binlog"
    )
}

/// They decide how texts are read, so that a restore, which needs them to be known, sets them first and at its end.
pub(super) const MEANING: [&str; 5] = [
    "sql_mode",
    "character_set_client",
    "character_set_results",
    // Each sets the next one as well.
    "character_set_connection",
    "collation_connection",
];

/// They would change what the rest of a restore does.
pub(super) fn is_last(name: &str) -> bool {
    matches!(name, "autocommit" | "gtid_next" | "max_statement_time")
        || name.starts_with("transaction_")
        || name.starts_with("tx_")
}

/// They follow the current database; to set them is deprecated, and needs a right with MySQL.
pub(super) fn follows_database(name: &str) -> bool {
    matches!(name, "character_set_database" | "collation_database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_promotion_changes_is_nobodys_state() {
        for name in [
            "event_scheduler",
            "read_only",
            "super_read_only",
            "innodb_flush_log_at_trx_commit",
            "sync_binlog",
        ] {
            assert!(!is_carried(name), "{name}");
        }
        assert!(is_carried("transaction_read_only"));
    }
}
