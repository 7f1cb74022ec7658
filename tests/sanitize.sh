#!/usr/bin/env bash
# The tests under sanitizers.
#   tests/sanitize.sh address [PROGRAM...]    AddressSanitizer, LeakSanitizer, UndefinedBehaviorSanitizer; build-asan
#   tests/sanitize.sh thread [PROGRAM...]     ThreadSanitizer; build-tsan
# PROGRAM: a GoogleTest program to build and run. Default: address: all tests but whole stages, what breaks or preloads programs, the CUDA
# backend under the emulator (its fibers' stacks are unknown to sanitizers), the fuzzers' corpus (tests/fuzz/run.sh) and three statistics over hundreds
# of drawn pictures, whose measures other tests call too; thread: what has
# threads of its own: the thread pool and what is cut over it, the reward pool, judge ranks, the HTTP judge, shards and states written
# beside the work, signals, messages between ranks beside collectives. oneDNN's OpenMP is not instrumented: its regions have one thread. Nor is
# Open MPI: its threads meet over atomics that nobody sees, so what it reads and writes itself is not looked at.
set -euo pipefail
# Kernels may put programs and libraries where the sanitizers of these compilers keep their tables: with fixed addresses none does.
if [[ -z ${ATELIER_FIXED_ADDRESSES:-} ]] && setarch -R true 2>/dev/null; then ATELIER_FIXED_ADDRESSES=1 exec setarch -R "$0" "$@"; fi
cd "$(dirname "$0")/.."
kind=${1:-address}
shift || true
programs=("$@")
case $kind in
    address)
        source tests/clang_build.sh
        sanitized_build "${programs[@]:-test_programs}"
        address_options=detect_stack_use_after_return=1
        export ASAN_OPTIONS=$address_options:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
        export LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_others.txt:print_suppressions=0
        ;;
    thread)
        scripts/setup.sh build slurm
        build=${ATELIER_TSAN_BUILD_DIR:-build-tsan}
        cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
            -DATELIER_TESTS=ON -DATELIER_CUDA=OFF -DATELIER_SANITIZE=thread >/dev/null
        threaded=(core_test files_test signals_test optim_test reward_test judge_ranks_test judge_test stage_test group_policy_test student_group_test comm_check)
        if ((${#programs[@]})); then cmake --build "$build" --target "${programs[@]}"; else cmake --build "$build" --target "${threaded[@]}"; fi
        export OMP_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1:suppressions=$PWD/tests/races_of_others.txt
        ;;
    *) echo "sanitize: address or thread, found '$kind'" >&2; exit 2 ;;
esac
run_tests() { ctest --test-dir "$build" --output-on-failure -j "$(nproc)" --progress "$@"; }
if ((${#programs[@]})); then
    for program in "${programs[@]}"; do "$build/bin/$program" --gtest_brief=1; done
elif [[ $kind == address ]]; then
    run_tests -E '^(e2e|bench|faults|fuzz|cuda|comm)\.|^World\.(EditsThatWereNotMade|ScoresFallWith|NothingIsPaid)'
    # Open MPI unloads its components before leaks are looked for: nobody can tell whose they are.
    ASAN_OPTIONS=$address_options:detect_leaks=0 run_tests -R '^comm\.'
else
    # The judge's training is minutes of products on the pool, which others try.
    printf "%s\n" "${threaded[@]/#/$build/bin/}" | grep _test | xargs -P "$(nproc)" -n 1 sh -c '"$0" --gtest_brief=1 --gtest_filter=-JudgeTraining.*'
    run_tests -R '^comm\.(alone|ranks_)'
fi
