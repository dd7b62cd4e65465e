#!/usr/bin/env bash
# The demo's private PostgreSQL cluster: reached by a Unix socket only.
#
#   scripts/cluster.sh start | stop | remove | psql [OPTION]...
#
# Other scripts source this file for its functions.

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DEMO_DATABASE=demo

# Sets DEMO_HOME, the folder of cluster and pictures: .demo in the clone, or a
# folder in the cache where the user that runs PostgreSQL cannot reach the
# clone. .demo/location then keeps the choice, in case the cache moves; it
# counts for this clone only, not for a copy of it.
choose_home() {
    local own=$REPO/.demo name
    name=$(short_hash "$REPO")
    choose_user
    if as_user test -x "$REPO"; then
        DEMO_HOME=$own
    else
        DEMO_HOME=$(cat "$own/location" 2>/dev/null || true)
        [ "${DEMO_HOME##*/}" = "$name" ] || DEMO_HOME=$CACHE/clusters/$name
    fi
    DATA=$DEMO_HOME/data
    SERVER_LOG=$DEMO_HOME/server.log
    # A socket's path is limited to 107 bytes.
    SOCKET=$DEMO_HOME/socket
    if [ ${#SOCKET} -gt 80 ]; then
        SOCKET=/tmp/pg_sight-$(short_hash "$DEMO_HOME")
    fi
}

short_hash() { printf '%s' "$1" | sha256sum | cut -c1-12; }

make_home() {
    if [ -d "$DATA" ] && [ "$(stat -c %U "$DATA")" != "$RUN_AS" ]; then
        fail "the demo cluster belongs to user $(stat -c %U "$DATA"), not to $RUN_AS" \
            "Run make clean-demo as the user that made it, or make demo as that user."
    fi
    mkdir -p "$REPO/.demo" "$DEMO_HOME"
    if [ "$DEMO_HOME" != "$REPO/.demo" ]; then
        printf '%s\n' "$DEMO_HOME" >"$REPO/.demo/location"
        chmod a+rx "$(dirname "$DEMO_HOME")"
    fi
    if [ "$IS_ROOT" = yes ]; then
        chmod a+rx "$DEMO_HOME"
        chown "$RUN_AS:" "$DEMO_HOME"
    fi
    make_socket_folder
}

# /tmp is everyone's: a folder there must be ours before it is used.
make_socket_folder() {
    as_user mkdir -m 700 "$SOCKET" 2>/dev/null || true
    if [ -L "$SOCKET" ] || [ "$(stat -c '%F %U' "$SOCKET")" != "directory $RUN_AS" ]; then
        fail "$SOCKET is not a folder of user $RUN_AS"
    fi
}

control() { as_user "$(bindir)/pg_ctl" -D "$DATA" "$@"; }

is_running() { [ -f "$DATA/PG_VERSION" ] && control status >/dev/null 2>&1; }

create_cluster() {
    rm -rf "$DATA"
    as_user "$(bindir)/initdb" -D "$DATA" --username=postgres --auth=trust \
        --encoding=UTF8 --locale=C.UTF-8 --no-sync
    as_user tee -a "$DATA/postgresql.conf" >/dev/null <<END
listen_addresses = ''
unix_socket_directories = '$SOCKET'
unix_socket_permissions = 0700
cluster_name = 'pg_sight demo'
END
}

start_cluster() {
    make_socket_folder
    cd "$DEMO_HOME"
    # A server log of its own for each start keeps the end of it meaningful.
    control -w -t 60 -l "$SERVER_LOG" start || {
        tail -n 20 "$SERVER_LOG"
        return 1
    }
}

stop_cluster() {
    cd "$DEMO_HOME"
    control -w -m fast stop
}

sql() { "$(bindir)/psql" -X -q -h "$SOCKET" -U postgres -v ON_ERROR_STOP=1 "$@"; }

demo_sql() { sql -d "$DEMO_DATABASE" "$@"; }

database_exists() {
    [ "$(sql -d postgres -At -c "SELECT 1 FROM pg_database WHERE datname = '$DEMO_DATABASE'")" = 1 ]
}

# What the cluster was made with decides which PostgreSQL runs it.
use_cluster_postgres() {
    [ -f "$DATA/PG_VERSION" ] || fail "there is no demo cluster yet; make demo creates it"
    [ ! -f "$DEMO_HOME/pg_config" ] || PG_CONFIG=$(cat "$DEMO_HOME/pg_config")
    [ -x "$PG_CONFIG" ] || fail "the PostgreSQL of the demo cluster is gone: $PG_CONFIG" \
        "Run: make clean-demo demo"
}

open_psql() {
    use_cluster_postgres
    # Standard output belongs to the queries.
    is_running || step cluster "Start the demo cluster" start_cluster >&2
    database_exists || fail "the demo database is not there yet; make demo creates it"
    local options=(-h "$SOCKET" -U postgres -d "$DEMO_DATABASE")
    # A script should stop at its first error, a person should not be thrown out.
    [ -t 0 ] || options+=(-X -v ON_ERROR_STOP=1)
    exec "$(bindir)/psql" "${options[@]}" "$@"
}

remove_cluster() {
    if [ -f "$DATA/PG_VERSION" ] && is_running; then
        use_cluster_postgres
        step cluster "Stop the demo cluster" stop_cluster
    fi
    rm -rf "$DEMO_HOME" "$SOCKET" "$REPO/.demo"
    say "  The demo cluster and its pictures are removed."
}

[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

unset PG
choose_postgres
choose_home
case ${1:-} in
start)
    use_cluster_postgres
    is_running || step cluster "Start the demo cluster" start_cluster
    ;;
stop)
    use_cluster_postgres
    ! is_running || step cluster "Stop the demo cluster" stop_cluster
    ;;
remove) remove_cluster ;;
psql)
    shift
    open_psql "$@"
    ;;
*) fail "usage: scripts/cluster.sh start | stop | remove | psql [OPTION]..." ;;
esac
