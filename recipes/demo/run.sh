#!/usr/bin/env bash
# The whole job on a real collection: prep, train, evaluate. From the repository's root; a second run does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false
config=config=recipes/demo/demo.yaml
trained=student.model=runs/demo/train/student

title() { printf '\n== %s\n' "$*"; }
place() { prep path "$config" "$@"; }
evaluate() { # OUT [student.model=...]: search with the stored embeddings of a student
  local out=$1
  shift
  retrieve evaluate "corpus=$(place stage=embed table=corpus "$@")" "queries=$(place stage=embed table=queries "$@")" \
    "qrels=$(place stage=ingest table=qrels)" split=test "out=$out"
}

title "the collection: InsuranceQA, from its package"
python recipes/demo/prepare.py runs/demo
title "prep: from the collection to training shards and dev set"
prep run "$config"
title "the untrained student, on 2,000 test questions"
evaluate runs/demo/before.trec
title "train: ADAM"
train run "$config" "shards=$(place stage=shards)" "dev=$(place stage=dev)"
title "embed with the trained student"
prep run "$config" stage=embed "$trained"
title "the trained student, on the same questions"
evaluate runs/demo/after.trec "$trained"
title "report"
prep report "$config" out=runs/demo/report.html
title "before and after"
retrieve compare before=runs/demo/before.trec after=runs/demo/after.trec "qrels=$(place stage=ingest table=qrels)"
title "what a sample says of this collection and teacher, and what that speaks for"
prep advise "$config" budget_pairs=6000
echo
echo "training shards  $(place stage=shards)"
echo "report           runs/demo/report.html"
echo "student          runs/demo/train/student"
echo "a query to look at: .venv/bin/prep inspect $config width=160"
