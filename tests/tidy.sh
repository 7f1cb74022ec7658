#!/usr/bin/env bash
# clang-tidy with the checks of .clang-tidy; warnings are errors.
#   tests/tidy.sh [share | FILE.cpp...]      default: all of lib, io and apps but CUDA
# share: what differs from the commit before this one (a header by its source file), and an eighth of all, which one the commit's name
# says; 60 files at most.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/clang_build.sh
sanitized_configure

all_files() { find lib io apps -name '*.cpp' | grep -v -e /cuda/ -e /nccl/ | LC_ALL=C sort; }
share() {
    local changed part
    changed=$(git diff --name-only HEAD^ -- lib io apps 2>/dev/null | sed 's/\.hpp$/.cpp/' || true)
    part=$(($(git rev-parse HEAD 2>/dev/null | cksum | cut -d ' ' -f 1) % 8))
    { all_files | grep -Fx "$changed" || true; all_files | awk -v part="$part" 'NR % 8 == part'; } | awk '!seen[$0]++' | head -n 60
}
case ${1:-} in
    "") mapfile -t files < <(all_files) ;;
    share) mapfile -t files < <(share) ;;
    *) files=("$@") ;;
esac
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet 2>/dev/null
echo "clang-tidy: ${#files[@]} files"
