#!/usr/bin/env bash
# How a stage's job ends under a real Slurm: a cancelled one for good, and with it those that wait for it; one that is requeued, that is told
# of its time limit, or that makes way for another goes on, under srun and under mpirun.
#   job_ends_test.sh BIN_DIR   (from the repository's root)
set -euo pipefail
export ATELIER_BIN=$1
if ! command -v slurmctld >/dev/null && ! [[ -x /usr/sbin/slurmctld ]]; then
    echo "skipped: slurmctld is not installed (scripts/setup.sh slurm)"
    exit 77
fi
work=$(mktemp -d /tmp/atelier-ends.XXXXXX)
export ATELIER_CLUSTER_DIR=$work/c ATELIER_CLUSTER_NODES=2 ATELIER_CLUSTER_MEMORY=4000
trap 'slurm/local-cluster.sh clean; rm -rf "$work"' EXIT
slurm/local-cluster.sh start
eval "$(slurm/local-cluster.sh env)"
cat >>"$SLURM_CONF" <<'C'
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=30 DefaultTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 DefaultTime=60 MaxTime=INFINITE State=UP
C
scontrol reconfigure

fail() {
    echo "FAILED: $*" >&2
    tail -n 20 "$work"/*/logs/*.log "$work"/*/failed/*.txt >&2 2>/dev/null || true
    scontrol show jobs >&2 2>/dev/null || true
    exit 1
}
within() {  # SECONDS COMMAND...: until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "not in time: $*"
        sleep 0.1
    done
}
submit() {
    local run=$1
    shift
    slurm/pipeline.sh configs/mini.toml --run "$work/$run" --set run.model=tests/oracle/data/pipeline/pipeline --set sampling.steps=4 --set curate.enabled=false \
        --set pipeline.teachers=false --set pipeline.mix=true --set rollout.prompts_per_iteration=60 --set rollout.group_size=4 --set rollout.micro_batch=4 \
        --set steps.count=2 --set grpo.iterations=1 --set reward.min_spread=0 --set reward.gate=0 --set reward.workers=1 --set reward.test_delay=0.2 \
        --set reward.queue=4 --set slurm.rollout.ranks=2 --set slurm.rollout.nodes=2 --set slurm.options='["--partition=low"]' "$@" >/dev/null
    job=$(sed -n 's/^rollout-mix-0001\t//p' "$work/$run/jobs.tsv")
}
shards() { find "$work/$1/mix/iter-0001/rollout" -name "shard-*.h5" 2>/dev/null | wc -l || true; }
# started RUN TIMES: its rollout runs, was put back so many times, and has published since.
started() {
    within 90 is_running "$2"
    local before
    before=$(shards "$1")
    within 60 has_more_than "$before" "$1"
    ls "$work/$1"/failed/*.txt 2>/dev/null && fail "$1 left an account of failure though it goes on"
    return 0
}
is_running() { [[ "$(scontrol -o show job "$job") " =~ \ JobState=RUNNING\ .*\ Restarts=$1\  ]]; }
has_more_than() { (($(shards "$2") > $1)); }
is_gone() { local left; left=$(squeue -h) && [[ -z $left ]]; }
preempt() { sbatch --parsable --partition=high --nodes=2 --output=/dev/null --wrap "sleep 2" >/dev/null; }
# cancelled RUN: its rollout's job and those that wait for it.
cancelled() {
    within 60 is_gone
    (($(cut -f2 "$work/$1/jobs.tsv" | xargs -n 1 scontrol -o show job | grep -c " JobState=CANCELLED ") == 3)) || fail "a cancelled job or one behind it came back"
    grep -q "its job was cancelled\|asked to stop (TERM)" "$work/$1/failed/rollout-mix-0001.txt" || fail "no account of the job that was cancelled"
    [[ ! -e $work/$1/mix/iter-0001/rollout/manifest.json ]] || fail "$1 was complete before it was cancelled"
}

submit srun
started srun 0
scancel "$job"
cancelled srun
submit srun
started srun 0
scontrol requeue "$job"
started srun 1
scancel --batch --signal=USR1 "$job"  # as --signal=B:USR1@... does
started srun 2
preempt
started srun 3
within 240 test -e "$work/srun/mix/iter-0001/rollout/manifest.json"
scancel --user="$(id -un)"
within 60 is_gone
for how in "told by TERM; its job is requeued" "told by USR1; its job is running" "told by nobody; its job is preempted"; do
    (($(grep -c "goes back into the queue ($how)" "$work/srun/logs/rollout-mix-0001.log") == 1)) || fail "not told once: $how"
done

submit mpirun --set slurm.launcher=mpirun
started mpirun 0
scontrol requeue "$job"
started mpirun 1
preempt
started mpirun 2
grep -q "mpirun ended with exit code 205 while Slurm ended the job (preempted)" "$work/mpirun/logs/rollout-mix-0001.log" || fail "its daemons were not told"
scancel "$job"
cancelled mpirun
echo "job ends: all checks passed"
