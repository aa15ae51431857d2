#!/usr/bin/env bash
# PROD in small, from the demo's collection to the student of its last phase. After a kill start it again.
# With the paper's settings, on a machine with GPUs: prep phases config=recipes/prod/msmarco.yaml
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv/bin ] && export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false

[ -d runs/demo/models ] || python recipes/demo/prepare.py runs/demo
prep phases config=recipes/prod/prod.yaml
