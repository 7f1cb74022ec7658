#!/usr/bin/env bash
# The part of fuzzing and of the sanitized tests that is cheap enough for every change: readers that need no model.
#   tests/readers.sh [SECONDS_A_TARGET]      default: 20
set -euo pipefail
cd "$(dirname "$0")/.."
# One order of inputs for all: what fails here fails again, and a change elsewhere meets nothing new.
export ATELIER_FUZZ_SEED=1
tests/fuzz/run.sh "${1:-20}" safetensors safetensors_index manifest png tokenizer_file text scene
tests/sanitize.sh address core_test config_test safetensors_test files_test image_test tokenizer_test
