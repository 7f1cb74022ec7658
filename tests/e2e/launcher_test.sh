#!/usr/bin/env bash
# A stage's job ends when its launcher waits for ranks that are gone, and not while ranks run; where Slurm could not start a rank it is tried again. (Without
# Slurm: the job's script with programs of this test.)
#   launcher_test.sh   (from the repository's root)
set -euo pipefail
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

# srun, as it was met on a node that still ended the step before; the job goes back into the queue, but not for ever.
cat >"$work/bin/srun" <<'END'
#!/bin/bash
echo "srun: error: task 1 launch failed: Unspecified error" >&2
exit 137
END
cat >"$work/bin/scontrol" <<'END'
#!/bin/bash
echo "$*" >>"${0%/*}/asked"
END
chmod +x "$work"/bin/*
mkdir -p "$work/run/logs"
log=$work/run/logs/rollout-t2i-0001.log
sed -i "s|^launcher\t.*|launcher\t$work/bin/srun|" "$work/run/slurm.tsv"
export PATH="$work/bin:$PATH" SLURM_JOB_ID=7
timeout 5 slurm/stage.sh "$work/run" rollout-t2i-0001 >"$log" 2>&1 || true
cp "$log" "$work/log"
[[ $(cat "$work/bin/asked" 2>/dev/null) == "requeue 7" ]] || fail "a rank that Slurm could not start: the job was not put back"
[[ ! -e $work/run/failed/rollout-t2i-0001.txt ]] || fail "and counted as failed"
code=0
SLURM_RESTART_COUNT=5 timeout 20 slurm/stage.sh "$work/run" rollout-t2i-0001 >>"$log" 2>&1 || code=$?
cp "$log" "$work/log"
((code == 137)) || fail "the sixth time: $code"
grep -q "launch failed" "$work/run/failed/rollout-t2i-0001.txt" || fail "no account of it in failed/"
