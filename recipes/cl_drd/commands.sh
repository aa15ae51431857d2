#!/usr/bin/env bash
# CL-DRD in small, from the demo's collection to the student of the third iteration. After a kill start it again.
# With the paper's settings, on a machine with a GPU: prep phases config=recipes/cl_drd/msmarco.yaml
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv/bin ] && export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
config=config=recipes/cl_drd/cl_drd.yaml

[ -d runs/demo/models ] || python recipes/demo/prepare.py runs/demo
prep phases $config
retrieve compare before=runs/cl_drd/start.dev.trec after=runs/cl_drd/finest/evaluation.dev.trec \
  "qrels=$(prep path $config stage=ingest table=qrels)" split=dev
prep report $config out=runs/cl_drd/report.html
