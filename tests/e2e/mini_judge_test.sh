#!/usr/bin/env bash
# A judge beside the truth: labels of the world; every sample scored by both; the truth changes nothing, whatever the ranks; the gap in the
# metrics, its warning and its stop; the evaluation by both.   mini_judge_test.sh BIN_DIR MPIEXEC   (from the repository's root)
source tests/e2e/common.sh
ranks() { "$mpiexec" --oversubscribe --bind-to none -n "$1" "$bin/atelier-$2" --run "$work/$3" "${@:4}"; }

# A tiny judge: the miniature's text encoder, which was never taught to judge. That is enough for what surrounds it.
mkdir "$work/judge" "$work/templates"
for part in text_encoder processor; do for file in assets/mini/base/$part/*; do ln -s "$PWD/$file" "$work/judge/"; done; done
for file in configs/mini-judge/*.toml; do sed 's/^reasoning_tokens = .*/reasoning_tokens = 6/' "$file" >"$work/templates/$(basename "$file")"; done
plan() {
    code 0 "$bin/atelier-plan" --config configs/mini-judge.toml --run "$work/$1" --set judge.directory="$work/judge" \
        --set judge.templates="$work/templates" --set sampling.steps=2 --set steps.count=1 --set curate.enabled=false \
        --set rollout.prompts_per_iteration=3 --set rollout.group_size=2 --set rollout.micro_batch=2 --set reward.min_spread=0 \
        --set reward.gate=0 --set grpo.iterations=2 "${@:2}"
}

# Labels: the same from the same seed, annotators apart, the measures themselves.
for name in a b; do code 0 "$bin/atelier-world" --labels "$work/$name.h5" --count 8 --edit-count 4 --seed 5; done
h5diff -q "$work/a.h5" "$work/b.h5" || fail "labels of one seed differ"
code 0 "$bin/atelier-inspect" "$work/a.h5"
says "26 labelled samples, 72 scores, 6 times that a dimension does not apply"
code 0 "$bin/atelier-world" --labels "$work/truth.h5" --count 8 --seed 5 --annotators 0
code 0 "$bin/atelier-inspect" "$work/truth.h5"
says "19 labelled samples, 18 scores, 1 times that a dimension does not apply"
code 2 "$bin/atelier-world" --labels "$work/none.h5"

# The truth stands beside the scores and changes none of them.
plan with
plan without --set reward.truth=
plan ranks
code 0 ranks 1 rollout with --policy edit --iteration 1
code 0 ranks 1 rollout without --policy edit --iteration 1
code 0 ranks 3 rollout ranks --policy edit --iteration 1
rollout=edit/iter-0001/rollout
for shard in "$work/with/$rollout"/shard-*.h5; do
    name=$(basename "$shard")
    for other in without ranks; do
        for dataset in latents advantage total {reward/instruction,reward/identity}/{score,present,reason}; do
            h5diff -q "$shard" "$work/$other/$rollout/$name" "/shape-8x8/$dataset" || fail "$dataset of $name differs in the run $other"
        done
    done
    for dimension in identity instruction; do
        h5diff -q "$shard" "$work/ranks/$rollout/$name" "/shape-8x8/truth/$dimension" || fail "the truth of $name differs between ranks"
    done
    ! h5ls "$work/without/$rollout/$name/shape-8x8/truth" >/dev/null 2>&1 || fail "a truth that nobody asked for"
done
h5ls "$work/with/$rollout/trajectories.h5/shape-8x8/truth" | grep -q instruction || fail "the index has no truth"
code 0 "$bin/atelier-inspect" --label-sheet "$work/sheet" "$work/with/$rollout"
code 0 "$bin/atelier-world" --labels "$work/samples.h5" --samples "$work/with/$rollout"
code 0 "$bin/atelier-inspect" "$work/samples.h5"

# The miniature's own judge, as the configuration has it: verdicts, or more than reward.max_absent fail and end the stage with 6.
code 0 "$bin/atelier-plan" --config configs/mini-judge.toml --run "$work/own" --set sampling.steps=2 --set steps.count=1 --set curate.enabled=false \
    --set rollout.prompts_per_iteration=3 --set rollout.group_size=2 --set rollout.micro_batch=2
for policy in t2i edit; do code 0 ranks 1 rollout own --policy $policy --iteration 1; done

# The gap, its warning and its stop. Iteration 1's gap is put far down, so that iteration 2 must look like hacking.
code 0 ranks 1 grpo with --policy edit --iteration 1
python3 - "$work/with" <<'P'
import json, sys
(record,) = [json.loads(l) for l in open(sys.argv[1] + "/metrics.jsonl")]
gap = {n: record["reward"][n]["mean"] - record["truth"][n]["mean"] for n in ("instruction",)}
assert abs(record["gap"]["instruction"]["mean"] - gap["instruction"]) < 1e-6, record
assert record["gap_growth"] == 0 and not record["gap_warning"] and record["gap"]["all"]["n"] == 6, record
P
plan stops --set reward.gap_stop=1
code 0 ranks 1 rollout stops --policy edit --iteration 1
code 0 ranks 1 grpo stops --policy edit --iteration 1
for run in with stops; do
    code 0 ranks 1 rollout $run --policy edit --iteration 2
    python3 - "$work/$run/edit/iter-0001/policy/manifest.json" <<'P'
import json, sys
manifest = json.load(open(sys.argv[1]))
manifest["facts"]["gap"]["all"]["mean"] -= 5
json.dump(manifest, open(sys.argv[1], "w"))
P
done
code 0 ranks 2 grpo with --policy edit --iteration 2
says "warning: edit 2: the judge lies .* above the truth"
code 9 ranks 1 grpo stops --policy edit --iteration 2
says "the policy of iteration 1 is the last"
[[ ! -e $work/stops/edit/iter-0002/policy ]] || fail "a policy was published"
grep -q '"iteration":2' "$work/stops/metrics.jsonl" || fail "the stop is not in the metrics"
code 0 "$bin/atelier-inspect" "$work/with"
says "edit 2: judge above truth by"

# The evaluation by both, with the curve.
code 0 ranks 1 evaluate with --limit 1
says "the same pictures by the truth"
python3 - "$work/with/eval-limit-1" <<'P'
import json, sys
summary = json.load(open(sys.argv[1] + "/summary.json"))
assert set(summary["truth"]["models"]) == set(summary["models"]), summary.keys()
assert "edit/instruction" in summary["truth"]["models"]["base"], summary["truth"]
svg = open(sys.argv[1] + "/truth-gap.svg").read()
assert svg.count("<polyline") == 2 and "gap " in svg, svg
P
echo "mini judge: all checks passed"
