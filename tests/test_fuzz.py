"""Bad input at volume: whatever a file holds, its reader reads it, or says in one line what is wrong where.

``make test`` tries some files for each reader, ``make fuzz`` ten thousand in all (``CPMI_FUZZ_FILES``). They are the
same every time; another ``CPMI_FUZZ_SEED`` makes others. What must hold for each: nothing but one line for the user
escapes, no warning and no hang; and every row of a file that is read became something, or is counted.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cpmi.errors import InputError
from cpmi.evaluate import table
from cpmi.export import labeled_trajectories, refuse_overwriting
from cpmi.gold import GoldAnswers, load_gold
from cpmi.models.toy import ToyModel
from cpmi.parts import Part
from cpmi.prm.data import read_targets
from cpmi.prompts import (
    TEMPLATE_SETS,
    Context,
    ContextKind,
    Span,
    Template,
    load_templates,
    plan_scoring,
    plan_steps,
    step_contexts,
)
from cpmi.protocols import TokenTree
from cpmi.records import (
    Cost,
    StepRewards,
    Trajectory,
    dump_line,
    from_json,
    read_records,
    read_rewards,
    read_trajectories,
    rewards_by_id,
)
from cpmi.results import read_results
from cpmi.rollout_file import RolloutFile
from cpmi.runs import RunDirectory, Shard
from cpmi.solutions import SolutionFile, read_attempts, run_folder
from cpmi.sources import SOURCES, Fields, Row, Source, Tally, read_any, read_source
from cpmi.sources import Context as SourceContext
from cpmi.sources.candidates import reasoning_in
from cpmi.sources.stream import stream
from cpmi.steps import WAYS, split_steps
from cpmi.targets import read_maps
from cpmi.tasks import read_questions
from fuzz_seeds import (
    ATTEMPTS,
    CANDIDATE_REWARDS,
    CANDIDATES,
    GOLD,
    MANIFEST,
    MAPS,
    NOTES,
    RESULTS,
    REWARDS,
    ROLLOUTS,
    SAVED,
    SAVED_ROWS,
    TARGETS,
    TASKS,
    TEMPLATES,
    TRAINING,
    TRAJECTORIES,
)
from fuzz_seeds import SOURCES as SOURCE_SEEDS
from fuzzing import BYTES, Damages, Raw, bounded, damages, reads, spell, write_damaged

FILES = int(os.environ.get("CPMI_FUZZ_FILES", "700"))
SEED = os.environ.get("CPMI_FUZZ_SEED", "0")
ROWS = ("data.jsonl", "data.jsonl.gz", "data.parquet")
ANY = (*ROWS, "data.json", "data.json.gz")
JSON = ("data.json",)


@dataclass(frozen=True)
class Target:
    """A reader: the good file, the names it may have, and a call that reads it and checks what came of it."""

    seed: Any
    names: Sequence[str]
    read: Callable[[Path], None]


# --- records --------------------------------------------------------------------------------------------------------


def rows_in(path: Path) -> int | None:
    """How many rows a file of lines holds, by another way than the readers'; None where they are not lines."""
    if path.suffix == ".parquet" or ".json" in path.suffixes:
        return None
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def check_records(kind: Any, path: Path) -> None:
    """Each row is a record, and a record can be written and read again."""
    records: list[Trajectory | StepRewards] | None = reads(lambda: [*read_records(kind, path)], path.name)
    if records is None:
        return
    assert rows_in(path) in (None, len(records))
    for record in records:
        text = reads(partial(dump_line, record))
        assert text is None or from_json(kind, json.loads(text)) == record


def check_trajectories(path: Path) -> None:
    check_records(Trajectory, path)
    made = reads(lambda: [*read_trajectories(path)], path.name)
    if made is not None:
        assert len({trajectory.id for trajectory in made}) == len(made)


def check_rewards(path: Path) -> None:
    check_records(StepRewards, path)
    reads(lambda: rewards_by_id(path), path.name)


# --- sources, tasks, gold answers -----------------------------------------------------------------------------------


def check_source(name: str, fields: Fields | None, path: Path) -> None:
    """Every row became a trajectory, or is counted as skipped."""
    skipped: list[str] = []
    made: list[tuple[str, Trajectory]] = []
    rows: list[Row] = []

    class PlacedTally(Tally):
        def skip(self, reason: str, place: str) -> None:
            super().skip(reason, place)
            skipped.append(place)

    def read(all_rows: Iterator[Row], context: SourceContext) -> Iterator[tuple[str, Trajectory]]:
        def noted() -> Iterator[Row]:
            for row in all_rows:
                rows.append(row)
                yield row

        for place, trajectory in SOURCES[name].read(noted(), context):
            made.append((place, trajectory))
            yield place, trajectory

    ways = ("auto", *WAYS)
    how = ways[path.stat().st_size % len(ways)] if name == "plain" else "auto"
    tally = PlacedTally()
    context = SourceContext(name, "", fields or Fields(), tally, how, None)
    kept = reads(lambda: [*stream(Source("", read), [str(path)], context)], path.name)
    if kept is None:
        return
    assert tally.read == len(rows)
    assert rows_in(path) in (None, tally.read)
    assert tally.made == len(kept) == len({trajectory.id for trajectory in kept})
    inner = {
        (trajectory.question, trajectory.steps[:length])
        for _, trajectory in made
        for length in range(len(trajectory.steps) + 1)
    }
    for row in rows:
        became = row.place in {place for place, _ in made} or row.place in skipped
        if name == "prm800k" and "next_response" in row.values:  # a step of a trajectory that another row ends
            became = (row.text("instruction"), (*row.texts("responses"), row.text("next_response"))) in inner
        assert became, f"{row.place}: lost"
    for trajectory in kept:
        assert from_json(Trajectory, json.loads(dump_line(trajectory))) == trajectory
    again = reads(lambda: [*read_source(name, [str(path)], fields, how=how)], path.name)
    assert again == kept


def check_task(name: str, path: Path) -> None:
    """There are as many questions and skipped ones as rows, or more."""
    tally = Tally()
    made = reads(lambda: [*read_questions(path, name, tally=tally)], path.name)
    if made is None:
        return
    skipped = sum(count for count, _ in tally.skipped.values())
    assert rows_in(path) in (None, tally.read)
    assert tally.made == len(made) == len({question.id for question in made})
    assert tally.made + skipped >= tally.read
    for question in made:
        assert not question.steps
        assert question.gold_answer is not None
        assert from_json(Trajectory, json.loads(dump_line(question))) == question


def good_folder(folder: Path) -> Path:
    """Two splits as the datasets library saves them."""
    saved = folder / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    for split in ("train", "test"):
        (saved / split).mkdir(parents=True)
        for name in ("dataset_info.json", "state.json"):
            (saved / split / name).write_text(json.dumps(SAVED[name]))
        table = pa.Table.from_pylist(SAVED_ROWS)
        with pa.ipc.new_stream(saved / split / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
    (saved / "dataset_dict.json").write_text(json.dumps(SAVED["dataset_dict.json"]))
    return saved


def check_saved(path: Path) -> None:
    """One file of a folder of the datasets library is damaged: nothing escapes, and every row is counted."""
    pytest.importorskip("datasets")
    saved = good_folder(path.parent)
    path.replace(saved / path.name if path.name == "dataset_dict.json" else saved / "train" / path.name)
    tally = Tally()
    made = reads(lambda: [*read_source("datasets", [str(saved)], split="train", tally=tally)], saved.name)
    if made is not None:
        skipped = sum(count for count, _ in tally.skipped.values())
        assert (tally.made, tally.read) == (len(made), len(made) + skipped)


class CountedGold(GoldAnswers):
    """Counts what is added."""

    added = 0

    def add(self, question: str, answer: str) -> None:
        super().add(question, answer)
        type(self).added += 1


def check_gold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row has an answer, or is counted as one without."""
    monkeypatch.setattr("cpmi.gold.GoldAnswers", CountedGold)
    CountedGold.added = 0
    found = reads(lambda: load_gold(path), path.name)
    if found is not None:
        assert found.without_answer + CountedGold.added == len([*read_any(path)])
    reads(lambda: load_gold(path, "question", "answer"), path.name)


# --- run directories and candidates ---------------------------------------------------------------------------------


def lines_of(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def good_run(folder: Path) -> Path:
    """A run directory with two of three trajectories labeled, and rollouts of others."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    (folder / "trajectories.jsonl").write_text(lines_of(TRAJECTORIES))
    (run / "manifest.json").write_text(json.dumps(MANIFEST))
    (run / "part-00000-of-00001.jsonl").write_text(lines_of(REWARDS[:2]))
    (run / "rollouts-00000-of-00001.jsonl").write_text(lines_of(ROLLOUTS))
    (run / "attempts.jsonl").write_text(lines_of(NOTES))
    return run


def check_run(path: Path) -> None:
    """One file of a run is damaged: every way to open the run reads it or says what is wrong."""
    run = good_run(path.parent)
    part, rollouts = (run / f"{name}-00000-of-00001.jsonl" for name in ("part", "rollouts"))
    name, damaged = path.name, run / path.name
    path.replace(damaged)
    lines = {file: file.read_bytes().split(b"\n")[:-1] for file in (part, rollouts)}
    opened = reads(lambda: RunDirectory.open(run), name, run.name)
    if opened is not None:
        reads(opened.parts_done, name)
        reads(lambda: labeled_trajectories(run), name, run.name)
        reads(lambda: refuse_overwriting(path.with_name("other"), [run]), name)
        reads(lambda: opened.require_same({"method": "mc", "shards": 1}), run.name)
    rewards = reads(lambda: [*read_rewards(run)], name)
    assert rewards is None or len(rewards) == sum(bool(line.strip()) for line in lines[part])
    reads(lambda: rewards_by_id(run), name, run.name)
    if opened is None:
        return

    def take_up() -> set[str]:
        with Part(opened, Shard()) as taken, RolloutFile().opened(opened, Shard(), taken.ids):
            return taken.ids

    ids = reads(take_up, name)
    if ids is not None:
        assert len(ids) + len(set_aside(part)) == len(lines[part])
        kept = [line + b"\n" for line in rollouts.read_bytes().split(b"\n")[:-1]]
        assert sorted([*kept, *set_aside(rollouts)]) == sorted(line + b"\n" for line in lines[rollouts])


def set_aside(path: Path) -> list[bytes]:
    """The broken lines that were taken out of a file of a run."""
    aside = path.with_suffix(".broken")
    return [line + b"\n" for line in aside.read_bytes().split(b"\n")[:-1]] if aside.exists() else []


def check_solutions(path: Path) -> None:
    """One file of candidates, or of what is known of them, is damaged."""
    output = path.with_name("candidates.jsonl")
    folder = run_folder(output)
    shutil.rmtree(folder, ignore_errors=True)
    damaged = output if path.name == "candidates.jsonl" else folder / path.name
    data = path.read_bytes()
    output.write_text(lines_of(CANDIDATES))
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "method": "sample"}))
    (folder / "questions.jsonl").write_text(lines_of(ATTEMPTS))
    (folder / "rewards.jsonl").write_text(lines_of(CANDIDATE_REWARDS))
    damaged.write_bytes(data)
    attempts = reads(lambda: read_attempts(output), damaged.name)
    if attempts is not None:
        whole = (folder / "questions.jsonl").read_bytes().split(b"\n")[:-1]
        assert len(attempts) == len(whole)
        sum((each.sampling + each.rewarding for each in attempts), Cost())

    def take_up() -> dict[str, int]:
        with SolutionFile.opened(output, {"method": "sample"}) as file:
            file.put_in_order(["r", "q"])
            return {each.id: each.candidates for each in file.attempts.values()}

    done = reads(take_up, damaged.name, folder.name)
    if done is not None:  # what is not done will be asked again; what is done is all there
        there = [candidate.tags["question_id"] for candidate in read_records(Trajectory, output)]
        assert all(there.count(name) == count for name, count in done.items())


# --- small files ----------------------------------------------------------------------------------------------------


def check_targets(path: Path) -> None:
    rows = reads(lambda: read_targets(path), path.name)
    if rows is not None:
        assert rows_in(path) in (None, len(rows))
        for row in rows:
            assert row.array("targets").shape == row.array("rewards").shape == (len(row.trajectory.steps),)
            json.dumps(dataclasses.asdict(row), allow_nan=False, ensure_ascii=False).encode()


def check_maps(path: Path) -> None:
    """A map that is read can be applied."""
    maps = reads(lambda: read_maps(path), path.name)
    for each in (maps or {}).values():
        with np.errstate(over="ignore", under="ignore"):
            made = each(np.array([0.5, -1.0]))
        assert made is None or made.shape == (2,)


def check_templates(path: Path) -> None:
    """A template that is read can be filled in, and turned into bytes."""
    templates = reads(lambda: load_templates(str(path)), path.name)
    for template in templates or ():
        assert "q?" in template.opening("q?")
        "".join((template.opening("q?"), *template.target("5"))).encode()


def check_results(path: Path) -> None:
    """A result that is read can be shown."""
    results = reads(lambda: read_results(path), path.name)
    if results is not None:
        columns, rows = table([dataclasses.replace(result, benchmark="processbench") for result in results])
        assert len(rows) == len(results)
        assert {len(row) for row in rows} == {len(columns)}
        json.dumps([dataclasses.asdict(result) for result in results], allow_nan=False, ensure_ascii=False).encode()


def check_training(path: Path) -> None:
    pytest.importorskip("matplotlib")
    from cpmi.report.training_figure import training_panels

    path = path.rename(path.with_name("training.json"))
    reads(lambda: training_panels([path.parent]), path.parent.name)


# --- all of them ----------------------------------------------------------------------------------------------------


def source_targets() -> Iterator[tuple[str, Target]]:
    for name, rows in SOURCE_SEEDS.items():
        yield f"source-{name}", Target(rows, ANY, partial(check_source, name, None))
    named = Fields("question", "steps", "gold_answer", labels="labels", id="id", tags=("labels", "x"))
    rows = [row | {"x": [1]} for row in SOURCE_SEEDS["plain"]]
    yield "source-plain-named", Target(rows, ANY, partial(check_source, "plain", named))


def saved_targets() -> Iterator[tuple[str, Target]]:
    for name, content in SAVED.items():
        yield f"saved-{name.removesuffix('.json')}", Target(content, (name,), check_saved)


READERS: dict[str, Target] = {
    "trajectories": Target(TRAJECTORIES, ROWS, check_trajectories),
    "rewards": Target(REWARDS, ROWS, check_rewards),
    **dict(source_targets()),
    **dict(saved_targets()),
    **{f"task-{name}": Target(rows, ANY, partial(check_task, name)) for name, rows in TASKS.items()},
    "run-manifest": Target(MANIFEST, ("manifest.json",), check_run),
    "run-part": Target(REWARDS, ("part-00000-of-00001.jsonl",), check_run),
    "run-rollouts": Target(ROLLOUTS, ("rollouts-00000-of-00001.jsonl",), check_run),
    "run-attempts": Target(NOTES, ("attempts.jsonl",), check_run),
    "solutions-candidates": Target(CANDIDATES, ("candidates.jsonl",), check_solutions),
    "solutions-questions": Target(ATTEMPTS, ("questions.jsonl",), check_solutions),
    "solutions-rewards": Target(CANDIDATE_REWARDS, ("rewards.jsonl",), check_solutions),
    "solutions-manifest": Target({"format": 1, "method": "sample"}, ("manifest.json",), check_solutions),
    "targets": Target(TARGETS, ROWS, check_targets),
    "maps": Target(MAPS, JSON, check_maps),
    "templates": Target(TEMPLATES, JSON, check_templates),
    "results": Target(RESULTS, JSON, check_results),
    "training": Target(TRAINING, JSON, check_training),
}
PER_READER = -(-FILES // (len(READERS) + 3))  # gold answers, saved rows and trees have tests of their own


def fuzz(name: str, draw: st.SearchStrategy[Any], check: Callable[[Any], None], count: int = PER_READER) -> int:
    """Check so many examples, the same ones every time; return how many there were."""
    done = 0

    @seed(zlib.crc32(f"{SEED} {name}".encode()))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )
    @given(draw)
    def run(example: Any) -> None:
        nonlocal done
        done += 1
        check(example)

    run()
    return done


def fuzz_reader(name: str, target: Target, folder: Path) -> None:
    def check(example: tuple[str, Damages]) -> None:
        path = folder / example[0]
        write_damaged(path, target.seed, example[1])
        target.read(path)

    assert fuzz(name, st.tuples(st.sampled_from(target.names), damages()), check) >= PER_READER


@pytest.mark.parametrize("name", READERS)
@pytest.mark.timeout(3600)
def test_reader(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a run finds its trajectories
    fuzz_reader(name, READERS[name], tmp_path)


@pytest.mark.timeout(3600)
def test_gold_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_reader("gold", Target(GOLD, ANY, lambda path: check_gold(path, monkeypatch)), tmp_path)


@pytest.mark.timeout(3600)
def test_saved_rows(tmp_path: Path) -> None:
    """The rows themselves are read from where the file says they are: a wrong number would end the process."""
    good = (good_folder(tmp_path) / "train" / "data-00000-of-00001.arrow").read_bytes()
    path = tmp_path / "data-00000-of-00001.arrow"

    def check(example: Damages) -> None:
        data = good
        for damage in (*example.text, *example.packed):
            data = BYTES[damage.kind](data, damage.at, damage.what)
        path.write_bytes(data)
        check_saved(path)

    path.write_bytes(good)
    check_saved(path)
    assert fuzz("saved-rows", damages(), check) >= PER_READER


def test_a_saved_folder_is_read_and_one_that_lacks_a_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    saved = good_folder(tmp_path)
    made = [*read_source("datasets", [str(saved)], split="train")]
    assert [trajectory.question for trajectory in made] == ["q0", "q1", "q2"]
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        (good_folder(tmp_path) / "train" / name).unlink()
        with pytest.raises(InputError, match="saved: the datasets library cannot load this"):
            [*read_source("datasets", [str(saved)], split="train")]


def test_found_rows_that_point_outside_of_their_file(tmp_path: Path) -> None:
    """pyarrow writes and reads a text of a length below zero, and to look at such a text may end the process."""
    pytest.importorskip("datasets")
    saved = good_folder(tmp_path)
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(np.array([0, 3, 1, 4], np.int32)), pa.py_buffer(b"abcd"))
    table = pa.Table.from_pylist(SAVED_ROWS).set_column(0, "question", texts)
    with pa.ipc.new_stream(saved / "train" / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="saved: the datasets library cannot load this"):
        [*read_source("datasets", [str(saved)], split="train")]


# --- the tree builder -----------------------------------------------------------------------------------------------


class Words:
    """A tokenizer with merges, and with nothing at all for some characters."""

    prefix: tuple[int, ...] = (1,)

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        pieces = re.findall(r"\w+|[^\w\x00\u2028]", text)
        return tuple(2 + zlib.crc32(piece.encode()) % 997 for piece in pieces)


def is_sequence(tree: TokenTree, ids: Sequence[int], end: int, scored: Sequence[int]) -> bool:
    """Whether the path to a node holds these tokens, and the nodes at its end are these."""
    path = tree.path(end)
    return tree.ids[path].tolist() == [*ids] and path[len(path) - len(scored) :] == [*scored]


texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["", " ", "\x00", "\u2028", "a", "a\n\na", "{question}", "{answer}", "\n\n"])
)


def check_tree(example: tuple[str, list[str], list[str], ContextKind, Span, bool]) -> None:
    question, steps, answers, kind, span, has_merges = example
    tokenizer: Words | ToyModel = Words() if has_merges else ToyModel()
    templates = [Template("{question}: ", "A {answer}."), Template("{question}: ", "{answer}"), *TEMPLATE_SETS["cues"]]
    pairs = step_contexts(kind, len(steps))
    contexts: list[Context] = list(dict.fromkeys(context for pair in pairs for context in pair))
    with bounded():
        plans = plan_scoring(question, steps, answers, contexts, templates, tokenizer, span)
        solutions = plan_steps(question, [steps, steps[:1], [*answers]], templates[0], tokenizer)
    flat = [(plan.tree, spans) for plan in plans for spans in plan.spans]
    for template, (tree, spans) in zip(templates, flat, strict=True):
        assert [*spans] == contexts
        opening = (*tokenizer.prefix, *tokenizer.encode(template.opening(question), first=True))
        assert tree.ids[: len(opening)].tolist() == [*opening]
        for context, found in spans.items():
            before = [*opening, *(token for t in context for token in tokenizer.encode(steps[t].strip() + "\n\n"))]
            assert len(found) == len(answers)
            for answer, nodes in zip(answers, found, strict=True):
                cue, completion = (tokenizer.encode(text) for text in template.target(answer))
                assert len(nodes) == len(completion) + (len(cue) if span == "target" else 0)
                assert tree.scored[nodes].all()
                if len(nodes):
                    assert is_sequence(tree, (*before, *cue, *completion), int(nodes[-1]), nodes.tolist())
    for tree in (*(plan.tree for plan in plans), *(plan.tree for plan in solutions)):
        assert (tree.parents < np.arange(len(tree))).all()
        children = [*zip(tree.parents.tolist(), tree.ids.tolist(), strict=True)]
        assert len({*children}) == len(children)  # no beginning is there twice
        depths = tree.depths()
        for node in range(1, len(tree)):  # preorder: what follows a node hangs on it or on what it hangs on
            assert tree.parents[node] in tree.path(node - 1)
            assert depths[node] <= depths[node - 1] + 1
    assert sorted(number for plan in solutions for number in plan.spans) == [0, 1, 2]


@pytest.mark.timeout(3600)
def test_trees() -> None:
    """Whatever strings a trajectory holds: every answer stands behind its context, with its tokens."""
    draw = st.tuples(
        texts.filter(str.strip),
        st.lists(texts, max_size=4),
        st.lists(texts, min_size=1, max_size=3),
        st.sampled_from(["marginal", "cumulative", "leave-one-out"]),
        st.sampled_from(["target", "answer"]),
        st.booleans(),
    )
    assert fuzz("trees", draw, check_tree) >= PER_READER


@pytest.mark.parametrize("name", READERS)
def test_the_good_file_of_each_reader_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing behind the first check would ever be tried."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "reads", lambda read, *_: read())
    target = READERS[name]
    path = tmp_path / target.names[0]  # Parquet cannot hold all of them, whose columns have several types
    write_damaged(path, target.seed, Damages([], [], []))
    target.read(path)


# --- what was found -------------------------------------------------------------------------------------------------


def deep(depth: int = 400) -> Raw:
    return Raw("[" * depth + "]" * depth)


FOUND: dict[str, tuple[Callable[[Path], Any], Any, str]] = {
    "a name with a line break is listed": (
        lambda path: [*read_source("stepwise", [str(path)])], [{"a\nb": 1}], "the fields here are: a b;"),
    "an answer of nested lists": (load_gold, [{"question": "q", "answer": deep()}], "no gold answer"),
    "a tag of nested lists": (
        lambda path: [*read_questions(path)],
        [{"question": "q", "answer": "1", "tags": {"a": Raw("[" * 400 + "{}" + "]" * 400)}}],
        "field 'a' must be a text or a number"),
    "a context that is no text": (
        lambda path: [*read_questions(path, "olympiadbench")], [TASKS["olympiadbench"][0] | {"context": 1}],
        "field 'context' must be a text"),
    "a subject that is no text": (
        lambda path: [*read_questions(path, "mmlu-stem")], [TASKS["mmlu-stem"][1] | {"subject": ["a"]}],
        "field 'subject' must be a text"),
    "a value that no float holds": (
        lambda path: [*read_source("math-aps", [str(path)])],
        [{"question": "q", "reasoning_steps": {"text": "q", "mc_value": 10**400}}], "found one too large"),
    "a score that no float holds": (
        lambda path: [*read_source("qwen-eval", [str(path)])],
        [SOURCE_SEEDS["qwen-eval"][1] | {"pred_score": [10**400]}], "found one too large"),
    "a first error with as many digits as Python reads": (
        lambda path: [*read_source("processbench", [str(path)])],
        [SOURCE_SEEDS["processbench"][0] | {"label": Raw("9" * 4300)}], "number beyond all bounds of 2"),
    "a template nested too deep": (lambda path: load_templates(str(path)), deep(100_000), "not JSON"),
    "a template that is none": (
        lambda path: load_templates(str(path)), [{"instruction": "a", "cue": "{answer}"}], "data.json: a template's"),
    "half of a pair in a template": (
        lambda path: load_templates(str(path)), [{"instruction": Raw(r'"\ud800{question}"'), "cue": "{answer}"}],
        "half of a surrogate pair"),
    "a map nested too deep": (read_maps, deep(100_000), "holds no maps"),
    "a map with a text for a number": (read_maps, [MAPS[0] | {"slope": "a"}], "holds no maps"),
    "a map of another kind": (read_maps, [MAPS[0] | {"squash": "cpmi"}], "data.json: holds no maps"),
    "a map without its points": (read_maps, [MAPS[1] | {"squash": "none"}], "data.json: holds no maps"),
    "a map whose source is a list": (read_maps, [MAPS[0] | {"source": ["a"]}], "holds no maps"),
    "a result nested too deep": (read_results, deep(100_000), "not a result"),
    "a result with a text for a figure": (
        read_results, [RESULTS[0] | {"metrics": {"f1": {"value": "a"}}}], "not a result"),
    "half of a pair in a result": (read_results, [RESULTS[0] | {"source": Raw(r'"\ud800"')}], "not a result"),
    "a source of targets that is none": (read_targets, [TARGETS[0] | {"source": [1]}], "field 'source' must be a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_found_is_one_line_with_the_file(name: str, tmp_path: Path) -> None:
    read, value, problem = FOUND[name]
    path = tmp_path / ("data.jsonl" if read is read_targets else "data.json")
    path.write_text("".join(map(spell, value)) if read is read_targets else spell(value))
    with pytest.raises(InputError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("math-aps", {"question": "q", "reasoning_steps": []}),
        ("zeroeval", {"id": "a", "question": "q", "candidates": []}),
        ("qwen-eval", {"idx": 1, "question": "q", "code": [], "pred": [], "score": []}),
    ],
)
def test_found_a_row_without_solutions_is_counted(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines_of([row]))
    tally = Tally()
    assert [*read_source(name, [str(tmp_path / "rows.jsonl")], tally=tally)] == []
    assert (tally.read, sum(count for count, _ in tally.skipped.values())) == (1, 1)


def test_found_statements_that_are_none_are_counted(tmp_path: Path) -> None:
    row = TASKS["logicnli"][0] | {"statements": [], "labels": []}
    (tmp_path / "rows.jsonl").write_text(lines_of([row]))
    tally = Tally()
    assert [*read_questions(tmp_path / "rows.jsonl", "logicnli", tally=tally)] == []
    assert tally.skipped == {"no statements": (1, f"{tmp_path / 'rows.jsonl'}:1")}


@pytest.mark.parametrize("text", ["```\n" * 40, " " * 20_000, "\n" * 20_000, "`" * 20_000])
def test_found_ends_of_candidates_take_no_time(text: str) -> None:
    with bounded(3):
        reasoning_in(f'{{"reasoning": "{text}", "answer": 5}}')
        reasoning_in(f'a{text}"reasoning": "b", "answer": 5}}')


def test_found_long_runs_take_no_quadratic_time(tmp_path: Path) -> None:
    text = f"q? Step 1: The answer is{' ' * 40_000}The answer is 5 "
    (tmp_path / "rows.jsonl").write_text(lines_of([{"input": f"{text}ки", "label": f"{text}+"}]))
    with bounded(5):
        (made,) = read_source("math-shepherd", [str(tmp_path / "rows.jsonl")])
        assert split_steps("a" + "!" * 50_000, "sentences") == ("a" + "!" * 50_000,)
    assert made.final_answer == "5"


@pytest.mark.parametrize("said", [None, "a", {"path": 7}, {"path": "a" * 5000}])
def test_found_a_manifest_that_does_not_say_where_its_input_is(said: object, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"format": 1, "input": said}))
    with pytest.raises(InputError, match="its trajectories are no longer at"):
        labeled_trajectories(tmp_path / "run")


@pytest.mark.parametrize("row", [None, [], {}, ATTEMPTS[0] | {"id": ["q"]}, ATTEMPTS[0] | {"candidates": "2"}])
def test_found_a_line_that_is_no_attempt_has_its_place(row: object, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out.jsonl")
    folder.mkdir()
    (folder / "questions.jsonl").write_text(lines_of([ATTEMPTS[1], row]))
    with pytest.raises(InputError, match=r"questions\.jsonl:2: no record of a question"):
        read_attempts(tmp_path / "out.jsonl")


@pytest.mark.parametrize(("constant", "held_out"), [("a", 0.5), (None, 0.5), ([], None)])
def test_found_a_constant_loss_that_is_none(constant: object, held_out: float | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from cpmi.report.training_figure import training_panels

    history = [{"epoch": 1.0, "loss": 0.5}] + ([{"epoch": 1.0, "eval_loss": held_out}] if held_out else [])
    (tmp_path / "training.json").write_text(json.dumps({"report": {"history": history, "constant_loss": constant}}))
    with pytest.raises(InputError, match="not as cpmi train writes it"):
        training_panels([tmp_path])
