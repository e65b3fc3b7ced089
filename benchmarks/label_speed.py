"""How fast CPMI labels, side by side with scoring every sequence by itself; prints one table.

    python benchmarks/label_speed.py --model hf:PATH --trajectories FILE

``--model random:FOLDER`` makes random weights for the configuration and the tokenizer in FOLDER: speed does not depend
on what weights say, and a large model need not be downloaded to be timed.

Plain scoring is what the paper's official code does: every (context, answer, template) is its own sequence, batches of
12 padded on the right, logits of every position over the whole vocabulary in float32. It takes hours here, so only a
random share of its batches is run (``--plain-share``) and its time scaled up by padded tokens; the table says so.

``dense masks`` is our own scoring with a mask of every token of a row against every other, as it was before
``tree_attention``. ``of the peak``: products of matrices outside attention, against the best that a large product
reaches here in the same dtype, measured in each round.

Each figure is the median of ``--rounds`` rounds; within a round everything runs in turn, so that a noisy machine is
noisy for all.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from cpmi import (
    CPMI,
    CPMISettings,
    ModelSettings,
    NegativeSettings,
    StepRewards,
    Trajectory,
    __version__,
    open_model,
    read_trajectories,
)
from cpmi.grader import Grader
from cpmi.models.hf import HFModel
from cpmi.prompts import CUES, INSTRUCTIONS, STEP_SEPARATOR, ContextKind, Template, step_contexts

BATCH = 12  # sequences, as in the official code
DENSE = "dense masks"


@dataclass(frozen=True)
class Sequences:
    """What plain scoring has to run: the token sequences of a set of trajectories, in batches."""

    batches: list[list[list[int]]]

    @property
    def padded_tokens(self) -> int:
        return sum(len(batch) * max(map(len, batch)) for batch in self.batches)


def plain_sequences(
    model: HFModel, trajectories: Sequence[Trajectory], records: Sequence[StepRewards], kind: ContextKind,
    templates: Sequence[Template],
) -> Sequences:  # fmt: skip
    """Every (template, context, answer) of every trajectory as one sequence, the answers those our labels used."""
    batches = []
    for trajectory, record in zip(trajectories, records, strict=True):
        pairs = step_contexts(kind, len(trajectory.steps))
        contexts = list(dict.fromkeys(context for pair in pairs for context in pair))
        texts = [
            template.opening(trajectory.question)
            + "".join(trajectory.steps[t] + STEP_SEPARATOR for t in context)
            + "".join(template.target(str(answer)))
            for template in templates
            for context in contexts
            for answer in answers_of(record)
        ]
        sequences = [[*model.prefix, *model.encode(text, first=True)] for text in texts]
        batches += [sequences[i : i + BATCH] for i in range(0, len(sequences), BATCH)]
    return Sequences(batches)


def answers_of(record: StepRewards) -> list[Any]:
    answers = record.details["answers"]
    assert isinstance(answers, list)  # noqa: S101 - for the type checker
    return answers


@torch.inference_mode()
def plain_seconds(model: Any, sequences: Sequences, share: float, rng: random.Random) -> float:
    """Seconds that plain scoring takes, from a random share of its batches."""
    some = [batch for batch in sequences.batches if rng.random() < share] or sequences.batches[:1]
    start = time.perf_counter()
    for batch in some:
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=model.device)
        logprobs = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        logprobs.gather(-1, ids[:, 1:, None]).cpu()
    return (time.perf_counter() - start) * sequences.padded_tokens / Sequences(some).padded_tokens


@torch.inference_mode()
def forward_seconds(model: Any, lengths: Sequence[int], *, head: bool) -> float:
    """Seconds of plain causal forwards of single sequences of these lengths; with all logits, or the backbone alone."""
    start = time.perf_counter()
    for length in lengths:
        ids = torch.arange(length, device=model.device)[None] % 5000
        out = (model if head else model.base_model)(ids, use_cache=False)
        out[0][0, -1, :1].cpu()  # waits for a GPU
    return time.perf_counter() - start


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = do()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-share", type=float, default=0.03)
    parser.add_argument(
        "--only", default="", help="only the ways of labeling with this in their name, and nothing else"
    )
    options = parser.parse_args()

    model = opened(options)
    network = model._model  # noqa: SLF001 - the same weights for both sides
    trajectories = list(islice(read_trajectories(options.trajectories), options.count))
    rng = random.Random(0)
    base = CPMISettings(negatives=NegativeSettings.parse("rule"))  # four for every trajectory
    ways: dict[str, CPMISettings] = {
        f"{kind}, {name}": replace(base, context=kind, templates=templates)
        for kind in ("marginal", "cumulative")
        for name, templates in (("1 template", CUES[:1]), ("4 instructions", INSTRUCTIONS), ("4 cues", CUES))
    }
    ways |= {f"{kind}, 4 cues, {DENSE}": ways[f"{kind}, 4 cues"] for kind in ("marginal", "cumulative")}
    ways = {name: settings for name, settings in ways.items() if options.only in name}
    seconds: dict[str, list[float]] = {}
    peaks: list[float] = []
    tokens: dict[str, int] = {}

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    with Grader() as grader:
        products = {}  # by name, of a token
        for name, settings in ways.items():
            with masks(model, name):
                CPMI(model, settings, grader=grader).rewards(trajectories)  # warms up
            with masks(model, DENSE), FlopCounterMode(display=False) as counter:  # which FlexAttention does not bear
                some = CPMI(model, settings, grader=grader).rewards(trajectories[:4])
            counted = counter.get_flop_counts()["Global"]
            flops = sum(counted.get(each, 0) for each in (torch.ops.aten.mm, torch.ops.aten.addmm))
            products[name] = flops / sum(record.cost.tokens_scored for record in some)
        for _ in range(options.rounds):
            measured = {}
            peaks.append(matmul_peak(network.dtype, network.device))
            for name, settings in ways.items():
                with masks(model, name):
                    measured[name] = timed(partial(CPMI(model, settings, grader=grader).rewards, trajectories))
            for name, (taken, records) in measured.items():
                note(name, taken)
                tokens[name] = sum(record.cost.tokens_scored for record in records)
            if options.only:
                continue
            # As many tokens as our trees had, in sequences of the same size.
            per_tree = tokens["marginal, 4 instructions"] // (4 * len(trajectories))
            for head in (False, True):
                name = f"plain forward, {'with all logits' if head else 'backbone alone'}"
                note(name, forward_seconds(network, [per_tree] * (4 * len(trajectories)), head=head))
                tokens[name] = per_tree * 4 * len(trajectories)
            for kind in ("marginal", "cumulative"):
                records = measured[f"{kind}, 4 instructions"][1]
                sequences = plain_sequences(model, trajectories, records, kind, INSTRUCTIONS)
                note(f"plain scoring, {kind}", plain_seconds(network, sequences, options.plain_share, rng))
                tokens[f"plain scoring, {kind}"] = sequences.padded_tokens
    shares = {
        name: each * tokens[name] / statistics.median(seconds[name]) / statistics.median(peaks)
        for name, each in products.items()
    }
    print_table(seconds, tokens, shares, len(trajectories), options)
    print(f"\nmatmul peak: {statistics.median(peaks) / 1e12:.2f} TFLOP/s in {options.dtype}")


@contextmanager
def masks(model: HFModel, name: str) -> Iterator[None]:
    """Dense masks where the name says so."""
    attention = model._forward.attention  # noqa: SLF001
    before, attention.by_blocks = attention.by_blocks, attention.by_blocks and DENSE not in name
    try:
        yield
    finally:
        attention.by_blocks = before


@torch.inference_mode()
def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of the best of some large products."""
    size = 3072 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

    def multiply() -> None:
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / min(timed(multiply)[0] for _ in range(8))


def opened(options: argparse.Namespace) -> HFModel:
    """The model by name, or one of random weights."""
    kind, _, folder = options.model.partition(":")
    if kind != "random":
        model = open_model(ModelSettings(options.model, options.dtype))
        assert isinstance(model, HFModel)  # noqa: S101 - for the type checker
        return model
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        dtype = getattr(torch, options.dtype)
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return HFModel(network, tokenizer, name=options.model)


def print_table(
    seconds: dict[str, list[float]], tokens: dict[str, int], shares: dict[str, float], count: int,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{options.model}, {options.dtype}, M=4, {count} trajectories of {options.trajectories.name}; medians of")
    print(f"{options.rounds} rounds; plain scoring from {options.plain_share:.0%} of its batches; {machine()}\n")
    print(
        "| | s / trajectory | spread | tokens / trajectory | tokens/s | of the peak | times faster than plain scoring |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, median in medians.items():
        kind = name.split(",")[0]
        comparable = not name.endswith("1 template")  # plain scoring has four
        faster = medians.get(f"plain scoring, {kind}", 0.0) / median if comparable else 0.0
        spread = " - ".join(seconds_text(each / count) for each in (min(seconds[name]), max(seconds[name])))
        rate = tokens[name] / median
        cells = [name, f"{seconds_text(median / count)}", spread, f"{tokens[name] / count:,.0f}", f"{rate:,.0f}"]
        cells.append(f"{shares[name]:.0%}" if name in shares else "")
        print("| " + " | ".join([*cells, f"{faster:.0f}" if faster else ""]) + " |")
    for kind in ("marginal", "cumulative"):
        if f"{kind}, 1 template" not in medians:
            continue
        ratio = medians[f"{kind}, 4 cues"] / medians[f"{kind}, 1 template"]
        print(f"\n{kind}: 4 cues take {ratio:.2f} times the time of 1 template", end="")
        faster = medians[f"{kind}, 4 cues, {DENSE}"] / medians[f"{kind}, 4 cues"]
        print(f"; block by block they are {faster:.2f} times as fast as with {DENSE}", end="")
    name = "marginal, 4 instructions"
    if options.only:
        print()
        return
    for which in ("backbone alone", "with all logits"):
        plain = f"plain forward, {which}"
        share = (tokens[name] / medians[name]) / (tokens[plain] / medians[plain])
        print(f"\nlabeling reaches {share:.0%} of the tokens/s of a plain causal forward, {which}", end="")
    print()


def seconds_text(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}; {versions()}"
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":?")
    return f"{torch.get_num_threads()} threads of {cpu.partition(':')[2].strip()}; {versions()}"


def versions() -> str:
    return (
        f"cpmi {__version__}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{datetime.now(UTC):%Y-%m-%d}"
    )


if __name__ == "__main__":
    main()
