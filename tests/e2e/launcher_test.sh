#!/usr/bin/env bash
# A stage's job ends when its launcher waits for ranks that are gone, and not while ranks run; where Slurm could not start a rank it is tried again; one that
# is stopped again and again without progress is not; nor is one that was cancelled. Jobs that lack what a stage needs. (Without Slurm: the job's
# script with programs of this test; tests/e2e/job_ends_test.sh has Slurm's own.)
#   launcher_test.sh BIN_DIR   (from the repository's root)
set -euo pipefail
bin=$(realpath "$1")
work=$(mktemp -d)
trap 'pkill -f "$work" || true; rm -rf "$work"' EXIT
mkdir -p "$work/run" "$work/bin"
cat >"$work/bin/atelier-rollout" <<'END'
#!/bin/bash
sleep "$RANK_LIVES"
END
# Open MPI's own, as it was met: the ranks are gone, nobody told it.
cat >"$work/bin/mpirun" <<'END'
#!/bin/bash
"$@" & rank=$!
if [[ $RANK_LIVES == 0 ]]; then kill -KILL $rank; fi
wait $rank || while true; do sleep 1; done
END
chmod +x "$work"/bin/*
printf 'rollout-t2i-0001\trollout\t-\t-\tout\t2\t1\t1\t1\t0\n' >"$work/run/pipeline.tsv"
printf 'bin\t%s\nlauncher\t%s\nthreads\t1\n' "$work/bin" "$work/bin/mpirun" >"$work/run/slurm.tsv"
fail() { echo "FAILED: $*" >&2; cat "$work/log" >&2; exit 1; }

export SLURM_NTASKS=2 ATELIER_LAUNCHER_PATIENCE=5
code=0
RANK_LIVES=0 timeout 60 slurm/stage.sh "$work/run" rollout-t2i-0001 >"$work/log" 2>&1 || code=$?
((code == 137)) || fail "a launcher without ranks: $code"
grep "none has run on this node" "$work/log" || fail "no word about it"
grep -q "exit code 137" "$work/run/failed/rollout-t2i-0001.txt" || fail "no account in failed/"
RANK_LIVES=14 timeout 60 slurm/stage.sh "$work/run" rollout-t2i-0001 >"$work/log" 2>&1 || fail "a launcher whose rank runs was ended"
# Behind what wraps it, as a container or a profiler does.
printf '#!/bin/bash\n"$@"\nexit $?\n' >"$work/bin/wrapper"
chmod +x "$work/bin/wrapper"
sed -i "s|^launcher\t.*|launcher\t$work/bin/mpirun $work/bin/wrapper|" "$work/run/slurm.tsv"
RANK_LIVES=14 timeout 60 slurm/stage.sh "$work/run" rollout-t2i-0001 >"$work/log" 2>&1 || fail "a launcher whose rank runs behind a wrapper was ended"

# srun, as it was met on a node that still ended the step before; the job goes back into the queue, but not for ever.
cat >"$work/bin/srun" <<'END'
#!/bin/bash
echo "srun: error: task 1 launch failed: Unspecified error" >&2
exit 137
END
# It tells of the job what the file state says. A job that goes back into the queue is ended.
cat >"$work/bin/scontrol" <<'END'
#!/bin/bash
if [[ $* == *"show job"* ]]; then cat "${0%/*}/state" 2>/dev/null; exit 0; fi
echo "$*" >>"${0%/*}/asked"
kill -TERM $PPID
END
chmod +x "$work"/bin/*
mkdir -p "$work/run/logs"
log=$work/run/logs/rollout-t2i-0001.log
sed -i "s|^launcher\t.*|launcher\t$work/bin/srun|" "$work/run/slurm.tsv"
export PATH="$work/bin:$PATH" SLURM_JOB_ID=7
timeout 20 slurm/stage.sh "$work/run" rollout-t2i-0001 >"$log" 2>&1 || true
cp "$log" "$work/log"
[[ $(cat "$work/bin/asked" 2>/dev/null) == "requeue 7" ]] || fail "a rank that Slurm could not start: the job was not put back"
[[ ! -e $work/run/failed/rollout-t2i-0001.txt ]] || fail "and counted as failed"
code=0
SLURM_RESTART_COUNT=5 timeout 20 slurm/stage.sh "$work/run" rollout-t2i-0001 >>"$log" 2>&1 || code=$?
cp "$log" "$work/log"
((code == 137)) || fail "the sixth time: $code"
grep -q "launch failed" "$work/run/failed/rollout-t2i-0001.txt" || fail "no account of it in failed/"

# A stage that its time limit stops: an account says so until it goes on, its shards are its progress, and the third stop in a row without any is the last.
cat >"$work/bin/atelier-grpo" <<'END'
#!/bin/bash
[[ $SRUN_CPUS_PER_TASK == 1 ]] || exit 99
stopped() {
    until [[ -e $RUN/failed/grpo-t2i-0001.txt ]]; do sleep 0.01; done
    cp "$RUN/failed/grpo-t2i-0001.txt" "$RUN/provisional"
    exit 75
}
trap stopped USR1
mkdir -p "$RUN/t2i/iter-0001/updates"
if [[ -n $PUBLISHES ]]; then touch "$RUN/t2i/iter-0001/updates/update-$PUBLISHES"; fi
kill -USR1 $PPID
while :; do sleep 0.01; done
END
chmod +x "$work/bin/atelier-grpo"
printf 'grpo-t2i-0001\tgrpo\t-\t-\tt2i/iter-0001/policy\t1\t1\t1\t1\t0\n' >>"$work/run/pipeline.tsv"
rm "$work/bin/asked"
export RUN=$work/run
starts=0
for publishes in "" "" 1 "" ""; do
    code=0
    starts=$((starts + 1))
    PUBLISHES=$publishes SLURM_RESTART_COUNT=$starts timeout 20 slurm/stage.sh "$work/run" grpo-t2i-0001 >"$work/log" 2>&1 || code=$?
    ((code == 143 && $(wc -l <"$work/bin/asked") == starts)) || fail "stop $starts: exit code $code, not back in the queue"
    grep -q "was asked to stop (USR1)" "$work/run/provisional" || fail "stop $starts: no account while it stops"
    [[ ! -e $work/run/failed/grpo-t2i-0001.txt ]] || fail "stop $starts: an account although it goes on"
done
code=0
PUBLISHES= SLURM_RESTART_COUNT=6 timeout 20 slurm/stage.sh "$work/run" grpo-t2i-0001 >"$work/log" 2>&1 || code=$?
((code == 75 && $(wc -l <"$work/bin/asked") == starts)) || fail "the third stop without progress: exit code $code"
grep -q "slurm.grpo.time.*$" "$work/run/failed/grpo-t2i-0001.txt" && grep -q "slurm.stop_early.*checkpoint.every" "$work/run/failed/grpo-t2i-0001.txt" ||
    fail "no account that says what to change"

# How a job ends whose steps were told, as a preemption's grace time begins, and one that Slurm ends itself.
cat >"$work/bin/atelier-distill" <<'END'
#!/bin/bash
trap 'exit "$ENDS"' USR1
if [[ $TELLS == by-both ]]; then kill -USR1 $PPID & fi
[[ -z $TELLS ]] || kill -TERM $PPID
while [[ -n $TELLS ]]; do sleep 0.01; done
exit "$ENDS"
END
chmod +x "$work/bin/atelier-distill"
printf 'distill-01\tdistill\t-\t-\topd/round-01/student\t1\t1\t1\t1\t0\n' >>"$work/run/pipeline.tsv"
# ends_as EXIT_CODE REQUEUES STATE ENDS [TELLS]: the program ends with ENDS, after the script was told (by-TERM; by-both: USR1 too); Slurm says of
# the job STATE.
ends_as() {
    local code=0
    rm -f "$work/bin/asked"
    echo "JobId=7 JobName=x $3 BatchFlag=1" >"$work/bin/state"
    ENDS=$4 TELLS=${5:-} SLURM_RESTART_COUNT=1 timeout 20 slurm/stage.sh "$work/run" distill-01 >"$work/log" 2>&1 || code=$?
    ((code == $1 && $(cat "$work/bin/asked" 2>/dev/null | wc -l) == $2)) || fail "\"$3\", the program ended with $4: exit code $code, $(cat "$work/bin/asked" 2>&1)"
}
account=$work/run/failed/distill-01.txt
preempted="JobState=RUNNING Reason=None Restarts=1 PreemptTime=2026-11-30T11:28:20"
for _ in 1 2 3 4 5 6; do ends_as 143 1 "$preempted" 75; done
for code in 205 143 8 1; do ends_as 143 1 "$preempted" $code; done
for _ in 1 2 3; do ends_as 143 1 "$preempted" 75 by-both; done  # a signal while the account of another is written
[[ ! -e $account ]] || fail "a preempted job left an account"
ends_as 3 0 "$preempted" 3
grep -q "exit code 3" "$account" || fail "a stage that failed while it was preempted"
undisturbed="JobState=RUNNING Reason=None Restarts=1 PreemptTime=None"
for code in 205 8 1; do ends_as $code 0 "$undisturbed" $code; done
for _ in 1 2 3 4; do ends_as 143 1 "$undisturbed" 75; done
ends_as 75 0 "$undisturbed" 75
grep -q "stopped five times" "$account" || fail "a stage that stops by itself goes round for ever"
ends_as 143 1 "$undisturbed" 75 by-TERM  # its script was told, not by Slurm
for code in 75 1 143; do ends_as $((code == 143 ? 75 : code)) 0 "JobState=COMPLETING Reason=None Restarts=1 PreemptTime=None" $code by-TERM; done
grep -q "its job was cancelled" "$account" || fail "no account of a cancelled job"
ends_as 75 0 "JobState=COMPLETING Reason=None Restarts=2" 1 by-TERM
[[ ! -e $account ]] || fail "an account of a job that Slurm puts back"
for _ in 1 2; do ends_as 143 1 "JobState=COMPLETING Reason=TimeLimit Restarts=1 PreemptTime=None" 1 by-TERM; done
ends_as 75 0 "JobState=COMPLETING Reason=TimeLimit Restarts=1 PreemptTime=None" 1 by-TERM
grep -q "slurm.distill.time" "$account" || fail "no account of a stage that its time limit ended three times"
rm "$work/bin/state"

# The programs themselves leave a timeline when they are stopped, and that is no progress.
"$bin/atelier-plan" --config configs/mini.toml --run "$work/real" --set run.model="$PWD"/tests/oracle/data/pipeline/pipeline --set sampling.steps=1000 \
    --set curate.prompts=2 --set rollout.prompts_per_iteration=2 >/dev/null
for start in 1 2 3; do
    rm -f "$work/real/prompts/t2i/timeline.json" "$work/bin/asked"
    SLURM_RESTART_COUNT=$start slurm/stage.sh "$work/real" curate-t2i >"$work/log" 2>&1 & script=$!
    for _ in $(seq 600); do ! grep -q "memory planned" "$work/log" || break; sleep 0.1; done
    sleep 1
    kill -USR1 $script
    code=0
    wait $script || code=$?
    [[ -e $work/real/prompts/t2i/timeline.json ]] || fail "stop $start: no timeline"
    if ((start < 3)); then [[ -e $work/bin/asked ]] || fail "stop $start: not back in the queue: $code"; fi
done
((code == 75)) && [[ ! -e $work/bin/asked ]] && grep -q "slurm.curate.time" "$work/real/failed/curate-t2i.txt" || fail "a timeline is taken for progress: exit code $code"

# What a site sets up for a stage, in its environment alone; where that fails the stage does.
cat >"$work/bin/atelier-evaluate" <<'END'
#!/bin/bash
[[ $FROM_SETUP == "a b" && $name == theirs ]] || exit 99
END
chmod +x "$work/bin/atelier-evaluate"
printf 'evaluate\tevaluate\t-\t-\teval\t1\t1\t1\t1\t0\n' >>"$work/run/pipeline.tsv"
printf "setup\texport FROM_SETUP='a b' name=theirs; [[ -z \$unset_before ]]  # as modules\n" >>"$work/run/slurm.tsv"
slurm/stage.sh "$work/run" evaluate >"$work/log" 2>&1 || fail "slurm.setup did not reach the stage"
printf 'setup\tno_such_command && true\n' >>"$work/run/slurm.tsv"
code=0
slurm/stage.sh "$work/run" evaluate >"$work/log" 2>&1 || code=$?
((code == 2)) && grep -q "slurm.setup ended with exit code 127" "$work/log" || fail "slurm.setup fails: exit code $code"

# A job that lacks what its stage needs: by hand it asks for that, with every option; as one that others wait for it fails; without Slurm it says what to run.
cat >"$work/bin/sbatch" <<'END'
#!/bin/bash
echo "$*" >"${0%/*}/submitted"
env >>"${0%/*}/submitted"
echo 8
END
chmod +x "$work/bin/sbatch"
printf 'stop_early\t60\noption\t--qos=low\noption\t--exclude=n[1-2]\noption.grpo\t--partition=other\noption.rollout\t--partition=cpu\n' >>"$work/run/slurm.tsv"
SLURM_NTASKS=1 SLURM_MEM_PER_NODE=5 slurm/stage.sh "$work/run" rollout-t2i-0001 >"$work/log" 2>&1 || fail "a stage by hand"
grep -q -- "--ntasks=2 --nodes=1 --ntasks-per-node=2 .*--qos=low --exclude=n\[1-2\] --partition=cpu slurm/stage.sh $work/run rollout-t2i-0001 submitted" "$work/bin/submitted" ||
    fail "a stage by hand was submitted otherwise: $(head -1 "$work/bin/submitted")"
! grep -E "^SLURM_(NTASKS|MEM|JOB)" "$work/bin/submitted" || fail "the job that submits is told to the one that it submits"
code=0
SLURM_NTASKS=1 slurm/stage.sh "$work/run" rollout-t2i-0001 submitted >"$work/log" 2>&1 || code=$?
((code == 2)) && grep -q "needs 2 ranks of 1 threads, its job has 1 of 1" "$work/run/failed/rollout-t2i-0001.txt" || fail "a job of the pipeline with too few ranks: $code"
code=0
env -u SLURM_JOB_ID -u SLURM_NTASKS slurm/stage.sh "$work/run" rollout-t2i-0001 >"$work/log" 2>&1 || code=$?
((code == 2)) && grep -q "without Slurm mpirun -n 2 .*/atelier-rollout --run" "$work/log" || fail "two ranks without Slurm: $code"
