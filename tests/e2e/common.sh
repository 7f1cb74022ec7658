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
says() { grep -q "$1" "$work/out" || { cat "$work/out" >&2; fail "\"$1\" was not said"; }; }
