#!/usr/bin/env bash
# Pictures of several sizes in one run: every stage, the same samples at any number of ranks and after a kill, exact replay, one HDF5 group
# a size that h5py opens, and the examples of docs/files.md.   sizes_test.sh BIN_DIR MPIEXEC   (from the repository's root; ATELIER_PYTHON: a
# Python with h5py, NumPy, Pillow)
source tests/e2e/common.sh
model=assets/mini/base prompts=$PWD/assets/mini/prompts
sizes='[[128, 128], [96, 160], [160, 96]]'

plan() {
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.seed=2 --set run.model=$model --set sampling.steps=3 --set curate.enabled=false \
        --set rollout.prompts_per_iteration=7 --set rollout.group_size=2 --set rollout.micro_batch=2 --set steps.count=2 \
        --set sampling.guidance_scale=2 --set grpo.learning_rate=1e-3 --set grpo.iterations=1 --set reward.min_spread=0 --set reward.gate=0 \
        --set pipeline.mix=false --set distill.prompts=4 --set distill.group_size=2 --set distill.batch=3 --set distill.rounds=1 \
        --set distill.epochs=1 --set "task.t2i.sizes=$sizes" --set "task.edit.train=$work/edits.jsonl" "${@:2}" >/dev/null
}
shapes() { h5ls "$1" | awk '$1 ~ /^shape-/ { print $1 }'; }
same_shards() {  # DIRECTORY DIRECTORY
    local compared=0
    (($(ls "$1"/shard-*.h5 | wc -l) == $(ls "$2"/shard-*.h5 | wc -l))) || fail "$1 and $2 hold different shards"
    for shard in "$1"/shard-*.h5; do
        other=$2/$(basename "$shard")
        [[ $(shapes "$shard") == "$(shapes "$other")" ]] || fail "$shard and $other have different shapes"
        for shape in $(shapes "$shard"); do
            for name in $(h5ls "$shard/$shape" | awk '$2 == "Dataset" { print $1 }'); do
                h5diff -q "$shard" "$other" "/$shape/$name" || fail "$name of $shard differs from $other"
                compared=$((compared + 1))
            done
            for dimension in $(h5ls "$shard/$shape/reward" 2>/dev/null | cut -d' ' -f1); do
                for name in score present reason; do h5diff -q "$shard" "$other" "/$shape/reward/$dimension/$name" || fail "$dimension of $shard"; done
            done
        done
    done
    ((compared > 10)) || fail "only $compared datasets of $1 were compared"
}

# Edits whose pictures have several sizes: targets follow them; one says its own size, one has two references.
head -7 "$prompts/edit-train.jsonl" | sed "s|\"images\": \[\"images/|\"images\": [\"|" >"$work/edits.jsonl"
cp "$prompts"/images/edit-000?.png "$work/"
for i in 1 3; do
    "$bin/atelier-generate" --model $model --prompt "a blue star on gray" --steps 2 --height 64 --width 128 --output "$work/edit-000$i.png" 2>/dev/null
done
python3 - "$work/edits.jsonl" <<'P'
import json, sys
lines = [json.loads(l) for l in open(sys.argv[1])]
lines[0]["size"] = [160, 96]
lines[2]["images"].append("edit-0003.png")
with open(sys.argv[1], "w") as out:
    for l in lines:
        print(json.dumps(l), file=out)
P

for task in t2i edit; do
    for ranks in 1 2 3; do
        plan $task-$ranks
        code 0 on $ranks rollout $task-$ranks --policy $task --iteration 1
        ((ranks == 1)) || same_shards "$work/$task-1/$task/iter-0001/rollout" "$work/$task-$ranks/$task/iter-0001/rollout"
    done
    rollout=$work/$task-1/$task/iter-0001/rollout
    expected=$([[ $task == t2i ]] && echo "shape-10x6 shape-6x10 shape-8x8" || echo "shape-10x6 shape-6x12 shape-8x8")
    [[ $(shapes "$rollout/trajectories.h5" | sort | xargs) == "$expected" ]] || fail "shapes of $rollout: $(shapes "$rollout/trajectories.h5" | xargs)"
    code 0 "$bin/atelier-inspect" --replay "$rollout"
    says " 0 differ"
    code 0 "$bin/atelier-inspect" "$rollout"
    says "latents 10x6"
    code 0 "$bin/atelier-inspect" --export "$work/$task-pictures" "$rollout"
    (($(ls "$work/$task-pictures"/*.png | wc -l) == 14)) || fail "pictures were not exported"
done
if [[ -n ${ATELIER_PYTHON:-} ]] && "$ATELIER_PYTHON" -c "import h5py" 2>/dev/null; then
    "$ATELIER_PYTHON" - "$work/t2i-1/t2i/iter-0001/rollout/trajectories.h5" <<'P' || fail "h5py reads something else"
import sys
import h5py
import numpy as np
samples = 0
with h5py.File(sys.argv[1]) as f:
    shapes = [k for k in f if k.startswith("shape-")]
    assert len(shapes) == 3, shapes
    for name in shapes:
        h, w = map(int, name[6:].split("x"))
        g = f[name]
        n, k = g["trained_step"].shape
        assert g["x"].is_virtual and g["x"].shape == (n, k, h * w, 64 if g["x"].shape[3] == 64 else g["x"].shape[3])
        assert g["picture"].shape == (n, 16 * h, 16 * w, 4)
        assert np.isfinite(g["x"][()]).all() and np.abs(g["x"][()]).max() > 0 and np.isfinite(g["log_prob"][()]).all()
        samples += n
assert samples == 14, samples
P
else
    echo "skipped: the virtual datasets were read by this engine alone; ATELIER_PYTHON names a Python with h5py"
fi

# Killed in the middle and run again.
plan killed --set reward.test_delay=0.02
"$bin/atelier-rollout" --run "$work/killed" --policy t2i --iteration 1 >/dev/null 2>&1 &
pid=$!
for _ in $(seq 500); do [[ -e $work/killed/t2i/iter-0001/rollout/shard-00002.h5 ]] && break; sleep 0.01; done
kill -KILL $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
[[ ! -e $work/killed/t2i/iter-0001/rollout/manifest.json ]] || fail "the rollout was over before the kill"
code 0 on 1 rollout killed --policy t2i --iteration 1
same_shards "$work/t2i-1/t2i/iter-0001/rollout" "$work/killed/t2i/iter-0001/rollout"
[[ -z $(find "$work/killed" -name '.tmp-*') ]] || fail "temporaries were left"

# Everything else: curation, updates on one rank and cut over two, the student, the evaluation.
for ranks in 1 2; do
    run=all-$ranks
    plan $run --set curate.enabled=true --set curate.prompts=6 --set curate.group_size=2 --set curate.range_min=0 --set rollout.prompts_per_iteration=4 \
        --set "task.edit.sizes=[[96, 160], [128, 128]]" --set compute.zero=$((ranks == 1 ? 0 : 3))
    for task in t2i edit; do
        code 0 on $ranks curate $run --task $task
        code 0 on $ranks rollout $run --policy $task --iteration 1
        code 0 on $ranks grpo $run --policy $task --iteration 1
    done
    for task in t2i edit; do code 0 on $ranks teacher-dump $run --task $task --round 1; done
    code 0 on $ranks distill $run --round 1
    code 0 on $ranks evaluate $run --limit 12
done
for task in t2i edit; do
    same_shards "$work/all-1/prompts/$task" "$work/all-2/prompts/$task"
    same_shards "$work/all-1/$task/iter-0001/rollout" "$work/all-2/$task/iter-0001/rollout"
    same_shards "$work/all-1/eval-limit-12/base/$task" "$work/all-2/eval-limit-12/base/$task"
    shards=("$work/all-1/eval-limit-12/base/$task"/shard-*.h5)
    (($(for s in "${shards[@]}"; do shapes "$s"; done | wc -l) > ${#shards[@]})) ||
        fail "no shard of the evaluation holds two shapes"
done
python3 - "$work/all-1" "$work/all-2" <<'P' || fail "policies of one rank and of two that share everything differ"
import array, glob, json, struct, sys
def numbers(name):
    data = open(name, "rb").read()
    (n,) = struct.unpack("<Q", data[:8])
    return array.array("f", data[8 + n:])
for policy in ["t2i/iter-0001/policy", "edit/iter-0001/policy"]:
    files = [f"{run}/{policy}/diffusion_pytorch_model.safetensors" for run in sys.argv[1:]]
    a, b = map(numbers, files)
    apart = max(abs(x - y) for x, y in zip(a, b))
    print(policy, "weights differ by at most", apart)
    assert len(a) == len(b) and apart < 5e-6, apart
P
code 0 "$bin/atelier-inspect" --verify "$work/all-1"
code 0 "$bin/atelier-inspect" "$work/all-1/opd/round-01/teacher-edit"
says "latents 6x10"
code 0 "$bin/atelier-plan" --run "$work/all-1" --storage
code 0 "$bin/atelier-plan" --run "$work/all-1" --memory

# The examples of docs/files.md on a whole run.
cp -r "$work/all-1/eval-limit-12" "$work/all-1/eval"
found=0
"${ATELIER_PYTHON:-python3}" tests/e2e/files_examples.py "$work/all-1" >"$work/out" 2>&1 || found=$?
((found == 0 || found == 77)) || { cat "$work/out" >&2; fail "the examples of docs/files.md"; }
grep "^skipped:" "$work/out" || true

# Config files give the buffers of the autoencoder that the stage's open model has, those of a second thread too (in MiB).
plan threads --set compute.threads=2
code 0 on 1 rollout threads --policy t2i --iteration 1
taken=$(sed -n "s/.*memory planned.*autoencoder's buffers \([0-9.]*\),.*/\1/p" "$work/out")
counted=$("$bin/atelier-plan" --run "$work/threads" --memory | awk '/^curate, rollout t2i/ { on = 1 } /^$/ { on = 0 } on && /autoencoder.s buffers/ { print $3 * 1024 }')
awk -v a="$taken" -v b="$counted" 'BEGIN { exit !(a > 0 && a - b < 0.6 && b - a < 0.6) }' || fail "autoencoder's buffers: the stage plans $taken MiB, atelier-plan $counted"

# Mistakes.
code 2 "$bin/atelier-plan" --config configs/mini.toml --set "task.t2i.sizes=[[100, 128]]"
says "task.t2i.sizes: pictures of 100 x 128"
plan mistaken
sed -i '1s|"size": \[160, 96\]|"size": [160, 90]|' "$work/edits.jsonl"
code 3 on 1 rollout mistaken --policy edit --iteration 1
says 'edits.jsonl:1: "size" must be'
code 3 plan refused
says 'edits.jsonl:1: "size" must be'
echo "sizes: all checks passed"
