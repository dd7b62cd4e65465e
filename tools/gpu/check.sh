#!/usr/bin/env bash
# Parity and speed on a machine with an NVIDIA GPU, which needs no Rust: the folder that
# `scripts/cuda.sh pack` fills, of which this is the front door. Python needs torch,
# transformers, sentence-transformers and Pillow for the speed, and all but the third for
# 4 bits; parity needs no Python.
#
#   check.sh                 all of these; the reports are RESULTS/results-gpu.md and results-4bit.md
#   check.sh parity          kernels against formulas, models against stored results
#   check.sh speed           encoders and captioners beside transformers
#   check.sh four-bits       InstructBLIP with Vicuna 7B, of random weights, in 4 bits, beside
#                            transformers: time to load, tokens per second, memory
#
#   RESULTS      folder for reports and logs, by default results beside this script
#   MODELS       folder for the models of full size that are made (2 GB; in 4 bits 20 GB), by default a
#                temporary one
#   PYTHON       by default python3
#   ROUNDS       rounds of the benchmark

set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RESULTS=${RESULTS:-$HERE/results}
PYTHON=${PYTHON:-python3}
MODELS=${MODELS:-${TMPDIR:-/tmp}/pg_sight-models}
STATUS=0
mkdir -p "$RESULTS" "$MODELS"

# The program finds cuBLAS and its like as any other does; those of Python's wheels too.
libraries() {
    local name folder
    for name in libcublas.so.13 libcublasLt.so.13 libcurand.so.10; do
        if ldconfig -p | grep -q "$name"; then
            continue
        fi
        folder=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null)
        find "$folder/nvidia" /usr/local/cuda*/ -name "$name" -printf '%h\n' 2>/dev/null | head -n 1
    done | sort -u | paste -sd :
}
LD_LIBRARY_PATH=$(libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH

# part NAME SECONDS COMMAND...: with its output in a log. False where it failed.
part() {
    local name=$1 limit=$2 begun=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$RESULTS/$name.log" 2>&1; then
        echo "$name: passed in $((SECONDS - begun)) s"
    else
        echo "$name: FAILED with $? after $((SECONDS - begun)) s; the end of $RESULTS/$name.log:"
        grep -E "panicked|^error|Error|tolerance|FAILED|test result" "$RESULTS/$name.log" | head -n 20
        tail -n 15 "$RESULTS/$name.log"
        STATUS=1
        return 1
    fi
}

parity() {
    export PG_SIGHT_TEST_DEVICE=cuda PG_SIGHT_TEST_ROOT=$HERE/crates/models
    [ ! -f "$HERE/minilm/model.safetensors" ] || export PG_SIGHT_MINILM=$HERE/minilm
    part kernels 120 "$HERE/bin/kernel-tests" ops::device_tests ops::block_tests --nocapture --test-threads 1
    part models 240 "$HERE/bin/device-tests" --nocapture --test-threads 1
}

# shellcheck disable=SC2329 # called by the bash that speed starts
models() {
    local kind
    for kind in mpnet-base blip-large; do
        [ -f "$MODELS/$kind/made" ] || {
            "$PYTHON" -B "$HERE/tools/compare/random_model.py" "$kind" "$MODELS/$kind" \
                --tokenizer "$HERE/minilm" && touch "$MODELS/$kind/made"
        } &
    done
    wait
    [ -f "$MODELS/mpnet-base/made" ] && [ -f "$MODELS/blip-large/made" ]
}

speed() {
    rm -f "$RESULTS/results-gpu.md" "$RESULTS/clients.log"
    part make-models 200 bash -c models
    part speed 300 "$PYTHON" -B "$HERE/bench/gpu.py" --turns "$HERE/bin/turns" --texts "$HERE/texts.txt" \
        --pictures "$HERE/demo/goldens" --models "$MODELS" --report "$RESULTS/results-gpu.md" --rounds "${ROUNDS:-7}"
    part clients 60 "$HERE/bin/clients" "$HERE/bin/pg_sight_server" "$MODELS/mpnet-base" "$HERE/texts.txt" cuda 3 1 8 32 64
    {
        echo
        echo "The model server with MPNet-base, through its socket, without PostgreSQL:"
        echo
        grep -E '^[0-9]+ client' "$RESULTS/clients.log" | sed 's/^/- /'
    } >>"$RESULTS/results-gpu.md"
    cat "$RESULTS/results-gpu.md"
}

four_bits() {
    local model=$MODELS/instructblip-7b picture
    picture=$(find "$HERE/demo/goldens" -name '*.png' | sort | head -n 1)
    if [ ! -f "$model/made" ]; then
        part 7b-make 400 "$PYTHON" -B "$HERE/tools/compare/random_instructblip.py" "$model" --size 7b || return
        touch "$model/made"
    fi
    rm -f "$model"/.pg_sight-4bit.safetensors "$RESULTS/results-4bit.md"
    part 7b-first-load 400 "$HERE/bin/four_bits" "$model" "$picture" --device cuda || return
    part 7b-calls 400 "$PYTHON" -B "$HERE/bench/four_bits.py" --program "$HERE/bin/four_bits" --model "$model" \
        --picture "$picture" --report "$RESULTS/results-4bit.md" || return
    sed -nE 's/^loaded: ([^,]*),.*/- The first load, which quantizes: \1/p' "$RESULTS/7b-first-load.log" >>"$RESULTS/results-4bit.md"
    cat "$RESULTS/results-4bit.md"
}

# For the shell that timeout starts.
export -f models
export HERE MODELS PYTHON

case ${1:-all} in
parity) parity ;;
speed) speed ;;
four-bits) four_bits ;;
all)
    parity
    speed
    four_bits
    ;;
*)
    echo "usage: check.sh [parity | speed | four-bits]" >&2
    exit 2
    ;;
esac
exit $STATUS
