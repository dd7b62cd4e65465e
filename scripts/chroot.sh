#!/usr/bin/env bash
# The steps of docker/Dockerfile in a plain Debian 13, on machines without a container engine:
# PostgreSQL 17 and pgvector are Debian's there, where the image has those of its base.
# As root on a Debian system with debootstrap.
#
#   scripts/chroot.sh test     make the system, build, install, and run docker/tests/container.sh
#   scripts/chroot.sh shell    a shell in it
#   scripts/chroot.sh remove   delete it
#
#   PG_SIGHT_CHROOT         its folder, by default chroot in the cache: 5 GB
#   PG_SIGHT_CHROOT_MIRROR  where Debian is downloaded from
#
# Rust's toolchain is this machine's, seen from there; so are the settings of apt and the
# certificates of the hosts that are downloaded from. The system stays, and with it what cargo
# has built.

. "$(dirname "$0")/common.sh"

ROOT=${PG_SIGHT_CHROOT:-$CACHE/chroot}
MIRROR=${PG_SIGHT_CHROOT_MIRROR:-http://deb.debian.org/debian}
RELEASE=trixie
PG_OF_RELEASE=17
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt

make_system() {
    rm -rf "$ROOT.new"
    debootstrap --variant=minbase "$RELEASE" "$ROOT.new" "$MIRROR"
    mv "$ROOT.new" "$ROOT"
}

# What the base image brings: PostgreSQL without a cluster, pgvector, a folder of scripts.
make_base() {
    # Proxies and the like.
    apt-config dump --format '%f "%v";%n' Acquire | grep -E '^Acquire::(https?|Check-).*"..*"' >"$ROOT/etc/apt/apt.conf.d/90host"
    cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
    cp "$CERTIFICATES" "$ROOT/etc/host-certificates.crt"
    mkdir -p "$ROOT/etc/postgresql-common"
    echo "create_main_cluster = false" >"$ROOT/etc/postgresql-common/createcluster.conf"
    inside apt-get update
    inside apt-get install -y --no-install-recommends "postgresql-$PG_OF_RELEASE" \
        "postgresql-$PG_OF_RELEASE-pgvector"
    touch "$ROOT/base-made"
}

# Runs a command there, with mounts and processes that are gone when it ends.
inside() {
    # shellcheck disable=SC2016 # for the shell that has those mounts
    ROOT=$ROOT CARGO_FROM=${CARGO_HOME:-$HOME/.cargo} RUSTUP_FROM=${RUSTUP_HOME:-$HOME/.rustup} \
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

# The same files as a container engine would send, with their times.
copy_context() {
    local wanted unwanted
    mapfile -t wanted < <(sed -n 's/^!//p' "$REPO/.dockerignore")
    mapfile -t unwanted < <(sed -n '/^[^!#*]/s/^/--exclude=/p' "$REPO/.dockerignore")
    rm -rf "$ROOT/src"
    mkdir "$ROOT/src"
    tar -C "$REPO" -c "${unwanted[@]}" "${wanted[@]}" | tar -C "$ROOT/src" -x --no-same-owner
    # Of the machine's toolchain as cargo is.
    if [ -x "$CACHE/tools/bin/cargo-pgrx" ]; then
        install -D "$CACHE/tools/bin/cargo-pgrx" "$ROOT/var/cache/pg_sight/tools/bin/cargo-pgrx"
    fi
}

build() {
    copy_context
    rm -rf "$ROOT/out"
    inside env PG_MAJOR=$PG_OF_RELEASE /src/docker/steps/build.sh /out
}

install_image() {
    cp -a "$ROOT/out/." "$ROOT/"
    inside /src/docker/steps/runtime.sh
    inside env PG_MAJOR=$PG_OF_RELEASE /src/docker/steps/check.sh
}

# With the demo's captioner and pictures, and a text encoder.
run_container_test() {
    rm -rf "$ROOT/test-models"
    mkdir "$ROOT/test-models"
    cp -RL "$MINILM" "$ROOT/test-models/minilm"
    cp -R "$REPO/demo" "$ROOT/test-models/demo"
    chmod -R a+rX "$ROOT/test-models"
    inside setpriv --reuid=postgres --regid=postgres --init-groups -- env HOME=/tmp \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/lib/postgresql/$PG_OF_RELEASE/bin \
        /src/docker/tests/container.sh /usr/local/bin /docker-entrypoint-initdb.d \
        /test-models/minilm /test-models/demo
}

prepare() {
    [ "$IS_ROOT" = yes ] || fail "scripts/chroot.sh mounts and changes root: run it as root"
    command -v debootstrap >/dev/null || fail "debootstrap is missing" "    apt-get install debootstrap"
    [ -d "$ROOT" ] || step debootstrap "Debian $RELEASE in $ROOT" make_system
    [ -f "$ROOT/base-made" ] || step chroot-base "PostgreSQL $PG_OF_RELEASE with pgvector there" make_base
}

case ${1:-} in
test)
    "$REPO/scripts/setup.sh" models
    prepare
    step chroot-build "docker/steps/build.sh (the first time 20 minutes)" build
    step chroot-install "docker/steps/runtime.sh and check.sh" install_image
    run_container_test
    ;;
shell)
    prepare
    inside bash -i
    ;;
remove) rm -rf --one-file-system "$ROOT" "$ROOT.new" ;;
*) fail "usage: scripts/chroot.sh test | shell | remove" ;;
esac
