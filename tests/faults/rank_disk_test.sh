#!/usr/bin/env bash
# The disk is full for one of two ranks while the other writes its part of a training state; states and shards are written beside the work.
#   rank_disk_test.sh BIN_DIR MPIEXEC FAULTS_LIBRARY   (from the repository's root)
source tests/e2e/common.sh
library=$3
"$bin/atelier-plan" --config configs/mini.toml --run "$work/run" --set run.model=assets/mini/base --set sampling.steps=3 --set curate.enabled=false \
    --set rollout.prompts_per_iteration=4 --set rollout.group_size=2 --set rollout.micro_batch=1 --set steps.count=1 --set sampling.guidance_scale=1 \
    --set task.edit.learning_rate=1e-3 --set grpo.iterations=2 --set grpo.epochs=4 --set grpo.minibatches=1 --set reward.min_spread=0 --set reward.gate=0 \
    --set checkpoint.every=1 --set compute.zero=1 --set storage.states=0 >/dev/null
iteration() { on "$1" "$2" run --policy edit --iteration "$3"; }
# with RULES COMMAND...: LOG gets what the rules fit
with() { rm -f "$work/log"; ATELIER_FAULTS=$1 ATELIER_FAULTS_LOG=$work/log LD_PRELOAD=$library "${@:2}"; }
# sums: of every file that is published, with its name
sums() { (cd "$work/run" && find . -type f ! -path "*/.tmp-*" ! -name .lock ! -path "./logs/*" ! -name "log" -exec sha256sum {} + | sort -k2); }

# Where HDF5 can be in several threads: while the first shard is on its way to the disk, the next groups' sources are read, and while the
# first state is, the next update's shards. Elsewhere the log says that the stage waits.
between() {  # FIRST SECOND LAST: a line fits SECOND between the first that fits FIRST and the next that fits LAST
    awk -v a="$1" -v b="$2" -v c="$3" '!on && $0 ~ a {on = 1; next} on && $0 ~ b {found = 1} on && $0 ~ c {exit} END {exit !(on && found)}' "$work/log"
}
code 0 with "calls=fsync,path=iter-0001/rollout/.tmp-shard-00000,at=1,do=wait:4000;calls=rename,path=iter-0001/rollout/.tmp-shard-00000,at=1+,do=count;calls=open,path=.png,at=1+,do=count" \
    iteration 1 rollout 1
threads=yes
if grep -q "not built for several threads" "$work/out"; then
    threads=no
    (($(grep -c "not built for several threads" "$work/out") == 1)) || fail "the log says it more than once"
else
    between "fsync .*shard-00000.*struck" "open .*png" "rename .*shard-00000" || { cat "$work/log"; fail "the sampling waited for a shard's disk"; }
fi
code 0 with "calls=fsync,path=-update/training,at=1,do=wait:4000;calls=rename,path=-update,at=1+,do=count;calls=open,path=rollout/shard-,at=1+,do=count" \
    iteration 1 grpo 1
[[ $threads == no ]] || between "fsync .*training.*struck" "open .*shard-" "rename .*-update" || { cat "$work/log"; fail "the next update waited for the state's disk"; }

code 0 iteration 2 rollout 2
code 0 iteration 2 grpo 2
trained run
policy=$work/run/edit/iter-0002/policy updates=$work/run/edit/iter-0002/updates
mv "$policy" "$work/undisturbed"

# Rank 1's part of the second state: the stage ends with the code, the first state and all that was published stay as they are.
rank_1() { with "$1" "$mpiexec" --oversubscribe --bind-to none -n 2 "$bin/atelier-grpo" --run "$work/run" --policy edit --iteration 2; }
before=$(sums)
writes=$(with "calls=write,path=-update/training-00001,at=1+,do=count,rank=1" "$mpiexec" --oversubscribe --bind-to none -n 2 "$bin/atelier-grpo" \
    --run "$work/run" --policy edit --iteration 2 >/dev/null 2>&1; grep -c " write " "$work/log")
((writes % 4 == 0 && writes > 0)) || fail "$writes writes of four states"
rm -rf "$policy"
code 4 rank_1 "calls=write,path=-update/training-00001,at=$((writes / 4 + 2))+,do=ENOSPC,rank=1"
says "training-00001-of-00002.h5.*No space left\|No space left.*training-00001-of-00002.h5"
[[ ! -e $policy && -e $updates/update-000005 && ! -e $updates/update-000006 ]] || fail "something else than the first state is published: $(ls "$updates")"
[[ $(sums | grep -v "/updates/\|metrics.jsonl") == $(grep -v "metrics.jsonl" <<<"$before") ]] || fail "what was published was touched"
first=$(cd "$updates/update-000005" && sha256sum *)
# Again from there, now at the policy itself: rank 0's part is written, rank 1's is not.
code 0 "$bin/atelier-plan" --run "$work/run" --set checkpoint.every=0
code 4 rank_1 "calls=write,path=training-00001,at=2+,do=ENOSPC,rank=1"
says "goes on from .*update-000005"
[[ ! -e $policy && $(cd "$updates/update-000005" && sha256sum *) == "$first" ]] || fail "a policy was published, or a state touched"
[[ $(sums | grep -v "/updates/\|metrics.jsonl\|config.toml\|pipeline\|slurm.tsv") == $(grep -v "metrics.jsonl\|config.toml\|pipeline\|slurm.tsv" <<<"$before") ]] || fail "what was published was touched"
# With room: the same policy as ever.
code 0 iteration 2 grpo 2
same "$work/undisturbed" "$policy" "another policy after a full disk"
for file in "$work/undisturbed"/training*.h5; do h5diff -q "$file" "$policy/$(basename "$file")" || fail "another state after a full disk"; done
[[ -z $(find "$work/run" -name '.tmp-*') && ! -e $updates ]] || fail "something was left over"
echo "rank_disk: all checks passed (written beside the work: $threads)"
