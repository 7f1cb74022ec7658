# What the tests of whole stages share; sourced from the repository's root with the script's own arguments BIN_DIR MPIEXEC.
set -euo pipefail
bin=$1 mpiexec=$2
work=$(mktemp -d)
at_exit() { :; }  # a test's own; called before $work is removed
trap 'at_exit; rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
export OMPI_MCA_mpi_yield_when_idle=1

fail() { echo "FAILED: $*" >&2; exit 1; }
# code EXPECTED COMMAND...: the command ends with the documented code. $work/out: what it says; $work/said: what all of them said.
code() {
    local expected=$1 found=0
    shift
    "$@" >"$work/out" 2>&1 || found=$?
    cat "$work/out" >>"$work/said"
    ((found == expected)) || { cat "$work/out" >&2; fail "exit code $expected expected, found $found: $*"; }
}
says() { grep -q -- "$1" "$work/out" || { cat "$work/out" >&2; fail "\"$1\" was not said"; }; }
# apart A B: largest difference of all numbers of two directories' weights, in fp32 or bf16, which share of them differ, and the differences' RMS
apart() {
    python3 - "$@" <<'P'
import array, glob, json, struct, sys
def numbers(folder):
    out = {}
    for name in sorted(glob.glob(folder + "/*.safetensors")):
        data = open(name, "rb").read()
        (n,) = struct.unpack("<Q", data[:8])
        for key, t in json.loads(data[8:8 + n]).items():
            if key == "__metadata__":
                continue
            raw = data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]]
            out[key] = array.array("f", raw if t["dtype"] == "F32" else array.array("I", (b << 16 for b in array.array("H", raw))).tobytes())
    return out
a, b = numbers(sys.argv[1]), numbers(sys.argv[2])
assert a and a.keys() == b.keys(), "other tensors"
moved = [k for k in a if a[k] != b[k]]
largest = max((max(map(abs, map(float.__sub__, a[k], b[k]))) for k in moved), default=0.0)
count = sum(map(len, a.values()))
print(largest, sum(x != y for k in moved for x, y in zip(a[k], b[k])) / count, (sum((x - y) ** 2 for k in moved for x, y in zip(a[k], b[k])) / count) ** 0.5)
P
}
# distance A B: the largest difference alone
distance() { local found; found=$(apart "$@") && echo "${found%% *}"; }
# trained RUN: the last update of a run had groups that train, and moved something
trained() {
    python3 - "$work/$1/metrics.jsonl" <<'P' || fail "nothing was trained in $1"
import json, sys
m = json.loads(open(sys.argv[1]).readlines()[-1])
sys.exit(not (m["updates"] > 0 and m["gradient_norm"] > 0))
P
}
within() { python3 -c "import sys; sys.exit(not float('$1') <= float('$2'))" || fail "$3: $1 is above $2"; }
same() { [[ $(distance "$1" "$2") == 0.0 ]] || fail "$3"; }
# Every dataset of every shard but the seconds that judging took.
same_shards() {  # DIRECTORY DIRECTORY
    local shard other datasets
    for shard in "$work/$1"/shard-*.h5; do
        other=$work/$2/$(basename "$shard")
        mapfile -t datasets < <(h5ls -r "$shard" | awk '$2 == "Dataset" && $1 !~ /\/seconds$/ {print "-d"; print $1}')
        ((${#datasets[@]} > 40)) || fail "only ${#datasets[@]} / 2 datasets in $shard"
        cmp <(h5dump -m %.9g "${datasets[@]}" "$shard" | tail -n +2) <(h5dump -m %.9g "${datasets[@]}" "$other" | tail -n +2) ||
            fail "$shard differs from $other"
    done
}
# on RANKS PROGRAM RUN ARGUMENTS...
on() {
    local ranks=$1 program=$2 run=$3
    shift 3
    if ((ranks == 1)); then "$bin/atelier-$program" --run "$work/$run" "$@"; else
        "$mpiexec" --oversubscribe --bind-to none -n "$ranks" "$bin/atelier-$program" --run "$work/$run" "$@"
    fi
}
# make_labels TRAIN HELDOUT: in $work/labels so many labels and a template, in $work/start a judge to start from. Source pictures of the
# miniature's edit prompts: those with a certain background count as good.
make_labels() {
    mkdir "$work/labels" "$work/start"
    for part in text_encoder processor; do cp assets/mini/base/$part/* "$work/start/"; done
    python3 - "$work/labels" "$@" <<'P'
import json, shutil, sys
out, train, heldout = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
lines = [json.loads(l) for l in open("assets/mini/prompts/edit-train.jsonl")][:train + heldout]
for name, part in (("train", lines[:train]), ("heldout", lines[train:])):
    with open(f"{out}/{name}.jsonl", "w") as f:
        for p in part:
            shutil.copy("assets/mini/prompts/" + p["images"][0], out)
            background = p["attributes"]["source"].get("background", "black")
            good = background in ("black", "blue", "gray")
            f.write(json.dumps({"id": p["id"], "kind": "t2i", "dimension": "alignment", "category": p["category"], "prompt": "a dark background",
                                "picture": p["images"][0].split("/")[-1], "scores": {"a": 4.5 if good else 1.5, "b": 5 if good else 1},
                                "rationale": f"the background is {background}"}) + "\n")
P
    cat >"$work/labels/t2i-alignment.toml" <<'T'
dimension = "alignment"
kind = "t2i"
system = "Judge the picture."
question = "Asked: {prompt}"
rubric = "How well does it show that?"
levels = ["not at all", "hardly", "in part", "nearly", "wholly"]
answer = "Say why, then Score: N"
reasoning_tokens = 12
T
}
# What a run of reward-train on make_labels' labels sets, but for its batch and epochs.
on_labels=(--set pipeline.judge=true --set judge.templates="$work/labels" --set reward_train.start="$work/start"
    --set reward_train.labels="$work/labels/train.jsonl" --set reward_train.heldout="$work/labels/heldout.jsonl" --set reward_train.learning_rate=1e-3)
# loss RUN RUN: the largest relative difference of the losses and gradient norms of two runs of reward-train
loss() {
    python3 - "$work/$1/metrics.jsonl" "$work/$2/metrics.jsonl" <<'P'
import json, sys
a, b = (json.loads(open(p).readlines()[-1]) for p in sys.argv[1:])
print(max(abs(a[k] - b[k]) / abs(a[k]) for k in ("score_loss", "language_loss", "gradient_norm")))
P
}
# judged RUN RUN: the largest difference of the scores that two runs' judges gave held-out pictures
judged() {
    python3 - "$work/$1/judge/judgements.csv" "$work/$2/judge/judgements.csv" <<'P'
import csv, sys
a, b = ({(r["id"], r["dimension"]): r["score"] for r in csv.DictReader(open(p))} for p in sys.argv[1:])
assert a and a.keys() == b.keys(), "other labels"
number = lambda score: float(score) if score not in ("", "none") else -1.0
print(max(abs(number(a[k]) - number(b[k])) for k in a))
P
}
# stopped SIGNAL WORK PRODUCT RANKS PROGRAM RUN ARGUMENTS...: all ranks of a program stopped by a signal once WORK/updates holds a state of it
stopped() {
    local signal=$1 at=$2 product=$3 pid found=0
    shift 3
    on "$@" >/dev/null 2>&1 &
    pid=$!
    for _ in $(seq 5000); do compgen -G "$at/updates/update-*" >/dev/null && break; sleep 0.02; done
    kill -$signal $(pgrep -f "^$bin/atelier-$2 --run $work/$3") || true  # it may be over
    wait $pid 2>/dev/null || found=$?
    flock "$at/.lock" true  # the system may still be clearing up after it
    [[ $signal == KILL ]] || ((found == 75)) || fail "exit code 75 expected after $signal, found $found"
    [[ ! -e $product ]] || fail "$2 was over before the signal"
}
# stopped_training SIGNAL RUN RANKS: the same of reward-train
stopped_training() { stopped $1 "$work/$2/judge-training" "$work/$2/judge" $3 reward-train $2; }
