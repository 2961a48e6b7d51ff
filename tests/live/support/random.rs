//! Random protocol scripts, in the lines of [`super::script`]: the same seed gives the same script on every
//! machine.

use std::fmt::Write as _;

/// Numbers that look random (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Messages that are sent together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segment {
    /// Lines of the script language, one message each.
    pub(crate) lines: Vec<String>,
    /// May leave something that blocks a move, until DISCARD ALL.
    pub(crate) blocks: bool,
    /// DISCARD ALL stands alone in it.
    pub(crate) cleans: bool,
}

/// A random script of some segments, and what puts the session right again at its end.
pub(crate) fn script(random: &mut Random) -> Vec<Segment> {
    let mut out = Vec::new();
    for _ in 0..=random.below(7) {
        out.push(segment(random));
    }
    // Out of any COPY, batch and transaction.
    out.push(lines(&["f \"end\"", "S"]));
    out.push(lines(&["S"]));
    out.push(lines(&["Q rollback"]));
    // Off again, or DISCARD ALL could be refused.
    out.push(lines(&["Q \"reset session authorization\""]));
    out.push(Segment {
        cleans: true,
        ..lines(&["Q \"discard all\""])
    });
    out
}

fn lines(lines: &[&str]) -> Segment {
    Segment {
        lines: lines.iter().map(|&l| l.to_owned()).collect(),
        ..Segment::default()
    }
}

/// Statements that answer with rows, the same on both sides. Settings named `transaction_*` are left out where
/// sources are shown: a finished transaction leaves its SET behind as a source, which says nothing of the session.
const ROWS: &[&str] = &[
    "select 1",
    "select a, b from t order by a, b",
    "select count(*), sum(a) from t",
    "values (1, 'x'), (2, null)",
    "select generate_series(1, 5)",
    "select repeat('x', 5000)",
    "select g, repeat('y', 900) from generate_series(1, 40) g",
    "show search_path",
    "show datestyle",
    "show timezone",
    "show transaction isolation level",
    "show work_mem",
    "select current_setting('app.x', true), current_setting('app.y', true)",
    "select current_user, session_user, current_schemas(false)",
    "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by 1",
    "select name, is_holdable from pg_cursors where name <> '' order by 1",
    "select name, setting, source from pg_settings where source in ('session', 'client') and name !~ '^transaction_' order by 1",
    "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = 'app')",
    "select timestamp '2024-03-04 05:06:07', interval '1 day 2 hours', date '2024-12-31'",
    "select 1.5::float8 / 3, '\\x01ff'::bytea, 'é'",
    "select nextval('s')",
    "insert into t values (1, 'one') returning a",
    "update t set a = a + 1 returning a, b",
    "delete from t where a > 5 returning *",
    "table u",
    "select pg_listening_channels()",
    "explain (costs off) select * from t where a = 1",
    "fetch 2 from c",
    "fetch all from c",
    "select noisy(3)",
];

/// Statements that answer with a tag only.
const COMMANDS: &[&str] = &[
    "insert into t values (7, 'seven')",
    "insert into t select g, 'g' from generate_series(1, 3) g",
    "insert into u values (1)",
    "insert into u values (1), (2)",
    "insert into d values (1)",
    "insert into d values (1), (1)",
    "delete from u",
    "truncate t",
    "set work_mem = '1MB'",
    "set work_mem = '2MB'",
    "reset work_mem",
    "set local work_mem = '3MB'",
    "set search_path = pg_catalog, public",
    "set search_path = other, public",
    "reset search_path",
    "set datestyle = 'german, dmy'",
    "set intervalstyle = iso_8601",
    "set timezone = 'Asia/Tokyo'",
    "set local timezone = 'America/New_York'",
    "set extra_float_digits = -3",
    "set bytea_output = escape",
    "set client_encoding = latin1",
    "set client_encoding = utf8",
    "set standard_conforming_strings = off",
    "set standard_conforming_strings = on",
    "set client_min_messages = error",
    "set client_min_messages = debug1",
    "set statement_timeout = '1h'",
    "set lock_timeout = '59min'",
    "set idle_in_transaction_session_timeout = '1h'",
    "set default_transaction_isolation = serializable",
    "set default_transaction_read_only = on",
    "set default_transaction_read_only = off",
    "set transaction read only",
    "set transaction isolation level repeatable read",
    "set session characteristics as transaction isolation level repeatable read",
    "set app.x = 'one'",
    "set app.x = 'two'",
    "set local app.x = 'local'",
    "reset app.x",
    "select set_config('app.y', 'why', false)",
    "select set_config('app.y', 'local', true)",
    "set role helper",
    "reset role",
    "set role none",
    "set session authorization app",
    "reset session authorization",
    "reset all",
    "set nosuch = 1",
    "set work_mem = 'much'",
    "savepoint sp",
    "rollback to sp",
    "release sp",
    "prepare p1 as select $1::int + 1",
    "prepare p2(text) as insert into t values (9, $1)",
    "execute p1(3)",
    "execute p2('pp')",
    "deallocate p1",
    "deallocate a",
    "deallocate all",
    "deallocate prepare p2",
    "discard plans",
    "discard sequences",
    "unlisten *",
    "notify ch, 'payload'",
    "notify other_channel",
    "select pg_notify('ch', 'by function')",
    "close all",
    "close c",
    "move 1 in c",
    "do $$begin raise notice 'heard'; end$$",
    "do $$begin perform set_config('work_mem', '4MB', false); end$$",
    "do $$begin raise warning 'w' using errcode = '01234', hint = 'h'; end$$",
    "create table x (a int primary key)",
    "drop table x",
    "drop table if exists x",
    "alter table t add column c int",
    "alter table t drop column c",
    "lock table t",
    "select pg_advisory_xact_lock(5)",
    "analyze t",
    "checkpoint",
    "vacuum u",
    "create unique index concurrently nosuch on nosuch (a)",
    "prepare transaction 'tx'",
    "set constraints all immediate",
    "select pg_advisory_unlock_all()",
    "select lo_unlink(4711)",
    "select lo_create(4711)",
];

const ERRORS: &[&str] = &[
    "select 1/0",
    "selec",
    "select * from nope",
    "select $1",
    "select fails('by function')",
    "insert into u values (null)",
    "select 'x'::int",
    "select (",
    "fetch all from nope",
    "execute nope",
    "select 1/a from t",
    "select generate_series(1, 3) / (generate_series(1, 3) - 2)",
];

const TRANSACTION: &[&str] = &[
    "begin",
    "begin",
    "begin isolation level serializable",
    "start transaction read only",
    "commit",
    "commit",
    "rollback",
    "end",
    "commit and chain",
    "rollback and chain",
    "abort",
];

/// What blocks a move.
const BLOCKERS: &[&str] = &[
    "create temp table tt (a int)",
    "create temp table tt as select 1 as a",
    "create temp view tv as select 1",
    "listen ch",
    "listen other_channel",
    "select pg_advisory_lock(1)",
    "select pg_try_advisory_lock_shared(2)",
    "select pg_advisory_unlock(1)",
    "insert into tt values (1)",
    "table tt",
    "drop table tt",
    "declare c cursor with hold for select g from generate_series(1, 5) g",
    "do $$begin execute 'create temp table if not exists tt (a int)'; end$$",
    // Not restorable: it is part of a longer text.
    "select 1; prepare p3 as select 3",
    "prepare p4 as select 4; select 4",
];

const CURSORS: &[&str] = &[
    "declare c cursor for select g from generate_series(1, 5) g",
    "declare c scroll cursor for select a from t order by a",
];

fn statement(random: &mut Random) -> &'static str {
    match random.below(20) {
        0..6 => random.pick(ROWS),
        6..13 => random.pick(COMMANDS),
        13..15 => random.pick(ERRORS),
        15..18 => random.pick(TRANSACTION),
        _ => random.pick(CURSORS),
    }
}

fn quote(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{escaped}\"")
}

fn query(sql: &str) -> String {
    format!("Q {}", quote(sql))
}

fn segment(random: &mut Random) -> Segment {
    let mut out = Segment::default();
    match random.below(100) {
        0..24 => out.lines.push(query(statement(random))),
        24..30 => {
            let count = 1 + random.below(4);
            let all: Vec<_> = (0..count).map(|_| statement(random)).collect();
            // A PREPARE among others can't be run again.
            out.blocks = count > 1 && all.iter().any(|sql| sql.starts_with("prepare p"));
            out.lines.push(query(&all.join("; ")));
        }
        30..32 => out
            .lines
            .push(query(random.pick(&["", " ", ";", "-- nothing", ";;"]))),
        32..37 => {
            out.blocks = true;
            out.lines.push(query(random.pick(BLOCKERS)));
        }
        37..40 => {
            out.cleans = true;
            out.lines.push(query("discard all"));
        }
        40..52 => {
            for _ in 0..=random.below(3) {
                whole_extended(random, &mut out);
                if random.percent(80) {
                    out.lines.push("S".to_owned());
                }
            }
            if random.percent(85) {
                out.lines.push("S".to_owned());
            } else if random.percent(70) {
                out.lines.push("H".to_owned());
            }
        }
        52..76 => {
            for _ in 0..=random.below(9) {
                loose(random, &mut out);
            }
            if random.percent(60) {
                out.lines.push("S".to_owned());
            }
        }
        76..82 => copy_in(random, &mut out),
        82..87 => copy_in_extended(random, &mut out),
        87..91 => out.lines.push(query(random.pick(&[
            "copy t to stdout",
            "copy (select g, 1/(g-3) from generate_series(1, 5) g) to stdout",
            "copy (select 1) to stdout; select 2",
            "copy t to stdout with (format csv, header)",
            "copy t to stdout (format binary)",
            "copy nope to stdout",
        ]))),
        91..95 => out.lines.push(function_call(random)),
        95..98 => odd(random, &mut out),
        _ => {
            // A pipeline of simple queries.
            for _ in 0..=random.below(5) {
                out.lines.push(query(statement(random)));
            }
        }
    }
    out
}

const NAMES: &[&str] = &["-", "-", "a", "b", "c d"];
const PORTALS: &[&str] = &["-", "-", "-", "p", "q"];

fn name(random: &mut Random, of: &[&'static str]) -> String {
    let name = random.pick(of);
    if name.contains(' ') {
        quote(name)
    } else {
        name.to_owned()
    }
}

/// Parameters that a text has, for a Bind that fits.
fn values(sql: &str) -> &'static [&'static str] {
    match sql {
        s if s.contains("$2") => &["4", "four"],
        s if s.contains("$1") => &["3"],
        _ => &[],
    }
}

const WITH_PARAMETERS: &[&str] = &[
    "select $1::int",
    "select $1::text || 'x'",
    "insert into t values ($1, $2)",
    "select a from t where a = $1",
    "select set_config('app.x', $1, false)",
    "select set_config($1, $2, false)",
    "update t set b = $1",
    "select 10 / $1::int",
];

fn bindable(random: &mut Random) -> &'static str {
    match random.below(3) {
        0 => random.pick(WITH_PARAMETERS),
        _ => statement(random),
    }
}

fn whole_extended(random: &mut Random, out: &mut Segment) {
    let sql = bindable(random);
    let statement = name(random, NAMES);
    out.lines.push(format!("P {statement} {}", quote(sql)));
    if random.percent(40) {
        out.lines.push(format!("D S {statement}"));
    }
    let mut bind = format!("B - {statement}");
    for value in values(sql) {
        let _ = write!(bind, " {}", quote(value));
    }
    out.lines.push(bind);
    if random.percent(60) {
        out.lines.push("D P -".to_owned());
    }
    let rows = if random.percent(25) {
        1 + random.below(3)
    } else {
        0
    };
    out.lines.push(format!("E - {rows}"));
    if rows > 0 && random.percent(50) {
        out.lines.push("E - 0".to_owned());
    }
    if statement != "-" && random.percent(40) {
        out.lines.push(format!("C S {statement}"));
    }
}

/// Any extended message, whether it makes sense or not.
fn loose(random: &mut Random, out: &mut Segment) {
    let line = match random.below(30) {
        0..6 => {
            let sql = bindable(random);
            format!("P {} {}", name(random, NAMES), quote(sql))
        }
        6..12 => {
            let mut line = format!("B {} {}", name(random, PORTALS), name(random, NAMES));
            for _ in 0..random.below(3) {
                line.push_str(random.pick(&[" 3", " \"x y\"", " app.z"]));
            }
            line
        }
        12..17 => format!(
            "E {} {}",
            name(random, PORTALS),
            random.pick(&["0", "0", "1", "2"])
        ),
        17..19 => format!("D S {}", name(random, NAMES)),
        19..21 => format!("D P {}", name(random, PORTALS)),
        21..23 => format!("C S {}", name(random, NAMES)),
        23 => format!("C P {}", name(random, PORTALS)),
        24 => "H".to_owned(),
        25..27 => "S".to_owned(),
        27 => query(statement(random)),
        28 => function_call(random),
        _ => random.pick(&["d \"stray\\n\"", "c", "f stray"]).to_owned(),
    };
    out.lines.push(line);
}

fn function_call(random: &mut Random) -> String {
    // abs(int4), upper(text), int4div, one that there is not, a wrong number of arguments.
    random
        .pick(&[
            "F 1397 -5",
            "F 871 word",
            "F 154 6 2",
            "F 154 6 0",
            "F 999999 1",
            "F 1397 1 2",
            "F 1397 x",
        ])
        .to_owned()
}

fn copy_data(random: &mut Random, out: &mut Segment) {
    for _ in 0..random.below(4) {
        out.lines.push(
            random
                .pick(&[
                    "d \"1\\tone\\n\"",
                    "d \"2\\ttwo\\n3\\t\\\\N\\n\"",
                    "d \"4\\tfo\"",
                    "d \"ur\\n\"",
                    "d \"bad\\tbad\\n\"",
                    "d \"5\\n\"",
                    "d \"\"",
                    "d \"\\\\.\\n\"",
                    "H",
                    "S",
                ])
                // Tabs are written as such.
                .replace("\\t", "\t"),
        );
    }
    out.lines
        .push(random.pick(&["c", "c", "c", "f \"no more\""]).to_owned());
}

fn copy_statement(random: &mut Random) -> &'static str {
    random.pick(&[
        "copy t from stdin",
        "copy t from stdin",
        "copy t(a, b) from stdin with (format csv)",
        "copy guarded from stdin",
        "copy deferred from stdin",
        "copy refused from stdin",
        "copy nope from stdin",
    ])
}

fn copy_in(random: &mut Random, out: &mut Segment) {
    let sql = copy_statement(random);
    let sql = match random.below(4) {
        0 => format!("{sql}; select 'behind'"),
        1 => format!("select 'before'; {sql}"),
        _ => sql.to_owned(),
    };
    out.lines.push(query(&sql));
    copy_data(random, out);
    if random.percent(20) {
        out.lines.push(query("select 'next'"));
    }
    if random.percent(10) {
        out.lines.push("S".to_owned());
    }
}

fn copy_in_extended(random: &mut Random, out: &mut Segment) {
    out.lines
        .push(format!("P - {}", quote(copy_statement(random))));
    out.lines.push("B - -".to_owned());
    out.lines.push("E - 0".to_owned());
    if random.percent(60) {
        out.lines.push("S".to_owned());
    }
    copy_data(random, out);
    if random.percent(90) {
        out.lines.push("S".to_owned());
    }
    if random.percent(30) {
        out.lines.push(query("select 'next'"));
    }
}

/// What no driver sends.
fn odd(random: &mut Random, out: &mut Segment) {
    let large = |n: usize| format!("select length('{{{n}}}')");
    match random.below(14) {
        0 => out.lines.push("raw ! \"\"".to_owned()),
        1 => out.lines.push("raw H \"x\"".to_owned()),
        2 => out.lines.push("raw S \"x\"".to_owned()),
        3 => out.lines.push("raw P \"a\\0select 1\"".to_owned()),
        4 => out.lines.push("raw B \"\\0a\\0\\0\"".to_owned()),
        5 => out.lines.push("raw E \"\"".to_owned()),
        6 => out.lines.push("raw D \"Xa\\0\"".to_owned()),
        7 => out.lines.push("raw C \"Sa\"".to_owned()),
        8 => out.lines.push("raw Q \"no end\"".to_owned()),
        9 => out.lines.push("raw F \"x\"".to_owned()),
        10 => out.lines.push(format!("Q {}", quote(&large(100_000)))),
        11 => {
            // Too large to keep: it blocks until it is replaced.
            out.blocks = true;
            out.lines.push(format!("P - {}", quote(&large(70_000))));
        }
        12 => out.lines.push(format!("P - {}", quote(&large(20_000)))),
        _ => out.lines.push("raw d \"{20000}\"".to_owned()),
    }
    if random.percent(80) {
        out.lines.push("S".to_owned());
    }
}
