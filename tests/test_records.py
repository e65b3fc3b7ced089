"""Records check themselves, keep their content through every file format, and say where a bad line is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi import Cost, InputError, StepRewards, Trajectory, read_rewards, read_trajectories, write_records
from cpmi.records import dump_line, from_json, to_json

text = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    steps = draw(st.lists(text, max_size=4))
    labels = draw(st.none() | st.tuples(*[st.sampled_from([True, False, None])] * len(steps)))
    return Trajectory(
        question=draw(text.filter(str.strip)),
        steps=tuple(steps),
        gold_answer=draw(st.none() | text),
        final_answer=draw(st.none() | text),
        step_labels=labels,
        tags=draw(st.dictionaries(text, text, max_size=2)),
    )


@st.composite
def rewards(draw: st.DrawFn) -> StepRewards:
    n = draw(st.integers(0, 4))
    row = st.lists(numbers, min_size=n, max_size=n).map(tuple)
    cost = Cost(draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.floats(0, 9)))
    details: Any = draw(st.dictionaries(text, st.lists(text) | numbers | st.none(), max_size=2))
    terms = draw(st.dictionaries(text, row, max_size=2))
    return StepRewards(draw(text.filter(bool)), draw(row), "toy", terms, details, cost)


@given(trajectories())
def test_a_trajectory_survives_a_line_of_json(trajectory: Trajectory) -> None:
    assert from_json(Trajectory, json.loads(dump_line(trajectory))) == trajectory


@given(rewards())
def test_rewards_survive_a_line_of_json_to_the_last_bit(record: StepRewards) -> None:
    assert from_json(StepRewards, json.loads(dump_line(record))) == record


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_files_of_every_format_give_back_what_was_written(tmp_path: Path, suffix: str) -> None:
    some = [
        Trajectory("Q", ("a", "b"), "1", "2", (True, None), {"subset": "x"}, "t1"),
        Trajectory("Q", ("a",), id="t2"),
        Trajectory("Q", (), "1", id="t3"),
    ]
    path = tmp_path / f"some{suffix}"
    assert write_records(path, some) == 3
    assert list(read_trajectories(path)) == some
    scores = [
        StepRewards("t1", (0.1, -1e-17), "toy", {"gold": (1.0, 2.0)}, {"answers": ["1", "2"]}, Cost(1, 2, 3.0)),
        StepRewards("t3", (), "toy", error="no steps"),
    ]
    path = tmp_path / f"rewards{suffix}"
    assert write_records(path, scores) == 2
    assert list(read_rewards(path)) == scores


def test_an_empty_parquet_file_of_trajectories_can_be_read(tmp_path: Path) -> None:
    assert write_records(tmp_path / "none.parquet", []) == 0
    assert list(read_trajectories(tmp_path / "none.parquet")) == []


def test_a_failed_write_leaves_neither_a_file_nor_a_rest(tmp_path: Path) -> None:
    def broken() -> object:
        yield Trajectory("Q", ("a",))
        raise InputError("bad row")

    with pytest.raises(InputError, match="bad row"):
        write_records(tmp_path / "x.jsonl", broken())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_id_is_by_default_a_hash_of_the_content() -> None:
    one, same, other = Trajectory("Q", ("a", "b"), "1"), Trajectory("Q", ("a", "b"), "1"), Trajectory("Q", ("ab",), "1")
    assert one.id == same.id != other.id
    assert len(one.id) == 16


def test_the_first_error_is_the_first_step_labeled_wrong() -> None:
    assert Trajectory("Q", ("a", "b", "c"), step_labels=(True, False, None)).first_error == 1
    assert Trajectory("Q", ("a",), step_labels=(None,)).first_error is None
    assert Trajectory("Q", ("a",)).first_error is None


costs = st.builds(Cost, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 2**20).map(float))


@given(costs, costs, costs)
def test_costs_add_in_any_grouping_and_zero_changes_nothing(a: Cost, b: Cost, c: Cost) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Cost() == a


BAD_TRAJECTORIES = {
    "steps as a text": ({"question": "Q", "steps": "abc"}, "field 'steps' must be a list of texts"),
    "a number among the steps": ({"question": "Q", "steps": ["a", 1]}, "field 'steps' must be a list of texts"),
    "a number as gold answer": ({"question": "Q", "steps": [], "gold_answer": 5}, "'gold_answer' must be a text"),
    "no question": ({"steps": ["a"]}, "missing field 'question'"),
    "empty question": ({"question": " ", "steps": ["a"]}, "'question' must be a text that is not empty"),
    "unknown field": ({"question": "Q", "steps": [], "problem": "x"}, "unknown field 'problem'"),
    "labels of another length": ({"question": "Q", "steps": ["a"], "step_labels": []}, "0 entries for 1 steps"),
    "labels as numbers": ({"question": "Q", "steps": ["a"], "step_labels": [1]}, "'step_labels' must be a list of"),
    "a list": ([1, 2], "expected a JSON object, found list"),
}


@pytest.mark.parametrize(("row", "message"), BAD_TRAJECTORIES.values(), ids=BAD_TRAJECTORIES.keys())
def test_a_bad_trajectory_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(dump_line(Trajectory("Q", ("a",))) + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message) as caught:
        list(read_trajectories(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"question": "\ud83d"},
        {"steps": ["a", "b \ud83d"]},
        {"gold_answer": "\ud83d"},
        {"final_answer": "\ude00"},
        {"tags": {"\ud83d": "x"}},
        {"tags": {"x": "\ud83d"}},
        {"id": "\ud83d"},
    ],
    ids=str,
)
def test_half_of_a_surrogate_pair_in_a_trajectory_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "t.jsonl"
    row = {"question": "Q", "steps": ["a"]} | change
    path.write_text(json.dumps({"question": "whole \U0001f600", "steps": ["a"]}) + "\n" + json.dumps(row) + "\n")
    problem = rf"t\.jsonl:2: field '{min(change)}' holds half of a surrogate pair"
    with pytest.raises(InputError, match=problem) as caught:
        list(read_trajectories(path))
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "change",
    [
        {"trajectory_id": "\ud83d"},
        {"source": "\ud83d"},
        {"error": "\ud83d"},
        {"terms": {"\ud83d": ()}},
        {"details": {"deep": [{"\ud83d": 1}]}},
        {"details": {"deep": [{"x": ("\ud83d",)}]}},
    ],
    ids=str,
)
def test_half_of_a_surrogate_pair_in_rewards_is_refused(change: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"trajectory_id": "a", "rewards": (), "source": "x"}
    with pytest.raises(InputError, match=rf"field '{min(change)}' holds half of a surrogate pair"):
        StepRewards(**whole | change)


BAD_BYTES = {
    "broken JSON": (b'{"question": "Q", ', "broken JSON"),
    "invalid UTF-8": (b'{"question": "Q\xff"}', "byte 16 is not UTF-8"),
    "nested without end": (b"[" * 100_000, "broken JSON"),
    "a number without end": (b'{"question": ' + b"7" * 5000 + b"}", r"broken JSON \(a number with too many digits\)"),
}


@pytest.mark.parametrize(("line", "message"), BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(dump_line(Trajectory("Q", ("a",))).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message) as caught:
        list(read_trajectories(path))
    assert str(caught.value).startswith(f"{path}:3: ")


def test_missing_folder_and_torn_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "Q", "steps": []}\n')[:-4])
    (tmp_path / "not.parquet").write_text("hello")
    packed = bytearray(gzip.compress(bytes(range(256)) * 8))
    packed[10] |= 6  # a kind of block that does not exist
    (tmp_path / "damaged.jsonl.gz").write_bytes(packed)
    assert write_records(tmp_path / "damaged.parquet", [Trajectory("Q", (f"step {n}",)) for n in range(2000)]) == 2000
    whole = (tmp_path / "damaged.parquet").read_bytes()
    (tmp_path / "damaged.parquet").write_bytes(whole[:4] + b"\xff" * 500 + whole[504:])
    for name, message in (
        ("none.jsonl", "no such file"),
        ("cut.jsonl.gz", "gzip"),
        ("damaged.jsonl.gz", "gzip"),
        ("not.parquet", "not a Parquet file"),
        ("damaged.parquet", "damaged after row 0"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            list(read_trajectories(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a folder"):
        list(read_trajectories(tmp_path))


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    some = [Trajectory("Q", ("a",), id=name) for name in ("w", "x", "y", "x")]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(dump_line, some)))  # with blank lines between
    with pytest.raises(InputError, match=r"t\.jsonl:7: the id 'x' occurs twice, first at \S*t\.jsonl:3; give each"):
        list(read_trajectories(path))
    write_records(tmp_path / "t.parquet", some)
    with pytest.raises(InputError, match=r"t\.parquet, row 4: the id 'x' occurs twice, first at \S*t\.parquet, row 2;"):
        list(read_trajectories(tmp_path / "t.parquet"))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "true", '"1"', "null"])
def test_a_reward_that_is_no_finite_number_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"trajectory_id": "a", "source": "x", "rewards": [0.5, {value}]}}\n')
    with pytest.raises(InputError, match=r"r\.jsonl:1: field 'rewards' must be a list of finite numbers"):
        list(read_rewards(path))


def test_rewards_beside_an_error_and_terms_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="cannot have rewards"):
        StepRewards("a", (1.0,), "x", error="failed")
    with pytest.raises(InputError, match="term 'gold' has 2 numbers for 1 rewards"):
        StepRewards("a", (1.0,), "x", {"gold": (1.0, 2.0)})


def test_rewards_are_written_even_where_there_are_none() -> None:
    assert to_json(StepRewards("a", (), "x", error="failed"))["rewards"] == ()


def test_the_torn_last_line_of_a_run_is_left_out_and_that_of_a_file_refused(tmp_path: Path) -> None:
    first, second = StepRewards("a", (1.0,), "x"), StepRewards("b", (2.0,), "x")
    torn, whole = tmp_path / "part-00000-of-00002.jsonl", tmp_path / "part-00001-of-00002.jsonl"
    whole.write_text(dump_line(second))
    for rest in (dump_line(second)[:-9], dump_line(second)[:-1], '{"trajectory_id": "caf\u00e9'):
        torn.write_bytes((dump_line(first) + rest).encode()[: None if rest[-1] != "\u00e9" else -1])
        assert list(read_rewards(tmp_path)) == [first, second]
    with pytest.raises(InputError, match=r"part-00000-of-00002\.jsonl:2: "):
        list(read_rewards(torn))
    torn.write_text("broken\n" + dump_line(first))
    with pytest.raises(InputError, match=r"part-00000-of-00002\.jsonl:1: broken JSON"):
        list(read_rewards(tmp_path))


def test_a_folder_without_parts_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is it the output of cpmi label"):
        list(read_rewards(tmp_path))
