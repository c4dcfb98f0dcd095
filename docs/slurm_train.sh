#!/bin/bash
# Fine-tuning on GPU nodes under SLURM: sbatch docs/slurm_train.sh
#
# One process per GPU; JAX finds the others by itself. Five minutes before the time limit SLURM sends
# SIGTERM, the run saves and ends, and the job queues itself again until all steps are done.
#SBATCH --job-name=dsd-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

BASE=${BASE:-/models/FLUX.1-dev}
PAIRS=${PAIRS:-/data/pairs}
HELD_OUT=${HELD_OUT:-/data/held-out}
RUN=${RUN:-/runs/dsd} # on a file system that all nodes see
STEPS=${STEPS:-100000}

srun --kill-on-bad-exit=1 dsd train paper \
    --base_path "$BASE" --data "$PAIRS" --eval_data "$HELD_OUT" \
    --output_dir "$RUN" --steps "$STEPS"

# A run that was asked to stop ends with status 0 too; only the last checkpoint shows that it is
done. if [[ ! -e "$RUN/checkpoints/$(printf %08d "$STEPS")/manifest.json" ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
