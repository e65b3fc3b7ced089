"""Guided search, one question at a time and many at once, side by side.

    python benchmarks/search_speed.py --questions test.jsonl --task gsm8k --model vllm:PATH --prm PRM

The same engine and reward model, opened once; the first --alone questions one by one, then --together of them at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from cpmi import Trajectory
from cpmi.models import ModelSettings, open_model
from cpmi.prm.model import PRM
from cpmi.protocols import SamplingParams
from cpmi.search import Search, Searched, SearchSettings
from cpmi.tasks import read_questions


def measure(name: str, search: Search, questions: Sequence[Trajectory], at_once: int) -> float:
    """Questions a second."""
    start = time.perf_counter()
    found = search.run(questions, at_once=at_once)
    seconds = time.perf_counter() - start
    print(f"{name}: {len(found)} questions in {seconds:.1f} s, {len(found) / seconds:.3f} questions/s; {_cost(found)}")
    return len(found) / seconds


def _cost(found: Sequence[Searched]) -> str:
    generated = sum(each.sampling.tokens_generated for each in found)
    read = sum(each.rewarding.tokens_scored for each in found)
    sampling, rewarding = (sum(getattr(each, part).seconds for each in found) for part in ("sampling", "rewarding"))
    finished = sum(each.is_finished for each in found)
    return (
        f"{generated} tokens generated in {sampling:.1f} s, {read} read for rewards in {rewarding:.1f} s, "
        f"{finished} finished"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--task", default="questions")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prm", required=True)
    parser.add_argument("--search", default="beam")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=12)
    parser.add_argument("--step-tokens", type=int, default=128)
    parser.add_argument("--alone", type=int, default=8)
    parser.add_argument("--together", type=int, default=64)
    options: Any = parser.parse_args()
    questions = list(islice(read_questions(options.questions, options.task), options.together))
    sampling = SamplingParams(max_tokens=options.step_tokens, temperature=0.8, top_k=40)
    settings = SearchSettings(options.search, options.n, options.width, max_steps=options.max_steps, sampling=sampling)
    engine = open_model(ModelSettings(options.model))
    search = Search(engine, PRM.from_pretrained(options.prm), settings)
    search.run(questions[:1])  # what is compiled or allocated at first use is in neither figure
    alone = measure("one at a time", search, questions[: options.alone], 1)
    together = measure("all at once", search, questions, options.together)
    print(f"all at once: {together / alone:.1f} times the questions a second")
    engine.close()


if __name__ == "__main__":
    main()
