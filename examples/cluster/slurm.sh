#!/bin/bash
# Eight workers on one study, each with a GPU of its own:
#
#   sbatch examples/cluster/slurm.sh arithmetic-seed-s0
#
# The study is begun by whoever runs `colever sweep arithmetic --study arithmetic-seed-s0` with the same stores, before
# or after: the workers wait for it. They may be more or fewer at any time (sbatch --array=0-63), preempted or killed.
#
#SBATCH --job-name=colever
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=colever-%A-%a.log

set -euo pipefail

study="${1:?usage: sbatch slurm.sh STUDY}"

# postgresql://USER@HOST:5432/NAME. Its password is in ~/.pgpass, not here: a job's environment can be read by others.
: "${COLEVER_DATABASE:?the database that all workers share}"

# Rounds go where every node sees them: a folder of the shared file system, or s3://BUCKET/PREFIX.
export COLEVER_OBJECTS="${COLEVER_OBJECTS:-$HOME/colever-objects}"
case "$COLEVER_OBJECTS" in s3://*) ;; *) mkdir -p "$COLEVER_OBJECTS" ;; esac

# Each worker's home is the node's own disk: a mirror of the objects, gone with the job.
export COLEVER_HOME="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/colever-${SLURM_ARRAY_JOB_ID:-0}-${SLURM_ARRAY_TASK_ID:-0}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# srun passes SIGTERM on, which comes 120 s before the time is over: the worker gives its trial back and ends with 143.
exec srun colever worker --study "$study" --wait 3600
