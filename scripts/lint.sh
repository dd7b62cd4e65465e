#!/usr/bin/env bash
# Format and lints. cargo-deny runs where it is installed.

. "$(dirname "$0")/common.sh"

"$REPO/scripts/setup.sh" packages rust postgres linters
choose_postgres
cd "$REPO"

say "" "cargo fmt"
cargo fmt --all --check
say "" "cargo clippy"
# In release as everywhere: another profile would build FAISS again.
# shellcheck disable=SC2046 # two options
cargo clippy --release --workspace --all-targets $(pg_features) -- -D warnings
others=()
for major in 14 15 16 17 18; do
    [ "$major" = "$PG_MAJOR" ] || others+=("$major")
done
"$REPO/scripts/versions.sh" "${others[@]}"
say "" "cargo clippy of the code for GPUs"
"$REPO/scripts/cuda.sh" check
say "" "the extension depends on nothing that computes"
# Models and CUDA are the server's alone: what fails there must not fail in a backend.
# shellcheck disable=SC2046 # two options
tree=$(cargo tree -p pg_sight --edges no-dev,no-build $(pg_features) --prefix none)
if grep -E '^(candle-core|cudarc|cuda-loader|sight-models|tokio) ' <<<"$tree"; then
    fail "the extension would link the above"
fi
if command -v cargo-deny >/dev/null; then
    say "" "cargo deny"
    cargo deny check
else
    say "" "cargo deny: not installed, left out"
fi
say "" "shellcheck"
"$LINTERS/shellcheck" -x scripts/*.sh docker/bin/* docker/steps/*.sh docker/tests/*.sh bench/run.sh tools/gpu/check.sh .ci/run
say "" "Dockerfile, compose files, CloudFormation template"
"$LINTERS/hadolint" docker/Dockerfile
"$LINTERS/python" -B docker/tests/check_files.py
"$LINTERS/cfn-lint" docker/aws/template.yaml
