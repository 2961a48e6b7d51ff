#!/usr/bin/env bash
# Installs what running, testing and measuring need, and nothing that is there already.
#   setup.sh server    PostgreSQL's and MariaDB's programs
#   setup.sh tests     and the drivers of the live tests, under target/drivers
#   setup.sh bench     and the programs to compare with
#   setup.sh fuzz      a nightly toolchain and cargo-fuzz
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-bench}

missing=()
need() { # program-or-test, package
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

if [[ $what != fuzz ]]; then
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
    ls /usr/lib/postgresql/*/bin/pgbench >/dev/null 2>&1 || missing+=(postgresql-contrib)
    ls /usr/lib/postgresql/*/bin/psql >/dev/null 2>&1 || missing+=(postgresql-client)
fi
if [[ $what != fuzz ]]; then
    PATH=$PATH:/usr/sbin:/sbin need mariadbd mariadb-server
    need mariadb mariadb-client
    need mariadb-backup mariadb-backup
fi
need cc build-essential
need cmake cmake
if [[ $what != server && $what != fuzz ]]; then
    need python3 python3
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    need node nodejs
    need npm npm
    need sysbench sysbench
    # The tests of cut networks need it, and root; without either they are skipped.
    PATH=$PATH:/usr/sbin:/sbin need ip iproute2
    # The test of a clock that jumps, too.
    ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing+=(libfaketime)
fi
if [[ $what == bench ]]; then
    PATH=$PATH:/usr/sbin need pgbouncer pgbouncer
    PATH=$PATH:/usr/sbin need haproxy haproxy
    need openssl openssl
fi

if ((${#missing[@]})); then
    if ((EUID == 0)); then
        # The packages' own servers are not wanted: tests and `dev` start theirs.
        mkdir -p /etc/postgresql-common
        [[ -e /etc/postgresql-common/createcluster.conf ]] \
            || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
        # (MariaDB has no such switch: a policy that forbids starts, for as long as this takes.)
        policy=/usr/sbin/policy-rc.d
        if [[ ! -e $policy ]]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q
        apt-get install -qy --no-install-recommends "${missing[@]}"
    else
        echo "These Debian packages are missing. As root:" >&2
        echo "    apt-get install ${missing[*]}" >&2
        exit 2
    fi
fi
command -v cargo >/dev/null || { echo "Rust is missing: install it from https://rustup.rs" >&2; exit 2; }

[[ $what == server ]] && exit 0

if [[ $what == fuzz ]]; then
    rustup run nightly rustc --version >/dev/null 2>&1 \
        || rustup toolchain install nightly --profile minimal
    cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
    exit 0
fi

# The drivers, renewed when their lists change.
drivers=target/drivers
stamp=$(cat tests/drivers/requirements.txt tests/drivers/package.json | sha256sum)
if [[ $(cat "$drivers/stamp" 2>/dev/null) != "$stamp" ]]; then
    rm -rf "$drivers"
    mkdir -p "$drivers"
    python3 -m venv "$drivers/venv"
    "$drivers/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/drivers/requirements.txt
    cp tests/drivers/package.json "$drivers/"
    (cd "$drivers" && npm install --silent --no-audit --no-fund)
    echo "$stamp" >"$drivers/stamp"
fi
