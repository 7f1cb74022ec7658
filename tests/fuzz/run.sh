#!/usr/bin/env bash
# Fuzzes every reader of foreign bytes under AddressSanitizer and UndefinedBehaviorSanitizer.
#   tests/fuzz/run.sh [AMOUNT [TARGET...]]      default: 60s, all targets, as many at a time as there are cores
# AMOUNT of each target: seconds (60s), or inputs (5000), the same ones every time with one seed and one corpus, or "minute": as many inputs as took about
# a minute of one core (Xeon with AVX-512).
# Starts from tests/fuzz/corpus; what it finds new goes to ATELIER_FUZZ_CORPUS (default BUILD/fuzz-corpus) and stays there. A crash, a
# hang (10 s), a leak or an allocation far beyond the input ends the target and leaves the input in BUILD/fuzz-found; the script then
# fails. ATELIER_FUZZ_SEED: of the changes that are tried (default 0: new ones each time). Addresses are the same every time:
# libFuzzer tries numbers that were compared. ATELIER_ASAN_BUILD_DIR: where to build (default build-asan, shared with tests/sanitize.sh).
set -euo pipefail
# Kernels may put programs and libraries where the sanitizers of these compilers keep their tables: with fixed addresses none does.
if [[ -z ${ATELIER_FIXED_ADDRESSES:-} ]] && setarch -R true 2>/dev/null; then ATELIER_FIXED_ADDRESSES=1 exec setarch -R "$0" "$@"; fi
cd "$(dirname "$0")/../.."
amount=${1:-60s}
[[ $amount =~ ^([0-9]+s?|minute)$ ]] || { echo "fuzz/run.sh: seconds (60s), inputs (5000) or minute, found '$amount'" >&2; exit 2; }
shift || true
source tests/clang_build.sh
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(ls tests/fuzz/corpus)
sanitized_build "${targets[@]/#/fuzz-}"
corpus=${ATELIER_FUZZ_CORPUS:-$build/fuzz-corpus}
mkdir -p "$build/fuzz-found" "$build/fuzz-logs"
seed=${ATELIER_FUZZ_SEED:-0}

fuzz_one() {
    local target=$1 most=4096 memory=64 minute=100000 limit=-runs=$amount
    case $target in
        png) memory=256 minute=600000 ;;              # deflate unpacks a thousandfold
        hdf5_structure) most=64 minute=12000 ;;       # sixteen changes
        tokenizer_file) most=16384 memory=128 minute=20000 ;;
        prompts) most=65536 ;;
        completion) most=65536 minute=200000 ;;
        safetensors) most=65536 minute=120000 ;;
        config) minute=25000 ;;
        judge_template) minute=300000 ;;
        model_config) minute=70000 ;;
        text) minute=250000 ;;
    esac
    case $amount in
        *s) limit=-max_total_time=${amount%s} ;;
        minute) limit=-runs=$minute ;;
    esac
    mkdir -p "$corpus/$target"
    # shellcheck disable=SC2086
    if "$build/bin/fuzz-$target" -seed="$seed" "$limit" -timeout=10 -max_len=$most -malloc_limit_mb=$memory -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$build/fuzz-found/$target-" "$corpus/$target" "tests/fuzz/corpus/$target" \
        >"$build/fuzz-logs/$target.txt" 2>&1; then
        awk -v t="$target" '/number_of_executed_units/ {n = $2} /peak_rss_mb/ {m = $2} /cov: / {for (i = 1; i < NF; ++i) if ($i == "cov:") c = $(i + 1)}
            END {printf "%-18s %10d inputs, %6d edges, peak %4d MB\n", t, n, c, m}' "$build/fuzz-logs/$target.txt"
    else
        echo "$target: FAILED"
        tail -n 40 "$build/fuzz-logs/$target.txt"
        return 1
    fi
}
export -f fuzz_one
export amount build corpus seed
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz_one {}'
