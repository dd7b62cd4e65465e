#!/usr/bin/env bash
# Builds the extension and the model server and installs them into PostgreSQL.
#
#   scripts/install.sh            into PG_CONFIG's PostgreSQL, or the downloaded one
#   SUDO=sudo scripts/install.sh  the same where only root may write there
#   CUDA=1 scripts/install.sh     with a model server for NVIDIA GPUs; see cuda.sh
#   DESTDIR=/folder scripts/install.sh  into a copy of the paths below that folder, for packages

. "$(dirname "$0")/cuda.sh"
choose_postgres
STAGE=$CACHE/stage/pg$PG_MAJOR

build() {
    local server=$CARGO_TARGET_DIR/release/pg_sight_server
    cd "$REPO"
    if [ -n "${CUDA:-}" ]; then
        server=$CUDA_TARGET/release/pg_sight_server
        (build_cuda)
    else
        cargo build --release -p pg_sight_server
    fi
    rm -rf "$STAGE"
    # shellcheck disable=SC2046 # two options
    cargo pgrx package --pg-config "$PG_CONFIG" --out-dir "$STAGE" $(pg_features)
    mkdir -p "$STAGE$(bindir)"
    cp "$server" "$STAGE$(bindir)/"
    # Earlier versions: cargo-pgrx adds the ways from one to the next only.
    cp sql/pg_sight--*.sql "$STAGE$("$PG_CONFIG" --sharedir)/extension/"
}

# Replaces what has changed, each file in one step: a running server keeps the
# library that it has mapped.
install_files() {
    local file target mode
    find "$STAGE" -type f -printf '/%P\n' | while read -r target; do
        file=$STAGE$target
        mode=644
        [ "$target" != "$(bindir)/pg_sight_server" ] || mode=755
        case $target in *.so) mode=755 ;; esac
        target=${DESTDIR:-}$target
        if cmp -s "$file" "$target"; then
            continue
        fi
        echo "$target"
        ${SUDO:-} install -D -m "$mode" "$file" "$target.new"
        ${SUDO:-} mv -f "$target.new" "$target"
    done
}

check_writable() {
    local dir
    for dir in "$(bindir)" "$("$PG_CONFIG" --pkglibdir)" "$("$PG_CONFIG" --sharedir)/extension"; do
        [ -n "${SUDO:-}" ] || [ -n "${DESTDIR:-}" ] || [ -w "$dir" ] ||
            fail "folder $dir cannot be written" \
                "Run it as: make install PG_CONFIG=$PG_CONFIG SUDO=sudo"
    done
}

check_writable
# Another clone may share the cache: one at a time from here on.
exec 8>"$CACHE/install.lock"
flock 8
step build "Extension and model server (the first time ${CUDA:+twice }20 minutes)" build
step install "Install into ${DESTDIR:-PostgreSQL $PG_MAJOR}" install_files
