#!/usr/bin/env bash
# From a collection to training shards: one job array a stage, each after the one before has ended well.
#
#   PARTS=16 GPU="--gres=gpu:1" bash recipes/slurm/chain.sh config=FILE runner.device=cuda
#
# All arguments go to `prep run`. PARTS is the number of tasks of an array; at most ingest.corpus_shards (embed) or
# ingest.query_shards (the others) of them have work. GPU holds sbatch's options for the stages that run a model.
# The last job does what is left of all stages, completes each table, and needs no array: its tables take minutes.
set -euo pipefail

parts=${PARTS:-16}
read -ra gpu <<<"${GPU:-}"
array=$(dirname "$0")/array.sh
after=()

submit() { # STAGE TASKS [option of sbatch ...] -- [argument of prep ...]
  local stage=$1 tasks=$2 options=()
  shift 2
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  local job
  job=$(sbatch --parsable --job-name="prep-$stage" --array="0-$((tasks - 1))" "${after[@]}" "${options[@]}" "$array" "$@" "stage=$stage")
  echo "$stage: job $job, $tasks tasks"
  after=("--dependency=afterok:$job" --kill-on-invalid-dep=yes)
}

submit ingest 1 -- "$@"
submit embed "$parts" "${gpu[@]}" -- "$@"
submit pools "$parts" "${gpu[@]}" -- "$@"
submit hard_negatives "$parts" -- "$@"
submit dark_examples "$parts" -- "$@"
submit teacher_scores "$parts" "${gpu[@]}" -- "$@"
submit all 1 -- "$@"
