#!/usr/bin/env bash
# A run goes on at another number of ranks and with another compute.zero, by its normal route; the curve of ten updates at ZeRO 1 to 3 on two
# ranks beside one rank's; stages killed on two ranks go on, on one, two and three.
#   resume_test.sh BIN_DIR MPIEXEC FAULTS_LIBRARY   (from the repository's root)
source tests/e2e/common.sh
library=$3
model=assets/mini/base

settings=(--set run.model=$model --set sampling.steps=3 --set curate.enabled=false --set pipeline.mix=false
    --set rollout.prompts_per_iteration=4 --set rollout.group_size=2 --set rollout.micro_batch=1 --set steps.count=1
    --set sampling.guidance_scale=1 --set task.t2i.learning_rate=1e-3 --set task.edit.learning_rate=1e-3 --set grpo.minibatches=2 --set grpo.epochs=5
    --set grpo.iterations=1 --set reward.min_spread=0 --set reward.gate=0 --set distill.start=base --set distill.prompts=2 --set distill.group_size=1
    --set distill.batch=2 --set distill.epochs=5 --set distill.rounds=1 --set distill.learning_rate=1e-3)
plan() { "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" "${settings[@]}" "${@:2}"; }
policy=$work/run/t2i/iter-0001/policy student=$work/run/opd/round-01/student

# curve STAGE POLICY: losses of its updates, from the metrics
curve() {
    python3 - "$work/run/metrics.jsonl" "$@" <<'P'
import json, sys
print(*[m["losses"] for m in map(json.loads, open(sys.argv[1])) if [m["stage"], m["policy"]] == sys.argv[2:]][-1])
P
}
# curves A B: largest distance of two curves that are no constant
curves() {
    python3 - "$1" "$2" <<'P'
import sys
a, b = ([float(x) for x in text.split()] for text in sys.argv[1:])
assert len(a) == len(b) >= 10 and len(set(a)) > 5, (a, b)
print(max(abs(x - y) for x, y in zip(a, b)))
P
}
# One rollout, one dump. Then every update is made from them: the run's configuration changes, its files stay.
plan run >/dev/null
for task in t2i edit; do
    code 0 on 2 rollout run --policy $task --iteration 1
    code 0 on 1 grpo run --policy $task --iteration 1
done
for task in t2i edit; do code 0 on 2 teacher-dump run --task $task --round 1; done
code 0 on 1 distill run --round 1
grpo_curve=$(curve grpo t2i) distill_curve=$(curve distill student)
mv "$policy" "$work/policy-0"
mv "$student" "$work/student-0"
bound=1e-5 curve_bound=1e-6
for zero in 1 2 3; do
    rm -rf "$policy" "$student"  # the dumps stay: a policy that is not there is made again as it was
    code 0 plan run --set compute.zero=$zero --set slurm.grpo.ranks=2 --set slurm.grpo.time=02:00:00
    says "compute.zero = $zero, was $((zero - 1))"
    grep -q '"ranks": 2' "$work/run/pipeline.json" || fail "the jobs still have one rank"
    code 0 on 2 grpo run --policy t2i --iteration 1
    c=$(curves "$grpo_curve" "$(curve grpo t2i)") d=$(distance "$work/policy-0" "$policy")
    echo "grpo, compute.zero=$zero on 2 ranks: losses of 10 updates within $c, weights within $d of one rank's"
    within "$c" $curve_bound "grpo's curve at compute.zero=$zero"
    within "$d" $bound "grpo's weights at compute.zero=$zero"
    code 0 on 2 distill run --round 1
    c=$(curves "$distill_curve" "$(curve distill student)") d=$(distance "$work/student-0" "$student")
    echo "distill, compute.zero=$zero on 2 ranks: losses of 10 updates within $c, weights within $d of one rank's"
    within "$c" $curve_bound "the distillation's curve at compute.zero=$zero"
    within "$d" $bound "the distillation's weights at compute.zero=$zero"
done
code 2 "$bin/atelier-plan" --run "$work/run" --set slurm.grpo.ranks=4
says "teacher-dump-t2i-01 was made from another teacher than t2i/iter-0001/policy; nothing was changed"
rm -rf "$policy" "$student"
code 0 "$bin/atelier-plan" --run "$work/run" --set slurm.grpo.ranks=4
says "slurm.grpo.ranks = 4, was 2"
code 2 plan run --set grpo.clip=0.5
says "grpo.clip = 0.5, was 0.001"
grep -q "^clip = 0.001" "$work/run/config.toml" || fail "a refused configuration was written"

# Killed on two ranks when its second state is about to be published; then one, two and three ranks go on from the first.
# go_on NAME PROGRAM PRODUCT ARGUMENTS...: a stage of the run, whose other resumptions may be go_on_bound away
go_on() {
    local name=$1 program=$2 product=$3
    shift 3
    rm -rf "$work/run/$product"
    code 0 on 2 "$program" run "$@"
    mv "$work/run/$product" "$work/$name-undisturbed"
    ATELIER_FAULTS="calls=rename,path=-update,at=4,do=kill,rank=0" "$mpiexec" -x LD_PRELOAD="$library" -x ATELIER_FAULTS --oversubscribe --bind-to none -n 2 \
        "$bin/atelier-$program" --run "$work/run" "$@" >/dev/null 2>&1 && fail "$name was not killed"
    local updates
    updates=$(dirname "$work/run/$product")/updates
    [[ $(basename "$updates"/update-*) == update-000002 ]] || fail "$name: another state than that of update 2: $(ls "$updates")"
    cp -r "$updates" "$work/$name-updates"
    sed -i '/"inputs"/,/}/s/: "./: "x/' "$updates/update-000002/snapshot.json"
    code 3 on 2 "$program" run "$@"
    says "was trained on another"
    for ranks in 2 1 3; do
        rm -rf "$work/run/$product" "$updates"
        cp -r "$work/$name-updates" "$updates"
        code 0 on $ranks "$program" run "$@"
        says "goes on from .*update-000002"
        read -r largest share _ <<<"$(apart "$work/$name-undisturbed" "$work/run/$product")"
        echo "$name: killed on 2 ranks, resumed on $ranks: weights within $largest, $share of them differ"
        if ((ranks == 2)); then
            [[ $largest == 0.0 ]] || fail "$name: another policy after a kill"
            for file in "$work/$name-undisturbed"/training*.h5; do h5diff -q "$file" "$work/run/$product/$(basename "$file")" || fail "$name: another state after a kill"; done
        else
            within "$largest" "$go_on_bound" "$name resumed on $ranks ranks"
            within "$share" 0.02 "$name resumed on $ranks ranks: a share that differs"
        fi
    done
}
often=(--set checkpoint.every=2 --set checkpoint.keep=2)
rm -rf "$work/run"
plan run "${often[@]}" --set compute.zero=3 --set checkpoint.dtype=bf16 --set grpo.ema=0.9 >/dev/null
for task in t2i edit; do
    code 0 on 2 rollout run --policy $task --iteration 1
    code 0 on 2 grpo run --policy $task --iteration 1
done
for task in t2i edit; do code 0 on 2 teacher-dump run --task $task --round 1; done
go_on_bound=2e-2  # a unit in the last place of a bf16 number of 2
go_on "average and master weights" grpo t2i/iter-0001/policy --policy t2i --iteration 1
go_on "distillation" distill opd/round-01/student --round 1
rm -rf "$work/run"
plan run "${often[@]}" --set compute.zero=1 --set lora.rank=4 --set lora.alpha=8 >/dev/null
code 0 on 2 rollout run --policy t2i --iteration 1
go_on_bound=2e-5
go_on "adapter" grpo t2i/iter-0001/policy --policy t2i --iteration 1
echo "resume: all checks passed"
