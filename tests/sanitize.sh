#!/usr/bin/env bash
# The tests under sanitizers.
#   tests/sanitize.sh address [PROGRAM...]    AddressSanitizer, LeakSanitizer, UndefinedBehaviorSanitizer; build-asan
#   tests/sanitize.sh thread [PROGRAM...]     ThreadSanitizer; build-tsan
# PROGRAM: a GoogleTest program to build and run. Default: address: all tests but whole stages and what breaks or preloads programs;
# thread: what has threads of its own. OpenMP's runtimes are not instrumented, so the thread run keeps each region to one thread: it is
# about the reward pool, the HTTP judge, snapshots written behind the training, signals.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-address}
shift || true
programs=("$@")
case $kind in
    address)
        source tests/clang_build.sh
        if ((${#programs[@]})); then sanitized_build "${programs[@]}"; else sanitized_build; fi
        export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
        export LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_others.txt:print_suppressions=0
        ;;
    thread)
        scripts/setup.sh build slurm
        build=${ATELIER_TSAN_BUILD_DIR:-build-tsan}
        cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
            -DATELIER_TESTS=ON -DATELIER_CUDA=OFF -DATELIER_SANITIZE=thread >/dev/null
        ((${#programs[@]})) || programs=(core_test reward_test judge_ranks_test judge_test files_test signals_test stage_test)
        cmake --build "$build" --target "${programs[@]}"
        export OMP_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=1
        ;;
    *) echo "sanitize: address or thread, found '$kind'" >&2; exit 2 ;;
esac
if ((${#programs[@]})); then
    for program in "${programs[@]}"; do "$build/bin/$program" --gtest_brief=1; done
else
    ctest --test-dir "$build" --output-on-failure -j "$(nproc)" -E '^(e2e|bench|faults)\.'
fi
