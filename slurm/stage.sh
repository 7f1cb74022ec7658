#!/usr/bin/env bash
# One stage of a run, as a Slurm job.   sbatch slurm/stage.sh RUN STAGE
#
# Signals (USR1 before the time limit, TERM of a requeue) are passed on as USR1: the program publishes what is complete and ends
# with code 75, and the job is put back into the queue. A complete stage is left alone.
#SBATCH --requeue --open-mode=append
set -euo pipefail

run=$(cd "${1:?RUN is missing}" && pwd) name=${2:?STAGE is missing}
IFS=$'\t' read -r _ stage arguments _ output ranks nodes memory time gpus < <(awk -F'\t' -v n="$name" '$1 == n' "$run/pipeline.tsv") ||
    { echo "stage: $run has no stage $name: column -t $run/pipeline.tsv lists them" >&2; exit 2; }
declare -A setting
while IFS=$'\t' read -r key value; do setting[$key]=$value; done <"$run/slurm.tsv"
[[ $arguments != - ]] || arguments=

# Submitted by hand the job may lack what the stage asks for: it submits itself again with that.
if ((ranks > ${SLURM_NTASKS:-1} || setting[threads] > ${SLURM_CPUS_PER_TASK:-1})); then
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
    number=$(env -u SLURM_NTASKS -u SLURM_NPROCS -u SLURM_CPUS_PER_TASK -u SLURM_MEM_PER_NODE -u SLURM_MEM_PER_CPU sbatch --parsable --job-name="$name" \
        --output="$run/logs/$name.log" --signal="B:USR1@${setting[stop_early]}" --ntasks="$ranks" --nodes="$nodes" \
        --cpus-per-task="${setting[threads]}" --mem="$memory" --time="$time" $( ((gpus > 0)) && echo "--gpus-per-node=$gpus") \
        ${setting[partition]:+--partition="${setting[partition]}"} ${setting[account]:+--account="${setting[account]}"} "$script" "$run" "$name")
    echo "stage: $name needs $ranks ranks of ${setting[threads]} threads: job $number"
    exit
fi

if [[ -n ${setting[key_variable]:-} && ,${setting[key_stages]}, != *,$stage,* ]]; then unset "${setting[key_variable]}"; fi
export OMP_NUM_THREADS=${setting[threads]} OMP_WAIT_POLICY=passive
rm -f "$run/failed/$name.txt"
command=("${setting[bin]}/atelier-$stage" --run "$run" $arguments)
if ((ranks > 1)); then command=(${setting[launcher]} "${command[@]}"); fi
restarts=${SLURM_RESTART_COUNT:-0}
echo "stage: $name on ${SLURM_JOB_NODELIST:-$(hostname)}, start $restarts of job ${SLURM_JOB_ID:-none}"
# Open MPI's launcher can wait for ever for a rank that was killed while it started, with no rank left: it is ended then. (It starts the ranks of this
# node itself; a launcher of another name is left alone.)
watch_launcher() {
    local patience=${ATELIER_LAUNCHER_PATIENCE:-120} alone=0 state program  # seconds, as long as its daemons on other nodes may take to start
    while sleep 5 && kill -0 "$1" 2>/dev/null; do
        alone=$((alone + 1))
        while read -r state program; do
            if [[ $program == atelier-* && $state != Z* ]]; then alone=0; fi
        done < <(ps -o stat=,comm= --ppid "$1")
        if ((5 * alone >= patience)); then
            echo "stage: ${command[0]} waits for ranks, and none has run on this node for $((5 * alone)) s: it is ended"
            kill -KILL "$1"
        fi
    done
}
"${command[@]}" &
child=$!
if [[ ${command[0]##*/} == @(mpirun|mpiexec) ]] && command -v ps >/dev/null; then watch_launcher "$child" & fi
asked=
trap 'asked=1; kill -USR1 $child 2>/dev/null || true' USR1 TERM
code=
while [[ -z $code ]]; do
    found=0
    wait "$child" || found=$?
    # A signal ends `wait`, not the program.
    if ((found > 128)) && kill -0 "$child" 2>/dev/null; then continue; fi
    code=$found
done
if ((code > 128)) && [[ -n $asked ]]; then code=75; fi
# A node that still ends the step before may refuse a rank: srun says so and ends the others. Nothing was lost, the job tries again.
if ((code != 0 && code != 75 && restarts < 5)) && [[ ${command[0]##*/} == srun && -n ${SLURM_JOB_ID:-} ]] &&
    sed -n "/^stage: $name on .* start $restarts of job/,\$p" "$run/logs/$name.log" 2>/dev/null | grep "^srun: error: task .* launch failed" >/dev/null; then
    code=75
fi

if ((code == 75)) && [[ -n ${SLURM_JOB_ID:-} ]]; then
    echo "stage: $name goes back into the queue"
    # A controller that is being restarted answers later.
    for _ in $(seq 60); do if scontrol requeue "$SLURM_JOB_ID"; then break; fi; sleep 2; done
    # Ending before Slurm ends the job would tell dependents that it succeeded or failed.
    sleep 300
fi
if ((code != 0)); then
    mkdir -p "$run/failed"
    {
        echo "$name ended with exit code $code (docs/errors.md) at $(date -u +%Y-%m-%dT%H:%M:%SZ) on $(hostname), job ${SLURM_JOB_ID:-none}"
        echo "It and what depends on it have not been made. When the cause is gone: sbatch slurm/pipeline.sh --run $run"
        echo "The end of its log, $run/logs/$name.log:"
        tail -n 5 "$run/logs/$name.log" 2>/dev/null || true
    } >"$run/failed/.$name.tmp"
    mv "$run/failed/.$name.tmp" "$run/failed/$name.txt"
fi
exit "$code"
