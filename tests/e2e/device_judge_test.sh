#!/usr/bin/env bash
# The engine's own judge on the device that draws (scorer = "judge", compute.device = "cuda"), on the backend's own sources under the
# emulator: the same shards beside the sampling, on several ranks, on a judge rank and with the shortest queue; what is planned is what is
# taken; curation, rollout and evaluation.
#   device_judge_test.sh BIN_DIR MPIEXEC CUDA_BACKEND   (from the repository's root)
source tests/e2e/common.sh
export ATELIER_CUDA_BACKEND=$3

# Pictures of 64 x 64, words of a judgement: the emulator counts every number.
mkdir "$work/templates"
for file in configs/mini-judge/{t2i-*,edit-instruction}.toml; do
    sed 's/^reasoning_tokens = .*/reasoning_tokens = 3/' "$file" >"$work/templates/$(basename "$file")"
done
plan() {
    code 0 "$bin/atelier-plan" --config configs/mini-judge.toml --run "$work/$1" --set judge.directory=assets/mini/judge \
        --set judge.templates="$work/templates" --set judge.context=160 --set compute.device=cuda --set sampling.height=64 --set sampling.width=64 \
        --set sampling.output_resolution=64 --set sampling.steps=2 --set steps.count=1 --set sampling.guidance_scale=1 --set curate.enabled=false \
        --set rollout.prompts_per_iteration=2 --set rollout.group_size=2 --set rollout.micro_batch=2 --set reward.min_spread=0 --set reward.gate=0 \
        "${@:2}"
}
rollout=t2i/iter-0001/rollout
draw() { code 0 on "$1" rollout "$2" --policy t2i --iteration 1; }
# Threads of the rank say their own plan, ranks that judge theirs.
planned() { says "device memory: the peak was .* 100 % of the plan"; }

plan one
draw 1 one
planned
grep -q "device wait" "$work/one/$rollout/timeline.json" || fail "the timeline does not say who waited for the device"
for key in alignment aesthetics; do
    h5dump -y -d "/shape-4x4/reward/$key/reason" "$work/one/$rollout/shard-00000.h5" | grep -q '"[a-z]' || fail "the judge said nothing about $key"
done

# Whoever judges, and wherever: on each of two ranks, on a rank of its own, one sample at a time.
plan two
draw 2 two
same_shards one/$rollout two/$rollout
plan apart --set reward.ranks=1
draw 2 apart
says "a judge's device memory: the peak was .* 100 % of the plan"
same_shards one/$rollout apart/$rollout
plan short --set reward.workers=1 --set reward.queue=1
draw 1 short
planned
same_shards one/$rollout short/$rollout

# Its place in the plan: on the device, or with compute.judge = "host" in host memory.
held() { "$bin/atelier-plan" --run "$work/$1" --memory | sed -n '/^curate, rollout t2i/,/^$/p' | awk '$1 == "judge" {print $2}'; }
plan host --set compute.judge=host
draw 1 host
[[ -n $(held one) ]] || fail "the plan has no judge on the device"
[[ -z $(held host) ]] || fail "the plan has a judge on the device that is on the host"

# A judge that the run trains, on CPUs; with it curation and an evaluation of several models, whose weights change while it is there.
code 0 "$bin/atelier-world" --labels "$work/train.h5" --count 6 --seed 5
code 0 "$bin/atelier-world" --labels "$work/heldout.h5" --count 2 --seed 6
plan whole --set pipeline.judge=true --set judge.directory= --set reward_train.start=assets/mini/judge --set reward_train.labels="$work/train.h5" \
    --set reward_train.heldout="$work/heldout.h5" --set reward_train.epochs=1 --set curate.enabled=true --set curate.group_size=2 --set curate.prompts=2 --set curate.range_min=0 --set evaluate.samples=1 \
    --set grpo.iterations=1 --set grpo.minibatches=1 --set rollout.prompts_per_iteration=1 --set pipeline.mix=false
code 0 on 1 reward-train whole
code 0 on 1 curate whole --task t2i
planned
code 0 on 1 rollout whole --policy t2i --iteration 1
code 0 on 1 grpo whole --policy t2i --iteration 1
code 0 on 1 evaluate whole --limit 1
echo passed
