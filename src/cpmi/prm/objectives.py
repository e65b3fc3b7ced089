"""What training minimizes: losses over the annotated steps of a batch of trajectories.

Everywhere below, B is the number of trajectories, S the most steps of any of them; scores, targets and weights are
(B, S), targets NaN where a step is not annotated or is padding. A loss comes as a *sum* over units (steps, or
trajectories for objectives that rank), and the number of units is known without the model: dividing the sums of many
small batches by the units of all of them is the same as one large batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from cpmi.errors import InputError, unknown_name

Reading = Literal["sigmoid", "identity"]


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """Which loss, and what weak labels may need.

    Attributes:
        name: one of ``OBJECTIVES``.
        hard_at: ``bce-hard``, ``pqm``: a step is right where its target is above this.
        gamma: of ``focal``: how much what is already right counts less.
        margin: zeta of ``pqm``: how far right steps are to stand above wrong ones.
        label_smoothing: e: a target t becomes t (1 - e) + e / 2.
        small_loss: about this share of the steps of each forward batch (so that here it matters how data is cut),
            those with the largest loss, is not learned from after the first epoch: a weak label that disagrees with
            all that was learned is likely a wrong one.

    Raises:
        InputError: an unknown objective, a number out of its range, an option that the objective does not have.
    """

    name: str = "bce"
    hard_at: float = 0.5
    gamma: float = 2.0
    margin: float = 4.0
    label_smoothing: float = 0.0
    small_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise unknown_name("objective", self.name, OBJECTIVES)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if not 0 <= self.small_loss < 1:
            raise InputError(
                f"the share of large losses to leave out must be at least 0 and below 1, not {self.small_loss}"
            )
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise InputError(f"gamma of focal must be a number of at least 0, not {self.gamma}")
        if not math.isfinite(self.margin):
            raise InputError(f"the margin of pqm must be a finite number, not {self.margin}")
        if not math.isfinite(self.hard_at):
            raise InputError(f"the line between right and wrong targets must be a finite number, not {self.hard_at}")
        if self.label_smoothing and (self.kind.ranks or not self.kind.probabilities):
            raise InputError(f"label smoothing is for losses on the probability of each step, not for {self.name}")
        if self.small_loss and self.kind.ranks:
            raise InputError(f"leaving out large losses is for losses on each step, not for {self.name}")

    @property
    def kind(self) -> Objective:
        return OBJECTIVES[self.name]


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss.

    Attributes:
        loss: (scores, targets, settings) -> (B, S) a loss for each step, or (B,) for each trajectory where it ranks.
        reading: how a trained score is read: ``sigmoid``: as the logit of a probability; ``identity``: as it is.
        hard: whether targets become 0 or 1 first.
        probabilities: whether targets must lie in [0, 1].
        ranks: whether it compares the steps of a trajectory, so that a unit is a trajectory.
    """

    loss: Callable[[Tensor, Tensor, ObjectiveSettings], Tensor]
    reading: Reading = "sigmoid"
    hard: bool = False
    probabilities: bool = True
    ranks: bool = False


def units(targets: Tensor, weights: Tensor, settings: ObjectiveSettings) -> Tensor:
    """() what a sum of losses is divided by: the weight of annotated steps, or the number of ranked trajectories."""
    if settings.kind.ranks:
        return _ranked(targets, weights, settings).any(dim=-1).sum().to(targets.dtype)
    return _known(targets, weights).sum()


def loss_sum(
    scores: Tensor, targets: Tensor, weights: Tensor, settings: ObjectiveSettings, *, select: bool = False
) -> Tensor:
    """() the sum of the losses of the annotated steps, or of the trajectories that can be ranked.

    Args:
        select: leave out the largest losses, if the settings say so.
    """
    scores = scores.float()
    objective = settings.kind
    if objective.ranks:
        ranked = _ranked(targets, weights, settings)
        known = torch.where(_known(targets, weights) > 0, _hardened(targets, settings), torch.nan)
        scores = torch.where(known.isnan(), 0.0, scores)
        return torch.where(ranked.any(dim=-1), objective.loss(scores, known, settings), 0.0).sum()
    weights = _known(targets, weights)
    annotated = weights > 0
    filled = _hardened(torch.where(annotated, targets, 0.0), settings)
    if settings.label_smoothing:
        filled = filled * (1 - settings.label_smoothing) + settings.label_smoothing / 2
    losses = objective.loss(torch.where(annotated, scores, 0.0), filled, settings)
    if select and settings.small_loss and annotated.any():
        bound = torch.quantile(losses.detach()[annotated], 1 - settings.small_loss)
        weights = torch.where(losses.detach() <= bound, weights, 0.0)
    return (losses * weights).sum()


def _hardened(targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    return (targets > settings.hard_at).to(targets.dtype) if settings.kind.hard else targets


def _known(targets: Tensor, weights: Tensor) -> Tensor:
    return torch.where(targets.isnan(), 0.0, weights)


def _ranked(targets: Tensor, weights: Tensor, settings: ObjectiveSettings) -> Tensor:
    """(B, S) or (B, S, S): whether there is something to rank: any annotated step for pqm, a pair for pairwise."""
    known = torch.where(_known(targets, weights) > 0, targets, torch.nan)
    if settings.name == "pqm":
        return ~known.isnan()
    return (_differences(known) > 0).flatten(start_dim=1)


# --- a loss for each step -------------------------------------------------------------------------------------------


def _bce(scores: Tensor, targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    del settings
    return binary_cross_entropy_with_logits(scores, targets, reduction="none")


def _mse_probability(scores: Tensor, targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    del settings
    return (scores.sigmoid() - targets) ** 2


def _mse(scores: Tensor, targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    del settings
    return (scores - targets) ** 2


def _focal(scores: Tensor, targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    """|t - p|^gamma BCE: the focal loss (Lin et al., 1708.02002) for soft targets as in Li et al., 2006.04388."""
    # A power below 1 has no slope at 0.
    distance = (targets - scores.sigmoid()).abs().clamp(min=1e-6)
    return distance**settings.gamma * _bce(scores, targets, settings)


# --- a loss for each trajectory -------------------------------------------------------------------------------------


def _pqm(scores: Tensor, targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    """The Q-value ranking loss of PQM (Li, Li: arXiv 2410.11287), with its margin zeta.

    With right steps c_1..c_C in order, wrong steps W, and Q_{c_0} = 0 for the question alone:

        - 1/(C+1) sum_{t=0}^{C} log [ e^{Q_{c_t}} / (sum_{q=0}^{t} e^{Q_{c_q}} + sum_{w in W} e^{Q_w + zeta}) ]
    """
    start = scores.new_zeros(len(scores), 1)
    right = torch.cat([torch.ones_like(start, dtype=torch.bool), targets == 1], dim=1)
    wrong = torch.cat([torch.zeros_like(start, dtype=torch.bool), targets == 0], dim=1)
    q = torch.cat([start, scores], dim=1)
    lowest = torch.finfo(q.dtype).min
    above = torch.logcumsumexp(torch.where(right, q, lowest), dim=1)
    below = torch.logsumexp(torch.where(wrong, q + settings.margin, lowest), dim=1, keepdim=True)
    losses = torch.logaddexp(above, below) - q
    return torch.where(right, losses, 0.0).sum(dim=1) / right.sum(dim=1)


def _differences(targets: Tensor) -> Tensor:
    """(B, S, S) by how much the target of one step is above that of another, 0 where it is not or is unknown."""
    return (targets[:, :, None] - targets[:, None, :]).nan_to_num(nan=0.0).clamp(min=0.0)


def _pairwise(scores: Tensor, targets: Tensor, settings: ObjectiveSettings) -> Tensor:
    """log(1 + e^{-(z_i - z_j)}) (Bradley-Terry) over the pairs with t_i > t_j, weighted by t_i - t_j."""
    del settings
    by = _differences(targets)
    losses = softplus(scores[:, None, :] - scores[:, :, None])
    return (by * losses).sum(dim=(1, 2)) / by.sum(dim=(1, 2)).clamp(min=torch.finfo(by.dtype).tiny)


OBJECTIVES: dict[str, Objective] = {
    "bce": Objective(_bce),
    "bce-hard": Objective(_bce, hard=True),
    "mse": Objective(_mse_probability),
    "mse-logit": Objective(_mse, reading="identity", probabilities=False),
    "focal": Objective(_focal),
    "pqm": Objective(_pqm, hard=True, ranks=True),
    "pairwise": Objective(_pairwise, ranks=True, probabilities=False),
}
