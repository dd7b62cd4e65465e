#!/usr/bin/env bash
# Runs the benchmarks in a private cluster that is removed afterwards.
#
#   bench/run.sh                        all, with their defaults
#   bench/run.sh embed [OPTION]...      embed.py
#   bench/run.sh caption [OPTION]...    caption.py
#   bench/run.sh server [OPTION]...     server.py
#   bench/run.sh ann [OPTION]...        ann
#
# --save writes the report to bench/results-NAME.md too, and that of ann with its
# results and plots to bench/ann; --model takes a model's directory or one of the
# sizes minilm, mpnet-base, blip-base and blip-large.
# scripts/bench.sh, or make bench, sets up and installs first.
#
#   PG_SIGHT_BENCH_VENV   a Python environment of yours with requirements.txt,
#                         instead of one that is made in the cache
#   PG_SIGHT_BENCH_PRELOAD   shared_preload_libraries of the cluster

. "$(dirname "$0")/../scripts/cluster.sh"

BENCH=$REPO/bench
WORDNET=$CACHE/bench/wordnet/usr/share/wordnet
PEER_VENV=${PG_SIGHT_BENCH_VENV:-$CACHE/bench/venv}
export PG_SIGHT_MINILM=${PG_SIGHT_MINILM:-$MINILM}

get_wordnet() {
    if [ -f /usr/share/wordnet/data.noun ]; then
        WORDNET=/usr/share/wordnet
    elif [ -f "$WORDNET/data.noun" ]; then
        already "WordNet"
    else
        step wordnet "WordNet (6 MB)" download_wordnet
    fi
}

download_wordnet() {
    command -v apt-get >/dev/null ||
        fail "WordNet's files are not in /usr/share/wordnet" "Put data.noun, .verb, .adj and .adv there."
    local folder=$CACHE/bench/wordnet
    rm -rf "$folder.new"
    mkdir -p "$folder.new"
    cd "$folder.new" || exit
    # An index of packages may be absent, as in an image.
    apt-get download wordnet-base || {
        apt-get update
        apt-get download wordnet-base
    }
    dpkg -x wordnet-base_*.deb .
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}

get_peer() {
    if [ -n "${PG_SIGHT_BENCH_VENV:-}" ] || cmp -s "$BENCH/requirements.txt" "$PEER_VENV/requirements.txt"; then
        already "transformers, torch and FAISS"
    else
        step peer "transformers, torch and FAISS (3 GB, 6 GB on disk)" make_peer
    fi
}

make_peer() {
    # What is there already is kept: only packages of other versions are replaced.
    python3 -m venv "$PEER_VENV"
    "$PEER_VENV/bin/python" -m pip --disable-pip-version-check --no-input install -r "$BENCH/requirements.txt"
    cp "$BENCH/requirements.txt" "$PEER_VENV/requirements.txt"
}

# The functions of cluster.sh work on the cluster that these variables name.
make_cluster() {
    choose_user
    DEMO_HOME=$(mktemp -d "$CACHE/bench/cluster.XXXXXX")
    DATA=$DEMO_HOME/data
    SERVER_LOG=$DEMO_HOME/server.log
    SOCKET=/tmp/pg_sight-$(short_hash "$DEMO_HOME")
    trap discard_cluster EXIT
    trap 'exit 130' INT TERM
    chmod a+rx "$CACHE/bench" "$DEMO_HOME"
    [ "$IS_ROOT" = no ] || chown "$RUN_AS:" "$DEMO_HOME"
    make_socket_folder
    step bench-initdb "Private database cluster" create_cluster
    as_user tee -a "$DATA/postgresql.conf" >/dev/null <<SETTINGS
cluster_name = 'pg_sight bench'
shared_buffers = $(shared_memory)MB
# Nothing in the background while something is measured.
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 8GB
jit = off
shared_preload_libraries = '${PG_SIGHT_BENCH_PRELOAD:-}'
SETTINGS
    # PostgreSQL must not hold the lock.
    step bench-cluster "Start the cluster" start_cluster 8>&-
    export PGHOST=$SOCKET PGUSER=postgres PGDATABASE=postgres
}

# A quarter of the memory, in MB, and at most 8 GB.
shared_memory() { awk '$1 == "MemTotal:" { m = int($2 / 4096); print m < 8192 ? m : 8192 }' /proc/meminfo; }

discard_cluster() {
    if is_running; then
        (stop_cluster) >/dev/null || true
    fi
    rm -rf "$DEMO_HOME" "$SOCKET"
}

# A model of full size with random weights, whose speed is that of trained ones.
get_random_model() {
    local folder=$CACHE/bench/models/$1
    if [ -f "$folder/made" ]; then
        already "Random $1"
    else
        step "random-$1" "Random $1" make_random_model "$1" "$folder"
    fi
}

make_random_model() {
    rm -rf "$2"
    mkdir -p "$(dirname "$2")"
    "$PEER_VENV/bin/python" -B "$REPO/tools/compare/random_model.py" "$1" "$2" --tokenizer "$PG_SIGHT_MINILM"
    # The user who runs PostgreSQL reads it.
    chmod -R a+rX "$CACHE/bench/models"
    touch "$2/made"
}

# with_model OPTION...: sets OPTIONS, in which sizes are replaced by directories.
with_model() {
    local previous='' option
    OPTIONS=()
    for option; do
        if [ "$previous" = --model ]; then
            case $option in
            minilm) option=$PG_SIGHT_MINILM ;;
            mpnet-base | blip-base | blip-large)
                get_peer >&2
                get_random_model "$option" >&2
                option=$CACHE/bench/models/$option
                ;;
            esac
        fi
        previous=$option
        OPTIONS+=("$option")
    done
}

# benchmark NAME REPORT PYTHON OPTION...
benchmark() {
    local name=$1 report=$2 python=$3 option options=()
    shift 3
    for option; do
        [ "$option" != --save ] || option=--save=$BENCH/results-$report.md
        options+=("$option")
    done
    say "" "Benchmark $report" >&2
    "$python" -B "$BENCH/$name.py" "${options[@]}"
}

# Sets PEER_PYTHON to the environment that the options need.
choose_python() {
    PEER_PYTHON=$PEER_VENV/bin/python
    local option
    for option; do
        [ "$option" != --without-peer ] || PEER_PYTHON=$PYTHON
    done
    [ "$PEER_PYTHON" = "$PYTHON" ] || get_peer >&2
}

bench_embed() {
    choose_python "$@"
    # Without a model named both sizes that the project promises something for.
    case " $* " in
    *" --model "*)
        with_model "$@"
        benchmark embed embed "$PEER_PYTHON" --wordnet "$WORDNET" "${OPTIONS[@]}"
        ;;
    *)
        benchmark embed embed "$PEER_PYTHON" --wordnet "$WORDNET" "$@"
        with_model --model mpnet-base --texts 1000 --singles 100 "$@"
        benchmark embed embed-mpnet-base "$PEER_PYTHON" --wordnet "$WORDNET" "${OPTIONS[@]}"
        ;;
    esac
}

bench_caption() {
    choose_python "$@"
    local model=(--model blip-base)
    case " $* " in
    *" --model "*) model=() ;;
    esac
    with_model "${model[@]}" "$@"
    "$PYTHON" "$REPO/tools/demo/draw.py" --count 16 "$CACHE/bench/pictures" >&2
    benchmark caption caption "$PEER_PYTHON" --pictures "$CACHE/bench/pictures" "${OPTIONS[@]}"
}

bench_server() {
    get_peer >&2
    get_random_model blip-base >&2
    step bench-speed "The model in a process of its own" \
        cargo build --release --manifest-path "$REPO/Cargo.toml" -p sight-models --example speed >&2
    "$PYTHON" "$REPO/tools/demo/draw.py" --count 16 "$CACHE/bench/pictures" >&2
    with_model "$@"
    benchmark server server "$PYTHON" --wordnet "$WORDNET" --speed "$CARGO_TARGET_DIR/release/examples/speed" \
        --captioner "$CACHE/bench/models/blip-base" --pictures "$CACHE/bench/pictures" "${OPTIONS[@]}"
}

# The command that restarts the cluster, quoted for a shell.
restart_command() {
    local command=("$(bindir)/pg_ctl" -D "$DATA" -w -m fast -l "$SERVER_LOG" restart)
    [ "$IS_ROOT" = no ] ||
        command=(env HOME=/ setpriv "--reuid=$RUN_AS" "--regid=$(id -g "$RUN_AS")" --init-groups -- "${command[@]}")
    printf '%q ' "${command[@]}"
}

bench_ann() {
    local options=(--cache "$CACHE/bench") option
    [ -z "${DEMO_HOME:-}" ] || options+=(--wordnet "$WORDNET" --restart "$(restart_command)")
    for option; do
        if [ "$option" = --save ]; then
            options+=(--results "$BENCH/ann")
        else
            options+=("$option")
        fi
    done
    get_peer >&2
    say "" "Benchmark ann" >&2
    "$PEER_VENV/bin/python" -B "$BENCH/ann" "${options[@]}"
}

choose_postgres
PYTHON=${PG_SIGHT_VENV:-$VENV}/bin/python
case ${1:-} in
embed | caption | server | ann) benchmarks=("$1") && shift ;;
"" | -*) benchmarks=(embed caption server ann) ;;
*) fail "there is no benchmark \"$1\"; there are embed, caption, server and ann" ;;
esac
# Two at a time would disturb each other.
mkdir -p "$CACHE/bench"
exec 8>"$CACHE/bench/lock"
flock -n 8 || {
    say "Waiting for another benchmark to finish" >&2
    flock 8
}
case " $* " in
*" --report-only "* | *" --help "* | *" -h "*) ;;
*)
    # Standard output belongs to the reports.
    get_wordnet >&2
    make_cluster >&2
    ;;
esac
for name in "${benchmarks[@]}"; do
    "bench_$name" "$@"
done
