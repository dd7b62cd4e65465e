#!/usr/bin/env bash
# Fails where the files of an image cannot work: a library that is missing, or pgvector.
#
#   PG_MAJOR   major version of PostgreSQL

set -euo pipefail
PG=/usr/lib/postgresql/$PG_MAJOR
SHARE=/usr/share/postgresql/$PG_MAJOR/extension
STATUS=0

complain() {
    echo "error: $*" >&2
    STATUS=1
}

for file in "$PG/bin/pg_sight_server" "$PG/lib/pg_sight.so" "$PG/lib/vector.so" \
    "$SHARE/pg_sight.control" "$SHARE/vector.control"; do
    [ -f "$file" ] || complain "$file is missing"
done
for file in "$PG/bin/pg_sight_server" "$PG/lib/pg_sight.so"; do
    if missing=$(ldd "$file" | grep 'not found'); then
        complain "$file lacks libraries:" "$missing"
    fi
done
exit $STATUS
