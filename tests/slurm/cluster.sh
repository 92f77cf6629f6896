#!/usr/bin/env bash
# A Slurm cluster of one node on this machine, for the tests: no systemd, no accounting, and nothing
# outside its own folder. As root, on Debian or Ubuntu:
#
#   tests/slurm/cluster.sh start   installs slurm-wlm and munge if they are missing, starts them
#   tests/slurm/cluster.sh env     prints what tests and people need: export SLURM_CONF=…
#   tests/slurm/cluster.sh stop    ends exactly the processes that `start` started
set -euo pipefail

# A folder and two ports for each checkout, so that two of them do not meet.
here=$(cd "$(dirname "$0")" && pwd)
number=$(printf '%s' "$here" | cksum | cut -d' ' -f1)
base=${TMPDIR:-/tmp}/vshift-slurm-$(id -u)-$number
port=$((20000 + number % 5000 * 2))
conf=$base/slurm.conf

fail() { echo "tests/slurm/cluster.sh: $*" >&2; exit 1; }

install_slurm() {
  command -v slurmctld slurmd munged sbatch >/dev/null && return
  command -v apt-get >/dev/null || fail "no Slurm here, and no apt-get to install it with"
  echo "installing slurm-wlm and munge" >&2
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # installing starts no daemons
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 slurm-wlm munge >&2
}

write_conf() {
  cat >"$conf" <<END
ClusterName=vshift-test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 120 s unless said otherwise, 5 at least.
AuthInfo=cred_expire=5,socket=$base/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool
SlurmctldPidFile=$base/slurmctld.pid
SlurmdPidFile=$base/slurmd.pid
SlurmctldLogFile=$base/slurmctld.log
SlurmdLogFile=$base/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=60
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

start_munge() {
  install -d -m 755 "$base"
  install -d -m 755 -o munge -g munge "$base/munge"
  if [ ! -s "$base/munge/key" ]; then
    (umask 077; head -c 128 /dev/urandom >"$base/munge/key")
    chown munge:munge "$base/munge/key"
  fi
  runuser -u munge -- munged --key-file="$base/munge/key" --socket="$base/munge/socket" \
    --pid-file="$base/munge/munged.pid" --log-file="$base/munge/log" --seed-file="$base/munge/seed"
}

start() {
  [ "$(id -u)" = 0 ] || fail "start it as root"
  if alive slurmctld "$base/slurmctld.pid" && alive slurmd "$base/slurmd.pid"; then return; fi
  stop
  install_slurm
  start_munge
  rm -rf "$base/state" "$base/spool"
  mkdir -p "$base/state" "$base/spool"
  write_conf
  export SLURM_CONF=$conf
  slurmctld || give_up "slurmctld does not start"
  slurmd || give_up "slurmd does not start"
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] && return
    sleep 0.3
  done
  give_up "the node did not become idle"
}

give_up() {
  tail -n 20 "$base"/slurm*.log >&2
  stop
  fail "$1"
}

alive() {  # alive NAME PIDFILE: whether the pid is still that program, and not another one's since
  local pid
  pid=$(cat "$2" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]
}

end_jobs() {  # and wait for them: slurmd would leave their processes behind
  alive slurmctld "$base/slurmctld.pid" || return 0
  export SLURM_CONF=$conf
  timeout 10 scancel --quiet --user=root || true
  for _ in $(seq 100); do
    [ -n "$(timeout 10 squeue --noheader)" ] || return 0
    sleep 0.3
  done
}

stop() {
  end_jobs
  local name file pid
  for name in slurmd slurmctld munged; do
    file=$base/$name.pid
    [ "$name" != munged ] || file=$base/munge/munged.pid
    alive "$name" "$file" || continue
    pid=$(cat "$file")
    kill "$pid"
    for _ in $(seq 100); do [ -e "/proc/$pid" ] || break; sleep 0.1; done
    [ ! -e "/proc/$pid" ] || kill -9 "$pid"
  done
  rm -f "$base"/*.pid "$base"/munge/*.pid
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  env) echo "export SLURM_CONF=$conf" ;;
  *) fail "say start, stop or env" ;;
esac
