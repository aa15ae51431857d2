"""The pieces of the report's page: HTML that loads nothing. All text from the collection goes through `escape`."""

from __future__ import annotations

import html
from collections.abc import Sequence

from data.config.settings import Experiment
from data.terminal import printable

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 13px; display: block; overflow-x: auto; margin-top: 1rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #e3e6ea; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #57606a; font-size: 13px; }
details { border: 1px solid #e3e6ea; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; } summary { cursor: pointer; }
mark { background: #fff3c4; } mark.sep { background: #ffd9b3; font-weight: 600; } code { font-size: 12px; color: #57606a; }
.logit { white-space: nowrap; }
.bar { display: inline-block; height: .6rem; margin-right: .4rem; }
.id { color: #57606a; font-size: 12px; overflow-wrap: anywhere; }
"""


def page(sections: Sequence[str]) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Distillation data report</title><style>{STYLE}</style></head>
<body>{"".join(sections)}</body></html>
"""


def escape(value: object) -> str:
    """Text as HTML shows it, control characters as their codes."""
    return html.escape(printable(str(value)), quote=True)


def figure(svg: str, *, caption: str) -> str:
    """A picture with its caption."""
    caption = escape(caption)
    return f'<figure role="img" aria-label="{caption}">{svg}<figcaption>{caption}</figcaption></figure>'


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> str:
    """An HTML table of cells that are escaped already; the columns in `numbers` stand to the right."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    classes = [' class="n"' if name in numbers else "" for name in names]
    lines = ("".join(f"<td{css}>{cell}</td>" for css, cell in zip(classes, row, strict=True)) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def facts_table(experiment: Experiment, *, queries: int, candidates: float, lists: Sequence[tuple[str, object]]) -> str:
    """The page's head: what was made, of what. `lists` says how the lists were drawn; `candidates` is the mean length of a list."""
    facts = [
        ("student", experiment.student.model),
        ("teacher", f"{experiment.teacher.model} ({experiment.teacher.backend})"),
        ("negatives from", experiment.hard_negatives.source),
        ("mined with", experiment.embed.model or experiment.student.model),
        *lists,
        ("training queries", f"{queries:,}"),
        ("candidates a query", f"{candidates:.1f}"),
        ("seed", experiment.seed),
        ("store", experiment.store),
    ]
    rows = [[escape(name), escape(value)] for name, value in facts]
    return "<h1>What the student will learn from</h1>" + html_table(["", ""], rows)
