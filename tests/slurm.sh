#!/usr/bin/env bash
# A Slurm for tests: two nodes of one CPU each on this machine, all of its files in DIR, as the
# user who calls, without systemd or control groups.
#
#   slurm.sh start DIR   # then: export SLURM_CONF=DIR/slurm.conf
#   slurm.sh stop DIR
#
# Wants Debian's slurmctld, slurmd, slurm-client and munge.
set -euo pipefail
export PATH=$PATH:/usr/sbin
do=$1 dir=$(realpath -m "$2")

if [ "$do" = stop ]; then
    for pid in "$dir"/*.pid; do
        kill "$(cat "$pid")" || true
    done
    exit
fi

free_ports() {
    python3 -c "
import socket
held = [socket.create_server(('127.0.0.1', 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in held))"
}
read -r controller one two <<< "$(free_ports)"
node="NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=1"
mkdir -p "$dir/state" "$dir/spool-one" "$dir/spool-two"
(umask 077 && head -c 128 /dev/urandom > "$dir/munge.key")
cat > "$dir/slurm.conf" << CONF
ClusterName=here
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=requeue_delay=1
KillWait=5
ReturnToService=2
NodeName=one $node Port=$one RealMemory=$(($(free -m | awk '/^Mem:/ {print $2}') / 2))
NodeName=two $node Port=$two RealMemory=$(($(free -m | awk '/^Mem:/ {print $2}') / 2))
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
munged --force --key-file "$dir/munge.key" --socket "$dir/munge.socket" \
    --pid-file "$dir/munged.pid" --log-file "$dir/munged.log" --seed-file "$dir/munge.seed"
slurmctld
slurmd -N one
slurmd -N two
for _ in $(seq 60); do
    [ "$(sinfo --noheader --format '%T %D' 2> /dev/null)" != "idle 2" ] || exit 0
    sleep 0.5
done
echo "the nodes did not become idle; see the logs in $dir" >&2
exit 1
