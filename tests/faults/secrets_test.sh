#!/usr/bin/env bash
# The judge's key reaches only what asks the judge: not the jobs of other stages, no log, account of failure, job record, core file.
# tests/e2e/judge_test.sh looks at what the programs write; this one at crashes and at Slurm.
#   secrets_test.sh BIN_DIR MPIEXEC   (from the repository's root)
source tests/e2e/common.sh
cluster=$(mktemp -d /tmp/atelier-secrets.XXXXXX)  # names of sockets are short
at_exit() {
    [[ ! -e $cluster/c ]] || slurm/local-cluster.sh clean
    rm -rf "$cluster"
}
secret=sk-t3st-secret-5566778899
export ATELIER_TEST_KEY=$secret
plan() {
    code 0 "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model="$PWD"/tests/oracle/data/pipeline/pipeline --set sampling.steps=3 \
        --set pipeline.mix=false --set grpo.iterations=1 --set distill.rounds=1 --set rollout.group_size=4 --set rollout.micro_batch=4 --set curate.prompts=4 --set rollout.prompts_per_iteration=4 \
        --set reward.scorer=http --set judge.model=judge --set judge.templates="$PWD"/configs/judge --set judge.key_variable=ATELIER_TEST_KEY \
        --set judge.url=http://127.0.0.1:1/v1 "${@:2}"
}
# absent WHAT PLACE...: the key stands in no file there
absent() { ! grep -rqs "$secret" "${@:2}" || fail "the key stands in $1: $(grep -rls "$secret" "${@:2}" | head -3)"; }

# A program that waits for its judge crashes: no core file, wherever cores go.
if [[ $(ulimit -Hc) == 0 ]]; then
    echo "skipped: no program may write a core file here"
else
    plan crash --set judge.outage=60 --set judge.breaker_pause=1 --set judge.backoff=1
    mkdir "$work/cores"
    program=$(realpath "$bin")/atelier-curate
    (ulimit -c unlimited; cd "$work/cores"; exec "$program" --run "$work/crash" --task t2i >"$work/crash-said" 2>&1) & pid=$!
    for _ in $(seq 600); do ! grep -qs "^Max core file size *1 *1 " "/proc/$pid/limits" || break; sleep 0.05; done
    grep -q "^Max core file size *1 *1 " "/proc/$pid/limits" || { cat "$work/crash-said" >&2; fail "a core file with the key could be written"; }
    kill -SEGV $pid
    wait $pid 2>/dev/null || true
    [[ -z $(ls "$work/cores") ]] || fail "a core file was written"
    absent "what a crashed stage left" "$work"
fi

if ! command -v slurmctld >/dev/null && ! [[ -x /usr/sbin/slurmctld ]]; then
    echo "secrets: all checks passed but those with Slurm, which is not installed"
    exit 0
fi
export ATELIER_BIN=$(realpath "$bin") ATELIER_CLUSTER_DIR=$cluster/c ATELIER_CLUSTER_NODES=2 ATELIER_CLUSTER_MEMORY=4000
slurm/local-cluster.sh start
eval "$(slurm/local-cluster.sh env)"
# What each waiting job will be given, as the controller keeps it.
plan waiting --set slurm.options='["--hold"]'
slurm/pipeline.sh --run "$work/waiting" >"$work/out"
given=0 hidden=0
while read -r name job; do
    environment=$(find "$cluster/c/state" -path "*/job.$job/environment")
    [[ -n $environment ]] && grep -q SLURM_SUBMIT_DIR "$environment" || fail "no environment of job $job"
    case $name in
        curate-* | rollout-* | evaluate) grep -q "$secret" "$environment" || fail "$name lacks the key"; given=$((given + 1)) ;;
        *) ! grep -q "$secret" "$environment" || fail "$name is given the key"; hidden=$((hidden + 1)) ;;
    esac
done <"$work/waiting/jobs.tsv"
((given == 5 && hidden == 5)) || fail "$given jobs with the key and $hidden without"
scontrol show job -dd >"$work/jobs"
scancel --user="$(id -un)"
# A run whose judge does not answer fails and says so.
plan failing --set judge.outage=1 --set judge.breaker_pause=0.1 --set reward.retries=0
slurm/pipeline.sh --run "$work/failing" >"$work/out"
for _ in $(seq 1500); do
    if left=$(squeue -h) && [[ -z $left ]]; then break; fi
    sleep 0.2
done
grep -q "ended with exit code 6" "$work"/failing/failed/curate-*.txt || fail "the failing stage left no account"
scontrol show job -dd >>"$work/jobs"
(($(grep -c JobId "$work/jobs") >= 12)) || fail "no record of the jobs"
absent "files of the runs or records of the jobs" "$work/jobs" "$work/failing" "$work/waiting" "$work/said" "$cluster/c/log"
echo "secrets: all checks passed"
