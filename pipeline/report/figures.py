"""The report's pictures as inline SVG: ADAM's Figures 1 and 3b for one's own data, and the histogram of C(q)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.tables.schemas import CandidateKind

_BINS = 60
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = {
    CandidateKind.POSITIVE: "#009E73",
    CandidateKind.NEGATIVE: "#0072B2",
    CandidateKind.REINFORCED_NEGATIVE: "#E69F00",
    CandidateKind.NOISY_POSITIVE: "#CC79A7",
    CandidateKind.TOP: "#009E73",
    CandidateKind.NEAR: "#0072B2",
    CandidateKind.FAR: "#56B4E9",
}
MIXED = "#D55E00"

Series = tuple[str, NDArray[np.float32], str]  # name, teacher logits, colour


def score_distributions(series: Sequence[Series], *, span: tuple[float, float] | None = None) -> str:
    """SVG: the density of the teacher's logits of each series. `span`: the axis's lowest and highest logit, by default theirs."""
    figure, axes = _canvas()
    everything = np.concatenate([logits for _, logits, _ in series])
    lowest, highest = span or (everything.min(), everything.max())
    edges = np.linspace(lowest - 0.5, highest + 0.5, _BINS + 1).tolist()
    for name, logits, colour in series:
        if len(logits):
            axes.hist(logits, edges, density=True, histtype="step", linewidth=1.8, color=colour, label=f"{name} ({len(logits):,})")
    axes.set_xlabel("teacher logit")
    axes.set_ylabel("density")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def confidence_histogram(confidences: NDArray[np.float32]) -> str:
    """SVG: how many queries have which C(q)."""
    figure, axes = _canvas()
    axes.hist(confidences, _BINS, color="#56B4E9")
    axes.set_xlabel("C(q), nats: the teacher's log-probability of p+ among {p+} and P-")
    axes.set_ylabel("queries")
    return _svg(figure)


def _canvas() -> tuple[Figure, Axes]:
    # No pyplot: it keeps every figure alive and wants a display.
    figure = Figure(figsize=(5.6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element: the same bytes each time, text as text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
