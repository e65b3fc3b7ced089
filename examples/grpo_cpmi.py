"""GRPO on arithmetic word problems: a reward for the outcome alone, against outcome and CPMI step rewards.

    pip install 'cpmi[rl]'
    python examples/grpo_cpmi.py --warm-up start
    python examples/grpo_cpmi.py --model start --reward outcome --seed 0 --output outcome-0.json
    python examples/grpo_cpmi.py --model start --reward outcome+cpmi --seed 0 --output cpmi-0.json
    python examples/grpo_cpmi.py --plot curves.png outcome-0.json cpmi-0.json

The problems are made here, from a seed. The warm-up shows the model some solved ones, so that it knows the form and is
right now and then: a policy that never is has nothing to learn from. The labeling model is the policy itself
(``--labeler policy``: as it is at that moment; ``frozen``: as it was at the start). No rollouts beyond GRPO's own, and
no reward model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cpmi.rl import CPMIReward, OutcomeReward, RewardSettings

_WARM_UP_BATCH, _WARM_UP_RATE = 16, 3e-5

NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "tiles")


def problem(rng: random.Random, steps: int) -> dict[str, str]:
    """A question of so many calculations, its answer, and how it is solved."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    have = rng.randint(2, 9)
    lines, solution = [f"{name} has {have} {thing}."], ""
    for _ in range(steps):
        before = have
        kind = rng.choice(("buys", "loses", "packs") if have > 3 else ("buys", "packs"))
        if kind == "packs":
            times = rng.randint(2, 3)
            have *= times
            lines.append(f"Then the number of {thing} becomes {times} times as large.")
            solution += f"{before} * {times} = {have}\n"
        else:
            change = rng.randint(1, 9 if kind == "buys" else have - 1)
            have += change if kind == "buys" else -change
            lines.append(f"Then {name} {kind} {change} {thing}.")
            solution += f"{before} {'+' if kind == 'buys' else '-'} {change} = {have}\n"
    lines.append(f"How many {thing} does {name} have now?")
    solution += f"The answer is {have}."
    return {"question": " ".join(lines), "answer": str(have), "worked": solution}


def rows(seed: int, count: int, steps: int) -> list[dict[str, Any]]:
    """Rows for TRL: a prompt, and the columns that rewards read."""
    rng = random.Random(seed)
    made = [problem(rng, steps) for _ in range(count)]
    return [{"prompt": each["question"] + "\n", **each} for each in made]


def warm_up(arguments: argparse.Namespace) -> None:
    """Show the model solved problems, and save it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).train()
    data = rows(20_000 + arguments.seed, arguments.warm_up_steps * _WARM_UP_BATCH, arguments.calculations)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_WARM_UP_RATE, weight_decay=0.0)
    for start in range(0, len(data), _WARM_UP_BATCH):
        batch = data[start : start + _WARM_UP_BATCH]
        asked = [tokenizer.encode(row["prompt"]) for row in batch]
        told = [[*tokenizer.encode(row["worked"]), tokenizer.eos_token_id] for row in batch]
        width = max(len(a) + len(b) for a, b in zip(asked, told, strict=True))
        ids = torch.full((len(batch), width), tokenizer.eos_token_id)
        labels = torch.full((len(batch), width), -100)
        for i, (a, b) in enumerate(zip(asked, told, strict=True)):
            ids[i, : len(a) + len(b)] = torch.tensor(a + b)
            labels[i, len(a) : len(a) + len(b)] = torch.tensor(b)
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sys.stderr.write(f"warm-up {start // _WARM_UP_BATCH + 1}/{arguments.warm_up_steps}: loss {loss.item():.3f}\n")
    model.save_pretrained(arguments.warm_up)
    tokenizer.save_pretrained(arguments.warm_up)
    right = accuracy(model, tokenizer, rows(10_000, arguments.test, arguments.calculations), arguments.max_tokens)
    sys.stdout.write(f"{arguments.warm_up}: right after the warm-up {right}\n")


def rewards(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> list[Any]:
    """The reward functions: the first is what the curve shows, the second what the policy learns from."""
    settings = RewardSettings(split="lines", step_weight=arguments.step_weight)
    outcome = OutcomeReward(settings)
    if arguments.reward == "outcome":
        return [outcome]
    if arguments.labeler == "frozen":
        from copy import deepcopy

        model = deepcopy(model).eval().requires_grad_(requires_grad=False)
    # Outcome and steps are two functions, so that TRL logs each: the second has no outcome in it.
    steps = RewardSettings(split="lines", step_weight=arguments.step_weight, outcome_weight=0.0)
    return [outcome, CPMIReward(model, tokenizer=tokenizer, settings=steps)]


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and give the learning curve."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    data = Dataset.from_list(rows(arguments.seed, arguments.steps * arguments.prompts, arguments.calculations))
    test = rows(10_000, arguments.test, arguments.calculations)  # the same for every seed and reward
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=arguments.steps,
            seed=arguments.seed,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=2,
            per_device_train_batch_size=arguments.prompts * arguments.generations,
            num_generations=arguments.generations,
            max_completion_length=arguments.max_tokens,
            temperature=1.0,
            beta=0.0,
            scale_rewards=arguments.scale_rewards,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=True,  # autocast; the weights stay float32
            gradient_checkpointing=False,  # TRL's default is True
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards(arguments, model, tokenizer),
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
        )
        before = accuracy(model, tokenizer, test, arguments.max_tokens)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        after = accuracy(model, tokenizer, test, arguments.max_tokens)
    curve = [
        {key: entry[key] for key in entry if key.startswith(("rewards/", "outcome/", "cpmi/", "completions/mean_len"))}
        for entry in trainer.state.log_history
        if "reward" in entry
    ]
    settings = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("output", "plot", "curves", "warm_up", "warm_up_steps")
    }
    return {
        "settings": settings,
        "seconds_per_step": seconds / arguments.steps,
        "test_before": before,
        "test_after": after,
        "curve": curve,
    }


def accuracy(model: Any, tokenizer: Any, test: list[dict[str, Any]], max_tokens: int) -> float | None:
    """The share of test questions whose greedy answer is right; None without test questions."""
    import torch

    if not test:
        return None
    judge = OutcomeReward(RewardSettings(split="lines"))
    model.eval()
    inputs = tokenizer([row["prompt"] for row in test], padding=True, padding_side="left", return_tensors="pt")
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    columns: dict[str, Any] = {name: [row[name] for row in test] for name in ("question", "answer")}
    judged = judge([row["prompt"] for row in test], texts, **columns)
    return sum(value or 0.0 for value in judged) / len(test)


def plot(files: list[Path], output: Path, window: int = 10) -> None:
    """The outcome of each run over training steps, smoothed; runs of one reward have one color."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    colors: dict[str, Any] = {}
    for file in files:
        run = json.loads(file.read_text())
        reward = run["settings"]["reward"]
        values = [entry["rewards/outcome/mean"] for entry in run["curve"]]
        smooth = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
        label = None if reward in colors else reward
        (line,) = axes.plot(range(1, len(smooth) + 1), smooth, label=label, color=colors.get(reward))
        colors[reward] = line.get_color()
    axes.set_xlabel("training step")
    axes.set_ylabel(f"right answers in training, mean of {window} steps")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.tight_layout()
    figure.savefig(output, dpi=150)


def main() -> None:
    """Parse, then train or plot."""
    parser = argparse.ArgumentParser(description="GRPO with and without CPMI step rewards")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a folder or a hub id")
    parser.add_argument("--reward", choices=("outcome", "outcome+cpmi"), default="outcome+cpmi")
    parser.add_argument("--labeler", choices=("policy", "frozen"), default="policy")
    parser.add_argument("--step-weight", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=Path, metavar="FOLDER", help="show solved problems, save there, and end")
    parser.add_argument("--warm-up-steps", type=int, default=25, help=f"of {_WARM_UP_BATCH} solved problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=2, help="different questions in a training step")
    parser.add_argument("--generations", type=int, default=6, help="completions of each question")
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--calculations", type=int, default=3, help="of a question")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument(
        "--scale-rewards",
        choices=("group", "batch", "none"),
        default="batch",
        help="what rewards are divided by the spread of; group, TRL's default, blows up small step rewards where all "
        "completions of a question are right, or all wrong",
    )
    parser.add_argument("--test", type=int, default=100, help="questions to test on, before and after")
    parser.add_argument("--output", type=Path, default=Path("grpo.json"))
    parser.add_argument("--plot", type=Path, help="draw the curves of the files named, and train nothing")
    parser.add_argument("curves", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.plot is not None:
        plot(arguments.curves, arguments.plot)
        return
    if arguments.warm_up is not None:
        warm_up(arguments)
        return
    result = train(arguments)
    arguments.output.write_text(json.dumps(result, indent=1))
    sys.stdout.write(f"{arguments.output}: {result['seconds_per_step']:.1f} s a step, right before "
                     f"{result['test_before']}, after {result['test_after']}\n")  # fmt: skip


if __name__ == "__main__":
    main()
