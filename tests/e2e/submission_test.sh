#!/usr/bin/env bash
# What the scripts ask Slurm for, and what they do when it refuses or doesn't answer, with programs of this test in Slurm's place. The shipped configuration
# of the 7 B model plans. The quickstart's choices.
#   submission_test.sh BIN_DIR   (from the repository's root)
set -euo pipefail
export ATELIER_BIN=$1
unset ATELIER_CLUSTER_DIR ATELIER_BUILD_DIR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin"
fail() { echo "FAILED: $*" >&2; cat "$work/out" >&2; exit 1; }
says() { grep -qF -- "$1" "$work/out" || fail "\"$1\" was not said"; }
# refused COMMAND...: it ends with an error; what it says is in $work/out
refused() { if "$@" >"$work/out" 2>&1; then fail "not refused: $*"; fi; }
done_well() { "$@" >"$work/out" 2>&1 || fail "exit code $?: $*"; }

# sbatch: a line of what each job was submitted with, its environment, a number. It refuses the job that the file refuse names.
cat >"$work/bin/sbatch" <<'END'
#!/bin/bash
here=${0%/*}/..
echo "$*" >>"$here/asked"
env >"$here/environment"
if [[ -e $here/most ]] && (($(wc -l <"$here/asked") > $(<"$here/most"))); then
    sed -i '$d' "$here/asked"
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)" >&2
    exit 1
fi
if [[ -e $here/refuse && $* == *"--job-name=$(<"$here/refuse") "* ]]; then echo "sbatch: error: Batch job submission failed" >&2; exit 1; fi
wc -l <"$here/asked"
END
# squeue: as the file queue says; none: nothing waits.
cat >"$work/bin/squeue" <<'END'
#!/bin/bash
here=${0%/*}/..
if [[ ! -e $here/queue ]]; then exit 0; fi
if grep -q error "$here/queue"; then cat "$here/queue" >&2; rm -f "$here/once"; exit 1; fi
cat "$here/queue"
END
cat >"$work/bin/scontrol" <<'END'
#!/bin/bash
printf 'JobId=77 JobName=x\n   Command=%s configs/mini.toml --run x\n   WorkDir=/\n' "${0%/*}/../a b/slurm/pipeline.sh"
END
chmod +x "$work"/bin/*
export PATH="$work/bin:$PATH"

# The configuration of the 7 B model: every job has what it needs, and the judge's templates are there.
done_well "$ATELIER_BIN/atelier-plan" --slurm --config configs/qwen-image-2.1.toml --set run.model=configs/qwen-image-2.1 --memory --ranks 8
says "evaluate"
refused "$ATELIER_BIN/atelier-plan" --config configs/qwen-image-2.1.toml --set run.model=configs/qwen-image-2.1 --run "$work/large"
says "model_index.json"
refused "$ATELIER_BIN/atelier-plan" --slurm --config configs/qwen-image-2.1.toml --set slurm.curate.gpus_per_node=4
says "slurm.curate.gpus_per_node = 4: at least 8 was expected"

# Submitted from within a job and under a launcher, by a copy of the script as sbatch makes one, from a path with a space.
mkdir -p "$work/a b" "$work/spool"
cp -r slurm "$work/a b/"
cp slurm/pipeline.sh "$work/spool/slurm_script"
run=$work/run
settings=(--set slurm.grpo.ranks=3 --set slurm.grpo.nodes=2 --set slurm.options='["--qos=low", "--exclude=n[1-2]"]' --set distill.rounds=1 --set pipeline.mix=false
    --set grpo.iterations=2 --set slurm.evaluate.partition=cpu --set slurm.evaluate.options='["--exclude=n3"]')
export SLURM_CONF=$work/slurm.conf
done_well env SLURM_JOB_ID=77 SLURM_NTASKS=1 SLURM_MEM_PER_NODE=256 PMIX_RANK=0 PMI_RANK=0 OMPI_COMM_WORLD_SIZE=1 bash "$work/spool/slurm_script" configs/mini.toml \
    --run "$run" "${settings[@]}"
says "14 of 14 stages submitted"
grep -- "--job-name=grpo-t2i-0001 " "$work/asked" >"$work/out"
says "--ntasks=3 --nodes=2 --ntasks-per-node=2 "
says "--qos=low --exclude=n[1-2] $work/a b/slurm/stage.sh $run grpo-t2i-0001 submitted"
grep -- "--job-name=evaluate " "$work/asked" >"$work/out"
says "--qos=low --exclude=n[1-2] --partition=cpu --exclude=n3 $work/a b/slurm/stage.sh $run evaluate submitted"
env >"$work/out"
grep -q ^SLURM_CONF= "$work/out" || fail "the test's own environment"
grep -qx "SLURM_CONF=$work/slurm.conf" "$work/environment" || fail "jobs are not told which cluster"
! grep -E '^(SLURM_(JOB|NTASKS|MEM)|PMI|OMPI_COMM_WORLD)' "$work/environment" >"$work/out" || fail "jobs inherit what is this job's"

# Jobs that wait, and a controller that doesn't say: nothing is removed, nothing submitted. Jobs that it has forgotten don't wait.
mkdir -p "$run/eval"
printf '3 rollout-t2i-0001\n9 of-another-run\n' >"$work/queue"
sed -n 's/^rollout-t2i-0001\t.*/rollout-t2i-0001\t3/p; s/^evaluate\t.*/evaluate\t9/p' "$run/jobs.tsv" >"$work/jobs.tsv"
mv "$work/jobs.tsv" "$run/jobs.tsv"
refused slurm/pipeline.sh --run "$run" --from evaluate
says "1 jobs of $run are in the queue"
echo "slurm_load_jobs error: Unable to contact slurm controller" >"$work/queue"
refused slurm/pipeline.sh --run "$run" --from evaluate
says "Unable to contact slurm controller"
[[ -e $run/eval && $(wc -l <"$work/asked") == 14 ]] || fail "something was changed while nobody knew what runs"
echo "slurm_load_jobs error: Invalid job id specified" >"$work/queue"

# A stage that is refused: how many were submitted, and a rerun.
echo curate-t2i >"$work/refuse"
refused slurm/pipeline.sh --run "$run"
says "sbatch did not take curate-t2i, after $(wc -l <"$run/jobs.tsv") stages that were submitted"
says "pipeline.sh --run $run goes on"
rm "$work/refuse"

# More jobs than a site lets wait: what was submitted runs, and the same again submits the rest behind it.
(
    rm -rf "$work/asked" "$work/queue" "$work/limited"
    echo 5 >"$work/most"
    refused slurm/pipeline.sh configs/mini.toml --run "$work/limited" "${settings[@]}"
    says "5 stages were submitted (jobs.tsv) and will run; "
    says "since QOSMaxSubmitJobPerUserLimit lets no more jobs wait: pipeline.sh --run $work/limited submits the rest"
    # The first of them is done, the others wait.
    read -r first number <"$work/limited/jobs.tsv"
    output=$(awk -F'\t' -v n="$first" '$1 == n { print $5 }' "$work/limited/pipeline.tsv")
    mkdir -p "$work/limited/$output" && touch "$work/limited/$output/manifest.json"
    awk '$2 != '"$number"' { print $2, $1 }' "$work/limited/jobs.tsv" >"$work/queue"
    refused slurm/pipeline.sh --run "$work/limited" --from evaluate
    says "4 jobs of $work/limited are in the queue"
    echo 6 >"$work/most"
    refused slurm/pipeline.sh --run "$work/limited" --set task.edit.iterations=3
    says "the plan would have other stages than they know"
    refused slurm/pipeline.sh --run "$work/limited"
    says "1 stages were submitted (jobs.tsv) and will run; "
    (($(wc -l <"$work/limited/jobs.tsv") == 5)) || fail "the jobs that wait are forgotten"
    awk '{ print $2, $1 }' "$work/limited/jobs.tsv" >"$work/queue"
    rm "$work/most"
    done_well slurm/pipeline.sh --run "$work/limited"
    says "8 of 14 stages submitted"
    (($(wc -l <"$work/asked") == 14 && $(sort -u "$work/limited/jobs.tsv" | wc -l) == 13)) || fail "not every stage once"
    # As in a run that was submitted whole: each waits for the jobs of those before it that are not complete.
    while IFS=$'\t' read -r name _ _ before _; do
        wanted=
        for one in ${before//,/ }; do
            if [[ $one != - && $one != "$first" ]]; then wanted+=:$(awk -v n="$one" '$1 == n { print $2 }' "$work/limited/jobs.tsv"); fi
        done
        line=$(grep -- "--job-name=$name " "$work/asked")
        [[ -z $wanted || $line == *"--dependency=afterok$wanted "* ]] || fail "$name waits for others than $wanted: $line"
    done <"$work/limited/pipeline.tsv"
    awk '{ print $2, $1 }' "$work/limited/jobs.tsv" >"$work/queue"
    refused slurm/pipeline.sh --run "$work/limited"
    says "jobs of $work/limited are in the queue"
    rm -f "$work/queue"
) || exit 1

# Stages again. Complete ones are those that have a manifest.
publish() {
    mkdir -p "$run/$1"
    printf '{"schema": "atelier.manifest", "schema_version": 1, "stage": "", "task": "", "iteration": 1, "config_hash": "", "code_version": "", "host": "",
        "world_size": 1, "started_utc": "", "finished_utc": "", "inputs": {}, "outputs": {}, "facts": %s}\n' "$2" >"$run/$1/manifest.json"
}
while IFS=$'\t' read -r _ _ _ _ output _; do publish "$output" '{}'; done <"$run/pipeline.tsv"
publish t2i/iter-0001/policy '{"optimizer_state": "given up"}'
publish opd/round-01/teacher-t2i '{"kept": "summary"}'
mkdir -p "$run/opd/round-01/updates"
find "$run" -name manifest.json | sort >"$work/before"
refused slurm/pipeline.sh --run "$run" --from grpo-t2i-0002
says "t2i/iter-0001/policy has given up its optimizer's state (storage.states); nothing was removed. This can be done: --from grpo-t2i-0001"
refused slurm/pipeline.sh --run "$run" --from distill-01
says "--from teacher-dump-t2i-01"
find "$run" -name manifest.json | sort | cmp - "$work/before" || fail "outputs were removed though nothing was submitted"
echo distill-01 >"$work/refuse"
refused slurm/pipeline.sh --run "$run" --from teacher-dump-t2i-01
says "what was put aside is in $run/.aside-"
(($(ls "$run"/.aside-*/*/manifest.json | wc -l) == 3)) || fail "what was put aside is gone before its jobs are submitted"
rm "$work/refuse"
done_well slurm/pipeline.sh --run "$run"
says "3 of 14 stages submitted"
[[ ! -e $run/eval && ! -e $run/opd/round-01/updates && -e $run/opd/round-01/teacher-edit && -e $run/t2i/iter-0002/policy ]] || fail "other outputs are gone than those to be made again"
[[ -z $(ls -d "$run"/.aside-* 2>/dev/null) ]] || fail "what was put aside is left"

# The quickstart's own choices, its parts replaced: a cluster is used where there is one; paths are the caller's; Slurm may not answer for a while.
mkdir -p "$work/quick/slurm" "$work/quick/scripts" "$work/quick/build/bin" "$work/caller"
cp slurm/quickstart.sh slurm/queue.sh "$work/quick/slurm/"
cat >"$work/quick/scripts/setup.sh" <<'END'
#!/bin/bash
echo "setup $*" >>"${0%/*}/../said"
END
cat >"$work/quick/slurm/local-cluster.sh" <<'END'
#!/bin/bash
echo "cluster $1 $ATELIER_CLUSTER_DIR" >>"${0%/*}/../said"
END
cat >"$work/quick/slurm/pipeline.sh" <<'END'
#!/bin/bash
echo "pipeline $*" >>"${0%/*}/../said"
mkdir -p mine/eval mine/report && echo >mine/report/index.html && echo >mine/eval/manifest.json && echo >mine/eval/table.txt && echo >mine/eval/contact-t2i.png && echo >mine/eval/summary.json
printf 'evaluate\tevaluate\t-\t-\teval\n' >mine/pipeline.tsv
printf 'evaluate\t5\n' >mine/jobs.tsv
END
printf '#!/bin/bash\n' >"$work/bin/cmake"
printf '#!/bin/bash\n[[ -e ${0%%/*}/../cluster ]]\n' >"$work/bin/sinfo"
# squeue fails the first time it is asked.
cat >"$work/bin/squeue" <<'END'
#!/bin/bash
if [[ -e ${0%/*}/../failed ]]; then exit 0; fi
touch "${0%/*}/../failed"
echo "slurm_load_jobs error: Unable to contact slurm controller" >&2
exit 1
END
chmod +x "$work"/quick/*/*.sh "$work"/bin/*
cp configs/mini.toml "$work/caller/here.toml"
quick() { (cd "$work/caller" && "../quick/slurm/quickstart.sh" --run mine --config here.toml --set compute.dtype=f32); }
touch "$work/cluster"
done_well quick
says "Unable to contact slurm controller"
says "the pipeline took"
[[ $(<"$work/quick/said") == "setup build
pipeline here.toml --set compute.dtype=f32 --run mine" ]] || { cp "$work/quick/said" "$work/out"; fail "with a cluster"; }
rm "$work/cluster" "$work/quick/said"
done_well quick
grep -qx "setup build slurm" "$work/quick/said" || fail "without a cluster its packages are not asked for"
(($(grep -c "^cluster .* /tmp/atelier-cluster.$UID.[0-9]*$" "$work/quick/said") == 3)) || fail "no cluster of its own"
refused bash -c "cd '$work/caller' && ../quick/slurm/quickstart.sh --help"
says "The whole pipeline on the miniature"
echo "submission: all checks passed"
