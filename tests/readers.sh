#!/usr/bin/env bash
# The part of fuzzing and of the sanitized tests that is cheap enough for every change: readers that need no model.
#   tests/readers.sh [INPUTS]      of each fuzz target; default: 3000
set -euo pipefail
cd "$(dirname "$0")/.."
# One seed, a fixed number of inputs and nothing kept from other runs: the same inputs on every machine.
ATELIER_FUZZ_CORPUS=$(mktemp -d)
trap 'rm -rf "$ATELIER_FUZZ_CORPUS"' EXIT
export ATELIER_FUZZ_CORPUS ATELIER_FUZZ_SEED=1
tests/fuzz/run.sh "${1:-3000}" safetensors safetensors_index manifest png tokenizer_file text scene
tests/sanitize.sh address core_test config_test safetensors_test files_test image_test tokenizer_test
