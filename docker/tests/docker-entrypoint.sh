#!/usr/bin/env bash
# In tests in place of the base image's entry point, of which pg_sight needs: a cluster is made
# where there is none, options of the command line count then too, scripts of a folder run once,
# and the server takes this process's place.
#
#   INITDB    the folder of scripts
#   PGDATA, PGPORT, POSTGRES_DB, SOCKETS

set -euo pipefail
[ "${1:-}" = postgres ] || exec "$@"
shift
set -- -c "unix_socket_directories=$SOCKETS" "$@"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --auth=trust --encoding=UTF8 --no-sync >/dev/null
    pg_ctl -o "$(printf '%q ' "$@" -c listen_addresses=)" -l "$SOCKETS/initdb.log" -w start >/dev/null
    export PGHOST=$SOCKETS PGUSER=postgres
    psql -X -q -d postgres -v db="$POSTGRES_DB" <<<'CREATE DATABASE :"db"'
    for script in "$INITDB"/*.sql; do
        psql -X -q -v ON_ERROR_STOP=1 -d "$POSTGRES_DB" -f "$script"
    done
    pg_ctl -m fast -w stop >/dev/null
    unset PGHOST PGUSER
fi
exec postgres "$@"
