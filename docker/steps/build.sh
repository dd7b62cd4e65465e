#!/usr/bin/env bash
# Builds pg_sight for the PostgreSQL that is here and puts its files below a folder, under the
# paths at which an image has them.
#
#   docker/steps/build.sh FOLDER    as root, on Debian with PostgreSQL's packages
#
#   PG_MAJOR   major version of PostgreSQL
#   CUDA=1     with a model server for NVIDIA GPUs
#
# Cargo must be on the PATH, or in ~/.cargo; where it comes from does not matter here.

set -euo pipefail
OUT=$1
HERE=$(cd "$(dirname "$0")/../.." && pwd)
PG_CONFIG=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config
export PG_CONFIG DEBIAN_FRONTEND=noninteractive

apt-get update
# Python downloads the CUDA toolkit.
apt-get install -y --no-install-recommends binutils "postgresql-server-dev-$PG_MAJOR" \
    ${CUDA:+python3-pip}

"$HERE/scripts/setup.sh" packages rust postgres pgrx
DESTDIR=$OUT "$HERE/scripts/install.sh"

# Nine tenths of the files are line numbers for debuggers.
find "$OUT" -type f \( -name pg_sight_server -o -name '*.so' \) -exec strip --strip-debug {} +
