"""What training minimizes: each loss by hand, against plain Python, and what must hold of all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpmi.errors import InputError
from cpmi.prm.objectives import OBJECTIVES, ObjectiveSettings, loss_sum, units

NAN = math.nan
NAMES = sorted(OBJECTIVES)
STEPWISE = sorted(name for name, objective in OBJECTIVES.items() if not objective.ranks)
RANKING = sorted(name for name, objective in OBJECTIVES.items() if objective.ranks)
HUGE = 1e4

Step = tuple[float, float, float]
"""A score, its target (NaN: not annotated), its weight."""

Batch = list[list[Step]]
"""Trajectories of any numbers of steps."""


def tensors(batch: Batch, *, more: int = 0, padding: Step = (0.0, NAN, 0.0)) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S) scores, targets and weights, with ``more`` columns of padding than they need."""
    longest = max((len(steps) for steps in batch), default=0) + more
    padded = [[*steps, *[padding] * (longest - len(steps))] for steps in batch]
    scores, targets, weights = torch.tensor(padded, dtype=torch.float32).reshape(len(batch), longest, 3).unbind(-1)
    return scores, targets, weights


@dataclass
class Found:
    """The sum of the losses, what it is divided by, and the gradient at each step, padding included."""

    loss: float
    units: float
    gradients: list[list[float]]


def found(batch: Batch, how: ObjectiveSettings, *, select: bool = False, more: int = 0, **padding: Any) -> Found:
    scores, targets, weights = tensors(batch, more=more, **padding)
    scores.requires_grad_()
    loss = loss_sum(scores, targets, weights, how, select=select)
    assert loss.shape == ()
    (gradients,) = torch.autograd.grad(loss, scores)
    return Found(loss.item(), units(targets, weights, how).item(), gradients.tolist())


def losses(steps: list[Step], name: str, *, select: bool = False, **options: Any) -> float:
    """The sum of the losses of one trajectory."""
    return found([steps], ObjectiveSettings(name, **options), select=select).loss


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-5, abs=1e-6)


def near_all(values: Sequence[float], tolerance: float = 1e-5) -> Any:
    return pytest.approx(list(values), rel=tolerance, abs=tolerance)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def log1p_exp(z: float) -> float:
    return max(z, 0) + math.log1p(math.exp(-abs(z)))


# --- each by hand ---------------------------------------------------------------------------------------------------


def test_bce_on_soft_targets() -> None:
    """Scores 0 and log 3 are probabilities 1/2 and 3/4."""
    first = math.log(2)  # of any target
    second = -(0.2 * math.log(0.75) + 0.8 * math.log(0.25))
    steps = [(0.0, 0.7, 1.0), (math.log(3), 0.2, 2.0), (5.0, NAN, 1.0)]
    result = found([steps], ObjectiveSettings("bce"))
    assert result.loss == near(first + 2 * second)
    assert result.units == 3
    assert result.gradients[0] == near_all([0.5 - 0.7, 2 * (0.75 - 0.2), 0])


def test_hard_bce_asks_whether_a_target_is_above_the_threshold() -> None:
    """Score log 3: -log(3/4) for a right step, -log(1/4) for a wrong one; at the threshold is not above it."""
    z, right, wrong = math.log(3), -math.log(0.75), -math.log(0.25)
    steps = [(z, 0.6, 1.0), (z, 0.5, 1.0), (z, 0.1, 1.0)]
    assert losses(steps, "bce-hard") == near(right + 2 * wrong)
    assert losses(steps, "bce-hard", hard_at=0.6) == near(3 * wrong)
    assert losses(steps, "bce-hard", hard_at=0.0) == near(3 * right)


def test_squared_errors_of_the_probability() -> None:
    result = found([[(math.log(3), 0.25, 2.0), (0.0, 1.0, 1.0)]], ObjectiveSettings("mse"))
    assert result.loss == near(2 * (0.75 - 0.25) ** 2 + (0.5 - 1) ** 2)
    assert result.units == 3


def test_squared_errors_of_the_score_take_any_target() -> None:
    steps = [(1.0, -2.0, 1.0), (0.5, 3.0, 0.5)]
    assert losses(steps, "mse-logit") == near((1 + 2) ** 2 + 0.5 * (0.5 - 3) ** 2)


def test_focal_counts_less_what_is_already_right() -> None:
    """Probability 3/4 and target 1: |1 - 3/4|^gamma times -log(3/4); gamma 0 is bce."""
    z, cross_entropy = math.log(3), -math.log(0.75)
    assert losses([(z, 1.0, 1.0)], "focal") == near(0.25**2 * cross_entropy)
    assert losses([(z, 1.0, 1.0)], "focal", gamma=3.0) == near(0.25**3 * cross_entropy)
    soft = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    assert losses([(z, 0.5, 2.0)], "focal", gamma=1.0) == near(2 * 0.25 * soft)
    steps = [(z, 0.3, 1.0), (-2.0, 0.9, 1.0)]
    assert losses(steps, "focal", gamma=0.0) == near(losses(steps, "bce"))


def test_pqm_of_two_right_steps_around_a_wrong_one() -> None:
    """Right steps of 1 and 2, a wrong one of -1, zeta 4: the wrong one weighs e^{-1 + 4} everywhere."""
    wrong = math.exp(-1 + 4)
    question = -math.log(1 / (1 + wrong))
    first = -math.log(math.e / (1 + math.e + wrong))
    second = -math.log(math.e**2 / (1 + math.e + math.e**2 + wrong))
    steps = [(1.0, 0.9, 1.0), (-1.0, 0.1, 1.0), (2.0, 0.8, 1.0)]
    result = found([steps], ObjectiveSettings("pqm"))
    assert result.loss == near((question + first + second) / 3)
    assert result.units == 1


def test_pqm_with_another_margin_and_threshold() -> None:
    """Above 0.8 is right: one right step of 1; wrong ones of -1 and 2, zeta 1/2."""
    wrong = math.exp(-1 + 0.5) + math.exp(2 + 0.5)
    question, first = math.log(1 + wrong), math.log(1 + math.e + wrong) - 1
    steps = [(1.0, 0.9, 1.0), (-1.0, 0.1, 1.0), (2.0, 0.8, 1.0)]
    assert losses(steps, "pqm", margin=0.5, hard_at=0.8) == near((question + first) / 2)


def test_pqm_of_one_side_only() -> None:
    """Without wrong steps only order is learned; without right ones the question alone stands above the wrong."""
    assert losses([(1.0, 1.0, 1.0)], "pqm") == near((0 + math.log(1 + math.e) - 1) / 2)
    assert losses([(1.0, 0.0, 1.0)], "pqm") == near(math.log(1 + math.exp(1 + 4)))


def test_pairwise_weighs_a_pair_by_the_difference_of_its_targets() -> None:
    """Targets 0.9 0.1 0.5: the pairs are (0, 1) by 0.8, (0, 2) by 0.4 and (2, 1) by 0.4."""
    steps = [(1.0, 0.9, 1.0), (2.0, 0.1, 1.0), (0.0, 0.5, 1.0)]
    pairs = 0.8 * math.log(1 + math.exp(-(1 - 2))) + 0.4 * math.log(1 + math.exp(-1)) + 0.4 * math.log(1 + math.exp(2))
    result = found([steps], ObjectiveSettings("pairwise"))
    assert result.loss == near(pairs / 1.6)
    assert result.units == 1


def test_pairwise_takes_targets_that_are_no_probabilities() -> None:
    steps = [(1.0, -5.0, 1.0), (0.5, 3.0, 1.0)]
    assert losses(steps, "pairwise") == near(math.log(1 + math.exp(0.5)))


def test_label_smoothing_moves_targets_towards_a_half() -> None:
    """e = 0.2: 1 becomes 0.9, 0 becomes 0.1, 0.7 becomes 0.66."""
    steps, smooth = [(2.0, 1.0, 1.0), (-1.0, 0.0, 1.0), (0.5, 0.7, 1.0)], [0.9, 0.1, 0.66]
    moved = [(z, target, w) for (z, _, w), target in zip(steps, smooth, strict=True)]
    for name in ("bce", "mse", "focal"):
        assert losses(steps, name, label_smoothing=0.2) == near(losses(moved, name))
    hardened = [(2.0, 0.9, 1.0), (-1.0, 0.1, 1.0), (0.5, 0.9, 1.0)]
    assert losses(steps, "bce-hard", label_smoothing=0.2) == near(losses(hardened, "bce"))


@pytest.mark.parametrize(("share", "left"), [(0.0, 0 + 1 + 4 + 9), (0.25, 0 + 1 + 4), (0.5, 0 + 1), (0.75, 0)])
def test_the_largest_losses_are_left_out_when_asked(share: float, left: float) -> None:
    """Losses 9 0 4 1, over two trajectories: a quarter is the step with 9, wherever it stands."""
    batch: Batch = [[(3.0, 0.0, 1.0), (0.0, 0.0, 1.0), (100.0, NAN, 1.0)], [(2.0, 0.0, 1.0), (1.0, 0.0, 1.0)]]
    how = ObjectiveSettings("mse-logit", small_loss=share)
    assert found(batch, how).loss == near(14)
    assert found(batch, how, select=True).loss == near(left)
    gradients = [g for steps in found(batch, how, select=True).gradients for g in steps]
    assert sum(g != 0 for g in gradients) == round(4 * (1 - share)) - 1  # the loss of 0 has no gradient


def test_what_is_left_out_is_chosen_by_loss_and_not_by_weight() -> None:
    """Losses 4 and 1 with weights 1 and 10: the 4 goes; a step of weight 0 is not among those that are compared."""
    steps = [(2.0, 0.0, 1.0), (1.0, 0.0, 10.0), (50.0, 0.0, 0.0)]
    assert losses(steps, "mse-logit", small_loss=0.5, select=True) == near(10)


def test_steps_that_count_nothing_are_not_ranked() -> None:
    steps = [(1.0, 1.0, 1.0), (0.0, 0.0, 1.0)]
    off = [(3.0, 0.0, 0.0), (-3.0, 1.0, 0.0)]
    for name in RANKING:
        how = ObjectiveSettings(name)
        assert found([[off[0], *steps, off[1]]], how).loss == near(losses(steps, name))
        assert found([off], how).units == 0
        assert found([off], how).loss == 0


def test_units_are_the_trajectories_that_can_be_ranked() -> None:
    one, alike, none = [(0.0, 0.5, 1.0)], [(0.0, 0.5, 1.0), (1.0, 0.5, 1.0)], [(0.0, NAN, 1.0), (1.0, 1.0, 0.0)]
    two = [(0.0, 0.5, 0.5), (1.0, 0.6, 2.0)]
    for name, wanted in {"pqm": 3, "pairwise": 1}.items():
        assert found([one, alike, none, two], ObjectiveSettings(name)).units == wanted


@pytest.mark.parametrize("name", NAMES)
def test_nothing_annotated_is_no_loss_and_no_units(name: str) -> None:
    empty: list[Batch] = [[[(1.0, NAN, 1.0)] * 3, [(2.0, NAN, 0.0)]], [[], []], []]
    for batch in empty:
        result = found(batch, ObjectiveSettings(name, small_loss=0.0 if name in RANKING else 0.5), select=True)
        assert (result.loss, result.units) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_half_precision_are_read_in_single(name: str) -> None:
    """1.5 and -0.25 are the same in both, so that the losses must be, to the last digit."""
    scores, targets, weights = torch.tensor([[1.5, -0.25]]), torch.tensor([[0.3, 0.7]]), torch.ones(1, 2)
    half, single = (
        loss_sum(each, targets, weights, ObjectiveSettings(name)) for each in (scores.to(torch.bfloat16), scores)
    )
    assert half.dtype == torch.float32
    assert half.item() == single.item()


@pytest.mark.parametrize("name", STEPWISE)
@pytest.mark.parametrize("score", [NAN, math.inf])
def test_what_a_step_that_is_not_learned_from_scores_is_never_read(name: str, score: float) -> None:
    steps = [(1.0, 0.3, 1.0), (score, NAN, 1.0), (score, 1.0, 0.0)]
    result = found([steps], ObjectiveSettings(name, small_loss=0.5), select=True)
    assert result.loss == near(losses(steps[:1], name))
    assert result.gradients[0][0] != 0
    assert result.gradients[0][1:] == [0.0, 0.0]


# --- against plain Python -------------------------------------------------------------------------------------------

Plain = Callable[[list[float], list[float], ObjectiveSettings], float]


def plain_bce(z: float, t: float) -> float:
    return t * log1p_exp(-z) + (1 - t) * log1p_exp(z)


def plain_pqm(scores: list[float], targets: list[float], how: ObjectiveSettings) -> float:
    right = [0.0, *(z for z, t in zip(scores, targets, strict=True) if t > how.hard_at)]
    wrong = sum(math.exp(z + how.margin) for z, t in zip(scores, targets, strict=True) if t <= how.hard_at)
    terms = (math.log(math.exp(q) / (sum(math.exp(c) for c in right[: t + 1]) + wrong)) for t, q in enumerate(right))
    return -sum(terms) / len(right)


def plain_pairwise(scores: list[float], targets: list[float], how: ObjectiveSettings) -> float:
    both = list(zip(scores, targets, strict=True))
    pairs = [(t - u, z - y) for z, t in both for y, u in both if t > u]
    return sum(by * log1p_exp(-apart) for by, apart in pairs) / sum(by for by, _ in pairs)


PLAIN: dict[str, Plain] = {
    "bce": lambda z, t, _: plain_bce(z[0], t[0]),
    "bce-hard": lambda z, t, how: plain_bce(z[0], float(t[0] > how.hard_at)),
    "mse": lambda z, t, _: (sigmoid(z[0]) - t[0]) ** 2,
    "mse-logit": lambda z, t, _: (z[0] - t[0]) ** 2,
    "focal": lambda z, t, how: abs(t[0] - sigmoid(z[0])) ** how.gamma * plain_bce(z[0], t[0]),
    "pqm": plain_pqm,
    "pairwise": plain_pairwise,
}
"""The loss of the known steps of a trajectory where it ranks, else of one step."""


def plain(batch: Batch, how: ObjectiveSettings) -> tuple[float, float]:
    """The sum of the losses and its units, from the definitions."""
    total, count = 0.0, 0.0
    for steps in batch:
        known = [(z, t, w) for z, t, w in steps if not math.isnan(t) and w > 0]
        if how.kind.ranks:
            scores, targets = [z for z, _, _ in known], [t for _, t, _ in known]
            if (len(set(targets)) > 1) if how.name == "pairwise" else known:
                total, count = total + PLAIN[how.name](scores, targets, how), count + 1
        else:
            total += sum(w * PLAIN[how.name]([z], [t], how) for z, t, w in known)
            count += sum(w for _, _, w in known)
    return total, count


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32).map(lambda x: round(x, 2))


a_target = st.sampled_from([NAN, 0.0, 0.25, 0.5, 0.75, 1.0]) | numbers(0, 1)
a_weight = st.sampled_from([0.0, 0.5, 1.0, 3.0])
a_step = st.tuples(numbers(-6, 6), a_target, a_weight)
batches = st.lists(st.lists(a_step, max_size=6), min_size=1, max_size=6)
hows = st.sampled_from([ObjectiveSettings(name) for name in NAMES])
checked = settings(deadline=None, max_examples=150)


def test_every_objective_is_checked() -> None:
    assert set(PLAIN) == set(OBJECTIVES)


@checked
@given(batches, hows)
def test_a_batch_is_what_the_definition_says(batch: Batch, how: ObjectiveSettings) -> None:
    result = found(batch, how)
    loss, count = plain(batch, how)
    assert result.loss == pytest.approx(loss, rel=1e-4, abs=1e-4)
    assert result.units == pytest.approx(count)


@checked
@given(batches, hows)
def test_gradients_are_those_of_the_definition(batch: Batch, how: ObjectiveSettings) -> None:
    """Central differences of plain Python in double precision."""
    gradients, width = found(batch, how).gradients, 1e-5

    def moved(b: int, s: int, by: float) -> float:
        changed = [list(steps) for steps in batch]
        z, t, w = changed[b][s]
        changed[b][s] = (z + by, t, w)
        return plain(changed, how)[0]

    for b, steps in enumerate(batch):
        wanted = [(moved(b, s, width) - moved(b, s, -width)) / (2 * width) for s in range(len(steps))]
        assert gradients[b][: len(steps)] == near_all(wanted, 1e-3)


# --- what must hold -------------------------------------------------------------------------------------------------


@checked
@given(batches, hows, st.data())
def test_many_small_batches_are_one_large_one(batch: Batch, how: ObjectiveSettings, data: st.DataObject) -> None:
    """Each part is padded for itself; sums of losses and of units, and so gradients, add up."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(batch)))) | {0, len(batch)})
    parts = [found(batch[i:j], how) for i, j in itertools.pairwise(cuts)]
    whole = found(batch, how)
    count = sum(part.units for part in parts)
    assert count == pytest.approx(whole.units)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-5, abs=1e-5)
    if whole.units:
        assert sum(part.loss for part in parts) / count == pytest.approx(whole.loss / whole.units, rel=1e-5, abs=1e-5)
    pieces = [row for part in parts for row in part.gradients]
    for steps, alone, among in zip(batch, pieces, whole.gradients, strict=True):
        assert alone[: len(steps)] == near_all(among[: len(steps)])


@checked
@given(batches, hows, st.integers(1, 5), st.sampled_from([-HUGE, 3.0, HUGE]), st.sampled_from([0.0, 1.0]))
def test_padding_changes_nothing(batch: Batch, how: ObjectiveSettings, more: int, score: float, weight: float) -> None:
    narrow, wide = found(batch, how), found(batch, how, more=more, padding=(score, NAN, weight))
    assert wide.units == narrow.units
    assert wide.loss == pytest.approx(narrow.loss, rel=1e-5, abs=1e-5)
    for steps, few, many in zip(batch, narrow.gradients, wide.gradients, strict=True):
        assert many[: len(steps)] == near_all(few[: len(steps)])
        assert many[len(steps) :] == [0.0] * (len(many) - len(steps))


@checked
@given(batches, hows, st.data())
def test_the_order_of_trajectories_does_not_matter(batch: Batch, how: ObjectiveSettings, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(batch))))
    one, other = found(batch, how), found([batch[i] for i in order], how)
    assert other.units == one.units
    assert other.loss == pytest.approx(one.loss, rel=1e-5, abs=1e-5)
    for i, row in zip(order, other.gradients, strict=True):
        assert row == near_all(one.gradients[i])


@checked
@given(batches, hows)
def test_a_step_that_is_not_learned_from_has_no_gradient(batch: Batch, how: ObjectiveSettings) -> None:
    for steps, row in zip(batch, found(batch, how).gradients, strict=True):
        unknown = [g for (_, t, w), g in zip(steps, row, strict=False) if math.isnan(t) or w == 0]
        assert unknown == [0.0] * len(unknown)


@checked
@given(batches, st.sampled_from(STEPWISE), st.floats(0, 0.95))
def test_leaving_out_large_losses_leaves_the_others_as_they_are(batch: Batch, name: str, share: float) -> None:
    how = ObjectiveSettings(name, small_loss=share)
    every, some = found(batch, how), found(batch, how, select=True)
    assert some.loss <= every.loss + 1e-5
    for before, after in zip(every.gradients, some.gradients, strict=True):
        assert all(b in (0.0, a) for a, b in zip(before, after, strict=True))


huge_steps = st.tuples(st.sampled_from([-HUGE, -1.0, 0.0, 1.0, HUGE]), st.sampled_from([NAN, 0.0, 0.5, 1.0]), a_weight)


@checked
@given(st.lists(st.lists(huge_steps, max_size=5), min_size=1, max_size=4), hows)
@example([[(HUGE, 1.0, 1.0), (-HUGE, 1.0, 1.0)]], ObjectiveSettings("pqm"))  # no wrong step
@example([[(HUGE, 0.0, 1.0), (-HUGE, 0.0, 1.0)]], ObjectiveSettings("pqm"))  # no right step
@example([[(HUGE, 0.5, 1.0), (-HUGE, 0.5, 1.0)]], ObjectiveSettings("pairwise"))  # no pair
@example([[(HUGE, NAN, 1.0)], [(HUGE, 1.0, 1.0), (-HUGE, 0.0, 1.0)]], ObjectiveSettings("pairwise"))
def test_losses_and_gradients_are_finite_wherever_scores_are(batch: Batch, how: ObjectiveSettings) -> None:
    result = found(batch, how)
    assert math.isfinite(result.loss)
    assert result.loss >= 0
    assert all(math.isfinite(g) for row in result.gradients for g in row)


@pytest.mark.parametrize(
    ("name", "steps", "wanted"),
    [
        ("bce", [(HUGE, 0.0, 1.0), (-HUGE, 0.0, 1.0)], HUGE),
        ("bce-hard", [(-HUGE, 1.0, 1.0)], HUGE),
        ("mse", [(HUGE, 0.0, 1.0), (-HUGE, 0.0, 1.0)], 1),
        ("mse-logit", [(HUGE, 0.0, 1.0)], HUGE**2),
        ("focal", [(-HUGE, 1.0, 1.0), (HUGE, 1.0, 1.0)], HUGE),
        ("pairwise", [(-HUGE, 1.0, 1.0), (HUGE, 0.0, 1.0)], 2 * HUGE),
        ("pqm", [(-HUGE, 1.0, 1.0), (HUGE, 0.0, 1.0)], ((HUGE + 4) + (2 * HUGE + 4)) / 2),
    ],
)
def test_huge_scores_have_the_loss_of_the_formula(name: str, steps: list[Step], wanted: float) -> None:
    assert losses(steps, name) == pytest.approx(wanted, rel=1e-6)


# --- how scores are read, and settings ------------------------------------------------------------------------------


def test_how_a_trained_score_is_read() -> None:
    """``mse-logit`` learns the number itself; all others the logit of a probability."""
    readings = {name: objective.reading for name, objective in OBJECTIVES.items()}
    assert readings.pop("mse-logit") == "identity"
    assert set(readings.values()) == {"sigmoid"}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_suit_every_objective(name: str) -> None:
    assert ObjectiveSettings(name).kind is OBJECTIVES[name]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "bec"}, "unknown objective 'bec'; did you mean 'bce'? (known: " + ", ".join(OBJECTIVES) + ")"),
        ({"label_smoothing": 1.0}, "label smoothing must be at least 0 and below 1, not 1.0"),
        ({"label_smoothing": -0.1}, "label smoothing must be at least 0 and below 1, not -0.1"),
        ({"label_smoothing": NAN}, "label smoothing must be at least 0 and below 1, not nan"),
        ({"small_loss": 1.0}, "the share of large losses to leave out must be at least 0 and below 1, not 1.0"),
        ({"small_loss": -0.5}, "the share of large losses to leave out must be at least 0 and below 1, not -0.5"),
        ({"small_loss": NAN}, "the share of large losses to leave out must be at least 0 and below 1, not nan"),
        ({"name": "focal", "gamma": -1.0}, "gamma of focal must be a number of at least 0, not -1.0"),
        ({"name": "focal", "gamma": math.inf}, "gamma of focal must be a number of at least 0, not inf"),
        ({"name": "pqm", "margin": math.inf}, "the margin of pqm must be a finite number, not inf"),
        ({"name": "pqm", "margin": NAN}, "the margin of pqm must be a finite number, not nan"),
        (
            {"name": "mse-logit", "label_smoothing": 0.1},
            "label smoothing is for losses on the probability of each step, not for mse-logit",
        ),
        (
            {"name": "pairwise", "label_smoothing": 0.1},
            "label smoothing is for losses on the probability of each step, not for pairwise",
        ),
        (
            {"name": "pqm", "label_smoothing": 0.1},
            "label smoothing is for losses on the probability of each step, not for pqm",
        ),
        ({"hard_at": NAN}, "the line between right and wrong targets must be a finite number, not nan"),
        (
            {"name": "pqm", "small_loss": 0.1},
            "leaving out large losses is for losses on each step, not for pqm",
        ),
        (
            {"name": "pairwise", "small_loss": 0.1},
            "leaving out large losses is for losses on each step, not for pairwise",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as raised:
        ObjectiveSettings(**options)
    assert str(raised.value) == says


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0])
def test_focal_has_a_slope_where_a_score_is_right_already(gamma: float) -> None:
    """The slope of a power below 1 is infinite at 0; there the loss has a floor instead."""
    for score, target in ((0.0, 0.5), (1e4, 1.0), (-1e4, 0.0)):
        scores = torch.tensor([[score]], requires_grad=True)
        loss = loss_sum(scores, torch.tensor([[target]]), torch.ones(1, 1), ObjectiveSettings("focal", gamma=gamma))
        (slope,) = torch.autograd.grad(loss, scores)
        assert torch.isfinite(slope).all()


def test_pairwise_does_not_look_at_scores_of_steps_that_are_not_annotated() -> None:
    scores = torch.tensor([[1.0, math.inf, -1.0]], requires_grad=True)
    targets = torch.tensor([[1.0, NAN, 0.0]])
    loss = loss_sum(scores, targets, torch.ones(1, 3), ObjectiveSettings("pairwise"))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope[0, 1] == 0
    assert torch.isfinite(slope).all()
