#!/usr/bin/env bash
# Builds the model server for NVIDIA GPUs, on a machine with or without one.
#
#   scripts/cuda.sh build              the server, as make install CUDA=1 installs it
#   scripts/cuda.sh check [CARGO...]   lints of the code for GPUs, without compiling a kernel
#   scripts/cuda.sh pack FOLDER        all that a machine with a GPU and without Rust needs for
#                                      parity tests and benchmark: see tools/gpu/check.sh there
#   scripts/cuda.sh run COMMAND...     a command with the build's environment
#
# The toolkit, of version 13, is that of CUDA_HOME or CUDA_PATH, else of nvcc on the PATH, else
# that of /usr/local/cuda, else CUDA 13.0 from NVIDIA's wheels on PyPI, which go into the cache
# (250 MB to download). The first build compiles the kernels of candle: 20 minutes.
#
#   CUDA_COMPUTE_CAP       least compute capability of the GPUs, 80 (Ampere) by default; the
#                          drivers of later ones translate
#   PACK_MINILM=1          packs the weights of all-MiniLM-L6-v2 too
#   PG_SIGHT_CUDA_TARGET   folder of the builds, by default the cache's target-cuda

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CUDA_WHEELS=$CACHE/cuda/13.0
CUDA_STUBS=$CACHE/cuda/stubs
# Apart from the builds for CPUs, so that neither makes the other build all again.
CUDA_TARGET=${PG_SIGHT_CUDA_TARGET:-$CACHE/target-cuda}

# Both, whatever is built: of fewer, other features of what they depend on would be chosen,
# and all kernels compiled again.
CUDA_PACKAGES=(-p sight-models -p pg_sight_server --features "sight-models/cuda,pg_sight_server/cuda")

# The major version of a toolkit.
toolkit_major() { "$1/bin/nvcc" --version | sed -nE 's/.* release ([0-9]+)\..*/\1/p'; }

# Sets CUDA_HOME.
find_toolkit() {
    local compiler major
    for CUDA_HOME in "${CUDA_HOME:-}" "${CUDA_PATH:-}"; do
        [ -x "${CUDA_HOME:-/nowhere}/bin/nvcc" ] || continue
        major=$(toolkit_major "$CUDA_HOME")
        [ "$major" != 13 ] || return 0
        fail "the toolkit $CUDA_HOME is not of CUDA 13${major:+, but of CUDA $major}" \
            "Name one of CUDA 13 in CUDA_HOME, or leave CUDA_HOME and CUDA_PATH unset to have one downloaded."
    done
    compiler=$(command -v nvcc) || compiler=/nowhere/bin/nvcc
    for CUDA_HOME in "$(dirname "$(dirname "$(readlink -m "$compiler")")")" /usr/local/cuda; do
        [ -x "$CUDA_HOME/bin/nvcc" ] || continue
        major=$(toolkit_major "$CUDA_HOME")
        [ "$major" != 13 ] || return 0
        say "  The toolkit $CUDA_HOME is passed over: it is not of CUDA 13${major:+, but of CUDA $major}"
    done
    CUDA_HOME=$CUDA_WHEELS/nvidia/cu13
    if [ -x "$CUDA_HOME/bin/nvcc" ]; then
        already "CUDA toolkit"
    else
        [ -x "$PYTHON" ] || "$REPO/scripts/setup.sh" python
        step cuda-toolkit "CUDA toolkit (250 MB)" download_toolkit
    fi
}

# Whole or not at all.
download_toolkit() {
    local new=$CUDA_WHEELS.new home=$CUDA_WHEELS.new/nvidia/cu13 part
    rm -rf "$new"
    mkdir -p "$new/wheels"
    for part in nvcc crt cccl runtime nvrtc; do
        set -- "$@" "nvidia-cuda-$part==13.0.*"
    done
    "$PYTHON" -m pip --disable-pip-version-check --no-input download --no-deps --only-binary=:all: \
        -d "$new/wheels" "$@" "nvidia-nvvm==13.0.*"
    for part in "$new"/wheels/*.whl; do
        "$PYTHON" -m zipfile -e "$part" "$new"
    done
    rm -rf "$new/wheels"
    # What wheels cannot say: which files are programs, and the names that linkers look for.
    chmod a+x "$home"/bin/* "$home"/nvvm/bin/*
    ln -s lib "$home/lib64"
    ln -s libcudart.so.13 "$home/lib/libcudart.so"
    ln -s libnvrtc.so.13 "$home/lib/libnvrtc.so"
    rm -rf "$CUDA_WHEELS"
    mv "$new" "$CUDA_WHEELS"
}

# The driver's and CUDA's libraries are not needed to build: the program looks for them where
# it runs. What the linker asks for is empty libraries of their names.
make_stubs() {
    local name
    mkdir -p "$CUDA_STUBS"
    for name in cuda cublas cublasLt curand nvrtc; do
        echo | cc -shared -x c -o "$CUDA_STUBS/lib$name.so" -
    done
}

# The environment of builds with the feature cuda.
use_toolkit() {
    find_toolkit
    make_stubs
    export CUDA_HOME CUDA_PATH=$CUDA_HOME PATH=$CUDA_HOME/bin:$PATH
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CARGO_TARGET_DIR=$CUDA_TARGET
    export LIBRARY_PATH=$CUDA_STUBS:$CUDA_HOME/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}
    claim_target
}

build_cuda() {
    use_toolkit
    cd "$REPO"
    cargo build --release "${CUDA_PACKAGES[@]}" --bin pg_sight_server
}

# pack_program FILE CARGO...: the program that cargo builds with these arguments, stripped.
pack_program() {
    local file=$1 program
    shift
    program=$(cargo "$@" --message-format json | sed -nE 's/.*"executable":"([^"]*)".*/\1/p' | tail -n 1)
    strip -o "$file" "$program"
}

pack() {
    local folder models=$REPO/crates/models wordnet
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
    use_toolkit
    cd "$REPO"
    mkdir -p "$folder/bin" "$folder/crates/models/tests" "$folder/tools/compare" "$folder/tools/fixtures" \
        "$folder/bench" "$folder/minilm"
    set -- --release "${CUDA_PACKAGES[@]}"
    pack_program "$folder/bin/kernel-tests" test --no-run --lib "$@"
    pack_program "$folder/bin/device-tests" test --no-run --test device "$@"
    pack_program "$folder/bin/turns" build --example turns "$@"
    pack_program "$folder/bin/clients" build --example clients "$@"
    pack_program "$folder/bin/four_bits" build --example four_bits "$@"
    pack_program "$folder/bin/pg_sight_server" build --bin pg_sight_server "$@"
    cp -R "$models/tests/fixtures" "$folder/crates/models/tests/"
    rm -rf "$folder/crates/models/tests/fixtures/pictures"
    cp -R demo "$folder/"
    cp tools/compare/random_model.py tools/compare/random_instructblip.py tools/compare/reference.py "$folder/tools/compare/"
    cp tools/fixtures/*.py "$folder/tools/fixtures/"
    cp bench/gpu.py bench/four_bits.py "$folder/bench/"
    cp tools/gpu/check.sh "$folder/"
    # Its tokenizer is enough to measure; with the weights (90 MB) parity is tested too.
    if [ -n "${PACK_MINILM:-}" ]; then
        cp -RL "$MINILM/." "$folder/minilm/"
    else
        cp "$MINILM/tokenizer.json" "$folder/minilm/"
    fi
    for wordnet in /usr/share/wordnet "$CACHE/bench/wordnet/usr/share/wordnet"; do
        [ -f "$wordnet/data.noun" ] || continue
        PYTHONPATH=$REPO/bench python3 -B -c 'import sys, glosses
for text in glosses.read(sys.argv[1])[:16384]: print(text)' "$wordnet" >"$folder/texts.txt"
    done
    [ -s "$folder/texts.txt" ] || fail "there is no WordNet here" "bench/run.sh embed downloads it."
}

# A compiler that makes empty files: enough to look at the Rust code.
pretend_toolkit() {
    CUDA_HOME=$CACHE/cuda/pretended
    mkdir -p "$CUDA_HOME/bin" "$CUDA_HOME/include" "$CUDA_HOME/lib64"
    cat >"$CUDA_HOME/bin/nvcc" <<'NVCC'
#!/bin/sh
# In place of NVIDIA's compiler where nothing is linked; see scripts/cuda.sh.
case " $* " in *" --version "*) printf '%s\n' nvcc '' '' 'Cuda compilation tools, release 13.0, V13.0.88' ;; esac
while [ $# -gt 0 ]; do
    case $1 in
    -o | --output-file) : >"$2" ;;
    --list-gpu-code) echo sm_80 ;;
    --list-gpu-arch) echo compute_80 ;;
    --output-directory)
        folder=$2
        ;;
    *.cu) [ -z "${folder:-}" ] || : >"$folder/$(basename "$1" .cu).ptx" ;;
    esac
    shift
done
NVCC
    chmod a+x "$CUDA_HOME/bin/nvcc"
    # In which candle would look for the compiler first.
    unset NVCC
    export CUDA_HOME CUDA_PATH=$CUDA_HOME PATH=$CUDA_HOME/bin:$PATH
    # Never that of the builds: their kernels are not empty.
    export CUDA_COMPUTE_CAP=80 CARGO_TARGET_DIR=$CACHE/target-cuda-check
    claim_target
}

check_cuda() {
    pretend_toolkit
    cd "$REPO"
    cargo clippy --release "${CUDA_PACKAGES[@]}" --all-targets "$@" -- -D warnings
}

# Sourced, it only defines functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case ${1:-} in
    build) build_cuda ;;
    check)
        shift
        check_cuda "$@"
        ;;
    pack)
        [ $# -eq 2 ] || fail "usage: scripts/cuda.sh pack FOLDER"
        pack "$2"
        ;;
    run)
        # Not joined with &&, which would let go on what fails in functions.
        shift
        use_toolkit
        cd "$REPO"
        "$@"
        ;;
    *) fail "usage: scripts/cuda.sh build | check | pack FOLDER | run COMMAND..." ;;
    esac
fi
