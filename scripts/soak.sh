#!/usr/bin/env bash
# Crashes, kills, cancels, writes and reads for a long time.
#
#   scripts/soak.sh [TIMES] [MINUTES]
#
# TIMES is how many times as much as usual the tests of index_crash do (default 10: 50
# crashes under writers and vacuum, 30 in builds, and more than a minute of eight writers),
# MINUTES how long sessions work while the model server is disturbed (default 20).

. "$(dirname "$0")/common.sh"

"$REPO/scripts/setup.sh"
choose_postgres
choose_user
cd "$REPO"
export PG_SIGHT_MINILM=$MINILM PG_SIGHT_SOAK=${1:-10} PG_SIGHT_SOAK_SECONDS=$((${2:-20} * 60))
[ "$IS_ROOT" = no ] || export PG_SIGHT_TEST_USER=$RUN_AS
"$REPO/scripts/install.sh"
cargo test --release -p pg_sight_tests --test index_crash --test server_soak -- --test-threads 1 --nocapture
