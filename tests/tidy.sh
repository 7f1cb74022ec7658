#!/usr/bin/env bash
# clang-tidy with the checks of .clang-tidy; warnings are errors.
#   tests/tidy.sh [FILE.cpp...]      default: all of lib, io and apps but CUDA
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/clang_build.sh
sanitized_build atelier_precompiled_library
files=("$@")
((${#files[@]})) || mapfile -t files < <(find lib io apps -name '*.cpp' | grep -v -e /cuda/ -e /nccl/ | LC_ALL=C sort)
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet 2>/dev/null
echo "clang-tidy: ${#files[@]} files"
