"""psycopg 3, blocking: autocommit, transactions, prepared statements, a server-side cursor, COPY."""

import psycopg
import work

work.begin()
with psycopg.connect(**work.CONNECT, autocommit=True, prepare_threshold=2) as db:
    assert db.pgconn.ssl_in_use
    db.execute("create table work (n int)")
    written = 0
    while work.going_on():
        for _ in range(5):
            db.execute("insert into work values (%s)", (written,))
            written += 1
        with db.transaction():
            db.execute("insert into work values (%s)", (written,))
            with db.cursor("named") as cursor:
                cursor.execute("select generate_series(1, 30)")
                assert len(cursor.fetchmany(10)) == 10
            db.execute("insert into work values (%s)", (written + 1,))
        written += 2
        with db.cursor().copy("copy work from stdin") as copy:
            copy.write_row((written,))
        written += 1
        work.seen(db.execute("select pg_backend_pid()").fetchone()[0])
    rows = db.execute("select count(*), count(distinct n) from work").fetchone()
    work.finish(written, *rows)
