#!/usr/bin/env bash
# One search on Slurm: sbatch jobs/slurm.sh my.yaml /shared/studies/my
# A Ray node on every machine of the allocation, the driver on the first. Spec, experts, cache and study must lie on the shared
# file system. Ended by the time limit, the search goes on where it stopped when it is submitted again.
#SBATCH --job-name=cabs-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

spec=$1 output=$2
export CABS_SEARCH_CACHE=${CABS_SEARCH_CACHE:-$HOME/.cache/cabs-search}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it over by itself
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)} RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
common=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" --overlap \
  ray start --head --node-ip-address="$head" --port=6379 "${common[@]}" &
for _ in $(seq 60); do
  ray status --address="$head:6379" >/dev/null 2>&1 && break
  sleep 2
done
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap ray start --address="$head:6379" "${common[@]}" &
done
# A search counts the workers it may have when it begins.
for attempt in $(seq 150); do
  [ "$(ray status --address="$head:6379" 2>/dev/null | grep -c ' node_')" -ge "${#nodes[@]}" ] && break
  [ "$attempt" -lt 150 ] || { echo "not all of ${#nodes[@]} nodes have joined" >&2; exit 1; }
  sleep 2
done

# SIGTERM comes two minutes before the time limit: the search gives back what runs, and ends.
cabs-search run "$spec" --address "$head:6379" --output "$output" &
search=$!
trap 'kill -TERM "$search"' TERM
status=0
wait "$search" || status=$?
while kill -0 "$search" 2>/dev/null; do wait "$search" && status=0 || status=$?; done
exit "$status"
