#!/usr/bin/env bash
# The pipeline through a private Slurm: every stage is requeued or killed once while it runs, the run goes on, and the policies,
# the student and the evaluation are those of an undisturbed run, bit for bit. Rerunning, --from, failure.
#   slurm_test.sh BIN_DIR   (from the repository's root)
set -euo pipefail
export ATELIER_BIN=$1
if ! command -v slurmctld >/dev/null && ! [[ -x /usr/sbin/slurmctld ]]; then
    echo "skipped: slurmctld is not installed (scripts/setup.sh slurm)"
    exit 77
fi
work=$(mktemp -d /tmp/atelier-slurm.XXXXXX)
export ATELIER_CLUSTER_DIR=$work/c ATELIER_CLUSTER_NODES=2 ATELIER_CLUSTER_MEMORY=4000 ATELIER_LAUNCHER_PATIENCE=20
trap 'slurm/local-cluster.sh clean; rm -rf "$work"' EXIT
slurm/local-cluster.sh start
eval "$(slurm/local-cluster.sh env)"
if slurm/local-cluster.sh start; then echo "FAILED: a second cluster took the place of one that runs" >&2; exit 1; fi

fail() {
    echo "FAILED: $*" >&2
    cat "$work"/*/failed/*.txt >&2 2>/dev/null || true
    tail -n 4 "$work"/disturbed/logs/*.log >&2 2>/dev/null || true
    scontrol show jobs >&2 2>/dev/null || true
    exit 1
}
drain() {
    local left end=$((SECONDS + 600))
    while ((SECONDS < end)); do
        if left=$(squeue -h) && [[ -z $left ]]; then return 0; fi
        sleep 0.1
    done
    squeue >&2
    fail "jobs are left after ten minutes"
}
# A delay for each score, so that a stage lasts long enough to be met while it runs.
submit() {
    local run=$1
    shift
    slurm/pipeline.sh configs/mini.toml --run "$work/$run" --set run.model=tests/oracle/data/pipeline/pipeline --set sampling.steps=4 \
        --set curate.prompts=12 --set curate.range_min=0 --set rollout.prompts_per_iteration=6 --set rollout.group_size=4 \
        --set rollout.micro_batch=4 --set steps.count=2 --set grpo.iterations=2 --set reward.min_spread=0 --set reward.gate=0 \
        --set reward.workers=1 --set reward.test_delay=0.03 --set reward.queue=4 --set distill.rounds=1 --set distill.prompts=6 --set pipeline.mix=false \
        --set task.edit.iterations=1 --set slurm.evaluate.ranks=2 --set slurm.evaluate.nodes=2 --set slurm.options='["--begin=now"]' "$@"
}

# Output is read whole: `grep -q` ends at its first match, and with pipefail the writer's SIGPIPE would count as a failure.
submit calm >"$work/out"
grep -q " 12 of 12 stages submitted" "$work/out" || fail "nothing was submitted"
drain
[[ -e $work/calm/eval/manifest.json ]] || fail "the undisturbed run did not finish"
"$ATELIER_BIN/atelier-inspect" --verify "$work/calm" >"$work/out" || { cat "$work/out"; fail "the undisturbed run does not verify"; }
grep -q "12 of 12 stages complete" "$work/calm/report/index.html" || fail "the run's page does not say that it is complete"
[[ $(echo "$work"/calm/tb/*/events*) == "$work/calm/tb/edit/events.out.tfevents.0000000001.atelier"*"/tb/t2i/"* ]] || fail "TensorBoard's files did not grow"
slurm/pipeline.sh --run "$work/calm" >"$work/out"
grep -q " 0 of " "$work/out" || fail "complete stages were submitted again"

# Each kind of stage is disturbed once: kill -9, or requeue.
submit disturbed >/dev/null
disturbed=0
for kind in curate rollout grpo teacher-dump distill evaluate; do
    how=$([[ $kind =~ ^(curate|grpo|distill)$ ]] && echo kill || echo requeue)
    end=$((SECONDS + 300))
    while ((SECONDS < end)); do
        if [[ $how == kill ]]; then
            pid=$(pgrep -f "^$ATELIER_BIN/atelier-$kind --run $work/disturbed" | head -1 || true)
            if [[ -n $pid ]] && kill -KILL "$pid" 2>/dev/null; then disturbed=$((disturbed + 1)); break; fi
        else
            job=$(squeue -h -t R -o '%i %j' | awk -v k="$kind" 'index($2, k) == 1 { print $1; exit }')
            if [[ -n $job ]] && pgrep -f "^$ATELIER_BIN/atelier-$kind --run $work/disturbed" >/dev/null && scontrol requeue "$job" 2>/dev/null; then
                disturbed=$((disturbed + 1))
                break
            fi
        fi
        if left=$(squeue -h) && [[ -z $left ]]; then break; fi
        sleep 0.02
    done
    if [[ $how == kill ]]; then  # the job has failed, its dependents are cancelled: say so, and go on
        drain
        ls "$work/disturbed/failed/$kind"*.txt >/dev/null || fail "killing $kind left no account in failed/"
        slurm/pipeline.sh --run "$work/disturbed" >/dev/null
    fi
done
drain
((disturbed == 6)) || fail "$disturbed of 6 kinds of stages were disturbed"
[[ -e $work/disturbed/eval/manifest.json ]] || fail "the disturbed run did not finish"
"$ATELIER_BIN/atelier-inspect" --verify "$work/disturbed" >"$work/out" || { cat "$work/out"; fail "the disturbed run does not verify"; }
compared=0
while read -r weights; do
    cmp "$work/calm/$weights" "$work/disturbed/$weights" || fail "$weights differs from the undisturbed run's"
    compared=$((compared + 1))
done < <(cd "$work/calm" && find . -name '*.safetensors')
((compared == 4)) || fail "$compared policies were compared"
cmp "$work/calm/eval/summary.json" "$work/disturbed/eval/summary.json" || fail "the evaluation differs"

# A stage again, with what depends on it.
before=$(stat -c %Y-%i "$work/calm/t2i/iter-0002/policy/manifest.json")
slurm/pipeline.sh --run "$work/calm" --from distill-01 >"$work/out"
grep -q " 2 of " "$work/out" || fail "--from did not submit two stages"
drain
[[ $before == $(stat -c %Y-%i "$work/calm/t2i/iter-0002/policy/manifest.json") ]] || fail "--from made a stage again that it should not"
cmp "$work/calm/eval/summary.json" "$work/disturbed/eval/summary.json" || fail "the evaluation differs after --from"

# An iteration more: refused while it would leave what was made from the last one before, then all of that is made again.
code=0
slurm/pipeline.sh --run "$work/calm" --set task.t2i.iterations=3 >"$work/out" 2>&1 || code=$?
((code == 2)) || fail "more iterations: exit code $code"
grep -q "edit/iter-0001/policy and t2i/iter-0003/policy (still to be made); nothing was changed.*--from teacher-dump-edit-01,teacher-dump-t2i-01 " "$work/out" || { cat "$work/out"; fail "more iterations: not refused as it should be"; }
! grep -q "^iterations = 3" "$work/calm/config.toml" || fail "a refused plan was published"
weights=$work/calm/t2i/iter-0002/policy/diffusion_pytorch_model.safetensors
before=$(stat -c %Y-%i "$weights")
slurm/pipeline.sh --run "$work/calm" --set task.t2i.iterations=3 --from teacher-dump-edit-01,teacher-dump-t2i-01 >"$work/out"
grep -q " 6 of 14 stages submitted" "$work/out" || { cat "$work/out"; fail "more iterations: other stages than rollout, update, dumps, round, evaluation"; }
drain
[[ $before == $(stat -c %Y-%i "$weights") ]] || fail "an iteration was made again"
grep -q "14 of 14 stages complete" "$work/calm/report/index.html" || fail "the run with more iterations is not complete"
[[ -e $work/calm/t2i/iter-0003/policy/manifest.json && -e $work/calm/eval/manifest.json ]] || fail "more iterations: something was not made"
slurm/pipeline.sh --run "$work/calm" >"$work/out"
grep -q " 0 of " "$work/out" || fail "complete stages were submitted again"

# A stage by hand, one that wants more ranks than it was given.
mv "$work/calm/eval" "$work/calm-eval"
sbatch --parsable --output="$work/by-hand.log" slurm/stage.sh "$work/calm" evaluate >/dev/null
drain
cmp "$work/calm/eval/summary.json" "$work/calm-eval/summary.json" || fail "evaluate by hand"

# A stage that fails stops its dependents and says why.
submit failing --set reward.test_failures=1 --set reward.retries=0 --set reward.test_delay=0 >/dev/null
drain
grep -q "could not be scored" "$work/failing/failed/curate-t2i.txt" || fail "failed/ does not say why"
grep -q "could not be scored" "$work/failing/report/index.html" || fail "the run's page does not say why"
[[ ! -e $work/failing/t2i ]] || fail "a dependent of a failed stage ran"
echo "slurm: all checks passed"
