#!/usr/bin/env bash
# PROD's ladder from the collection to the student of its last step. From the repository's root:
#   bash recipes/prod/commands.sh                              in small, on the demo's collection
#   bash recipes/prod/commands.sh recipes/prod/msmarco.yaml    the paper's settings; one machine with GPUs
# After a kill start it again: it goes on where it stopped, and scores no pair twice.
# A step that the file does not have is one whose model is given, see the file; ROUNDS="d1 d2 d3" are rounds of the last step, each a
# step of the file. A round that finds no question to learn from ends the ladder.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv/bin ] && export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
file=${1:-recipes/prod/prod.yaml}
config=config=$file

has() { grep -q "^  $1:" "$file"; }
step() { printf '\n== %s\n' "$*"; }
place() { prep path "$config" "$@"; }

for name in ${ROUNDS:-}; do
  has "$name" || { echo "ROUNDS: $file has no step $name: write it beside d1" >&2; exit 2; }
done
if [ "$file" = recipes/prod/prod.yaml ] && [ ! -d runs/demo/models ]; then
  step "the collection: InsuranceQA, from its package"
  python recipes/demo/prepare.py runs/demo
fi
runs=$(sed -n 's#.*output: \([^ ,}]*\)/[^/ ,}]*.*#\1#p' "$file" | head -1)
device=$(sed -n 's/.*[{, ]device: *\([a-z]*\).*/\1/p' "$file" | head -1)
longest=$(sed -n 's/.*[{, ]max_tokens: *\([0-9]*\).*/\1/p' "$file" | head -1)
mkdir -p "${runs:?"no train.output in $file"}"
rerank() { # STEP: the first 20 passages of 100 dev questions, as the start finds them, in the order of a step's cross-encoder
  local found texts qrels start
  found="corpus=$(place step=dev stage=embed table=corpus) queries=$(place step=dev stage=embed table=queries)"
  texts="corpus=$(place step=dev stage=ingest table=corpus) queries=$(place step=dev stage=ingest table=queries)"
  qrels="qrels=$(place step=dev stage=ingest table=qrels) split=dev"
  start=$runs/$(basename "$(place step=dev stage=embed table=corpus)")
  [ -f "$start.trec" ] || retrieve evaluate $found $qrels "out=$start.trec" depth=20 "device=${device:-cpu}"
  awk '!($1 in seen) { seen[$1]; n++ } n <= 100' "$start.trec" >"$start-100.trec"
  [ -f "$runs/$1/reranked.trec" ] ||
    retrieve rerank "model=$runs/$1/cross_encoder" "run=$start-100.trec" depth=20 "out=$runs/$1/reranked.trec" $texts \
      "device=${device:-cpu}" ${longest:+"max_tokens=$longest"}
  retrieve compare "before=$start-100.trec" "after=$runs/$1/reranked.trec" $qrels missing=skip
}

step "the dev set"
prep run "$config" step=dev stage=ingest
prep run "$config" step=dev stage=embed
prep run "$config" step=dev stage=dev
dev=$(place step=dev stage=dev)
for name in w1_teacher w1 w2_teacher w2 t1 c1 t2 c2 t3 ${ROUNDS:-d1}; do
  has "$name" || continue
  step "$name"
  ended=0
  prep run "$config" "step=$name" || ended=$?
  if [ "$ended" = 3 ]; then
    echo "nothing is left to learn: the student of the step before is the last one"
    break
  fi
  [ "$ended" = 0 ] || exit "$ended"
  case $name in
    c*)
      train run "$config" "step=$name" "shards=$(place "step=$name" stage=shards)"
      rerank "$name"
      ;;
    *) train run "$config" "step=$name" "shards=$(place "step=$name" stage=shards)" "dev=$dev" ;;
  esac
done
