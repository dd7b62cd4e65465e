#!/usr/bin/env bash
# The main job, shown: pictures go in, SQL captions and embeds them, an index
# finds them by meaning. Runs again at any time; what is still valid is kept.

. "$(dirname "$0")/cluster.sh"

PICTURES=300
QUERY="red sneakers"

started=$SECONDS

# Everything that the contents of the demo database depend on.
fingerprint() {
    {
        "$PG_CONFIG" --version
        cat "$("$PG_CONFIG" --pkglibdir)/pg_sight.so" "$(bindir)/pg_sight_server"
        cat "$("$PG_CONFIG" --sharedir)"/extension/pg_sight*
        find "$REPO/demo/captioner" -type f -exec sha256sum {} + | sed 's/ .*//' | sort
        cat "$REPO"/tools/demo/*.py "$REPO"/demo/*.sql "$0"
    } | sha256sum | cut -d' ' -f1
}

# Installing replaced the library under a running cluster, or the cluster is of
# another PostgreSQL: its processes still run the old code.
prepare_cluster() {
    local build=$1
    if [ -f "$DATA/PG_VERSION" ] && [ "$(cat "$DEMO_HOME/pg_config" 2>/dev/null)" != "$PG_CONFIG" ]; then
        remove_cluster
        choose_home
    fi
    make_home
    if [ ! -f "$DEMO_HOME/complete" ]; then
        step initdb "Private database cluster in $DEMO_HOME" create_cluster
        printf '%s\n' "$PG_CONFIG" >"$DEMO_HOME/pg_config"
        touch "$DEMO_HOME/complete"
    fi
    if is_running && [ "$build" != "$(cat "$DEMO_HOME/fingerprint" 2>/dev/null)" ]; then
        step stop "Stop the cluster: it runs an older build" stop_cluster
    fi
    if is_running; then
        already "Database cluster, running"
    else
        step cluster "Start the cluster" start_cluster
    fi
}

create_database() {
    local files
    files=$(demo_dir)
    sql -d postgres -c "DROP DATABASE IF EXISTS $DEMO_DATABASE WITH (FORCE)" \
        -c "CREATE DATABASE $DEMO_DATABASE"
    demo_sql -v captioner="$files/captioner" -v encoder="$MINILM" -f "$REPO/demo/schema.sql"
}

load_pictures() {
    "$PYTHON" "$REPO/tools/demo/load.py" --host "$SOCKET" --dbname "$DEMO_DATABASE" "$DEMO_HOME/pictures"
}

create_index() {
    demo_sql -f "$REPO/demo/index.sql"
}

show() {
    printf '\n%s\n\n' "$1"
    shift
    demo_sql "$@"
}

show_search() {
    local search
    search="SELECT id, description FROM product ORDER BY desc_vec <#> embed('$QUERY') LIMIT 10"
    show "$search;" -c "$search"
    show "Its plan:" -At -c "EXPLAIN (ANALYZE, BUFFERS OFF) $search"
    if ! demo_sql -At -c "EXPLAIN $search" | grep -q product_desc_vec_idx; then
        say "" "Note: the planner did not use the index. With $PICTURES rows it holds reading the table for cheaper."
    fi
    show "The model server behind these functions:" -x -c "SELECT * FROM sight_server_status"
}

closing_words() {
    cat <<END

The captioner of this demo is small and knows only drawn products: about a real
photograph it says confident nonsense. For real pictures download real models,
in psql:

    ALTER SYSTEM SET pg_sight.allow_downloads = on;
    SELECT pg_reload_conf();
    SELECT * FROM sight_model_pull('Salesforce/blip-image-captioning-large');
    SELECT * FROM sight_model_pull('sentence-transformers/all-mpnet-base-v2');
    ALTER DATABASE $DEMO_DATABASE RESET pg_sight.describe_model;
    ALTER DATABASE $DEMO_DATABASE RESET pg_sight.embed_model;

A column takes one encoder's vectors: all-mpnet-base-v2 makes vector(768).

Go on:  make gallery       opens a search page on these pictures in the browser
        make psql          opens psql on this database, or reads SQL from a pipe
        make clean-demo    stops the cluster and removes it
END
}

say "Setting up"
"$REPO/scripts/setup.sh"
choose_postgres
"$REPO/scripts/install.sh"
choose_home
build=$(fingerprint)
prepare_cluster "$build"

say "" "The main job"
"$PYTHON" "$REPO/tools/demo/draw.py" --count "$PICTURES" "$DEMO_HOME/pictures"
if [ "$build" = "$(cat "$DEMO_HOME/fingerprint" 2>/dev/null)" ] && database_exists; then
    already "Database with $PICTURES captioned pictures and their index"
else
    rm -f "$DEMO_HOME/fingerprint"
    step database "Extension, models, table and trigger" create_database
    load_pictures
    step index "Index faiss_ivf on the vectors" create_index
    printf '%s\n' "$build" >"$DEMO_HOME/fingerprint"
fi
show_search
closing_words
say "" "make demo took $((SECONDS - started)) s."
