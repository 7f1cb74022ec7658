#!/usr/bin/env bash
# Sets up, builds and runs the tests, then readers of foreign bytes under sanitizers (tests/readers.sh).
#   tests/run.sh [arguments of ctest]      with arguments: without the sanitizers
# ATELIER_BUILD_DIR: where to build (default build).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build slurm cuda opencv
build=${ATELIER_BUILD_DIR:-build}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DATELIER_TESTS=ON -DATELIER_CUDA=ON >/dev/null
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure -j "$(nproc)" "$@"
if (($# == 0)); then tests/readers.sh; fi
