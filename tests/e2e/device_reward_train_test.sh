#!/usr/bin/env bash
# reward-train with compute.device = "cuda", as a program, on the backend's own sources under the emulator: the CPU's losses and gradients,
# AdamW's memory on either side, everything that can be cut over ranks, an adapter, kill and resume.
#   device_reward_train_test.sh BIN_DIR MPIEXEC CUDA_BACKEND NCCL_BACKEND   (from the repository's root)
source tests/e2e/common.sh
export ATELIER_CUDA_BACKEND=$3 ATELIER_NCCL_BACKEND=$4
make_labels 5 2
plan() {
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" "${on_labels[@]}" --set compute.device=cuda --set reward_train.batch=3 \
        --set reward_train.epochs=1 --set reward_train.publish_every=1 "${@:2}" >/dev/null
}

for where in cpu cuda; do
    plan f32-$where --set compute.device=$where --set compute.dtype=f32
    code 0 on 1 reward-train f32-$where
done
d=$(loss f32-cpu f32-cuda)
echo "losses and gradient norms of the CPU and the device differ by at most $d of them"
within "$d" 1e-5 "losses on the device"
# What the trained judges say: scores of four decimals, from weights whose differences AdamW's first steps may enlarge.
within "$(judged f32-cpu f32-cuda)" 1e-3 "held-out scores on the device"

# Products in bf16.
plan one
code 0 on 1 reward-train one
says "device memory: the peak was .* 100 % of the plan"
d=$(loss f32-cpu one)
echo "with products in bf16 by $d"
within "$d" 2e-2 "losses in bf16"
within 1e-7 "$d" "products were not in bf16"
plan host --set compute.optimizer=host --set compute.judge=host
code 0 on 1 reward-train host
says "device memory: the peak was .* 100 % of the plan"
same "$work/one/judge" "$work/host/judge" "AdamW's memory on the host changes the judge"
within 1e-3 "$(judged one host)" "the device's held-out questions were answered in fp32"
for zero in 1 2 3; do
    plan zero-$zero --set compute.zero=$zero
    code 0 on 2 reward-train zero-$zero
    d=$(distance "$work/one/judge" "$work/zero-$zero/judge")
    echo "compute.zero=$zero on 2 ranks: weights differ from one rank's by at most $d"
    within "$d" 5e-6 "compute.zero=$zero on two ranks"
done
plan alone --set compute.zero=3
code 0 on 1 reward-train alone
says "device memory: the peak was .* 100 % of the plan"
plan killed --set compute.zero=3
stopped_training KILL killed 2
code 0 on 2 reward-train killed
says "goes on from"
same "$work/zero-3/judge" "$work/killed/judge" "killed and resumed, the judge differs"
# (The room through which weights come to the device is more than all that an adapter of this size takes.)
for zero in 0 1; do
    plan adapter-$zero --set reward_train.lora_rank=4 --set compute.zero=$zero
    code 0 on $((zero + 1)) reward-train adapter-$zero
done
within "$(distance "$work/adapter-0/judge" "$work/adapter-1/judge")" 5e-6 "an adapter on two ranks"
! cmp -s "$work/start/model.safetensors" "$work/adapter-0/judge/model.safetensors" || fail "the adapter changes nothing"
echo passed
