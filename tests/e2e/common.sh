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
# apart A B: largest difference of all numbers of two directories' weights, in fp32 or bf16, and which share of them differ
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
print(largest, sum(x != y for k in moved for x, y in zip(a[k], b[k])) / sum(map(len, a.values())))
P
}
# distance A B: the largest difference alone
distance() { local found; found=$(apart "$@") && echo "${found% *}"; }
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
