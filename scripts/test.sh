#!/usr/bin/env bash
# All tests, the quick ones first. Arguments go to the cluster tests' cargo test.

. "$(dirname "$0")/common.sh"

"$REPO/scripts/setup.sh"
"$REPO/scripts/setup.sh" examples browser
choose_postgres
choose_user
cd "$REPO"
export PG_SIGHT_MINILM=$MINILM
[ "$IS_ROOT" = no ] || export PG_SIGHT_TEST_USER=$RUN_AS

say "" "Generator of the demo pictures"
(cd tools/demo-captioner && "$PYTHON" -B -m unittest discover -s tests)

say "" "Benchmark of vector indexes"
(cd bench/ann && "$PYTHON" -B -m unittest discover -s tests)

say "" "Crates"
cargo test --release -p sight-protocol -p ivf-store -p faiss-ivf -p sight-models -p cuda-loader -p sight-hub -p pg_sight_server

say "" "Extension and server in PostgreSQL $PG_MAJOR"
"$REPO/scripts/install.sh"
if [ "$PG_CONFIG" = "$DOWNLOADED_18" ]; then
    # The other one that was downloaded, to upgrade from.
    PG='' PG_CONFIG=$DOWNLOADED_16 "$REPO/scripts/install.sh"
    export PG_SIGHT_OLD_PG_CONFIG=$DOWNLOADED_16
fi

say "" "Examples"
(cd examples && "$EXAMPLES_PYTHON" -B -m unittest discover -s tests)

say "" "Scripts of the container"
"$REPO/scripts/container.sh"

say "" "SQL and clusters"
cargo test --release -p pg_sight_tests "$@"
