#!/usr/bin/env bash
# The whole pipeline on the miniature, from nothing: sets up, builds, runs through Slurm (a private one on this machine where there
# is none), prints a table.   slurm/quickstart.sh [--run DIR] [--config FILE] [--set section.key=value]...
# A run that was interrupted goes on when it is given again with --run.
set -euo pipefail
# Relative paths are the caller's: the working directory stays his.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

run=$root/runs/quickstart config=$root/configs/mini.toml
sets=()
while (($# > 0)); do
    case $1 in
        --run) run=${2:?--run needs a directory}; shift ;;
        --config) config=${2:?--config needs a file}; shift ;;
        --set) sets+=(--set "${2:?--set needs section.key=value}"); shift ;;
        *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2 ;;
    esac
    shift
done

source "$root/slurm/queue.sh"
has_cluster=
if command -v sinfo >/dev/null && timeout 10 sinfo -h >/dev/null 2>&1; then has_cluster=1; fi
needed=(build)
[[ -n $has_cluster ]] || needed+=(slurm)
"$root/scripts/setup.sh" "${needed[@]}"
build=${ATELIER_BUILD_DIR:-$root/build}
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DATELIER_TESTS=OFF -DATELIER_CUDA=OFF >/dev/null
cmake --build "$build"
ATELIER_BIN=$(cd "$build/bin" && pwd)
export ATELIER_BIN

# On AMX the pipeline takes two thirds of the time with products in bf16, at the same gains (docs/performance.md).
if [[ -z $has_cluster && " ${sets[*]}" != *.dtype=* ]] && grep -qw amx_bf16 /proc/cpuinfo && ! grep -q '^dtype' "$config"; then
    echo "quickstart: this processor multiplies bf16 (AMX): compute.dtype = bf16; --set compute.dtype=f32 for fp32"
    sets+=(--set compute.dtype=bf16 --set checkpoint.dtype=bf16)
fi

if [[ -z $has_cluster ]]; then
    # One for each run, so that two quickstarts don't end each other's.
    export ATELIER_CLUSTER_DIR=${ATELIER_CLUSTER_DIR:-/tmp/atelier-cluster.$UID.$(realpath -m "$run" | cksum | cut -d' ' -f1)}
    "$root/slurm/local-cluster.sh" start
    trap '"$root/slurm/local-cluster.sh" stop' EXIT
    eval "$("$root/slurm/local-cluster.sh" env)"
    echo "quickstart: squeue in another shell: export SLURM_CONF=$SLURM_CONF"
fi
begin=$SECONDS
"$root/slurm/pipeline.sh" "$config" "${sets[@]}" --run "$run"
total=$(wc -l <"$run/pipeline.tsv")
while :; do
    # A controller that doesn't answer is asked again.
    left=$(queued "$run") || left=unknown
    complete=$(cut -f5 "$run/pipeline.tsv" | while read -r output; do [[ ! -e $run/$output/manifest.json ]] || echo; done | wc -l)
    if [[ -t 1 ]]; then printf '\r\033[K%d of %d stages complete, %d s' "$complete" "$total" $((SECONDS - begin)); fi
    [[ -n $left ]] || break
    sleep 3
done
if [[ -t 1 ]]; then echo; fi
if [[ ! -e $run/eval/manifest.json ]]; then
    echo "quickstart: not every stage succeeded" >&2
    cat "$run"/failed/*.txt >&2 2>/dev/null || true
    exit 1
fi
echo "the pipeline took $((SECONDS - begin)) s"
cat "$run/eval/table.txt"
ls "$run"/eval/contact-*.png "$run/eval/summary.json" "$run/report/index.html"
