#!/usr/bin/env bash
# The judge's training on a device, from a bundle (run.sh): two updates with products in fp32 beside the CPU's, and with products in bf16
# twice, to the same judge.
#   reward_train.sh BUNDLE        ATELIER_CUDA_BACKEND: the backend; LOADER: words before each program
set -euo pipefail
cd "$1"
read -r -a loader <<<"${LOADER:-}"
source ./common.sh bin none
python3() { env -u LD_LIBRARY_PATH python3 "$@"; }  # the bundle's libraries are not Python's

make_labels 5 2
train() {
    "${loader[@]}" bin/atelier-plan --config configs/mini.toml --run "$work/$1" "${on_labels[@]}" --set compute.device=cuda \
        --set reward_train.batch=3 --set reward_train.epochs=1 "${@:2}" >/dev/null
    "${loader[@]}" bin/atelier-reward-train --run "$work/$1"
}

# Sums in another order and other last bits of exp and tanh, 2^-24 of a term each: 1e-5 is 160 of them. (A weight whose gradient is nothing but
# rounding may take AdamW's first step the other way; the loss doesn't see it.)
for where in cpu cuda; do train f32-$where --set compute.device=$where --set compute.dtype=f32; done
d=$(loss f32-cpu f32-cuda)
echo "result: reward-train: losses and gradient norms of the CPU and the device differ by at most $d of them"
within "$d" 1e-5 "losses on the device"
d=$(judged f32-cpu f32-cuda)
echo "result: reward-train: held-out scores of the CPU and the device differ by at most $d"
within "$d" 1e-3 "held-out scores on the device"
# Operands are rounded by 2^-8 of each: as vlm_oracle's ProductsInBf16, over the layers of this model 2^-8 sqrt(12 layers) of a state; losses, means
# over many, stay well below.
train one
d=$(loss f32-cpu one)
echo "result: reward-train: with products in bf16 by $d"
within "$d" 2e-2 "losses in bf16"
within 1e-7 "$d" "products were not in bf16"
train again
cmp "$work"/{one,again}/judge/model.safetensors || fail "trained twice, the judge differs"
