#!/usr/bin/env bash
# ADAM on MS MARCO, one machine with a GPU: what a batch job runs. After a kill, start it again: it goes on where it stopped.
set -euo pipefail
config=config=recipes/adam/msmarco.yaml
gpu="runner.device=cuda runner.workers=1"

prep run $config stage=ingest
prep run $config stage=embed $gpu
prep run $config stage=hard_negatives runner.threads=8
prep run $config stage=dark_examples
prep run $config stage=teacher_scores $gpu
prep run $config stage=confidence
prep run $config stage=shards
train run $config "shards=$(prep path $config stage=shards)" train.device=cuda train.micro_batch_tokens=32768

trained="student.model=runs/msmarco/adam/student"
prep run $config stage=embed $gpu $trained
retrieve evaluate "corpus=$(prep path $config $trained stage=embed table=corpus)" \
  "queries=$(prep path $config $trained stage=embed table=queries)" \
  "qrels=$(prep path $config stage=ingest table=qrels)" split=dev out=runs/msmarco/adam.trec
