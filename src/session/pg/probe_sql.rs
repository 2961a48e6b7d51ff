//! The SQL text of the probe.

/// Neither the session's isolation level (serializable and deferrable may wait), nor a write.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE";

/// JIT is turned off by its cost: few sessions set that, many set `jit`, whose source must show.
const SHOW_JIT: &str = "SHOW jit_above_cost";
const NO_JIT: &str = "SET LOCAL jit_above_cost = -1";

/// Neutralises a time-out that could end the probe (10 s is far more than it takes) and tells what it was.
/// Longer ones are left alone, so that the settings show with their source.
macro_rules! guard {
    ($name:literal) => {
        concat!(
            "CASE WHEN t.",
            $name,
            " OPERATOR(pg_catalog.>) 0::pg_catalog.int8 AND t.",
            $name,
            " OPERATOR(pg_catalog.<) 10000::pg_catalog.int8 THEN t.",
            $name,
            " END, CASE WHEN t.",
            $name,
            " OPERATOR(pg_catalog.>) 0::pg_catalog.int8 AND t.",
            $name,
            " OPERATOR(pg_catalog.<) 10000::pg_catalog.int8 THEN pg_catalog.set_config('",
            $name,
            "','0',true) END"
        )
    };
}
macro_rules! milliseconds {
    ($name:literal) => {
        concat!(
            "(EXTRACT(epoch FROM pg_catalog.current_setting('",
            $name,
            "')::pg_catalog.interval) OPERATOR(pg_catalog.*) 1000::pg_catalog.numeric)::pg_catalog.int8 AS ",
            $name
        )
    };
}
const GUARD_SQL: &str = concat!(
    "SELECT ",
    guard!("statement_timeout"),
    " FROM (SELECT ",
    milliseconds!("statement_timeout"),
    " OFFSET 0) t"
);
const GUARD_SQL_17: &str = concat!(
    "SELECT ",
    guard!("statement_timeout"),
    ",",
    guard!("transaction_timeout"),
    " FROM (SELECT ",
    milliseconds!("statement_timeout"),
    ",",
    milliseconds!("transaction_timeout"),
    " OFFSET 0) t"
);

/// The beginning of the array: who answers, and the settings that have a source (an open parenthesis).
macro_rules! who_and_settings {
    () => {
        concat!("SELECT pg_catalog.convert_to(pg_catalog.json_build_array(
pg_catalog.pg_backend_pid(), current_user, session_user, pg_catalog.current_setting('role'),
", started_us!(), ",
pg_catalog.pg_is_in_recovery(),
(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(s.name, s.setting, s.source, s.reset_val)) FROM pg_catalog.pg_show_all_settings() s
 WHERE (s.source OPERATOR(pg_catalog.<>) 'default' AND s.source OPERATOR(pg_catalog.=)
 ANY ('{session,client,user,database,database user,global}'::pg_catalog.text[]))
 OR pg_catalog.strpos(s.name, '.') OPERATOR(pg_catalog.>) 0
 OR s.name OPERATOR(pg_catalog.=) 'idle_session_timeout'")
    };
}
macro_rules! prepared {
    () => {
        "(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.name, p.statement, p.parameter_types::pg_catalog.oid[], p.from_sql))
 FROM pg_catalog.pg_prepared_statement() p WHERE p.name OPERATOR(pg_catalog.<>) '_px4'),
"
    };
}

/// One row, one column: a JSON array in UTF-8 as bytea, which no client_encoding can spoil.
/// $1: names of custom settings, $2: who logged in. Functions instead of views: cheaper to plan.
macro_rules! main_sql {
    ($modules:literal) => {
        concat!(
            "WITH r AS MATERIALIZED (SELECT d.setdatabase, d.setrole, d.setconfig FROM pg_catalog.pg_db_role_setting d
 WHERE (d.setdatabase OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR d.setdatabase OPERATOR(pg_catalog.=)
 (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()))
 AND (d.setrole OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR d.setrole OPERATOR(pg_catalog.=)
 pg_catalog.to_regrole(pg_catalog.quote_ident($2))::pg_catalog.oid)),
n AS MATERIALIZED (SELECT pg_catalog.split_part(c,'=',1) AS name FROM r, pg_catalog.unnest(r.setconfig) c)
",
            who_and_settings!(),
            " OR s.name OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT n.name FROM n))),
(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(r.setdatabase, r.setrole, r.setconfig) ORDER BY r.setdatabase, r.setrole) FROM r),
(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(u.name, pg_catalog.current_setting(u.name, true)))
 FROM pg_catalog.unnest($1 OPERATOR(pg_catalog.||) ARRAY(SELECT n.name FROM n WHERE pg_catalog.strpos(n.name, '.') OPERATOR(pg_catalog.>) 0)) u(name)),
",
            prepared!(),
            "(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(l.classid, l.objid, l.objsubid, l.mode)) FROM pg_catalog.pg_lock_status() l
 WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.locktype OPERATOR(pg_catalog.=) 'advisory'),
CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN
(SELECT pg_catalog.json_agg(pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)) FROM pg_catalog.pg_depend d
 WHERE d.refclassid OPERATOR(pg_catalog.=) 2615::pg_catalog.oid AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) END,
(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(k.name, pg_catalog.left(k.statement, 2000),
 (EXTRACT(epoch FROM (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) k.creation_time)) OPERATOR(pg_catalog.*) 1000::pg_catalog.numeric)::pg_catalog.int8))
 FROM pg_catalog.pg_cursor() k WHERE k.is_holdable),
(SELECT pg_catalog.json_agg(x) FROM pg_catalog.pg_listening_channels() x),
(SELECT pg_catalog.json_agg(g.slot_name) FROM pg_catalog.pg_get_replication_slots() g
 WHERE g.temporary AND g.active_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()),
(SELECT pg_catalog.query_to_xml(pg_catalog.format('SELECT %s.dblink_get_connections()', e.extnamespace::pg_catalog.regnamespace), false, false, '')::pg_catalog.text
 FROM pg_catalog.pg_extension e WHERE e.extname OPERATOR(pg_catalog.=) 'dblink'),
",
            $modules,
            ")::pg_catalog.text, 'UTF8')"
        )
    };
}
const MAIN_SQL: &str = main_sql!("NULL");
const MAIN_SQL_18: &str = main_sql!(
    "(SELECT pg_catalog.json_agg(m.file_name) FROM pg_catalog.pg_get_loaded_modules() m)"
);

/// What a fresh login holds, as far as a snapshot has it: the same array with nothing behind the prepared
/// statements. It reads no catalog but those that every query reads, which is what a login right after a
/// server's start pays for, and the one of role and database settings, which every log-in has just read.
pub(super) const CHECK_SQL: &str = concat!(
    who_and_settings!(),
    "),
(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(d.setdatabase, d.setrole, d.setconfig)) FROM pg_catalog.pg_db_role_setting d
 WHERE d.setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())])
 AND d.setrole OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, pg_catalog.to_regrole(pg_catalog.quote_ident(session_user::pg_catalog.text))::pg_catalog.oid])),
(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(u.name, pg_catalog.current_setting(u.name, true))) FROM pg_catalog.unnest($1) u(name)),
",
    prepared!(),
    "NULL, NULL, NULL, NULL, NULL, NULL, NULL)::pg_catalog.text, 'UTF8')"
);

/// The statements of a probe for a server of this version, in order.
pub(super) const fn statements(server_version_num: u32) -> [&'static str; 6] {
    [
        BEGIN,
        SHOW_JIT,
        NO_JIT,
        if server_version_num >= 170_000 {
            GUARD_SQL_17
        } else {
            GUARD_SQL
        },
        if server_version_num >= 180_000 {
            MAIN_SQL_18
        } else {
            MAIN_SQL
        },
        "COMMIT",
    ]
}

/// Finds names of custom settings in a database's functions, policies, views and column defaults: one text
/// column. Any user may run it; 25 to 80 ms, so once per database.
pub const CATALOG_NAMES_SQL: &str = "SELECT DISTINCT pg_catalog.lower(m[1]) FROM (
SELECT prosrc AS src FROM pg_catalog.pg_proc WHERE prosrc ~* '(current_setting|set_config)'
UNION ALL SELECT pg_catalog.pg_get_expr(polqual, polrelid) FROM pg_catalog.pg_policy
UNION ALL SELECT pg_catalog.pg_get_expr(polwithcheck, polrelid) FROM pg_catalog.pg_policy
UNION ALL SELECT pg_catalog.pg_get_expr(adbin, adrelid) FROM pg_catalog.pg_attrdef
UNION ALL SELECT pg_catalog.pg_get_viewdef(oid) FROM pg_catalog.pg_class WHERE relkind IN ('v', 'm') AND relnamespace <> 11
) s, pg_catalog.regexp_matches(src, '(?:current_setting|set_config)\\s*\\(\\s*''([a-z_][a-z0-9_$]*(?:\\.[a-z_][a-z0-9_$]*)+)''', 'gi') m";
