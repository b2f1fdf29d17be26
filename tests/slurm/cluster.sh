#!/usr/bin/env bash
# A real Slurm on this machine for the tests: two nodes of 4 cores and 2 fake GPUs, without systemd, cgroups or a
# database. Partition "high" preempts partition "low" (30 s of grace, then it requeues).
# Usage, as root, with Debian's packages slurm-wlm and munge:
#   tests/slurm/cluster.sh up DIR && export SLURM_CONF=DIR/slurm.conf
#   tests/slurm/cluster.sh down DIR
set -euo pipefail
CMD=${1:?up or down}
DIR=$(realpath -m "${2:?a directory for its state}")
PORT=${SLURM_TEST_PORT:-17817}
NODES="n1 n2"
export SLURM_CONF=$DIR/slurm.conf

down() {
  local file pid
  for file in "$DIR"/slurmd-*.pid "$DIR"/slurmctld.pid "$DIR"/munge/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$file"
  done
}

configure() {
  local host port=$((PORT + 1)) node
  host=$(hostname -s)
  cat <<CONF
ClusterName=mixersweep-tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: two minutes by default.
AuthInfo=socket=$DIR/munge/munge.socket,cred_expire=5
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmctldLogFile=$DIR/slurmctld.log
StateSaveLocation=$DIR/state
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmdLogFile=$DIR/slurmd-%n.log
SlurmdSpoolDir=$DIR/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=10000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=1
KillWait=30
MaxArraySize=12
GresTypes=gpu
CONF
  for node in $NODES; do
    echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port++)) CPUs=4 RealMemory=4000 Gres=gpu:2"
  done
  echo "PartitionName=low Nodes=${NODES// /,} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30"
  echo "PartitionName=high Nodes=${NODES// /,} PriorityTier=2 PreemptMode=OFF"
}

up() {
  local gpu node
  mkdir -p "$DIR"/{state,dev,munge}
  chmod 755 "$DIR"
  head -c 1024 /dev/urandom > "$DIR/munge/key"
  chmod 400 "$DIR/munge/key"
  chown -R munge: "$DIR/munge"
  runuser -u munge -- /usr/sbin/munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/munge.socket" \
    --pid-file="$DIR/munge/munged.pid" --log-file="$DIR/munge/munged.log" --seed-file="$DIR/munge/munged.seed"
  for gpu in 0 1; do [ -e "$DIR/dev/gpu$gpu" ] || mknod "$DIR/dev/gpu$gpu" c 1 3; done # each a /dev/null
  configure > "$DIR/slurm.conf"
  echo "NodeName=${NODES// /,} Name=gpu File=$DIR/dev/gpu[0-1]" > "$DIR/gres.conf"
  slurmctld -f "$SLURM_CONF"
  for node in $NODES; do slurmd -f "$SLURM_CONF" -N "$node"; done
  for _ in $(seq 100); do
    [ "$(sinfo -h -N -p low -o %t | grep -c idle)" = 2 ] && return
    sleep 0.1
  done
  echo "the nodes of the test cluster did not come up; see $DIR/slurmctld.log" >&2
  down
  exit 1
}

case $CMD in
  up) up ;;
  down) down ;;
  *) echo "cluster.sh: $CMD: up or down" >&2; exit 2 ;;
esac
