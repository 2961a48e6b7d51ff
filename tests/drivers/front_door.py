"""libpq's newest ways in: direct TLS, protocol 3.2, channel binding demanded. Says what it found, for the test to read."""

import sys
import threading
import time

import psycopg
import work

ways = dict(
    direct=dict(sslnegotiation="direct", min_protocol_version="3.2"),
    asked=dict(sslnegotiation="postgres", max_protocol_version="latest"),
    old=dict(max_protocol_version="3.0"),
)
for name, options in ways.items():
    with psycopg.connect(
        **work.CONNECT, **options, channel_binding="require", autocommit=True
    ) as db:
        version = db.pgconn.full_protocol_version
        assert db.pgconn.ssl_in_use
        started = threading.Event()

        def cancel_soon(db=db):
            started.wait()
            # The statement may not have arrived yet: a cancel of nothing does nothing.
            while not finished.is_set():
                db.cancel_safe()
                finished.wait(0.05)

        finished = threading.Event()
        helper = threading.Thread(target=cancel_soon)
        helper.start()
        try:
            started.set()
            db.execute("select pg_sleep(600)")
            print("not cancelled")
        except psycopg.errors.QueryCanceled:
            pass
        finally:
            finished.set()
            helper.join()
        # A cancel that was on its way may hit the next statement.
        while True:
            try:
                assert db.execute("select 42").fetchone() == (42,)
                break
            except psycopg.errors.QueryCanceled:
                time.sleep(0.01)
        print(name, version)
sys.stdout.flush()
