#!/usr/bin/env bash
# All methods on one collection: prepared data, three trainings each, evaluated. From the repository's root, after `make demo`:
#   bash recipes/compare/commands.sh FOLDER OUT [OTHER]
# FOLDER and OTHER are collections in BEIR form (see prepare.py); OTHER, with test labels alone, is searched zero-shot by the first seed's students.
# Overrides of compare.yaml for all commands go into WORDS, methods into METHODS, seeds into SEEDS. After a kill start it again.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv/bin ] && export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
folder=$1 out=$2 other=${3:-}
words=(config=recipes/compare/compare.yaml runner=local runner.threads=2 ${WORDS:-})
here=(ingest.path="$folder")
there=(ingest.path="$other" ingest.train_split=test)
mkdir -p "$out"

evaluate() { # NAME STUDENT SPLIT COLLECTION...: metrics of each question of a split
  local name=$1 split=$3 of=("${words[@]}" "${@:4}" step=adam "student.model=$2")
  [ -f "$out/$name.json" ] && return
  prep run "${of[@]}" stage=ingest >/dev/null
  prep run "${of[@]}" stage=embed >/dev/null
  retrieve evaluate "corpus=$(prep path "${of[@]}" stage=embed table=corpus)" "queries=$(prep path "${of[@]}" stage=embed table=queries)" \
    "qrels=$(prep path "${of[@]}" stage=ingest table=qrels)" "split=$split" "out=$out/$name.trec" "per_query=$out/$name.json"
}
student() { # NAME STUDENT SEED: a student on all that it is measured on
  evaluate "$1-$3.dev" "$2" dev "${here[@]}"
  evaluate "$1-$3.test" "$2" test "${here[@]}"
  if [ -n "$other" ] && [ "$3" = 0 ]; then evaluate "$1-$3.other" "$2" test "${there[@]}"; fi
}
trained() { # NAME STEP SEED [words]: one training
  local name=$1 step=$2 seed=$3
  shift 3
  prep run "${words[@]}" "${here[@]}" "step=$step" "$@" >/dev/null
  local shards
  shards=$(prep path "${words[@]}" "${here[@]}" "step=$step" "$@" stage=shards)
  train run "${words[@]}" "${here[@]}" "step=$step" "$@" "shards=$shards" "seed=$seed" "train.output=$out/$name-$seed"
}

student start runs/demo/models/student 0
for seed in ${SEEDS:-0 1 2}; do
  for method in ${METHODS:-adam adam_positive hard_kd rand_kd margin_mse cl_drd prod}; do
    printf '\n== %s, seed %s\n' "$method" "$seed"
    trained "$method" "$method" "$seed"
    result=$out/$method-$seed/student
    if [ "$method" = prod ]; then
      ended=0
      prep run "${words[@]}" "${here[@]}" step=prod_selected "student.model=$result" "embed.model=$result" >/dev/null || ended=$?
      case $ended in
        0)
          trained prod_selected prod_selected "$seed" "student.model=$result" "embed.model=$result"
          result=$out/prod_selected-$seed/student
          ;;
        3) echo "no question is selected: PROD ends with T3" ;;
        *) exit "$ended" ;;
      esac
    fi
    student "$method" "$result" "$seed"
  done
  python recipes/compare/table.py "$out"
done
