#!/usr/bin/env bash
# Ranks that judge: the same shards for any number of ranks and judges among them; failing scorers, signals and deaths on a judge.
#   judge_ranks_test.sh BIN_DIR MPIEXEC SERVER   (from the repository's root)
source tests/e2e/common.sh
server=$3
servers=()
at_exit() { kill "${servers[@]}" 2>/dev/null || true; }

plan() {  # RUN SETTING...
    code 0 "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model=tests/oracle/data/pipeline/pipeline \
        --set sampling.steps=3 --set curate.enabled=false --set rollout.prompts_per_iteration=8 --set rollout.group_size=4 \
        --set rollout.micro_batch=2 --set steps.count=1 --set reward.min_spread=0 --set reward.gate=0 "${@:2}"
}
ranks() { "$mpiexec" --oversubscribe --bind-to none -n "$1" "$bin/atelier-$2" --run "$work/$3" "${@:4}"; }
rollout() { echo "$1/$2/iter-0001/rollout"; }

# The measures, made slow and unreliable.
faulty=(--set reward.test_delay=0.03 --set reward.test_failures=0.3 --set reward.retries=3 --set reward.workers=4 --set reward.queue=8)
for task in t2i edit; do
    plan "one-$task" "${faulty[@]}"
    code 0 "$bin/atelier-rollout" --run "$work/one-$task" --policy $task --iteration 1
    constellations=("2 1" "3 2" "5 2")
    [[ $task == t2i ]] || constellations=("3 2")
    for of in "${constellations[@]}"; do
        read -r n k <<<"$of"
        plan "$task-$n-$k" "${faulty[@]}" --set reward.ranks="$k"
        code 0 ranks "$n" rollout "$task-$n-$k" --policy $task --iteration 1
        same_shards "$(rollout one-$task $task)" "$(rollout "$task-$n-$k" $task)"
        says "a judge's memory planned"
    done
done

# Who was busy with what, when.
code 0 "$bin/atelier-inspect" --timeline "$work/timeline.png" "$work/$(rollout t2i-5-2 t2i)"
[[ $(head -c 4 "$work/timeline.png" | tail -c 3) == PNG ]] || fail "no picture of the timeline"
python3 - "$work/$(rollout t2i-5-2 t2i)/timeline.json" <<'P'
import json, sys
spans = [e for e in json.load(open(sys.argv[1]))["traceEvents"] if e["ph"] == "X"]
judged = [e for e in spans if e["name"] == "judging"]
assert sorted(e["args"]["sample"] for e in judged) == list(range(32)), "every sample is judged once"
assert {e["pid"] for e in judged} == {3, 4}, "on the last ranks"
assert {e["pid"] for e in spans if e["name"] == "sampling"} == {0, 1, 2} and len([e for e in spans if e["name"] == "publish"]) == 8
P
code 3 "$bin/atelier-inspect" --timeline "$work/timeline.png" "$work"

# A server, and the engine's own judge.
"$server" --ready "$work/url" & servers+=($!)
for _ in $(seq 200); do [[ -e $work/url ]] && break; sleep 0.05; done
http=(--set reward.scorer=http --set judge.model=judge --set judge.url="$(<"$work/url")" --set judge.templates=configs/judge --set reward.workers=8)
mkdir "$work/judge" "$work/templates"
for part in text_encoder processor; do for file in assets/mini/base/$part/*; do ln -s "$PWD/$file" "$work/judge/"; done; done
for file in configs/judge/*.toml; do sed '1i reasoning_tokens = 8' "$file" >"$work/templates/$(basename "$file")"; done
own=(--set reward.scorer=judge --set judge.directory="$work/judge" --set judge.templates="$work/templates" --set judge.answers=9
    --set rollout.prompts_per_iteration=4)
for kind in http own; do
    declare -n settings=$kind
    plan $kind-alone "${settings[@]}"
    code 0 "$bin/atelier-rollout" --run "$work/$kind-alone" --policy edit --iteration 1
    plan $kind-ranks "${settings[@]}" --set reward.ranks=2
    code 0 ranks 4 rollout $kind-ranks --policy edit --iteration 1
    same_shards "$(rollout $kind-alone edit)" "$(rollout $kind-ranks edit)"
done

# Identity by face embeddings in place of the judge's own dimension, which is not asked for; also on judges.
small=("${http[@]}" --set reward.identity=small --set identity.network=assets/mini/identity --set identity.table='["0=1", "1=5"]')
for name in small-alone small-ranks; do
    k=0; [[ $name == small-ranks ]] && k=1
    plan $name "${small[@]}" --set reward.ranks=$k
    code 0 ranks $((2 * k + 1)) rollout $name --policy edit --iteration 1
done
same_shards "$(rollout small-alone edit)" "$(rollout small-ranks edit)"
for shard in "$work/$(rollout small-alone edit)"/shard-*.h5; do h5dump -d /shape-8x8/reward/identity/reason "$shard"; done >"$work/reasons"
grep -q "no face in the source" "$work/reasons" && grep -q "the face was lost\|embeddings have cosine" "$work/reasons" ||
    { cat "$work/reasons" >&2; fail "identity"; }
h5diff -q "$work/$(rollout small-alone edit)/shard-00000.h5" "$work/$(rollout http-alone edit)/shard-00000.h5" /shape-8x8/reward/instruction/score ||
    fail "the judge's own dimension changed"
grep -q "identity/model.safetensors" "$work/$(rollout small-alone edit)/manifest.json" || fail "the embedding is not in the manifest"
code 2 "$bin/atelier-plan" --config configs/mini.toml --run "$work/unnamed" --set reward.identity=opencv
says "identity.detector"

# Curation and evaluation; a stage that is complete needs no judge, yet all ranks end.
for name in all-alone all-ranks; do
    k=0; [[ $name == all-ranks ]] && k=1
    plan $name "${faulty[@]}" --set reward.ranks=$k --set curate.enabled=true --set curate.prompts=4 --set curate.range_min=0 --set rollout.prompts_per_iteration=4
    code 0 ranks $((k + 1)) curate $name --task t2i
    code 0 ranks $((2 * k + 1)) evaluate $name --limit 20
done
same_shards all-alone/prompts/t2i all-ranks/prompts/t2i
same_shards all-alone/eval-limit-20/base/edit all-ranks/eval-limit-20/base/edit
cmp "$work/all-alone/eval-limit-20/table.txt" "$work/all-ranks/eval-limit-20/table.txt" || fail "the tables differ"
code 0 ranks 3 evaluate all-ranks --limit 20
says "complete already"

# None left to sample; too many absent, said once; a judge that cannot begin.
plan refused --set reward.ranks=2
code 2 ranks 2 rollout refused --policy t2i --iteration 1
says "reward.ranks = 2 of 2 ranks: none is left to sample"
code 2 "$bin/atelier-rollout" --run "$work/refused" --policy t2i --iteration 1
plan absent --set reward.ranks=1 --set reward.test_failures=1 --set reward.retries=0
code 6 ranks 3 rollout absent --policy t2i --iteration 1
says " of 32 samples could not be scored, more than reward.max_absent"
cp -r "$work/judge" "$work/leaving"
plan broken "${own[@]}" --set reward.ranks=1 --set judge.directory="$work/leaving"
rm "$work"/leaving/*.safetensors
code 3 timeout 60 "$mpiexec" --oversubscribe --bind-to none -n 2 "$bin/atelier-rollout" --run "$work/broken" --policy t2i --iteration 1

# A signal to one rank of either kind, and a judge that is killed.
slow=(--set reward.ranks=1 --set reward.test_delay=0.3 --set reward.workers=1 --set reward.queue=1)
rank_of() {  # RUN RANK: its process
    local process
    for process in $(pgrep -f "atelier-rollout --run $work/$1 "); do
        if grep -qzx "OMPI_COMM_WORLD_RANK=$2" "/proc/$process/environ" 2>/dev/null; then echo "$process"; fi
    done
}
for what in "USR1 2" "TERM 0" "KILL 2"; do
    read -r signal rank <<<"$what"
    run=stopped-$signal-$rank
    plan $run "${slow[@]}"
    ranks 3 rollout $run --policy t2i --iteration 1 >"$work/job.txt" 2>&1 & job=$!
    for _ in $(seq 600); do ls "$work/$(rollout $run t2i)"/shard-*.h5 >/dev/null 2>&1 && break; sleep 0.05; done
    kill -"$signal" "$(rank_of $run "$rank")"
    found=0
    wait $job || found=$?
    if [[ $signal == KILL ]]; then ((found != 0 && found != 75)) || fail "a killed judge ended with $found"
    else ((found == 75)) || { cat "$work/job.txt" >&2; fail "$what: exit code 75 expected, found $found"; }; fi
    count=$(find "$work/$(rollout $run t2i)" -name 'shard-*.h5' | wc -l)
    ((count >= 1 && count < 8)) || fail "$what: $count shards were published"
    [[ ! -e $work/$(rollout $run t2i)/manifest.json ]] || fail "$what: the stage calls itself complete"
    code 0 ranks 2 rollout $run --policy t2i --iteration 1
    if [[ $signal == USR1 ]]; then plan slow-alone "${slow[@]}" --set reward.ranks=0 --set reward.test_delay=0
        code 0 "$bin/atelier-rollout" --run "$work/slow-alone" --policy t2i --iteration 1; fi
    same_shards "$(rollout slow-alone t2i)" "$(rollout $run t2i)"
    code 0 "$bin/atelier-inspect" --verify "$work/$run"
done
echo "judge ranks: all checks passed"
