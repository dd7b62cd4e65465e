#!/usr/bin/env bash
# The search gallery over the demo's pictures, in the browser. Where there is no
# demo yet, makes it. Options go to examples/gallery.py, such as --port 8000.

. "$(dirname "$0")/cluster.sh"

choose_postgres
choose_home
if [ -f "$DATA/PG_VERSION" ]; then
    # What the cluster was made with decides.
    unset PG
    use_cluster_postgres
    is_running || step cluster "Start the demo cluster" start_cluster
fi
# The fingerprint is written when the demo is complete.
if [ ! -f "$DEMO_HOME/fingerprint" ] || ! database_exists; then
    "$REPO/scripts/demo.sh"
    choose_home
fi
"$REPO/scripts/setup.sh" examples
say ""
export PGHOST=$SOCKET PGUSER=postgres PGDATABASE=$DEMO_DATABASE
exec "$EXAMPLES_PYTHON" "$REPO/examples/gallery.py" --open \
    --example "red sneakers" --example "something to drink tea from" \
    --example "striped summer dress" --example "a seat for the living room" "$@"
