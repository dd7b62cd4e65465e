#!/usr/bin/env bash
# Checks the code for each PostgreSQL from 14 to 18 whose server headers are at hand: PG_CONFIG's,
# those that were downloaded, and Debian's (packages postgresql-server-dev-15 and its like).
#
#   scripts/versions.sh [MAJOR...]  all of them, or those only

. "$(dirname "$0")/common.sh"

# The pg_config of a major version that has its headers, or nothing.
find_pg_config() {
    local candidate
    for candidate in "${PG_CONFIG:-}" "$DOWNLOADED_18" "$DOWNLOADED_16" "/usr/lib/postgresql/$1/bin/pg_config"; do
        if [ -x "$candidate" ] && [ "$(pg_major "$candidate")" = "$1" ] &&
            [ -f "$("$candidate" --includedir-server)/postgres.h" ]; then
            printf '%s' "$candidate"
            return
        fi
    done
}

cd "$REPO"
[ $# -gt 0 ] || set -- 14 15 16 17 18
skipped=
for major in "$@"; do
    found=$(find_pg_config "$major")
    if [ -z "$found" ]; then
        skipped="$skipped $major"
        continue
    fi
    say "" "cargo clippy for PostgreSQL $major, by $found"
    # With all crates as make lint has it, so that others are not checked again.
    PGRX_PG_CONFIG_PATH=$found cargo clippy --release --workspace --all-targets \
        --no-default-features --features "pg$major" -- -D warnings
done
[ -z "$skipped" ] || say "" "no server headers at hand, left out: PostgreSQL$skipped"
