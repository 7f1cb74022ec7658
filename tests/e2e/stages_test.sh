#!/usr/bin/env bash
# Rollout and GRPO as programs: the same samples at any number of ranks, weights that differ in rounding only, kill and
# rerun, a signal, two writers, bad input.   stages_test.sh BIN_DIR MPIEXEC   (from the repository's root)
source tests/e2e/common.sh
at_exit() { umount "$work/small" 2>/dev/null || true; }
model=tests/oracle/data/pipeline/pipeline

plan() {
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model=$model --set sampling.steps=4 --set curate.enabled=false \
        --set rollout.prompts_per_iteration=4 --set rollout.group_size=4 --set rollout.micro_batch=2 --set steps.count=2 \
        --set sampling.guidance_scale=2 --set grpo.learning_rate=1e-3 --set reward.min_spread=0 --set reward.gate=0 "${@:2}" >/dev/null
}
stage() { "$bin/atelier-$1" --run "$work/$2" --policy "$3" --iteration "$4"; }
ranks() { "$mpiexec" --oversubscribe --bind-to none -n "$1" "$bin/atelier-$2" --run "$work/$3" --policy "$4" --iteration "$5"; }
same_shards() {  # RUN RUN TASK ITERATION: all datasets of all shards
    local compared=0
    for shard in "$work/$1/$3/iter-$4/rollout"/shard-*.h5; do
        other=$work/$2/$3/iter-$4/rollout/$(basename "$shard")
        for name in $(h5ls "$shard/shape-8x8" | awk '$2 == "Dataset" { print $1 }'); do
            h5diff -q "$shard" "$other" "/shape-8x8/$name" || fail "$name of $shard differs from $other"
            compared=$((compared + 1))
        done
        for dimension in $(h5ls "$shard/shape-8x8/reward" | cut -d' ' -f1); do
            # How long a measurement took may differ; what it said may not.
            for name in score present reason; do
                h5diff -q "$shard" "$other" "/shape-8x8/reward/$dimension/$name" || fail "$dimension of $shard differs"
            done
        done
    done
    ((compared > 10)) || fail "only $compared datasets of $1 were compared"
}

for task in t2i edit; do
    plan one-$task && plan three-$task
    code 0 stage rollout one-$task $task 1
    code 0 ranks 3 rollout three-$task $task 1
    same_shards one-$task three-$task $task 0001
    code 0 stage grpo one-$task $task 1
    code 0 ranks 3 grpo three-$task $task 1
    # Gradients are summed in another order: weights agree to rounding of an AdamW step of 1e-3.
    python3 - "$work/one-$task/$task/iter-0001/policy" "$work/three-$task/$task/iter-0001/policy" 2>/dev/null <<'P' || fail "weights of one and three ranks"
import array, json, struct, sys
def weights(folder):
    data = open(folder + "/diffusion_pytorch_model.safetensors", "rb").read()
    (n,) = struct.unpack("<Q", data[:8])
    return array.array("f", data[8 + n:])
a, b = (weights(f) for f in sys.argv[1:])
sys.exit(not (len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b)) < 1e-4 and a != array.array("f")))
P
    code 0 stage rollout one-$task $task 2
done

# Killed, or asked to stop, in the middle of the rollout and run again: the same samples, nothing left over.
more=(--set rollout.prompts_per_iteration=24)
plan undisturbed "${more[@]}"
code 0 stage rollout undisturbed t2i 1
for signal in KILL TERM; do
    run=after-$signal
    plan $run "${more[@]}"
    "$bin/atelier-rollout" --run "$work/$run" --policy t2i --iteration 1 >/dev/null 2>&1 &
    pid=$!
    for _ in $(seq 500); do [[ -e $work/$run/t2i/iter-0001/rollout/shard-00001.h5 ]] && break; sleep 0.01; done
    kill -$signal $pid
    # Asked again and again: a signal may come at any point of a product (lib/core/signals.hpp).
    while kill -$signal $pid 2>/dev/null; do sleep 0.001; done
    found=0
    wait $pid 2>/dev/null || found=$?
    [[ $signal == KILL ]] || ((found == 75)) || fail "exit code 75 expected after TERM, found $found"
    [[ ! -e $work/$run/t2i/iter-0001/rollout/manifest.json ]] || fail "the rollout was over before the signal"
    code 3 stage grpo $run t2i 1
    code 0 stage rollout $run t2i 1
    same_shards undisturbed $run t2i 0001
    [[ -z $(find "$work/$run" -name '.tmp-*') ]] || fail "temporaries were left"
done

# A finished stage is left alone; a damaged shard is named.
code 0 stage rollout after-KILL t2i 1
grep -q "complete already" "$work/out" || fail "a finished stage was run again"
shard=$work/after-KILL/t2i/iter-0001/rollout/shard-00002.h5
printf 'x' | dd of="$shard" bs=1 seek=20000 conv=notrunc status=none
code 3 stage grpo after-KILL t2i 1
grep -q "shard-00002.h5 does not match its manifest" "$work/out" || fail "the damaged shard was not named"

# Another job holds the stage.
plan busy && mkdir -p "$work/busy/t2i/iter-0001/rollout"
lock=$work/busy/t2i/iter-0001/rollout/.lock
(exec 9>"$lock" && flock 9 && exec sleep 600) &
holder=$!
until ! flock -n "$lock" true; do sleep 0.05; done
code 7 stage rollout busy t2i 1
code 7 ranks 2 rollout busy t2i 1
kill $holder

# Models side by side: the same summary from any number of ranks.
for task in t2i edit; do
    policy=$work/one-$task/$task/iter-0001/policy few=$work/one-$task/eval-teacher-limit-6
    code 0 "$bin/atelier-evaluate" --run "$work/one-$task" --limit 6 --model "teacher=$policy"
    grep -q "teacher" "$work/out" || fail "no table"
    mv "$few/summary.json" "$work/summary.json"
    code 3 "$bin/atelier-evaluate" --run "$work/one-$task" --limit 6 --model "teacher=$policy"
    rm -rf "$few"
    code 0 "$mpiexec" --oversubscribe --bind-to none -n 2 "$bin/atelier-evaluate" --run "$work/one-$task" --limit 6 --model "teacher=$policy"
    cmp "$work/summary.json" "$few/summary.json" || fail "summaries of one and two ranks differ"
    [[ ! -e $work/one-$task/eval ]] || fail "an evaluation of less was taken for the pipeline's"
done
# A killed evaluation goes on where it was, with the same result.
few=$work/one-t2i/eval-limit-48
"$bin/atelier-evaluate" --run "$work/one-t2i" --limit 48 >/dev/null 2>&1 & evaluation=$!
for _ in $(seq 2000); do [[ $(find "$few/base/t2i" -name 'shard-*.h5' 2>/dev/null | wc -l) -lt 3 ]] || break; sleep 0.02; done
kill -KILL $evaluation 2>/dev/null || true
wait $evaluation 2>/dev/null || true
[[ -e $few/base/t2i/shard-00001.h5 && ! -e $few/summary.json ]] || fail "the evaluation was not killed in its middle"
before=$(stat -c "%i %y" "$few/base/t2i/shard-00001.h5")
code 0 "$bin/atelier-evaluate" --run "$work/one-t2i" --limit 48
[[ $(stat -c "%i %y" "$few/base/t2i/shard-00001.h5") == "$before" ]] || fail "the evaluation drew pictures again that it had"
mv "$few/summary.json" "$work/summary.json"
rm -rf "$few"
code 0 "$bin/atelier-evaluate" --run "$work/one-t2i" --limit 48
cmp "$work/summary.json" "$few/summary.json" || fail "the evaluation differs after a kill"
# A further model costs only its own pictures, and the pipeline's evaluation stays as it was.
mv "$few" "$work/one-t2i/eval"
sum=$(cat "$work/one-t2i/eval"/{manifest.json,summary.json,table.txt} | md5sum)
code 0 "$bin/atelier-evaluate" --run "$work/one-t2i" --limit 48 --model "teacher=$work/one-t2i/t2i/iter-0001/policy"
few=$work/one-t2i/eval-teacher-limit-48
[[ $(stat -c %i "$few/base/t2i/shard-00001.h5") == "$(stat -c %i "$work/one-t2i/eval/base/t2i/shard-00001.h5")" ]] ||
    fail "a further model made the others' pictures again"
[[ $sum == "$(cat "$work/one-t2i/eval"/{manifest.json,summary.json,table.txt} | md5sum)" ]] || fail "a further model changed the pipeline's evaluation"
for name in base student teacher-t2i ../up a/b; do
    code 2 "$bin/atelier-evaluate" --run "$work/one-t2i" --model "$name=$work/one-t2i/t2i/iter-0001/policy"
done
code 0 "$bin/atelier-inspect" --verify "$few"
code 0 "$bin/atelier-inspect" "$few/base/t2i/shard-00001.h5"
# With and without guidance: other pictures, under one name too.
for option in model guided-model guided-model; do
    code 0 "$bin/atelier-evaluate" --run "$work/one-t2i" --limit 8 "--$option" "both=$work/one-t2i/t2i/iter-0001/policy"
    h5dump -a guidance_scale "$work/one-t2i/eval-both-limit-8/both/t2i/shard-00000.h5" >"$work/out"
    says "(0): $([[ $option == model ]] && echo 1 || echo 2)"
done

# The run's page: pictures of a rollout, the curves, both evaluations; another time the same bytes.
code 0 "$bin/atelier-inspect" --report "$work/one-t2i"
page=$work/one-t2i/report/index.html
for says in "rollout-t2i-0001" "<b>best: " "reward, by dimension" "groups without spread" "eval-teacher-limit-48" "../eval/contact-t2i.png" "when each stage ran"; do
    grep -qF "$says" "$page" || fail "the run's page has no '$says'"
done
sum=$(cat "$page" "$work"/one-t2i/tb/*/events* | md5sum)
code 0 "$bin/atelier-inspect" --report "$work/one-t2i"
[[ $sum == "$(cat "$page" "$work"/one-t2i/tb/*/events* | md5sum)" ]] || fail "the run's page changed while the run did not"
code 3 "$bin/atelier-inspect" --report "$work/one-t2i/eval"
code 0 "$bin/atelier-inspect" --verify "$work/one-t2i"

# Replay gives the stored log-probabilities bit for bit; a shard with one changed bit is named.
code 0 "$bin/atelier-inspect" --replay "$work/one-edit/edit/iter-0001/rollout"
grep -q " 0 differ" "$work/out" || fail "the replay says nothing"
code 0 "$bin/atelier-inspect" --verify "$work/one-edit"
for what in "" /edit/iter-0001/rollout /edit/iter-0001/policy /edit/iter-0001/rollout/shard-00000.h5 /edit/iter-0001/policy/training.h5; do
    code 0 "$bin/atelier-inspect" "$work/one-edit$what"
done
code 0 "$bin/atelier-inspect" --export "$work/pictures" "$work/one-edit/edit/iter-0001/rollout"
(($(ls "$work/pictures"/*.png | wc -l) == 16 && $(wc -l <"$work/pictures/samples.jsonl") == 16)) || fail "pictures were not exported"
code 3 "$bin/atelier-inspect" --verify "$work/after-KILL"

# Scores that fail: retried, then absent and counted; too many end the stage, and a rerun asks again.
cp assets/mini/prompts/t2i-train.jsonl "$work/prompts.jsonl"
plan absent --set reward.test_failures=0.5 --set reward.retries=1 --set reward.max_absent=0.9 --set task.t2i.train="$work/prompts.jsonl"
code 0 stage rollout absent t2i 1
h5dump -d /shape-8x8/status "$work/absent/t2i/iter-0001/rollout/trajectories.h5" >"$work/status.txt"
grep -q '[ (]1[,\n]' "$work/status.txt" || fail "no sample is marked as without score"
code 0 stage grpo absent t2i 1
lacks_scores() { h5dump -d /shape-8x8/status "$1" | grep '^ *(' | sed 's/.*://' | grep 1 >/dev/null; }
# An evaluation leaves them out and says how many of which model.
code 0 "$bin/atelier-evaluate" --run "$work/absent" --limit 20
says "pictures of base for t2i have no score and are left out"
code 0 "$bin/atelier-evaluate" --run "$work/absent" --limit 20
says "complete already"
# They are not taken over from the pipeline's evaluation: another asks again.
mv "$work/absent/eval-limit-20" "$work/absent/eval"
code 0 "$bin/atelier-evaluate" --run "$work/absent" --limit 20
again=0
for shard in "$work/absent/eval/base/t2i"/shard-*.h5; do
    other=$work/absent/eval-limit-20/base/t2i/$(basename "$shard")
    if lacks_scores "$shard"; then
        again=$((again + 1))
        [[ $(stat -c %i "$shard") != "$(stat -c %i "$other")" ]] || fail "$shard lacks scores and was taken over"
    else
        [[ $(stat -c %i "$shard") == "$(stat -c %i "$other")" ]] || fail "$shard was not taken over"
    fi
done
((again > 0)) || fail "no shard lacks scores"
# Prompts that changed between the rollout and its update.
mv "$work/absent/t2i/iter-0001/policy" "$work/absent-policy"
sed -i 's/"text": *"/&now /' "$work/prompts.jsonl"
code 3 stage grpo absent t2i 1
says "the text of prompt"
cp assets/mini/prompts/t2i-train.jsonl "$work/prompts.jsonl"
plan failing --set reward.test_failures=0.9 --set reward.retries=0
code 6 stage rollout failing t2i 1
code 6 ranks 2 rollout failing t2i 1
code 6 "$bin/atelier-evaluate" --run "$work/failing" --limit 20
says "held-out pictures could not be scored, more than reward.max_absent = 0.1 allows"
code 6 "$mpiexec" --oversubscribe --bind-to none -n 2 "$bin/atelier-evaluate" --run "$work/failing" --limit 20
for shard in $(find "$work/failing/eval-limit-20" -name "shard-*.h5"); do
    lacks_scores "$shard" && fail "$shard lacks scores and is left"
done
[[ ! -e $work/failing/eval-limit-20/summary.json ]] || fail "an evaluation that failed has a summary"
# What cannot be mended any more is not drawn to its end, on any number of ranks.
for n in 1 2; do
    plan hopeless-$n --set reward.test_failures=1 --set reward.retries=0 --set reward.workers=1 --set reward.queue=1 --set rollout.prompts_per_iteration=40
    code 6 ranks $n rollout hopeless-$n t2i 1
    says " of 160 samples could not be scored, more than reward.max_absent"
    ! grep -q "160 of 160" "$work/out" || fail "a rollout without a score went on to its end"
    ! compgen -G "$work/hopeless-$n/t2i/iter-0001/rollout/shard-*.h5" >/dev/null || fail "a shard without scores is left"
done

# Objectives with a distance to the base, a moving average, GRPO-Guard's ratio; what is kept of a rollout.
plan options --set grpo.kl=gaussian --set grpo.kl_beta=0.1 --set grpo.ema=0.9 --set grpo.ratio_norm=true --set sampling.guidance_train=guided --set storage.keep=summary
code 0 stage rollout options t2i 1
code 0 stage grpo options t2i 1
[[ -e $work/options/t2i/iter-0001/policy/ema/diffusion_pytorch_model.safetensors ]] || fail "no moving average"
states() { h5ls "$1/shape-8x8" | grep -c '^x .*{4, 2' || true; }
[[ $(states "$work/one-t2i/t2i/iter-0001/rollout/shard-00000.h5") == 1 ]] || fail "states that are kept do not look as expected"
[[ $(states "$work/options/t2i/iter-0001/rollout/shard-00000.h5") == 0 ]] || fail "states were kept"
code 0 "$bin/atelier-inspect" --verify "$work/options"
mv "$work/options/t2i/iter-0001/policy" "$work/options-policy"
code 3 stage grpo options t2i 1
says "given up when what they trained was published (storage.keep)"
mv "$work/options-policy" "$work/options/t2i/iter-0001/policy"
code 0 stage rollout options t2i 2
(($(wc -l <"$work/options/metrics.jsonl") == 1)) || fail "metrics of one update on several lines"

# Shards of another configuration, weights that are no numbers, a truncated checkpoint, a directory that cannot be made.
plan other --set run.seed=5
mkdir -p "$work/other/t2i/iter-0001/rollout"
cp "$work/one-t2i/t2i/iter-0001/rollout/shard-00000.h5" "$work/other/t2i/iter-0001/rollout/"
code 3 stage rollout other t2i 1
grep -q "made with another configuration" "$work/out" || fail "the other configuration was not named"
cp -r $model "$work/model"
plan broken --set run.model="$work/model"
weights=$work/model/transformer/diffusion_pytorch_model.safetensors
code 0 stage rollout broken t2i 1
printf '\x01' | dd of="$weights" bs=1 seek=$(($(stat -c %s "$weights") - 15)) conv=notrunc status=none
code 3 stage grpo broken t2i 1
says "diffusion_pytorch_model.safetensors: the file was changed since the run began"
rm "$work/broken/model.json"
code 3 stage grpo broken t2i 1
says "drawn by another policy"
rm -r "$work/broken/t2i" "$work/broken/model.json"
printf '\xff\xff\xff\xff\xff\xff\xff\xff' | dd of="$weights" bs=1 seek=$(($(stat -c %s "$weights") - 8)) conv=notrunc status=none
code 3 stage rollout broken t2i 1
grep -q "holds -*nan at element" "$work/out" || { cat "$work/out" >&2; fail "weights that are no numbers were not named"; }
truncate -s -100 "$weights"
rm "$work/broken/model.json"
code 3 ranks 2 rollout broken t2i 1
grep -q "diffusion_pytorch_model.safetensors" "$work/out" || fail "the truncated checkpoint was not named"
code 4 "$bin/atelier-plan" --config configs/mini.toml --run /proc/atelier-run

# A full disk: what was published stays whole, and the stage goes on when there is room.
if mkdir "$work/small" && mount -t tmpfs -o size=1500k none "$work/small" 2>/dev/null; then
    "$bin/atelier-plan" --config "$work/one-t2i/config.toml" --run "$work/small/run" >/dev/null
    code 4 "$bin/atelier-rollout" --run "$work/small/run" --policy t2i --iteration 1
    grep -q "No space left" "$work/out" || fail "the full disk was not named"
    code 0 "$bin/atelier-inspect" --verify "$work/small/run"
    mount -o remount,size=100m "$work/small"
    code 0 "$bin/atelier-rollout" --run "$work/small/run" --policy t2i --iteration 1
    for shard in "$work/small/run/t2i/iter-0001/rollout"/shard-*.h5; do
        h5diff -q "$shard" "$work/one-t2i/t2i/iter-0001/rollout/$(basename "$shard")" /shape-8x8/latents || fail "$shard differs after the full disk"
    done
    umount "$work/small"
else
    echo "skipped: no right to mount, so the full disk was not tried"
fi

# A rank that dies ends the others within seconds; a rerun gives the same samples.
plan dies "${more[@]}" --set reward.test_delay=0.02
"$mpiexec" --oversubscribe --bind-to none -n 2 "$bin/atelier-rollout" --run "$work/dies" --policy t2i --iteration 1 >"$work/out" 2>&1 &
pid=$!
for _ in $(seq 500); do [[ -e $work/dies/t2i/iter-0001/rollout/shard-00001.h5 ]] && break; sleep 0.01; done
begin=$SECONDS
kill -KILL "$(pgrep -f "^$bin/atelier-rollout --run $work/dies" | tail -1)"
wait $pid && fail "a dead rank went unnoticed"
((SECONDS - begin < 10)) || fail "the other rank lived on for $((SECONDS - begin)) s"
for _ in $(seq 100); do pgrep -f "^$bin/atelier-rollout --run $work/dies" >/dev/null || break; sleep 0.05; done
[[ -z $(pgrep -f "^$bin/atelier-rollout --run $work/dies") ]] || fail "a rank is left"
code 0 ranks 2 rollout dies t2i 1
code 0 "$bin/atelier-inspect" --verify "$work/dies"

# Mistakes.
code 2 stage rollout one-t2i portrait 1
code 2 "$bin/atelier-rollout" --run "$work/none" --policy t2i --iteration 1
code 2 "$bin/atelier-plan" --config configs/mini.toml --set sampling.eat=1
grep -q "nearest known one is sampling.eta" "$work/out" || fail "the nearest key was not named"
code 3 stage rollout undisturbed t2i 3
grep -q "run iteration 2" "$work/out" || fail "the missing iteration was not named"
code 2 plan one-t2i --set run.seed=9
echo "stages: all checks passed"
