"""Rewards to targets: by hand, by what must hold, and from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi import StepRewards, Trajectory, write_records
from cpmi.cli import main
from cpmi.cli.targets import Normalizer
from cpmi.errors import InputError
from cpmi.normalizers import AUTO, EPS, NORMALIZERS, FittedMap, Outliers, Sample, TargetSettings, fit
from cpmi.protocols import FloatArray
from cpmi.targets import maps_path, read_maps, write_targets


def sample(rewards: list[float], labels: list[float] | None = None) -> Sample:
    array = np.array(rewards, dtype=np.float64)
    some = labels or []
    return Sample("x", array, array[: len(some)], np.array(some, dtype=np.float64))


def mapped(normalizer: str, rewards: list[float], wanted: list[float], **settings: Any) -> FloatArray:
    labels = settings.pop("labels", None)
    found = fit(sample(rewards, labels), TargetSettings(normalizer, **settings))(np.array(wanted, dtype=np.float64))
    assert found is not None
    return found


def sigmoid(z: float) -> float:
    return float(1 / (1 + np.exp(-z)))


def test_the_command_line_knows_every_normalizer() -> None:
    assert set(get_args(Normalizer)) == {AUTO, *NORMALIZERS}


# --- each by hand ---------------------------------------------------------------------------------------------------


def test_z_scores() -> None:
    """0 and 4: mean 2, deviation 2."""
    np.testing.assert_allclose(mapped("standardize", [0, 4], [0, 2, 6]), [-1, 0, 2])
    np.testing.assert_allclose(mapped("zscore-sigmoid", [0, 4], [0, 2]), [sigmoid(-1), 0.5])
    np.testing.assert_allclose(mapped("zscore-sigmoid", [0, 4], [6], temperature=2), [sigmoid(1)])


def test_medians() -> None:
    """0 1 2 3 100: median 2, deviations 2 1 0 1 98: their median 1."""
    scale = 1.4826
    np.testing.assert_allclose(mapped("mad-sigmoid", [0, 1, 2, 3, 100], [2, 3]), [0.5, sigmoid(1 / scale)])
    np.testing.assert_allclose(mapped("mad-tanh", [0, 1, 2, 3, 100], [1]), [np.tanh(-1 / scale)])


def test_the_quantile_sigmoid_sends_the_tails_where_it_says() -> None:
    """Of 0, 1 ... 100 the quantiles are 1 and 99."""
    found = mapped("quantile-sigmoid", list(range(101)), [1, 50, 99])
    np.testing.assert_allclose(found, [EPS, 0.5, 1 - EPS])


def test_ranks_are_shares_and_equal_rewards_share_theirs() -> None:
    np.testing.assert_allclose(mapped("rank", [3, 1, 2], [1, 2, 3, 2.5, 9, -9]), [0, 0.5, 1, 0.75, 1, 0])
    np.testing.assert_allclose(mapped("rank", [1, 1, 1, 2], [1, 2]), [1 / 3, 1])


def test_a_threshold_and_the_identity() -> None:
    np.testing.assert_array_equal(mapped("threshold", [5], [-1, 0, 1]), [0, 0, 1])
    np.testing.assert_array_equal(mapped("threshold", [5], [-1, 0, 1], at=-1), [0, 1, 1])
    np.testing.assert_array_equal(mapped("identity", [5], [0.25]), [0.25])


def test_a_conditional_target_is_the_reward_over_the_one_before() -> None:
    np.testing.assert_allclose(mapped("conditional", [0.5, 1.0], [0.8, 0.4, 0.4, 0.1]), [0.8, 0.5, 1, 0.25])
    # A reward that rises (none of the posterior does) is no probability above 1; behind a sure error nothing is told.
    np.testing.assert_allclose(mapped("conditional", [0.5, 1.0], [0.2, 0.4, 0.0, 0.0]), [0.2, 1, 0, np.nan])


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_conditional_targets_and_their_weights_hold_the_posterior(steps: list[float]) -> None:
    """Multiplied up they are the rewards again, and a sure first error has the weights of a person's labels."""
    survival: FloatArray = np.asarray(np.cumprod(steps), dtype=np.float64)
    made = fit(sample(list(survival)), TargetSettings("conditional"))
    targets, weights = made(survival), made.weights(survival)
    assert targets is not None
    assert weights is not None
    np.testing.assert_allclose(np.cumprod(targets), survival)
    np.testing.assert_allclose(targets * weights, survival)
    sure = np.array([1.0, 1.0, 0.0, 0.0])
    wrong = made(sure)
    assert wrong is not None
    np.testing.assert_array_equal(wrong, [1, 1, 0, np.nan])
    np.testing.assert_array_equal(made.weights(sure), [1, 1, 1, 0])


def test_conditional_takes_probabilities_alone() -> None:
    with pytest.raises(InputError, match="conditional takes probabilities"):
        fit(sample([0.5, 1.5]), TargetSettings("conditional"))
    with pytest.raises(InputError, match="conditional takes probabilities"):
        fit(sample([0.5, 1.0]), TargetSettings("conditional"))(np.array([-0.1]))


def test_isotonic_pools_what_falls() -> None:
    """Labels 0 1 0 1 at rewards 1 2 3 4: 2 and 3 are pooled to a half."""
    found = mapped("isotonic", [1, 2, 3, 4], [0, 1, 2, 2.5, 3, 4, 9], labels=[0, 1, 0, 1])
    np.testing.assert_allclose(found, [0, 0, 0.5, 0.5, 0.5, 1, 1])


def test_platt_is_calibrated_where_it_was_fitted() -> None:
    """Maximum likelihood of a logistic model with an intercept: mean target equals the share of right steps."""
    rewards, labels = [1.0, 2, 3, 4, 5, 6], [0.0, 1, 0, 1, 0, 1]
    found = mapped("platt", rewards, rewards, labels=labels)
    assert found.mean() == pytest.approx(0.5, abs=1e-4)
    assert (np.asarray(rewards) * (found - labels)).sum() == pytest.approx(0, abs=1e-2)
    assert (np.diff(found) > 0).all()


# --- what must hold -------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=5, max_size=50)


@given(numbers, st.sampled_from(sorted(set(NORMALIZERS) - {"isotonic", "platt", "conditional"})))
def test_targets_never_turn_rewards_around(rewards: list[float], normalizer: str) -> None:
    try:
        found = fit(sample(rewards), TargetSettings(normalizer))
    except InputError:
        return
    ordered = found(np.sort(np.array(rewards)))
    assert ordered is not None
    assert (np.diff(ordered) >= -1e-12).all()
    if normalizer.endswith(("sigmoid", "rank", "threshold")):
        assert 0 <= ordered.min() <= ordered.max() <= 1


@given(numbers, st.floats(0.1, 10), st.floats(-50, 50))
def test_standardized_targets_know_nothing_of_scale_and_place(rewards: list[float], scale: float, shift: float) -> None:
    array = np.array(rewards)
    if array.std() < 0.01:
        return
    moved = (array * scale + shift).tolist()
    for normalizer in ("zscore-sigmoid", "rank"):
        one, other = mapped(normalizer, rewards, rewards), mapped(normalizer, moved, moved)
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- outliers -------------------------------------------------------------------------------------------------------


def test_outliers_are_kept_clipped_or_dropped() -> None:
    """Clipped to 10, the rewards 0 and 1000 have mean 5 and deviation 5."""
    rewards = [0.0, 1000.0]
    np.testing.assert_allclose(mapped("standardize", rewards, [1000], outliers=Outliers.parse("clip:10")), [1])
    dropping = fit(sample([0, 2, 1000]), TargetSettings("standardize", outliers=Outliers.parse("drop:10")))
    assert dropping(np.array([0.0, 1000.0])) is None
    np.testing.assert_allclose(dropping(np.array([0.0, 2.0])), [-1, 1])  # type: ignore[arg-type]
    assert dropping.n == 2
    winsorized = fit(sample([float(x) for x in range(101)]), TargetSettings(outliers=Outliers.parse("clip")))
    assert (winsorized.low, winsorized.high) == (1.0, 99.0)


@pytest.mark.parametrize("text", ["", "clip:", "clip:x", "clip:-1", "drop:0", "keep:1", "remove", "clip:nan"])
def test_rules_for_outliers_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="outliers"):
        Outliers.parse(text)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalizer", "rewards", "labels", "message"),
    [
        ("zscore-sigmoid", [3, 3, 3], None, "x: all its rewards are 3; there is nothing to learn"),
        ("mad-sigmoid", [1, 1, 1, 2], None, "half of its rewards are 1"),
        ("quantile-sigmoid", [1] * 999 + [2], None, "98 % of its rewards are 1"),
        ("isotonic", [1, 2], [1, 1], "needs human labels of right and of wrong steps"),
        ("platt", [1, 2], None, "needs human labels of right and of wrong steps"),
        ("platt", [1, 1, 2], [0, 1], "all labeled steps have the same reward"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    normalizer: str, rewards: list[float], labels: list[float] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(sample(rewards, labels), TargetSettings(normalizer))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"unknown normalizer 'zscore'; did you mean 'zscore-sigmoid'"):
        TargetSettings("zscore")
    with pytest.raises(InputError, match="temperature"):
        TargetSettings(temperature=0)


# --- files ----------------------------------------------------------------------------------------------------------

TRAJECTORIES = [
    Trajectory("Q1?", ("a", "b"), "1", step_labels=(True, False), id="one"),
    Trajectory("Q2?", ("c",), "2", step_labels=(True,), id="two"),
    Trajectory("Q3?", ("d",), "3", id="three"),
]


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "t.jsonl", TRAJECTORIES)
    lines = [StepRewards("one", (1.0, -1.0), "cpmi"), StepRewards("two", (3.0,), "cpmi")]
    write_records(tmp_path / "r.jsonl", [*lines, StepRewards("three", (), "cpmi", error="no")])
    write_records(tmp_path / "mc.jsonl", [StepRewards("one", (0.5, 0.0), "mc"), StepRewards("two", (1.0,), "mc")])

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cpmi", "targets", *arguments, "--trajectories", "t.jsonl"])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())  # type: ignore[func-returns-value]
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_file_holds_all_that_a_trainer_needs(cpmi: Any) -> None:
    code, out, err = cpmi("r.jsonl", "--normalizer", "standardize", "--output", "new/targets.jsonl")
    assert (code, err) == (0, "")
    assert out == (
        "2 trajectories, 1 without rewards -> new/targets.jsonl\n"
        "  cpmi: standardize, fitted to 3 rewards -> new/targets.maps.json\n"
    )
    one, two = rows("new/targets.jsonl")
    assert (one["id"], one["question"], one["steps"], one["source"]) == ("one", "Q1?", ["a", "b"], "cpmi")
    assert one["rewards"] == [1.0, -1.0]
    deviation = np.std([1, -1, 3])
    np.testing.assert_allclose([*one["targets"], *two["targets"]], np.array([0, -2, 2]) / deviation)


def test_runs_of_several_methods_have_maps_of_their_own(cpmi: Any) -> None:
    code, _, _ = cpmi("r.jsonl", "mc.jsonl", "--normalizer", "rank", "--output", "targets.jsonl")
    assert code == 0
    by_source = {(row["source"], row["id"]): row["targets"] for row in rows("targets.jsonl")}
    assert by_source["cpmi", "one"] == by_source["mc", "one"] == [0.5, 0.0]
    assert set(read_maps(Path("targets.maps.json"))) == {"cpmi", "mc"}


def test_each_source_gets_what_suits_it_unless_it_is_named(cpmi: Any) -> None:
    """The map names what it is, not that it was found automatically."""
    write_records(
        Path("p.jsonl"), [StepRewards("one", (0.75, 0.25), "posterior"), StepRewards("two", (0.5,), "posterior")]
    )
    code, out, _ = cpmi("r.jsonl", "p.jsonl", "--output", "targets.jsonl")
    assert code == 0
    assert out.splitlines()[1:] == [
        "  cpmi: quantile-sigmoid, fitted to 3 rewards -> targets.maps.json",
        "  posterior: conditional, fitted to 3 rewards -> targets.maps.json",
    ]
    maps = read_maps(Path("targets.maps.json"))
    assert {source: each.normalizer for source, each in maps.items()} == {
        "cpmi": "quantile-sigmoid",
        "posterior": "conditional",
    }
    made = [row for row in rows("targets.jsonl") if row["source"] == "posterior"]
    assert [row["targets"] for row in made] == [[0.75, 1 / 3], [0.5]]
    assert [row["weights"] for row in made] == [[1.0, 0.75], [1.0]]
    assert {json.dumps(row["weights"]) for row in rows("targets.jsonl") if row["source"] == "cpmi"} == {"null"}
    cpmi("r.jsonl", "--normalizer", "quantile-sigmoid", "--output", "named.jsonl")
    assert read_maps(Path("named.maps.json"))["cpmi"] == maps["cpmi"]
    cpmi("p.jsonl", "--normalizer", "quantile-sigmoid", "--output", "other.jsonl")
    assert read_maps(Path("other.maps.json"))["posterior"].normalizer == "quantile-sigmoid"


def test_a_fitted_map_is_applied_to_other_rewards(cpmi: Any) -> None:
    cpmi("r.jsonl", "--output", "train.jsonl", "--normalizer", "zscore-sigmoid")
    write_records(Path("other.jsonl"), [StepRewards("two", (-1.0,), "cpmi")])
    code, _, _ = cpmi("other.jsonl", "--maps", "train.maps.json", "--output", "other_targets.jsonl")
    assert code == 0
    assert rows("other_targets.jsonl")[0]["targets"] == [rows("train.jsonl")[0]["targets"][1]]
    assert read_maps(Path("other_targets.maps.json")) == read_maps(Path("train.maps.json"))
    code, _, err = cpmi("mc.jsonl", "--maps", "train.maps.json", "--output", "x.jsonl")
    assert (code, err) == (2, "cpmi: error: train.maps.json: has no map for rewards of 'mc' (it has: cpmi)\n")


def test_dropped_trajectories_are_counted(cpmi: Any) -> None:
    _, out, _ = cpmi("r.jsonl", "--normalizer", "standardize", "--outliers", "drop:2", "--output", "targets.jsonl")
    assert out.startswith("1 trajectories, 1 without rewards, 1 dropped for an outlier -> targets.jsonl\n")


def test_json_and_parquet(cpmi: Any) -> None:
    _, out, _ = cpmi("r.jsonl", "--normalizer", "platt", "--output", "targets.parquet", "--json")
    summary = json.loads(out)
    assert (summary["rows"], summary["failed"], summary["maps_file"]) == (2, 1, "targets.maps.json")
    assert summary["maps"][0]["squash"] == "sigmoid"
    assert maps_path(Path("a/t.jsonl.gz")) == Path("a/t.maps.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.jsonl", "--output", "t2.jsonl"), "none.jsonl: no such file"),
        (("r.jsonl", "r.jsonl", "--output", "t2.jsonl"), "has rewards of cpmi twice; name each run once"),
        (("r.jsonl", "--output", "t2.csv"), "the name must end in"),
        (("r.jsonl", "--maps", "t.jsonl", "--output", "t2.jsonl"), "t.jsonl: holds no maps of cpmi targets"),
        (("r.jsonl", "--temperature", "0", "--output", "t2.jsonl"), "temperature must be a number above 0"),
        (("r.jsonl", "--output", "r.jsonl"), "r.jsonl is one of the files that would be read"),
        (("r.jsonl", "--output", "t.jsonl"), "t.jsonl is one of the files that would be read"),
        (("r.jsonl", "--normalizer", "threshold", "--at", "nan", "--output", "t2.jsonl"), "must be a finite number"),
        (("r.jsonl", "--outliers", "drop:0.5", "--output", "t2.jsonl"), "all its rewards are outliers"),
        (("r.jsonl", "--maps", "r.jsonl", "--normalizer", "rank", "--output", "t2.jsonl"), "--normalizer and --maps"),
    ],
)
def test_bad_input_is_one_line(cpmi: Any, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = cpmi(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("change", [{"squash": "odd"}, {"squash": "table"}, {"x": [1], "y": []}])
def test_maps_that_somebody_broke_are_refused(cpmi: Any, change: dict[str, Any]) -> None:
    cpmi("r.jsonl", "--output", "train.jsonl", "--normalizer", "zscore-sigmoid")
    (good,) = json.loads(Path("train.maps.json").read_text())
    Path("bad.maps.json").write_text(json.dumps([good | change]))
    code, _, err = cpmi("r.jsonl", "--maps", "bad.maps.json", "--output", "t2.jsonl")
    assert code == 2
    assert "Traceback" not in err


def test_dropped_rewards_are_not_calibrated_on() -> None:
    """The label of the outlier would turn the order around."""
    settings = TargetSettings("isotonic", outliers=Outliers.parse("drop:5"))
    found = fit(sample([1, 2, 100], [0, 1, 0]), settings)(np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, [0, 1])  # type: ignore[arg-type]


def test_maps_survive_their_file(tmp_path: Path) -> None:
    write_records(tmp_path / "t.jsonl", TRAJECTORIES)
    write_records(tmp_path / "r.jsonl", [StepRewards("one", (1.0, 0.25), "a"), StepRewards("two", (0.5,), "a")])
    for normalizer in NORMALIZERS:
        report = write_targets(
            [tmp_path / "r.jsonl"], tmp_path / "o.jsonl", TargetSettings(normalizer), trajectories=tmp_path / "t.jsonl"
        )
        assert tuple(read_maps(tmp_path / "o.maps.json").values()) == report.maps
        assert all(isinstance(each, FittedMap) for each in report.maps)
