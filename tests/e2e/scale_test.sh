#!/usr/bin/env bash
# Adapters and training cut over ranks, as programs: the same policy at ZeRO 0 to 3 and at any number of ranks within rounding, the same
# bits at the same number; states resumed at another number of ranks; kill and rerun in the middle of an update; damage.
#   scale_test.sh BIN_DIR MPIEXEC   (from the repository's root)
source tests/e2e/common.sh
at_exit() { umount "$work/small" 2>/dev/null || true; }
model=assets/mini/base toy=tests/oracle/data/pipeline/pipeline  # the toy's pictures all score the same: nothing to train on

plan() {
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model=$model --set sampling.steps=3 --set curate.enabled=false \
        --set rollout.prompts_per_iteration=3 --set rollout.group_size=2 --set rollout.micro_batch=1 --set steps.count=1 \
        --set sampling.guidance_scale=1 --set grpo.learning_rate=1e-3 --set grpo.minibatches=2 --set grpo.iterations=2 --set reward.min_spread=0 \
        --set reward.gate=0 --set storage.states=0 --set distill.prompts=2 --set distill.group_size=1 --set distill.batch=2 --set distill.rounds=1 "${@:2}" >/dev/null
}
iteration() { on "$1" "$2" "$3" --policy t2i --iteration "$4"; }
policy() { echo "$work/$1/t2i/iter-000$2/policy"; }
plan one
code 0 iteration 1 rollout one 1
code 0 iteration 1 grpo one 1
trained one

# An AdamW step of 1e-3 moves each number by at most 1e-3 an update; two updates in an iteration. Sums of gradients in another order
# differ by rounding, which AdamW's first steps magnify where a gradient is nearly zero: the bound is a two-hundredth of a step.
bound=5e-6
# Three groups in two minibatches: ranks without a group of their own in all of these.
for case in "0 2" "1 2" "2 2" "2 3" "3 2" "3 3"; do
    read -r zero ranks <<<"$case"
    run=zero-$zero-$ranks
    plan $run --set compute.zero=$zero
    code 0 iteration $ranks rollout $run 1
    code 0 iteration $ranks grpo $run 1
    trained $run
    d=$(distance "$(policy one 1)" "$(policy $run 1)")
    echo "compute.zero=$zero on $ranks ranks: weights differ from one rank's by at most $d"
    within "$d" $bound "compute.zero=$zero on $ranks ranks"
    files=$(ls "$(policy $run 1)"/training*.h5 | wc -l)
    ((files == (zero == 0 ? 1 : ranks))) || fail "$files training files"
    code 0 "$bin/atelier-inspect" "$(policy $run 1)"
done
# The same number of ranks: the same bits. A state goes on at another number of ranks as at the same.
mv "$(policy zero-3-2 1)" "$work/kept"
code 0 iteration 2 grpo zero-3-2 1
same "$work/kept" "$(policy zero-3-2 1)" "compute.zero=3 twice on two ranks differs"
rm -rf "$work/kept"
code 0 iteration 2 rollout zero-3-2 2
for ranks in 1 3 2; do
    rm -rf "$(policy zero-3-2 2)"
    code 0 iteration $ranks grpo zero-3-2 2
    trained zero-3-2
    cp -r "$(policy zero-3-2 2)" "$work/at-$ranks"
done
for other in 1 3; do
    d=$(distance "$work/at-$other" "$work/at-2")
    echo "a state of 2 ranks resumed on $other: weights differ by at most $d from those on 2"
    within "$d" $bound "compute.zero=3 resumed on $other"
done

# With a distance to the base, a moving average, weights stored as bf16 and everything cut.
for run in options-1 options-2; do
    plan $run --set grpo.kl=gaussian --set grpo.kl_beta=0.1 --set grpo.ema=0.9 --set sampling.guidance_train=guided --set sampling.guidance_scale=1.5 \
        --set checkpoint.dtype=bf16 --set compute.zero=3
    code 0 iteration 2 rollout $run 1
    code 0 iteration "${run#options-}" grpo $run 1
    trained $run
done
python3 - "$(policy options-1 1)" "$(policy options-2 1)" <<'P' || fail "policies in bf16 differ by more than a rounding"
import array, json, struct, sys
def weights(folder):
    data = open(folder + "/diffusion_pytorch_model.safetensors", "rb").read()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    assert {t["dtype"] for k, t in header.items() if k != "__metadata__"} == {"BF16"}
    bits = array.array("H", data[8 + n:])
    return array.array("f", array.array("I", (b << 16 for b in bits)).tobytes())
for part in "", "/ema":
    a, b = (weights(f + part) for f in sys.argv[1:])
    different = sum(x != y for x, y in zip(a, b))
    if len(a) != len(b) or any(abs(x - y) > 1e-4 + abs(x) / 64 for x, y in zip(a, b)) or different > len(a) // 10:
        sys.exit(f"{different} of {len(a)} differ")
P
# The policy that ran is the one that is stored: the next rollout replays bit for bit.
code 0 iteration 2 rollout options-2 2
code 0 "$bin/atelier-inspect" --replay "$work/options-2/t2i/iter-0002/rollout"
says " 0 differ"

# Killed in the middle of an update: it goes on from its last state, to the same bits; nothing is left over.
more=(--set grpo.epochs=4 --set checkpoint.every=2 --set checkpoint.keep=2)
for zero in 0 3; do
    plan undisturbed-$zero "${more[@]}" --set compute.zero=$zero
    code 0 iteration 2 rollout undisturbed-$zero 1
    code 0 iteration 2 grpo undisturbed-$zero 1
    [[ ! -e $work/undisturbed-$zero/t2i/iter-0001/updates ]] || fail "states of a finished stage were left"
    plan killed-$zero "${more[@]}" --set compute.zero=$zero
    code 0 iteration 2 rollout killed-$zero 1
    updates=$work/killed-$zero/t2i/iter-0001/updates
    stopped KILL "${updates%/updates}" "$(policy killed-$zero 1)" 2 grpo killed-$zero --policy t2i --iteration 1
    # The oldest goes when the newest is there.
    (($(ls -d "$updates"/update-* | wc -l) <= 3)) || fail "more than checkpoint.keep states are kept"
    code 0 iteration 2 grpo killed-$zero 1
    says "goes on from .*update-"
    same "$(policy undisturbed-$zero 1)" "$(policy killed-$zero 1)" "compute.zero=$zero: another policy after a kill"
    [[ -z $(find "$work/killed-$zero" -name '.tmp-*') && ! -e $updates ]] || fail "something was left over"
    python3 - "$work" $zero <<'P' || fail "other metrics after a kill"
import json, sys
a, b = (json.loads(open(f"{sys.argv[1]}/{run}-{sys.argv[2]}/metrics.jsonl").readline()) for run in ("undisturbed", "killed"))
sys.exit(any(a[k] != b[k] for k in a ))
P
done

# A disk that fills up while a state is written: the stage ends with the code, the states before it stay whole.
if mkdir "$work/small" && mount -t tmpfs -o size=300m none "$work/small" 2>/dev/null; then
    "$bin/atelier-plan" --config "$work/undisturbed-0/config.toml" --run "$work/small/run" >/dev/null
    code 0 "$bin/atelier-rollout" --run "$work/small/run" --policy t2i --iteration 1
    free=$(df --output=avail -B1 "$work/small" | tail -1)
    state=$(stat -c %s "$(policy undisturbed-0 1)/training.h5")
    head -c $((free - state * 7 / 2)) /dev/zero >"$work/small/filler"
    code 4 "$bin/atelier-grpo" --run "$work/small/run" --policy t2i --iteration 1
    says "No space left"
    rm "$work/small/filler"
    code 0 "$bin/atelier-grpo" --run "$work/small/run" --policy t2i --iteration 1
    umount "$work/small"
else
    echo "skipped: no right to mount, so the full disk was not tried"
fi

# Adapters: only they are trained and stored; any number of ranks; the whole pipeline.
lora=(--set lora.rank=4 --set lora.alpha=8 --set distill.start=base --set grpo.kl=velocity --set grpo.kl_beta=0.1 --set checkpoint.every=1 --set distill.learning_rate=1e-2)
for run in lora lora-2; do plan $run "${lora[@]}" --set compute.zero=$([[ $run == lora ]] && echo 0 || echo 1); done
for i in 1 2; do
    for task in t2i edit; do
        code 0 on 1 rollout lora --policy $task --iteration $i
        code 0 on 1 grpo lora --policy $task --iteration $i
    done
    code 0 iteration 2 rollout lora-2 $i
    code 0 iteration 2 grpo lora-2 $i
    trained lora-2
done
[[ -e $(policy lora 2)/pytorch_lora_weights.safetensors && ! -e $(policy lora 2)/diffusion_pytorch_model.safetensors ]] || fail "not an adapter alone"
within "$(distance "$(policy lora 2)" "$(policy lora-2 2)")" $bound "adapters of one and two ranks"
code 0 "$bin/atelier-inspect" "$(policy lora 2)"
says "adapter of rank 4, alpha 8 for 42 matrices"
code 0 "$bin/atelier-inspect" --replay "$work/lora/t2i/iter-0002/rollout"
says " 0 differ"
code 0 "$bin/atelier-inspect" --replay "$work/lora-2/t2i/iter-0002/rollout"
mv "$work/lora/t2i/iter-0002/policy" "$work/kept"
code 0 on 1 grpo lora --policy t2i --iteration 2
same "$work/kept" "$(policy lora 2)" "an adapter's update differs when it is made again"
for task in t2i edit; do code 0 on 2 teacher-dump lora --task $task --round 1; done
code 0 on 1 distill lora --round 1
[[ ! -e $work/lora/opd/round-01/updates ]] || fail "states of a finished round were left"
student=$work/lora/opd/round-01/student
code 0 "$bin/atelier-evaluate" --run "$work/lora" --limit 1

# The adapter beside the base, merged into it, and in PEFT's layout: the same picture; half of it is another one.
draw() { code 0 "$bin/atelier-generate" --model "$1" --output-resolution 64 --steps 4 --prompt "a red circle" --output "$work/$2.png" --output-latents "$work/$2.safetensors" "${@:3}"; }
draw $model beside --transformer "$student"
code 0 "$bin/atelier-export" --model $model --transformer "$student" --output "$work/merged" --dtype f32
draw "$work/merged" merged
code 0 "$bin/atelier-export" --model $model --transformer "$student" --output "$work/peft" --as peft
draw $model peft --lora "$work/peft"
draw $model full --lora "$student/pytorch_lora_weights.safetensors:1"
draw $model half --lora "$student/pytorch_lora_weights.safetensors:0.5"
draw $model none
cmp "$work/peft.safetensors" "$work/full.safetensors" || fail "PEFT's layout gives another adapter"
cmp "$work/merged.safetensors" "$work/full.safetensors" || fail "an exported merge differs"
latents() { mkdir -p "$work/l-$1" && cp "$work/$1.safetensors" "$work/l-$1/"; echo "$work/l-$1"; }
within "$(distance "$(latents beside)" "$(latents full)")" 2e-5 "the adapter beside the weights and in them"
within 1e-3 "$(distance "$(latents none)" "$(latents full)")" "the adapter changes nothing"
within 5e-4 "$(distance "$(latents half)" "$(latents full)")" "half of the adapter is all of it"

# What atelier-inspect says of a model and of adapters, and the plan of a configuration given without its option.
code 0 "$bin/atelier-inspect" $model
says "transformer  *QwenImage21Transformer2DModel  *3207648 parameters in 63 tensors, bf16"
says "$model: [0-9]* parameters"
for path in "$student" "$student/pytorch_lora_weights.safetensors" "$work/peft" "$work/peft/adapter_model.safetensors"; do
    code 0 "$bin/atelier-inspect" "$path"
    says "adapter of rank 4, alpha 8 for 42 matrices, [0-9]* parameters"
done
code 0 "$bin/atelier-plan" --memory --ranks 8 --device-memory 141GiB configs/mini.toml "${lora[@]}"
says "trained: an adapter of rank 4, alpha 8 for 42 matrices"

# Mistakes.
code 2 "$bin/atelier-plan" --memory configs/mini.toml configs/mini.toml
code 3 "$bin/atelier-generate" --model $model --prompt x --output "$work/x.png" --lora "$work/absent.safetensors:0.5"
says "--lora .*absent.safetensors is missing"
code 2 plan bad --set lora.rank=4
says "distill.start must be base"
plan other-rank "${lora[@]}" --set lora.rank=2
mkdir -p "$work/other-rank/t2i/iter-0001" && cp -r "$(policy lora 1)" "$work/other-rank/t2i/iter-0001/"
code 3 iteration 1 rollout other-rank 2
says "holds an adapter of rank 4, .*asks for rank 2"
for zero in 2 3; do
    code 2 plan cut "${lora[@]}" --set compute.zero=$zero
    says "with lora.rank = 4 compute.zero must be 0 or 1, found $zero"
    code 2 "$bin/atelier-plan" --memory configs/mini.toml "${lora[@]}" --set compute.zero=$zero
    says "with lora.rank = 4 compute.zero must be 0 or 1, found $zero"
done
[[ ! -e $work/cut ]] || fail "a refused configuration made a run"
code 3 "$bin/atelier-generate" --model $toy --prompt x --output "$work/x.png" --lora "$student"
says "another architecture\|adapts a matrix"
code 2 "$bin/atelier-generate" --model $model --prompt x --output "$work/x.png" --lora "$student:much"
rm "$(policy zero-3-2 1)/training-00001-of-00002.h5"
rm -rf "$(policy zero-3-2 2)"
code 3 iteration 2 grpo zero-3-2 2
says "training-00001-of-00002.h5"
echo "scale: all checks passed"
