#!/usr/bin/env bash
# What the pipeline gains on the miniature, seed by seed: the whole run through Slurm each time, then one table from their summaries.
#   tests/bench/seeds.sh DIR SEED...    (from the repository's root; about ten minutes a seed on two cores)
set -euo pipefail
dir=${1:?DIR is missing}
shift
for seed in "$@"; do
    [[ -e $dir/seed$seed/eval/manifest.json ]] || slurm/quickstart.sh --run "$dir/seed$seed" --set "run.seed=$seed"
done
python3 "$(dirname "$0")/gains.py" "$dir"/seed*/eval/summary.json
