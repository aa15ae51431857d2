"""What settings must know of a loss or a sampler before it runs.

A plug-in says it by attributes of these names. The built-ins live in packages that this one cannot import: theirs are listed here.
"""

from __future__ import annotations

from types import FunctionType
from typing import Literal, TypeVar

from pydantic import ValidationError, model_validator

from data.config.fields import Section
from data.config.registry import import_object
from data.errors import UserError


class LossTraits(Section):
    """Of a loss over the student's scores of a query's list."""

    learns_from: Literal["logits", "labels"] = "logits"  # the teacher's logits, or the labels of the shards
    averages_over: Literal["queries", "pairs"] = "queries"  # what a batch's sum is divided by; a pair has different labels
    needs_positive: bool = False  # goes by p+, the first of a list
    takes_unscored: bool = False  # a logit of minus infinity, which in-batch passages have, is probability 0
    uses_temperature: bool = True
    two_temperatures: bool = False  # is called with `teacher_temperature`, too; `temperature` is then the student's

    @model_validator(mode="after")
    def _pairs_of_labels(self) -> LossTraits:
        if self.averages_over == "pairs" and self.learns_from != "labels":
            raise ValueError("averages_over=pairs, which are of labels, needs learns_from=labels")
        return self


class SamplerTraits(Section):
    """Of an order of preference over a query's passages."""

    needs: frozenset[Literal["student_scores", "teacher_logits"]] = frozenset()
    draws_differ: bool = True  # goes by the hash, which is another one in each draw


LOSSES = {
    "kl": LossTraits(takes_unscored=True),
    "listwise": LossTraits(takes_unscored=True, two_temperatures=True),
    "margin_mse": LossTraits(needs_positive=True, uses_temperature=False),
    "curriculum": LossTraits(learns_from="labels", averages_over="pairs", uses_temperature=False),
}
SAMPLERS = {
    "uniform": SamplerTraits(),
    "top": SamplerTraits(draws_differ=False),
    "simans": SamplerTraits(needs=frozenset({"student_scores"})),
    "stratified": SamplerTraits(needs=frozenset({"teacher_logits"}), draws_differ=False),
    "score_strata": SamplerTraits(needs=frozenset({"teacher_logits"}), draws_differ=False),
}

Traits = TypeVar("Traits", bound=Section)


def traits_of(name: str, built_in: dict[str, Traits], *, setting: str) -> Traits:
    """The traits of a built-in or of a plug-in, which is imported for that.

    Raises UserError where it cannot be imported, or has an attribute of another value or (a function) of another name.
    """
    if name in built_in:
        return built_in[name]
    kind = type(next(iter(built_in.values())))
    plugin = import_object(name, setting=setting)
    known = list(kind.model_fields)
    own = vars(plugin) if isinstance(plugin, FunctionType) else {}
    if unknown := [attribute for attribute in own if attribute not in (*known, "version") and not attribute.startswith("_")]:
        raise UserError(f"{setting}={name}: it has an attribute {unknown[0]}; known are version, {', '.join(known)}")
    try:
        return kind.model_validate({attribute: getattr(plugin, attribute) for attribute in known if hasattr(plugin, attribute)})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{setting}={name}, its attribute {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
