"""What the Python drivers of MySQL share: a way in, a file to load, and when to stop. A round is printed when it is over."""

import os
import sys
import tempfile
import threading

HOST = os.environ["WORK_HOST"]
PORT = int(os.environ["WORK_PORT"])
USER = os.environ["WORK_USER"]
PASSWORD = os.environ["WORK_PASSWORD"]
DATABASE = os.environ["WORK_DATABASE"]
CA = os.environ["WORK_CA"]
SECOND = ("second", os.environ["WORK_SECOND_PASSWORD"])
TABLE = os.environ["WORK_TABLE"]
TLS = os.environ["WORK_WAY"] != "plain"
COMPRESS = os.environ["WORK_WAY"] == "compressed"

CREATE = f"create table {TABLE} (n int primary key, v varchar(40))"
INSERT = f"insert into {TABLE} values (%s, %s)"
COUNT = f"select count(*), count(distinct n) from {TABLE}"
LARGE = 100_000

_stop = threading.Event()


def _wait_for_end_of_input():
    sys.stdin.read()
    _stop.set()


def begin():
    threading.Thread(target=_wait_for_end_of_input, daemon=True).start()


def going_on():
    return not _stop.is_set()


def round_over(connection):
    print("round", connection, flush=True)


def must_be(found, wanted):
    if found != wanted:
        raise SystemExit(f"found {found!r:.300} instead of {wanted!r:.300}")


def load(cursor, written):
    """LOAD DATA LOCAL, where the server allows it; the number of rows."""
    cursor.execute("select @@local_infile")
    if not cursor.fetchone()[0]:
        return 0
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.writelines(f"{written + i}\tloaded\n" for i in range(50))
        file.flush()
        cursor.execute(f"load data local infile '{file.name}' into table {TABLE}")
    return 50


def finish(written, rows, distinct):
    must_be((rows, distinct), (written, written))
    print("right", flush=True)
