#!/usr/bin/env bash
# How much slower is a rollout whose judgements take a second each, with a pool sized for it? Takes turns: without delay, with it on this
# rank's threads, on a judge rank, and on a judge rank that asks a server. Prints seconds, the ratio to the run without delay, and what part
# of the time the sampling rank waited for verdicts (from timeline.json, which does not care what else the machine does).
#   tests/bench/reward_delay.sh [BIN_DIR] [REPEATS] [GROUPS] [PNG]       PNG: the last judge rank's timeline
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:-build/bin} repeats=${2:-3} groups=${3:-24} png=${4:-}
work=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
"$bin/judge_server" --ready "$work/url" --delay 1 & server=$!
until [[ -e $work/url ]]; do sleep 0.05; done
run() {  # NAME RANKS SETTINGS...: one rollout of groups of 8
    local name=$1 ranks=$2 begin launch=()
    shift 2
    ((ranks == 1)) || launch=(mpirun --oversubscribe --bind-to none -n "$ranks")
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$name" --set curate.enabled=false --set rollout.prompts_per_iteration="$groups" \
        --set reward.queue=64 "$@" >/dev/null
    begin=$(date +%s.%N)
    "${launch[@]}" "$bin/atelier-rollout" --run "$work/$name" --policy t2i --iteration 1 2>"$work/$name.log" || cat "$work/$name.log" >&2
    took=$(echo "$(date +%s.%N) - $begin" | bc)
    waited=$(python3 - "$work/$name/t2i/iter-0001/rollout/timeline.json" <<'P'
import json, sys
spans = [e for e in json.load(open(sys.argv[1]))["traceEvents"] if e["ph"] == "X" and e["tid"] == 0]
seconds = sum(e["dur"] for e in spans if e["name"] in ("gather", "hand over")) / 1e6
whole = (max(e["ts"] + e["dur"] for e in spans) - min(e["ts"] for e in spans)) / 1e6
print(f"{seconds:.2f} s = {100 * seconds / (whole - seconds):.1f} %")
P
)
}
sized=(--set reward.workers=32)
for i in $(seq "$repeats"); do
    run plain-$i 1
    plain=$took
    echo "without delay: $took s, waited $waited"
    for how in threads rank server; do
        case $how in
            threads) run $how-$i 1 "${sized[@]}" --set reward.test_delay=1 ;;
            rank) run $how-$i 2 "${sized[@]}" --set reward.ranks=1 --set reward.test_delay=1 ;;
            server) run $how-$i 2 "${sized[@]}" --set reward.ranks=1 --set reward.scorer=http --set judge.url="$(<"$work/url")" --set judge.model=judge \
                --set judge.templates=configs/judge --set judge.in_flight=96 ;;
        esac
        echo "a second a judgement, $how: $took s, ratio $(echo "scale=3; $took / $plain" | bc), waited $waited"
    done
done
if [[ -n $png ]]; then "$bin/atelier-inspect" --timeline "$png" "$work/rank-$repeats/t2i/iter-0001/rollout"; fi
