#!/bin/bash
# Training on two nodes of eight GPUs; what stops at the time limit is sent again and goes on where
# it was. What follows the script's name goes to `train`:
#
#   sbatch training/recipes/slurm.sh all --recipe paper --dataset out/ms_cxr --reports out/mimic --out out/boxmed
#
# With sbatch's own options before it, elsewhere: sbatch --nodes=1 --gpus-per-node=4 ...
#SBATCH --job-name=boxmed
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
trap 'scontrol requeue "$SLURM_JOB_ID"' TERM
# This script runs on the first node, where the others find it; one process a GPU, or a CPU.
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-$SLURM_CPUS_ON_NODE}" \
  --rdzv-backend c10d --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 10000))" \
  --rdzv-id "$SLURM_JOB_ID" \
  --no-python cot-builder train "$@" --resume &
wait $!
