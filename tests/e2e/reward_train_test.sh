#!/usr/bin/env bash
# reward-train as a program: pictures of the world labelled by its measures; killed or stopped it goes on to the same bits; ranks
# agree, whatever is cut over them; what it made judges a rollout.   reward_train_test.sh BIN_DIR MPIEXEC   (from the repository's root)
source tests/e2e/common.sh

make_labels 24 12
plan() {
    code 0 "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" "${on_labels[@]}" --set reward_train.batch=6 --set reward_train.epochs=3 \
        --set reward_train.publish_every=2 "${@:2}"
}
# alike A B WHAT: two judges' weights after a dozen steps of 1e-3, sums in another order. Adam makes whole steps of gradients that are hardly more than their
# rounding, so a single number may be apart by a tenth of one; all together they are not.
bound=1e-4 rms_bound=1e-7
alike() {
    local largest rms
    read -r largest _ rms <<<"$(apart "$1" "$2")"
    echo "$3: weights differ by at most $largest, RMS $rms"
    within "$largest" $bound "$3"
    within "$rms" $rms_bound "$3, RMS"
}
train() { on 1 reward-train "$1"; }
ranks() { on "$1" reward-train "$2"; }
plan whole
code 0 train whole
grep -q "t2i/alignment" "$work/out" || fail "no table"
grep -q "annotators agree with alpha .* over the 12 pictures with two scores or more" "$work/out" || fail "no agreement of annotators"
cp "$work/out" "$work/table"
code 0 train whole
grep -q "complete already" "$work/out" || fail "a finished stage was run again"
code 0 "$bin/atelier-inspect" --verify "$work/whole"
# The same labels in two files.
head -n 11 "$work/labels/train.jsonl" >"$work/labels/train-1.jsonl"
tail -n +12 "$work/labels/train.jsonl" >"$work/labels/train-2.jsonl"
plan parts --set "reward_train.labels=[\"$work/labels/train-1.jsonl\", \"$work/labels/train-2.jsonl\"]"
code 0 train parts
cmp "$work/whole/judge/model.safetensors" "$work/parts/judge/model.safetensors" || fail "labels in two files train another judge"
code 0 "$bin/atelier-inspect" "$work/labels/train-1.jsonl"
says "11 labelled samples, 22 scores, 0 times that a dimension does not apply, 11 pictures"
for signal in KILL TERM; do
    plan after-$signal
    stopped_training $signal after-$signal 1
    code 0 train after-$signal
    cmp "$work/whole/judge/model.safetensors" "$work/after-$signal/judge/model.safetensors" || fail "weights differ after $signal"
    cmp "$work/whole/judge/report.json" "$work/after-$signal/judge/report.json" || fail "reports differ after $signal"
    diff <(cat "$work/whole/metrics.jsonl") "$work/after-$signal/metrics.jsonl" || fail "metrics differ after $signal"
done
[[ ! -e $work/whole/judge-training/updates ]] || fail "states were kept after the judge was there"
# A state is of the weights that it started from; a byte of them, there and back.
flip() { python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(-4, 2); b = f.read(1)[0]; f.seek(-4, 2); f.write(bytes([b ^ 1]))' "$1"; }
cp -r "$work/start" "$work/other-start"
plan restarted --set reward_train.start="$work/other-start"
stopped_training KILL restarted 1
flip "$work/other-start/model.safetensors"
code 3 train restarted
says "was trained on another start/model.safetensors"
flip "$work/other-start/model.safetensors"
code 0 train restarted
says "goes on from"
cmp "$work/whole/judge/model.safetensors" "$work/restarted/judge/model.safetensors" || fail "weights differ after the start was put back"
grep -q '"start/model.safetensors"' "$work/restarted/judge/manifest.json" || fail "the start's weights are not in the manifest"
# Whatever is cut over the ranks. Updates of five samples and four: ranks without one of their own.
cut=(--set reward_train.batch=5 --set reward_train.publish_every=3)
plan one "${cut[@]}"
code 0 train one
for case in "0 3" "1 2" "2 2" "3 2" "3 3"; do
    read -r zero ranks <<<"$case"
    run=zero-$zero-$ranks
    plan $run "${cut[@]}" --set compute.zero=$zero
    code 0 ranks $ranks $run
    alike "$work/one/judge" "$work/$run/judge" "compute.zero=$zero on $ranks ranks and one rank"
done
# A state of two ranks goes on: there to the same bits, elsewhere within rounding.
plan resumed-2 "${cut[@]}" --set compute.zero=3
stopped_training KILL resumed-2 2
# That of update 3, or on a slow machine a later one.
[[ $(cd "$work/resumed-2/judge-training/updates" && for state in update-*; do ls "$state"; done | sort -u) == $'snapshot.json\ntraining-00000-of-00002.h5\ntraining-00001-of-00002.h5' ]] ||
    fail "the state is not in shards"
for ranks in 1 3; do cp -r "$work/resumed-2" "$work/resumed-$ranks"; done
for ranks in 2 1 3; do
    code 0 ranks $ranks resumed-$ranks
    says "goes on from"
    if ((ranks == 2)); then same "$work/zero-3-2/judge" "$work/resumed-2/judge" "other weights after a kill on 2 ranks"
    else alike "$work/zero-3-2/judge" "$work/resumed-$ranks/judge" "a state of 2 ranks resumed on $ranks and on 2"; fi
done
plan pairwise-cut --set reward_train.loss=pairwise --set reward_train.vision=false --set reward_train.batch=5 --set compute.zero=3
plan pairwise-one --set reward_train.loss=pairwise --set reward_train.vision=false --set reward_train.batch=5
code 0 ranks 2 pairwise-cut
code 0 train pairwise-one
alike "$work/pairwise-one/judge" "$work/pairwise-cut/judge" "pairs at compute.zero=3"
# An adapter: killed it goes on to the same bits; what is published is the base with the adapter merged, and the adapter.
adapter=(--set reward_train.lora_rank=4 --set reward_train.learning_rate=1e-2)
plan adapter "${adapter[@]}"
code 0 train adapter
[[ $(ls "$work/adapter/judge/adapter") == $'adapter_config.json\nadapter_model.safetensors' ]] || fail "no adapter was published"
cmp -s "$work/start/model.safetensors" "$work/adapter/judge/model.safetensors" && fail "the adapter changed nothing"
code 0 "$bin/atelier-inspect" --verify "$work/adapter"
plan adapter-killed "${adapter[@]}"
stopped_training KILL adapter-killed 1
code 0 train adapter-killed
for file in model.safetensors adapter/adapter_model.safetensors report.json; do
    cmp "$work/adapter/judge/$file" "$work/adapter-killed/judge/$file" || fail "$file differs after KILL"
done

plan adapter-cut "${adapter[@]}" --set compute.zero=1
code 0 ranks 2 adapter-cut
alike "$work/adapter/judge" "$work/adapter-cut/judge" "an adapter merged, at compute.zero=1 on 2 ranks and on one"
code 2 "$bin/atelier-plan" --config configs/mini.toml --run "$work/bad" --set pipeline.judge=true --set judge.templates="$work/labels" \
    --set reward_train.start="$work/start" --set reward_train.lora_rank=4 --set compute.zero=2
says "with reward_train.lora_rank = 4 compute.zero must be 0 or 1, found 2"

# PEFT opens it; merged there it makes the judge that was published.
python=${ATELIER_PYTHON:-python3}
if "$python" -c 'import peft, torch, transformers' 2>/dev/null; then
    "$python" - "$work/start" "$work/adapter/judge" >"$work/out" 2>&1 <<'P' || { cat "$work/out" >&2; fail "PEFT makes another judge of the adapter"; }
import sys
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration
read = lambda folder: Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
base = {k: v.clone() for k, v in read(sys.argv[1]).state_dict().items()}
merged = PeftModel.from_pretrained(read(sys.argv[1]), sys.argv[2] + "/adapter").merge_and_unload().state_dict()
published = read(sys.argv[2]).state_dict()
assert merged.keys() == published.keys() == base.keys()
moved = max((published[k] - base[k]).abs().max().item() for k in base)
off = max((published[k] - merged[k]).abs().max().item() for k in base)
assert moved > 1e-3 and off < 1e-6, (moved, off)
print(f"adapter: PEFT's merged weights within {off:.1e}; it moved them by up to {moved:.1e}")
P
    tail -1 "$work/out"
else
    echo "skipped: $python has no peft to open the adapter with; ATELIER_PYTHON names a Python that has it"
fi
# Labels that say that a dimension does not apply, of every other picture.
for part in train heldout; do
    sed -e 's/"alignment"/"portrait"/' -e '0~2s/"scores": {[^}]*}/"scores": {"a": null, "b": null}/' "$work/labels/$part.jsonl" >"$work/labels/absent-$part.jsonl"
done
absent=(--set reward_train.labels="$work/labels/absent-train.jsonl" --set reward_train.heldout="$work/labels/absent-heldout.jsonl")
sed 's/"alignment"/"portrait"/' "$work/labels/t2i-alignment.toml" >"$work/labels/t2i-portrait.toml"
plan applies "${absent[@]}"
code 3 train applies
grep -q "t2i-portrait.toml has no may_not_apply" "$work/out" || fail "the template that always applies was not named"
echo 'may_not_apply = true' >>"$work/labels/t2i-portrait.toml"
plan absent "${absent[@]}"
code 0 train absent
python3 - "$work/absent/judge" <<'P' || fail "what does not apply is not in the report"
import csv, json, sys
of = json.load(open(sys.argv[1] + "/report.json"))["dimensions"]["t2i/portrait"]["all"]
rows = list(csv.DictReader(open(sys.argv[1] + "/judgements.csv")))
none = [r for r in rows if r["label"] == "none"]
assert len(none) == 6, len(none)
absent = of["absent"]
assert absent["right"] == sum(r["score"] == "none" for r in none), absent
assert absent["right"] + absent["missed"] + sum(r["score"] == "" for r in none) == 6, absent
assert absent["wrong"] == sum(r["score"] == "none" for r in rows if r["label"] != "none"), absent
P
rm "$work/labels/t2i-portrait.toml"

plan none --set reward_train.labels="$work/labels/none.jsonl"
code 3 train none
sed 's/, "rationale": "[^"]*"//' "$work/labels/train.jsonl" >"$work/labels/silent.jsonl"
plan silent --set reward_train.labels="$work/labels/silent.jsonl"
code 3 train silent
grep -q "has no rationale" "$work/out" || fail "the missing rationale was not named"

# What was trained judges.
code 2 "$bin/atelier-plan" --config configs/mini.toml --run "$work/half" --set reward.scorer=judge --set judge.templates="$work/labels" --set pipeline.judge=true
[[ $(<"$work/out") == *"no template"*"edit"* ]] || fail "that edits have no template was not named"
sed 's/"t2i"/"edit"/; s/"alignment"/"instruction"/' "$work/labels/t2i-alignment.toml" >"$work/labels/edit-instruction.toml"
plan judged --set reward.scorer=judge --set curate.enabled=false --set rollout.prompts_per_iteration=2 --set rollout.group_size=4 \
    --set rollout.micro_batch=4 --set reward.max_absent=1
code 3 "$bin/atelier-rollout" --run "$work/judged" --policy t2i --iteration 1
grep -q "run atelier-reward-train first" "$work/out" || fail "the missing judge was not named"
code 0 train judged
code 0 "$bin/atelier-rollout" --run "$work/judged" --policy t2i --iteration 1
[[ $(h5ls "$work/judged/t2i/iter-0001/rollout/shard-00000.h5/shape-8x8/reward" | cut -d' ' -f1) == alignment ]] || fail "nothing was judged"
echo "reward-train: all checks passed"
