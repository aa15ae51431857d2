#!/usr/bin/env bash
# All methods on one collection: prepared data, three trainings each, evaluated. From the repository's root, after `make demo`:
#   bash recipes/compare/commands.sh FOLDER OUT [OTHER]
# FOLDER and OTHER are collections in BEIR form (see prepare.py); OTHER, with test labels alone, is searched zero-shot by the first seed's
# students. Overrides for all commands go into ARGS, phases into METHODS (with commas), seeds into SEEDS. After a kill start it again.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv/bin ] && export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false FOLDER=$1 OUT=$2 SEED=0
other=${3:-}
run=(prep phases config=recipes/compare/compare.yaml runner=local runner.threads=2 ${ARGS:-})

"${run[@]}" phases=start
for SEED in ${SEEDS:-0 1 2}; do
  "${run[@]}" "train.seed=$SEED" ${METHODS:+"phases=$METHODS"}
  python recipes/compare/table.py "$OUT"
done
if [ -n "$other" ]; then
  there=(phases=start "ingest.path=$other" ingest.train_split=test "evaluation.splits=test")
  "${run[@]}" "${there[@]}" "evaluation.out=$OUT/start-0.other"
  for student in "$OUT"/*-0/student; do
    name=$(basename "$(dirname "$student")")
    [ -f "$OUT/$name.test.json" ] && "${run[@]}" "${there[@]}" "student.model=$student" "evaluation.out=$OUT/$name.other"
  done
  python recipes/compare/table.py "$OUT"
fi
