#!/usr/bin/env bash
# The list-wise baseline, after `make demo`. Usage: commands.sh [config=FILE] [key=value ...]
# On the same lists MarginMSE with z-scores is: train run ... recipe=margin_mse train.objective.score_transform=zscore
set -euo pipefail
words=(config=recipes/listwise/listwise.yaml "$@")
prep run "${words[@]}"
train run "${words[@]}" "shards=$(prep path "${words[@]}" stage=shards)"
