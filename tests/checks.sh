#!/usr/bin/env bash
# What CI does after the tests: the tests under sanitizers, the fuzzers, clang-tidy (docs/reliability.md says what each covers and costs).
#   tests/checks.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# One seed, a fixed number of inputs and nothing kept from other runs: the same inputs on every machine.
ATELIER_FUZZ_CORPUS=$(mktemp -d)
trap 'rm -rf "$ATELIER_FUZZ_CORPUS"' EXIT
export ATELIER_FUZZ_CORPUS ATELIER_FUZZ_SEED=1
for part in "sanitize.sh address" "fuzz/run.sh minute" "sanitize.sh thread" "tidy.sh share"; do
    SECONDS=0
    # shellcheck disable=SC2086
    tests/$part
    echo "checks: tests/$part: $SECONDS s"
done
