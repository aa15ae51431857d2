#!/usr/bin/env bash
# Rand KD, ADAM's other baseline: as Hard KD, with random passages for negatives and no dark examples.
# Usage: commands.sh config=FILE [key=value ...]
set -euo pipefail
random=(hard_negatives.source=random dark_examples.reinforced=false "dark_examples.mask_ratios=[]")
prep run "$@" "${random[@]}"
train run "$@" "${random[@]}" "shards=$(prep path "$@" "${random[@]}" stage=shards)" recipe=rand_kd train.output=runs/rand_kd
