#!/usr/bin/env bash
# One stage as a job array: each array task builds its part of the shards, on a node of its own, without Ray.
#
#   sbatch --array=0-15 recipes/slurm/array.sh config=FILE stage=embed
#
# The whole sequence of stages, each waiting for the one before: recipes/slurm/chain.sh. Of 16 tasks some may be submitted again alone:
#
#   PARTS=16 sbatch --array=3,7 recipes/slurm/array.sh config=FILE stage=embed
#
# A task that is preempted, or whose time is over, is told so two minutes before its end (TERM). It keeps what is finished and exits
# with 75, which means "start the same command again, it goes on". A node that dies is Slurm's --requeue.
# Where slurm.conf has RequeueExit=75, Slurm starts a task with that code again; elsewhere the last lines do.
#
# `srun` is not used: one process a task does the work, on as many threads as it is given CPUs.
#SBATCH --job-name=prep
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=prep-%A_%a.log
set -uo pipefail

parts=${PARTS:-$((SLURM_ARRAY_TASK_MAX + 1))}
prep run "$@" "part=$SLURM_ARRAY_TASK_ID/$parts" runner=local "runner.threads=${SLURM_CPUS_PER_TASK:-1}" &
work=$!
trap 'kill -TERM "$work"' TERM # B: sends the signal to this shell alone
wait "$work"
code=$?
if ((code > 128)); then # the trap ended the waiting, not the work
  wait "$work"
  code=$?
fi
if ((code == 75)) && ! scontrol show config | grep -Eq '^RequeueExit +=.*\b75\b'; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
