#!/usr/bin/env bash
# What a container does, without one: entry point, settings by environment, set-up of models,
# health check, and the extension's main functions. PostgreSQL's programs are on the PATH, and
# pg_sight is installed there; whoever runs this may run PostgreSQL.
#
#   docker/tests/container.sh SCRIPTS INITDB ENCODER DEMO
#
#   SCRIPTS  folder of pg_sight-entrypoint and its like
#   INITDB   folder of the scripts for a new cluster
#   ENCODER  folder of the model all-MiniLM-L6-v2
#   DEMO     the folder demo of the repository, or a copy

set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
SCRIPTS=$(cd "$1" && pwd) INITDB=$(cd "$2" && pwd) ENCODER=$3 DEMO=$4
WORK=$(mktemp -d /tmp/pg_sight-container.XXXXXX)
# Quotes, a backslash, a dollar sign and spaces, which none of the shells in between may touch.
DATABASE="shop's \"new\" db"
STRANGE="it's a \"model\" \\ \$HOME \`id\` %s #1"
CHECKS=0
POSTMASTER=

finish() {
    [ -z "$POSTMASTER" ] || stop || true
    rm -rf "$WORK"
}
trap finish EXIT

free_port() {
    local port
    for port in $(shuf -i 20000-32000 -n 50); do
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
}
PORT=$(free_port)

# The environment of a container, and nothing of ours.
container() {
    timeout 300 env -i PATH="$WORK/bin:$SCRIPTS:$PATH" HOME="$WORK" LANG=C.UTF-8 PGDATA="$WORK/data" PGPORT="$PORT" \
        POSTGRES_DB="$DATABASE" INITDB="$INITDB" SOCKETS="$WORK" "$@"
}

# start VARIABLE=VALUE...: the entry point with these variables; returns when PostgreSQL answers.
start() {
    container "$@" setsid pg_sight-entrypoint postgres -c log_min_messages=log >"$WORK/log" 2>&1 &
    POSTMASTER=$!
    local begun=$SECONDS
    until container pg_isready -q -h 127.0.0.1; do
        if ! kill -0 "$POSTMASTER" 2>/dev/null || [ $((SECONDS - begun)) -gt 60 ]; then
            POSTMASTER=
            cat "$WORK/log"
            return 1
        fi
        sleep 0.2
    done
}

stop() {
    container pg_ctl -m fast -w stop >/dev/null
    wait "$POSTMASTER" || true
    POSTMASTER=
}

sql() {
    container PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE="$DATABASE" \
        psql -X -q -At -v ON_ERROR_STOP=1 -v encoder="$ENCODER" -v demo="$DEMO" "$@"
}

# As sessions have it that have called a function: before, it could be of any kind.
setting() { sql -c "LOAD 'pg_sight'" -c "SHOW $1"; }

passed() {
    CHECKS=$((CHECKS + 1))
    printf '  %s\n' "$1"
}

failed() {
    printf 'FAILED: %s\n' "$@" >&2
    tail -n 20 "$WORK/log" >&2 || true
    exit 1
}

# equal WHAT WANTED FOUND
equal() {
    [ "$2" = "$3" ] || failed "$1" "wanted: $2" "found:  $3"
    passed "$1"
}

# refuses WHAT PATTERN COMMAND...: the command fails, with a message that has the pattern.
refuses() {
    local what=$1 pattern=$2 output
    shift 2
    if output=$("$@" 2>&1); then
        failed "$what" "it did not fail: $output"
    fi
    [[ $output =~ $pattern ]] || failed "$what" "its message is another: $output"
    passed "$what"
}

# succeeds WHAT PATTERN COMMAND...: likewise.
succeeds() {
    local what=$1 pattern=$2 output
    shift 2
    output=$("$@" 2>&1) || failed "$what" "$output"
    [[ $output =~ $pattern ]] || failed "$what" "its output is another: $output"
    passed "$what"
}

entry_point() {
    refuses "a misspelt variable is refused" "PG_SIGHT_EMBED_MODLE stands for no setting" \
        container PG_SIGHT_EMBED_MODLE=x pg_sight-entrypoint postgres
    refuses "a value of two lines is refused" "PG_SIGHT_DEVICE holds a control character" \
        container PG_SIGHT_DEVICE=$'cpu\nfsync=off' pg_sight-entrypoint postgres
    succeeds "another command than the server's is left alone" "^hello$" \
        container PG_SIGHT_EMBED_MODLE=x pg_sight-entrypoint echo hello
    refuses "without a database the container is not healthy" "" container pg_sight-health
    refuses "the set-up does not wait for ever" "does not answer after 1 s" \
        container PG_SIGHT_SETUP_WAIT_S=1 pg_sight-setup
}

first_start() {
    start PG_SIGHT_EMBED_MODEL="$STRANGE" PG_SIGHT_DEVICE=cpu PG_SIGHT_DESCRIBE_MODEL= FAISS_IVF_NPROBE=7
    equal "a new cluster has the extension" 1 \
        "$(sql -c "SELECT count(*) FROM pg_extension WHERE extname = 'pg_sight'")"
    equal "a variable is a setting, character for character" "$STRANGE" \
        "$(setting pg_sight.embed_model)"
    equal "an empty variable is none" blip-image-captioning-large \
        "$(setting pg_sight.describe_model)"
    equal "settings of the index are there, too" 7 \
        "$(setting faiss_ivf.nprobe)"
    equal "every setting has its variable, and none more" "$(known_settings)" "$(sql <<'SQL'
LOAD 'pg_sight';
SELECT name FROM pg_settings WHERE name ~ '^(pg_sight|faiss_ivf)\.' ORDER BY name COLLATE "C";
SQL
)"
    succeeds "without models the container is healthy" "model server: " container pg_sight-health
    stop
}

known_settings() {
    # The lists, as the entry point has them.
    # shellcheck disable=SC1090,SC2154
    . <(sed -n '/^PG_SIGHT=(/,/)$/p; /^FAISS_IVF=(/,/)$/p' "$SCRIPTS/pg_sight-entrypoint")
    # shellcheck disable=SC2153
    printf '%s\n' "${PG_SIGHT[@]/#/pg_sight.}" "${FAISS_IVF[@]/#/faiss_ivf.}" | LC_ALL=C sort
}

set_up() {
    local models="encoder=$ENCODER captioner=$DEMO/captioner"
    start PG_SIGHT_EMBED_MODEL=encoder PG_SIGHT_DESCRIBE_MODEL=captioner
    equal "a later start has other settings" encoder \
        "$(setting pg_sight.embed_model)"
    refuses "a model that is not there fails the set-up" "/nowhere" \
        container PG_SIGHT_REGISTER="wrong=/nowhere $models" pg_sight-setup
    equal "the others are registered all the same" "captioner describe,encoder embed" \
        "$(sql -c "SELECT string_agg(name || ' ' || task, ',' ORDER BY name) FROM sight_models")"
    refuses "a name without a directory fails it" "write name=/directory" \
        container PG_SIGHT_REGISTER=encoder pg_sight-setup
    succeeds "the set-up may run again" "Registered" container PG_SIGHT_REGISTER="$models" pg_sight-setup
    # The hub is not asked: the port is one at which nobody listens.
    refuses "a download that fails fails the set-up" "PS013|download|hub" \
        container PGOPTIONS="-c pg_sight.hf_endpoint=http://127.0.0.1:9 -c pg_sight.hf_home=$WORK/hub" \
        PG_SIGHT_PULL="owner/name@main=local" pg_sight-setup
    equal "and allows no others" off "$(setting pg_sight.allow_downloads)"
    sql -c "DROP EXTENSION pg_sight CASCADE"
    refuses "without the extension the container is not healthy" "Run pg_sight-setup" container pg_sight-health
    succeeds "the set-up creates it" "Registered" container PG_SIGHT_REGISTER="$models" pg_sight-setup
}

main_job() {
    sql >/dev/null <<'SQL'
CREATE TABLE golden AS
SELECT i ->> 'greedy_text' AS caption, pg_read_binary_file(:'demo' || '/goldens/' || (i ->> 'file')) AS image
FROM jsonb_array_elements(pg_read_file(:'demo' || '/goldens/goldens.json')::jsonb -> 'items') AS i;
CREATE TABLE product (id serial PRIMARY KEY, image bytea, description text, desc_vec vector(384));
CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image ON product
    FOR EACH ROW EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec');
INSERT INTO product (image) SELECT image FROM golden;
CREATE INDEX ON product USING faiss_ivf (desc_vec vector_ip_ops) WITH (lists = 4);
SQL
    equal "pictures get their captions" "32 of 32" "$(sql -c "SELECT count(*) || ' of ' || (SELECT count(*) FROM golden)
        FROM product p JOIN golden g ON p.image = g.image AND p.description = g.caption")"
    equal "the index finds a description's own row" "t t" "$(sql <<'SQL'
SET enable_seqscan = off;
PREPARE search AS SELECT description FROM product ORDER BY desc_vec <#> embed('a purple lamp on a grey background') LIMIT 1;
CREATE TEMP TABLE plan (line text);
DO $$ DECLARE line text; BEGIN
    FOR line IN EXECUTE 'EXPLAIN EXECUTE search' LOOP INSERT INTO plan VALUES (line); END LOOP;
END $$;
CREATE TEMP TABLE found AS EXECUTE search;
SELECT concat_ws(' ', (SELECT bool_or(line ~ 'Index Scan') FROM plan),
                      (SELECT description = 'a purple lamp on a grey background' FROM found));
SQL
)"
}

health() {
    local server
    succeeds "with a model the container embeds, to be healthy" "embedding of 384 dimensions" \
        container pg_sight-health
    server=$(sql -c "SELECT pid FROM sight_server_status")
    kill -STOP "$server"
    succeeds "a server that does not answer yet is busy" "PS004.*busy" container pg_sight-health
    kill -CONT "$server"
    sql -c "SELECT sight_model_unload('encoder')" >/dev/null
    sql -c "UPDATE sight_model SET directory = '/nowhere' WHERE name = 'encoder'"
    refuses "with a model whose files are gone it is not healthy" "PS01[01]" container pg_sight-health
    stop
    refuses "nor when PostgreSQL has stopped" "127.0.0.1" container pg_sight-health
}

mkdir "$WORK/bin"
cp "$HERE/docker-entrypoint.sh" "$WORK/bin/"
entry_point
first_start
set_up
main_job
health
echo "$CHECKS checks of the container's scripts passed"
