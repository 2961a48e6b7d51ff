#!/usr/bin/env python3
"""Compares direct connections, pgbouncer, haproxy and Slackwater in one interleaved run; prints Markdown.

Everything is started here, on free ports, in a temporary directory: one PostgreSQL server and the three
proxies in front of it. Each round runs every target once, in turn, so that a busy machine disturbs all alike.
Needs only Python's standard library, pgbench, openssl, pgbouncer and haproxy (`make setup`).

BENCH_SECONDS   seconds per run (3)             BENCH_ROUNDS    rounds; medians are printed (3)
BENCH_CLIENTS   numbers of clients (1,8,32)     BENCH_MODES     query modes (simple,extended,prepared)
BENCH_TLS       plain,tls                       BENCH_TARGETS   direct,pgbouncer,haproxy,slackwater
BENCH_IDLE      idle clients for the memory table, 0 for none (1000)
"""

import base64
import datetime
import glob
import hashlib
import hmac
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
USER, PASSWORD, DATABASE = "bench", "bench-secret", "bench"
SERVICE_PASSWORD = "service-secret"
SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
IDLE = int(os.environ.get("BENCH_IDLE", "1000"))
TICK = os.sysconf("SC_CLK_TCK")


def listed(name, default):
    return [word for word in os.environ.get(name, default).split(",") if word]


TARGETS = listed("BENCH_TARGETS", "direct,pgbouncer,haproxy,slackwater")
CLIENTS = [int(n) for n in listed("BENCH_CLIENTS", "1,8,32")]
MODES = listed("BENCH_MODES", "simple,extended,prepared")
SECURITY = listed("BENCH_TLS", "plain,tls")


def newest_binaries():
    found = glob.glob("/usr/lib/postgresql/*/bin/pgbench")
    if not found:
        sys.exit("pgbench is missing: run `make setup`")
    return os.path.dirname(max(found, key=lambda p: int(re.search(r"/(\d+)/bin", p).group(1))))


BIN = newest_binaries()


def program(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    return path or sys.exit(f"{name} is missing: run `make setup`")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Place:
    """The temporary directory and the account that servers run under (root may not)."""

    def __init__(self, account="postgres"):
        self.dir = tempfile.mkdtemp(prefix="slackwater-bench-")
        self.account = pwd.getpwnam(account) if os.geteuid() == 0 else None
        self.children = {}
        self.give(self.dir)

    def give(self, path):
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(name), 0o600)
        self.give(self.path(name))
        return self.path(name)

    def options(self, unprivileged):
        if unprivileged and self.account:
            return dict(user=self.account.pw_uid, group=self.account.pw_gid, extra_groups=[])
        return {}

    def start(self, name, command, unprivileged=True):
        log = open(self.path(name + ".log"), "w", encoding="utf-8")
        self.children[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self.options(unprivileged)
        )

    def run(self, command, **more):
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **self.options(True), **more)
        if done.returncode:
            sys.exit(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def pid(self, name):
        return self.children[name].pid

    def stop(self, name):
        child = self.children.pop(name)
        child.kill()
        child.wait()

    def end(self):
        for name, child in self.children.items():
            child.send_signal(signal.SIGQUIT if name == "postgres" else signal.SIGKILL)
        for child in self.children.values():
            child.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def wait_for(what, ready, log):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.02)
    with open(log, encoding="utf-8") as file:
        sys.exit(f"{what} is not ready: {file.read()[-3000:]}")


def start_postgres(place):
    port = free_port()
    data = place.path("data")
    password = place.write("password", "admin-secret\n")
    place.run([f"{BIN}/initdb", "-N", "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}", "-D", data])
    place.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        + ["-keyout", place.path("tls.key"), "-out", place.path("tls.crt")]
    )
    os.chmod(place.path("tls.key"), 0o600)
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": place.dir,
        "max_connections": 200,
        "shared_buffers": "256MB",
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": place.path("tls.crt"),
        "ssl_key_file": place.path("tls.key"),
    }
    command = [f"{BIN}/postgres", "-D", data]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    place.start("postgres", command)
    admin = dict(os.environ, PGPASSWORD="admin-secret", PGSSLMODE="disable")

    def psql(sql, check=True):
        command = [f"{BIN}/psql", "-XAtqh", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres", "-c", sql]
        done = subprocess.run(command, capture_output=True, text=True, env=admin, check=False)
        if check and done.returncode:
            sys.exit(done.stderr)
        return done.stdout.strip() if done.returncode == 0 else None

    wait_for("PostgreSQL", lambda: psql("select 1", check=False) == "1", place.path("postgres.log"))
    psql(f"create role {USER} login password '{PASSWORD}'")
    psql(f"create role slackwater superuser login password '{SERVICE_PASSWORD}'")
    psql(f"create database {DATABASE} owner {USER}")
    subprocess.run(pgbench(port) + ["-i", "-q", "-s", "10"], check=True, capture_output=True, env=environment("plain"))
    return port, psql(f"select rolpassword from pg_authid where rolname = '{USER}'")


def accepts(port):
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def start_pgbouncer(place, server, verifier):
    port = free_port()
    users = place.write("users.txt", f'"{USER}" "{verifier}"\n')
    place.write(
        "pgbouncer.ini",
        f"""[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = session
default_pool_size = 90
max_client_conn = 5000
client_tls_sslmode = allow
client_tls_cert_file = {place.path("tls.crt")}
client_tls_key_file = {place.path("tls.key")}
server_tls_sslmode = disable
log_connections = 0
log_disconnections = 0
""",
    )
    place.start("pgbouncer", [program("pgbouncer"), place.path("pgbouncer.ini")])
    wait_for("pgbouncer", lambda: accepts(port), place.path("pgbouncer.log"))
    return port


def start_haproxy(place, server):
    port = free_port()
    place.write(
        "haproxy.cfg",
        f"""global
    maxconn 5000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen pg
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{server}
""",
    )
    place.start("haproxy", [program("haproxy"), "-db", "-f", place.path("haproxy.cfg")])
    wait_for("haproxy", lambda: accepts(port), place.path("haproxy.log"))
    return port


def start_slackwater(place, server):
    port, admin = free_port(), free_port()
    built = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    binary = os.path.join(built, "release/slackwater")
    place.write(
        "proxy.toml",
        f"""state_dir = "{place.path("state")}"
[listen.postgres]
address = ["127.0.0.1:{port}"]
tls = "prefer"
[tls]
certificate = "{place.path("tls.crt")}"
private_key = "{place.path("tls.key")}"
[admin]
address = "127.0.0.1:{admin}"
[clusters.bench]
engine = "postgres"
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


def pgbench(port):
    return [f"{BIN}/pgbench", "-h", "127.0.0.1", "-p", str(port), "-U", USER, DATABASE]


def environment(security):
    mode = "require" if security == "tls" else "disable"
    return dict(os.environ, PGPASSWORD=PASSWORD, PGSSLMODE=mode, PGCHANNELBINDING="disable", LC_ALL="C")


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def measure(port, pid, mode, clients, security):
    """One run: transactions per second, p50 and p99 in microseconds, the proxy's CPU per transaction. None:
    the machine was so busy that the log-ins took all of the time."""
    with tempfile.TemporaryDirectory(prefix="slackwater-bench-log-") as logs:
        command = pgbench(port) + ["-n", "-S", "-M", mode, "-c", str(clients), "-j", str(min(clients, 2))]
        command += ["-T", str(max(1, round(SECONDS))), "-l", f"--log-prefix={logs}/t"]
        before = cpu_seconds(pid) if pid else 0.0
        done = subprocess.run(command, capture_output=True, text=True, env=environment(security), check=False)
        used = cpu_seconds(pid) - before if pid else 0.0
        if done.returncode or "number of failed transactions: 0" not in done.stdout:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        latencies = []
        for name in glob.glob(f"{logs}/t*"):
            with open(name, encoding="utf-8") as file:
                latencies.extend(int(line.split(" ", 3)[2]) for line in file)
    latencies.sort()
    count = len(latencies)
    if not count:
        return None
    tps = float(re.search(r"^tps = ([0-9.]+)", done.stdout, re.M).group(1))
    p50, p99 = latencies[count // 2], latencies[min(count - 1, count * 99 // 100)]
    return tps, p50, p99, used / count * 1e6


def run(target, *arguments):
    for _ in range(5):
        result = measure(*arguments)
        if result:
            return result
        print(f"{target}: not one transaction in {SECONDS:g} s; once more", file=sys.stderr)
    sys.exit("the machine is too busy: raise BENCH_SECONDS")


def compare(ports, pids):
    for security in SECURITY:
        for mode in MODES:
            for clients in CLIENTS:
                runs = {target: [] for target in ports}
                for number in range(ROUNDS):
                    order = list(ports)
                    order = order[number % len(order):] + order[: number % len(order)]
                    for target in order:
                        runs[target].append(run(target, ports[target], pids[target], mode, clients, security))
                medians = {t: [statistics.median(column) for column in zip(*r)] for t, r in runs.items()}
                for target, (tps, p50, p99, cpu) in medians.items():
                    of = lambda name, column, value: (
                        f"{value / medians[name][column]:.2f}" if medians.get(name, [0] * 4)[column] else "-"
                    )
                    own = f"{cpu:.1f}" if pids[target] else "-"
                    ratio = of("pgbouncer", 3, cpu) if pids[target] else "-"
                    print(
                        f"| {security} | {mode} | {clients} | {target} | {tps:,.0f} | {of('direct', 0, tps)} "
                        f"| {p50:,.0f} | {p99:,.0f} | {own} | {ratio} |",
                        flush=True,
                    )


def send(stream, tag, body):
    stream.sendall(tag + struct.pack("!I", len(body) + 4) + body)


def receive(stream):
    def exactly(count):
        out = b""
        while len(out) < count:
            piece = stream.recv(count - len(out))
            if not piece:
                raise ConnectionError("closed by the other side")
            out += piece
        return out

    head = exactly(5)
    return head[:1], exactly(struct.unpack("!I", head[1:])[0] - 4)


_salted = {}


def salted_password(salt, rounds):
    key = (salt, rounds)
    if key not in _salted:
        _salted[key] = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(salt), rounds)
    return _salted[key]


def idle_client(port, security, context):
    """A client that has logged in by SCRAM and does nothing."""
    stream = socket.create_connection(("127.0.0.1", port), 30)
    if security == "tls":
        stream.sendall(struct.pack("!II", 8, 80877103))
        if stream.recv(1) != b"S":
            raise ConnectionError("no TLS")
        stream = context.wrap_socket(stream, server_hostname="localhost")
    body = struct.pack("!I", 196608) + f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
    stream.sendall(struct.pack("!I", len(body) + 4) + body)
    nonce = base64.b64encode(os.urandom(18)).decode()
    first = f"n=,r={nonce}"
    while True:
        tag, body = receive(stream)
        if tag == b"E":
            raise ConnectionError(body.decode(errors="replace"))
        if tag == b"Z":
            return stream
        if tag != b"R":
            continue
        kind = struct.unpack("!I", body[:4])[0]
        if kind == 10:
            text = ("n,," + first).encode()
            send(stream, b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(text)) + text)
        elif kind == 11:
            server = body[4:].decode()
            fields = dict(part.split("=", 1) for part in server.split(","))
            final = f"c=biws,r={fields['r']}"
            salted = salted_password(fields["s"], int(fields["i"]))
            client_key = hmac.digest(salted, b"Client Key", "sha256")
            stored = hashlib.sha256(client_key).digest()
            signature = hmac.digest(stored, ",".join((first, server, final)).encode(), "sha256")
            proof = bytes(a ^ b for a, b in zip(client_key, signature))
            send(stream, b"p", f"{final},p={base64.b64encode(proof).decode()}".encode())


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))


def idle_memory(place, start):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    print(f"\n| memory per idle client ({IDLE:,} clients), KiB | plain | TLS |\n|---|---|---|")
    for target in (t for t in ("pgbouncer", "slackwater") if t in TARGETS):
        cells = []
        for security in ("plain", "tls"):
            # A process of its own: what earlier clients left behind would be used again.
            place.stop(target)
            port = start[target]()
            # What the first clients make grow is not theirs.
            warm = [idle_client(port, security, context) for _ in range(20)]
            time.sleep(2)
            before = resident(place.pid(target))
            clients = [idle_client(port, security, context) for _ in range(IDLE)]
            time.sleep(3)
            cells.append(f"{(resident(place.pid(target)) - before) / IDLE:.1f}")
            for client in warm + clients:
                client.close()
        print(f"| {target} | {cells[0]} | {cells[1]} |", flush=True)


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"model name\s*:\s*(.*)", file.read())
    return f"{model.group(1) if model else 'unknown CPU'}, {os.cpu_count()} cores"


def version(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].strip()


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    place = Place()
    try:
        server, verifier = start_postgres(place)
        start = {
            "direct": lambda: server,
            "pgbouncer": lambda: start_pgbouncer(place, server, verifier),
            "haproxy": lambda: start_haproxy(place, server),
            "slackwater": lambda: start_slackwater(place, server),
        }
        ports = {target: start[target]() for target in TARGETS}
        pids = {target: place.pid(target) if target != "direct" else None for target in TARGETS}
        asked = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("BENCH_")]
        print(f"Command: `{' '.join(asked + ['make bench'])}` (benches/compare.py)  ")
        print(f"Machine: {machine()}  ")
        print(f"Date: {datetime.date.today()}  ")
        versions = [version([f"{BIN}/postgres", "--version"])]
        if "pgbouncer" in ports:
            versions.append(version([program("pgbouncer"), "--version"]))
        if "haproxy" in ports:
            versions.append(version([program("haproxy"), "-v"]))
        print(f"Versions: {'; '.join(versions)}  ")
        print(
            f"pgbench select-only, scale 10, {SECONDS:g} s a run, {ROUNDS} rounds in turns, medians. All on one "
            "machine, clients and server included. pgbouncer pools sessions and ends TLS, as Slackwater does; "
            "haproxy cannot end TLS behind an SSLRequest, so its TLS rows pass through to the server's own TLS.\n"
        )
        print(
            "| | mode | clients | target | tps | of direct | p50 us | p99 us | proxy CPU us per tx | of pgbouncer |"
            "\n|---|---|---|---|---|---|---|---|---|---|",
            flush=True,
        )
        compare(ports, pids)
        if IDLE:
            idle_memory(place, start)
    finally:
        place.end()


if __name__ == "__main__":
    main()
