"""From a reward per step to one number per solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from cpmi.errors import InputError

Aggregation = Literal["last", "min", "prod", "mean", "sum"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


def aggregate(rewards: Sequence[float], how: Aggregation) -> float:
    """One number for a solution, as in huggingface/search-and-learn (``last``, ``min``, ``prod``) and beyond.

    Args:
        rewards: of its steps; at least one.
        how: ``last``: that of the last step; ``min``: of the worst; ``prod``: the product, of probabilities; ``mean``;
            ``sum``.

    Raises:
        InputError: a product of rewards that are no probabilities.
    """
    match how:
        case "last":
            return rewards[-1]
        case "min":
            return min(rewards)
        case "prod":
            if min(rewards) < 0 or max(rewards) > 1:
                raise InputError("the product of step rewards needs rewards in [0, 1]; use another aggregation")
            return math.prod(rewards)
        case "mean":
            return math.fsum(rewards) / len(rewards)
        case "sum":
            return math.fsum(rewards)
