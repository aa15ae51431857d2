from __future__ import annotations

import pytest

from data.config.arguments import Args
from data.config.settings import load
from pipeline.interchange.exporting import OPTIONS, run_export


@pytest.mark.parametrize("format", ["lists", "sentence-transformers", "flagembedding", "tevatron", "pylate", "trec", "tsv", "beir"])
def test_x(finished, tmp_path, format):
    lines = []
    run_export(
        load({"config": str(finished.config)}),
        Args({**OPTIONS, "format": format, "out": str(tmp_path / "o"), "licence": "CC0"}),
        say=lines.append,
    )
    print(format, *lines, sep="\n   ")
    import subprocess

    print(
        subprocess.run(
            f"find {tmp_path / 'o'} -type f | xargs ls -la; head -c 1500 {tmp_path}/o/*.md {tmp_path}/o/*.jsonl {tmp_path}/o/*.t* {tmp_path}/o/*.json",
            shell=True,
            capture_output=True,
            text=True,
        ).stdout
    )
