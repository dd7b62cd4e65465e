#!/usr/bin/env bash
# docker/tests/container.sh on the PostgreSQL that pg_sight is installed in: what the container's
# scripts do, without a container. scripts/chroot.sh runs it where the image's steps have run.

. "$(dirname "$0")/common.sh"

choose_postgres
choose_user
# Where the user that runs PostgreSQL can read it, as the clone's folder may be private.
FILES=$(mktemp -d "$CACHE/container.XXXXXX")
trap 'rm -rf "$FILES"' EXIT
cp -R "$REPO/docker" "$FILES/"
chmod -R a+rX "$FILES"
as_user env PATH="$(bindir):$PATH" "$FILES/docker/tests/container.sh" "$FILES/docker/bin" \
    "$FILES/docker/initdb" "$MINILM" "$(demo_dir)"
