# Sourced by tests/sanitize.sh, tests/fuzz/run.sh and tests/tidy.py: the build with Clang under AddressSanitizer and
# UndefinedBehaviorSanitizer, with libFuzzer's instrumentation, so that one build serves all.
build=${ATELIER_ASAN_BUILD_DIR:-build-asan}

# sanitized_configure: sets up and configures
sanitized_configure() {
    scripts/setup.sh build slurm checks
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -gline-tables-only" \
        -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DATELIER_TESTS=ON -DATELIER_CUDA=OFF -DATELIER_FUZZ=ON \
        -DATELIER_SANITIZE=address,undefined >/dev/null
}

# sanitized_build [TARGET...]: the same, and builds
sanitized_build() {
    sanitized_configure
    cmake --build "$build" --target "${@:-all}"
}
