#!/usr/bin/env bash
# The steps of docker/Dockerfile in plain Debian 13, on machines without a container engine:
# PostgreSQL 17 and pgvector are Debian's there, where the image has those of its base. There
# are three systems, as the Dockerfile has stages: base, a copy to build in, and a copy that
# becomes the image. As root on a Debian system with debootstrap.
#
#   scripts/chroot.sh test          make the systems, build, install, and run
#                                   docker/tests/container.sh in the image
#   scripts/chroot.sh suite [ARGUMENT]...
#                                   the tests in SQL and on clusters (pgrx-tests) on that
#                                   PostgreSQL; arguments go to cargo test
#   scripts/chroot.sh shell SYSTEM  a shell in base, build or image
#   scripts/chroot.sh remove        delete them
#
#   PG_SIGHT_CHROOT         their folder, by default chroot in the cache: 6 GB
#   PG_SIGHT_CHROOT_MIRROR  where Debian is downloaded from, if not from debootstrap's default
#
# Rust's toolchain is this machine's, seen from there; so are the settings of apt and the
# certificates of the hosts that are downloaded from. The systems stay, and with them what cargo
# has built; the image is made anew each time.

. "$(dirname "$0")/common.sh"

ROOT=${PG_SIGHT_CHROOT:-$CACHE/chroot}
MIRROR=${PG_SIGHT_CHROOT_MIRROR:-}
RELEASE=trixie
PG_OF_RELEASE=17
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt

# What the base image brings: PostgreSQL without a cluster, pgvector, a folder of scripts.
make_base() {
    rm -rf "$ROOT/base" "$ROOT/base.new"
    mkdir -p "$ROOT"
    debootstrap --variant=minbase "$RELEASE" "$ROOT/base.new" ${MIRROR:+"$MIRROR"}
    # Proxies and the like.
    apt-config dump --format '%f "%v";%n' Acquire | grep -E '^Acquire::(https?|Check-).*".+"' \
        >"$ROOT/base.new/etc/apt/apt.conf.d/90host" || true
    cp /etc/resolv.conf "$ROOT/base.new/etc/resolv.conf"
    cp "$CERTIFICATES" "$ROOT/base.new/etc/host-certificates.crt"
    mkdir -p "$ROOT/base.new/etc/postgresql-common"
    echo "create_main_cluster = false" >"$ROOT/base.new/etc/postgresql-common/createcluster.conf"
    inside base.new apt-get update
    inside base.new apt-get install -y --no-install-recommends "postgresql-$PG_OF_RELEASE" \
        "postgresql-$PG_OF_RELEASE-pgvector"
    mv "$ROOT/base.new" "$ROOT/base"
}

# inside SYSTEM COMMAND...: with mounts and processes that are gone when it ends.
inside() {
    local system=$ROOT/$1
    shift
    # shellcheck disable=SC2016 # for the shell that has those mounts
    ROOT=$system CARGO_FROM=${CARGO_HOME:-$HOME/.cargo} RUSTUP_FROM=${RUSTUP_HOME:-$HOME/.rustup} \
        unshare --mount --pid --fork --kill-child bash -c '
        set -e
        mkdir -p "$ROOT/root/.cargo" "$ROOT/root/.rustup"
        mount -t proc proc "$ROOT/proc"
        mount --rbind /dev "$ROOT/dev"
        mount -t tmpfs tmpfs "$ROOT/dev/shm"
        mount --bind "$CARGO_FROM" "$ROOT/root/.cargo"
        [ ! -d "$RUSTUP_FROM" ] || mount --bind -o ro "$RUSTUP_FROM" "$ROOT/root/.rustup"
        exec chroot "$ROOT" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
            PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            SSL_CERT_FILE=/etc/host-certificates.crt CARGO_HTTP_CAINFO=/etc/host-certificates.crt \
            PIP_CERT=/etc/host-certificates.crt DEBIAN_FRONTEND=noninteractive "$@"
        ' bash "$@"
}

# copy_context SYSTEM: the same files as a container engine would send, with their times.
copy_context() {
    local wanted unwanted
    mapfile -t wanted < <(sed -n 's/^!//p' "$REPO/.dockerignore")
    mapfile -t unwanted < <(sed -n '/^[^!#*]/s/^/--exclude=/p' "$REPO/.dockerignore")
    rm -rf "$ROOT/$1/src"
    mkdir "$ROOT/$1/src"
    tar -C "$REPO" -c "${unwanted[@]}" "${wanted[@]}" | tar -C "$ROOT/$1/src" -x --no-same-owner
}

make_build_system() {
    [ -d "$ROOT/build" ] || cp -a "$ROOT/base" "$ROOT/build"
    # Of the machine's toolchain as cargo is.
    if [ -x "$CACHE/tools/bin/cargo-pgrx" ]; then
        install -D "$CACHE/tools/bin/cargo-pgrx" "$ROOT/build/var/cache/pg_sight/tools/bin/cargo-pgrx"
    fi
}

build() {
    make_build_system
    copy_context build
    rm -rf "$ROOT/build/out"
    inside build env PG_MAJOR=$PG_OF_RELEASE /src/docker/steps/build.sh /out
}

install_image() {
    rm -rf "$ROOT/image"
    cp -a "$ROOT/base" "$ROOT/image"
    copy_context image
    inside image /src/docker/steps/runtime.sh
    cp -a "$ROOT/build/out/." "$ROOT/image/"
    inside image env PG_MAJOR=$PG_OF_RELEASE /src/docker/steps/check.sh
}

# With the demo's captioner and pictures, and a text encoder.
run_container_test() {
    mkdir "$ROOT/image/models"
    cp -RL "$MINILM" "$ROOT/image/models/minilm"
    cp -R "$REPO/demo" "$ROOT/image/models/demo"
    chmod -R a+rX "$ROOT/image/models"
    inside image setpriv --reuid=postgres --regid=postgres --init-groups -- env HOME=/tmp \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/lib/postgresql/$PG_OF_RELEASE/bin \
        /src/docker/tests/container.sh /usr/local/bin /docker-entrypoint-initdb.d \
        /models/minilm /models/demo
}

# The clone as it is in git, beside the context of the image: its tests are not part of that.
run_suite() {
    local suite=$ROOT/build/suite
    make_build_system
    rm -rf "$suite" "$ROOT/build/models"
    mkdir "$suite" "$ROOT/build/models"
    git -C "$REPO" ls-files -z | tar -C "$REPO" -c --null -T - | tar -C "$suite" -x --no-same-owner
    cp -RL "$MINILM" "$ROOT/build/models/minilm"
    chmod -R a+rX "$ROOT/build/models" "$suite"
    # shellcheck disable=SC2016 # for the shell there
    inside build env PG_CONFIG=/usr/lib/postgresql/$PG_OF_RELEASE/bin/pg_config PG_SIGHT_MINILM=/models/minilm \
        PG_SIGHT_TEST_USER=postgres bash -c '
        set -e
        apt-get update
        apt-get install -y --no-install-recommends "postgresql-server-dev-$1"
        shift
        cd /suite
        . scripts/common.sh
        choose_postgres
        scripts/setup.sh packages rust postgres pgrx
        scripts/install.sh
        # This shell, the first process there, sees to what lost its parent, as an init does.
        status=0
        cargo test --release -p pg_sight_tests "$@" || status=$?
        exit "$status"
        ' bash "$PG_OF_RELEASE" "$@"
}

prepare() {
    [ "$IS_ROOT" = yes ] || fail "scripts/chroot.sh mounts and changes root: run it as root"
    command -v debootstrap >/dev/null || fail "debootstrap is missing" "    apt-get install debootstrap"
    [ -d "$ROOT/base" ] || step chroot-base "Debian $RELEASE with PostgreSQL $PG_OF_RELEASE and pgvector" make_base
}

case ${1:-} in
test)
    "$REPO/scripts/setup.sh" models
    prepare
    step chroot-build "docker/steps/build.sh (the first time 20 minutes)" build
    step chroot-image "docker/steps/runtime.sh and check.sh" install_image
    run_container_test
    ;;
suite)
    shift
    "$REPO/scripts/setup.sh" models
    prepare
    run_suite "$@"
    ;;
shell)
    prepare
    [ -d "$ROOT/${2:-}/etc" ] || fail "which system: base, build or image?"
    inside "$2" bash -i
    ;;
remove) rm -rf --one-file-system "$ROOT" ;;
*) fail "usage: scripts/chroot.sh test | suite [ARGUMENT]... | shell SYSTEM | remove" ;;
esac
