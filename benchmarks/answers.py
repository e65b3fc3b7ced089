"""What step rewards do to answers: the pieces of the tables in docs/best_of_n.md.

    python benchmarks/answers.py pick folio=validation.jsonl,train.jsonl:100 logiqa2=test.jsonl:100 -o questions.jsonl
    python benchmarks/answers.py cut candidates.jsonl --questions 200 -o some.jsonl

``pick`` takes so many questions of each set, each text once: all files of a set, one after the other, each in the order
of a hash of its questions. ``cut`` takes all candidates of so many questions, in the order of a hash of their ids; with
``--longest``, only of questions whose candidates all stay below so many characters.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from cpmi import Trajectory, read_trajectories, write_records
from cpmi.tasks import read_questions


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def pick(options: argparse.Namespace) -> None:
    picked: list[Trajectory] = []
    for argument in options.sets:
        task, _, rest = argument.partition("=")
        files, _, count = rest.rpartition(":")
        found = list(_questions(task, files.split(",")))
        picked += found[: int(count)]
        print(f"{task}: {min(int(count), len(found))} of {len(found)} questions")
    write_records(options.output, picked)


def _questions(task: str, files: list[str]) -> Iterator[Trajectory]:
    seen: set[str] = set()
    for file in files:
        stem = Path(file).name.split(".")[0]
        for each in sorted(read_questions(file, task), key=lambda each: _hash(each.question)):
            if each.question not in seen:
                seen.add(each.question)
                yield dataclasses.replace(each, id=f"{stem}-{each.id}")


def cut(options: argparse.Namespace) -> None:
    by_question: dict[str, list[Trajectory]] = {}
    for each in read_trajectories(options.candidates):
        by_question.setdefault(each.tags["question_id"], []).append(each)
    able = [each for each in by_question.values() if max(map(_characters, each)) <= options.longest]
    able.sort(key=lambda candidates: _hash(candidates[0].tags["question_id"]))
    chosen = [each for candidates in able[: options.questions] for each in candidates]
    print(f"{len(able[: options.questions])} of {len(by_question)} questions, {len(chosen)} candidates")
    write_records(options.output, chosen)


def _characters(each: Trajectory) -> int:
    return len(each.question) + sum(map(len, each.steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("pick")
    one.add_argument("sets", nargs="+", metavar="TASK=FILE,FILE:COUNT")
    one.add_argument("--output", "-o", type=Path, required=True)
    one.set_defaults(run=pick)
    one = commands.add_parser("cut")
    one.add_argument("candidates", type=Path)
    one.add_argument("--questions", type=int, required=True)
    one.add_argument("--longest", type=int, default=10**9)
    one.add_argument("--output", "-o", type=Path, required=True)
    one.set_defaults(run=cut)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
