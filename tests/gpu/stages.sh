#!/usr/bin/env bash
# The stages on a device, from a bundle (run.sh): the miniature's rollout replayed bit for bit, an update with AdamW's memory on either
# side and, killed in the middle, once more, to the same policy; the distillation; an evaluation; the miniature's judge beside the sampling,
# on the same device in turn, with the same verdicts in any company.
#   stages.sh BUNDLE device|emulate        ATELIER_CUDA_BACKEND: the backend; LOADER: words before each program
set -euo pipefail
cd "$1"
mode=$2
read -r -a loader <<<"${LOADER:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }
atelier() { "${loader[@]}" "bin/atelier-$1" "${@:2}"; }
sizes=()
[[ $mode == device ]] || sizes=(--set sampling.height=64 --set sampling.width=64 --set sampling.output_resolution=64 --set rollout.prompts_per_iteration=2
    --set rollout.group_size=2 --set rollout.micro_batch=2 --set sampling.steps=3 --set steps.count=1 --set distill.prompts=1 --set distill.batch=1
    --set distill.group_size=1 --set distill.rounds=1)
plan() {
    atelier plan --config configs/mini.toml --run "$work/$1" --set run.model=assets/mini/base --set compute.device=cuda --set curate.enabled=false \
        --set grpo.iterations=1 --set grpo.minibatches=2 --set grpo.epochs=2 --set reward.min_spread=0 --set evaluate.samples=1 "${sizes[@]}" "${@:2}" \
        >/dev/null
}
iteration() { atelier "$1" --run "$work/$2" --policy "${3:-t2i}" --iteration 1; }
policy() { echo "$work/$1/t2i/iter-0001/policy/diffusion_pytorch_model.safetensors"; }

plan one
iteration rollout one
atelier inspect --replay "$work/one/t2i/iter-0001/rollout" | tee "$work/replay"
grep -q " 0 differ" "$work/replay" || fail "a replayed log-probability differs"
iteration grpo one
# A first update trains what was sampled: every ratio is 1 to the last bit, with an adapter too.
for adapter in 0 2; do
    plan first-$adapter --set grpo.minibatches=1 --set grpo.epochs=1 --set lora.rank=$adapter --set distill.start=base
    iteration rollout first-$adapter
    iteration grpo first-$adapter
    env -u LD_LIBRARY_PATH python3 - "$work/first-$adapter/metrics.jsonl" <<'P' || fail "a ratio of the first update is not 1 (adapter of rank $adapter)"
import json, sys
m = json.loads(open(sys.argv[1]).readlines()[-1])
sys.exit(not (m["stage"] == "grpo" and m["updates"] == 1 and m["ratio_deviation"] == 0))
P
done
# The same update of the same samples again: with AdamW's memory on the host, and killed.
again() {
    plan one "$@"
    rm -rf "$work/one/t2i/iter-0001"/{policy,updates}
}
cp "$(policy one)" "$work/policy"
again --set compute.optimizer=host
iteration grpo one
cmp "$work/policy" "$(policy one)" || fail "AdamW's memory on the host changes the policy"
again --set checkpoint.every=1
atelier grpo --run "$work/one" --policy t2i --iteration 1 &
pid=$!
while kill -0 $pid 2>/dev/null && ! compgen -G "$work/one/t2i/iter-0001/updates/update-*" >/dev/null; do sleep 0.05; done
pkill -KILL -P $pid || true
kill -KILL $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
flock "$work/one/t2i/iter-0001/.lock" true
[[ ! -e $(policy one) ]] || echo "result: stages: the update was over before it was killed, so that nothing was resumed"
iteration grpo one
cmp "$work/policy" "$(policy one)" || fail "killed and resumed, the policy differs"
iteration rollout one edit
iteration grpo one edit
for task in t2i edit; do atelier teacher-dump --run "$work/one" --task $task --round 1; done
atelier distill --run "$work/one" --round 1
atelier evaluate --run "$work/one" --limit 2

mkdir "$work/templates"
for file in configs/mini-judge/*.toml; do
    if [[ $mode == device ]]; then cp "$file" "$work/templates/"; else sed 's/^reasoning_tokens = .*/reasoning_tokens = 3/' "$file" >"$work/templates/$(basename "$file")"; fi
done
for workers in 16 1; do
    plan judged-$workers --set reward.scorer=judge --set judge.directory=assets/mini/judge --set judge.templates="$work/templates" --set judge.answers=48 \
        --set judge.context=160 --set reward.workers=$workers
    iteration rollout judged-$workers
    atelier inspect --export "$work/verdicts-$workers" "$work/judged-$workers/t2i/iter-0001/rollout"
done
cmp "$work"/verdicts-{16,1}/samples.jsonl || fail "verdicts depend on what is judged beside them"
