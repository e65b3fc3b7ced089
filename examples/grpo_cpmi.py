"""GRPO on arithmetic word problems: a reward for the outcome alone, against outcome and CPMI step rewards.

    pip install 'cpmi[rl]'
    python examples/grpo_cpmi.py --reward outcome --seed 0 --output outcome-0.json
    python examples/grpo_cpmi.py --reward outcome+cpmi --seed 0 --output cpmi-0.json
    python examples/grpo_cpmi.py --plot curves.png outcome-0.json cpmi-0.json

The problems are made here, from a seed. The labeling model is the policy itself (``--labeler policy``: as it is at that
moment; ``frozen``: as it was at the start). No rollouts beyond GRPO's own, and no reward model.
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

ASK = "Solve the problem. Write one short calculation per line and end with 'The answer is N.'\n\n"
NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "tiles")


def problem(rng: random.Random, steps: int) -> dict[str, str]:
    """A question of so many calculations, and its answer."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    have = rng.randint(2, 9)
    lines = [f"{name} has {have} {thing}."]
    for _ in range(steps):
        kind = rng.choice(("buys", "loses", "packs") if have > 3 else ("buys", "packs"))
        if kind == "packs":
            times = rng.randint(2, 3)
            have *= times
            lines.append(f"Then the number of {thing} becomes {times} times as large.")
        else:
            change = rng.randint(1, 9 if kind == "buys" else have - 1)
            have += change if kind == "buys" else -change
            lines.append(f"Then {name} {kind} {change} {thing}.")
    lines.append(f"How many {thing} does {name} have now?")
    return {"question": " ".join(lines), "answer": str(have)}


SHOWN = (
    ("Ida has 4 pears. Then Ida buys 3 pears. Then Ida loses 2 pears. How many pears does Ida have now?",
     "4 + 3 = 7\n7 - 2 = 5\nThe answer is 5."),
    ("Max has 5 cards. Then the number of cards becomes 2 times as large. Then Max buys 6 cards. "
     "How many cards does Max have now?",
     "5 * 2 = 10\n10 + 6 = 16\nThe answer is 16."),
)  # fmt: skip


def prompt(question: str) -> list[dict[str, str]]:
    """The question as a chat, behind two that are solved."""
    turns = []
    for asked, solved in SHOWN:
        turns += [{"role": "user", "content": ASK + asked}, {"role": "assistant", "content": solved}]
    return [*turns, {"role": "user", "content": ASK + question}]


def rows(seed: int, count: int, steps: int) -> list[dict[str, Any]]:
    """Rows for TRL: a prompt, and the columns that rewards read."""
    rng = random.Random(seed)
    made = [problem(rng, steps) for _ in range(count)]
    return [{"prompt": prompt(each["question"]), **each} for each in made]


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
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
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
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output", "plot", "curves")}
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
    texts = []
    with torch.inference_mode():
        for row in test:
            inputs = tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(model.device)
            ids = model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
            texts.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
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
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=4, help="different questions in a training step")
    parser.add_argument("--generations", type=int, default=8, help="completions of each question")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--calculations", type=int, default=2, help="of a question")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--test", type=int, default=50, help="questions to test on, before and after")
    parser.add_argument("--output", type=Path, default=Path("grpo.json"))
    parser.add_argument("--plot", type=Path, help="draw the curves of the files named, and train nothing")
    parser.add_argument("curves", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.plot is not None:
        plot(arguments.curves, arguments.plot)
        return
    result = train(arguments)
    arguments.output.write_text(json.dumps(result, indent=1))
    sys.stdout.write(f"{arguments.output}: {result['seconds_per_step']:.1f} s a step, right before "
                     f"{result['test_before']}, after {result['test_after']}\n")  # fmt: skip


if __name__ == "__main__":
    main()
