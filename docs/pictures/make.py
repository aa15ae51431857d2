"""The two pictures of the README.

python docs/pictures/make.py                          pipeline.svg, drawn here
python docs/pictures/make.py runs/demo/report.html    report.png too, the upper part of a report, as Chromium shows it
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 148, 58  # of a box
BLUE, ORANGE, GREY = "#dbe8f7", "#fbe3c8", "#eeeeee"

# name, what it makes, column, row, colour
BOXES = [
    ("ingest", "corpus, queries, qrels", 0, 0, BLUE),
    ("embed", "the student's vectors", 1, 0, BLUE),
    ("pools", "candidates of each source", 2, 0, BLUE),
    ("hard_negatives", "m of them a query", 3, 0, BLUE),
    ("dark_examples", "mixed, masked passages", 3, 1, BLUE),
    ("teacher_scores", "a logit for each pair", 2, 1, BLUE),
    ("confidence", "C(q)", 1, 1, BLUE),
    ("shards", "training rows", 0, 1, BLUE),
    ("logit store", "no pair scored twice", 2, 2, ORANGE),
    ("train run", "select, distil, save", 0, 2, ORANGE),
    ("student", "ready to serve", 0, 3, GREY),
    ("report, inspect", "look before you train", 1, 2, GREY),
]
ARROWS = [
    ("ingest", "embed"), ("embed", "pools"), ("pools", "hard_negatives"), ("hard_negatives", "dark_examples"),
    ("dark_examples", "teacher_scores"), ("teacher_scores", "confidence"), ("confidence", "shards"), ("teacher_scores", "logit store"),
    ("logit store", "teacher_scores"), ("shards", "train run"), ("train run", "student"), ("confidence", "report, inspect"),
]  # fmt: skip


def pipeline() -> str:
    """The stages from a collection to a student, as SVG."""
    corner = {name: (20 + column * (WIDTH + 52), 20 + row * (HEIGHT + 44)) for name, _, column, row, _ in BOXES}
    right, bottom = (max(place[axis] for place in corner.values()) for axis in (0, 1))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + WIDTH + 20} {bottom + HEIGHT + 20}" font-family="sans-serif">',
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="#555"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for start, end in ARROWS:
        (x1, y1), (x2, y2) = _edges(corner[start], corner[end], apart=(end, start) in ARROWS)
        lines.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#555" stroke-width="1.6" marker-end="url(#head)"/>')
    for name, what, _, _, colour in BOXES:
        x, y = corner[name]
        middle = x + WIDTH / 2
        lines += [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{colour}" stroke="#555"/>',
            f'<text x="{middle}" y="{y + 25}" text-anchor="middle" font-size="15" font-weight="bold">{name}</text>',
            f'<text x="{middle}" y="{y + 44}" text-anchor="middle" font-size="10.5" fill="#333">{what}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _edges(start: tuple[float, float], end: tuple[float, float], *, apart: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow leaves a box and meets the next; `apart` moves the two directions of a pair to either side."""
    (x1, y1), (x2, y2) = start, end
    if y1 == y2:
        forward = x2 > x1
        return (x1 + WIDTH * forward, y1 + HEIGHT / 2), (x2 + WIDTH * (not forward), y2 + HEIGHT / 2)
    down = y2 > y1
    shift = (12 if down else -12) if apart else 0
    return (x1 + WIDTH / 2 + shift, y1 + HEIGHT * down), (x2 + WIDTH / 2 + shift, y2 + HEIGHT * (not down))


def report(page: Path) -> bytes:
    """The upper part of a report as a PNG of few colours."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        sys.exit("needs chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1180", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, page.absolute().as_uri()], check=True, capture_output=True)
        small = io.BytesIO()
        Image.open(shot).convert("RGB").quantize(48).save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    (FOLDER / "pipeline.svg").write_text(pipeline(), encoding="utf-8")
    for page in sys.argv[1:]:
        (FOLDER / "report.png").write_bytes(report(Path(page)))
    print(*(f"{path} {path.stat().st_size:,} bytes" for path in sorted(FOLDER.glob("*.[ps][nv]g"))), sep="\n")
