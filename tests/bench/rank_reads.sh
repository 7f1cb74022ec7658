#!/usr/bin/env bash
# Bytes that each rank of a stage reads with read(2) and its kin (rchar of /proc/PID/io; memory maps are not among them).
#   rank_reads.sh RANKS PROGRAM ARGUMENTS...
set -euo pipefail
ranks=$1
shift
"${MPIEXEC:-mpirun}" --oversubscribe --bind-to none -n "$ranks" bash -c \
    'code=0; "$@" >/dev/null 2>&1 || code=$?; while read -r key bytes; do [[ $key == rchar: ]] && echo "rank $OMPI_COMM_WORLD_RANK: $bytes bytes read, exit $code"; done </proc/$$/io; exit $code' - "$@"
