#!/usr/bin/env bash
# Crashes, writes, vacuums and reads for a long time: the tests of index_crash with
# more rounds. The argument is how many times as many (default 10: 50 crashes under
# writers and vacuum, 30 in builds, and more than a minute of eight writers).

. "$(dirname "$0")/common.sh"

"$REPO/scripts/setup.sh"
choose_postgres
choose_user
cd "$REPO"
export PG_SIGHT_MINILM=$MINILM PG_SIGHT_SOAK=${1:-10}
[ "$IS_ROOT" = no ] || export PG_SIGHT_TEST_USER=$RUN_AS
"$REPO/scripts/install.sh"
cargo test --release -p pg_sight_tests --test index_crash -- --test-threads 1
