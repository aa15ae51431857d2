"""The methods of the study: of which data each learns, in which trainings, and what is no setting of the common file.

All start from the same student, visit as many questions (steps times batch) and have the same tries, but for one that has the peer's time.
A method of several trainings divides the steps; the last one has what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DARK = {"train.recipe": "adam", "train.objective.include_positive": "true"}


@dataclass(frozen=True)
class Training:
    """One call of `train run`."""

    data: str  # phase of study.yaml
    settings: dict[str, str] = field(default_factory=dict)
    share: float = 1.0  # of the method's steps
    rate: float = 1.0  # factor on the rate that is tried
    mined_by_start: bool = True  # else by the student that it starts from


@dataclass(frozen=True)
class Method:
    """A row of the table. Without trainings it is the start; `peer` ones are run by peer.py."""

    title: str
    trainings: tuple[Training, ...] = ()
    peer: bool = False
    rate_of: str = ""  # the method whose rate it keeps, and that has its tries
    ablation: bool = False  # shows what a part of another method is for, and is no recipe of its own
    longer: int = 1  # times the steps of the others: a row for the comparison with the peer, whose time it has


def _one(data: str = "mined", **settings: str) -> tuple[Training, ...]:
    return (Training(data, {f"train.{key.replace('__', '.')}": value for key, value in settings.items()}),)


def _ablation(title: str, without: str) -> Method:
    return Method(title, (Training("mined", {**DARK, "train.objective.without": without}),), rate_of="adam_positive", ablation=True)


# Insertion order is the order of work and of the table.
METHODS: dict[str, Method] = {
    "start": Method("start"),
    "hard_kd": Method("Hard KD", _one(recipe="hard_kd")),
    "adam_positive": Method("ADAM, p+ in P~", (Training("mined", DARK),)),
    "adam": Method("ADAM, by the letter", _one(recipe="adam")),
    "margin_mse": Method("MarginMSE", _one(recipe="margin_mse")),
    "margin_mse_zscore": Method("MarginMSE, z-scores", _one(recipe="margin_mse", objective__score_transform="zscore")),
    "listwise": Method("listwise", _one("spread", recipe="listwise", objective__teacher_temperature="2")),
    "cl_drd": Method(
        "CL-DRD",
        # epochs 4, 2, 2 and peak rates 7e-6, 3e-6, 3e-6 of the paper
        tuple(
            Training("curriculum", {"train.recipe": "cl_drd", "train.draw": str(draw)}, share, rate)
            for draw, (share, rate) in enumerate([(0.5, 1.0), (0.25, 3 / 7), (0.25, 3 / 7)])
        ),
    ),
    "prod": Method(
        "PROD (T3, D)",
        (
            Training("mined", {"train.recipe": "prod"}, 2 / 3),
            Training("selected", {"train.recipe": "prod"}, 1 / 3, mined_by_start=False),
        ),
    ),
    "rand_kd": Method("Rand KD", _one("random", recipe="rand_kd")),
    # ADAM's Table 3; its last row, without L_sup too, is Hard KD
    "without_reinforced": _ablation("ADAM with p+, w/o N_rein", "reinforced"),
    "without_noisy": _ablation("ADAM with p+, w/o N_mask", "noisy"),
    "without_dark": _ablation("ADAM with p+, w/o both", "reinforced,noisy"),
    "without_adaptive": _ablation("ADAM with p+, w/o both and ADA", "reinforced,noisy,adaptive"),
    # About as many as fit in the processor time of a run of ADAM, without the bill of dark examples (estimated; the page has the seconds).
    "hard_kd_longer": Method("Hard KD, 3 times the steps", _one(recipe="hard_kd", epochs="6"), rate_of="hard_kd", longer=3),
    "sentence-transformers": Method("sentence-transformers", peer=True),
}


def steps_of(method: Method, steps: int) -> list[int]:
    """Of each training, at least one; together `steps`, or a multiple of it."""
    steps *= method.longer
    counts = [max(1, round(steps * one.share)) for one in method.trainings]
    counts[-1] = steps - sum(counts[:-1])
    if counts[-1] < 1:
        raise ValueError(f"{steps} steps are too few for {len(counts)} trainings of a method")
    return counts
