#!/usr/bin/env bash
# Fetches the programs of another MariaDB or MySQL for the tests, once, to target/servers, and prints the directory
# that has them.
#   mysql_servers.sh mariadb 11.8
#   mysql_servers.sh mysql 9.7
# They are Debian packages of other releases, unpacked with all that they need, the C library included. What is
# printed has a small script for each program, which runs it through its own dynamic linker: nothing of this machine is
# changed, and nothing on it has to fit.
set -euo pipefail
cd "$(dirname "$0")/.."

what="${1:-} ${2:-}"
case $what in
    "mariadb 11.8") suite=trixie packages=(mariadb-server-core mariadb-client-core mariadb-backup) more=(mariadb-server) ;;
    "mysql 9.7") suite=sid packages=(mysql-server-core mysql-client-core) more=() ;;
    *) echo "no server '$what' is known here" >&2; exit 2 ;;
esac
case $(uname -m) in
    x86_64) linker=lib64/ld-linux-x86-64.so.2 libraries=x86_64-linux-gnu ;;
    aarch64) linker=lib/ld-linux-aarch64.so.1 libraries=aarch64-linux-gnu ;;
    *) echo "no server for $(uname -m) is known here" >&2; exit 2 ;;
esac
for program in apt-get dpkg-deb; do
    command -v "$program" >/dev/null || { echo "these servers are unpacked from Debian packages, and there is no $program" >&2; exit 2; }
done

name=$1-$2
mkdir -p target/servers
exec 9>"target/servers/lock.$name"
flock 9
place=$PWD/target/servers/$name
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fetch() { # directory
    local root=$1 apt=$1/.apt mirror link package
    # The mirror that this machine uses for Debian itself, whichever it is.
    mirror=$(sed -nE 's/^(URIs: *|deb +(\[[^]]*\] *)?)(https?:[^ ]*)( .*)?$/\3/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | grep -m1 -v security || true)
    mkdir -p "$apt"/state/lists/partial "$apt"/cache/archives/partial "$apt"/etc
    : >"$apt/status"
    echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} $suite main" >"$apt/etc/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$apt/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
        -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 -o "APT::Sandbox::User=$(id -un)")
    apt-get "${options[@]}" update -qq >&2
    apt-get "${options[@]}" install -y -qq --download-only --no-install-recommends "${packages[@]}" >/dev/null
    # Of these only the files are wanted (plugins), not what the packages need to be set up.
    for package in "${more[@]}"; do
        (cd "$apt/cache/archives" && apt-get "${options[@]}" download -qq "$package" >&2)
    done
    # One /usr, as Debian has it now.
    mkdir -p "$root"/usr/bin "$root"/usr/sbin "$root"/usr/lib "$root"/usr/lib64
    for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --no-same-owner --keep-directory-symlink --exclude='./usr/share/doc/*'
    done
    rm -rf "$apt"
}

# What a program is told of where its files are, since they are not where it was built for.
wrap() { # directory with the files, place that they will have
    local root=$1 at=$2 bin=$1/programs share program path extra
    mkdir -p "$bin"
    for program in mysqld mysql mysqldump mysqlbinlog mariadbd mariadb mariadb-dump mariadb-binlog mariadb-backup mbstream \
        my_print_defaults resolveip; do
        if [[ -f $root/usr/sbin/$program ]]; then
            path=$at/usr/sbin/$program
        elif [[ -f $root/usr/bin/$program ]]; then
            path=$at/usr/bin/$program
        else
            continue
        fi
        share=$([[ -d $root/usr/share/mariadb ]] && echo mariadb || echo mysql)
        extra=
        case $program in
            mysqld | mariadbd)
                extra="--basedir='$at/usr' --lc-messages-dir='$at/usr/share/$share' --character-sets-dir='$at/usr/share/$share/charsets' --plugin-dir='$at/usr/lib/mysql/plugin'"
                ;;
        esac
        # What says which files are read has to stay the first argument.
        cat >"$bin/$program" <<SCRIPT
#!/bin/sh
case \$1 in
    --no-defaults | --defaults-*) first=\$1; shift ;;
    *) first= ;;
esac
exec '$at/$linker' --library-path '$at/usr/lib/$libraries:$at/usr/lib/mysql/private' '$path' \${first:+"\$first"} $extra "\$@"
SCRIPT
        chmod 755 "$bin/$program"
    done
    if [[ -f $root/usr/bin/mariadb-install-db ]]; then
        # A shell script that looks for everything below one directory.
        mkdir -p "$root/install/bin" "$root/install/sbin"
        for program in my_print_defaults resolveip; do ln -sf ../../programs/$program "$root/install/bin/$program"; done
        ln -sf ../../programs/mariadbd "$root/install/sbin/mariadbd"
        ln -sfn ../usr/share "$root/install/share"
        ln -sfn ../usr/lib "$root/install/lib"
        cat >"$bin/mariadb-install-db" <<SCRIPT
#!/bin/sh
exec sh '$at/usr/bin/mariadb-install-db' "\$@" --basedir='$at/install'
SCRIPT
        chmod 755 "$bin/mariadb-install-db"
    fi
}

if [[ ! -x $place/programs/mysqld && ! -x $place/programs/mariadbd ]]; then
    making=$PWD/target/servers/making.$name
    rm -rf "$making"
    mkdir "$making"
    fetch "$making"
    wrap "$making" "$place"
    rm -rf "$place"
    mv "$making" "$place"
fi
# As root, servers run under an account that may not reach this directory.
if ((EUID == 0)) && id mysql >/dev/null 2>&1 \
    && ! runuser -u mysql -- test -x "$place/$linker"; then
    reach=${TMPDIR:-/tmp}/slackwater-test-servers/$name
    if [[ ! -d $reach ]]; then
        rm -rf "$reach.making"
        mkdir -p "$reach.making"
        cp -a "$place/." "$reach.making"
        rm -rf "$reach.making/programs"
        wrap "$reach.making" "$reach"
        mv "$reach.making" "$reach"
    fi
    place=$reach
fi
echo "$place/programs"
