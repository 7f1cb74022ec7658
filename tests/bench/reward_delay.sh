#!/usr/bin/env bash
# How much slower is a rollout whose scores take a second each, with a pool sized for it? Alternates runs and prints the ratio.
#   tests/bench/reward_delay.sh [BIN_DIR] [REPEATS]
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:-build/bin} repeats=${2:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
run() {  # NAME SETTINGS...: seconds of one rollout of 24 groups of 8
    local name=$1 begin
    shift
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$name" --set curate.enabled=false --set rollout.prompts_per_iteration=24 "$@" >/dev/null
    begin=$(date +%s.%N)
    "$bin/atelier-rollout" --run "$work/$name" --policy t2i --iteration 1 2>/dev/null
    echo "$(date +%s.%N) - $begin" | bc
}
for i in $(seq "$repeats"); do
    plain=$(run "plain-$i")
    slow=$(run "slow-$i" --set reward.test_delay=1 --set reward.workers=32 --set reward.queue=64)
    echo "without delay $plain s, one second a score $slow s, ratio $(echo "scale=3; $slow / $plain" | bc)"
done
