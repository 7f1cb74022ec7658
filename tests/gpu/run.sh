#!/usr/bin/env bash
# Everything that a device must show, from one bundle that runs on a machine with a driver, CUDA and PyTorch.
#
#   tests/gpu/run.sh bundle DIR [lean]    here: builds for ATELIER_CUDA_ARCHITECTURES ("80-real;90-real;100-real") and writes the self-contained
#                                  bundle DIR, and DIR.tar.xz; lean: without what a checkout of these sources has
#   tests/gpu/run.sh device [DIR [STEP...]]    there: runs DIR (or the bundle that this script lies in; a lean one from a checkout's root), all
#                                  steps or those that a pattern names ('oracles*'); writes the folder ATELIER_GPU_RESULTS (./gpu-results)
#   tests/gpu/run.sh emulate       here: the same steps at toy sizes on the emulated backend, from a bundle of the present build (CI)
#
# Steps go on after one that failed; each has at most ATELIER_GPU_STEP_SECONDS (150), and is killed ten seconds after it. With ATELIER_GPU_SECONDS all
# have that together, and those that come too late don't run: the table is printed before the machine is taken away. After the first step the
# checks run side by side, one for two cores; what is timed runs alone. The last lines are the table of all steps and results; it is also in the
# results' summary.txt with the device's name and clocks, beside a log of each step, and all of them in all.txt. Results of an earlier run there are
# removed, another folder that isn't empty is refused. Exit code: 0 if all steps ran and none failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(ops_test device_test dit_oracle_test vae_oracle_test vlm_oracle_test pipeline_oracle_test group_policy_test student_group_test device_bench
    atelier-plan atelier-curate atelier-rollout atelier-grpo atelier-teacher-dump atelier-distill atelier-evaluate atelier-inspect
    atelier-reward-train)

# What steps read, and their scripts, from a checkout.
copy_data() {
    local source=$1 bundle=$2
    cp "$source"/tests/gpu/{stages.sh,reward_train.sh,diffusers_baseline.py} "$source/tests/e2e/common.sh" "$bundle/"
    mkdir -p "$bundle/assets/mini" "$bundle/oracle/parts"
    cp -r "$source/configs" "$bundle/"
    cp -r "$source"/assets/mini/{base,judge,prompts} "$bundle/assets/mini/"
    cp -r "$source"/tests/oracle/data/{transformer,pipeline} "$bundle/oracle/"
    cp -r "$source"/tests/oracle/data/parts/{model,case}-v* "$bundle/oracle/parts/"
}

# Programs and what they link (but not CUDA's libraries, which are there).
fill_bundle() {
    local build=$1 backend=$2 bundle=$3 program library
    mkdir -p "$bundle"/{bin,lib,libraries,glibc,wheels}
    for program in "${programs[@]}"; do cp "$build/bin/$program" "$bundle/bin/"; done
    cp "$backend" "$bundle/lib/libatelier_cuda.so"
    [[ ! -f $build/lib/libkernel_times.so ]] || cp "$build/lib/libkernel_times.so" "$bundle/lib/"
    cp "$here/run.sh" "$bundle/"
    ldd "$bundle"/bin/* "$bundle/lib/libatelier_cuda.so" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u | while read -r library; do
        case $(basename "$library") in
            libcu* | libnv* | libnccl*) ;;
            libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libresolv.so.* | libutil.so.*) cp -L "$library" "$bundle/glibc/" ;;
            *) cp -L "$library" "$bundle/libraries/" ;;
        esac
    done
    strip "$bundle"/bin/* "$bundle"/lib/*.so "$bundle"/libraries/*
    # For a machine whose C library is older than this one's.
    cp -L "$(ldd "$bundle/bin/ops_test" | awk '/ld-linux/ {print $1}')" "$bundle/glibc/loader"
}

make_bundle() {
    local bundle=$1 build=${ATELIER_GPU_BUILD_DIR:-build-gpu} source
    source=$(cd "$here/../.." && pwd)
    cd "$source"
    scripts/setup.sh build cuda
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DATELIER_TESTS=ON -DATELIER_ARCH=x86-64-v3 \
        -DATELIER_UNITY=OFF -DATELIER_CUDA_ARCHITECTURES="${ATELIER_CUDA_ARCHITECTURES:-80-real;90-real;100-real}" >/dev/null  # programs half the size
    cmake --build "$build" --target atelier_ops_cuda "${programs[@]}"
    cmake --build "$build" --target kernel_times || echo "bundle: without CUPTI's headers there will be no times of kernels" >&2
    fill_bundle "$build" "$build/lib/libatelier_cuda.so" "$bundle"
    [[ $2 == lean ]] || copy_data "$source" "$bundle"
    # numpy comes with PyTorch there.
    python3 -m pip download --quiet -d "$bundle/wheels" diffusers==0.42.1 || echo "bundle: no wheel of diffusers: there will be no baseline" >&2
    rm -f "$bundle"/wheels/numpy-*
    tar -C "$(dirname "$bundle")" -cJf "$bundle.tar.xz" "$(basename "$bundle")"
    du -sh "$bundle" "$bundle.tar.xz"
}

# Where CUDA's libraries lie there: the toolkit's, else those that came with PyTorch.
cuda_libraries() {
    local folder found=()
    for folder in "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda-*/lib64; do [[ -d $folder ]] && found+=("$folder"); done
    while read -r folder; do found+=("$folder"); done < <(
        python3 -c 'import glob, site
for base in site.getsitepackages() + [site.getusersitepackages()]:
    for folder in sorted(glob.glob(base + "/nvidia/*/lib")): print(folder)' 2>/dev/null || true)
    (IFS=:; echo "${found[*]}")
}

wanted=()
is_wanted() {
    local pattern
    ((${#wanted[@]})) || return 0
    # shellcheck disable=SC2053
    for pattern in "${wanted[@]}"; do [[ $1 == $pattern ]] && return 0; done
    return 1
}

# Of all steps' time together.
seconds_left() { echo $((${ATELIER_GPU_SECONDS:-1000000} - SECONDS)); }

# One that doesn't end when it is told to, as where a device hangs, holds up the rest for ten seconds.
limited() {
    local most=${ATELIER_GPU_STEP_SECONDS:-150} left
    left=$(seconds_left)
    timeout -k 10 $((left < most ? left : most)) "$@"
}

# An empty folder for results. Removes those of an earlier run and nothing else.
prepare_results() {
    local mark=.made-by-run.sh
    if [[ -n $(ls -A "$1" 2>/dev/null) ]]; then
        [[ -f $1/$mark ]] || { echo "$1 is not empty and holds no results of an earlier run: name another folder in ATELIER_GPU_RESULTS" >&2; return 2; }
        rm -rf "$1"
    fi
    mkdir -p "$1"
    : >"$1/$mark"
}

# step NAME COMMAND...: runs it, keeps its log, notes how it ended.
step() {
    local name=$1 begin=$SECONDS state=passed
    shift
    is_wanted "$name" || return 0
    if (($(seconds_left) < 10)); then
        printf '%-28s %-14s\n' "$name" "not run" | tee -a "$out/steps.txt"
        return 0
    fi
    if [[ $(type -t "$1") == function ]]; then
        "$@" >"$out/$name.log" 2>&1 || state="FAILED ($?)"
    else
        limited "$@" >"$out/$name.log" 2>&1 || state="FAILED ($?)"
    fi
    # What failed first, where the log has one of these words: a search that finds nothing must not end the run.
    [[ $state == passed ]] || { grep -nE -m 5 -A 6 'Failure|CUDA|cuDNN|cuBLASLt|NaN' "$out/$name.log" | cut -c1-300 || true; tail -n 5 "$out/$name.log"; }
    printf '%-28s %-14s %5d s\n' "$name" "$state" $((SECONDS - begin)) | tee -a "$out/steps.txt"
    sed -n 's/^result: /    /p' "$out/$name.log"  # at once: a machine may be taken away before the table
    { flock 9; echo "== $name: $state" >&9; cat "$out/$name.log" >&9; } 9>>"$out/all.txt"  # one file, where a machine gives back few
}

# The same beside others of its kind.
check() {
    while (($(jobs -rp | wc -l) >= side_by_side)); do wait -n; done
    step "$@" &
}

run_steps() {
    local mode=$1
    bundle=$2
    [[ -d $bundle/oracle ]] || copy_data "$PWD" "$bundle"
    out=${ATELIER_GPU_RESULTS:-gpu-results}
    prepare_results "$out" || return
    : >"$out/steps.txt"
    loader=()
    export LD_LIBRARY_PATH=$bundle/libraries:$(cuda_libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    if ! "$bundle/bin/atelier-inspect" --help >/dev/null 2>&1; then
        loader=("$bundle/glibc/loader" --library-path "$bundle/glibc:$LD_LIBRARY_PATH")
    fi
    export ATELIER_TEST_DEVICE=cuda ATELIER_CUDA_BACKEND=$bundle/lib/libatelier_cuda.so ATELIER_ORACLE_DIR=$bundle/oracle
    local blocking=(env CUDA_LAUNCH_BLOCKING=1) replay='*' dit=(32 32 128) sizes="32 32 1:64 64 1:64 64 8" trained=(8 32 128) shipped=(64 64 4)
    local groups="8 32 128 32 32 8 8 10 2 0 32:8 32 128 64 64 8 4 3 3 64 32"
    # All blocks at once take about 75 GiB of weights, gradients and rounded weights.
    (($(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1 || echo 0) > 100000)) && groups+=":32 32 128 32 32 8 8 10 2 0 32"
    local kernels=(32768 4096) trained_sizes="32 32 4:64 64 1" mib=8192
    local products=(8192 4096 4096 32768) plans=(32 128 4096) pictures="32 32:64 64" recompute
    recompute=$(sed -n 's/^recompute = "\([^"]*\)".*/\1/p' "$bundle/configs/qwen-image-2.1.toml")
    local side_by_side=$(($(nproc) > 3 ? $(nproc) / 2 : 1))
    if [[ $mode == emulate ]]; then
        replay='All/Replay.*/0' dit=(2 2 32) trained=(2 2 32) sizes="4 4 1" trained_sizes="4 4 1" shipped=(4 4 2) kernels=(4 256) mib=1
        groups="2 2 32 2 4 2 2 3 2 4 32" products=(16 32 8) plans=(2 16 8) pictures="1 2 3"
        export GTEST_TOTAL_SHARDS=8 GTEST_SHARD_INDEX=0  # all of them run as ctest's cuda.* on the same backend
    fi

    # In order of value: what fails first says most.
    step smoke "${blocking[@]}" "${loader[@]}" "$bundle/bin/device_test" --gtest_filter='DeviceActivation.*:DeviceProducts.*:DeviceGraph.*'
    check operations "${blocking[@]}" "${loader[@]}" "$bundle/bin/ops_test" --gtest_filter='-Precision.*:Matmul.BitsDoNot*:Convolution.*'
    check operations-as-on-the-cpu "${blocking[@]}" "${loader[@]}" "$bundle/bin/device_test"
    check oracles "${loader[@]}" "$bundle/bin/dit_oracle_test"
    check oracles-autoencoder "${loader[@]}" "$bundle/bin/vae_oracle_test" --gtest_filter='-*Gradient*'
    check oracles-text-encoder "${loader[@]}" "$bundle/bin/vlm_oracle_test"
    check oracles-pictures "${loader[@]}" "$bundle/bin/pipeline_oracle_test"
    check stages env LOADER="${loader[*]}" "$bundle/stages.sh" "$bundle" $mode
    check reward-train env LOADER="${loader[*]}" "$bundle/reward_train.sh" "$bundle"
    check replay-and-training "${loader[@]}" "$bundle/bin/group_policy_test" --gtest_filter="$replay:GroupPolicy.ReplayOf*:GroupPolicy.FirstUpdate*:GroupPolicy.GradientsDoNotDependOnWhatIsKept"
    check distillation "${loader[@]}" "$bundle/bin/student_group_test"
    wait
    step time-kernels "${loader[@]}" "$bundle/bin/device_bench" kernels "${kernels[@]}"
    step time-products "${loader[@]}" "$bundle/bin/device_bench" products "${products[@]}"
    step time-copy "${loader[@]}" "$bundle/bin/device_bench" copy "$mib"
    step time-plans "${loader[@]}" "$bundle/bin/device_bench" plans "${plans[@]}"
    local size how
    IFS=: read -r -a pictures <<<"$pictures"
    for size in "${pictures[@]}"; do
        # shellcheck disable=SC2086
        step "time-decode-${size// /x}" "${loader[@]}" "$bundle/bin/device_bench" decode $size
    done
    # shellcheck disable=SC2086
    step "time-encode-${pictures[-1]// /x}" "${loader[@]}" "$bundle/bin/device_bench" encode ${pictures[-1]}
    IFS=: read -r -a sizes <<<"$sizes"
    for size in "${sizes[@]}"; do
        # shellcheck disable=SC2086
        step "time-dit-${size// /x}" sampled "${loader[@]}" "$bundle/bin/device_bench" dit "${dit[@]}" $size forward
    done
    # Eight blocks: weights, gradients and their bf16 copies of all 32 do not fit beside activations everywhere.
    IFS=: read -r -a trained_sizes <<<"$trained_sizes"
    for size in "${trained_sizes[@]}"; do
        # shellcheck disable=SC2086
        step "time-dit-train-${size// /x}" sampled "${loader[@]}" "$bundle/bin/device_bench" dit "${trained[@]}" $size train
    done
    how=${shipped[*]}  # the configuration's micro-batch, and what it keeps
    step "time-dit-train-${how// /x}" sampled "${loader[@]}" "$bundle/bin/device_bench" dit "${trained[@]}" "${shipped[@]}" train "$recompute"
    IFS=: read -r -a groups <<<"$groups"
    for size in "${groups[@]}"; do
        # shellcheck disable=SC2086
        step "time-group-${size// /x}" "${loader[@]}" "$bundle/bin/device_bench" group $size
    done
    if [[ $mode == device ]]; then
        # Each kernel's time in place, and the gaps between them.
        for size in "32 32 1 forward" "64 64 1 forward" "64 64 1 train"; do
            # shellcheck disable=SC2086
            step "profile-dit-${size// /-}" profile "${loader[@]}" "$bundle/bin/device_bench" dit \
                $([[ $size == *train ]] && echo "${trained[*]}" || echo "${dit[*]}") $size
        done
        # What others take, last: it was measured before.
        step diffusers-install install_diffusers
        for how in eager blocks whole; do
            step "diffusers-$how" env -u LD_LIBRARY_PATH PYTHONPATH="$work/python" python3 "$bundle/diffusers_baseline.py" "${dit[@]}" $how "${sizes[@]// /x}"
        done
    fi
    summary | tee "$out/summary.txt"
    ! grep -qE 'FAILED|not run' "$out/steps.txt"
}

# With the library that tells when kernels ran.
profile() {
    CUDA_INJECTION64_PATH=$bundle/lib/libkernel_times.so limited "$@" && grep -q "^result: gaps" "$out/$name.log"
}

# With the device's clocks, its power and what holds the clocks back, five times a second: of the half of the samples that take most power.
sampled() {
    local sampler='' state=0 samples=$out/$name.samples
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used,clocks_throttle_reasons.active --format=csv,noheader,nounits -lms 200 \
            >"$samples" &
        sampler=$!
    fi
    limited "$@" || state=$?
    [[ $sampler ]] || return "$state"
    kill "$sampler" && wait "$sampler" || true
    sort -t, -k3,3g "$samples" | tail -n $((($(wc -l <"$samples") + 1) / 2)) | awk -F ', *' -v name="$name" '
        {if (NR == 1 || $1 < low) low = $1; if ($1 > high) high = $1; memory = $2; power += $3; if ($4 > heat) heat = $4; if ($5 > used) used = $5; ++count[$6]}
        END {if (NR == 0) exit; for (bits in count) reasons = reasons sprintf(", %s in %d", bits, count[bits])
             printf "result: %s: %d samples, clocks %d to %d MHz, memory %d MHz, %.0f W, %d degrees, %d MiB of memory in use, held back by%s\n",
                    name, NR, low, high, memory, power / NR, heat, used, substr(reasons, 2)}'
    return "$state"
}

# The wheels of packages that aren't there.
install_diffusers() {
    local wheel name missing=()
    for wheel in "$bundle"/wheels/*.whl; do
        name=$(basename "$wheel")
        env -u LD_LIBRARY_PATH python3 -c 'import importlib.metadata as m, sys; m.version(sys.argv[1])' "${name%%-*}" 2>/dev/null || missing+=("$wheel")
    done
    ((${#missing[@]})) || return 0
    env -u LD_LIBRARY_PATH python3 -m pip install --quiet --no-index --no-deps --target "$work/python" "${missing[@]}"
}

summary() {
    echo "device: $(nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null || echo 'none (emulated)')"
    echo "host: $(uname -n), $(nproc) cores; $(date -u +%FT%TZ)"
    cat "$out/steps.txt"
    command -v nvidia-smi >/dev/null || echo "times of the emulator, which measure nothing:"
    sed -n 's/^result: //p' "$out"/*.log
}

work=$(mktemp -d)  # nothing of it is a result
trap 'rm -rf "$work"' EXIT
case ${1:-} in
    bundle) make_bundle "$(realpath -m "${2:?a folder for the bundle}")" "${3:-whole}" ;;
    device)
        wanted=("${@:3}")
        run_steps device "$(realpath "${2:-$here}")"
        ;;
    emulate)
        build=$(realpath "${ATELIER_BUILD_DIR:-$here/../../build}")
        fill_bundle "$build" "$build/lib/emulated/libatelier_cuda.so" "$work/bundle"
        copy_data "$here/../.." "$work/bundle"
        # What isn't results stays as it is, and nothing is run.
        mkdir "$work/other"
        : >"$work/other/file"
        (ATELIER_GPU_RESULTS=$work/other run_steps emulate "$work/bundle") && { echo "FAILED: results in a folder of something else" >&2; exit 1; }
        [[ $(ls -A "$work/other") == file ]] || { echo "FAILED: a folder that is none of results was changed" >&2; exit 1; }
        export ATELIER_GPU_RESULTS=${ATELIER_GPU_RESULTS:-$work/results}
        prepare_results "$ATELIER_GPU_RESULTS"  # an earlier run's
        run_steps emulate "$work/bundle"
        ;;
    *)
        sed -n '2,16p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
