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
_LABELS = {
    CandidateKind.POSITIVE: "positives",
    CandidateKind.NEGATIVE: "hard negatives",
    CandidateKind.REINFORCED_NEGATIVE: "reinforced negatives",
    CandidateKind.NOISY_POSITIVE: "noisy positives",
    CandidateKind.TOP: "group 1",
    CandidateKind.NEAR: "group 2",
    CandidateKind.FAR: "group 3",
}

Logits = dict[CandidateKind, NDArray[np.float32]]


def score_distributions(logits: Logits, kinds: Sequence[CandidateKind], *, span: tuple[float, float] | None = None) -> str:
    """SVG: the density of the teacher's logits for each of the kinds, on the axis of all of them, or of a lowest and highest given."""
    figure, axes = _canvas()
    everything = np.concatenate(list(logits.values()))
    lowest, highest = span or (everything.min(), everything.max())
    edges = np.linspace(lowest - 0.5, highest + 0.5, _BINS + 1).tolist()
    for kind in kinds:
        if len(logits[kind]):
            label = f"{_LABELS[kind]} ({len(logits[kind]):,})"
            axes.hist(logits[kind], edges, density=True, histtype="step", linewidth=1.8, color=COLOURS[kind], label=label)
    axes.set_xlabel("teacher logit")
    axes.set_ylabel("density")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def smoothed_distribution(logits: Logits) -> str:
    """SVG in the manner of Figure 3b: positives, negatives, and negatives together with all dark examples."""
    figure, axes = _canvas()
    dark = [logits[CandidateKind.NEGATIVE], logits[CandidateKind.REINFORCED_NEGATIVE], logits[CandidateKind.NOISY_POSITIVE]]
    series = [
        ("positives", logits[CandidateKind.POSITIVE], COLOURS[CandidateKind.POSITIVE]),
        ("hard negatives", logits[CandidateKind.NEGATIVE], COLOURS[CandidateKind.NEGATIVE]),
        ("hard negatives and dark examples", np.concatenate(dark), "#D55E00"),
    ]
    everything = np.concatenate([values for _, values, _ in series])
    edges = np.linspace(everything.min() - 0.5, everything.max() + 0.5, _BINS + 1).tolist()
    for label, values, colour in series:
        if len(values):
            axes.hist(values, edges, density=True, histtype="step", linewidth=1.8, color=colour, label=f"{label} ({len(values):,})")
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
