"""What all Python drivers' scripts share: where to connect, what to print, when to stop."""

import os
import sys
import threading

HOST = os.environ["WORK_HOST"]
PORT = int(os.environ["WORK_PORT"])
USER = os.environ["WORK_USER"]
PASSWORD = os.environ["WORK_PASSWORD"]
DATABASE = os.environ["WORK_DATABASE"]
CA = os.environ["WORK_CA"]

CONNECT = dict(
    host=HOST,
    port=PORT,
    user=USER,
    password=PASSWORD,
    dbname=DATABASE,
    sslmode="verify-full",
    sslrootcert=CA,
)

_stop = threading.Event()
_server = None


def _wait_for_end_of_input():
    sys.stdin.read()
    _stop.set()


def begin():
    threading.Thread(target=_wait_for_end_of_input, daemon=True).start()


def going_on():
    return not _stop.is_set()


def seen(server):
    """Prints the server process's number when it is another than the last."""
    global _server
    if server != _server:
        _server = server
        print("server", server, flush=True)


def finish(written, rows, distinct):
    if not written == rows == distinct:
        raise SystemExit(f"told {written} rows, there are {rows}, {distinct} of them distinct")
    print("right", flush=True)
