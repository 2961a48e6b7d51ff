#!/usr/bin/env python3
"""The same comparison for MariaDB: direct connections, haproxy and Slackwater in one interleaved run; prints Markdown.

Everything is started here, on free ports, in a temporary directory. Needs only Python's standard library, sysbench,
MariaDB's server, openssl and haproxy (`make setup`).

BENCH_SECONDS, BENCH_ROUNDS, BENCH_IDLE     as in compare.py
BENCH_MYSQL_THREADS   numbers of clients (1,16)
BENCH_MYSQL_TESTS     oltp_point_select,oltp_read_write
BENCH_MYSQL_MODES     text,prepared
BENCH_MYSQL_TARGETS   direct,haproxy,slackwater
"""

import datetime
import hashlib
import os
import re
import resource
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time
import urllib.request

from compare import (
    IDLE,
    ROOT,
    ROUNDS,
    SECONDS,
    Place,
    accepts,
    cpu_seconds,
    free_port,
    listed,
    machine,
    program,
    resident,
    start_haproxy,
    version,
    wait_for,
)

USER, PASSWORD, DATABASE = "bench", "bench-secret", "bench"
SERVICE_PASSWORD = "service-secret"
THREADS = [int(n) for n in listed("BENCH_MYSQL_THREADS", "1,16")]
TESTS = listed("BENCH_MYSQL_TESTS", "oltp_point_select,oltp_read_write")
MODES = listed("BENCH_MYSQL_MODES", "text,prepared")
TARGETS = listed("BENCH_MYSQL_TARGETS", "direct,haproxy,slackwater")
TABLES = ["--tables=4", "--table-size=10000"]


def start_mariadb(place):
    port = free_port()
    data = place.path("data")
    place.run(
        [program("mariadb-install-db"), "--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
        + [f"--datadir={data}"]
    )
    statements = place.write(
        "setup.sql",
        f"CREATE DATABASE {DATABASE};\n"
        f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}';\n"
        f"GRANT ALL ON {DATABASE}.* TO {USER}@'%';\n"
        f"CREATE USER slackwater@'%' IDENTIFIED BY '{SERVICE_PASSWORD}';\n"
        "GRANT ALL ON *.* TO slackwater@'%';\n",
    )
    place.start(
        "mariadb",
        [program("mariadbd"), "--no-defaults", f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1"]
        + [f"--socket={place.path('socket')}", f"--pid-file={place.path('mariadb.pid')}", "--skip-name-resolve"]
        + ["--innodb-buffer-pool-size=256M", "--innodb-flush-log-at-trx-commit=0", "--max-connections=300"]
        + ["--plugin-load-add=metadata_lock_info", f"--init-file={statements}"],
    )
    wait_for("MariaDB", lambda: accepts(port), place.path("mariadb.log"))
    return port


def start_slackwater(place, server):
    port, admin = free_port(), free_port()
    built = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    binary = os.path.join(built, "release/slackwater")
    place.write(
        "proxy.toml",
        f"""state_dir = "{place.path("state")}"
[listen.mysql]
address = ["127.0.0.1:{port}"]
tls = "prefer"
[admin]
address = "127.0.0.1:{admin}"
[clusters.bench]
engine = "mariadb"
default = true
[clusters.bench.auth]
service_user = "slackwater"
service_password = "{SERVICE_PASSWORD}"
[clusters.bench.sessions]
max_server_connections = 90
[clusters.bench.provider]
kind = "static"
endpoints = [{{ capacity = 2, address = "127.0.0.1:{server}" }}, {{ capacity = 4, address = "127.0.0.1:{server}" }}]
server_tls = "disable"
""",
    )
    place.start("slackwater", [binary, "serve", "--config", place.path("proxy.toml")])

    def ready():
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=2) as answer:
            return answer.status == 200

    wait_for("slackwater", ready, place.path("slackwater.log"))
    return port


def sysbench(port, *more):
    return [
        program("sysbench"),
        "--db-driver=mysql",
        "--mysql-host=127.0.0.1",
        f"--mysql-port={port}",
        f"--mysql-user={USER}",
        f"--mysql-password={PASSWORD}",
        f"--mysql-db={DATABASE}",
        *TABLES,
        *more,
    ]


def fill(port):
    done = subprocess.run(sysbench(port, "oltp_read_write", "prepare"), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def measure(port, pid, test, mode, threads):
    """One run: transactions per second, average and p99 in microseconds, the proxy's CPU per transaction."""
    prepared = "auto" if mode == "prepared" else "disable"
    command = sysbench(
        port,
        f"--threads={threads}",
        f"--time={max(1, round(SECONDS))}",
        f"--db-ps-mode={prepared}",
        "--percentile=99",
        test,
        "run",
    )
    before = cpu_seconds(pid) if pid else 0.0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    used = cpu_seconds(pid) - before if pid else 0.0
    found = re.search(r"transactions:\s+(\d+)\s+\(([0-9.]+) per sec", done.stdout)
    if done.returncode or not found or not re.search(r"reconnects:\s+0 ", done.stdout):
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    latency = {name: float(value) for name, value in re.findall(r"(avg|99th percentile):\s+([0-9.]+)", done.stdout)}
    count = int(found.group(1))
    return float(found.group(2)), latency["avg"] * 1e3, latency["99th percentile"] * 1e3, used / max(1, count) * 1e6


def compare(ports, pids):
    for test in TESTS:
        for mode in MODES:
            for threads in THREADS:
                runs = {target: [] for target in ports}
                for number in range(ROUNDS):
                    order = list(ports)
                    order = order[number % len(order):] + order[: number % len(order)]
                    for target in order:
                        runs[target].append(measure(ports[target], pids[target], test, mode, threads))
                medians = {t: [statistics.median(column) for column in zip(*r)] for t, r in runs.items()}
                for target, (tps, mean, p99, cpu) in medians.items():
                    direct = medians.get("direct", [0])[0]
                    haproxy = medians.get("haproxy", [0] * 4)[3]
                    own = f"{cpu:.1f}" if pids[target] else "-"
                    ratio = f"{cpu / haproxy:.2f}" if pids[target] and haproxy else "-"
                    of_direct = f"{tps / direct:.2f}" if direct else "-"
                    print(
                        f"| {test} | {mode} | {threads} | {target} | {tps:,.0f} | {of_direct} "
                        f"| {mean:,.0f} | {p99:,.0f} | {own} | {ratio} |",
                        flush=True,
                    )


def exactly(stream, count):
    out = b""
    while len(out) < count:
        piece = stream.recv(count - len(out))
        if not piece:
            raise ConnectionError("closed by the other side")
        out += piece
    return out


def receive(stream):
    head = exactly(stream, 4)
    return head[3], exactly(stream, int.from_bytes(head[:3], "little"))


def send(stream, number, body):
    stream.sendall(len(body).to_bytes(3, "little") + bytes([number]) + body)


def native_proof(nonce):
    stage1 = hashlib.sha1(PASSWORD.encode()).digest()
    stage2 = hashlib.sha1(stage1).digest()
    return bytes(a ^ b for a, b in zip(stage1, hashlib.sha1(nonce + stage2).digest()))


def idle_client(port, security, context):
    """A client that has logged in with mysql_native_password and does nothing."""
    stream = socket.create_connection(("127.0.0.1", port), 30)
    number, greeting = receive(stream)
    at = greeting.index(b"\0", 1) + 5
    nonce = greeting[at : at + 8]
    at += 8 + 1 + 2 + 1 + 2 + 2 + 1 + 10
    nonce += greeting[at : at + 12]
    # LONG_PASSWORD, CONNECT_WITH_DB, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION, PLUGIN_AUTH
    flags = 0x1 | 0x8 | 0x200 | 0x2000 | 0x8000 | 0x80000
    if security == "tls":
        flags |= 0x800
        number += 1
        send(stream, number, struct.pack("<IIB23x", flags, 1 << 24, 45))
        stream = context.wrap_socket(stream, server_hostname="localhost")
    proof = native_proof(nonce)
    body = struct.pack("<IIB23x", flags, 1 << 24, 45) + USER.encode() + b"\0" + bytes([len(proof)]) + proof
    send(stream, number + 1, body + DATABASE.encode() + b"\0mysql_native_password\0")
    while True:
        number, answer = receive(stream)
        if answer[:1] == b"\0":
            return stream
        if answer[:1] != b"\xfe":
            raise ConnectionError(answer.decode(errors="replace"))
        _, _, data = answer[1:].partition(b"\0")
        send(stream, number + 1, native_proof(data[:20]))


def idle_memory(place, start):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    cells = []
    for security in ("plain", "tls"):
        # A process of its own: what earlier clients left behind would be used again.
        place.stop("slackwater")
        port = start["slackwater"]()
        # What the first clients make grow is not theirs.
        warm = [idle_client(port, security, context) for _ in range(20)]
        time.sleep(2)
        before = resident(place.pid("slackwater"))
        clients = [idle_client(port, security, context) for _ in range(IDLE)]
        time.sleep(3)
        cells.append(f"{(resident(place.pid('slackwater')) - before) / IDLE:.1f}")
        for client in warm + clients:
            client.close()
    print(f"\n| memory per idle client ({IDLE:,} clients), KiB | plain | TLS |\n|---|---|---|")
    print(f"| slackwater | {cells[0]} | {cells[1]} |", flush=True)


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    place = Place("mysql")
    try:
        server = start_mariadb(place)
        start = {
            "direct": lambda: server,
            "haproxy": lambda: start_haproxy(place, server),
            "slackwater": lambda: start_slackwater(place, server),
        }
        ports = {target: start[target]() for target in TARGETS}
        pids = {target: place.pid(target) if target != "direct" else None for target in TARGETS}
        fill(server)
        asked = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("BENCH_")]
        print(f"Command: `{' '.join(asked + ['make bench'])}` (benches/compare_mysql.py)  ")
        print(f"Machine: {machine()}  ")
        print(f"Date: {datetime.date.today()}  ")
        versions = [version([program("mariadbd"), "--version"]), version([program("sysbench"), "--version"])]
        if "haproxy" in ports:
            versions.append(version([program("haproxy"), "-v"]))
        print(f"Versions: {'; '.join(versions)}  ")
        print(
            f"sysbench, 4 tables of 10,000 rows, {SECONDS:g} s a run, {ROUNDS} rounds in turns, medians. All on one "
            "machine, clients and server included. haproxy passes bytes on and knows no session.\n"
        )
        print(
            "| test | mode | threads | target | tps | of direct | mean us | p99 us | proxy CPU us per tx | of haproxy |"
            "\n|---|---|---|---|---|---|---|---|---|---|",
            flush=True,
        )
        compare(ports, pids)
        if IDLE and "slackwater" in TARGETS:
            idle_memory(place, start)
    finally:
        place.end()


if __name__ == "__main__":
    main()
