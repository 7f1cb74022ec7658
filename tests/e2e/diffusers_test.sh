#!/usr/bin/env bash
# A student of the miniature, exported as a whole pipeline directory, opens in diffusers and draws the pictures that atelier-generate
# draws.   diffusers_test.sh BIN_DIR   (from the repository's root; ATELIER_PYTHON: a Python with diffusers, default python3)
set -euo pipefail
bin=$1 python=${ATELIER_PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
base=assets/mini/base image=assets/mini/prompts/images/edit-0001.png
fail() { echo "FAILED: $*" >&2; exit 1; }

if ! "$python" -c 'import diffusers, torch, safetensors; diffusers.QwenImage21Pipeline' 2>/dev/null; then
    echo "skipped: $python has no diffusers with QwenImage21Pipeline; ATELIER_PYTHON names a Python that has it"
    exit 77
fi
quiet() { "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; fail "$*"; }; }
compare() { "$python" tests/e2e/diffusers_check.py "$bin" "$@"; }

# A student, a few steps from the base; learning rates far above what is useful, so that it differs visibly.
run=$work/run
quiet "$bin/atelier-plan" --config configs/mini.toml --run "$run" --set pipeline.mix=false --set curate.enabled=false --set sampling.steps=4 \
    --set rollout.prompts_per_iteration=2 --set rollout.group_size=2 --set rollout.micro_batch=2 --set steps.count=2 --set grpo.iterations=1 \
    --set grpo.minibatches=1 --set grpo.learning_rate=1e-3 --set reward.min_spread=0 --set reward.gate=0 --set distill.rounds=1 \
    --set distill.prompts=2 --set distill.group_size=2 --set distill.learning_rate=1e-3 --set checkpoint.shard_size=3
for task in t2i edit; do
    quiet "$bin/atelier-rollout" --run "$run" --policy $task --iteration 1
    quiet "$bin/atelier-grpo" --run "$run" --policy $task --iteration 1
done
for task in t2i edit; do quiet "$bin/atelier-teacher-dump" --run "$run" --task $task --round 1; done
quiet "$bin/atelier-distill" --run "$run" --round 1
student=$run/opd/round-01/student
[[ -e $student/diffusion_pytorch_model.safetensors.index.json ]] || fail "the student is not in shards"

quiet "$bin/atelier-export" --model $base --transformer "$student" --output "$work/exported" --shard-size 2
(($(ls "$work/exported/transformer"/*.safetensors | wc -l) > 4)) || fail "no shards of the set size"
[[ -L $work/exported/vae ]] || fail "the other components are not linked"
compare "$work/exported" $base "$work" $image

# In bf16, copied: smaller, a model of its own, the same picture on both sides.
quiet "$bin/atelier-export" --model $base --transformer "$student" --output "$work/half" --dtype bf16 --components copy
[[ -d $work/half/vae && ! -L $work/half/vae ]] || fail "the other components are not copied"
compare "$work/half" $base "$work" $image

# An adapter: trained here, on the model in diffusers; the layouts of diffusers and of PEFT both ways.
run=$work/lora
plan_lora=(--set lora.rank=4 --set lora.alpha=8 --set distill.start=base)
quiet "$bin/atelier-plan" --config "$work/run/config.toml" --run "$run" "${plan_lora[@]}"
quiet "$bin/atelier-rollout" --run "$run" --policy t2i --iteration 1
quiet "$bin/atelier-grpo" --run "$run" --policy t2i --iteration 1
adapter=$run/t2i/iter-0001/policy/pytorch_lora_weights.safetensors
quiet "$bin/atelier-export" --model $base --transformer "$(dirname "$adapter")" --output "$work/peft" --as peft
compare $base "$work/exported" "$work" $image "$adapter" "$work/peft"

# What is there already stays as it is.
found=0
"$bin/atelier-export" --model $base --transformer "$student" --output "$work/half" >"$work/out" 2>&1 || found=$?
((found == 2)) && grep -q "is there already" "$work/out" || fail "an existing directory was not refused"
rm "$student"/diffusion_pytorch_model-00002-of-*.safetensors
found=0
"$bin/atelier-export" --model $base --transformer "$student" --output "$work/none" >"$work/out" 2>&1 || found=$?
((found == 3)) && grep -q "00002-of-.*, which is missing" "$work/out" || { cat "$work/out"; fail "a missing shard was not named"; }
[[ ! -e $work/none ]] || fail "half an export was published"
echo "diffusers: all checks passed"
