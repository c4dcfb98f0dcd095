#!/bin/bash
# 400,000 pairs under SLURM: bash docs/slurm_data.sh make.toml
#
# Submits a chain of jobs, each after the one before. Asking takes one CPU node; painting 205,000 grids
# takes about 300 H100 hours, here an array of 64 tasks with a GPU each. A task that is stopped is
# queued again and goes on; submitting the whole chain again does what is left.

set -euo pipefail

CONFIG=${1:?usage: bash docs/slurm_data.sh make.toml}
WORKERS=${WORKERS:-64} # not more than `parts` in the configuration
CPU="--cpus-per-task=16 --mem=64G --time=48:00:00"
GPU="--cpus-per-task=8 --mem=120G --time=12:00:00 --gpus-per-task=1 --ntasks=1"

submit() { # submit NAME AFTER OPTIONS... -- COMMAND...
    local name=$1 after=${2:+--dependency=afterok:$2} options=()
    shift 2
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    # shellcheck disable=SC2086
    sbatch --parsable --requeue --open-mode=append --job-name="dsd-$name" \
        --output="dsd-$name-%j.log" $after "${options[@]}" --wrap="$*"
}

array="--array=0-$((WORKERS - 1))"
# shellcheck disable=SC2086
{
    words=$(submit prompts "" $CPU -- \
        "dsd data captions $CONFIG && dsd data prompts $CONFIG")
    grids=$(submit grids "$words" "$array" $GPU -- "srun dsd data grids $CONFIG")
    pairs=$(submit pairs "$grids" $CPU -- "dsd data pairs $CONFIG")
    last=$(submit judge "$pairs" $CPU -- \
        "dsd data judge $CONFIG && dsd data caption $CONFIG && dsd data pack $CONFIG")
}
echo "jobs $words, $grids, $pairs, $last; \`dsd data status $CONFIG\` shows how far they are"
