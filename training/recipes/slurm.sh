#!/bin/bash
# Two nodes of eight GPUs; what stops at the time limit is sent again and goes on where it was.
#SBATCH --job-name=boxmed
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail
export OMP_NUM_THREADS=4
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
trap 'scontrol requeue "$SLURM_JOB_ID"' TERM
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
  --no-python cot-builder train all \
  --recipe paper --dataset out/ms_cxr --reports out/mimic --out out/boxmed --resume &
wait
