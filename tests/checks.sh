#!/usr/bin/env bash
# What follows the tests: clang-tidy, the tests under AddressSanitizer and UndefinedBehaviorSanitizer, threads under ThreadSanitizer, and a minute of each
# fuzz target (docs/reliability.md says what each covers and costs; longer fuzzing is run by hand).
#   tests/checks.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# One seed, a fixed number of inputs and nothing kept from other runs: the same inputs on every machine with the same compiler.
ATELIER_FUZZ_CORPUS=$(mktemp -d)
trap 'rm -rf "$ATELIER_FUZZ_CORPUS"' EXIT
export ATELIER_FUZZ_CORPUS ATELIER_FUZZ_SEED=1
for part in tidy.py "sanitize.sh address" "sanitize.sh thread" "fuzz/run.sh minute"; do
    SECONDS=0
    # shellcheck disable=SC2086
    tests/$part
    echo "checks: tests/$part: $SECONDS s"
done
