#!/usr/bin/env bash
# ADAM on MS MARCO, one machine with a GPU: what a batch job runs. After a kill, start it again: it goes on where it stopped.
# Each line can be a job of its own; only embed, pools, teacher_scores and train need the GPU. (With a rule of the teacher for false
# negatives, or sampler=stratified, put stage=pool_scores, which needs the GPU too, before stage=hard_negatives.)
set -euo pipefail
config=config=recipes/adam/msmarco.yaml

prep run $config stage=ingest
prep run $config stage=embed
prep run $config stage=pools
prep run $config stage=hard_negatives
prep run $config stage=dark_examples
prep run $config stage=teacher_scores
prep run $config stage=confidence
prep run $config stage=shards
train run $config "shards=$(prep path $config stage=shards)"

trained="embed.model=runs/msmarco/adam/student"
prep run $config stage=embed $trained
retrieve evaluate "corpus=$(prep path $config $trained stage=embed table=corpus)" \
  "queries=$(prep path $config $trained stage=embed table=queries)" \
  "qrels=$(prep path $config stage=ingest table=qrels)" split=dev out=runs/msmarco/adam.trec
