#!/usr/bin/env bash
# The judge in the stages: the same scores at any number of ranks from a server that behaves and one that doesn't, and from the
# engine's own judge; a key that stands nowhere; a server that is not there.   judge_test.sh BIN_DIR MPIEXEC SERVER
# (from the repository's root)
source tests/e2e/common.sh
server=$3
servers=()
at_exit() { kill "${servers[@]}" 2>/dev/null || true; }
export ATELIER_TEST_KEY=sk-t3st-0123456789abcdef

serve() {  # NAME OPTION...: starts a server, sets url
    "$server" --ready "$work/$1.url" "${@:2}" & servers+=($!)
    for _ in $(seq 200); do [[ -e $work/$1.url ]] && break; sleep 0.05; done
    url=$(<"$work/$1.url")
}
plan() {
    code 0 "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model=tests/oracle/data/pipeline/pipeline \
        --set sampling.steps=3 --set curate.enabled=false --set rollout.prompts_per_iteration=4 --set rollout.group_size=4 \
        --set rollout.micro_batch=2 --set steps.count=1 --set reward.min_spread=0 --set reward.gate=0 --set reward.workers=8 \
        --set judge.templates=configs/judge "${@:2}"
}
http=(--set reward.scorer=http --set judge.model=judge --set judge.key_variable=ATELIER_TEST_KEY --set judge.backoff=0.02)
ranks() { "$mpiexec" --oversubscribe --bind-to none -n "$1" "$bin/atelier-$2" --run "$work/$3" "${@:4}"; }
same_scores() {  # RUN RUN TASK
    for shard in "$work/$1/$3/iter-0001/rollout"/shard-*.h5; do
        other=$work/$2/$3/iter-0001/rollout/$(basename "$shard")
        h5diff -q "$shard" "$other" /shape-8x8/advantage || fail "advantages of $shard differ"
        for dimension in $(h5ls "$shard/shape-8x8/reward" | cut -d' ' -f1); do
            for name in score present reason; do
                h5diff -q "$shard" "$other" "/shape-8x8/reward/$dimension/$name" || fail "$dimension of $shard differs"
            done
        done
    done
}

serve good --key ATELIER_TEST_KEY
good=$url
serve bad --key ATELIER_TEST_KEY --misbehave
bad=$url
for task in t2i edit; do
    plan good-$task "${http[@]}" --set judge.url="$good"
    code 0 ranks 1 rollout good-$task --policy $task --iteration 1
    plan ranks-$task "${http[@]}" --set judge.url="$good"
    code 0 ranks 3 rollout ranks-$task --policy $task --iteration 1
    same_scores good-$task ranks-$task $task
    plan bad-$task "${http[@]}" --set judge.url="$bad" --set judge.deadline=3
    code 0 ranks 2 rollout bad-$task --policy $task --iteration 1
    same_scores good-$task bad-$task $task
    h5dump -d /shape-8x8/status "$work/bad-$task/$task/iter-0001/rollout/shard-00000.h5" >"$work/status.txt"
    grep -q "(0): 0, 0, 0, 0" "$work/status.txt" || fail "samples without score"
done
dimensions=$(h5ls "$work/good-edit/edit/iter-0001/rollout/shard-00000.h5/shape-8x8/reward" | cut -d' ' -f1 | tr '\n' ' ')
[[ $dimensions == "identity instruction " ]] || fail "dimensions $dimensions"
grep -q "judge/t2i/alignment" "$work/good-t2i/t2i/iter-0001/rollout/manifest.json" || fail "the templates are not in the manifest"

# Curation and evaluation ask the same judge.
plan all "${http[@]}" --set judge.url="$good" --set curate.enabled=true --set curate.prompts=4 --set curate.range_min=0
code 0 ranks 2 curate all --task t2i
code 0 ranks 1 evaluate all --limit 2
grep -q "alignment" "$work/out" || fail "no table of the judge's scores"

# Another judge's scores are not taken over: an evaluation is made anew, a rollout that was interrupted refuses its shards.
cp -r configs/judge "$work/changing"
plan changes "${http[@]}" --set judge.url="$good" --set judge.templates="$work/changing"
code 0 ranks 1 rollout changes --policy t2i --iteration 1
code 0 ranks 1 evaluate changes --limit 1
code 0 ranks 1 evaluate changes --limit 1
says "complete already"
shard=$work/changes/eval-limit-1/base/t2i/shard-00000.h5
inputs_of() { h5dump -N inputs_hash "$1" | grep "(0)" || fail "$1 does not say what it was made from"; }
before=$(inputs_of "$shard")
sed -i 's/You are strict and fair/You are strict/' "$work"/changing/*.toml
code 0 ranks 1 evaluate changes --limit 1
says "another judge, and is made anew"
after=$(inputs_of "$shard")
[[ $after != "$before" ]] || fail "scores of another judge were taken over"
rm "$work/changes/t2i/iter-0001/rollout"/{manifest.json,shard-00003.h5}
code 3 ranks 2 rollout changes --policy t2i --iteration 1
says "was scored by another judge"

# The key stands in no file of any run and in nothing that was said.
! grep -rq -e "$ATELIER_TEST_KEY" -e 0123456789abcdef "$work" || fail "the key stands in $(grep -rl 0123456789abcdef "$work" | head -3)"
grep -q "key_variable = 'ATELIER_TEST_KEY'\|key_variable = \"ATELIER_TEST_KEY\"" "$work/all/config.toml" || fail "the variable is not in the configuration"
code 2 "$bin/atelier-plan" --config configs/mini.toml --run "$work/secret" --set judge.key_variable="$ATELIER_TEST_KEY"
! grep -q 0123456789abcdef "$work/out" || fail "the key was repeated"
[[ ! -e $work/secret ]] || fail "a run was made with a key in it"

# No key, a wrong one, nobody there.
plan refused "${http[@]}" --set judge.url="$good"
code 2 env -u ATELIER_TEST_KEY "$bin/atelier-rollout" --run "$work/refused" --policy t2i --iteration 1
grep -q "the environment has no ATELIER_TEST_KEY" "$work/out" || fail "the missing variable was not named"
code 2 env ATELIER_TEST_KEY=none "$bin/atelier-rollout" --run "$work/refused" --policy t2i --iteration 1
says "the key has fewer than 8 characters"
code 6 env ATELIER_TEST_KEY=sk-wrong-key-77 "$bin/atelier-rollout" --run "$work/refused" --policy t2i --iteration 1
grep -q "HTTP 401: wrong key: Bearer \[key\]" "$work/out" || { cat "$work/out" >&2; fail "the refusal was not named"; }
code 0 "$bin/atelier-rollout" --run "$work/refused" --policy t2i --iteration 1
same_scores good-t2i refused t2i
plan nobody "${http[@]}" --set judge.url=http://127.0.0.1:1/v1 --set judge.breaker_pause=0.05 --set judge.outage=1
code 6 ranks 2 rollout nobody --policy t2i --iteration 1
grep -q "no answer" "$work/out" || fail "the missing server was not named"

# A sheet for people to label, and what they fill in.
code 0 "$bin/atelier-inspect" --label-sheet "$work/sheet" "$work/good-edit/edit/iter-0001/rollout"
(($(ls "$work/sheet/pictures" | wc -l) == 20)) || fail "pictures of the sheet"  # 16 and the 4 prompts' own
python3 - "$work/sheet/labels.csv" <<'P'
import csv, sys
rows = list(csv.DictReader(open(sys.argv[1], newline="")))
assert len(rows) == 32 and all(r["judge_score"] and r["judge_reason"] for r in rows), rows[0]
for person, off in (("anna", 0), ("ben", 0.5)):
    with open(sys.argv[1].replace("labels", person), "w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({**row, "annotator": person, "score": "" if i % 4 == 3 else 1 + i % 4 + off, "rationale": 'seen, "so"'})
P
code 0 "$bin/atelier-inspect" --filled-sheet "$work/sheet/anna.csv" --filled-sheet "$work/sheet/ben.csv" --labels "$work/labels.h5"
grep -q "anna: 24 labels" "$work/out" && grep -q "edit/identity: 16 pictures, agreement of annotators (Krippendorff's alpha) 0" "$work/out" ||
    { cat "$work/out" >&2; fail "the sheets were not read"; }
code 0 "$bin/atelier-inspect" "$work/labels.h5"
grep -q "24 labelled samples, 48 scores" "$work/out" || { cat "$work/out" >&2; fail "labels"; }
code 3 "$bin/atelier-inspect" --filled-sheet "$work/sheet/anna.csv" --filled-sheet "$work/sheet/anna.csv" --labels "$work/labels.h5"
grep -q "anna scores .* twice" "$work/out" || fail "the second score was not named"
# Another model's sheet has the same ids.
cp -r "$work/sheet" "$work/copy"
both=(--filled-sheet "$work/sheet/anna.csv" --filled-sheet "$work/copy/ben.csv" --labels "$work/both.h5")
code 0 "$bin/atelier-inspect" "${both[@]}"
mapfile -t pictures < <(ls "$work/copy/pictures" | grep -v source)
cp "$work/sheet/pictures/${pictures[4]}" "$work/copy/pictures/${pictures[0]}"
code 3 "$bin/atelier-inspect" "${both[@]}"
says "shows $work/copy/pictures/${pictures[0]}, which is another picture than $work/sheet/pictures/${pictures[0]}"
[[ $(head -c 3 "$work/sheet/labels.csv" | od -An -tx1) == " ef bb bf" ]] || fail "spreadsheets would not know that the sheet is UTF-8"
sheets() { sed "$1" "$work/sheet/anna.csv" >"$work/sheet/odd.csv"; code "$2" "$bin/atelier-inspect" --filled-sheet "$work/sheet/odd.csv" --labels "$work/odd.h5"; }
sheets 's/,anna,1,/, anna , NONE ,/' 0
cp "$work/odd.h5" "$work/odd-before.h5"
sheets 's/,edit,instruction,/,video,instruction,/' 3
[[ $(<"$work/out") == *"kind must be t2i or edit"* ]] || fail "the wrong kind was not named"
sheets 's#pictures/#../sheet/pictures/#' 3
sheets 's/seen/s\xe9en/' 3
[[ $(<"$work/out") == *"not UTF-8"* ]] || fail "Latin-1 was not named"
sheets '1s/judge_reason/score/' 3
cmp "$work/odd.h5" "$work/odd-before.h5" || fail "a sheet that was refused has changed the labels"

# The engine's own judge, here the miniature's text encoder, which was never taught to judge.
mkdir "$work/judge"
for part in text_encoder processor; do for file in assets/mini/base/$part/*; do ln -s "$PWD/$file" "$work/judge/"; done; done
mkdir "$work/templates"
for file in configs/judge/*.toml; do sed '1i reasoning_tokens = 8' "$file" >"$work/templates/$(basename "$file")"; done
own=(--set reward.scorer=judge --set judge.directory="$work/judge" --set judge.templates="$work/templates" --set judge.answers=9)
unmade() {  # CODE TEXT OPTION...: no run is made
    code "$1" "$bin/atelier-plan" --config configs/mini.toml --run "$work/unmade" "${own[@]}" "${@:3}"
    says "$2"
    [[ ! -e $work/unmade/config.toml ]] || fail "a run was made of what was refused"
}
unmade 2 "judge.context = 40, but a question about" --set judge.context=40
unmade 2 "judge.answers = 1, but" --set judge.answers=1
mkdir "$work/weightless"
for file in "$work"/judge/*; do [[ $file == *.safetensors* ]] || ln -s "$(readlink "$file")" "$work/weightless/"; done
unmade 3 "holds no weights" --set judge.directory="$work/weightless"
unmade 3 "is missing, which scores identity" --set reward.identity=small --set identity.network="$work/judge/none"
for task in t2i edit; do
    plan own-$task "${own[@]}"
    code 0 ranks 1 rollout own-$task --policy $task --iteration 1
    plan own-ranks-$task "${own[@]}"
    code 0 ranks 3 rollout own-ranks-$task --policy $task --iteration 1
    same_scores own-$task own-ranks-$task $task
done
for file in model.safetensors config.json tokenizer.json processor_config.json; do
    grep -q "judge/$file" "$work/own-t2i/t2i/iter-0001/rollout/manifest.json" || fail "the judge's $file is not in the manifest"
done
echo "judge: all checks passed"
