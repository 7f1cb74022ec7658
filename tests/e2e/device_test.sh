#!/usr/bin/env bash
# Stages with compute.device = "cuda", as programs, on the backend's own sources under the emulator: shards and policies at any number of
# ranks, AdamW's memory on either side, kill and resume, adapters, weights cut over ranks, the curation.
#   device_test.sh BIN_DIR MPIEXEC CUDA_BACKEND NCCL_BACKEND   (from the repository's root)
source tests/e2e/common.sh
export ATELIER_CUDA_BACKEND=$3 ATELIER_NCCL_BACKEND=$4

# Pictures of 64 x 64: the emulator counts every number.
plan() {
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model=assets/mini/base --set compute.device=cuda \
        --set sampling.height=64 --set sampling.width=64 --set sampling.output_resolution=64 --set sampling.steps=3 --set steps.count=1 \
        --set curate.enabled=false --set rollout.prompts_per_iteration=2 --set rollout.group_size=2 --set rollout.micro_batch=2 \
        --set sampling.guidance_scale=1 --set grpo.learning_rate=1e-3 --set grpo.minibatches=2 --set grpo.iterations=1 --set reward.min_spread=0 \
        --set reward.gate=0 --set distill.prompts=1 --set distill.group_size=1 --set distill.batch=1 --set distill.rounds=1 "${@:2}" >/dev/null
}
iteration() { on "$1" "$2" "$3" --policy t2i --iteration 1; }
policy() { echo "$work/$1/t2i/iter-0001/policy"; }

plan one
code 0 iteration 1 rollout one
says "on the device .*libraries on the device 20[0-9][0-9]\."
code 0 "$bin/atelier-inspect" --replay "$work/one/t2i/iter-0001/rollout"
says " 0 differ"
code 0 iteration 1 grpo one
says "device memory: the peak was .* 100 % of the plan"
trained one

# The same bits again, with AdamW's memory in host memory; shards of two ranks are those of one.
plan host --set compute.optimizer=host
code 0 iteration 2 rollout host
same_shards one/t2i/iter-0001/rollout host/t2i/iter-0001/rollout
code 0 iteration 1 grpo host
same "$(policy one)" "$(policy host)" "AdamW's memory on the host changes the policy"

# Products in fp32 there: the CPU's pictures to rounding.
for where in cpu cuda; do
    plan pictures-$where --set compute.device=$where --set compute.dtype=f32
    code 0 iteration 1 rollout pictures-$where
done
latents() { h5dump -y -w 0 -m %.9g -d /shape-4x4/latents "$work/$1/t2i/iter-0001/rollout/shard-00000.h5" | grep '^ *[-0-9]'; }
d=$(paste -d, <(latents pictures-cpu | tr -d ' \n') <(latents pictures-cuda | tr -d ' \n') | python3 -c 'import sys
v = [float(x) for x in sys.stdin.read().split(",") if x.strip()]
a, b = v[: len(v) // 2], v[len(v) // 2 :]
assert len(a) == len(b) == 512
print(max(map(abs, map(float.__sub__, a, b))))')
echo "latents of the CPU and the device differ by at most $d"
within "$d" 1e-5 "latents of the device"

# The text encoder's weights in host memory: the same states, so the same samples (its products round a block's weights each time).
plan streamed --set compute.text_encoder=host
code 0 iteration 1 rollout streamed
same_shards one/t2i/iter-0001/rollout streamed/t2i/iter-0001/rollout

# Everything that a state can have, stored as bf16, on either side.
options=(--set grpo.kl=gaussian --set grpo.kl_beta=0.1 --set grpo.ema=0.9 --set checkpoint.dtype=bf16 --set sampling.guidance_train=guided
    --set sampling.guidance_scale=1.5)
for where in device host; do
    plan options-$where "${options[@]}" --set compute.optimizer=$where --set grpo.iterations=2
    code 0 iteration 1 rollout options-$where
    code 0 iteration 1 grpo options-$where
    trained options-$where
done
for part in . ema; do
    cmp "$(policy options-device)/$part"/*.safetensors "$(policy options-host)/$part"/*.safetensors || fail "bf16 policies differ"
done
# The policy that ran is the one that is stored.
code 0 on 1 rollout options-host --policy t2i --iteration 2
code 0 "$bin/atelier-inspect" --replay "$work/options-host/t2i/iter-0002/rollout"
says " 0 differ"

# Cut over ranks: sums in another order differ by rounding (as in scale_test.sh).
mv "$(policy one)" "$work/policy-one"
for zero in 0 1 2 3; do
    plan one --set compute.zero=$zero
    rm -rf "$(policy one)"
    code 0 iteration 2 grpo one
    trained one
    d=$(distance "$work/policy-one" "$(policy one)")
    echo "compute.zero=$zero on 2 ranks: weights differ from one rank's by at most $d"
    within "$d" 5e-6 "compute.zero=$zero on two ranks"
done
plan all --set compute.zero=3 --set compute.optimizer=host "${options[@]}"
code 0 iteration 2 rollout all
code 0 iteration 2 grpo all
trained all

# An adapter.
for zero in 0 1; do
    plan lora-$zero --set lora.rank=2 --set distill.start=base --set compute.zero=$zero --set grpo.iterations=2
    code 0 iteration 1 rollout lora-$zero
    code 0 iteration $((zero + 1)) grpo lora-$zero
    trained lora-$zero
done
d=$(distance "$(policy lora-0)" "$(policy lora-1)")
within "$d" 5e-6 "an adapter on two ranks"
code 0 on 1 rollout lora-1 --policy t2i --iteration 2
code 0 "$bin/atelier-inspect" --replay "$work/lora-1/t2i/iter-0002/rollout"
says " 0 differ"

# An adapter merged into weights on the device: the picture of the exported merge, to the bit, and another one than the base's.
draw() {
    code 0 "$bin/atelier-generate" --device cuda --model "$1" --output-resolution 64 --steps 2 --prompt "a red circle" --output "$work/$2.png" \
        --output-latents "$work/$2.safetensors" "${@:3}"
}
code 0 "$bin/atelier-export" --model assets/mini/base --lora "$(policy lora-0):50" --output "$work/merged" --dtype f32
draw "$work/merged" merged
draw assets/mini/base added --lora "$(policy lora-0):50"
draw assets/mini/base none
cmp "$work/merged.safetensors" "$work/added.safetensors" || fail "an adapter merged on the device differs from its export"
for name in added none; do mkdir "$work/l-$name" && cp "$work/$name.safetensors" "$work/l-$name/"; done
within 1e-2 "$(distance "$work/l-none" "$work/l-added")" "the adapter changes nothing"

# Killed in the middle of an update, with AdamW's memory on the host (tests/gpu/stages.sh: on the device).
often=(--set grpo.epochs=3 --set checkpoint.every=1)
updates=$work/killed/t2i/iter-0001/updates
plan killed "${often[@]}"
code 0 iteration 1 rollout killed
code 0 iteration 1 grpo killed
mv "$(policy killed)" "$work/undisturbed"
plan killed "${often[@]}" --set compute.optimizer=host
rm -rf "$updates" "$(policy killed)"
stopped KILL "${updates%/updates}" "$(policy killed)" 1 grpo killed --policy t2i --iteration 1
code 0 iteration 1 grpo killed
says "goes on from"
same "$work/undisturbed" "$(policy killed)" "killed and resumed, the policy differs"

# From the pool (the stages after these, edits too, to the student's evaluation: tests/gpu/stages.sh).
plan whole --set curate.enabled=true --set curate.group_size=2 --set curate.prompts=2 --set curate.range_min=0
for task in t2i edit; do code 0 on 1 curate whole --task $task; done
code 0 on 1 rollout whole --policy t2i --iteration 1
code 0 "$bin/atelier-inspect" "$work/whole"
echo passed
