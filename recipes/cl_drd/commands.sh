#!/usr/bin/env bash
# CL-DRD from the collection to the student of the third iteration. From the repository's root:
#   bash recipes/cl_drd/commands.sh                                in small, on the demo's collection
#   bash recipes/cl_drd/commands.sh recipes/cl_drd/msmarco.yaml    the paper's settings; one machine with a GPU
# After a kill start it again: it goes on where it stopped, in the middle of an iteration too, and scores no pair twice.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv/bin ] && export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
file=${1:-recipes/cl_drd/cl_drd.yaml}
config=config=$file
output=$(sed -n 's/^  output: *\([^ ]*\).*/\1/p' "$file")
trained=embed.model=$output/student

step() { printf '\n== %s\n' "$*"; }
place() { prep path "$config" "$@"; }
evaluate() { # OUT [embed.model=...]: over the whole corpus
  local out=$1
  shift
  retrieve evaluate "corpus=$(place stage=embed table=corpus "$@")" "queries=$(place stage=embed table=queries "$@")" \
    "qrels=$(place stage=ingest table=qrels)" split=dev "out=$out"
}

if [ "$file" = recipes/cl_drd/cl_drd.yaml ] && [ ! -d runs/demo/models ]; then
  step "the collection: InsuranceQA, from its package"
  python recipes/demo/prepare.py runs/demo
fi
step "prep: the student's 200 passages a query, the teacher's ranking of them, three lists a query, dev set"
prep run "$config"
step "the student as it comes, on the dev queries and the whole corpus"
mkdir -p "$output"
evaluate "$output/before.trec"
step "train: three iterations, each from the last one's student"
train run "$config" "shards=$(place stage=shards)" "dev=$(place stage=dev)"
step "the student of the third iteration, on the dev queries and the whole corpus"
prep run "$config" stage=embed "$trained"
evaluate "$output/after.trec" "$trained"
retrieve compare "before=$output/before.trec" "after=$output/after.trec" "qrels=$(place stage=ingest table=qrels)" split=dev
step "report"
prep report "$config" "out=$output/report.html"
