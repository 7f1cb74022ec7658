#!/usr/bin/env bash
# Sets up, builds and runs the tests, then them and the fuzzers under sanitizers (tests/checks.sh).
#   tests/run.sh [arguments of ctest]      with arguments: the tests alone
# ATELIER_BUILD_DIR: where to build (default build). ATELIER_PYTHON: a Python for tests that open our files in diffusers, PEFT and h5py
# (that of `scripts/setup.sh python`; default python3); what it lacks is skipped, with a line at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build slurm cuda opencv
build=${ATELIER_BUILD_DIR:-build}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DATELIER_TESTS=ON -DATELIER_CUDA=ON >/dev/null
cmake --build "$build"
failed=0
ctest --test-dir "$build" --output-on-failure -j "$(nproc)" "$@" || failed=$?
# What was not tried: whole tests and parts of tests say so in a line of their own.
awk '/^[0-9]+\/[0-9]+ Test: / {name = $3} /^skipped: / {print name " " $0}' "$build/Testing/Temporary/LastTest.log"
((failed == 0)) || exit "$failed"
if (($# == 0)); then tests/checks.sh; fi
