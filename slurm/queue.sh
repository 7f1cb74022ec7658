# What the scripts share that ask Slurm; sourced.

# queued RUN: the numbers of the run's jobs that wait or run. Fails, with a line that says why, when Slurm's controller does not answer: that is not an
# empty queue.
queued() {
    local jobs answer
    [[ -s $1/jobs.tsv ]] || return 0
    jobs=$(cut -f2 "$1/jobs.tsv" | paste -sd,)
    if ! answer=$(squeue -h -o '%i %j' -j "$jobs" 2>&1); then
        # A controller forgets jobs a while after they ended; one that knows none of a list calls it invalid.
        [[ $answer == *"Invalid job id"* ]] || { echo "squeue does not say what is in the queue: $answer" >&2; return 1; }
        return 0
    fi
    # By name too: another cluster gives the same numbers again.
    awk 'NR == FNR { mine[$2 " " $1]; next } ($1 " " $2) in mine { print $1 }' "$1/jobs.tsv" - <<<"$answer"
}
