#!/usr/bin/env bash
# Which rank reads which bytes of what a stage starts from, and that whatever is damaged is still refused.
#   ranks_test.sh BIN_DIR MPIEXEC FAULTS_LIBRARY   (from the repository's root)
source tests/e2e/common.sh
library=$3
model=assets/mini/base

plan() {
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model=$model --set sampling.steps=3 --set curate.enabled=false \
        --set rollout.prompts_per_iteration=4 --set rollout.group_size=2 --set rollout.micro_batch=1 --set steps.count=1 \
        --set sampling.guidance_scale=1 --set grpo.learning_rate=1e-3 --set grpo.iterations=2 --set reward.min_spread=0 \
        --set reward.gate=0 --set grpo.minibatches=1 "${@:2}" >/dev/null
}
# watched RULE PROGRAM ARGUMENTS...: on two ranks, each rank's calls that the rule fits in $work/calls.RANK
watched() {
    local rule=$1 program=$2
    shift 2
    rm -f "$work"/calls.*
    ATELIER_FAULTS=$rule "$mpiexec" --oversubscribe --bind-to none -n 2 bash -c \
        'ATELIER_FAULTS_LOG=$0.$OMPI_COMM_WORLD_RANK LD_PRELOAD=$1 exec "${@:2}"' \
        "$work/calls" "$library" "$bin/atelier-$program" --run "$work/run" "$@"
}
# readers NAME: ranks that read files of this name with read(2); memory maps are not among them
readers() { (grep -l " read .*$1" "$work"/calls.* || true) | sed 's/.*\.//' | tr '\n' ' '; }
iteration() { on "$1" "$2" run --policy t2i --iteration "$3"; }

plan run --set grpo.ema=0.9
code 0 iteration 2 rollout 1
code 0 iteration 2 grpo 1
trained run
policy=$work/run/t2i/iter-0001/policy weights=$work/run/t2i/iter-0001/policy/diffusion_pytorch_model.safetensors

# A rollout reads no optimizer's state and no moving average; the weights are hashed by one rank and mapped by both.
code 0 watched "calls=open+read+map,path=iter-0001/policy/,at=1+,do=count" rollout --policy t2i --iteration 2
! grep -h "training\|/ema/" "$work"/calls.* || fail "a rollout opened what it doesn't need"
[[ $(readers policy/diffusion_pytorch_model.safetensors) == [01]" " ]] || fail "the weights were hashed by ranks $(readers diffusion_pytorch_model)"
for rank in 0 1; do grep -q " map .*diffusion_pytorch_model" "$work/calls.$rank" || fail "rank $rank mapped no weights: the test sees nothing"; done
# An update reads each group on the rank that trains on it, which compares its shard too.
mv "$policy" "$work/kept"
code 0 watched "calls=open+read,path=iter-0001/rollout/shard-,at=1+,do=count" grpo --policy t2i --iteration 1
for unit in 0 1 2 3; do
    [[ $(readers "shard-0000$unit.h5") == "$((unit % 2)) " ]] || fail "shard $unit was read by ranks $(readers "shard-0000$unit.h5")"
done
same "$work/kept" "$policy" "the update differs when it is made again"

# What is damaged is refused, on one rank and on two.
damage() { cp "$1" "$work/whole"; printf '\x55\xaa\x55' | dd of="$1" bs=1 seek=$(($(stat -c %s "$1") / 2)) conv=notrunc status=none; }
refused() {  # FILE PROGRAM ITERATION
    damage "$1"
    for ranks in 1 2; do
        code 3 iteration $ranks "$2" "$3"
        says "$(basename "$1") does not match its manifest"
    done
    cp "$work/whole" "$1"
}
refused "$work/run/t2i/iter-0002/rollout/shard-00003.h5" grpo 2
refused "$weights" grpo 2
refused "$policy/training.h5" grpo 2
mv "$work/run/t2i/iter-0002/rollout" "$work/rollout"
refused "$weights" rollout 2
# What a rollout doesn't read must be there as long as it was, no more.
cp "$policy/training.h5" "$work/state"
truncate -s -1 "$policy/training.h5"
code 3 iteration 2 rollout 2
says "training.h5 does not match its manifest"
cp "$work/state" "$policy/training.h5"
damage "$policy/training.h5"
code 0 iteration 2 rollout 2
code 3 iteration 2 grpo 2
cp "$work/state" "$policy/training.h5"
code 0 iteration 2 grpo 2
rm "$work/run/t2i/iter-0002/policy/ema/diffusion_pytorch_model.safetensors"
code 3 "$bin/atelier-evaluate" --run "$work/run" --limit 1
says "ema/diffusion_pytorch_model.safetensors"

# The optimizer's state of iteration 1 was given up when iteration 2 was published; its weights are whole, and training from them is refused.
[[ ! -e $policy/training.h5 && -e $weights ]] || fail "storage.states = 1 kept an older state, or took more"
mv "$work/run/t2i/iter-0002/policy" "$work/second"
code 0 "$bin/atelier-inspect" --verify "$policy"
code 3 iteration 2 grpo 2
says "state was given up"
rm -rf "$work/run/t2i/iter-0002/rollout"
code 0 iteration 2 rollout 2

# Killed between the manifest that gives a state up and its removal: the stage that is run again removes it.
plan states
on 1 rollout states --policy t2i --iteration 1 >/dev/null 2>&1
on 1 grpo states --policy t2i --iteration 1 >/dev/null 2>&1
on 1 rollout states --policy t2i --iteration 2 >/dev/null 2>&1
policy=$work/states/t2i/iter-0001/policy
ATELIER_FAULTS="calls=rename,path=iter-0001/policy/training.h5,at=1,do=kill" LD_PRELOAD=$library code 137 on 1 grpo states --policy t2i --iteration 2
[[ -e $policy/training.h5 && -e $work/states/t2i/iter-0002/policy/manifest.json ]] || fail "it was killed elsewhere"
code 0 on 1 grpo states --policy t2i --iteration 2
[[ ! -e $policy/training.h5 && -z $(find "$work/states" -name '.tmp-*') ]] || fail "a state that was given up is still there"
code 0 "$bin/atelier-inspect" --verify "$work/states"

# What atelier-plan says of the disk is what lies there: bf16 with a moving average and the optimizer's own weights, states within a stage.
plan disk --set grpo.ema=0.9 --set checkpoint.dtype=bf16 --set checkpoint.every=1 --set storage.states=0
code 0 on 2 rollout disk --policy t2i --iteration 1
code 0 on 2 grpo disk --policy t2i --iteration 1
code 0 "$bin/atelier-plan" --storage --run "$work/disk"
cp "$work/out" "$work/plan.txt"
python3 - "$work/plan.txt" "$work/disk/t2i/iter-0001/policy" <<'P' || fail "the disk that was planned for is another"
import os, sys
units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
rows = {line[:36].strip(): line[36:].split() for line in open(sys.argv[1])}
each = lambda what: float(rows[what][0]) * units[rows[what][1]]
size = lambda test: sum(os.path.getsize(os.path.join(d, f)) for d, _, names in os.walk(sys.argv[2]) for f in names if test(f))
for what, test in ("policy: weights", lambda f: f.endswith(".safetensors")), ("policy: optimizer state", lambda f: f.startswith("training")):
    print(what, each(what), size(test))
    if abs(each(what) / size(test) - 1) > 0.02:
        sys.exit(f"{what}: {each(what):.0f} planned, {size(test)} found")
if float(rows["policy: states within its stage"][2]) != 3 * 3:  # keep and one in writing, of three policies side by side
    sys.exit(str(rows["policy: states within its stage"]))
P
# Configuration files alone are enough.
code 0 "$bin/atelier-plan" --storage --config configs/qwen-image-2.1.toml
says "counts as bf16"
echo "ranks: all checks passed"
