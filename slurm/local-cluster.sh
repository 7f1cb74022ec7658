#!/usr/bin/env bash
# A private, real Slurm on this machine: munge, slurmctld and virtual nodes, without systemd and without being root. For trying
# Atelier out and for its tests; where there is a cluster, that one is used.
#
#   local-cluster.sh start          configure, start, wait until all nodes are idle; refused where one of this directory runs
#   local-cluster.sh restart        the same after a stop
#   local-cluster.sh stop           end exactly the processes that were started here
#   local-cluster.sh clean          stop, then delete the directory
#   local-cluster.sh env            exports that make sbatch, srun, squeue use it:  eval "$(slurm/local-cluster.sh env)"
#   local-cluster.sh run COMMAND    start, run the command with those exports, stop
#
# Environment:
#   ATELIER_CLUSTER_DIR    its directory (default /tmp/atelier-cluster.<uid>; short: socket paths end at 107 characters)
#   ATELIER_CLUSTER_NODES  virtual nodes of one CPU each (default: the machine's CPUs)
#   ATELIER_CLUSTER_MEMORY memory of a node in MB (default: its share of the machine's)
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

directory=${ATELIER_CLUSTER_DIR:-/tmp/atelier-cluster.$UID}
nodes=${ATELIER_CLUSTER_NODES:-$(nproc)}
memory=${ATELIER_CLUSTER_MEMORY:-$(awk -v n="$nodes" '$1 == "MemTotal:" { print int($2 / 1024 / n * 0.9) }' /proc/meminfo)}
config=$directory/slurm.conf
socket=$directory/munge.socket

say() { echo "local-cluster: $*" >&2; }
die() { say "$*"; exit 1; }

# The process of a pid file, if it is the named program and was started for this directory.
alive() {
    local pid program=$1 file=$2
    [[ -s $file ]] || return 1
    pid=$(tr -dc 0-9 <"$file")
    [[ -n $pid && $(readlink "/proc/$pid/exe" 2>/dev/null) =~ /$program(-wlm)?$ ]] || return 1
    if [[ $program == munged ]]; then
        grep -qzxF -- "--socket=$socket" "/proc/$pid/cmdline" || return 1
    else
        grep -qzxF "SLURM_CONF=$config" "/proc/$pid/environ" 2>/dev/null || return 1
    fi
    echo "$pid"
}
end_process() {  # PROGRAM PIDFILE
    local pid
    pid=$(alive "$@") || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 100); do alive "$@" >/dev/null || return 0; sleep 0.1; done
    say "$1 ($pid) does not end; killing it"
    kill -KILL "$pid" 2>/dev/null || true
}

# The first run of free TCP ports below the ephemeral range.
free_ports() {
    local first port
    for ((first = 26817; first < 32000; first += nodes + 1)); do
        for ((port = first; port <= first + nodes; port++)); do
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
        done
        echo "$first"
        return
    done
    die "no $((nodes + 1)) free ports between 26817 and 32000"
}

configure() {
    local port host user=$(id -un) i mpi=none listen=EnableIPv6
    port=$(free_ports)
    host=$(hostname -s)
    # Listening on the loopback interface only needs a host name that resolves to it.
    [[ $(getent ahostsv4 "$host" | awk 'NR == 1 { print $1 }') != 127.0.0.1 ]] || listen+=,NoCtldInAddrAny,NoInAddrAny
    compgen -G "/usr/lib/*/pmix2/lib/libpmix.so" >/dev/null && mpi=pmix
    mkdir -p "$directory"/{state,spool,tmp,log,run}
    cat >"$config" <<C
ClusterName=atelier
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=$listen
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A short cred_expire: it is also how long a requeued job is held back.
AuthInfo=socket=$socket,cred_expire=5
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool/%n
TmpFS=$directory/tmp/%n
SlurmctldPidFile=$directory/run/slurmctld.pid
SlurmdPidFile=$directory/run/slurmd.%n.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=$mpi
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
# A chain of short jobs: look for work at once. (The defaults cost 10 to 15 s for five links.)
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$directory/log/jobcomp.log
# A dependency on a purged job counts as satisfied: keep them for a day.
MinJobAge=86400
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
EnforcePartLimits=ALL
C
    for ((i = 0; i < nodes; i++)); do
        mkdir -p "$directory/spool/n$i" "$directory/tmp/n$i"
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1 + i)) CPUs=1 Sockets=1 CoresPerSocket=1" \
            "ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN" >>"$config"
    done
    echo "PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE State=UP" >>"$config"
    # slurmd loads a cgroup plugin even where nothing uses it; v1 by name starts everywhere.
    echo "CgroupPlugin=cgroup/v1" >"$directory/cgroup.conf"
}

print_env() {
    cat <<C
export SLURM_CONF=$config
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
C
}

start() {
    local program i
    for program in munged mungekey slurmctld slurmd sinfo; do
        command -v "$program" >/dev/null || die "$program not found: run scripts/setup.sh slurm"
    done
    ((${#socket} < 100)) || die "ATELIER_CLUSTER_DIR is too long for a socket: $directory"
    if [[ -e $directory ]]; then
        [[ -e $directory/.atelier-cluster ]] || die "$directory is there and not ours"
        # Its jobs may be another's.
        if alive slurmctld "$directory/run/slurmctld.pid" >/dev/null; then
            die "a cluster runs in $directory: use it (env), stop it, or give this one another ATELIER_CLUSTER_DIR"
        fi
        stop  # what is left of one that was killed
        rm -rf "$directory"
    fi
    mkdir -p "$directory"
    : >"$directory/.atelier-cluster"
    mkdir -p "$directory/log" "$directory/run"
    configure
    eval "$(print_env)"
    ulimit -c 0
    trap '(($? == 0)) || stop' EXIT
    mungekey --create --keyfile="$directory/munge.key"
    # --force: munged refuses group-writable directories above its socket otherwise.
    munged --force --socket="$socket" --key-file="$directory/munge.key" --pid-file="$directory/run/munged.pid" \
        --log-file="$directory/log/munged.log" --seed-file="$directory/munge.seed" || die "munged failed: $directory/log/munged.log"
    slurmctld || die "slurmctld failed: $directory/log/slurmctld.log"
    for ((i = 0; i < nodes; i++)); do slurmd -N "n$i" || die "slurmd n$i failed: $directory/log/slurmd.n$i.log"; done
    for _ in $(seq 300); do
        if (($(timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -c '^idle$') == nodes)); then
            say "$nodes nodes are idle"
            return
        fi
        alive slurmctld "$directory/run/slurmctld.pid" >/dev/null || break
        sleep 0.1
    done
    tail -n 20 "$directory"/log/*.log >&2
    die "the nodes did not become idle"
}

stop() {
    local file
    [[ -e $directory/.atelier-cluster ]] || return 0
    export SLURM_CONF=$config
    if alive slurmctld "$directory/run/slurmctld.pid" >/dev/null; then
        timeout 10 scancel --full --user="$(id -un)" >/dev/null 2>&1 || true
        for _ in $(seq 100); do
            [[ -z $(timeout 5 squeue -h -t R,CG 2>/dev/null) ]] && break
            sleep 0.1
        done
    fi
    for file in "$directory"/run/slurmd.*.pid; do
        if [[ -e $file ]]; then end_process slurmd "$file"; fi
    done
    end_process slurmctld "$directory/run/slurmctld.pid"
    end_process munged "$directory/run/munged.pid"
}

case ${1:-} in
    start) start ;;
    restart) stop; start ;;
    stop) stop ;;
    clean) stop; if [[ -e $directory/.atelier-cluster ]]; then rm -rf "$directory"; fi ;;
    env) print_env ;;
    run)
        shift
        start
        trap stop EXIT
        eval "$(print_env)"
        code=0
        "$@" || code=$?
        exit "$code"
        ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
