#!/usr/bin/env bash
# Puts the libraries of CUDA that the model server loads at run time below a folder, under the
# paths at which an image has them, from NVIDIA's wheels on PyPI (500 MB to download). The
# driver's library is the host's.
#
#   docker/steps/cuda-libraries.sh FOLDER    as root, on Debian

set -euo pipefail
OUT=$1
# Of the toolkit that scripts/cuda.sh builds with.
WHEELS=("nvidia-cublas==13.0.*" "nvidia-curand==10.4.0.*")
LIBRARIES=(libcublas.so.13 libcublasLt.so.13 libcurand.so.10)
FOLDER=/usr/local/lib/cuda

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip --disable-pip-version-check --no-input download --no-deps --only-binary=:all: \
    -d "$work" "${WHEELS[@]}"
for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/files"
done
for library in "${LIBRARIES[@]}"; do
    file=$(find "$work/files" -name "$library")
    [ -f "$file" ] || {
        echo "error: the wheels have no $library" >&2
        exit 1
    }
    install -D -m 644 "$file" "$OUT$FOLDER/$library"
done
# Read by ldconfig, in the image.
install -d "$OUT/etc/ld.so.conf.d"
echo "$FOLDER" >"$OUT/etc/ld.so.conf.d/pg_sight-cuda.conf"
