"""Likelihoods against plain sequences, the identities of their sums, and what sharing a question must not change."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpmi import StepRewards, Template, Trajectory, read_rewards, write_records
from cpmi.errors import InputError
from cpmi.labelers.likelihood import Likelihood, LikelihoodSettings
from cpmi.models.hf import HFModel
from cpmi.models.toy import ToyModel
from cpmi.prompts import INSTRUCTIONS, plan_steps
from cpmi.protocols import ScoredTree, TokenTree, Truncation
from cpmi.records import Cost
from tiny_models import CONTEXT, byte_tokenizer, metaspace_tokenizer, tiny_model

SUM = LikelihoodSettings("sum")
SHORT = LikelihoodSettings("sum", Template("{question}?", "{answer}"))
ONE = Trajectory("q", ("a b", "c"), id="one")
SAME = [
    ONE,
    replace(ONE, id="begins alike", steps=("a b", "d")),
    replace(ONE, id="goes on", steps=("a b", "c", "e f")),
    replace(ONE, id="again"),
    replace(ONE, id="other question", question="r"),
    replace(ONE, id="not alike", steps=("x",)),
]


def label(
    trajectories: Sequence[Trajectory], settings: LikelihoodSettings = SUM, scorer: Any = None
) -> list[StepRewards]:
    records = Likelihood(scorer or ToyModel(), settings).rewards(trajectories)
    assert [record.trajectory_id for record in records] == [trajectory.id for trajectory in trajectories]
    return records


class Counting(ToyModel):
    """Keeps the trees it was given; those with more nodes than ``most`` fail."""

    def __init__(self, most: int = 10**9) -> None:
        self.trees: list[TokenTree] = []
        self._most = most

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        self.trees += trees
        scored = super().logprobs(trees, truncation)
        return [
            ScoredTree(None, each.cost, "too long") if len(tree) > self._most else each
            for tree, each in zip(trees, scored, strict=True)
        ]


# --- values -----------------------------------------------------------------------------------------------------------


def test_worked_by_hand() -> None:
    """The toy model gives a byte seen k times in n bytes (1 + k) / (256 + n); "q?" comes first, then "a", 2 breaks."""
    (record,) = label([Trajectory("q", ("a", "a"), id="x")], SHORT)
    first = math.log(1 / 258) + math.log(1 / 259) + math.log(2 / 260)
    second = math.log(2 / 261) + math.log(3 / 262) + math.log(4 / 263)
    np.testing.assert_allclose(record.rewards, [first, second], rtol=1e-12)
    assert record.source == "likelihood"
    assert record.terms == {"sum": record.rewards, "tokens": (3.0, 3.0)}
    (mean,) = label([Trajectory("q", ("a", "a"), id="x")], replace(SHORT, normalization="mean"))
    np.testing.assert_allclose(mean.rewards, [first / 3, second / 3], rtol=1e-12)
    assert mean.terms == record.terms


STEPS = st.lists(st.text("ab .é\n", max_size=6).map(lambda text: text + "x"), min_size=1, max_size=4).map(tuple)


def plain(trajectory: Trajectory) -> list[float]:
    """By the toy model's definition, byte by byte."""
    seen = list(INSTRUCTIONS[0].opening(trajectory.question).encode())
    sums = []
    for step in trajectory.steps:
        total = 0.0
        for byte in (step.strip() + "\n\n").encode():
            total += math.log((1 + seen.count(byte)) / (256 + len(seen)))
            seen.append(byte)
        sums.append(total)
    return sums


@given(solutions=st.lists(st.tuples(st.sampled_from("qr"), STEPS), max_size=5))
def test_any_batch_equals_plain_sequences_and_its_cost_adds_up(solutions: list[tuple[str, tuple[str, ...]]]) -> None:
    batch = [Trajectory(question, steps, id=str(i)) for i, (question, steps) in enumerate(solutions)]
    scorer = Counting()
    records = label(batch, scorer=scorer)
    for trajectory, record in zip(batch, records, strict=True):
        np.testing.assert_allclose(record.rewards, plain(trajectory), rtol=1e-12)
    for record, mean in zip(records, label(batch, LikelihoodSettings()), strict=True):
        sums, tokens = np.array(mean.terms["sum"]), np.array(mean.terms["tokens"])
        assert mean.rewards == tuple(sums / tokens)
        assert tuple(sums) == record.rewards
    assert len(scorer.trees) == len({question for question, _ in solutions})
    assert sum(record.cost.tokens_scored for record in records) == sum(map(len, scorer.trees))


@functools.cache
def tiny(kind: str) -> Any:
    return tiny_model(kind)


@torch.inference_mode()
def oracle(model: HFModel, trajectory: Trajectory) -> list[float]:
    """One ordinary forward pass over the whole solution."""
    ids = [*model.prefix, *model.encode(INSTRUCTIONS[0].opening(trajectory.question), first=True)]
    edges = [len(ids)]
    for step in trajectory.steps:
        ids += model.encode(step + "\n\n")
        edges.append(len(ids))
    logprobs = model._model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    at = [float("nan"), *(logprobs[i - 1, ids[i]].item() for i in range(1, len(ids)))]
    return [sum(at[a:b]) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize("tokenizer", [byte_tokenizer, metaspace_tokenizer])
def test_a_model_equals_plain_sequences(kind: str, tokenizer: Any) -> None:
    model = HFModel(tiny(kind), tokenizer(), name=kind)
    records = label(SAME, scorer=model)
    for trajectory, record in zip(SAME, records, strict=True):
        np.testing.assert_allclose(record.rewards, oracle(model, trajectory), rtol=0, atol=1e-3)


@pytest.mark.real_model
def test_the_real_model_equals_plain_sequences_and_prefers_sense(smollm2: HFModel) -> None:
    question = "Tom has 3 apples and buys 2 more. How many has he?"
    sense = Trajectory(question, ("Tom has 3 + 2 = 5 apples.", "The answer is 5."), id="sense")
    nonsense = Trajectory(question, ("Tom has 3 + 2 = 5 apples.", "Purple xylophones 7 of."), id="nonsense")
    records = label([sense, nonsense], scorer=smollm2)
    for trajectory, record in zip((sense, nonsense), records, strict=True):
        np.testing.assert_allclose(record.rewards, oracle(smollm2, trajectory), rtol=0, atol=1e-3)
    assert records[0].rewards[0] == pytest.approx(records[1].rewards[0], abs=1e-6)
    assert records[0].rewards[1] > records[1].rewards[1]


# --- sharing ----------------------------------------------------------------------------------------------------------


def test_company_changes_nothing_but_the_cost() -> None:
    together = label(SAME)
    alone = [label([trajectory])[0] for trajectory in SAME]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-12)
        assert one.terms["tokens"] == other.terms["tokens"]
    assert together[3].cost.tokens_scored < alone[3].cost.tokens_scored / 3
    assert together[4].cost.tokens_scored == alone[4].cost.tokens_scored


def test_trees_stay_small_and_hold_each_solution_once() -> None:
    solutions = [("a" * 50,), ("b" * 50,), ("c" * 500,), ("d" * 50,), ("e" * 50,)]
    opening = len(INSTRUCTIONS[0].opening("q"))
    plans = plan_steps("q", solutions, INSTRUCTIONS[0], ToyModel(), max_nodes=opening + 110)
    assert [list(plan.spans) for plan in plans] == [[0, 1], [2], [3, 4]]
    assert [len(plan.tree) for plan in plans] == [opening + 104, opening + 502, opening + 104]
    assert plan_steps("q", [], INSTRUCTIONS[0], ToyModel()) == []


def test_large_groups_are_cut_and_their_cost_adds_up() -> None:
    batch = [Trajectory("q", (chr(97 + i) * 1500,), id=str(i)) for i in range(5)]
    scorer = Counting()
    records = label(batch, scorer=scorer)
    assert all(len(tree) <= 4096 for tree in scorer.trees)
    assert len(scorer.trees) == 3
    assert sum(record.cost.tokens_scored for record in records) == sum(map(len, scorer.trees))
    np.testing.assert_allclose(records[4].rewards, label([batch[4]])[0].rewards, rtol=1e-12)


def test_one_that_is_too_long_does_not_take_the_others_with_it() -> None:
    opening = len(INSTRUCTIONS[0].opening("q"))
    scorer = Counting(most=opening + 30)
    batch = [ONE, replace(ONE, id="long", steps=("z" * 100,)), replace(ONE, id="short", steps=("y",))]
    one, long, short = label(batch, scorer=scorer)
    assert (long.error, long.rewards) == ("too long", ())
    assert (one.error, short.error) == (None, None)
    np.testing.assert_allclose(one.rewards, plain(ONE), rtol=1e-12)
    assert len(scorer.trees) == 4
    assert sum(each.cost.tokens_scored for each in (one, long, short)) == sum(map(len, scorer.trees))


def test_one_that_is_too_long_alone_is_not_tried_twice() -> None:
    scorer = Counting(most=10)
    (record,) = label([ONE], scorer=scorer)
    assert (record.error, len(scorer.trees)) == ("too long", 1)


def test_a_model_whose_context_is_full() -> None:
    model = HFModel(tiny("llama"), byte_tokenizer(), name="llama")
    short, long = label([ONE, replace(ONE, id="long", steps=("z" * CONTEXT,))], scorer=model)
    assert short.error is None
    assert (long.error or "").startswith("too long: ")


# --- what cannot be rewarded ------------------------------------------------------------------------------------------


def test_no_gold_answer_is_needed_and_failures_are_lines() -> None:
    none, empty, good = label([replace(ONE, id="a", steps=()), replace(ONE, id="b", steps=("x", " ")), ONE])
    assert (none.error, none.cost) == ("no steps", Cost())
    assert empty.error == "step 1 (from 0) is empty"
    assert good.error is None
    assert label([]) == []


def test_a_step_that_the_tokenizer_has_nothing_for() -> None:
    class Deaf(ToyModel):
        def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
            return () if text.startswith("mute") else super().encode(text, first=first)

    (record,) = label([Trajectory("q", ("a", "mute"), id="x")], scorer=Deaf())
    assert record.error == "the tokenizer has no token for step 1 (from 0)"


def test_numbers_that_are_not_finite() -> None:
    class Broken(ToyModel):
        def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
            return [ScoredTree(np.full(len(tree), -np.inf)) for tree in trees]

    (record,) = label([ONE], scorer=Broken())
    assert record.error == "the model gave log-probabilities that are not finite"


def test_settings() -> None:
    with pytest.raises(InputError, match="normalization must be mean or sum"):
        LikelihoodSettings("median")  # type: ignore[arg-type]
    described = Likelihood(ToyModel(), SHORT).describe()
    assert described == {
        "settings": {"normalization": "sum", "template": {"instruction": "{question}?", "cue": "{answer}"}},
        "engine": {"model": "toy:"},
    }


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "t.jsonl", [*SAME, replace(ONE, id="none", steps=())])
    return run_cpmi


def test_from_the_command_line(cpmi: Any) -> None:
    command = ("label", "t.jsonl", "--model", "toy:", "--method", "likelihood", "--output", "run")
    code, out, _ = cpmi(*command)
    assert (code, out.splitlines()[0]) == (0, "6 labeled, 1 failed of 7 -> run")
    records = {record.trajectory_id: record for record in read_rewards("run")}
    for record in label(SAME, LikelihoodSettings()):
        assert records[record.trajectory_id].rewards == pytest.approx(record.rewards, rel=1e-12)
        assert records[record.trajectory_id].cost.tokens_scored == record.cost.tokens_scored
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert (manifest["method"], manifest["settings"]["normalization"]) == ("likelihood", "mean")
    assert cpmi(*command)[1].startswith("0 labeled, 0 failed, 7 already there")
    code, _, err = cpmi(*command, "--normalization", "sum")
    assert (code, "settings.normalization: 'mean' there, 'sum' here" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--method", "likelihood", "--negatives", "2"),
            "--negatives is for --method posterior or cpmi, not for likelihood",
        ),
        (
            ("--method", "mc", "--normalization", "sum"),
            "--normalization is for --method cpmi or likelihood, not for mc",
        ),
    ],
)
def test_options_of_other_methods(cpmi: Any, options: tuple[str, ...], message: str) -> None:
    code, _, err = cpmi("label", "t.jsonl", "--model", "toy:", "--output", "run", *options)
    assert (code, message in err) == (2, True)
