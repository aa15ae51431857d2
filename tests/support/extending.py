"""What docs/extending.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"```python\n# (mylab/\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL))
SETTINGS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]
