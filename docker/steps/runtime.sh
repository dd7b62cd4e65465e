#!/usr/bin/env bash
# Makes a Debian system with PostgreSQL and pgvector one that runs pg_sight: run-time
# libraries, the scripts of the container, and the folder for models. Run as root, before or
# after the files that build.sh made are there.

set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
export DEBIAN_FRONTEND=noninteractive

apt-get update
# The compilers' libraries for FAISS and BLAS; the certificates of those whom models are
# downloaded from; tini, which the container's other processes are children of.
apt-get install -y --no-install-recommends ca-certificates libgfortran5 libgomp1 libstdc++6 tini
rm -rf /var/lib/apt/lists/*

install -m 755 "$HERE"/bin/* /usr/local/bin/
install -d /docker-entrypoint-initdb.d
install -m 755 "$HERE"/initdb/* /docker-entrypoint-initdb.d/
# A new volume takes its owner from the folder that it is mounted at.
install -d -o postgres -g postgres -m 755 /var/lib/pg_sight
