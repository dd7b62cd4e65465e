#!/usr/bin/env bash
# Sets up, installs and runs the benchmarks: bench/run.sh, with the arguments given here.

. "$(dirname "$0")/common.sh"

"$REPO/scripts/setup.sh"
choose_postgres
choose_user
"$REPO/scripts/install.sh"
export PG_SIGHT_MINILM=$MINILM PG_SIGHT_VENV=$VENV
[ "$IS_ROOT" = no ] || export PG_SIGHT_TEST_USER=$RUN_AS
if [ -x "$REPO/bench/run.sh" ]; then
    exec "$REPO/bench/run.sh" "$@"
fi
say "" "Benchmarks in bench/:"
find "$REPO/bench" -mindepth 1 -maxdepth 1 -printf '  %f\n' | sort
