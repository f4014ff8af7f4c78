#!/bin/bash
# faap on Slurm: sbatch examples/slurm.sh equal --dataset_root /data/people --detr_checkpoint /models/detr
# Taken away, or at the end of its time, the job stops after a step, is queued again, and goes on from there.
#SBATCH --job-name=faap
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

# One task a GPU, and no launcher between Slurm and them: what torchrun would set, they get here.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec faap train "$@"' faap "$@"
status=$?

# 143: stopped by SIGTERM, with its state kept. Anything else is done, or is wrong and would be so again.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
