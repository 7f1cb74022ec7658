#!/usr/bin/env bash
# One stage of a run, as a Slurm job.   sbatch slurm/stage.sh RUN STAGE
#
# Signals (USR1 before the time limit, TERM when Slurm ends the job) are passed on as USR1: the program publishes what is complete and ends with
# code 75. The job is then put back into the queue, unless Slurm does that itself or the job was cancelled. A complete stage is left alone.
#SBATCH --requeue --open-mode=append
set -euo pipefail

# The third argument is given by who asked for all that the stage needs: pipeline.sh, or this script.
run=$(cd "${1:?RUN is missing}" && pwd) name=${2:?STAGE is missing} submitted=${3:-}
IFS=$'\t' read -r _ stage arguments _ output ranks nodes memory time gpus < <(awk -F'\t' -v n="$name" '$1 == n' "$run/pipeline.tsv") ||
    { echo "stage: $run has no stage $name: column -t $run/pipeline.tsv lists them" >&2; exit 2; }
declare -A setting
options=()
while IFS=$'\t' read -r key value; do
    if [[ $key == option || $key == "option.$stage" ]]; then options+=("$value"); else setting[$key]=$value; fi
done <"$run/slurm.tsv"
[[ $arguments != - ]] || arguments=
on_a_node=$(((ranks + nodes - 1) / nodes))

# account LINE...: says in failed/ what became of the stage.
account() {
    local written=$run/failed/.$name.$RANDOM.tmp  # a signal's account may come while another is written
    mkdir -p "$run/failed"
    {
        printf '%s\n' "$@"
        echo "It and what depends on it have not been made. When the cause is gone: sbatch slurm/pipeline.sh --run $run"
        echo "The end of its log, $run/logs/$name.log:"
        tail -n 5 "$run/logs/$name.log" 2>/dev/null || true
    } >"$written"
    mv "$written" "$run/failed/$name.txt"
}
here_and_now() { echo "at $(date -u +%Y-%m-%dT%H:%M:%SZ) on $(hostname), job ${SLURM_JOB_ID:-none}"; }

threads=${setting[threads]}
if [[ -n ${SLURM_JOB_ID:-} ]]; then threads=${SLURM_CPUS_PER_TASK:-1}; fi
if ((ranks > ${SLURM_NTASKS:-1} || setting[threads] > threads)); then
    needs="$name needs $ranks ranks of ${setting[threads]} threads"
    if [[ -z ${SLURM_JOB_ID:-} ]]; then
        echo "stage: $needs: sbatch slurm/stage.sh $run $name, or without Slurm mpirun -n $ranks ${setting[bin]}/atelier-$stage --run $run $arguments" >&2
        exit 2
    fi
    if [[ -n $submitted ]]; then
        # To submit it anew would tell those that wait for this job that it succeeded.
        account "$needs, its job has ${SLURM_NTASKS:-1} of $threads: [slurm] was changed since it was submitted, or slurm.options says otherwise" "$(here_and_now)"
        exit 2
    fi
    # Submitted by hand the job may lack what the stage asks for: it submits itself again with that, and without what says of which job this is a part.
    for variable in $(compgen -e); do
        if [[ $variable == SLURM_* && $variable != @(SLURM_CONF|SLURM_CLUSTERS|SLURM_JWT) ]]; then unset "$variable"; fi
    done
    number=$(sbatch --parsable --job-name="$name" \
        --output="${run//%/%%}/logs/$name.log" --signal="B:USR1@${setting[stop_early]}" --ntasks="$ranks" --nodes="$nodes" --ntasks-per-node="$on_a_node" \
        --cpus-per-task="${setting[threads]}" --mem="$memory" --time="$time" $( ((gpus == 0)) || echo "--gpus-per-node=$gpus") \
        ${setting[partition]:+--partition="${setting[partition]}"} ${setting[account]:+--account="${setting[account]}"} "${options[@]}" \
        "$0" "$run" "$name" submitted)
    number=${number%%;*}
    printf '%s\t%s\n' "$name" "$number" >>"$run/jobs.tsv"
    echo "stage: $needs: job $number"
    exit
fi

# One submitted by hand is known to pipeline.sh, too, by the name that it has in the queue.
if [[ -n ${SLURM_JOB_ID:-} && -z $submitted ]] && ((${SLURM_RESTART_COUNT:-0} == 0)); then
    printf '%s\t%s\n' "${SLURM_JOB_NAME:-stage.sh}" "$SLURM_JOB_ID" >>"$run/jobs.tsv"
fi
if [[ -n ${setting[key_variable]:-} && ,${setting[key_stages]}, != *,$stage,* ]]; then unset "${setting[key_variable]}"; fi
export OMP_NUM_THREADS=${setting[threads]} OMP_WAIT_POLICY=passive
# srun no longer takes it from the job (Slurm 22.05).
export SRUN_CPUS_PER_TASK=${setting[threads]}
# A rank that crashes before the ranks have found each other leaves the others waiting, and srun with them. Ranks end together: seconds after one.
export SLURM_WAIT=${SLURM_WAIT:-60}
rm -f "$run/failed/$name.txt"
# What a stage that is started again goes on from: its shards, and the states of its updates.
# (A timeline is written by every stop.)
progress() {
    { find "$run/$output" "$(dirname "$run/$output")/updates" "$run/judge-training/updates" -name '.*' -prune -o -type f ! -name timeline.json \
        ! -name '*.lock' -printf '%p %s %T@\n' 2>/dev/null || true; } | sort | cksum
}
begun=$(progress)
# A line for each time in a row that it ended without progress: limit (its time limit was near), nobody (nothing says why).
stops=$run/logs/.$name.stops
stopped() { cat "$stops" 2>/dev/null | grep -cx "$1" || true; }
command=("${setting[bin]}/atelier-$stage" --run "$run" $arguments)
if ((ranks > 1)); then command=(${setting[launcher]} "${command[@]}"); fi
starter=${command[0]##*/}
setup=()
if [[ -n ${setting[setup]:-} ]]; then
    # In a shell of its own, which becomes the launcher: what it sets reaches the stage and not this script.
    setup=(bash -c "${setting[setup]}"$'\ncode=$?
        ((code == 0)) || { echo "stage: slurm.setup ended with exit code $code" >&2; exit 2; }
        exec "$@"' setup)
fi
command=("${setup[@]}" "${command[@]}")
restarts=${SLURM_RESTART_COUNT:-0}
((restarts > 0)) || rm -f "$stops"
echo "stage: $name on ${SLURM_JOB_NODELIST:-$(hostname)}, start $restarts of job ${SLURM_JOB_ID:-none}"
# Open MPI's launcher can wait for ever for a rank that was killed while it started, with no rank left: it is ended then. (It starts the ranks of this
# node itself, or what wraps them: a container, a profiler. A launcher of another name is left alone.)
has_rank() {
    ps -e -o pid=,ppid=,stat=,comm= | awk -v top="$1" '{ parent[$1] = $2 } $4 ~ /^atelier-/ && $3 !~ /^Z/ { ranks[$1] }
        END { for (rank in ranks) { for (pid = rank; pid in parent && pid != top; pid = parent[pid]); if (pid == top) found = 1 } exit !found }'
}
is_in_setup() { ((${#setup[@]})) && [[ $(ps -o comm= -p "$1") == bash ]]; }
watch_launcher() {
    local patience=${ATELIER_LAUNCHER_PATIENCE:-120} alone=0  # seconds, as long as its daemons on other nodes may take to start
    while sleep 5 && kill -0 "$1" 2>/dev/null; do
        alone=$((alone + 1))
        if has_rank "$1" || is_in_setup "$1"; then alone=0; fi
        if ((5 * alone >= patience)); then
            echo "stage: $starter waits for ranks, and none has run on this node for $((5 * alone)) s: it is ended"
            kill -KILL "$1"
        fi
    done
}
asked= child=
# The account is there before what may end this script without another word: the time limit, when stopping takes longer.
stop() {
    asked=${asked:-$1}
    kill -USR1 "$child" 2>/dev/null || true
    # Where it cannot be written the job goes on.
    account "$name was asked to stop ($1) $(here_and_now), and has not said since how it ended: Slurm may have ended it, by its time limit
or its memory" || true
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
"${command[@]}" &
child=$!
# Asked before there was anybody to tell: a moment later, since what comes between fork and exec is lost.
[[ -z $asked ]] || { sleep 1; kill -USR1 "$child" 2>/dev/null || true; }
if [[ $starter == @(mpirun|mpiexec) ]] && command -v ps >/dev/null; then watch_launcher "$child" & fi
code=
while [[ -z $code ]]; do
    found=0
    wait "$child" || found=$?
    # A signal ends `wait`, not the program.
    if ((found > 128)) && kill -0 "$child" 2>/dev/null; then continue; fi
    # It may have ended with the signal, and has a code of its own.
    if ((found > 128)); then
        code=0
        wait "$child" || code=$?
        if ((code != 127)); then found=$code; fi
    fi
    code=$found
done
trap : USR1 TERM  # the program has ended: what comes of it is said below

# What Slurm does with the job: running (nothing), preempted (it makes way for another: Slurm puts it back or cancels it, as the site has
# it), late (its time limit is over), requeued (Slurm puts it back), cancelled. The state of the last three is COMPLETING in Slurm's words.
fate_of_job() {
    local said=
    # A controller that is being restarted answers later.
    for _ in $(seq 60); do
        if said=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>&1); then break; fi
        if [[ $said == *"Invalid job id"* ]]; then echo cancelled; return; fi
        sleep 2
    done
    if [[ $said =~ \ Restarts=([0-9]+) ]] && ((BASH_REMATCH[1] > restarts)); then echo requeued
    elif [[ $said =~ \ (Reason=TimeLimit|JobState=[A-Z,]*TIMEOUT) ]]; then echo late
    elif [[ $said =~ \ (PreemptTime=[0-9]|JobState=[A-Z,]*PREEMPTED) ]]; then echo preempted
    elif [[ $said =~ \ JobState=[A-Z,]*(COMPLETING|CANCELLED) ]]; then echo cancelled
    else echo running; fi
}
fate=
if ((code != 0)) && [[ -n ${SLURM_JOB_ID:-} ]]; then fate=$(fate_of_job); fi
if ((code > 128)) && [[ -n $asked ]]; then code=75; fi
# Slurm tells every process of a job that it ends, and a preemption's grace time begins with a signal to its steps alone. Open MPI's launcher
# ends with 1 when it is told itself, with 205 or a signal's code when its daemons on other nodes are (they are steps); a rank ends with 8 when
# others are gone.
if [[ $fate == @(preempted|late|requeued) ]] && ((code == 1 || code == 8 || code > 128)); then
    echo "stage: $starter ended with exit code $code while Slurm ended the job ($fate): not a failure of the stage"
    code=75
fi
# A node that still ends the step before may refuse a rank: srun says so and ends the others. Nothing was lost, the job tries again.
if ((code != 0 && code != 75 && restarts < 5)) && [[ $starter == srun && -n ${SLURM_JOB_ID:-} ]] &&
    sed -n "/^stage: $name on .* start $restarts of job/,\$p" "$run/logs/$name.log" 2>/dev/null | grep "^srun: error: task .* launch failed" >/dev/null; then
    code=75 asked=srun
fi

if [[ $fate == cancelled ]]; then
    rm -f "$stops"
    account "$name: its job was cancelled $(here_and_now), and ended with exit code $code; what was complete is kept"
    exit "$code"
fi
if ((code == 75)) && [[ -n ${SLURM_JOB_ID:-} ]]; then
    # A stage that its own time limit stops again and again would go round for ever, as would one that stops and nobody knows why. What others
    # did (the job was pushed aside, its script was told with TERM) is not counted.
    if [[ $(progress) != "$begun" ]]; then rm -f "$stops"
    elif [[ $fate == late || $fate == running && $asked == USR1 ]]; then echo limit >>"$stops"
    elif [[ $fate == running && -z $asked ]]; then echo nobody >>"$stops"; fi
    if (($(stopped limit) < 3 && $(stopped nobody) < 5)); then
        echo "stage: $name goes back into the queue (told by ${asked:-nobody}; its job is $fate)"
        rm -f "$run/failed/$name.txt"
        # What Slurm itself puts back is not asked for again.
        [[ $fate != requeued ]] || exit 75
        trap - USR1 TERM  # Slurm ends the job with TERM
        for _ in $(seq 60); do if scontrol requeue "$SLURM_JOB_ID"; then break; fi; sleep 2; done
        # Ending before Slurm ends the job would tell dependents that it succeeded or failed.
        sleep 300
    fi
fi
if ((code == 0)); then
    rm -f "$run/failed/$name.txt"
else
    lines=("$name ended with exit code $code (docs/errors.md) $(here_and_now)")
    if (($(stopped limit) >= 3)); then
        lines+=("It was stopped three times without having published a shard or a state: give it more time (slurm.$stage.time), ask it to stop earlier"
            "(slurm.stop_early) where it did not come to publish, or have it keep its state more often (checkpoint.every; reward_train.publish_every).")
    elif (($(stopped nobody) >= 5)); then
        lines+=("It was stopped five times without having published a shard or a state, and Slurm does not say by whom: its log may.")
    fi
    account "${lines[@]}"
fi
rm -f "$stops"
# The run's page and TensorBoard's files, where there is something new to see, and time for it.
if [[ -z $asked ]] && { ((code != 0)) || [[ $stage != @(rollout|teacher-dump) ]]; }; then
    timeout --kill-after=5 30 "${setup[@]}" "${setting[bin]}/atelier-inspect" --report "$run" >/dev/null || echo "stage: $run/report was not written"
fi
exit "$code"
