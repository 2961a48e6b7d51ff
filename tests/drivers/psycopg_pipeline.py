"""psycopg 3 in pipeline mode: many statements under way, a Sync now and then, one error among them."""

import psycopg
import work

work.begin()
with psycopg.connect(**work.CONNECT, autocommit=True, prepare_threshold=2) as db:
    db.execute("create table work (n int)")
    written = 0
    while work.going_on():
        with db.pipeline() as pipeline:
            for _ in range(20):
                db.execute("insert into work values (%s)", (written,))
                written += 1
                if written % 7 == 0:
                    pipeline.sync()
            server = db.execute("select pg_backend_pid()")
        work.seen(server.fetchone()[0])
        try:
            with db.pipeline():
                db.execute("select 1 / %s", (0,))
                db.execute("insert into work values (-1)")
            raise SystemExit("the division by zero was not told")
        except psycopg.errors.DivisionByZero:
            pass
    rows = db.execute("select count(*), count(distinct n) from work").fetchone()
    work.finish(written, *rows)
