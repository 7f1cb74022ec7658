#!/usr/bin/env bash
# Submits a run's stages as Slurm jobs, each after those it needs, and returns at once.
#
#   sbatch slurm/pipeline.sh CONFIG [--set section.key=value]... [--run DIR]    a new run (or one that is to go on)
#   sbatch slurm/pipeline.sh --run RUN                                          go on with a run
#   sbatch slurm/pipeline.sh --run RUN --from STAGE[,STAGE]...                  stages again, and all that depends on them
#   sbatch slurm/pipeline.sh --run RUN --set grpo.iterations=N --from STAGE...   more iterations; what was made from the last of before again
#
# It may be run without sbatch as well. Stages that are complete are skipped. `column -t RUN/pipeline.tsv` lists the stages.
#SBATCH --job-name=atelier-pipeline --time=00:10:00 --ntasks=1 --mem=1G
set -euo pipefail

say() { echo "pipeline: $*"; }
die() { echo "pipeline: $*" >&2; exit 2; }

# sbatch runs a copy of this script: Slurm knows where it was.
script=${BASH_SOURCE[0]}
if [[ -n ${SLURM_JOB_ID:-} && $script == */slurm_script ]]; then
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
    # Arguments follow the path, which may hold spaces.
    until [[ -f $script || $script != *" "* ]]; do script=${script% *}; done
fi
here=$(cd "$(dirname "$script")" && pwd)
for bin in "${ATELIER_BIN:-}" "$here/../build/bin" "$here/../../../bin"; do [[ -x $bin/atelier-plan ]] && break; done
[[ -x $bin/atelier-plan ]] || die "atelier-plan is neither in build/bin nor in ATELIER_BIN: build first (tests/run.sh or cmake --build build)"
bin=$(cd "$bin" && pwd)
source "$here/queue.sh"

config= run= from=
sets=()
while (($# > 0)); do
    case $1 in
        --set) sets+=(--set "${2:?--set needs section.key=value}"); shift ;;
        --run) run=${2:?--run needs a directory}; shift ;;
        --from) from=${2:?--from needs a stage}; shift ;;
        -h | --help) sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$script"; exit ;;
        -*) die "unknown option $1 (see --help)" ;;
        *) [[ -z $config ]] || die "one configuration, found $config and $1"; config=$1 ;;
    esac
    shift
done
[[ -n $config || -n $run ]] || die "a configuration or --run is needed (see --help)"
[[ -n $run ]] || run=runs/$(basename "$config" .toml)-$(date -u +%Y%m%d-%H%M%S)

# Jobs inherit this shell's environment. What says of which job or launcher it is itself a part would be taken for theirs; which cluster is asked, and
# as whom, stays.
for variable in $(compgen -e); do
    case $variable in
        SLURM_CONF | SLURM_CLUSTERS | SLURM_JWT) ;;
        SLURM_* | PMIX_* | PMI_* | OMPI_COMM_WORLD_*) unset "$variable" ;;
    esac
done

# One submission at a time, and none while jobs of the run are in the queue: they read config.toml when they start.
claim() {
    run=$(cd "$run" && pwd)
    more=$run/.submit.more  # there while a limit on jobs keeps the run from being submitted whole
    exec 9>"$run/.submit.lock"
    flock -n 9 || die "another pipeline.sh is submitting $run"
    waiting=$(queued "$run") || die "nothing was changed; again when Slurm answers"
    [[ -z $waiting || -e $more && -z $from ]] ||
        die "$(wc -l <<<"$waiting") jobs of $run are in the queue: wait, or scancel them (their numbers are in $run/jobs.tsv)"
    # Those that wait were told after which jobs they come.
    [[ -z $waiting || $("$bin/atelier-plan" "${config:-$run/config.toml}" "${sets[@]}") == "$("$bin/atelier-plan" "$run/config.toml")" ]] ||
        die "jobs of $run are in the queue, and the plan would have other stages than they know: wait, or scancel them"
}
is_there=
if [[ -e $run/config.toml ]]; then is_there=1 && claim; fi
"$bin/atelier-plan" ${config:+--config "$config"} "${sets[@]}" --run "$run" --slurm ${from:+--from "$from"} >/dev/null
[[ -n $is_there ]] || claim

declare -A setting after output stage_of ranks nodes memory time gpus
while IFS=$'\t' read -r key value; do setting[$key]=$value; done <"$run/slurm.tsv"
names=()
while IFS=$'\t' read -r name stage _ before out r n m t g; do
    names+=("$name")
    stage_of[$name]=$stage after[$name]=$before output[$name]=$out ranks[$name]=$r nodes[$name]=$n memory[$name]=$m time[$name]=$t gpus[$name]=$g
done <"$run/pipeline.tsv"

# What is to be made again is put aside, dependents first, and removed when its jobs are submitted.
if [[ -n $from ]]; then
    again=$("$bin/atelier-plan" --run "$run" --from "$from")
    aside=$run/.aside-$(date -u +%Y%m%d-%H%M%S)-$$
    mkdir "$aside"
    while read -r path; do
        if [[ -n $path ]]; then mv "$run/$path" "$aside/${path//\//_}"; fi
    done <<<"$again"
fi

# What a stage that was killed right after it had published leaves beside its output: it is run again, sees that it is complete, and
# removes them.
has_leftovers() { [[ -d $1-training/updates || -n $(find "$1" "$(dirname "$1")" -maxdepth 1 \( -name '.tmp-*' -o -name updates \) -print -quit) ]]; }

# refused STAGE: sbatch said no.
refused() {
    local said aside_too=${from:+; what was put aside is in $aside until then}
    said=$(<"$run/.submit.said")
    echo "$said" >&2
    rm -f "$run/.submit.said"
    if [[ $said =~ (Assoc|QOS)[A-Za-z]*Submit[A-Za-z]*Limit ]]; then
        touch "$more"
        say "$submitted stages were submitted (jobs.tsv) and will run; $1 and what comes after it are not" >&2
        die "since ${BASH_REMATCH[0]} lets no more jobs wait: pipeline.sh --run $run submits the rest as some end, as often as it takes$aside_too"
    fi
    say "sbatch did not take $1, after $submitted stages that were submitted (jobs.tsv)" >&2
    die "pipeline.sh --run $run goes on when those have ended (or scancel)$aside_too"
}

declare -A job
submitted=0
# Jobs of the part that was submitted before; each further one is noted as soon as there is one: should this script die, the next sees what is
# in the queue.
kept=$(if [[ -n $waiting ]]; then awk -F'\t' 'NR == FNR { waits[$1]; next } $2 in waits' <(echo "$waiting") "$run/jobs.tsv"; fi)
while IFS=$'\t' read -r name number; do [[ -z $name ]] || job[$name]=$number; done <<<"$kept"
[[ -n $kept ]] || rm -rf "$run/failed"
printf %s "${kept:+$kept$'\n'}" >"$run/jobs.tsv"
for name in "${names[@]}"; do
    if [[ -n ${job[$name]:-} ]]; then continue; fi
    if [[ -e $run/${output[$name]}/manifest.json ]] && ! has_leftovers "$run/${output[$name]}"; then continue; fi
    dependency=
    for before in ${after[$name]//,/ }; do
        if [[ -n ${job[$before]:-} ]]; then dependency+=:${job[$before]}; fi
    done
    mapfile -t options < <(awk -F'\t' -v own="option.${stage_of[$name]}" '$1 == "option" || $1 == own { print $2 }' "$run/slurm.tsv")
    # A job is given the key of the judge only if it asks the judge.
    hidden=()
    if [[ -n ${setting[key_variable]:-} && ,${setting[key_stages]}, != *,${stage_of[$name]},* ]]; then hidden=(env -u "${setting[key_variable]}"); fi
    job[$name]=$("${hidden[@]}" sbatch --parsable --job-name="$name" --output="${run//%/%%}/logs/$name.log" --open-mode=append --requeue --kill-on-invalid-dep=yes \
        ${dependency:+--dependency=afterok$dependency} --signal="B:USR1@${setting[stop_early]}" \
        --ntasks="${ranks[$name]}" --nodes="${nodes[$name]}" --ntasks-per-node=$(((ranks[$name] + nodes[$name] - 1) / nodes[$name])) \
        --cpus-per-task="${setting[threads]}" --mem="${memory[$name]}" --time="${time[$name]}" \
        $( ((gpus[$name] == 0)) || echo "--gpus-per-node=${gpus[$name]}") \
        ${setting[partition]:+--partition="${setting[partition]}"} ${setting[account]:+--account="${setting[account]}"} \
        "${options[@]}" "$here/stage.sh" "$run" "$name" submitted 9>&- 2>"$run/.submit.said") || refused "$name"
    cat "$run/.submit.said" >&2
    job[$name]=${job[$name]%%;*}
    printf '%s\t%s\n' "$name" "${job[$name]}" >>"$run/jobs.tsv"
    submitted=$((submitted + 1))
done
rm -rf "$run"/.aside-* "$run/.submit.said" "$more"

say "$submitted of ${#names[@]} stages submitted"
say "run     $run"
say "watch   squeue -o '%.10i %.32j %.3t %.10M %R' ; tail -f $run/logs/*.log ; $run/report/index.html"
say "failed  $run/failed/ says which stage failed, and why"
