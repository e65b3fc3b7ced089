"""Training rows: what is read, refused, held out, and how much each step counts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi import Trajectory, write_records
from cpmi.errors import InputError
from cpmi.prm.data import (
    TargetRow,
    WeightSettings,
    check_targets,
    read_targets,
    share_that_holds,
    split_by_question,
    step_weights,
)
from cpmi.records import Column, write_rows
from cpmi.targets import write_label_targets

NAN, INF = math.nan, math.inf

COLUMNS: dict[str, Column] = {
    "id": "text",
    "question": "text",
    "steps": "texts",
    "targets": "numbers",
    "rewards": "numbers",
    "source": "text",
}
GOOD: dict[str, Any] = {
    "id": "one",
    "question": "2 + 3?",
    "steps": ["Add.", "So 5."],
    "targets": [0.75, None],
    "rewards": [-1.5, 2],
    "source": "cpmi",
}


def row(
    targets: Sequence[float | None], rewards: Sequence[float | None] | None = None, *, name: str = "x", asks: str = "q"
) -> TargetRow:
    steps = tuple(f"step {k}" for k in range(len(targets)))
    return TargetRow(name, asks, steps, tuple(targets), tuple(rewards or [None] * len(targets)), "cpmi")


def lines(path: Path, *rows: Any) -> Path:
    """A file of JSON lines with whatever Python can say, NaN too."""
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    return text


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"targets{suffix}"
    write_rows(path, [GOOD, GOOD | {"id": "two", "targets": [0, 1]}], COLUMNS)
    one, two = read_targets(path)
    assert one == TargetRow("one", "2 + 3?", ("Add.", "So 5."), (0.75, None), (-1.5, 2.0), "cpmi")
    assert (two.id, two.targets) == ("two", (0.0, 1.0))
    assert one.trajectory == Trajectory("2 + 3?", ("Add.", "So 5."), id="one")
    np.testing.assert_array_equal(one.array("targets"), [0.75, NAN])
    np.testing.assert_array_equal(one.array("rewards"), [-1.5, 2])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_rewards_and_source_may_be_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"targets{suffix}"
    needed = ("id", "question", "steps", "targets")
    write_rows(path, [{name: GOOD[name] for name in needed}], {name: COLUMNS[name] for name in needed})
    (read,) = read_targets(path)
    assert (read.rewards, read.source) == ((None, None), "unknown")
    assert np.isnan(read.array("rewards")).all()


def test_fields_that_nobody_asked_for_do_no_harm(tmp_path: Path) -> None:
    (read,) = read_targets(lines(tmp_path / "t.jsonl", GOOD | {"comment": [1, 2], "gold_answer": "5"}))
    assert read.id == "one"


def test_human_labels_are_read_as_they_were_written(tmp_path: Path) -> None:
    labeled = Trajectory("2 + 3?", ("a", "b", "c"), step_labels=(True, None, False), id="one")
    write_records(tmp_path / "labeled.jsonl", [labeled])
    write_label_targets([tmp_path / "labeled.jsonl"], tmp_path / "targets.jsonl")
    (read,) = read_targets(tmp_path / "targets.jsonl")
    assert read.targets == (1.0, None, 0.0)


@pytest.mark.parametrize("name", ["id", "question", "steps", "targets"])
def test_a_missing_field_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD, {key: value for key, value in GOOD.items() if key != name})
    assert refusal(lambda: read_targets(path)) == (
        f"{path}:2: missing field {name!r}; a row of targets has id, question, steps, targets "
        "(cpmi targets writes them)"
    )


@pytest.mark.parametrize("value", [["id"], "id", 3, None])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, value: Any) -> None:
    path = lines(tmp_path / "t.jsonl", value)
    assert refusal(lambda: read_targets(path)).startswith(f"{path}:1: no JSON object; a row of targets has id, ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"targets": [0.5]}, "1 targets for 2 steps"),
        ({"targets": []}, "0 targets for 2 steps"),
        ({"steps": ["a", "b", "c"], "rewards": [1, 2, 3]}, "2 targets for 3 steps"),
        ({"rewards": [1, 2, 3]}, "3 rewards for 2 steps"),
        ({"targets": [0.5, NAN]}, "targets must be finite numbers or null, not nan"),
        ({"targets": [INF, 0.5]}, "targets must be finite numbers or null, not inf"),
        ({"targets": [0.5, -INF]}, "targets must be finite numbers or null, not -inf"),
        ({"targets": [True, False]}, "targets must be finite numbers or null, not True"),
        ({"targets": [0.5, "0.5"]}, "targets must be finite numbers or null, not '0.5'"),
        ({"targets": [0.5, [1]]}, "targets must be finite numbers or null, not [1]"),
        ({"rewards": [1, NAN]}, "rewards must be finite numbers or null, not nan"),
        ({"rewards": ["1", 2]}, "rewards must be finite numbers or null, not '1'"),
        ({"targets": 0.5}, "field 'targets' must be a list"),
        ({"targets": {"0": 1}}, "field 'targets' must be a list"),
        ({"rewards": "none"}, "field 'rewards' must be a list"),
        ({"weights": 1}, "field 'weights' must be a list"),
        ({"weights": [1]}, "1 weights for 2 steps"),
        ({"weights": [1, -0.5]}, "weights must be finite numbers of at least 0, not -0.5"),
        ({"weights": [1, None]}, "weights must be finite numbers of at least 0, not None"),
        ({"steps": "Add."}, "field 'steps' must be a list"),
        ({"steps": ["Add.", 5]}, "field 'steps' must be a list of texts"),
        ({"question": " "}, "field 'question' must be a text that is not empty"),
        ({"question": None}, "field 'question' must be a text that is not empty"),
        ({"id": 7}, "field 'id' must be a text"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD, GOOD, GOOD | change, GOOD)
    assert refusal(lambda: read_targets(path)) == f"{path}:3: {says}"


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n\n" + json.dumps(GOOD | {"targets": [1]}) + "\n", encoding="utf-8")
    assert refusal(lambda: read_targets(path)) == f"{path}:4: 1 targets for 2 steps"


def test_places_in_packed_and_parquet_files(tmp_path: Path) -> None:
    packed, table = tmp_path / "t.jsonl.gz", tmp_path / "t.parquet"
    write_rows(packed, [GOOD, GOOD | {"targets": [1]}], COLUMNS)
    write_rows(table, [GOOD, GOOD | {"targets": [1, NAN]}], COLUMNS)
    assert refusal(lambda: read_targets(packed)) == f"{packed}:2: 1 targets for 2 steps"
    assert refusal(lambda: read_targets(table)) == f"{table}, row 2: targets must be finite numbers or null, not nan"


def test_a_field_that_is_null_in_parquet_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_rows(path, [GOOD, GOOD | {"question": None}], COLUMNS)
    assert refusal(lambda: read_targets(path)).startswith(f"{path}, row 2: missing field 'question';")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_nothing_to_learn_from_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_rows(path, [], COLUMNS)
    assert refusal(lambda: read_targets(path)) == f"{path}: holds no trajectory"
    write_rows(path, [GOOD | {"targets": [None, None]}, GOOD | {"steps": [], "targets": [], "rewards": []}], COLUMNS)
    assert refusal(lambda: read_targets(path)) == f"{path}: no step has a target"


def test_one_annotated_step_is_enough_to_read_a_file(tmp_path: Path) -> None:
    unknown = GOOD | {"targets": [None, None]}
    assert len(read_targets(lines(tmp_path / "t.jsonl", unknown, GOOD | {"targets": [None, 0]}, unknown))) == 3


def test_files_that_are_none(tmp_path: Path) -> None:
    absent, broken = tmp_path / "absent.jsonl", tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(GOOD) + "\n{\n", encoding="utf-8")
    assert refusal(lambda: read_targets(absent)) == f"{absent}: no such file"
    assert refusal(lambda: read_targets(broken)).startswith(f"{broken}:2: broken JSON")


# --- checking -------------------------------------------------------------------------------------------------------


def test_targets_outside_0_and_1_are_refused_where_they_must_be_probabilities() -> None:
    rows = [row([0.0, 1.0, None], name="a"), row([1.5, -0.25], name="b")]
    says = refusal(lambda: check_targets(rows, probabilities=True))
    assert says == (
        "targets must lie in [0, 1]: 2 do not (first: 1.5 of 'b'); this objective needs probabilities: "
        "make them with another --normalizer, or take --objective mse-logit"
    )
    check_targets(rows, probabilities=False)
    check_targets(rows[:1], probabilities=True)  # 0 and 1 are probabilities


@pytest.mark.parametrize("probabilities", [True, False])
def test_equal_targets_are_refused(probabilities: bool) -> None:
    rows = [row([0.25, None]), row([None]), row([0.25])]
    says = refusal(lambda: check_targets(rows, probabilities=probabilities))
    assert says == "all targets are 0.25, so that there is nothing to learn"
    check_targets([*rows, row([0.5])], probabilities=probabilities)


# --- what is held out -----------------------------------------------------------------------------------------------


def asking(*questions: str) -> list[TargetRow]:
    return [row([1.0], name=str(i), asks=question) for i, question in enumerate(questions)]


some_questions = st.lists(st.text("abAB \t\nß", min_size=1).filter(str.strip), max_size=30)
shares, seeds = st.floats(0, 1), st.integers(0, 5)
checked = settings(deadline=None)


def plain(question: str) -> str:
    return re.sub(r"\s+", " ", question).strip().lower()


@checked
@given(some_questions, shares, seeds)
def test_no_question_is_on_both_sides(questions: list[str], share: float, seed: int) -> None:
    """Also not as a variant of it; every row is on one side, in its order."""
    shouted = [f"  {question.upper().replace(' ', '  ')}\n" for question in questions if "ß" not in question]
    rows = asking(*questions, *shouted)
    kept, held = split_by_question(rows, share, seed)
    assert not {plain(each.question) for each in kept} & {plain(each.question) for each in held}
    assert sorted([*kept, *held], key=rows.index) == rows
    assert [rows.index(each) for each in kept] == sorted(rows.index(each) for each in kept)
    assert [rows.index(each) for each in held] == sorted(rows.index(each) for each in held)


@checked
@given(some_questions, some_questions, shares, seeds)
def test_a_side_stays_when_rows_are_added(before: list[str], more: list[str], share: float, seed: int) -> None:
    rows = asking(*before, *more)
    kept, held = split_by_question(rows, share, seed)
    mine = rows[: len(before)]
    few_kept, few_held = split_by_question(mine[::-1], share, seed)
    assert few_kept[::-1] == [each for each in mine if each in kept]
    assert few_held[::-1] == [each for each in mine if each in held]


@checked
@given(some_questions, shares, shares, seeds)
def test_a_larger_share_holds_out_more_of_the_same(questions: list[str], one: float, other: float, seed: int) -> None:
    rows = asking(*questions)
    (_, few), (_, many) = (split_by_question(rows, share, seed) for share in sorted((one, other)))
    assert [each for each in many if each in few] == few


def test_variants_of_a_question_are_one_question() -> None:
    rows = asking("What is 2 + 3?", "what  is 2 + 3?", " WHAT is\n2 +\t3? ")
    sides = [tuple(len(side) for side in split_by_question(rows, 0.5, seed)) for seed in range(20)]
    assert set(sides) == {(3, 0), (0, 3)}


def test_the_share_that_is_held_out_is_about_what_was_asked_for() -> None:
    """Of 4000 questions: the standard deviation of a share is below 0.008."""
    rows = asking(*(f"What is {i} + 1?" for i in range(4000)))
    for share in (0.05, 0.2, 0.5):
        _, held = split_by_question(rows, share, seed=0)
        assert len(held) / len(rows) == pytest.approx(share, abs=0.03)
    _, other = split_by_question(rows, 0.5, seed=1)
    both = {each.id for each in held} & {each.id for each in other}
    assert len(both) / len(rows) == pytest.approx(0.25, abs=0.03)  # seeds have nothing to do with each other


def test_a_share_of_0_holds_out_nothing_and_one_of_1_everything() -> None:
    rows = asking(*(f"What is {i} + 1?" for i in range(500)))
    assert split_by_question(rows, 0.0, 0) == (rows, [])
    assert split_by_question(rows, 1.0, 0) == ([], rows)


# --- how much a step counts -----------------------------------------------------------------------------------------


def weighed(rows: Sequence[TargetRow], **options: Any) -> list[list[float]]:
    return [array.tolist() for array in step_weights(rows, WeightSettings(**options))]


def near(*values: float) -> Any:
    return pytest.approx(list(values))


def test_steps_count_alike_unless_nobody_judged_them() -> None:
    rows = [row([0.5, None, 0.0]), row([]), row([None]), row([1.0])]
    assert weighed(rows) == [[1, 0, 1], [], [0], [1]]
    assert weighed([]) == []


def test_the_weights_of_a_row_count_beside_those_of_the_settings() -> None:
    """1 1/2 and 1/2 have the mean 2/3; a step without a target counts nothing, whatever its weight."""
    given = [dataclasses.replace(row([1, 0, None]), weights=(1.0, 0.5, 9.0)), row([]), row([0.5])]
    given[2] = dataclasses.replace(given[2], weights=(0.5,))
    assert weighed(given) == [near(1.5, 0.75, 0), [], near(0.75)]
    assert weighed(given[:1], ambiguous=(-0.1, 0.1)) == [[1, 0, 0]]
    assert weighed([given[0], row([1.0])]) == [near(1.2, 0.6, 0), near(1.2)]


def test_a_row_is_cut_with_its_weights(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD | {"weights": [1, 0.25]})
    (read,) = read_targets(path)
    cut = read.first_steps(1)
    assert (cut.steps, cut.targets, cut.rewards, cut.weights) == (("Add.",), (0.75,), (-1.5,), (1,))
    assert read.weights == (1, 0.25)


def test_weights_by_reward() -> None:
    """Sizes 1 3 2 have the mean 2; the 100 of a step without a target is not in it."""
    assert weighed([row([1, None, 0], [1, 100, -3]), row([1], [2])], by="reward") == [near(0.5, 0, 1.5), near(1)]


def test_a_reward_of_zero_says_nothing() -> None:
    """Sizes 0 1 3: of their mean 4/3 they are 0, 3/4 and 9/4; the mean of the latter two is 3/2."""
    assert weighed([row([1, 1, 0], [0, 1, -3])], by="reward") == [near(0, 0.5, 1.5)]


def test_one_far_reward_does_not_outweigh_the_rest() -> None:
    """Nine of 1 and one of 91: the mean is 10, so 0.1 and, at most, 3; their mean is 3.9 / 10."""
    (found,) = weighed([row([1.0] * 9 + [0.0], [1.0] * 9 + [-91.0])], by="reward")
    assert found == near(*[0.1 / 0.39] * 9, 3 / 0.39)


def test_weights_by_target() -> None:
    """|2 t - 1| is 1 1/2 0 1 with the mean 5/8: 1.6 0.8 0 1.6, and the mean of three of these is 4/3."""
    assert weighed([row([1, 0.75, None]), row([0.5, 0])], by="target") == [near(1.2, 0.6, 0), near(0, 1.2)]


def test_ambiguous_steps_are_not_learned_from_and_the_bounds_are() -> None:
    assert weighed([row([0.4, 0.41, 0.5, None, 0.6, 1])], ambiguous=(0.4, 0.6)) == [[1, 0, 0, 0, 1, 1]]


def test_ambiguous_steps_are_not_in_the_mean_of_confidences() -> None:
    """Of 1 and 3 the mean is 2; the 99 is of an ambiguous step, and the missing reward of another."""
    rows = [row([1, 0.5, 0.55, 0], [1, 99, None, -3])]
    assert weighed(rows, by="reward", ambiguous=(0.4, 0.6)) == [near(0.5, 0, 0, 1.5)]


def test_what_right_steps_count() -> None:
    """Twice: targets 1 0 0 1/2 count 2 1 1 1.5, with the mean 5.5 / 4."""
    mean = 5.5 / 4
    assert weighed([row([1, 0, None]), row([0, 0.5])], positive=2.0) == [
        near(2 / mean, 1 / mean, 0),
        near(1 / mean, 1.5 / mean),
    ]


def test_targets_beyond_0_and_1_are_wholly_wrong_or_right() -> None:
    assert weighed([row([5, -3])], positive=3.0) == [near(1.5, 0.5)]


def test_both_sides_count_alike_in_sum() -> None:
    """Three right and one wrong: each right one counts a third; mean 1/2."""
    assert weighed([row([1, 1, None]), row([0, 1])], positive=None) == [near(2 / 3, 2 / 3, 0), near(2, 2 / 3)]


def test_both_sides_of_soft_targets_count_alike_in_sum() -> None:
    """3/4 1/4 1/4: right 1.25, wrong 1.75, so right counts 1.4: 1.3 1.1 1.1, with the mean 3.5 / 3."""
    mean = 3.5 / 3
    assert weighed([row([0.75, 0.25, 0.25])], positive=None) == [near(1.3 / mean, 1.1 / mean, 1.1 / mean)]


def test_all_at_once() -> None:
    """Rewards 2 and 4 of right steps, 3 of a wrong one: 2/3 4/3 1. Right sums to 2, wrong to 1: 1/3 2/3 1, mean 2/3."""
    rows = [row([1, 0.5, 1], [2, 50, 4]), row([0], [-3])]
    assert weighed(rows, by="reward", ambiguous=(0.4, 0.6), positive=None) == [near(0.5, 0, 1), near(1.5)]


annotated = st.tuples(st.none() | st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]), st.floats(0.1, 50))
some_settings = st.builds(
    WeightSettings,
    st.sampled_from(["none", "reward", "target"]),
    st.sampled_from([None, (0.4, 0.6)]),
    st.sampled_from([None, 1.0, 0.25, 8.0]),
)


@checked
@given(st.lists(st.lists(annotated, max_size=6), min_size=1, max_size=6), some_settings)
def test_the_mean_over_what_is_used_is_one(data: list[list[tuple[float | None, float]]], how: WeightSettings) -> None:
    data = [*data, [(0.0, 1.0), (1.0, 1.0)]]  # something to learn from on both sides
    rows = [row([t for t, _ in steps], [r for _, r in steps]) for steps in data]
    found = step_weights(rows, how)
    assert [len(each) for each in found] == [len(each.targets) for each in rows]
    flat, targets = np.concatenate(found), np.concatenate([each.array("targets") for each in rows])
    assert flat[flat > 0].mean() == pytest.approx(1)
    says_nothing = np.isnan(targets) | ((targets == 0.5) & (how.ambiguous is not None or how.by == "target"))
    assert ((flat == 0) == says_nothing).all()


@checked
@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 50)), max_size=30))
def test_balanced_sides_have_equal_weight_whatever_their_confidence(steps: list[tuple[bool, float]]) -> None:
    both = [*steps, (True, 1.0), (False, 2.0)]
    rows = [row([float(right)], [reward]) for right, reward in both]
    flat = np.concatenate(step_weights(rows, WeightSettings(by="reward", positive=None)))
    right = np.array([right for right, _ in both])
    assert flat[right].sum() == pytest.approx(flat[~right].sum())


# --- what cannot be weighed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (
            [row([0.5, None])],
            {"ambiguous": (0.4, 0.6)},
            "no step is left to learn from: all are ambiguous, or count nothing",
        ),
        ([row([0.5, 0.5])], {"by": "target"}, "no step is left to learn from: all are ambiguous, or count nothing"),
        (
            [row([1, 0], [0, 0])],
            {"by": "reward"},
            "no step is left to learn from: all are ambiguous, or count nothing",
        ),
        (
            [row([1, 0], [1, None])],
            {"by": "reward"},
            "steps without a reward cannot count by it; use --weight-by target, or none",
        ),
        ([row([1, 1])], {"positive": None}, "the targets have one side only, so that both cannot count alike"),
        ([row([0, None])], {"positive": None}, "the targets have one side only, so that both cannot count alike"),
    ],
)
def test_what_cannot_be_weighed_is_refused(rows: list[TargetRow], options: dict[str, Any], says: str) -> None:
    assert refusal(lambda: weighed(rows, **options)) == says


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ambiguous": (0.6, 0.4)}, "the ambiguous range 0.6,0.4 is empty; write LOW,HIGH"),
        ({"ambiguous": (0.5, 0.5)}, "the ambiguous range 0.5,0.5 is empty; write LOW,HIGH"),
        ({"ambiguous": (NAN, 0.5)}, "the ambiguous range nan,0.5 is empty; write LOW,HIGH"),
        ({"positive": 0.0}, "the weight of right steps must be a number above 0, not 0.0"),
        ({"positive": -1.0}, "the weight of right steps must be a number above 0, not -1.0"),
        ({"positive": INF}, "the weight of right steps must be a number above 0, not inf"),
        ({"positive": NAN}, "the weight of right steps must be a number above 0, not nan"),
    ],
)
def test_bad_settings_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    assert refusal(lambda: WeightSettings(**options)) == says


def test_a_whole_number_of_hundreds_of_digits_is_no_target() -> None:
    with pytest.raises(InputError, match="targets must be finite numbers or null, not 1000"):
        TargetRow("a", "q", ("x",), (10**400,), (None,), "s")


def test_that_all_is_ambiguous_is_said_whatever_steps_count_by() -> None:
    row = TargetRow("a", "q", ("x",), (0.5,), (0.5,), "s")
    for by in ("reward", "target", "none"):
        with pytest.raises(InputError, match="no step is left to learn from"):
            step_weights([row], WeightSettings(by, ambiguous=(0.4, 0.6)))


def test_no_target_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no step has a target"):
        check_targets([TargetRow("a", "q", ("x",), (None,), (None,), "s")], probabilities=True)


def test_rewards_may_be_missing_but_not_too_few(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    row = {"id": "a", "question": "q", "steps": ["x", "y"], "targets": [1.0, 0.0]}
    for rewards, fine in ((None, True), ([], False), ([1.0], False)):
        file.write_text(json.dumps(row | {"rewards": rewards}) + "\n")
        if fine:
            assert read_targets(file)[0].rewards == (None, None)
        else:
            with pytest.raises(InputError, match=r"t.jsonl:1: \d rewards for 2 steps"):
                read_targets(file)


def test_of_two_questions_or_more_one_is_held_out() -> None:
    """A small share of few questions may hold out none; then it is the first that any share would."""
    rows = [TargetRow(str(i), f"Question {i}", ("Good.",), (0.5,), (None,), "test") for i in range(5)]
    for seed in range(20):
        share = share_that_holds(rows, 0.01, seed)
        _, held = split_by_question(rows, share, seed)
        assert len({row.question for row in held}) == 1
        assert held[0] in split_by_question(rows, 0.9999, seed)[1]
        assert share_that_holds(rows, 0.9, seed) == 0.9 or len(split_by_question(rows, 0.9, seed)[1]) == 0
    assert share_that_holds(rows[:1], 0.01, 0) == 0.01
    assert share_that_holds(rows, 0.0, 0) == 0.0
