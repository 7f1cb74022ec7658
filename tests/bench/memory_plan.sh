#!/usr/bin/env bash
# Planned and measured peak memory of every stage on the miniature, from their manifests.
#   tests/bench/memory_plan.sh [BIN_DIR] [RANKS]    (from the repository's root; build/bin and 1 without)
set -euo pipefail
bin=${1:-build/bin} ranks=${2:-1}
run=$(mktemp -d)/run
trap 'rm -rf "$(dirname "$run")"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

"$bin/atelier-plan" --config configs/mini.toml --run "$run" --set curate.prompts=24 --set curate.range_min=0 --set rollout.prompts_per_iteration=16 \
    --set grpo.iterations=2 --set distill.rounds=2 --set pipeline.mix=false >/dev/null
stage() { mpirun --oversubscribe --bind-to none -n "$ranks" "$bin/atelier-$1" --run "$run" "${@:2}" >/dev/null 2>"$run/log" || { cat "$run/log" >&2; exit 1; }; }
for task in t2i edit; do
    stage curate --task $task
    for i in 1 2; do
        stage rollout --policy $task --iteration $i
        stage grpo --policy $task --iteration $i
    done
done
for round in 1 2; do
    for task in t2i edit; do stage teacher-dump --task $task --round $round; done
    stage distill --round $round
done
stage evaluate --limit 24
echo "planned MiB   peak MiB   peak/planned   stage"
for manifest in $(find "$run" -name manifest.json | sort); do
    planned=$(sed -n 's/^ *"planned_kib": *\([0-9]*\).*/\1/p' "$manifest") peak=$(sed -n 's/^ *"peak_resident_kib": *\([0-9]*\).*/\1/p' "$manifest")
    name=${manifest#"$run"/}
    awk -v p="$planned" -v k="$peak" -v n="${name%/manifest.json}" 'BEGIN { printf "%11.1f   %8.1f   %12.3f   %s\n", p / 1024, k / 1024, k / p, n }'
done
echo "the same from config files, tokenizer and prompt files alone (the whole pool's longest prompts), $ranks rank(s):"
"$bin/atelier-plan" --run "$run" --memory --ranks "$ranks" | awk 'NF && !/^ / { title = $0 } /at once/ { printf "%11.1f   %s\n", $3 * 1024, title }'
