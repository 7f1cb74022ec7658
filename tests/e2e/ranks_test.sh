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
        --set reward.gate=0 --set distill.prompts=2 --set distill.group_size=1 --set distill.batch=2 --set distill.rounds=1 "${@:2}" >/dev/null
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
echo "ranks: all checks passed"
