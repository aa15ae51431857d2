#!/usr/bin/env bash
# Hard KD, ADAM's baseline: KL over {p+} and the mined negatives, for every query, without the supervised loss.
# It trains on ADAM's shards: no pair is scored again. Usage: commands.sh config=FILE [key=value ...]
set -euo pipefail
train run "$@" "shards=$(prep path "$@" stage=shards)" recipe=hard_kd train.output=runs/hard_kd
